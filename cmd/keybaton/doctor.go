package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
)

func doctorCommand(std cli.IO) *cobra.Command {
	o := app.DoctorOptions{Settings: app.Defaults()}
	var store func() error
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this installation, and change nothing",
		Long: `Check this installation, and change nothing.

Each line is ok, a warning or an error, with what to do. Run it on the machine of
the server, as the user that runs it, with the same flags; the server may be
running or not. It reads the whole store. Its exit code is 0 without an error.`,
		Example: "  keybaton doctor\n  keybaton doctor --upstreams --json",
		Args:    cli.Nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := store(); err != nil {
				return err
			}
			addr := o.API
			if o.CertFile != "" {
				addr = "https://" + addr
			} else {
				addr = "http://" + addr
			}
			token := filepath.Join(o.Config, "admin.token")
			if _, err := os.Stat(token); err != nil {
				token = ""
			}
			o.Client, o.ClientErr = cli.ClientOf(cmd, std, addr, token)
			out := cmd.OutOrStdout()
			asJSON := asJSON(cmd)
			found, err := app.Examine(cmd.Context(), o, func(f app.Finding) {
				if asJSON {
					return
				}
				sign := map[app.Level]string{app.LevelOK: "✓", app.LevelWarning: "!", app.LevelError: "✗"}[f.Level]
				_, _ = fmt.Fprintf(out, "%s %-16s %s\n", sign, f.Check, f.Text)
				if f.Next != "" {
					_, _ = fmt.Fprintf(out, "  %-16s next: %s\n", "", f.Next)
				}
			})
			if err != nil {
				return explained(err)
			}
			errs, warnings := 0, 0
			for _, f := range found {
				switch f.Level {
				case app.LevelError:
					errs++
				case app.LevelWarning:
					warnings++
				case app.LevelOK:
				}
			}
			if asJSON {
				if err := printJSON(cmd, map[string]any{"ok": errs == 0, "errors": errs, "warnings": warnings, "findings": found}); err != nil {
					return err
				}
			}
			if errs > 0 {
				return cli.Fail(cli.ExitFailed, fmt.Sprintf("%d of %d checks found an error", errs, len(found)), "do what stands under each, then run keybaton doctor again")
			}
			return nil
		},
	}
	store = placeFlags(cmd, &o.Settings)
	f := cmd.Flags()
	f.StringVar(&o.API, "api", env("KEYBATON_API", o.API), "address of the API ($KEYBATON_API)")
	f.StringVar(&o.Gateway, "gateway", env("KEYBATON_GATEWAY", o.Gateway), "address of the gateway, or off ($KEYBATON_GATEWAY)")
	f.StringVar(&o.CertFile, "tls-cert", env("KEYBATON_TLS_CERT", ""), "certificate for both addresses ($KEYBATON_TLS_CERT)")
	f.StringVar(&o.KeyFile, "tls-key", env("KEYBATON_TLS_KEY", ""), "its private key ($KEYBATON_TLS_KEY)")
	f.BoolVar(&o.Upstreams, "upstreams", false, "connect to every declared upstream too, without sending a key")
	return cmd
}
