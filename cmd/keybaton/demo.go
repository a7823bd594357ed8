package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
	"github.com/keybaton/keybaton/internal/demo"
)

func demoCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch a key being replaced under load, in under a minute",
		Long: `Watch a key being replaced under load, in under a minute.

Starts a server on an embedded store, a simulated vendor that issues, lists and
revokes keys, and eight callers through the gateway. A rotation goes through its
five steps; then the primary is revoked at the vendor behind Keybaton's back.
Nothing needs to be set up, and nothing is left behind.`,
		Args: cli.Nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, _ := cmd.Flags().GetBool("json")
			_, err := demo.Run(cmd.Context(), demo.Config{Start: startDemo, Out: os.Stdout, JSON: asJSON, Keep: keep,
				Terminal: terminal(os.Stdout) && !asJSON, Color: colored(os.Stdout)})
			return explained(err)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave everything running until Ctrl-C, and print address and token")
	return cmd
}

// startDemo starts a server at the demo's pace: gates are looked at often, as
// the story has seconds where others have hours.
func startDemo(ctx context.Context, dir string) (demo.Server, error) {
	a, err := app.Start(ctx, app.Settings{Data: filepath.Join(dir, "data"), Config: filepath.Join(dir, "config"), API: "127.0.0.1:0", Gateway: "127.0.0.1:0",
		Poll: 50 * time.Millisecond, Report: 100 * time.Millisecond, Probe: 200 * time.Millisecond, Detect: 200 * time.Millisecond})
	if err != nil {
		return demo.Server{}, err
	}
	tok, err := a.Token()
	if err != nil {
		_ = a.Close()
		return demo.Server{}, err
	}
	file, _ := a.TokenFile()
	return demo.Server{API: a.API(), Gateway: a.Gateway(), Token: tok, File: file, Close: a.Close}, nil
}
