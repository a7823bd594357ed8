package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/vendortest"
)

// patience is how long a script waits for anything before it fails.
const patience = time.Minute

// world is what the commands of one script share. A script uses it from one
// goroutine; the vendor's handler adds to issued from others.
type world struct {
	t      testing.TB
	dir    string
	server *exec.Cmd
	exited chan error
	log    *os.File

	vendor  *vendortest.Vendor
	front   *httptest.Server // of the vendor; nil while it is down
	address string           // of the vendor
	base    int64            // requests when they were last counted

	calling chan struct{} // closed to end the traffic; nil without
	called  chan [2]int   // requests, and those that were not answered 200

	mu     sync.Mutex
	issued []string // every key that the vendor gave out, and what mark named
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// setUp gives a script its world. When the script is over, its server is
// stopped, and no key may be found in anything it printed, logged or stored.
func setUp(env *testscript.Env) error {
	w := &world{t: env.T().(testing.TB), dir: env.WorkDir}
	env.Values[worldKey{}] = w
	env.Defer(func() {
		w.stop(syscall.SIGTERM)
		if w.front != nil {
			w.front.Close()
		}
		for _, l := range w.leaks(w.dir) {
			w.t.Errorf("a key can be read in %s", l)
		}
		w.races()
	})
	for _, d := range []string{"home", "keys", ".printed"} {
		if err := os.MkdirAll(filepath.Join(w.dir, d), 0o700); err != nil {
			return err
		}
	}
	env.Setenv("HOME", filepath.Join(w.dir, "home"))
	env.Setenv("KB_PRINTED", filepath.Join(w.dir, ".printed"))
	env.Setenv("KEYBATON_TOKEN_FILE", filepath.Join(w.dir, "config", "admin.token"))
	return nil
}

// exits runs a program and wants this exit code: exits CODE PROGRAM [ARGS].
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARGS]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("the exit code is %d, not %d", got, want)
	}
}

// serve starts a server on free ports and waits until it answers: serve
// [FLAGS]. It sets KEYBATON_ADDR and GATEWAY.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || w.server != nil {
		ts.Fatalf("usage: serve [FLAGS], once at a time")
	}
	file := filepath.Join(w.dir, "ready.json")
	var err error
	w.log, err = os.OpenFile(filepath.Join(w.dir, "serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	w.server = w.command(ts, "keybaton", append([]string{"serve", "--data", "data", "--config", "config", "--api", "127.0.0.1:0", "--gateway", "127.0.0.1:0",
		"--poll", "50ms", "--ready-file", file}, args...)...)
	w.server.Stdout, w.server.Stderr = w.log, w.log
	ts.Check(w.server.Start())
	w.exited = make(chan error, 1)
	go func(c *exec.Cmd, exited chan<- error) { exited <- c.Wait() }(w.server, w.exited)
	w.until(ts, "the server to answer", func() (bool, string) {
		select {
		case err := <-w.exited:
			w.exited <- err
			b, _ := os.ReadFile(w.log.Name())
			ts.Fatalf("the server ended: %v\n%s", err, b)
		default:
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return false, err.Error()
		}
		var r ready
		ts.Check(json.Unmarshal(b, &r))
		if r.PID != w.server.Process.Pid {
			return false, "the file is of another process"
		}
		ts.Setenv("KEYBATON_ADDR", r.API)
		ts.Setenv("GATEWAY", r.Gateway)
		return true, ""
	})
}

// command returns a command that runs a program in the environment of a
// script.
func (w *world) command(ts *testscript.TestScript, program string, args ...string) *exec.Cmd {
	path, err := exec.LookPath(program) // TestMain put the program in the path
	ts.Check(err)
	c := exec.Command(path, args...)
	c.Dir = w.dir
	for _, n := range []string{"PATH", "HOME", "TMPDIR", "GOCOVERDIR", "GORACE", "KEYBATON_ADDR", "KEYBATON_TOKEN_FILE"} {
		if v := ts.Getenv(n); v != "" {
			c.Env = append(c.Env, n+"="+v)
		}
	}
	return c
}

// shutdown ends the server as an operator would, and wants it to end well.
func shutdown(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) > 0 || w.server == nil {
		ts.Fatalf("usage: shutdown, with a server running")
	}
	w.stop(syscall.SIGTERM)
	if _, err := os.Stat(filepath.Join(w.dir, "ready.json")); err == nil {
		ts.Fatalf("the ready file outlived the server")
	}
}

// crash kills the server.
func crash(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) > 0 || w.server == nil {
		ts.Fatalf("usage: crash, with a server running")
	}
	w.stop(syscall.SIGKILL)
}

func (w *world) stop(with syscall.Signal) {
	if w.server == nil {
		return
	}
	select {
	case err := <-w.exited: // before it was told to
		w.t.Errorf("the server ended by itself: %v", err)
	default:
		_ = w.server.Process.Signal(with)
		t := time.NewTimer(patience)
		defer t.Stop()
		select {
		case err := <-w.exited:
			if err != nil && with != syscall.SIGKILL {
				w.t.Errorf("the server did not end well: %v", err)
			}
		case <-t.C:
			_ = w.server.Process.Kill()
			<-w.exited
			w.t.Errorf("the server had to be killed")
		}
	}
	_ = w.log.Close()
	if w.t.Failed() {
		b, _ := os.ReadFile(w.log.Name())
		w.t.Logf("the server's log:\n%s", b)
	}
	w.server = nil
}

// until looks again and again until done says yes; told says what it saw.
func (w *world) until(ts *testscript.TestScript, what string, done func() (ok bool, told string)) {
	end := time.NewTimer(patience)
	defer end.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		ok, told := done()
		if ok {
			return
		}
		select {
		case <-again.C:
		case <-end.C:
			ts.Fatalf("waited %s for %s: %s", patience, what, told)
		}
	}
}

// waitStatus waits until a credential is as a pattern says: wait-status
// SERVICE ENV PATTERN. The text that it is matched with is that of statusLine.
func waitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: wait-status SERVICE ENV PATTERN")
	}
	re, err := regexp.Compile(args[2])
	ts.Check(err)
	token, err := client.ReadTokenFile(ts.Getenv("KEYBATON_TOKEN_FILE"))
	ts.Check(err)
	c, err := client.New(client.Config{Address: ts.Getenv("KEYBATON_ADDR"), Token: token})
	ts.Check(err)
	line := ""
	worldOf(ts).until(ts, args[0]+"/"+args[1]+" to be "+args[2], func() (bool, string) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cred, err := c.Credential(ctx, client.Credential{Service: args[0], Environment: args[1]})
		if err != nil {
			return false, err.Error()
		}
		line = statusLine(cred)
		return re.MatchString(line), line
	})
	_, _ = fmt.Fprintln(ts.Stdout(), line)
}

// statusLine is a credential in one line, such as
//
//	primary v2 fallback v1 candidate v0 health ok; rotation manual soaking: soaks for 1m; v2=primary v1=fallback
//
// with "waits for a person" before the reason where a gate does, "no rotation"
// where none is open, and "retiring v1 disabled: reason" for each retirement.
func statusLine(c api.Credential) string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "primary v%d fallback v%d candidate v%d health %s; ", c.Slots.Primary, c.Slots.Fallback, c.Slots.Candidate, c.Health)
	gate := func(g api.Gate) string {
		s := ": "
		if g.Person && !g.Open {
			s += "waits for a person: "
		}
		return s + strings.Join(append([]string{g.Reason}, g.Missing...), ", ")
	}
	if r := c.Rotation; r != nil {
		paused := ""
		if r.Paused {
			paused = " paused"
		}
		_, _ = fmt.Fprintf(&b, "rotation %s %s%s%s; ", r.Kind, r.State, paused, gate(r.Gate))
	} else {
		b.WriteString("no rotation; ")
	}
	for _, r := range c.Retirements {
		_, _ = fmt.Fprintf(&b, "retiring v%d %s%s; ", r.Version, r.State, gate(r.Gate))
	}
	for _, v := range c.Versions {
		_, _ = fmt.Fprintf(&b, "v%d=%s ", v.Number, v.State)
	}
	return strings.TrimSpace(b.String())
}

// waitOutput runs a program until its standard output matches: wait-output
// PATTERN PROGRAM [ARGS].
func waitOutput(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: wait-output PATTERN PROGRAM [ARGS]")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var out []byte
	w := worldOf(ts)
	w.until(ts, "an output like "+args[0], func() (bool, string) {
		out, err = w.command(ts, args[1], args[2:]...).CombinedOutput()
		return err == nil && re.Match(out), fmt.Sprint(err, "\n", string(out))
	})
	_, _ = ts.Stdout().Write(out)
}

// mark names a file whose lines no output, log or store may hold: mark FILE.
func mark(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: mark FILE")
	}
	for l := range strings.Lines(ts.ReadFile(args[0])) {
		if l = strings.TrimSpace(l); len(l) >= 8 {
			worldOf(ts).know(l)
		}
	}
}

// noLeak wants no key in any file of a directory: [!] no-leak DIR. Every script
// is checked so as a whole when it is over.
func noLeak(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] no-leak DIR")
	}
	found := worldOf(ts).leaks(ts.MkAbs(args[0]))
	if neg == (len(found) == 0) {
		ts.Fatalf("keys were found in: %v", found)
	}
}

// leaks lists the files under dir in which a key can be read, as it is, in
// base64 or in hex. What is there to hold keys is left out: the directory keys,
// and the files of the owner's tokens.
func (w *world) leaks(dir string) []string {
	w.mu.Lock()
	var marks [][]byte
	for _, k := range w.issued {
		marks = append(marks, forms(k)...)
	}
	w.mu.Unlock()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil // the server removed it meanwhile
		case err != nil:
			return err
		case d.IsDir() && path == filepath.Join(w.dir, "keys"):
			return filepath.SkipDir
		case !d.Type().IsRegular(), d.Name() == "admin.token", d.Name() == "login.json":
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, m := range marks {
			if bytes.Contains(b, m) {
				found = append(found, path)
				break
			}
		}
		return nil
	})
	if err != nil {
		w.t.Errorf("looking for keys: %v", err)
	}
	return found
}

// forms returns the texts by which key can be read: as it is, in hex, and in
// base64 wherever in the encoded bytes it begins.
func forms(key string) [][]byte {
	out := [][]byte{[]byte(key), []byte(hex.EncodeToString([]byte(key)))}
	for skip := range 3 {
		in := append(make([]byte, skip), key...)
		whole := base64.RawStdEncoding.EncodeToString(in[:len(in)/3*3])
		out = append(out, []byte(whole[(skip*8+5)/6:]))
	}
	return out
}

// races reports what the race detector and the runtime said in any process.
func (w *world) races() {
	files, err := filepath.Glob(filepath.Join(w.dir, ".printed", "*.stderr"))
	if err != nil {
		w.t.Error(err)
	}
	for _, f := range append(files, filepath.Join(w.dir, "serve.log")) {
		b, err := os.ReadFile(f)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.t.Error(err)
		}
		for _, bad := range []string{"DATA RACE", "panic:", "a request panicked"} {
			if bytes.Contains(b, []byte(bad)) {
				w.t.Errorf("%s in %s:\n%s", bad, f, b)
			}
		}
	}
}

// runSQL changes a store behind the server's back: sql FILE STATEMENT.
func runSQL(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sql FILE STATEMENT")
	}
	db, err := sql.Open("sqlite", ts.MkAbs(args[0]))
	ts.Check(err)
	_, err = db.Exec(args[1])
	ts.Check(errors.Join(err, db.Close()))
}

// fill writes a file anew with the variables of the script in it: fill FILE...
func fill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: fill FILE...")
	}
	for _, f := range args {
		ts.Check(os.WriteFile(ts.MkAbs(f), []byte(os.Expand(ts.ReadFile(f), ts.Getenv)), 0o600))
	}
}

// contents sets a variable to what a file holds: contents VARIABLE FILE.
func contents(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: contents VARIABLE FILE")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// listen takes a free port and keeps it: listen VARIABLE.
func listen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen VARIABLE")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
	ts.Setenv(args[0], l.Addr().String())
}

// readJSON wants the file (or stdout) to be JSON, and sets a variable to one of
// its values: json FILE PATH VARIABLE, where PATH is like items.0.name.
func readJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: json FILE PATH VARIABLE")
	}
	var v any
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	d.UseNumber()
	ts.Check(d.Decode(&v))
	for p := range strings.SplitSeq(args[1], ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[p]
		case []any:
			i, err := strconv.Atoi(p)
			ts.Check(err)
			if i >= len(x) {
				ts.Fatalf("%s: there are only %d", args[1], len(x))
			}
			v = x[i]
		default:
			ts.Fatalf("%s: there is no %s", args[1], p)
		}
	}
	ts.Setenv(args[2], fmt.Sprint(v))
}
