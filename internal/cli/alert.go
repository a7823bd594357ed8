package cli

import (
	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/client"
)

func (s *session) alertCmd() *cobra.Command {
	var all bool
	list := &cobra.Command{
		Use: "list", Short: "List the alerts that fire", Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			state := "firing"
			if all {
				state = ""
			}
			items, err := c.Alerts(cmd.Context(), client.Filter{Environment: s.env}, state)
			if err != nil {
				return err
			}
			if s.json {
				return s.encode(items)
			}
			if len(items) == 0 {
				s.text("no alert is firing")
				return nil
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
			return nil
		},
	}
	list.Flags().BoolVar(&all, "all", false, "those that resolved as well")
	return group("alert", "What people should know", list)
}
