package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) consumerCmd() *cobra.Command {
	var yes bool
	list := &cobra.Command{
		Use: "list", Short: "List who gets keys, and what they hold", Args: nothing,
		RunE: s.run(func(ctx context.Context, c *client.Client, _ []string) error {
			items, err := c.Consumers(ctx)
			return s.show(items, err, func() { s.consumers(items) })
		}),
	}
	forget := &cobra.Command{
		Use: "forget NAME", Short: "Say that a consumer is gone for good",
		Long: "Rotations wait for whoever may still hold a key. Forgetting says that this consumer does not: if it still runs, its requests\n" +
			"fail once the key is revoked.",
		Args: oneName("consumer", "a consumer"),
		RunE: s.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := s.confirm("forget "+clean(args[0])+"? If it still runs, its requests fail once its key is revoked.", yes); err != nil {
				return err
			}
			n, err := c.Forget(ctx, args[0])
			return s.show(api.Forgotten{Holds: n}, err, func() {
				s.say(span{"✓", good}, span{" " + args[0] + " is forgotten: " + things(n, "hold") + " waived", plain})
				s.next("if its token should stop working too: keybaton token revoke " + args[0])
			})
		}),
	}
	forget.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return group("consumer", "Who gets keys from Keybaton", list, forget)
}

func (s *session) consumers(items []api.Consumer) {
	if len(items) == 0 {
		s.text("nobody gets keys yet")
		s.next("keybaton token create NAME --role consumer --service SERVICE --env E")
		return
	}
	var rows [][]span
	for _, c := range items {
		var seen time.Time
		silent, behind := 0, 0
		for _, b := range c.Boots {
			if b.Seen.After(seen) {
				seen = b.Seen
			}
			if b.Silent {
				silent++
			}
			if b.Behind {
				behind++
			}
		}
		state := span{"", plain}
		switch {
		case silent > 0:
			state = span{fmt.Sprintf("%d of %d not heard from", silent, len(c.Boots)), warn}
		case behind > 0:
			state = span{fmt.Sprintf("%d of %d catching up", behind, len(c.Boots)), plain}
		case len(c.Boots) > 0:
			state = span{"up to date", good}
		case !c.Token:
			state = span{"has no token", dim}
		}
		rows = append(rows, []span{{c.Name, plain}, {c.Kind, plain}, {count(int64(len(c.Boots))), plain}, {count(int64(len(c.Holds))), plain}, {s.ago(seen), plain}, state})
	}
	s.table([]string{"CONSUMER", "KIND", "PROCESSES", "HOLDS", "SEEN", "STATE"}, rows)
}
