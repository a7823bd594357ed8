package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

func TestHandleFollowsChanges(t *testing.T) {
	l := newLine(t)
	l.push(credential("https://crm.example", nil, 1))
	var mu sync.Mutex
	var moved []client.Credential
	k := follow(t, l, client.FollowOptions{Moved: func(c client.Credential) { mu.Lock(); moved = append(moved, c); mu.Unlock() }})
	h := handle(t, k)
	v, done := h.Use()
	if v.Primary.Number != 1 || v.Fallback.Number != 0 || string(v.Primary.Parts["key"].Reveal()) != plain(1) {
		t.Errorf("got v%d with fallback v%d", v.Primary.Number, v.Fallback.Number)
	}
	l.push(credential("https://crm.example", nil, 2, 1))
	select {
	case <-v.Changed:
	case <-time.After(10 * time.Second):
		t.Fatal("the change was not told")
	}
	done()
	if v, done := h.Use(); v.Primary.Number != 2 || v.Fallback.Number != 1 {
		t.Errorf("got v%d with fallback v%d, want 2 and 1", v.Primary.Number, v.Fallback.Number)
	} else {
		done()
	}
	if got := k.Credentials(); len(got) != 1 || got[0] != crm {
		t.Errorf("credentials: %v", got)
	}
	if _, err := k.Handle(client.Credential{Service: "other", Environment: "prod"}); !client.IsCode(err, api.CodeNotFound) {
		t.Errorf("a credential that is not granted: %v", err)
	}
	l.push() // it is withdrawn
	until(t, "the withdrawal", func() bool { _, err := k.Handle(crm); return err != nil })
	if v, done := h.Use(); v.Primary.Number != 0 || v.Primary.Parts != nil {
		t.Error("a withdrawn credential has a value")
	} else {
		done()
	}
	if err := h.Do(t.Context(), func(context.Context, secret.Parts) error { return nil }); !client.IsCode(err, api.CodeNotFound) {
		t.Errorf("doing with a withdrawn credential: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(moved) != 3 {
		t.Errorf("%d changes were told, want 3", len(moved))
	}
}

// What is used when a frame comes that no longer has it is listed as pinned,
// by whichever way it is used, until it is let go of.
func TestUseIsPinnedUntilDone(t *testing.T) {
	l := newLine(t)
	l.push(credential("https://crm.example", nil, 1))
	k := follow(t, l, client.FollowOptions{})
	h := handle(t, k)
	_, done := h.Use()
	s, err := h.Open(t.Context(), func(context.Context, secret.Parts) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	began, end := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = h.Do(t.Context(), func(context.Context, secret.Parts) error { close(began); <-end; return nil })
	})
	<-began
	if !s.Current() || s.Version() != 1 {
		t.Errorf("the session has v%d, current: %t", s.Version(), s.Current())
	}
	r := l.push(credential("https://crm.example", nil, 2))
	until(t, "the acknowledgement", func() bool { return l.acked().Revision == r })
	if s.Current() {
		t.Error("the session is current after its key was replaced")
	}
	for what, release := range map[string]func(){"use": func() { done(); done() }, "session": func() { s.Close(); s.Close() }, "call": func() { close(end); wg.Wait() }} {
		if !pins(l.acked(), 1) {
			t.Errorf("v1 is not pinned before the %s has ended: %v", what, l.acked().Pinned)
		}
		release()
	}
	until(t, "the release", func() bool { return !pins(l.acked(), 1) })
	if a := l.acked(); a.Revision != r || len(a.Pinned) != 0 {
		t.Errorf("after the release: %+v", a)
	}
}

func TestDoFallsBackAndTellsBy(t *testing.T) {
	l := newLine(t)
	l.push(credential("https://crm.example", nil, 2, 1))
	k := follow(t, l, client.FollowOptions{})
	h := handle(t, k)
	wrong := errors.New("WRONGPASS")
	dead := plain(2)
	login := func(_ context.Context, p secret.Parts) error {
		if string(p["key"].Reveal()) == dead {
			return client.Refused(fmt.Errorf("logging in: %w", wrong))
		}
		return nil
	}
	for range 3 {
		if err := h.Do(t.Context(), login); err != nil {
			t.Fatalf("the fallback was not tried: %v", err)
		}
	}
	s, err := h.Open(t.Context(), login) // the primary is suspect by now: one attempt
	if err != nil || s.Version() != 1 {
		t.Fatalf("opened with %v, %v", s, err)
	}
	s.Close()
	other := errors.New("connection refused")
	if err := h.Do(t.Context(), func(context.Context, secret.Parts) error { return other }); !errors.Is(err, other) {
		t.Errorf("got %v", err)
	}
	if err := h.Do(t.Context(), func(context.Context, secret.Parts) error { return client.Refused(wrong) }); !errors.Is(err, wrong) {
		t.Errorf("got %v", err)
	}
	id := key.CredentialID{Service: "crm", Environment: "prod"}
	until(t, "the report", func() bool {
		b := l.seen()
		return len(b.Answers) == 1 && b.Answers[0].Requests == 6
	})
	b := l.seen()
	v1, v2 := b.Use(key.VersionID{Credential: id, Number: 1}), b.Use(key.VersionID{Credential: id, Number: 2})
	if v1.Live.OK != 4 || v1.Live.Other != 1 || v1.Live.Auth != 1 || v1.Better != 3 || v1.Fallbacks != 3 || v1.LastUse == 0 {
		t.Errorf("v1: %+v", v1)
	}
	if v2.Live.Auth != 4 || v2.Worse != 3 || v2.LastAuth == "" || strings.Contains(v2.LastAuth, "plaintext") {
		t.Errorf("v2: %+v", v2)
	}
	if b.Answers[0].Refused != 1 {
		t.Errorf("answers: %+v", b.Answers[0])
	}
}

func TestRestartsFromTheCacheWithTheServerDown(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	o := client.FollowOptions{Cache: filepath.Join(dir, "data", "keys"), CacheKey: filepath.Join(dir, "config", "keys.key")}
	l := newLine(t)
	r := l.push(credential("https://crm.example", nil, 1))
	k := follow(t, l, o)
	until(t, "the acknowledgement", func() bool { return l.acked().Revision == r })
	first := l.acked().Boot
	c, err := client.New(client.Config{Address: l.URL, Token: secret.FromString("kbt_token")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Follow(t.Context(), o); !client.IsCode(err, api.CodeLocked) {
		t.Errorf("a second process with the same cache: %v", err)
	}
	k.Close()
	b, err := os.ReadFile(o.Cache)
	if err != nil || strings.Contains(string(b), "plaintext") {
		t.Errorf("the cache is readable, or not there: %v", err)
	}
	address := l.URL
	l.stop()

	k, err = c.Follow(t.Context(), o) // nobody listens at that address
	if err != nil {
		t.Fatalf("with the server down: %v", err)
	}
	if v, done := handle(t, k).Use(); v.Primary.Number != 1 || k.State().Connected {
		t.Errorf("got v%d, connected: %t", v.Primary.Number, k.State().Connected)
	} else {
		done()
	}
	k.Close()

	// The next one says that both are gone.
	l = newLine(t)
	if l.URL == address {
		t.Fatal("the same port twice")
	}
	r = l.push(credential("https://crm.example", nil, 1))
	k = follow(t, l, o)
	until(t, "the acknowledgement", func() bool { return l.acked().Revision == r })
	l.mu.Lock()
	gone := map[string]bool{}
	for _, a := range l.acks {
		gone[a.Replaces] = true
	}
	l.mu.Unlock()
	if !gone[first] || len(gone) < 2 {
		t.Errorf("replaced: %v, want %s and the one between", gone, first)
	}
	k.Close()
	l.stop()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestFollowTellsWhyThereAreNoKeys(t *testing.T) {
	l := newLine(t)
	l.stop()
	c, err := client.New(client.Config{Address: l.URL, Token: secret.FromString("kbt_token")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.Follow(ctx, client.FollowOptions{}); !client.IsCode(err, client.CodeUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	c, err = client.New(client.Config{Address: l.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Follow(t.Context(), client.FollowOptions{}); !client.IsCode(err, api.CodeNoToken) {
		t.Errorf("without a token: %v", err)
	}
}
