package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
	"github.com/keybaton/keybaton/secret"
)

func recipeCommand() *cobra.Command {
	return cli.Group("recipe", "List, check and try recipes: the files that describe vendors' key APIs", recipeList(), recipeCheck(), recipeTry())
}

func recipeList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the providers of this program", Args: cli.Nothing, RunE: func(cmd *cobra.Command, _ []string) error {
		rs, err := app.Recipes()
		if err != nil {
			return explained(err)
		}
		if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(rs)
		}
		out := cmd.OutOrStdout()
		_, _ = fmt.Fprintf(out, "%-16s %-22s %-10s %-8s %s\n", "PROVIDER", "VENDOR", "ROTATION", "TESTED", "PARAMS")
		for _, r := range rs {
			how := "pasted"
			if r.Issue && r.Revoke {
				how = "automatic"
			}
			var params []string
			for _, p := range r.Params {
				params = append(params, p.Name)
			}
			_, _ = fmt.Fprintf(out, "%-16s %-22s %-10s %-8s %s\n", r.ID, r.Vendor, how, r.Tested, strings.Join(params, ", "))
		}
		return nil
	}}
}

func recipeCheck() *cobra.Command {
	return &cobra.Command{Use: "check FILE", Short: "Check a recipe; every mistake is named with line and field", Args: cli.One("recipe"), RunE: func(cmd *cobra.Command, args []string) error {
		r, err := app.LoadRecipe(args[0])
		if err != nil {
			return explained(err)
		}
		d, manager := app.DescribeRecipe(r)
		out := cmd.OutOrStdout()
		if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
			return json.NewEncoder(out).Encode(d)
		}
		_, _ = fmt.Fprintf(out, "%s is a good recipe: %s\n", args[0], d.Vendor)
		for _, a := range []struct {
			what string
			can  bool
		}{{"issue", d.Issue}, {"probe", d.Probe}, {"list", d.List}, {"disable", d.Disable}, {"revoke", d.Revoke}} {
			word := "yes"
			if !a.can {
				word = "no"
			}
			_, _ = fmt.Fprintf(out, "  %-8s %s\n", a.what, word)
		}
		_, _ = fmt.Fprintf(out, "  parts    %s\n", strings.Join(d.Parts, ", "))
		if len(manager) > 0 {
			_, _ = fmt.Fprintf(out, "  manager  %s (%s)\n", d.Manager, strings.Join(manager, ", "))
		}
		return nil
	}}
}

func recipeTry() *cobra.Command {
	var params []string
	cmd := &cobra.Command{
		Use:   "try FILE",
		Short: "Run a recipe against the live vendor: issue, probe, list, disable, revoke, prove",
		Long: `Run a recipe against the live vendor: issue, probe, list, disable, revoke, prove.

It issues one key, and revokes it whatever happens. The parts of the manager key
are asked for without echo; where standard input is not a terminal they are read
from it, one PART=VALUE a line.`,
		Example: "  keybaton recipe try rabbitmq --param base_url=http://127.0.0.1:15672",
		Args:    cli.One("recipe"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := app.LoadRecipe(args[0])
			if err != nil {
				return explained(err)
			}
			vals := map[string]string{}
			for _, p := range params {
				k, v, ok := strings.Cut(p, "=")
				if !ok {
					return cli.Fail(cli.ExitUsage, "--param has no value", "write it like --param base_url=https://api.example.com")
				}
				vals[k] = v
			}
			d, names := app.DescribeRecipe(r)
			for _, p := range d.Params {
				if p.Required && p.Default == "" && vals[p.Name] == "" {
					return cli.Fail(cli.ExitUsage, "the recipe "+d.ID+" needs the param "+p.Name, "say --param "+p.Name+"=VALUE: "+p.Help)
				}
			}
			manager, err := readParts(names)
			if err != nil {
				return err
			}
			return explained(app.TryRecipe(cmd.Context(), r, vals, manager, func(line string) { _, _ = fmt.Fprintln(cmd.OutOrStdout(), line) }))
		},
	}
	cmd.Flags().StringArrayVar(&params, "param", nil, "NAME=VALUE; may be repeated")
	return cmd
}

// readParts asks for the parts of a manager key, never from the command line.
func readParts(names []string) (secret.Parts, error) {
	if len(names) == 0 {
		return nil, nil
	}
	out := secret.Parts{}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		for _, n := range names {
			say("manager key, part %q (not shown):", n)
			b, err := term.ReadPassword(int(os.Stdin.Fd()))
			if err != nil {
				return nil, fmt.Errorf("reading the manager key: %w", err)
			}
			out[n] = secret.New(b)
			clear(b)
		}
		return out, nil
	}
	sc := bufio.NewScanner(os.Stdin)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		k, v, ok := strings.Cut(line, "=")
		switch {
		case line == "":
		case ok && slices.Contains(names, k):
			out[k] = secret.FromString(v)
		case len(names) == 1: // a key alone, which may hold a "=" too
			out[names[0]] = secret.FromString(line)
		}
	}
	for _, n := range names {
		if out[n].IsZero() {
			return nil, cli.Fail(cli.ExitUsage, "the manager key's part "+n+" is missing", "give PART=VALUE lines on standard input, or run it on a terminal to be asked")
		}
	}
	return out, sc.Err()
}
