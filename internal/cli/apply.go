package cli

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
)

func (s *session) applyCmd() *cobra.Command {
	var file string
	var prune, dry, yes bool
	c := &cobra.Command{
		Use:   "apply [-f keybaton.yaml]",
		Short: "Change what is managed to what a file says",
		Long: "The plan is shown first; on a terminal you are asked before anything changes. What is not in the file is left alone,\n" +
			"unless --prune says to delete it. The change is made whole or not at all.\n" +
			"Off a terminal, what deletes or sends live keys to another host is refused without --yes.",
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := s.readAll(file)
			if err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			req := api.Apply{Name: filepath.Base(file), YAML: string(text), Prune: prune, DryRun: true}
			plan, err := c.Apply(cmd.Context(), req)
			if err != nil {
				return err
			}
			changes, deleted, moved := 0, 0, 0
			for _, ch := range plan.Changes {
				if ch.Action != api.ActionKeep {
					changes++
				}
				if ch.Action == api.ActionDelete {
					deleted++
				}
				moved += len(ch.Moves)
			}
			if !s.json {
				s.plan(plan.Changes)
			}
			if dry || changes == 0 {
				if s.json {
					return s.encode(plan)
				}
				if changes == 0 {
					s.text("nothing changes: the server has what the file says")
				}
				return nil
			}
			var grave []string
			if deleted > 0 {
				grave = append(grave, "delete "+things(deleted, "thing"))
			}
			if moved > 0 {
				grave = append(grave, "send the live keys of "+things(moved, "credential")+" to another host")
			}
			does := strings.Join(grave, " and ")
			if len(grave) > 0 && !yes && (s.json || !s.interactive()) {
				return usage("this would "+does+", and nobody is asked here; nothing was changed", "look at the plan (--dry-run), and say --yes to apply it")
			}
			question := "apply " + things(changes, "change") + "?"
			if len(grave) > 0 {
				question = "apply " + things(changes, "change") + ", and " + does + "?"
			}
			if err := s.confirm(question, yes || s.json); err != nil {
				return err
			}
			req.DryRun, req.Expect = false, plan.Digest
			done, err := c.Apply(cmd.Context(), req)
			if err != nil {
				return err
			}
			if s.json {
				return s.encode(done)
			}
			s.say(span{"✓", good}, span{" applied " + things(changes, "change"), plain})
			for _, ch := range plan.Changes {
				if ch.Action == api.ActionAdd && ch.Kind == "credential" {
					s.next("give the new credentials their keys: keybaton set SERVICE --env E, or keybaton import")
					break
				}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "file", "f", "keybaton.yaml", "the file; - is standard input")
	f.BoolVar(&prune, "prune", false, "delete what the file does not name")
	f.BoolVar(&dry, "dry-run", false, "show the plan, change nothing")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask; off a terminal, needed to delete, and to send live keys to another host")
	return c
}

// plan shows the changes of an apply.
func (s *session) plan(changes []api.Change) {
	marks := map[string]span{
		api.ActionAdd: {"+", good}, api.ActionChange: {"~", warn}, api.ActionDelete: {"-", bad}, api.ActionKeep: {" ", plain},
	}
	for _, ch := range changes {
		t := plain
		if ch.Action == api.ActionKeep {
			t = dim
		}
		line := []span{marks[ch.Action], {" " + ch.Kind + " " + ch.Name, t}}
		if ch.Note != "" {
			line = append(line, span{"  " + ch.Note, dim})
		}
		s.say(line...)
		for _, m := range ch.Moves {
			s.say(span{"    " + m, bad})
		}
		for _, f := range ch.Fields {
			from, to := f.From, f.To
			if from == "" {
				from = "unsaid"
			}
			if to == "" {
				to = "unsaid"
			}
			s.say(span{"    " + f.Name + ": ", dim}, span{from, plain}, span{" → ", dim}, span{to, plain})
		}
	}
}
