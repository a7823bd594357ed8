// Package cli is the verbs that only talk to a server's API, and the rules of
// output that every verb of the program follows.
//
// A verb is VERB SERVICE --env E. Human output is calm tables; --json prints
// what the API answered. Errors go to standard error as "keybaton: what" and
// "next: step". Exit codes are for scripts: see the Exit constants. Keys are
// never taken from the command line, and printed by the verb get alone, to
// standard output alone.
//
// The caller adds the verbs that start something, and exits with what
// [Execute] returns.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

// The exit codes of every verb.
const (
	ExitOK          = 0
	ExitFailed      = 1 // it was tried and did not work, or the server failed
	ExitUsage       = 2 // the command or its input is wrong; nothing was done
	ExitNotFound    = 3
	ExitDenied      = 4 // no token, or one that may not
	ExitConflict    = 5 // refused in the present state
	ExitWaiting     = 6 // it waits for a person, or for a gate for longer than was asked
	ExitUnreachable = 7 // no server answers
)

// exitHelp is shown by keybaton help.
const exitHelp = `Exit codes: 0 ok, 1 failed, 2 wrong usage or input, 3 not found, 4 denied or no token,
5 refused in the present state, 6 waiting for a person or a gate, 7 no server answers.`

// IO is where a command reads and writes. In, Out, Err and Getenv are
// required.
type IO struct {
	In         io.Reader
	Out, Err   io.Writer
	Getenv     func(string) string
	Version    string                                          // of the program
	Now        func() time.Time                                // nil means time.Now
	HTTP       *http.Client                                    // nil means the client's own
	Width      int                                             // above 0: Out is a terminal of this many columns; 0: Out is asked
	ReadSecret func(prompt string) (v secret.Value, err error) // nil means the terminal, without echo
}

// Fault is an error with an exit code and the next step. Verbs of other rooms
// may return it too.
type Fault struct {
	Exit int
	What string // without a final period
	Next string // may be ""
	Err  error  // cause; may be nil
}

// Error returns what went wrong.
func (f *Fault) Error() string { return f.What }

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

// Fail returns a [Fault].
func Fail(exit int, what, next string) error { return &Fault{Exit: exit, What: what, Next: next} }

func usage(what, next string) error { return Fail(ExitUsage, what, next) }

// ExitCode returns the exit code for err.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if f := (*Fault)(nil); errors.As(err, &f) {
		return f.Exit
	}
	e := (*client.Error)(nil)
	if !errors.As(err, &e) {
		return ExitFailed
	}
	switch e.Code {
	case api.CodeInvalid:
		return ExitUsage
	case api.CodeNotFound:
		return ExitNotFound
	case api.CodeNoToken, api.CodeDenied, api.CodeCrossOrigin:
		return ExitDenied
	case api.CodeExists, api.CodeConflict, api.CodeStale:
		return ExitConflict
	case client.CodeUnreachable:
		return ExitUnreachable
	}
	return ExitFailed
}

// session is one run of the program: its settings, and what it prints with.
type session struct {
	io       IO
	addr     string
	file     string // of the token
	env      string
	json     bool
	noColor  bool
	insecure bool
	*printer
}

// Command returns the root of the verbs. Verbs that it does not know are added
// with AddCommand; they find the settings in the persistent flags addr,
// token-file, env, json, no-color and insecure-http.
func Command(io IO) *cobra.Command {
	if io.Now == nil {
		io.Now = time.Now
	}
	s := &session{io: io}
	root := &cobra.Command{
		Use:   "keybaton",
		Short: "Rotate the keys of third-party APIs with no failed request",
		Long: "Keybaton keeps the keys of every service in every environment, hands them to whatever calls the service,\n" +
			"and rotates them with every step waiting for evidence.\n\n" + exitHelp,
		Version:       io.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          nothing,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			s.printer = newPrinter(s.io, s.noColor, s.json)
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&s.addr, "addr", "", "address of the server (KEYBATON_ADDR; default "+client.DefaultAddress+")")
	f.StringVar(&s.file, "token-file", "", "file that holds the token (otherwise KEYBATON_TOKEN, keybaton login, the local server's admin token)")
	f.StringVarP(&s.env, "env", "e", io.Getenv("KEYBATON_ENV"), "environment (KEYBATON_ENV)")
	f.BoolVar(&s.json, "json", false, "print JSON")
	f.BoolVar(&s.noColor, "no-color", false, "no colours (NO_COLOR)")
	f.BoolVar(&s.insecure, "insecure-http", io.Getenv("KEYBATON_INSECURE_HTTP") == "1", "send the token over plain HTTP to another machine (KEYBATON_INSECURE_HTTP=1)")
	root.SetIn(io.In)
	root.SetOut(io.Out)
	root.SetErr(io.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(err.Error(), cmd.CommandPath()+" --help shows the flags")
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		s.applyCmd(), s.importCmd(), s.setCmd(), s.getCmd(), s.listCmd(), s.statusCmd(), s.rotateCmd(), s.rollbackCmd(), s.discoverCmd(), s.adoptCmd(), s.revokeCmd(),
		s.consumerCmd(), s.tokenCmd(), s.auditCmd(), s.alertCmd(), s.loginCmd(),
	)
	return root
}

// Execute runs root with args, prints what went wrong to io.Err, and returns
// the exit code. Whether JSON was asked for is taken from the flags.
func Execute(ctx context.Context, root *cobra.Command, io IO, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	asJSON, _ := root.PersistentFlags().GetBool("json")
	printError(io.Err, err, asJSON)
	return ExitCode(err)
}

// printError writes what went wrong and the next step.
func printError(w io.Writer, err error, asJSON bool) {
	what, next, code := err.Error(), "", ""
	if f := (*Fault)(nil); errors.As(err, &f) {
		next = f.Next
	} else if e := (*client.Error)(nil); errors.As(err, &e) {
		next, code = e.Next, e.Code
		if e.RequestID != "" && e.Code == api.CodeInternal {
			what += " (request " + e.RequestID + ")"
		}
	}
	if asJSON {
		type problem struct {
			Error string `json:"error"`
			Code  string `json:"code,omitempty"`
			Next  string `json:"next,omitempty"`
			Exit  int    `json:"exit"`
		}
		b, _ := json.Marshal(problem{what, code, next, ExitCode(err)}) // strings and numbers encode
		_, _ = fmt.Fprintln(w, string(b))
		return
	}
	_, _ = fmt.Fprintln(w, "keybaton: "+cleanLines(what))
	if next != "" {
		_, _ = fmt.Fprintln(w, "next: "+cleanLines(next))
	}
}

// nothing refuses every argument.
func nothing(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	next := cmd.CommandPath() + " --help shows the usage"
	if !cmd.HasSubCommands() {
		return usage(cmd.CommandPath()+" takes no argument", next)
	}
	if !verb(args[0]) {
		return usage(cmd.CommandPath()+" has no such verb", next)
	}
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		next = "did you mean " + cmd.CommandPath() + " " + like[0] + "?"
	}
	return usage(fmt.Sprintf("%s has no verb %q", cmd.CommandPath(), args[0]), next)
}

// verb reports whether s looks like a verb. What does not is never repeated: it
// may be a key.
func verb(s string) bool {
	return len(s) <= 16 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz-") == ""
}

// Nothing refuses every argument of cmd, as verbs here do. It is for verbs of
// other rooms.
func Nothing(cmd *cobra.Command, args []string) error { return nothing(cmd, args) }

// One wants exactly one argument, which what names for people. It is for verbs
// of other rooms.
func One(what string) cobra.PositionalArgs { return one(what) }

// Group is a verb that only holds others.
func Group(use, short string, subs ...*cobra.Command) *cobra.Command {
	return group(use, short, subs...)
}

// one wants exactly one argument; what names it for people. Surplus arguments
// are not repeated: they may be anything.
func one(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return usage("which "+what+"?", "usage: "+cmd.UseLine())
		case 1:
			return nil
		}
		return usage("one "+what+" at a time", "usage: "+cmd.UseLine())
	}
}

// group is a verb that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: nothing, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(subs...)
	return c
}

// run returns the body of a verb that needs nothing but a client.
func (s *session) run(do func(context.Context, *client.Client, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := s.client()
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, args)
	}
}

// on is run for a verb whose first argument is a service of the environment.
func (s *session) on(do func(context.Context, *client.Client, client.Credential) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		id, err := s.named(args[0])
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, id)
	}
}

// show prints v as JSON when that was asked for, or calls human; err comes
// first.
func (s *session) show(v any, err error, human func()) error {
	if err != nil {
		return err
	}
	if s.json {
		return s.encode(v)
	}
	human()
	return nil
}

// named returns the credential that the argument and --env name. SERVICE/ENV
// is understood too.
func (s *session) named(service string) (client.Credential, error) {
	env := s.env
	if svc, e, ok := strings.Cut(service, "/"); ok {
		service, env = svc, e
	}
	if err := named("a service", service); err != nil {
		return client.Credential{}, err
	}
	if env == "" {
		return client.Credential{}, usage("which environment?", "say --env ENVIRONMENT, or set KEYBATON_ENV")
	}
	if err := named("an environment", env); err != nil {
		return client.Credential{}, err
	}
	return client.Credential{Service: service, Environment: env}, nil
}

// named refuses what cannot be the name of what, without repeating it or
// sending it anywhere: it may be a key or a token.
func named(what, name string) error {
	if nameRE.MatchString(name) {
		return nil
	}
	return usage("that cannot be the name of "+what+": names are 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
		"give the name; and if it was a key or a token, replace it: every process could read it, and the shell keeps it in its history")
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// oneName is [one] for a name.
func oneName(what, of string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := one(what)(cmd, args); err != nil {
			return err
		}
		return named(of, args[0])
	}
}
