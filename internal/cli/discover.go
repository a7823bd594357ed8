package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) discoverCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "discover SERVICE --env ENVIRONMENT",
		Short: "Compare the vendor's list of keys with what is known here",
		Long: "Lists the keys at the vendor and says of each: known; stray, made by Keybaton and unknown here; foreign, made by somebody else and\n" +
			"never touched; missing, taken for alive here and not listed there; unidentified, a version whose id at the vendor is not known.\n" +
			"Nothing is changed.",
		Args: one("service"),
		RunE: s.on(func(ctx context.Context, c *client.Client, id client.Credential) error {
			items, err := c.Discover(ctx, id)
			return s.show(items, err, func() { s.discovered(id, items) })
		}),
	}
}

func (s *session) discovered(id client.Credential, items []api.Discovered) {
	if len(items) == 0 {
		s.text("the vendor lists no key, and none is known here")
		return
	}
	tones := map[string]tone{"known": good, "stray": warn, "foreign": dim, "missing": bad, "unidentified": warn}
	var rows [][]span
	n := map[string]int{}
	for _, d := range items {
		n[d.Relation]++
		state := d.State
		if d.Disabled {
			state = "disabled"
		}
		rows = append(rows, []span{{d.Relation, tones[d.Relation]}, {version(d.Version), plain}, {state, plain}, {d.VendorID, plain}, {d.Label, plain},
			{s.ago(d.Created), plain}, {s.ago(d.LastUsed), plain}})
	}
	s.table([]string{"RELATION", "VERSION", "STATE", "VENDOR ID", "LABEL", "CREATED", "LAST USED"}, rows)
	where := id.Service + " --env " + id.Environment
	switch {
	case n["unidentified"] > 0:
		s.next("say which one it is: keybaton adopt " + where + " --version V --vendor-id ID")
	case n["missing"] > 0:
		s.next("what is missing was revoked at the vendor: keybaton rotate " + where)
	case n["stray"]+n["foreign"] > 0:
		s.next("to end one that nobody needs: keybaton adopt " + where + " --vendor-id ID --retire")
	}
}

func (s *session) adoptCmd() *cobra.Command {
	var b api.Adopt
	var ver string
	c := &cobra.Command{
		Use:   "adopt SERVICE --env ENVIRONMENT [--version V] --vendor-id ID",
		Short: "Say which of the vendor's keys a version is, or take one in to end it",
		Long: "A key that was pasted or imported has no id at the vendor, so Keybaton can use it but not end it. Adopting names it. With --retire a key\n" +
			"that is no version here is taken in to be disabled, watched, revoked and proven dead.",
		Example: "  keybaton discover sendgrid --env prod\n  keybaton adopt sendgrid --env prod --vendor-id 9xT2\n  keybaton adopt sendgrid --env prod --vendor-id old7 --retire",
		Args:    one("service"),
		RunE: s.on(func(ctx context.Context, c *client.Client, id client.Credential) error {
			var err error
			if b.Version, err = versionNumber(ver); err != nil {
				return err
			}
			got, err := c.Adopt(ctx, id, b)
			return s.show(got, err, func() {
				if b.Retire {
					s.say(span{"✓", good}, span{" " + b.VendorID + " is on its way out", plain})
					s.next("keybaton status " + id.Service + " --env " + id.Environment + " --watch")
					return
				}
				s.say(span{"✓", good}, span{" adopted", plain})
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&b.VendorID, "vendor-id", "", "the key as the vendor lists it (see keybaton discover)")
	f.StringVar(&ver, "version", "", "the version that it is, such as v3 (default: the only one whose id is not known)")
	f.BoolVar(&b.Retire, "retire", false, "it is no version here, and nobody needs it: end it")
	f.StringVar(&b.Why, "why", "", "the reason, for the audit")
	return c
}

func (s *session) revokeCmd() *cobra.Command {
	var ver string
	c := &cobra.Command{
		Use:   "revoke SERVICE --env ENVIRONMENT --version V",
		Short: "End a version that is in no slot, without waiting for copies that nobody sees",
		Long: "Says for one version on its way out that nobody needs it elsewhere. Who is known to hold it is still waited for, and a version in a slot\n" +
			"is refused: replace it with keybaton rotate.",
		Args: one("service"),
		RunE: s.on(func(ctx context.Context, c *client.Client, id client.Credential) error {
			n, err := versionNumber(ver)
			if err != nil {
				return err
			}
			if n == 0 {
				return usage("which version?", "name it: --version v3; see them: keybaton status "+id.Service+" --env "+id.Environment)
			}
			got, err := c.Revoke(ctx, id, n)
			return s.show(got, err, func() {
				s.say(span{"✓", good}, span{fmt.Sprintf(" %s is on its way out", version(n)), plain})
				s.next("keybaton status " + id.Service + " --env " + id.Environment + " --watch")
			})
		}),
	}
	c.Flags().StringVar(&ver, "version", "", "the version, such as v3")
	return c
}
