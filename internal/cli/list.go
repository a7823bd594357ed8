package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) listCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the credentials and how they do",
		Args:  nothing,
		RunE: s.run(func(ctx context.Context, c *client.Client, _ []string) error {
			items, err := c.Credentials(ctx, client.Filter{Environment: s.env})
			return s.show(items, err, func() { s.credentials(items) })
		}),
	}
}

func (s *session) credentials(items []api.Credential) {
	if len(items) == 0 {
		s.text("there are no credentials yet")
		s.next("declare them in keybaton.yaml and run keybaton apply")
		return
	}
	var rows [][]span
	for _, c := range items {
		rows = append(rows, []span{{c.Service, plain}, {c.Environment, plain}, {c.Health, healthTone(c.Health)}, {version(c.Slots.Primary), plain},
			{version(c.Slots.Fallback), plain}, {s.ago(c.Rotated), plain}, {s.ago(c.Due), plain}, doing(c)})
	}
	s.table([]string{"SERVICE", "ENV", "HEALTH", "PRIMARY", "FALLBACK", "ROTATED", "DUE", "DOING"}, rows)
}

// doing says in a few words what happens with a credential.
func doing(c api.Credential) span {
	if r := c.Rotation; r != nil {
		switch {
		case r.State == "stopped":
			return span{"rotation stopped", bad}
		case r.Paused:
			return span{"rotation paused", warn}
		case r.Gate.Person && !r.Gate.Open:
			return span{r.Step + ": waits for a person", warn}
		}
		return span{"rotating: " + r.Step, plain}
	}
	for _, r := range c.Retirements {
		if r.Gate.Person && !r.Gate.Open {
			return span{version(r.Version) + " " + r.State + ": waits for a person", warn}
		}
	}
	if len(c.Retirements) > 0 {
		return span{version(c.Retirements[0].Version) + " is " + c.Retirements[0].State, dim}
	}
	return span{}
}
