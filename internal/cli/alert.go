package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) alertCmd() *cobra.Command {
	var all bool
	list := &cobra.Command{
		Use: "list", Short: "List the alerts that fire", Args: nothing,
		RunE: s.run(func(ctx context.Context, c *client.Client, _ []string) error {
			state := "firing"
			if all {
				state = ""
			}
			items, err := c.Alerts(ctx, client.Filter{Environment: s.env}, state)
			return s.show(items, err, func() { s.alerts(items) })
		}),
	}
	list.Flags().BoolVar(&all, "all", false, "those that resolved as well")
	return group("alert", "What people should know", list)
}

func (s *session) alerts(items []api.Alert) {
	if len(items) == 0 {
		s.text("no alert is firing")
	}
	for _, a := range items {
		t := warn
		switch {
		case a.State == "resolved":
			t = dim
		case a.Severity == "critical":
			t = bad
		}
		s.say(span{a.Severity, t}, span{"  " + a.Service + "/" + a.Environment, strong}, span{" " + version(a.Version), plain},
			span{"  " + a.Kind + ", " + a.State + ", since " + s.ago(a.Started), dim})
		s.text("  " + a.Error + ": " + a.Cause)
		if a.Fix != "" {
			s.text("  fix: " + a.Fix)
		}
	}
}
