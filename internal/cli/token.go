package cli

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) tokenCmd() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the tokens", Args: nothing,
		RunE: s.run(func(ctx context.Context, c *client.Client, _ []string) error {
			items, err := c.Tokens(ctx)
			return s.show(items, err, func() { s.tokens(items) })
		}),
	}
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "Make a token worthless at once", Args: oneName("token", "a token"),
		RunE: s.run(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.RevokeToken(ctx, args[0])
			return s.show(t, err, func() {
				s.say(span{"✓", good}, span{" " + t.Name + " is revoked", plain})
				if t.Role == "consumer" || t.Role == "gateway" {
					s.next("what it holds is still waited for; when it is gone for good: keybaton consumer forget " + t.Name)
				}
			})
		}),
	}
	return group("token", "Who may do what", s.tokenCreateCmd(), list, revoke)
}

func (s *session) tokens(items []api.Token) {
	var rows [][]span
	for _, t := range items {
		exp := span{s.ago(t.Expires), plain}
		if t.Expired {
			exp = span{"expired", warn}
		}
		rows = append(rows, []span{{t.Name, plain}, {t.Role, plain}, {t.Kind, plain}, {grants(t.Grants), plain}, exp, {t.By, plain}, {s.ago(t.Created), plain}})
	}
	s.table([]string{"TOKEN", "ROLE", "KIND", "FOR", "EXPIRES", "BY", "MADE"}, rows)
}

func (s *session) tokenCreateCmd() *cobra.Command {
	var o client.TokenOptions
	var services []string
	var refresh, expires string
	c := &cobra.Command{
		Use:   "create NAME --role ROLE",
		Short: "Make a token; it is printed once",
		Long: "The token is made here and printed to standard output; the server gets its hash only. Roles: viewer, operator and admin for\n" +
			"people, consumer for what calls services or reads keys, gateway for gateways. A consumer or gateway is granted services\n" +
			"(--service, '*' is every one) in environments (--env, several with commas, '*' is every one).",
		Args: oneName("name", "a token"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			o.Name = args[0]
			if o.Role == "" {
				return usage("which role?", "say --role viewer, operator, admin, consumer or gateway")
			}
			program := o.Role == "consumer" || o.Role == "gateway"
			if len(services) > 0 || program {
				if len(services) == 0 || s.env == "" {
					return usage("which services, in which environment?", "say --service SERVICE --env ENVIRONMENT; '*' is every one")
				}
				for _, n := range services {
					if n != "*" {
						err = errors.Join(err, named("a service", n))
					}
				}
				for e := range strings.SplitSeq(s.env, ",") {
					if e = strings.TrimSpace(e); e != "*" {
						err = errors.Join(err, named("an environment", e))
					}
					o.Grants = append(o.Grants, api.Grant{Environment: e, Services: services})
				}
				if err != nil {
					return err
				}
			}
			if o.Refresh, err = duration(refresh); err != nil {
				return err
			}
			if o.Expires, err = s.until(expires); err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			v, t, err := c.CreateToken(cmd.Context(), o)
			if err != nil {
				return err
			}
			if s.json {
				return s.encode(struct {
					Plain string `json:"token"`
					api.Token
				}{string(v.Reveal()), t})
			}
			s.remark("token " + t.Name + ", " + t.Role + ", for " + grants(t.Grants) + "; it is shown this once:")
			_, err = s.io.Out.Write(append(v.Reveal(), '\n'))
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&o.Role, "role", "", "viewer, operator, admin, consumer or gateway")
	f.StringVar(&o.Kind, "kind", "", "of a consumer: client (follows changes) or reader (default)")
	f.StringSliceVar(&services, "service", nil, "a service that it is for; '*' is every one")
	f.StringVar(&refresh, "refresh", "", "how often a reader reads again, such as 5m: rotations wait no longer for it")
	f.StringVar(&expires, "expires", "", "when it ends: 90d, 12h, or 2027-01-31")
	f.StringVar(&o.Shape, "shape", "", "for SDKs that insist on one: AC{hex:32}, sk_live_{base62:24}")
	return c
}

func grants(gs []api.Grant) string {
	if len(gs) == 0 {
		return "everything"
	}
	var out []string
	for _, g := range gs {
		out = append(out, strings.Join(g.Services, ",")+"/"+g.Environment)
	}
	return strings.Join(out, " ")
}

// duration parses 5m, 12h or 90d; "" is 0.
func duration(t string) (time.Duration, error) {
	if t == "" {
		return 0, nil
	}
	if days, ok := strings.CutSuffix(t, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 36500 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	if d, err := time.ParseDuration(t); err == nil && d > 0 {
		return d, nil
	}
	return 0, usage("that is not a length of time", "write it like 90s, 5m, 12h or 90d")
}

// until parses a length of time from now, or a day or time; "" is never.
func (s *session) until(t string) (time.Time, error) {
	if t == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, t); err == nil {
			return at.UTC(), nil
		}
	}
	d, err := duration(t)
	if err != nil {
		return time.Time{}, usage("that is neither a length of time nor a day", "write it like 90d, 12h or 2027-01-31")
	}
	return s.io.Now().UTC().Add(d).Truncate(time.Second), nil
}
