package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

func (s *session) importCmd() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use:   "import [FILE] --env ENVIRONMENT",
		Short: "Recognise keys in a .env file and take those that are declared",
		Long: "FILE holds NAME=value lines; - is standard input, and without FILE on a terminal you are asked for names and values.\n" +
			"Every value is sent to the server, which recognises keys by their shape and probes them. The file is left as it is.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("one file at a time", "usage: "+cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if s.env == "" {
				return usage("into which environment?", "say --env ENVIRONMENT, or set KEYBATON_ENV")
			}
			if err := named("an environment", s.env); err != nil {
				return err
			}
			vs, err := s.variables(args)
			if err != nil {
				return err
			}
			if len(vs) == 0 {
				return usage("there is no variable in the input", "each line is NAME=value")
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			found, err := c.Import(cmd.Context(), s.env, vs, dry)
			if err != nil {
				return err
			}
			return s.imported(found, len(vs), dry)
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "recognise and probe, keep nothing")
	return c
}

func (s *session) variables(args []string) ([]client.Variable, error) {
	if len(args) == 0 && s.interactive() {
		return s.askVariables()
	}
	path := "-"
	if len(args) == 1 {
		path = args[0]
	}
	b, err := s.readAll(path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	return parseEnv(b)
}

// askVariables asks for names and values until a name is empty.
func (s *session) askVariables() ([]client.Variable, error) {
	in := bufio.NewReader(s.io.In)
	var vs []client.Variable
	for {
		_, _ = fmt.Fprint(s.io.Err, "name of the variable (empty to end): ")
		line, err := in.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("reading the name: %w", err)
		}
		name := strings.TrimSpace(line)
		if name == "" {
			return vs, nil
		}
		if !variable(name) {
			return nil, usage("that is not the name of a variable", "write it like SENDGRID_API_KEY")
		}
		v, err := s.askSecret("value (not shown): ")
		if err != nil {
			return nil, err
		}
		vs = append(vs, client.Variable{Name: name, Value: v})
	}
}

func (s *session) imported(found []api.Found, asked int, dry bool) error {
	if s.json {
		return s.encode(found)
	}
	if len(found) == 0 {
		s.text(fmt.Sprintf("no key was recognised among %s", things(asked, "variable")))
		return nil
	}
	var rows [][]span
	taken := 0
	for _, f := range found {
		result := span{"not taken", warn}
		switch {
		case f.Installed:
			result, taken = span{"taken", good}, taken+1
		case dry && len(f.Missing) == 0:
			result = span{"would be taken", good}
		case dry:
			result = span{"would not be taken", warn}
		}
		t := plain
		if f.Outcome == "invalid" {
			t = bad
		}
		rows = append(rows, []span{{f.Name, plain}, {f.Service + "/" + f.Environment, plain}, {f.Vendor, plain}, {f.Outcome, t}, {f.Rotation, plain}, result})
	}
	s.table([]string{"VARIABLE", "CREDENTIAL", "VENDOR", "PROBE", "ROTATION", "RESULT"}, rows)
	for _, f := range found {
		for _, m := range f.Missing {
			s.text(f.Name + ": " + m)
		}
	}
	if !dry && taken == 0 {
		return Fail(ExitFailed, "no key was taken", "see what is missing above")
	}
	if taken > 0 {
		s.next("the file still holds the keys: delete it when everything uses Keybaton")
	}
	return nil
}
