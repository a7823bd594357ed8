// Package providertest holds drivers to the contract of package provider, and
// starts a real vendor to do so: [Run] is the suite, [RabbitMQ] a broker with
// the management API on loopback.
//
// The suite talks to a live vendor through transports, or connections, that
// lose, refuse and forge answers, so that the vendor itself needs no switches. It leaves no key
// behind unless a test fails. It must be given a vendor of its own: keys that
// others make meanwhile may disturb it.
package providertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/secret"
)

// Harness is a driver with a vendor that it works at.
type Harness struct {
	Driver provider.Driver
	Env    provider.Env // Manager can do all that the driver does
	// Wait bounds how long the vendor may take until a new key works or a
	// revoked one is dead; default 10 s.
	Wait time.Duration
	// SameRights reports whether two keys have the same rights; nil: not looked at.
	SameRights func(t *testing.T, a, b string) bool
	// Unenforced says that this vendor lists a disabled key as such, and accepts
	// it all the same.
	Unenforced bool
}

// Run holds h to the contract of package provider.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if h.Wait == 0 {
		h.Wait = 10 * time.Second
	}
	s := &suite{Harness: h}
	tests := map[string]func(*testing.T){
		"says what it can do":               s.describes,
		"leads a key through its life":      s.life,
		"copies rights":                     s.rights,
		"does not lose a lost answer":       s.lostAnswer,
		"classifies failures":               s.failures,
		"is told off with a wrong manager":  s.wrongManager,
		"follows no redirect":               s.redirect,
		"shows no secret":                   s.leaks,
		"previews without a call":           s.previews,
		"gives up with its context":         s.cancelled,
		"tells a dead key from a dead host": s.unreachable,
	}
	if s.wire() {
		delete(tests, "follows no redirect")
		tests["does not lose a lost answer"] = s.wireLost
		tests["can be asked twice to revoke"] = s.wireRevokeLost
		tests["classifies failures"] = s.wireFailures
		tests["shows no secret"] = s.wireLeaks
		tests["tells a dead key from a dead host"] = s.wireUnreachable
	}
	for name, test := range tests {
		t.Run(name, test)
	}
}

// wire reports whether the vendor does not speak HTTP.
func (s *suite) wire() bool { return s.Driver.Describe(s.Env).Connection }

type suite struct {
	Harness
	n atomic.Int64
}

// label returns a label that was not used before.
func (s *suite) label() string {
	return fmt.Sprintf("keybaton-suite-%d-%d", time.Now().UnixNano(), s.n.Add(1))
}

func (s *suite) ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// issue makes a key that is revoked when t ends.
func (s *suite) issue(t *testing.T, r provider.Request) provider.Issued {
	t.Helper()
	if r.Label == "" {
		r.Label = s.label()
	}
	k, err := s.Driver.Issue(s.ctx(t), s.Env, r)
	if err != nil {
		t.Fatalf("issue: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Driver.Revoke(context.Background(), s.Env, k.VendorID); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
	})
	if k.VendorID == "" {
		t.Error("no vendor id")
	}
	for _, name := range s.Driver.Describe(s.Env).Call.PartNames() {
		if k.Parts[name].IsZero() {
			t.Errorf("the part %s is missing", name)
		}
	}
	return k
}

// becomes waits until the probe of p answers want.
func (s *suite) becomes(t *testing.T, p secret.Parts, want evidence.Outcome) {
	t.Helper()
	deadline := time.Now().Add(s.Wait)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		got, err := s.Driver.Probe(s.ctx(t), s.Env, p)
		if err != nil {
			t.Fatalf("probe: %v", err)
		}
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the probe answers %s, not %s", got, want)
		}
		<-tick.C
	}
}

// find returns the key id as the vendor lists it.
func (s *suite) find(t *testing.T, match func(provider.Listed) bool) (provider.Listed, bool) {
	t.Helper()
	l, ok := s.Driver.(provider.Lister)
	if !ok {
		return provider.Listed{}, false
	}
	all, err := l.List(s.ctx(t), s.Env)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	i := slices.IndexFunc(all, match)
	if i < 0 {
		return provider.Listed{}, false
	}
	return all[i], true
}

func byID(id string) func(provider.Listed) bool {
	return func(k provider.Listed) bool { return k.VendorID == id }
}

func (s *suite) describes(t *testing.T) {
	i := s.Driver.Describe(s.Env)
	if i.ID == "" || i.Vendor == "" {
		t.Errorf("id %q, vendor %q", i.ID, i.Vendor)
	}
	_, list := s.Driver.(provider.Lister)
	_, disable := s.Driver.(provider.Disabler)
	if i.Abilities.List && !list || disable != i.Abilities.Disable {
		t.Errorf("the abilities say list %t, disable %t; the type says %t, %t", i.Abilities.List, i.Abilities.Disable, list, disable)
	}
	if !list && i.ListsAll {
		t.Error("a driver without a list lists all")
	}
	if i.Abilities.Probe && (i.Abilities.DeadOK < 1 || i.Abilities.Spacing <= 0) {
		t.Errorf("proof by %d probes, %s apart", i.Abilities.DeadOK, i.Abilities.Spacing)
	}
}

func (s *suite) life(t *testing.T) {
	label := s.label()
	k := s.issue(t, provider.Request{Label: label})
	want := provider.LabelAt(s.Driver, s.Env, label)
	s.becomes(t, k.Parts, evidence.OK)
	if id, ok := s.Driver.(provider.Identifier); ok {
		if got, ok := id.Identify(s.Env, k.Parts); !ok || got != k.VendorID {
			t.Errorf("identified as %q, issued as %q", got, k.VendorID)
		}
	}
	if _, lists := s.Driver.(provider.Lister); lists {
		if !s.labels() {
			want = ""
		}
		if row, ok := s.find(t, byID(k.VendorID)); !ok || row.Label != want || row.Disabled {
			t.Errorf("listed as %+v (found: %t), want label %q", row, ok, want)
		}
	}
	if d, ok := s.Driver.(provider.Disabler); ok {
		s.toggles(t, d, k)
	}
	if err := s.Driver.Revoke(s.ctx(t), s.Env, k.VendorID); err != nil {
		t.Fatalf("revoke: %v", err)
	}
	s.becomes(t, k.Parts, evidence.Auth)
	if row, ok := s.find(t, byID(k.VendorID)); ok {
		t.Errorf("revoked and still listed: %+v", row)
	}
	if err := s.Driver.Revoke(s.ctx(t), s.Env, k.VendorID); err != nil {
		t.Errorf("revoking a key that is gone: %v", err)
	}
	if d, ok := s.Driver.(provider.Disabler); ok {
		if err := d.Enable(s.ctx(t), s.Env, k.VendorID, ""); err == nil {
			t.Error("a key that is gone was enabled")
		}
	}
}

func (s *suite) toggles(t *testing.T, d provider.Disabler, k provider.Issued) {
	t.Helper()
	saved, err := d.Disable(s.ctx(t), s.Env, k.VendorID)
	if err != nil {
		t.Fatalf("disable: %v", err)
	}
	if s.Unenforced {
		s.becomes(t, k.Parts, evidence.OK)
	} else {
		s.becomes(t, k.Parts, evidence.Auth)
	}
	if row, ok := s.find(t, byID(k.VendorID)); ok && !row.Disabled {
		t.Errorf("disabled, and listed as %+v", row)
	}
	again, err := d.Disable(s.ctx(t), s.Env, k.VendorID)
	if err != nil {
		t.Errorf("disabling twice: %v", err)
	}
	if again != "" {
		saved = again // as the contract says: only a non-empty one is kept
	}
	if err := d.Enable(s.ctx(t), s.Env, k.VendorID, saved); err != nil {
		t.Fatalf("enable: %v", err)
	}
	s.becomes(t, k.Parts, evidence.OK)
	if err := d.Enable(s.ctx(t), s.Env, k.VendorID, saved); err != nil {
		t.Errorf("enabling twice: %v", err)
	}
	s.becomes(t, k.Parts, evidence.OK)

	if s.wire() {
		s.wireToggleLost(t, d, k)
		return
	}
	// An answer that is lost while disabling must not lose what enabling needs.
	lost := s.Env
	lost.Transport = &Lossy{Base: s.Env.Transport, Lose: func(q *http.Request) bool { return q.Method != http.MethodGet }}
	saved, err = d.Disable(s.ctx(t), lost, k.VendorID)
	if got := provider.KindOf(err); err == nil || got != provider.Transient {
		t.Errorf("a lost answer to disable is %v: %v", got, err)
	}
	if again, err := d.Disable(s.ctx(t), s.Env, k.VendorID); err != nil {
		t.Errorf("disabling after a lost answer: %v", err)
	} else if again != "" {
		saved = again
	}
	if err := d.Enable(s.ctx(t), s.Env, k.VendorID, saved); err != nil {
		t.Fatalf("enabling after a lost answer: %v", err)
	}
	s.becomes(t, k.Parts, evidence.OK)
}

func (s *suite) rights(t *testing.T) {
	a := s.issue(t, provider.Request{})
	old := key.Version{ID: key.VersionID{Credential: key.CredentialID{Service: "a", Environment: "b"}, Number: 1}, VendorID: a.VendorID}
	b := s.issue(t, provider.Request{Old: old, Parts: a.Parts})
	if a.VendorID == b.VendorID || a.Parts.Equal(b.Parts) {
		t.Error("two keys are one")
	}
	s.becomes(t, a.Parts, evidence.OK)
	s.becomes(t, b.Parts, evidence.OK)
	if s.SameRights != nil && !s.SameRights(t, a.VendorID, b.VendorID) {
		t.Error("the new key has other rights than the old one")
	}
}

func (s *suite) lostAnswer(t *testing.T) {
	for n := range 4 { // the answer to the nth call that changes something
		env, lossy := s.Env, &Lossy{Base: s.Env.Transport}
		var changes atomic.Int64
		lossy.Lose = func(q *http.Request) bool {
			return q.Method != http.MethodGet && changes.Add(1) == int64(n+1)
		}
		env.Transport = lossy
		label := s.label()
		k, err := s.Driver.Issue(s.ctx(t), env, provider.Request{Label: label})
		if err == nil {
			if n == 0 {
				t.Error("nothing was lost")
			}
			if err := s.Driver.Revoke(s.ctx(t), s.Env, k.VendorID); err != nil {
				t.Errorf("revoke: %v", err)
			}
			return // fewer calls than that
		}
		if got := provider.KindOf(err); got != provider.Ambiguous {
			t.Errorf("losing answer %d is %s: %v", n+1, got, err)
		}
		if !s.labels() {
			s.revokeUnlabelled(t)
			return
		}
		want := provider.LabelAt(s.Driver, s.Env, label)
		row, ok := s.find(t, func(k provider.Listed) bool { return k.Label == want })
		if !ok {
			t.Fatalf("after losing answer %d the stray %q is not found by its label", n+1, want)
		}
		if err := s.Driver.Revoke(s.ctx(t), s.Env, row.VendorID); err != nil {
			t.Errorf("revoking the stray: %v", err)
		}
	}
}

// labels reports whether keys are found by their labels.
func (s *suite) labels() bool { return s.Driver.Describe(s.Env).Abilities.List }

// revokeUnlabelled does what a person does after a lost answer where keys have
// no labels: the newest is the stray.
func (s *suite) revokeUnlabelled(t *testing.T) {
	t.Helper()
	var stray provider.Listed
	_, _ = s.find(t, func(k provider.Listed) bool {
		if !k.Created.Before(stray.Created) {
			stray = k
		}
		return false
	})
	if stray.VendorID != "" {
		if err := s.Driver.Revoke(s.ctx(t), s.Env, stray.VendorID); err != nil {
			t.Errorf("revoking the stray: %v", err)
		}
	}
}

// acts are the calls of a driver, by name.
func (s *suite) acts(t *testing.T, id string) map[string]func(provider.Env) error {
	t.Helper()
	out := map[string]func(provider.Env) error{
		"issue": func(e provider.Env) error {
			_, err := s.Driver.Issue(s.ctx(t), e, provider.Request{Label: s.label()})
			return err
		},
		"revoke": func(e provider.Env) error { return s.Driver.Revoke(s.ctx(t), e, id) },
	}
	if l, ok := s.Driver.(provider.Lister); ok {
		out["list"] = func(e provider.Env) error { _, err := l.List(s.ctx(t), e); return err }
	}
	if d, ok := s.Driver.(provider.Disabler); ok {
		out["disable"] = func(e provider.Env) error { _, err := d.Disable(s.ctx(t), e, id); return err }
	}
	return out
}

func (s *suite) failures(t *testing.T) {
	for _, c := range []struct {
		name          string
		rt            http.RoundTripper
		create, other provider.Kind
		after         time.Duration
	}{
		{"refused connection", Broken{&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}}, provider.Transient, provider.Transient, 0},
		{"no such host", Broken{&net.DNSError{Err: "no such host", Name: "x.invalid", IsNotFound: true}}, provider.Transient, provider.Transient, 0},
		{"reset", Broken{&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}}, provider.Ambiguous, provider.Transient, 0},
		{"closed", Broken{io.ErrUnexpectedEOF}, provider.Ambiguous, provider.Transient, 0},
		{"429", Forged{Status: 429, Header: http.Header{"Retry-After": {"7"}}}, provider.Transient, provider.Transient, 7 * time.Second},
		{"500", Forged{Status: 500}, provider.Ambiguous, provider.Transient, 0},
		{"503", Forged{Status: 503, Header: http.Header{"Retry-After": {"3"}}}, provider.Ambiguous, provider.Transient, 3 * time.Second},
		{"401", Forged{Status: 401}, provider.Denied, provider.Denied, 0},
		{"403", Forged{Status: 403}, provider.Denied, provider.Denied, 0},
		{"400", Forged{Status: 400}, provider.Denied, provider.Denied, 0},
		{"302", Forged{Status: 302, Header: http.Header{"Location": {"https://elsewhere.example"}}}, provider.Denied, provider.Denied, 0},
	} {
		env := s.Env
		env.Transport = c.rt
		for act, do := range s.acts(t, "nobody") {
			err := do(env)
			want := c.other
			if act == "issue" {
				want = c.create
			}
			var e *provider.Error
			if !errors.As(err, &e) {
				t.Errorf("%s, %s: %T is no *provider.Error: %v", c.name, act, err, err)
				continue
			}
			if e.Kind != want || e.After != c.after {
				t.Errorf("%s, %s: %s after %s, want %s after %s: %v", c.name, act, e.Kind, e.After, want, c.after, err)
			}
		}
	}
}

func (s *suite) wrongManager(t *testing.T) {
	if s.Driver.Describe(s.Env).Manager == "" {
		return // nobody to be wrong
	}
	env := s.Env
	env.Manager = secret.Parts{}
	for n := range s.Env.Manager {
		env.Manager[n] = secret.FromString("wrong")
	}
	for act, do := range s.acts(t, "nobody") {
		if err := do(env); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), "manager key") {
			t.Errorf("%s: %s, %v: want denied, naming the manager key", act, provider.KindOf(err), err)
		}
	}
	env.Manager = nil
	for act, do := range s.acts(t, "nobody") {
		if err := do(env); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), "manager") {
			t.Errorf("%s without a manager key: %s, %v", act, provider.KindOf(err), err)
		}
	}
}

func (s *suite) redirect(t *testing.T) {
	for act, do := range s.acts(t, "nobody") {
		seen := &Seen{Base: Forged{Status: 307, Header: http.Header{"Location": {"https://elsewhere.example/"}}}}
		env := s.Env
		env.Transport = seen
		if err := do(env); err == nil {
			t.Errorf("%s: a redirect counts as done", act)
		}
		if n := len(seen.Requests()); n != 1 {
			t.Errorf("%s: %d requests: %v", act, n, seen.Requests())
		}
	}
}

func (s *suite) leaks(t *testing.T) {
	const body = "b0dy-t3xt-of-the-vendor"
	k := s.issue(t, provider.Request{})
	var said []string
	say := func(args ...any) { said = append(said, fmt.Sprintf("%v %+v %#v", args, args, args)) }
	say(k)
	if l, ok := s.Driver.(provider.Lister); ok {
		all, err := l.List(s.ctx(t), s.Env)
		say(all, err)
	}
	if d, ok := s.Driver.(provider.Disabler); ok {
		saved, err := d.Disable(s.ctx(t), s.Env, k.VendorID)
		say(saved, err)
	}
	old := key.Version{ID: key.VersionID{Number: 1}, VendorID: k.VendorID}
	for _, rt := range []http.RoundTripper{
		Forged{Status: 400, Body: body}, Forged{Status: 500, Body: body}, Forged{Status: 200, Body: `{"x":"` + body + `"}`},
		Forged{Status: 201, Body: body}, Broken{errors.New("malformed answer " + body)}, Broken{io.EOF},
	} {
		env := s.Env
		env.Transport = rt
		for _, do := range s.acts(t, k.VendorID) {
			say(do(env))
		}
		_, err := s.Driver.Issue(s.ctx(t), env, provider.Request{Label: "x", Old: old, Parts: k.Parts})
		say(err)
		o, err := s.Driver.Probe(s.ctx(t), env, k.Parts)
		say(o, err)
	}
	if p, ok := s.Driver.(provider.Previewer); ok {
		for _, act := range []string{"issue", "probe", "list", "disable", "enable", "revoke"} {
			say(p.Preview(s.Env, act))
		}
	}
	say(s.Driver.Describe(s.Env))
	all := strings.Join(said, "\n")
	if strings.Contains(all, body) {
		t.Error("text of the vendor's bodies is shown")
	}
	id := k.VendorID
	for _, parts := range []secret.Parts{k.Parts, s.Env.Manager} {
		for name, v := range parts {
			if plain := string(v.Reveal()); plain != id && len(plain) >= 8 && strings.Contains(all, plain) {
				t.Errorf("the part %s is shown", name)
			}
		}
	}
}

func (s *suite) previews(t *testing.T) {
	p, ok := s.Driver.(provider.Previewer)
	if !ok {
		return
	}
	seen := &Seen{Base: Forged{Status: 500}}
	env := s.Env
	env.Transport = seen
	i := s.Driver.Describe(env)
	_, lists := s.Driver.(provider.Lister)
	for act, can := range map[string]bool{"issue": i.Abilities.Issue, "probe": i.Abilities.Probe, "list": lists,
		"disable": i.Abilities.Disable, "enable": i.Abilities.Disable, "revoke": i.Abilities.Revoke, "nonsense": false} {
		got := p.Preview(env, act)
		if (len(got) > 0) != can {
			t.Errorf("%s: can it: %t, preview: %v", act, can, got)
		}
		for _, line := range got {
			if m, u, ok := strings.Cut(line, " "); !ok || m != strings.ToUpper(m) || !strings.HasPrefix(u, "http") {
				t.Errorf("%s: %q is not METHOD URL", act, line)
			}
		}
	}
	if n := len(seen.Requests()); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

func (s *suite) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Driver.Issue(ctx, s.Env, provider.Request{Label: s.label()}); !errors.Is(err, context.Canceled) {
		t.Errorf("issue: %v", err)
	}
	if err := s.Driver.Revoke(ctx, s.Env, "nobody"); !errors.Is(err, context.Canceled) {
		t.Errorf("revoke: %v", err)
	}
	p := secret.Parts{}
	for _, n := range s.Driver.Describe(s.Env).Call.PartNames() {
		p[n] = secret.FromString("nonsense")
	}
	if _, err := s.Driver.Probe(ctx, s.Env, p); !errors.Is(err, context.Canceled) {
		t.Errorf("probe: %v", err)
	}
}

func (s *suite) unreachable(t *testing.T) {
	p := secret.Parts{}
	for _, n := range s.Driver.Describe(s.Env).Call.PartNames() {
		p[n] = secret.FromString("nonsense-that-was-never-a-key")
	}
	if o, err := s.Driver.Probe(s.ctx(t), s.Env, p); o != evidence.Auth || err != nil {
		t.Errorf("nonsense probes %s, %v", o, err)
	}
	env := s.Env
	for name, rt := range map[string]http.RoundTripper{
		"dead host": Broken{&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}},
		"500":       Forged{Status: 500},
		"200 html":  Forged{Status: 502, Body: "<html>"},
	} {
		env.Transport = rt
		if o, err := s.Driver.Probe(s.ctx(t), env, p); o != evidence.Other || err != nil {
			t.Errorf("%s probes %s, %v", name, o, err)
		}
	}
}
