package cli_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/cli"
	"github.com/keybaton/keybaton/secret"
)

const plaintext = "sk_live_PLAINTEXTmustnotleak0123456789"

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// world is a program at a terminal or in a script, and the server it talks to.
type world struct {
	t       *testing.T
	routes  map[string]http.HandlerFunc // "METHOD path"
	env     map[string]string
	in      string
	width   int
	answers []string // of the prompts that do not echo; nil: nobody is there
	hosts   []string // that were called, with the token
	down    bool
	hang    bool // streams stay open
}

func newWorld(t *testing.T) *world {
	return &world{t: t, routes: map[string]http.HandlerFunc{}, env: map[string]string{"HOME": t.TempDir(), "KEYBATON_TOKEN": "token-of-the-test"}}
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	if w.down {
		return nil, errors.New("connect: connection refused")
	}
	w.hosts = append(w.hosts, r.URL.Host+" "+strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	h, ok := w.routes[r.Method+" "+r.URL.EscapedPath()]
	if !ok {
		w.t.Errorf("unexpected %s %s", r.Method, r.URL)
		h = problem(404, api.CodeNotFound, "no such path", "")
	}
	rec := httptest.NewRecorder()
	h(rec, r)
	resp := rec.Result()
	if w.hang && resp.Header.Get("Content-Type") == "text/event-stream" {
		resp.Body = io.NopCloser(io.MultiReader(resp.Body, until{r.Context()}))
	}
	return resp, nil
}

// until is a reader that has nothing until its context ends.
type until struct{ ctx context.Context }

func (u until) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, u.ctx.Err()
}

// answer returns a handler that answers v, after putting the body into got.
func answer(v any, got ...any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, g := range got {
			if err := json.NewDecoder(r.Body).Decode(g); err != nil {
				panic(err)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

func problem(status int, code, detail, next string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(api.Problem{Status: status, Code: code, Detail: detail, Next: next, RequestID: "req1"})
	}
}

// events returns a handler that streams events and ends.
func events(es ...api.Event) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, e := range es {
			b, _ := json.Marshal(e)
			_, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n: still here\n\n", e.Kind, b)
		}
	}
}

// run runs the program and returns the exit code and what it wrote.
func (w *world) run(args ...string) (code int, out, errOut string) {
	w.t.Helper()
	var o, e bytes.Buffer
	x := cli.IO{In: strings.NewReader(w.in), Out: &o, Err: &e, Getenv: func(k string) string { return w.env[k] }, Version: "v0",
		Now: func() time.Time { return now }, HTTP: &http.Client{Transport: w}, Width: w.width}
	if w.answers != nil {
		x.ReadSecret = func(string) (secret.Value, error) {
			if len(w.answers) == 0 {
				return secret.Value{}, io.EOF
			}
			a := w.answers[0]
			w.answers = w.answers[1:]
			return secret.FromString(a), nil
		}
	}
	code = cli.Execute(w.t.Context(), cli.Command(x), x, args)
	return code, o.String(), e.String()
}

func noLeak(t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if strings.Contains(s, plaintext[8:16]) {
			t.Errorf("the output holds a key")
		}
	}
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func TestExitCodes(t *testing.T) {
	for code, x := range map[string]struct{ status, exit int }{
		api.CodeInvalid: {422, cli.ExitUsage}, api.CodeNotFound: {404, cli.ExitNotFound}, api.CodeNoToken: {401, cli.ExitDenied},
		api.CodeDenied: {403, cli.ExitDenied}, api.CodeExists: {409, cli.ExitConflict}, api.CodeConflict: {409, cli.ExitConflict},
		api.CodeStale: {409, cli.ExitConflict}, api.CodeUnavailable: {503, cli.ExitFailed}, api.CodeUncertain: {504, cli.ExitFailed}, api.CodeFull: {507, cli.ExitFailed}, api.CodeInternal: {500, cli.ExitFailed},
	} {
		w := newWorld(t)
		w.routes["GET /api/v1/status"] = problem(x.status, code, "this went wrong", "do that")
		exit, out, errOut := w.run("status")
		wantErr := "keybaton: this went wrong\nnext: do that\n"
		if code == api.CodeInternal {
			wantErr = "keybaton: this went wrong (request req1)\nnext: do that\n"
		}
		if exit != x.exit || out != "" || errOut != wantErr {
			t.Errorf("%s: exit %d, out %q, err %q", code, exit, out, errOut)
		}
		exit, out, errOut = w.run("status", "--json")
		var e struct {
			Error, Code, Next string
			Exit              int
		}
		if err := json.Unmarshal([]byte(errOut), &e); err != nil || exit != x.exit || out != "" || e.Code != code || e.Exit != exit || e.Next != "do that" {
			t.Errorf("%s as JSON: exit %d, out %q, err %q", code, exit, out, errOut)
		}
	}
	w := newWorld(t)
	w.down = true
	if exit, _, errOut := w.run("status"); exit != cli.ExitUnreachable || !strings.Contains(errOut, "connection refused") || !strings.Contains(errOut, "next: ") {
		t.Errorf("unreachable: exit %d, %s", exit, errOut)
	}
	w = newWorld(t)
	w.routes["GET /api/v1/status"] = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>hello") }
	if exit, _, errOut := w.run("status"); exit != cli.ExitFailed || !strings.Contains(errOut, "not a Keybaton server") {
		t.Errorf("another server: exit %d, %s", exit, errOut)
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"}, {"consumer", "nonsense"}, {"list", "more"}, {"rotate"}, {"rotate", "a", "b", "--env", "e"}, {"rotate", "a"}, {"rotate", "a", "--env", "e", "--leaked", "v3"},
		{"rotate", "a", "--env", "e", "--emergency", "--leaked", "new"}, {"list", "--no-such-flag"}, {"token", "create", "a"}, {"token", "create", "a", "--role", "consumer"},
		{"token", "create", "a", "--role", "viewer", "--expires", "tomorrow"}, {"import"}, {"status", "--watch"}, {"audit", "list", "--limit", "x"},
	} {
		w := newWorld(t)
		code, out, errOut := w.run(args...)
		if code != cli.ExitUsage || out != "" || !strings.HasPrefix(errOut, "keybaton: ") || len(w.hosts) != 0 {
			t.Errorf("%v: exit %d, out %q, err %q, calls %v", args, code, out, errOut, w.hosts)
		}
	}
}

func TestWhatWasMeant(t *testing.T) {
	for arg, want := range map[string]string{"aply": "did you mean keybaton apply?", "tokn": "did you mean keybaton token?", "qqq": "keybaton --help shows the usage"} {
		if code, _, errOut := newWorld(t).run(arg); code != cli.ExitUsage || errOut != "keybaton: keybaton has no verb \""+arg+"\"\nnext: "+want+"\n" {
			t.Errorf("%s: exit %d, %q", arg, code, errOut)
		}
	}
}

func TestKeysOnTheCommandLineAreRefused(t *testing.T) {
	for _, args := range [][]string{
		{"set", "billing", plaintext, "--env", "dev"},
		{"set", "billing", "--env", "dev", "--part", "key=" + plaintext},
		{"login", "http://127.0.0.1:7460", "kbt_" + plaintext},
		{"login", "kbt_" + plaintext},
		{"get", "billing", plaintext, "--env", "dev"},
		{"get", plaintext, "--env", "dev"},
		{"set", plaintext, "--env", "dev"},
		{"set", "billing/" + plaintext},
		{"set", "billing", "--env", plaintext},
		{"rotate", plaintext, "--env", "dev"},
		{"rotate", plaintext, "--env", "dev", "--dry-run"},
		{"rotate", "approve", plaintext, "--env", "dev"},
		{"rollback", plaintext, "--env", "dev"},
		{"status", plaintext},
		{"token", "create", plaintext, "--role", "viewer"},
		{"token", "revoke", plaintext},
		{"token", plaintext},
		{"consumer", "forget", plaintext},
		{plaintext},
	} {
		w := newWorld(t)
		code, out, errOut := w.run(args...)
		noLeak(t, out, errOut)
		if code != cli.ExitUsage || len(w.hosts) != 0 || !strings.Contains(errOut, "next: ") && args[0] != "get" {
			t.Errorf("%s: exit %d, %q", args[0], code, errOut)
		}
	}
}

func TestSetTakesTheKeyFromTheInput(t *testing.T) {
	one := api.Credential{Parts: []string{"key"}}
	two := api.Credential{Parts: []string{"id", "secret"}}
	for name, c := range map[string]struct {
		cred    api.Credential
		in      string
		answers []string
		args    []string
		parts   map[string]string
		exit    int
	}{
		"one line":             {cred: one, in: plaintext + "\n", parts: map[string]string{"key": plaintext}},
		"without a newline":    {cred: one, in: plaintext, parts: map[string]string{"key": plaintext}},
		"several lines of one": {cred: one, in: "-----BEGIN\n" + plaintext + "\n", parts: map[string]string{"key": "-----BEGIN\n" + plaintext}},
		"asked":                {cred: one, answers: []string{plaintext}, parts: map[string]string{"key": plaintext}},
		"two parts in lines":   {cred: two, in: "user\r\n" + plaintext + "\r\n", parts: map[string]string{"id": "user", "secret": plaintext}},
		"two parts asked":      {cred: two, answers: []string{"user", plaintext}, parts: map[string]string{"id": "user", "secret": plaintext}},
		"parts named":          {args: []string{"--part", "b=-", "--part", "a"}, in: "1\n" + plaintext + "\n", parts: map[string]string{"b": "1", "a": plaintext}},
		"nothing":              {cred: one, in: "\n", exit: cli.ExitUsage},
		"nothing pasted":       {cred: one, answers: []string{""}, exit: cli.ExitUsage},
		"a line too many":      {cred: two, in: "user\n" + plaintext + "\nmore\n", exit: cli.ExitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.in, w.answers = c.in, c.answers
			var got struct{ Parts map[string]string }
			w.routes["GET /api/v1/credentials/billing/dev"] = answer(c.cred)
			w.routes["POST /api/v1/credentials/billing/dev/set"] = answer(api.SetResult{Version: 4, Rotation: "r1", Outcome: "ok"}, &got)
			code, out, errOut := w.run(append([]string{"set", "billing", "--env", "dev"}, c.args...)...)
			noLeak(t, out, errOut)
			if code != c.exit || fmt.Sprint(got.Parts) != fmt.Sprint(c.parts) {
				t.Fatalf("exit %d, %d parts sent: %s", code, len(got.Parts), errOut)
			}
			if code == 0 {
				want(t, "out", out, "✓ v4 is coming in by a rotation; its probe answered ok\n")
				want(t, "err", errOut, "next: keybaton status billing --env dev --watch\n")
			}
		})
	}
}

func TestGetPrintsTheKeyAndNothingElse(t *testing.T) {
	read := map[string]any{"credential": map[string]string{"service": "billing", "environment": "dev"}, "version": 3, "parts": map[string]string{"key": plaintext}}
	w := newWorld(t)
	w.routes["GET /api/v1/consumer/key"] = answer(read)
	if code, out, errOut := w.run("get", "billing", "-e", "dev"); code != 0 || out != plaintext+"\n" || errOut != "" {
		t.Errorf("exit %d, err %q", code, errOut)
	}
	if code, out, _ := w.run("get", "billing/dev", "--json"); code != 0 || !json.Valid([]byte(out)) || !strings.Contains(out, plaintext) {
		t.Errorf("exit %d", code)
	}
	read["parts"] = map[string]string{"id": "user", "secret": plaintext}
	if code, out, errOut := w.run("get", "billing", "-e", "dev"); code != cli.ExitUsage || out != "" || !strings.Contains(errOut, "id, secret") {
		t.Errorf("exit %d, err %q", code, errOut)
	}
	if code, out, _ := w.run("get", "billing", "-e", "dev", "--part", "id"); code != 0 || out != "user\n" {
		t.Errorf("exit %d, out %q", code, out)
	}
}

func TestImportReadsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), ".env")
	env := "# comment\n\nexport BILLING_API_KEY=" + plaintext + " # live\nB='a b#c'\nC=\"x\\ny\nz\" # more\nEMPTY=\n"
	if err := os.WriteFile(file, []byte(env), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	var got struct {
		Environment string
		DryRun      bool `json:"dry_run"`
		Variables   []struct{ Name, Value string }
	}
	w.routes["POST /api/v1/import"] = answer(api.List[api.Found]{Items: []api.Found{
		{Name: "BILLING_API_KEY", Service: "billing", Environment: "dev", Vendor: "Billing", Outcome: "valid", Rotation: "automatic", Installed: true},
		{Name: "B", Service: "b", Environment: "dev", Outcome: "unverified", Rotation: "pasted", Missing: []string{"declare it in keybaton.yaml"}},
	}}, &got)
	code, out, errOut := w.run("import", file, "--env", "dev")
	noLeak(t, out, errOut)
	if code != 0 || got.Environment != "dev" || got.DryRun || fmt.Sprint(got.Variables) != fmt.Sprint([]struct{ Name, Value string }{
		{"BILLING_API_KEY", plaintext}, {"B", "a b#c"}, {"C", "x\ny\nz"}, {"EMPTY", ""}}) {
		t.Fatalf("exit %d, sent %d variables: %s", code, len(got.Variables), errOut)
	}
	want(t, "out", out, `VARIABLE         CREDENTIAL   VENDOR   PROBE       ROTATION   RESULT
BILLING_API_KEY  billing/dev  Billing  valid       automatic  taken
B                b/dev        -        unverified  pasted     not taken
B: declare it in keybaton.yaml
`)
	if left, err := os.ReadFile(file); err != nil || string(left) != env {
		t.Error("the file was changed")
	}
	w.in = "A=1\n" + plaintext + "\n"
	code, out, errOut = w.run("import", "-", "--env", "dev")
	noLeak(t, out, errOut)
	if code != cli.ExitUsage || !strings.Contains(errOut, "line 2 is not NAME=value") {
		t.Errorf("exit %d: %s", code, errOut)
	}
	for in, says := range map[string]string{"A='" + plaintext: "line 1 is never closed", "A=\"x\ny\" z" + plaintext: "line 2 goes on", plaintext + " x=1": "line 1 is not"} {
		w.in = in
		code, out, errOut = w.run("import", "--env", "dev")
		noLeak(t, out, errOut)
		if code != cli.ExitUsage || !strings.Contains(errOut, says) {
			t.Errorf("exit %d: %s, want %s", code, errOut, says)
		}
	}
	if code, _, errOut := w.run("import", file+".gone", "--env", "dev"); code != cli.ExitNotFound {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestTokenGoesOnlyWhereItBelongs(t *testing.T) {
	w := newWorld(t)
	w.routes["GET /api/v1/status"] = answer(api.Status{You: api.You{Name: "me", Role: "admin"}})
	delete(w.env, "KEYBATON_TOKEN")
	status := func(wantExit int, wantHost string, args ...string) {
		t.Helper()
		w.hosts = nil
		code, _, errOut := w.run(append([]string{"status"}, args...)...)
		if got := strings.Join(w.hosts, ", "); code != wantExit || got != wantHost {
			t.Errorf("%v: exit %d, called %q (%s); want %d, %q", args, code, got, errOut, wantExit, wantHost)
		}
	}
	w.env["KEYBATON_TOKEN_FILE"] = filepath.Join(w.env["HOME"], "none") // not what this machine may have
	status(cli.ExitDenied, "")
	if _, _, errOut := w.run("status"); !strings.Contains(errOut, "none: no such file") {
		t.Errorf("a token file that is not there: %s", errOut)
	}
	delete(w.env, "KEYBATON_TOKEN_FILE")

	config := filepath.Join(w.env["HOME"], ".config", "keybaton")
	if err := os.MkdirAll(config, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(config, "admin.token"), []byte("admin-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	status(0, "127.0.0.1:7460 admin-token")
	status(0, "localhost:9 admin-token", "--addr", "http://localhost:9")
	status(cli.ExitDenied, "", "--addr", "https://keys.example.com") // the local admin token stays here

	w.in = "login-token\n"
	if code, out, errOut := w.run("login", "https://keys.example.com/"); code != 0 || strings.Contains(out+errOut, "login-token") {
		t.Fatalf("login: exit %d, %s%s", code, out, errOut)
	}
	info, err := os.Stat(filepath.Join(config, "login.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the login file is %v, %v", info, err)
	}
	status(0, "keys.example.com login-token")
	status(cli.ExitDenied, "", "--addr", "https://evil.example.com")
	status(0, "127.0.0.1:7460 admin-token", "--addr", "http://127.0.0.1:7460")

	w.env["KEYBATON_TOKEN"] = "env-token"
	status(0, "keys.example.com env-token")
	w.env["KEYBATON_ADDR"] = "https://other.example.com"
	status(0, "other.example.com env-token")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("file-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	status(0, "other.example.com file-token", "--token-file", file)
	status(cli.ExitDenied, "", "--token-file", file+".gone")
	status(cli.ExitUsage, "", "--addr", "http://keys.example.com") // in the clear
	status(0, "keys.example.com env-token", "--addr", "http://keys.example.com", "--insecure-http")
	status(cli.ExitUsage, "", "--addr", "keys.example.com")

	v, _, err := client.NewToken("")
	if err != nil {
		t.Fatal(err)
	}
	damaged := []byte(v.Reveal())
	damaged[10] ^= 1
	w.env["KEYBATON_TOKEN"] = string(damaged)
	status(cli.ExitUsage, "")
}

func TestLoginAcceptsTokensOfPrograms(t *testing.T) {
	w := newWorld(t)
	w.in = "consumer-token"
	w.routes["GET /api/v1/status"] = problem(403, api.CodeDenied, "may not see", "")
	if code, out, _ := w.run("login"); code != 0 || !strings.Contains(out, "token for programs") {
		t.Errorf("exit %d: %s", code, out)
	}
	w.routes["GET /api/v1/status"] = problem(401, api.CodeNoToken, "unknown", "")
	w.env["HOME"] = t.TempDir()
	if code, _, _ := w.run("login"); code != cli.ExitDenied {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(filepath.Join(w.env["HOME"], ".config", "keybaton", "login.json")); err == nil {
		t.Error("a refused token was kept")
	}
}

func TestTokenCreatePrintsTheTokenOnce(t *testing.T) {
	w := newWorld(t)
	var got api.TokenCreate
	w.routes["POST /api/v1/tokens"] = answer(api.Token{Name: "ci", Role: "consumer", Grants: []api.Grant{{Environment: "dev", Services: []string{"billing"}}}}, &got)
	code, out, errOut := w.run("token", "create", "ci", "--role", "consumer", "--service", "billing,mail", "--env", "dev,prod", "--refresh", "90s", "--expires", "90d")
	token := strings.TrimSuffix(out, "\n")
	sum := sha256.Sum256([]byte(token))
	if code != 0 || client.CheckToken(secret.FromString(token)) != nil || got.Hash != hex.EncodeToString(sum[:]) || strings.Contains(errOut, token) {
		t.Fatalf("exit %d, err %q", code, errOut)
	}
	if fmt.Sprint(got.Grants) != "[{dev [billing mail]} {prod [billing mail]}]" || got.RefreshSeconds != 90 || !got.Expires.Equal(now.Add(90*24*time.Hour)) {
		t.Errorf("sent %+v", got)
	}
	_, out, _ = w.run("token", "create", "ci", "--role", "viewer", "--json")
	var o struct{ Token, Name string }
	if err := json.Unmarshal([]byte(out), &o); err != nil || o.Name != "ci" || client.CheckToken(secret.FromString(o.Token)) != nil {
		t.Errorf("JSON: %v", err)
	}
}

func TestApplyShowsAsksAndApplies(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keybaton.yaml")
	if err := os.WriteFile(file, []byte("version: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	plan := api.Applied{Digest: "d1", Changes: []api.Change{
		{Action: api.ActionAdd, Kind: "service", Name: "billing"},
		{Action: api.ActionChange, Kind: "policy", Name: "careful", Fields: []api.ChangedField{{Name: "quiet", To: "24h"}}},
		{Action: api.ActionKeep, Kind: "credential", Name: "old/dev", Note: "kept: not in the file (use --prune)"},
	}}
	shown := `+ service billing
~ policy careful
    quiet: unsaid → 24h
  credential old/dev  kept: not in the file (use --prune)
`
	for name, c := range map[string]struct {
		in      string
		person  bool
		args    []string
		applied bool
		exit    int
		out     string
	}{
		"a script":       {applied: true, out: shown + "✓ applied 2 changes\n"},
		"a dry run":      {args: []string{"--dry-run"}, out: shown},
		"yes":            {person: true, in: "y\n", applied: true, out: shown + "✓ applied 2 changes\n"},
		"no":             {person: true, in: "\n", exit: cli.ExitFailed, out: shown},
		"yes beforehand": {person: true, args: []string{"--yes"}, applied: true, out: shown + "✓ applied 2 changes\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.in = c.in
			if c.person {
				w.answers = []string{}
			}
			var calls []api.Apply
			w.routes["POST /api/v1/apply"] = func(rw http.ResponseWriter, r *http.Request) {
				var a api.Apply
				p := plan
				answer(nil, &a)(httptest.NewRecorder(), r)
				calls = append(calls, a)
				p.Applied = !a.DryRun
				answer(p)(rw, r)
			}
			code, out, errOut := w.run(append([]string{"apply", "-f", file}, c.args...)...)
			if code != c.exit || len(calls) == 0 || !calls[0].DryRun || c.applied != (len(calls) == 2) {
				t.Fatalf("exit %d, calls %+v: %s", code, calls, errOut)
			}
			if c.applied && (calls[1].DryRun || calls[1].Expect != "d1" || calls[1].YAML != "version: 1\n") {
				t.Errorf("applied with %+v", calls[1])
			}
			want(t, "out", out, c.out)
		})
	}
}

// TestApplyAsksBeforeWhatIsGrave deletes, and sends live keys elsewhere: off a
// terminal only with --yes, on one the question says so.
func TestApplyAsksBeforeWhatIsGrave(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keybaton.yaml")
	if err := os.WriteFile(file, []byte("version: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	plan := api.Applied{Digest: "d1", Changes: []api.Change{
		{Action: api.ActionDelete, Kind: "service", Name: "old"},
		{Action: api.ActionChange, Kind: "service", Name: "billing", Moves: []string{"LIVE KEYS of billing/prod go to https://b instead of https://a"}},
	}}
	for name, c := range map[string]struct {
		in      string
		person  bool
		args    []string
		applied bool
		exit    int
		err     string
	}{
		"a script":           {exit: cli.ExitUsage, err: "say --yes"},
		"a script, JSON":     {args: []string{"--json"}, exit: cli.ExitUsage, err: "say --yes"},
		"a script with yes":  {args: []string{"--yes"}, applied: true},
		"yes":                {person: true, in: "y\n", applied: true, err: "apply 2 changes, and delete 1 thing and send the live keys of 1 credential to another host? [y/N]"},
		"no":                 {person: true, in: "\n", exit: cli.ExitFailed, err: "to another host?"},
		"JSON at a terminal": {person: true, in: "y\n", args: []string{"--json"}, exit: cli.ExitUsage, err: "say --yes"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if w.in = c.in; c.person {
				w.answers = []string{}
			}
			applied := false
			w.routes["POST /api/v1/apply"] = func(rw http.ResponseWriter, r *http.Request) {
				var a api.Apply
				answer(nil, &a)(httptest.NewRecorder(), r)
				applied = applied || !a.DryRun
				answer(plan)(rw, r)
			}
			code, out, errOut := w.run(append([]string{"apply", "-f", file}, c.args...)...)
			if code != c.exit || applied != c.applied || !strings.Contains(errOut, c.err) {
				t.Errorf("exit %d, applied %v: %s", code, applied, errOut)
			}
			if len(c.args) == 0 && !strings.Contains(out, "    LIVE KEYS of billing/prod go to https://b instead of https://a\n") {
				t.Errorf("the plan does not say it: %s", out)
			}
		})
	}
}

func TestAuditVerifyFailsOnDamage(t *testing.T) {
	w := newWorld(t)
	w.routes["GET /api/v1/audit/verify"] = answer(api.Verified{OK: true, Entries: 1234, Head: api.AuditHead{Seq: 1234, Hash: "abc"}})
	if code, out, _ := w.run("audit", "verify"); code != 0 || out != "✓ 1,234 entries, each as it was written; head 1234:abc\n" {
		t.Errorf("exit %d: %s", code, out)
	}
	w.routes["GET /api/v1/audit/verify"] = answer(api.Verified{Problem: "entry 7 was edited"})
	for _, args := range [][]string{{"audit", "verify"}, {"audit", "verify", "--json"}} {
		if code, _, errOut := w.run(args...); code != cli.ExitFailed || !strings.Contains(errOut, "entry 7 was edited") {
			t.Errorf("exit %d: %s", code, errOut)
		}
	}
	w.routes["GET /api/v1/audit"] = answer(api.List[api.AuditEntry]{Items: []api.AuditEntry{{Seq: 9, Hash: "ff"}}})
	if code, out, _ := w.run("audit", "head"); code != 0 || out != "9:ff\n" {
		t.Errorf("exit %d: %s", code, out)
	}
}
