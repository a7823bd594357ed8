package cli

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

func (s *session) setCmd() *cobra.Command {
	var parts []string
	var why string
	var w watchFlags
	c := &cobra.Command{
		Use:   "set SERVICE --env ENVIRONMENT",
		Short: "Give Keybaton a key that the vendor issued",
		Long: "The key is asked for without being shown, or read from standard input: one line for each part, in the order of --part.\n" +
			"It is never taken from the command line, where every process can read it and the shell keeps it.\n" +
			"A key that is in use is not overwritten: a rotation brings the new one in.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("a key on the command line is refused: every process can read it, and the shell keeps it in its history",
					"run keybaton set SERVICE --env E and paste the key when asked, or pipe it in; and replace the one that was just typed")
			}
			return one("service")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := s.named(args[0])
			if err != nil {
				return err
			}
			names, err := partNames(parts)
			if err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			key, err := s.readKey(cmd.Context(), c, id, names)
			if err != nil {
				return err
			}
			r, err := c.Set(cmd.Context(), id, key, why)
			if err != nil {
				return err
			}
			if w.watch && r.Rotation != "" {
				return s.follow(cmd.Context(), c, id, r.Rotation, w.timeout)
			}
			return s.show(r, nil, func() {
				name, probe := id.Service+"/"+id.Environment, "its probe answered "+r.Outcome
				if r.Outcome != "ok" {
					probe = "it could not be probed: " + r.Outcome
				}
				if r.Installed {
					s.say(span{"✓", good}, span{" " + name + " has its first key, " + version(r.Version) + "; " + probe, plain})
					return
				}
				s.say(span{"✓", good}, span{" " + version(r.Version) + " is coming in by a rotation; " + probe, plain})
				s.next("keybaton status " + id.Service + " --env " + id.Environment + " --watch")
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&parts, "part", nil, "name of a part, for keys of several: --part user --part password")
	f.StringVar(&why, "why", "", "the reason, for the audit")
	w.add(c)
	return c
}

// partNames returns the names of --part; NAME=- is understood, NAME=value is
// refused.
func partNames(parts []string) ([]string, error) {
	var names []string
	for _, p := range parts {
		name, value, has := strings.Cut(p, "=")
		if has && value != "-" {
			return nil, usage("a key on the command line is refused: every process can read it, and the shell keeps it in its history",
				"write --part "+clip(clean(name), 40)+" and paste the value when asked, or pipe it in")
		}
		if name == "" || slices.Contains(names, name) {
			return nil, usage("each --part names another part", "")
		}
		names = append(names, name)
	}
	return names, nil
}

// readKey asks for the parts of a key, or reads them from the input.
func (s *session) readKey(ctx context.Context, c *client.Client, id client.Credential, names []string) (secret.Parts, error) {
	if len(names) == 0 {
		cred, err := c.Credential(ctx, id)
		if err != nil {
			return nil, err
		}
		names = cred.Parts
	}
	key := secret.Parts{}
	if s.interactive() {
		for _, n := range names {
			v, err := s.askSecret(n + " of " + id.Service + "/" + id.Environment + " (not shown): ")
			if err != nil {
				return nil, err
			}
			if v.IsZero() {
				return nil, usage("nothing was pasted", "")
			}
			key[n] = v
		}
		return key, nil
	}
	b, err := s.readAll("-")
	if err != nil {
		return nil, err
	}
	defer clear(b)
	if len(names) == 1 {
		v := bytes.TrimSpace(b)
		if len(v) == 0 {
			return nil, usage("there is no key on standard input", "pipe it in, or run it on a terminal to be asked")
		}
		key[names[0]] = secret.New(v)
		return key, nil
	}
	lines := bytes.Split(bytes.TrimRight(b, "\r\n"), []byte("\n"))
	if len(lines) != len(names) {
		return nil, usage("the key has the parts "+strings.Join(names, ", ")+", and standard input has another number of lines",
			"write one line for each part, in this order")
	}
	for i, n := range names {
		key[n] = secret.New(bytes.TrimSpace(lines[i]))
	}
	return key, nil
}
