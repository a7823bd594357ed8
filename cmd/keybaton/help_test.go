package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keybaton/keybaton/internal/cli"
)

// verbs are all that the program has; one that is added is added here, too.
const verbs = `keybaton
keybaton adopt
keybaton alert
keybaton alert list
keybaton apply
keybaton audit
keybaton audit head
keybaton audit list
keybaton audit verify
keybaton backup
keybaton consumer
keybaton consumer forget
keybaton consumer list
keybaton demo
keybaton discover
keybaton doctor
keybaton get
keybaton import
keybaton list
keybaton login
keybaton migrate
keybaton move
keybaton recipe
keybaton recipe check
keybaton recipe list
keybaton recipe try
keybaton restore
keybaton revoke
keybaton rollback
keybaton rotate
keybaton rotate approve
keybaton rotate pause
keybaton rotate resume
keybaton serve
keybaton set
keybaton status
keybaton token
keybaton token create
keybaton token list
keybaton token revoke`

// asked runs the program in this process, with nobody at the terminal.
func asked(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	io := cli.IO{In: strings.NewReader(""), Out: &o, Err: &e, Getenv: func(string) string { return "" }, Version: "test"}
	code = cli.Execute(t.Context(), command(io), io, args)
	return code, o.String(), e.String()
}

// Every verb has help that names its flags, and says what each is for.
func TestHelpOfEveryVerb(t *testing.T) {
	var seen []string
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			return
		}
		seen = append(seen, c.CommandPath())
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		code, out, errOut := asked(t, args...)
		if code != 0 || errOut != "" || !strings.Contains(out, "Usage:\n  "+c.CommandPath()) {
			t.Errorf("%v: exit %d, %s%s", args, code, out, errOut)
		}
		if c.Short == "" || !strings.HasPrefix(out, c.Short) && c.Long == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s says of itself %q", c.CommandPath(), c.Short)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(out, "--"+f.Name) || f.Usage == "" {
				t.Errorf("%s does not explain --%s", c.CommandPath(), f.Name)
			}
		})
		for _, s := range c.Commands() {
			walk(s)
		}
	}
	walk(command(cli.IO{Getenv: func(string) string { return "" }}))
	if got := strings.Join(seen, "\n"); got != verbs {
		t.Errorf("the verbs are\n%s", got)
	}
}

// Every verb refuses a flag that it does not have, with exit code 2 and the
// next step.
func TestUnknownFlagsOfEveryVerb(t *testing.T) {
	for v := range strings.Lines(verbs) {
		args := append(strings.Fields(v)[1:], "--no-such-flag")
		code, out, errOut := asked(t, args...)
		if code != cli.ExitUsage || out != "" || !strings.Contains(errOut, "\nnext: "+strings.TrimSpace(v)+" --help shows") {
			t.Errorf("%v: exit %d, %q, %q", args, code, out, errOut)
		}
	}
}

// The exit codes are documented where people look, and each has a story.
func TestExitCodesAreToldAndTried(t *testing.T) {
	_, out, _ := asked(t, "--help")
	for code, word := range []string{"ok", "failed", "wrong usage", "not found", "denied", "refused", "waiting", "no server"} {
		if !regexp.MustCompile(string(rune('0'+code)) + ` ` + word).MatchString(out) {
			t.Errorf("exit code %d is not explained as %q", code, word)
		}
	}
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, s := range scripts {
		b, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	for code := '1'; code <= '7'; code++ {
		if !bytes.Contains(all, []byte("\nexits "+string(code)+" keybaton ")) {
			t.Errorf("no script ends with exit code %c", code)
		}
	}
}

// A key is found as it is, in hex, and in base64 at every offset.
func TestKeysAreFoundInEveryForm(t *testing.T) {
	const key = "sim_0123456789ABCDEFGHIJabcdefghij"
	found := func(text string) bool {
		for _, f := range forms(key) {
			if strings.Contains(text, string(f)) {
				return true
			}
		}
		return false
	}
	for n := range 7 {
		plain := strings.Repeat("\xff", n) + key + strings.Repeat("\xfe", n)
		for name, text := range map[string]string{"plain": plain, "hex": hex.EncodeToString([]byte(plain)),
			"base64": base64.StdEncoding.EncodeToString([]byte(plain)), "url": base64.RawURLEncoding.EncodeToString([]byte(plain))} {
			if !found(text) {
				t.Errorf("not found as %s after %d bytes", name, n)
			}
		}
	}
	if found(strings.Repeat("x", 1000)) {
		t.Error("found where it is not")
	}
}
