// Command keybaton keeps the API keys of services, gives them to callers at run
// time, and replaces them without a failed request. This file joins what
// starts something with the verbs that talk to the API.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	debug.SetGCPercent(400) // requests allocate little that lives; see the gateway's benchmark
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	io := cli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Version: app.Version}
	return cli.Execute(ctx, command(io), io, os.Args[1:])
}

// command returns the program with all its verbs.
func command(io cli.IO) *cobra.Command {
	root := cli.Command(io)
	root.AddCommand(serveCommand(), migrateCommand(), demoCommand(), recipeCommand())
	root.AddCommand(backupCommand(io), restoreCommand(io), moveCommand(), doctorCommand(io))
	return root
}

// explained gives an error of the application its exit code and next step.
func explained(err error) error {
	if err == nil {
		return nil
	}
	what, next := app.Explain(err)
	exit := cli.ExitFailed
	switch input, missing := app.Is(err); {
	case input:
		exit = cli.ExitUsage
	case missing:
		exit = cli.ExitNotFound
	}
	return &cli.Fault{Exit: exit, What: what, Next: next, Err: err}
}

// terminal reports whether f is one.
func terminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// colored reports whether f may get colours.
func colored(f *os.File) bool {
	return terminal(f) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// say prints a line for people.
func say(format string, args ...any) { _, _ = fmt.Fprintf(os.Stderr, format+"\n", args...) }
