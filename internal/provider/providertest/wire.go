package providertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/secret"
)

// Dialer opens connections for a driver.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// losing opens connections of which the one that makes the nth write, counted
// over all of them, gets no answer to it: the vendor has read it, and what it
// says is lost.
func losing(n int64) Dialer {
	var writes atomic.Int64
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := provider.Dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &lossyConn{Conn: c, writes: &writes, lose: n}, nil
	}
}

type lossyConn struct {
	net.Conn
	writes *atomic.Int64
	lose   int64
	lost   atomic.Bool
}

func (c *lossyConn) Write(b []byte) (int, error) {
	if c.writes.Add(1) == c.lose {
		c.lost.Store(true)
	}
	return c.Conn.Write(b)
}

// Read waits for the answer that is lost, so that it was given.
func (c *lossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.lost.Load() && !errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// failing fails to open connections.
func failing(err error) Dialer {
	return func(context.Context, string, string) (net.Conn, error) { return nil, err }
}

// talking opens connections to somebody who says text, whatever was said, and
// hangs up.
func talking(text string) Dialer {
	return func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer func() { _ = far.Close() }()
			if _, err := far.Read(make([]byte, 4096)); err == nil {
				_, _ = io.WriteString(far, text) // who does not read it has closed
			}
		}()
		return near, nil
	}
}

// resetting opens connections that are reset by the first read.
func resetting(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, far) }()
	return resetConn{near}, nil
}

type resetConn struct{ net.Conn }

func (resetConn) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
}

// most is how many writes an act makes at most.
const most = 100

// wireLost loses the answer to each write of an issue in turn: what counts as
// undone left nothing behind, and what may have been done is found by its
// label.
func (s *suite) wireLost(t *testing.T) {
	ambiguous := 0
	for n := int64(1); n < most; n++ {
		env := s.Env
		env.Dial = losing(n)
		label := s.label()
		want := provider.LabelAt(s.Driver, s.Env, label)
		k, err := s.Driver.Issue(s.ctx(t), env, provider.Request{Label: label})
		if err == nil {
			if err := s.Driver.Revoke(s.ctx(t), s.Env, k.VendorID); err != nil {
				t.Errorf("revoke: %v", err)
			}
			if len(k.Warnings) > 0 {
				continue // what was lost came after the key was made
			}
			if ambiguous == 0 {
				t.Error("no lost answer was ambiguous")
			}
			return
		}
		row, found := s.find(t, func(k provider.Listed) bool { return k.Label == want })
		switch got := provider.KindOf(err); {
		case got == provider.Ambiguous:
			ambiguous++
		case got != provider.Transient:
			t.Errorf("losing answer %d is %s: %v", n, got, err)
		case found:
			t.Errorf("losing answer %d counts as undone, and left %q: %v", n, want, err)
		}
		if found {
			if err := s.Driver.Revoke(s.ctx(t), s.Env, row.VendorID); err != nil {
				t.Errorf("revoking the stray: %v", err)
			}
		}
	}
	t.Error("an issue never succeeds")
}

// wireRevokeLost loses the answer to each write of a revocation in turn: it can
// be asked for again.
func (s *suite) wireRevokeLost(t *testing.T) {
	for n := int64(1); n < most; n++ {
		k := s.issue(t, provider.Request{})
		env := s.Env
		env.Dial = losing(n)
		err := s.Driver.Revoke(s.ctx(t), env, k.VendorID)
		if err == nil {
			return
		}
		if got := provider.KindOf(err); got != provider.Transient {
			t.Errorf("losing answer %d is %s: %v", n, got, err)
		}
		if err := s.Driver.Revoke(s.ctx(t), s.Env, k.VendorID); err != nil {
			t.Errorf("revoking again: %v", err)
		}
		s.becomes(t, k.Parts, evidence.Auth)
	}
	t.Error("a revocation never succeeds")
}

// wireToggleLost loses the answer to each write of a disable in turn: what
// enabling needs is not lost.
func (s *suite) wireToggleLost(t *testing.T, d provider.Disabler, k provider.Issued) {
	t.Helper()
	for n := int64(1); n < most; n++ {
		env := s.Env
		env.Dial = losing(n)
		saved, err := d.Disable(s.ctx(t), env, k.VendorID)
		ok := err == nil
		if !ok {
			if got := provider.KindOf(err); got != provider.Transient {
				t.Errorf("losing answer %d to disable is %s: %v", n, got, err)
			}
			again, err := d.Disable(s.ctx(t), s.Env, k.VendorID)
			if err != nil {
				t.Errorf("disabling after a lost answer: %v", err)
			}
			if again != "" {
				saved = again
			}
		}
		if err := d.Enable(s.ctx(t), s.Env, k.VendorID, saved); err != nil {
			t.Fatalf("enabling: %v", err)
		}
		s.becomes(t, k.Parts, evidence.OK)
		if ok {
			return
		}
	}
	t.Error("a disable never succeeds")
}

// wireFailures breaks connections before and after they are open.
func (s *suite) wireFailures(t *testing.T) {
	for name, c := range map[string]struct {
		dial   Dialer
		create []provider.Kind
	}{
		"refused connection": {failing(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}), []provider.Kind{provider.Transient}},
		"no such host":       {failing(&net.DNSError{Err: "no such host", Name: "x.invalid", IsNotFound: true}), []provider.Kind{provider.Transient}},
		"reset":              {resetting, []provider.Kind{provider.Transient, provider.Ambiguous}},
	} {
		env := s.Env
		env.Dial = c.dial
		for act, do := range s.acts(t, "nobody") {
			want := []provider.Kind{provider.Transient}
			if act == "issue" {
				want = c.create
			}
			err := do(env)
			var e *provider.Error
			if !errors.As(err, &e) {
				t.Errorf("%s, %s: %T is no *provider.Error: %v", name, act, err, err)
				continue
			}
			if e.Kind != want[0] && e.Kind != want[len(want)-1] {
				t.Errorf("%s, %s: %s, want %v: %v", name, act, e.Kind, want, err)
			}
		}
		if o, err := s.Driver.Probe(s.ctx(t), env, s.nonsense(env)); o != evidence.Other || err != nil {
			t.Errorf("%s probes %s, %v", name, o, err)
		}
	}
}

// nonsense are parts that were never a key.
func (s *suite) nonsense(env provider.Env) secret.Parts {
	p := secret.Parts{}
	for _, n := range s.Driver.Describe(env).Call.PartNames() {
		p[n] = secret.FromString("nonsense-that-was-never-a-key")
	}
	return p
}

// wireLeaks lets somebody else answer, with text that no error may show.
func (s *suite) wireLeaks(t *testing.T) {
	const text = "b0dy-t3xt-of-the-vendor"
	k := s.issue(t, provider.Request{})
	var said []string
	say := func(args ...any) { said = append(said, fmt.Sprintf("%v %+v %#v", args, args, args)) }
	say(k)
	for _, answer := range []string{text, text + "\r\n", "-ERR " + text + "\r\n", "-" + text + "\r\n", "+" + text + "\r\n", "E\x00\x00\x00\x20SFATAL\x00C28P01\x00M" + text + "\x00\x00"} {
		env := s.Env
		env.Dial = talking(answer)
		for _, do := range s.acts(t, k.VendorID) {
			err := do(env)
			say(err, errors.Unwrap(err))
		}
		o, err := s.Driver.Probe(s.ctx(t), env, k.Parts)
		say(o, err)
	}
	env := s.Env
	env.Manager = k.Parts // no manager
	for _, do := range s.acts(t, k.VendorID) {
		say(do(env))
	}
	all := strings.Join(said, "\n")
	if strings.Contains(all, text) {
		t.Error("text of the vendor's answers is shown")
	}
	for _, parts := range []secret.Parts{k.Parts, s.Env.Manager} {
		for name, v := range parts {
			if plain := string(v.Reveal()); plain != k.VendorID && name != "user" && strings.Contains(all, plain) {
				t.Errorf("the part %s is shown", name)
			}
		}
	}
}

// wireUnreachable tells a dead key from a vendor that cannot be asked.
func (s *suite) wireUnreachable(t *testing.T) {
	if o, err := s.Driver.Probe(s.ctx(t), s.Env, s.nonsense(s.Env)); o != evidence.Auth || err != nil {
		t.Errorf("nonsense probes %s, %v", o, err)
	}
	env := s.Env
	for _, answer := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "\x00\x00\x00\x00\x00\x00\x00\x00"} {
		env.Dial = talking(answer)
		if o, err := s.Driver.Probe(s.ctx(t), env, s.nonsense(env)); o != evidence.Other || err != nil {
			t.Errorf("%q probes %s, %v", answer, o, err)
		}
	}
}
