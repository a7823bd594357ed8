// Package keybatontest starts a whole Keybaton server inside a test: store,
// engine, API and gateway, on free loopback ports and in directories of its
// own, and stops it when the test ends.
//
//	s := keybatontest.Start(t, keybatontest.Config{})
//	s.Apply(t, "version: 1\n…")
//	s.Set(t, "billing-api", "prod", secret.Parts{"key": secret.FromString("…")})
//	// send requests to s.Gateway + "/billing-api/…" with s.Consumer(…) as the key
//
// Everything but the pace is as in production. It may change until version 1.
package keybatontest

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/secret"
)

// Config says how the server runs. The zero Config is a quick server.
type Config struct {
	Dir      string         // "" means a temporary one; a second server may continue in it after the first was closed
	Poll     time.Duration  // how often a waiting gate is looked at; default 50 ms
	Webhooks []secret.Value // URLs that alerts are posted to

	// For servers that share a store: the URL of a PostgreSQL database, a name
	// of its own for each (default that of the host), the file of their common
	// master key (default one in Dir), and how long the work on a credential is
	// claimed (default 30 s).
	Store     secret.Value
	Name      string
	MasterKey string
	Lease     time.Duration

	providers provider.Registry // over those of the program; for tests of its own
}

// Server is a running server.
type Server struct {
	API     string // base URL
	Gateway string // base URL
	Dir     string
	Client  *client.Client // with the admin token
	Log     *Buffer        // what it logged and the alerts that it printed
	app     *app.App
}

// Start starts a server. It fails t when that does not work.
func Start(t testing.TB, c Config) *Server {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.Poll == 0 {
		c.Poll = 50 * time.Millisecond
	}
	log := &Buffer{}
	a, err := app.Start(t.Context(), app.Settings{Data: filepath.Join(c.Dir, "data"), Config: filepath.Join(c.Dir, "config"), API: "127.0.0.1:0", Gateway: "127.0.0.1:0",
		Store: c.Store, Name: c.Name, MasterKey: c.MasterKey, Lease: c.Lease,
		Providers: c.providers, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), Alerts: log, Webhooks: c.Webhooks,
		Poll: c.Poll, Report: 100 * time.Millisecond, Probe: 100 * time.Millisecond, Detect: 100 * time.Millisecond})
	if err != nil {
		t.Fatalf("starting the server: %v", err)
	}
	s := &Server{API: a.API(), Gateway: a.Gateway(), Dir: c.Dir, Log: log, app: a}
	t.Cleanup(s.Close)
	tok, err := a.Token()
	if err != nil {
		t.Fatal(err)
	}
	if s.Client, err = client.New(client.Config{Address: s.API, Token: tok}); err != nil {
		t.Fatal(err)
	}
	return s
}

// Close stops the server; a second call does nothing.
func (s *Server) Close() { _ = s.app.Close() }

// Apply applies a keybaton.yaml.
func (s *Server) Apply(t testing.TB, yaml string) {
	t.Helper()
	if _, err := s.Client.Apply(t.Context(), api.Apply{Name: "keybaton.yaml", YAML: yaml}); err != nil {
		t.Fatalf("applying: %v", err)
	}
}

// Set sets a key.
func (s *Server) Set(t testing.TB, service, environment string, p secret.Parts) {
	t.Helper()
	if _, err := s.Client.Set(t.Context(), client.Credential{Service: service, Environment: environment}, p, "test"); err != nil {
		t.Fatalf("setting %s/%s: %v", service, environment, err)
	}
}

// Consumer makes a token for callers of a service and waits until every gateway
// knows it.
func (s *Server) Consumer(t testing.TB, name, service, environment string) secret.Value {
	t.Helper()
	tok, _, err := s.Client.CreateToken(t.Context(), client.TokenOptions{Name: name, Role: "consumer", Kind: "reader", Refresh: time.Second,
		Grants: []api.Grant{{Environment: environment, Services: []string{service}}}})
	if err != nil {
		t.Fatalf("making a token: %v", err)
	}
	st, err := s.Client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Until(t, "the gateways to know the token", func(ctx context.Context) bool {
		cs, err := s.Client.Consumers(ctx)
		if err != nil {
			return false
		}
		gateways := 0
		for _, c := range cs {
			if c.Kind != "gateway" {
				continue
			}
			gateways++
			if !slices.ContainsFunc(c.Boots, func(b api.Boot) bool { return b.Acked.Number >= st.Revision.Number }) {
				return false
			}
		}
		return gateways > 0
	})
	return tok
}

// Until waits for ok, for at most a minute.
func (s *Server) Until(t testing.TB, what string, ok func(ctx context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("waited a minute for %s\n%s", what, s.Log)
		case <-tick.C:
		}
	}
}

// Rotate rotates a credential and waits until that is over.
func (s *Server) Rotate(t testing.TB, service, environment string) api.Rotation {
	t.Helper()
	id := client.Credential{Service: service, Environment: environment}
	r, err := s.Client.Rotate(t.Context(), id, api.Rotate{})
	if err != nil {
		t.Fatalf("rotating: %v", err)
	}
	gate := ""
	s.Until(t, "rotation "+r.ID, func(ctx context.Context) bool {
		got, err := s.Client.Rotation(ctx, r.ID)
		if err == nil {
			r = got
			if g := r.State + ": " + r.Gate.Reason; g != gate {
				gate = g
				t.Logf("%s %s", service, gate)
			}
		}
		return err == nil && r.Over
	})
	return r
}

// Buffer is a concurrent buffer of text.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends p.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns what was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
