package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
)

func migrateCommand() *cobra.Command {
	set := app.Defaults()
	var from app.StoreSource
	var check bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the store's schema up to date",
		Long: `Bring the store's schema up to date, or say that it is.

A server does the same when it starts; of several, one does it and the others
wait. Schemas only go forward, and an older server does not open a newer one: run
migrate when the first server of a new release is put in, after a backup.

With --check nothing is changed, and the exit code is 1 unless the schema is up
to date.`,
		Example: "  keybaton migrate --check\n  KEYBATON_STORE=postgres://keybaton@db.internal/keybaton keybaton migrate",
		Args:    cli.Nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if set.Store, err = readStore(from); err != nil {
				return explained(err)
			}
			m, err := app.Migrate(cmd.Context(), set, check)
			if err != nil {
				return explained(err)
			}
			out := cmd.OutOrStdout()
			switch {
			case m.From == m.To:
				_, err = fmt.Fprintf(out, "the schema is up to date: %d\n", m.To)
			case check:
				return &cli.Fault{Exit: cli.ExitFailed, What: fmt.Sprintf("the schema has number %d, this program brings %d", m.From, m.To), Next: "run keybaton migrate"}
			default:
				_, err = fmt.Fprintf(out, "the schema was brought from %d to %d\n", m.From, m.To)
			}
			return err
		},
	}
	storeFlags(cmd.Flags(), &set, &from)
	cmd.Flags().BoolVar(&check, "check", false, "only look: exit 1 unless the schema is up to date")
	return cmd
}
