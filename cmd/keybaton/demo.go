package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

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
			noColor, _ := cmd.Flags().GetBool("no-color")
			cfg := demo.Config{Start: startDemo, Out: os.Stdout, JSON: asJSON, Keep: keep, Color: colored(os.Stdout) && !noColor}
			if terminal(os.Stdout) && !asJSON && os.Getenv("TERM") != "dumb" {
				cfg.Size = size
			}
			_, err := demo.Run(cmd.Context(), cfg)
			if errors.Is(err, demo.ErrStopped) {
				return cli.Fail(exitStopped, err.Error(), "")
			}
			return explained(err)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave everything running until Ctrl-C, and print address and tokens")
	return cmd
}

// exitStopped is what shells say of a program that Ctrl-C ended.
const exitStopped = 130

// size returns the size of the terminal at standard output, in characters.
func size() (cols, rows int) {
	if w, h, err := term.GetSize(int(os.Stdout.Fd())); err == nil && w > 0 && h > 0 {
		return w, h
	}
	return 80, 24
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
