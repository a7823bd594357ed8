package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
)

func (s *session) auditCmd() *cobra.Command {
	var from int64
	var limit int
	var kept string
	list := &cobra.Command{
		Use: "list", Short: "List what changed, and who did it", Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			items, err := c.Audit(cmd.Context(), from, limit)
			if err != nil {
				return err
			}
			if s.json {
				return s.encode(items)
			}
			s.entries(items)
			return nil
		},
	}
	list.Flags().Int64Var(&from, "from", 0, "the first entry (default: so that the newest is the last)")
	list.Flags().IntVar(&limit, "limit", 30, "how many, up to 1000")
	verify := &cobra.Command{
		Use: "verify", Short: "Check that nothing in the audit was edited, removed or reordered",
		Long: "A cut tail, and a chain that was rewritten whole, are found only against a head that was kept elsewhere:\n" +
			"keep what keybaton audit head prints, and give it with --head later.",
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			v, err := c.Verify(cmd.Context(), kept)
			if err != nil {
				return err
			}
			if s.json {
				if err := s.encode(v); err != nil {
					return err
				}
			}
			if !v.OK {
				return Fail(ExitFailed, "the audit is damaged: "+clean(v.Problem), "keep a copy of the database as it is, and find out who could write to it")
			}
			if !s.json {
				s.say(span{"✓", good}, span{fmt.Sprintf(" %s entries, each as it was written; head %d:%s", count(v.Entries), v.Head.Seq, v.Head.Hash), plain})
			}
			return nil
		},
	}
	verify.Flags().StringVar(&kept, "head", "", "a head that was kept elsewhere, SEQ:HASH")
	head := &cobra.Command{
		Use: "head", Short: "Print the head of the audit, to be kept elsewhere", Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			items, err := c.Audit(cmd.Context(), 0, 1)
			if err != nil {
				return err
			}
			var h api.AuditHead
			if n := len(items); n > 0 {
				h = api.AuditHead{Seq: items[n-1].Seq, Hash: items[n-1].Hash}
			}
			if s.json {
				return s.encode(h)
			}
			if h.Seq == 0 {
				return Fail(ExitNotFound, "the audit is empty: nothing has changed yet", "")
			}
			s.text(fmt.Sprintf("%d:%s", h.Seq, h.Hash))
			return nil
		},
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
