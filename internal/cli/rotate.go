package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) rotateCmd() *cobra.Command {
	var emergency, dry bool
	var leaked, why string
	var w watchFlags
	c := &cobra.Command{
		Use:   "rotate SERVICE --env ENVIRONMENT",
		Short: "Replace the key of a service",
		Long: "Every step waits for evidence; nothing is revoked while anyone may still need it. The rotation runs on the server:\n" +
			"--watch only looks on, and can be ended at any time.",
		Args: one("service"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := s.named(args[0])
			if err != nil {
				return err
			}
			r := api.Rotate{Why: why, Emergency: emergency}
			if r.Leaked, err = versionNumber(leaked); err != nil {
				return err
			}
			if r.Leaked != 0 && !emergency {
				return usage("--leaked needs --emergency", "add --emergency: soak and quiet are skipped, probes never")
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			if dry {
				p, err := c.Plan(cmd.Context(), id, r)
				if err != nil {
					return err
				}
				return s.rotatePlan(p)
			}
			rot, err := c.Rotate(cmd.Context(), id, r)
			return s.began(cmd.Context(), c, id, rot, err, w)
		},
	}
	f := c.Flags()
	f.BoolVar(&dry, "dry-run", false, "show what would be done, do nothing")
	f.BoolVar(&emergency, "emergency", false, "a key leaked: skip soak and quiet, never the probes")
	f.StringVar(&leaked, "leaked", "", "with --emergency: which version leaked, such as v3 (default: the primary)")
	f.StringVar(&why, "why", "", "the reason, for the audit")
	w.add(c)
	c.AddCommand(
		s.actCmd("pause", "Hold the open rotation where it is", (*client.Client).Pause),
		s.actCmd("resume", "Let a paused or stopped rotation go on", (*client.Client).Resume),
		s.actCmd("approve", "Open the gate that waits for a person", (*client.Client).Approve),
	)
	return c
}

func (s *session) rollbackCmd() *cobra.Command {
	why := ""
	c := s.actCmd("rollback", "Go back to the key before, if it still works", func(c *client.Client, ctx context.Context, id client.Credential) (api.Rotation, error) {
		return c.Rollback(ctx, id, why)
	})
	c.Flags().StringVar(&why, "why", "", "the reason, for the audit")
	return c
}

// actCmd is a verb that acts on the rotation of a credential.
func (s *session) actCmd(use, short string, do func(*client.Client, context.Context, client.Credential) (api.Rotation, error)) *cobra.Command {
	var w watchFlags
	c := &cobra.Command{
		Use: use + " SERVICE --env ENVIRONMENT", Short: short, Args: one("service"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := s.named(args[0])
			if err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			r, err := do(c, cmd.Context(), id)
			return s.began(cmd.Context(), c, id, r, err, w)
		},
	}
	w.add(c)
	return c
}

// began shows a rotation after an act on it, or follows it.
func (s *session) began(ctx context.Context, c *client.Client, id client.Credential, r api.Rotation, err error, w watchFlags) error {
	if err == nil && w.watch && r.ID != "" {
		return s.follow(ctx, c, id, r.ID, w.timeout)
	}
	return s.show(r, err, func() {
		if r.ID == "" { // a retirement outlives its rotation
			s.say(span{"✓", good}, span{" done; no rotation is open", plain})
			return
		}
		for _, l := range s.rotation(r) {
			_, _ = fmt.Fprintln(s.out, l)
		}
		if !r.Over {
			s.next("keybaton status " + id.Service + " --env " + id.Environment + " --watch")
		}
	})
}

// versionNumber parses "v3" or "3"; "" is 0.
func versionNumber(t string) (int64, error) {
	if t == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(t, "v"), 10, 64)
	if err != nil || n < 1 {
		return 0, usage("that is not a version", "write it like v3")
	}
	return n, nil
}

func (s *session) rotatePlan(p api.Plan) error {
	err := s.show(p, nil, func() {
		s.say(span{p.Service + "/" + p.Environment, strong}, span{"  provider " + p.Provider + "  (nothing was done)", dim})
		for _, st := range p.Steps {
			s.say(span{fmt.Sprintf("○ %-10s ", st.Step), strong}, span{st.Does, plain})
			for _, r := range st.Requests {
				s.text("    " + r)
			}
			s.say(span{"    then waits for: ", dim}, span{st.Gate, plain})
		}
		for _, w := range p.Warnings {
			s.say(span{"! ", warn}, span{w, plain})
		}
	})
	if err == nil && p.Refused != "" {
		err = Fail(ExitConflict, "it could not begin now: "+p.Refused, "")
	}
	return err
}
