package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) statusCmd() *cobra.Command {
	var w watchFlags
	c := &cobra.Command{
		Use:   "status [SERVICE]",
		Short: "Show the server, or one service in full",
		Long:  "With --watch, the open rotation of SERVICE in --env is followed to its end.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !w.watch {
				return nil
			}
			return one("service")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				st, err := c.Status(cmd.Context())
				return s.show(st, err, func() { s.server(c.Address(), st) })
			}
			service, env := args[0], s.env
			if a, b, ok := strings.Cut(service, "/"); ok {
				service, env = a, b
			}
			if err := named("a service", service); err != nil {
				return err
			}
			if w.watch {
				id, err := s.named(args[0])
				if err != nil {
					return err
				}
				cred, err := c.Credential(cmd.Context(), id)
				if err != nil {
					return err
				}
				if cred.Rotation == nil {
					return Fail(ExitNotFound, "no rotation of "+id.Service+"/"+id.Environment+" is open", "begin one: keybaton rotate "+id.Service+" --env "+id.Environment)
				}
				return s.follow(cmd.Context(), c, id, cred.Rotation.ID, w.timeout)
			}
			items, err := c.Credentials(cmd.Context(), client.Filter{Service: service, Environment: env})
			if err != nil {
				return err
			}
			if len(items) == 0 {
				return Fail(ExitNotFound, "there is no credential of "+clean(args[0]), "keybaton list shows what there is")
			}
			for i := range items {
				if items[i], err = c.Credential(cmd.Context(), client.Credential{Service: items[i].Service, Environment: items[i].Environment}); err != nil {
					return err
				}
			}
			return s.show(items, nil, func() {
				for i, x := range items {
					if i > 0 {
						s.text("")
					}
					s.credential(x)
				}
			})
		},
	}
	w.add(c)
	return c
}

func (s *session) server(addr string, st api.Status) {
	n := st.Counts
	row := func(name, text string, t tone) { s.say(span{fmt.Sprintf("%-13s", name), dim}, span{text, t}) }
	row("server", addr+"  "+st.Version, plain)
	row("you", st.You.Name+", "+st.You.Role, plain)
	row("revision", fmt.Sprintf("%d.%d", st.Revision.Epoch, st.Revision.Number), plain)
	health := fmt.Sprintf("%d: %d ok, %d failing, %d unverified, %d empty", n.Credentials, n.OK, n.Failing, n.Unverified, n.Empty)
	t := plain
	if n.Failing > 0 {
		t = bad
	}
	row("credentials", health, t)
	row("services", count(int64(n.Services)), plain)
	row("rotations", fmt.Sprintf("%d open, %d retiring", n.Rotations, n.Retirements), plain)
	t = plain
	if n.Waiting > 0 {
		t = warn
	}
	row("waiting", fmt.Sprintf("%d for a person", n.Waiting), t)
	row("consumers", count(int64(n.Consumers)), plain)
	t = plain
	if n.Alerts > 0 {
		t = bad
	}
	row("alerts", fmt.Sprintf("%d firing", n.Alerts), t)
}

func (s *session) credential(c api.Credential) {
	s.say(span{c.Service + "/" + c.Environment, strong}, span{"  " + c.Health, healthTone(c.Health)}, span{"  " + c.HealthWhy, dim})
	row := func(name, text string) {
		if text != "" {
			s.say(span{fmt.Sprintf("  %-10s", name), dim}, span{text, plain})
		}
	}
	row("provider", c.Provider)
	row("upstream", c.Upstream)
	policy := c.Policy.Name
	if policy == "" {
		policy = "default"
	}
	if !c.Due.IsZero() {
		policy += ", next rotation " + s.ago(c.Due)
	}
	row("policy", policy)
	row("rotated", s.ago(c.Rotated))
	holders := things(c.Holders.Holding, "holder")
	if c.Holders.Silent > 0 {
		holders += fmt.Sprintf(", %d not heard from", c.Holders.Silent)
	}
	row("holders", holders)
	if c.Answers.Requests > 0 {
		row("callers", callers(c.Answers))
	}
	if len(c.Versions) > 0 {
		var rows [][]span
		for _, v := range c.Versions {
			rows = append(rows, []span{{"  " + version(v.Number), plain}, {v.State, plain}, {v.Origin, plain}, {s.ago(v.Created), plain}, {s.ago(v.Expires), plain},
				{count(v.Uses.Requests), plain}, {count(v.Uses.Auth), plain}, {v.Fingerprint, dim}})
		}
		s.table([]string{"  VERSION", "STATE", "ORIGIN", "MADE", "EXPIRES", "REQUESTS", "REFUSED", "FINGERPRINT"}, rows)
	}
	if c.Rotation != nil {
		for _, l := range s.rotation(*c.Rotation) {
			_, _ = fmt.Fprintln(s.out, l)
		}
	}
	for _, r := range c.Retirements {
		s.say(span{"  " + version(r.Version) + " is " + r.State, plain}, span{"  " + r.Gate.Reason, dim})
		for _, m := range r.Gate.Missing {
			s.say(span{"    " + m, dim})
		}
	}
}
