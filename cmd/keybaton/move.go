package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
	"github.com/keybaton/keybaton/secret"
)

func moveCommand() *cobra.Command {
	var from, to app.Place
	var reopen string
	cmd := &cobra.Command{
		Use:   "move --from URL --to URL",
		Short: "Move the store to another place, and compare both",
		Long: `Move the store to another place, and compare both.

No server may be running on either, and the new place must be empty. Every row
is copied, read back, and compared by counts and hashes. The old store is left
as it was, but no server starts on it any more; to go back to it, without what
was done in the new one since: keybaton move --reopen URL. The master key stays
where it is: the new place needs the same one.

A store in a file is named sqlite:PATH, one in PostgreSQL by its URL. A URL with a
password comes by a file (--from-file, --to-file) or by KEYBATON_MOVE_FROM and
KEYBATON_MOVE_TO, as the command line is read by everybody on the machine.`,
		Example: "  keybaton move --from sqlite:/var/lib/keybaton/keybaton.db --to postgres://keybaton@db.internal/keybaton\n  keybaton move --reopen sqlite:/var/lib/keybaton/keybaton.db",
		Args:    cli.Nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if reopen != "" {
				if from.Flag+from.File+to.Flag+to.File != "" {
					return cli.Fail(cli.ExitUsage, "--reopen goes alone", "leave out --from and --to")
				}
				place, rev, err := app.Reopen(cmd.Context(), reopened(reopen))
				if err != nil {
					return explainedState(err)
				}
				if asJSON(cmd) {
					return printJSON(cmd, map[string]string{"place": place, "revision": rev})
				}
				_, _ = fmt.Fprintf(out, "✓ %s is open again; it begins a new epoch at revision %s\n", place, rev)
				say("next: do not start a server on the place that it was moved to")
				return nil
			}
			// What the environment says is no default of a flag: it would be printed by --help.
			from.Env, to.Env = secret.FromString(os.Getenv("KEYBATON_MOVE_FROM")), secret.FromString(os.Getenv("KEYBATON_MOVE_TO"))
			if from.IsZero() || to.IsZero() {
				return cli.Fail(cli.ExitUsage, "from where, and to where?", "say --from URL and --to URL, such as sqlite:/var/lib/keybaton/keybaton.db")
			}
			m, err := app.Move(cmd.Context(), from, to)
			if err != nil {
				return explainedState(err)
			}
			if asJSON(cmd) {
				return printJSON(cmd, m)
			}
			_, _ = fmt.Fprintf(out, "✓ %s: %d rows in %d tables, the same on both sides (sha256 %s)\n", m.To, m.Rows, m.Tables, m.SHA256)
			_, _ = fmt.Fprintf(out, "  %s is as it was, and closed: no server starts on it; to go back: %s\n", m.From, m.Back)
			say("next: start the server there; consumers that do not come back are waited for until you say so: keybaton consumer list, keybaton consumer forget NAME")
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&from.Flag, "from", "", "where the store is ($KEYBATON_MOVE_FROM)")
	f.StringVar(&from.File, "from-file", "", "file with that URL")
	f.StringVar(&to.Flag, "to", "", "where it is moved to ($KEYBATON_MOVE_TO)")
	f.StringVar(&to.File, "to-file", "", "file with that URL")
	f.StringVar(&reopen, "reopen", "", "open a store again that was moved elsewhere: its URL, or a file with it")
	return cmd
}

// reopened returns the place that an argument names: a URL, or a file with one.
func reopened(arg string) app.Place {
	if !strings.Contains(arg, ":") {
		return app.Place{File: arg}
	}
	return app.Place{Flag: arg}
}
