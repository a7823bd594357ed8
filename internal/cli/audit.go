package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) auditCmd() *cobra.Command {
	var from int64
	var limit int
	var kept string
	list := &cobra.Command{
		Use: "list", Short: "List what changed, and who did it", Args: nothing,
		RunE: s.run(func(ctx context.Context, c *client.Client, _ []string) error {
			items, err := c.Audit(ctx, from, limit)
			return s.show(items, err, func() { s.entries(items) })
		}),
	}
	list.Flags().Int64Var(&from, "from", 0, "the first entry (default: so that the newest is the last)")
	list.Flags().IntVar(&limit, "limit", 30, "how many, up to 1000")
	verify := &cobra.Command{
		Use: "verify", Short: "Check that nothing in the audit was edited, removed or reordered",
		Long: "A cut tail, and a chain that was rewritten whole, are found only against a head that was kept elsewhere:\n" +
			"keep what keybaton audit head prints, and give it with --head later.",
		Args: nothing,
		RunE: s.run(func(ctx context.Context, c *client.Client, _ []string) error {
			v, err := c.Verify(ctx, kept)
			err = s.show(v, err, func() {
				if v.OK {
					s.say(span{"✓", good}, span{fmt.Sprintf(" %s entries, each as it was written; head %d:%s", count(v.Entries), v.Head.Seq, v.Head.Hash), plain})
				}
			})
			if err == nil && !v.OK {
				err = Fail(ExitFailed, "the audit is damaged: "+clean(v.Problem), "keep a copy of the database as it is, and find out who could write to it")
			}
			return err
		}),
	}
	verify.Flags().StringVar(&kept, "head", "", "a head that was kept elsewhere, SEQ:HASH")
	head := &cobra.Command{
		Use: "head", Short: "Print the head of the audit, to be kept elsewhere", Args: nothing,
		RunE: s.run(func(ctx context.Context, c *client.Client, _ []string) error {
			items, err := c.Audit(ctx, 0, 1)
			if err == nil && len(items) == 0 {
				err = Fail(ExitNotFound, "the audit is empty: nothing has changed yet", "")
			}
			if err != nil {
				return err
			}
			h := api.AuditHead{Seq: items[len(items)-1].Seq, Hash: items[len(items)-1].Hash}
			return s.show(h, nil, func() { s.text(fmt.Sprintf("%d:%s", h.Seq, h.Hash)) })
		}),
	}
	return group("audit", "What changed, and who did it", list, verify, head)
}

func (s *session) entries(items []api.AuditEntry) {
	var rows [][]span
	for _, e := range items {
		what := e.Service
		if e.Environment != "" {
			what += "/" + e.Environment
		}
		if e.Version != 0 {
			what += " " + version(e.Version)
		}
		var detail []string
		for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
			if e.Detail[k] != "" {
				detail = append(detail, k+"="+e.Detail[k])
			}
		}
		rows = append(rows, []span{{fmt.Sprint(e.Seq), dim}, {e.At.UTC().Format(time.DateTime), plain}, {e.Actor, plain}, {e.Action, plain},
			{what, plain}, {strings.Join(detail, " "), dim}})
	}
	s.table([]string{"SEQ", "AT (UTC)", "WHO", "DID", "WHAT", "DETAIL"}, rows)
}
