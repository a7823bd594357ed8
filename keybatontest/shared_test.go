package keybatontest_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
	"github.com/keybaton/keybaton/keybatontest"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// shared are two servers on one database, and a simulated vendor.
type shared struct {
	a, b   *keybatontest.Server
	vendor *vendortest.Vendor
	toks   map[string]secret.Value // of callers, by environment
}

// startShared starts two servers on the database at url, with credentials of
// billing-api in the given environments, each with a key.
func startShared(t *testing.T, url string, environments ...string) *shared {
	t.Helper()
	w := &shared{vendor: vendortest.New(vendortest.Config{}), toks: map[string]secret.Value{}}
	vs := httptest.NewServer(w.vendor)
	t.Cleanup(vs.Close)
	master := filepath.Join(t.TempDir(), "config", "master.key")
	server := func(name string) *keybatontest.Server {
		return keybatontest.Start(t, keybatontest.Config{Store: secret.FromString(url), Name: name, MasterKey: master, Lease: 10 * time.Second})
	}
	w.a, w.b = server("a"), server("b")
	creds := ""
	for _, e := range environments {
		creds += "  - {service: billing-api, environment: " + e + ", policy: quick}\n  - {service: billing-admin, environment: " + e + "}\n"
	}
	w.a.Apply(t, fmt.Sprintf(`version: 1
services:
  billing-api: {provider: simulated, params: {base_url: %q}, manager: billing-admin}
  billing-admin: {provider: manual, upstream: %q}
credentials:
%s`, vs.URL, vs.URL, creds)+quick)
	for _, e := range environments {
		w.b.Set(t, "billing-admin", e, secret.Parts{"key": secret.FromString(vendortest.DefaultManager)})
		w.a.Rotate(t, "billing-api", e)
	}
	for _, e := range environments {
		w.toks[e] = w.b.Consumer(t, "callers-"+e, "billing-api", e)
	}
	return w
}

// load sends requests through the gateways of servers.
func (w *shared) load(t *testing.T, environment string, servers ...*keybatontest.Server) *load {
	return startLoad(t, 4, 30, w.toks[environment], func(c, i int) (*http.Request, error) {
		return http.NewRequest(http.MethodGet, fmt.Sprintf("%s/billing-api/v1/items/%d-%d", servers[c%len(servers)].Gateway, c, i), nil)
	}, func(resp *http.Response, body string) error {
		if p := resp.Request.URL.Path[len("/billing-api"):]; !strings.Contains(body, p) {
			return fmt.Errorf("the answer is to another request than %s", p)
		}
		return nil
	})
}

// owners watches which engines claim work, until the returned function is called.
func owners(t *testing.T, url string) func() map[string]int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer conn.Close(context.Background())
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			rows, err := conn.Query(ctx, `SELECT owner FROM lease WHERE kind = 'credential' AND owner <> ''`)
			if err == nil {
				os, _ := pgx.CollectRows(rows, pgx.RowTo[string])
				for _, o := range os {
					seen[o]++
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() map[string]int { cancel(); wg.Wait(); return seen }
}

// TestTwoServersShareRotations: two servers, one database, steady traffic
// through both gateways, five rotations in a row of each of two credentials; no
// failed request, and both servers worked on them.
func TestTwoServersShareRotations(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	w := startShared(t, url, "prod", "dev")
	prod, dev := w.load(t, "prod", w.a, w.b), w.load(t, "dev", w.a, w.b)
	seen := owners(t, url)
	var wg sync.WaitGroup
	for i, env := range []string{"prod", "dev"} {
		s := []*keybatontest.Server{w.a, w.b}[i]
		wg.Go(func() {
			for n := range rotations / 2 {
				if r, err := rotated(t, s, env); err != nil || r.State != "done" || r.Proof != "revoked_proven" {
					t.Errorf("rotation %d of %s: got %s, %s: %s (%v)", n, env, r.State, r.Proof, r.Gate.Reason, err)
				}
			}
		})
	}
	wg.Wait()
	who := seen()
	t.Logf("claims that were seen: %v", who)
	if len(who) != 2 {
		t.Errorf("%d engines worked, want both", len(who))
	}
	prod.want(t)
	dev.want(t)
	if n := w.vendor.Active(); n != 2 {
		t.Errorf("the vendor has %d living keys, want 2: %+v", n, w.vendor.Keys())
	}
	for _, s := range []*keybatontest.Server{w.a, w.b} {
		if strings.Contains(s.Log.String(), "pg-") {
			t.Error("the log holds the password of the database")
		}
		v, err := s.Client.Verify(t.Context(), "")
		if err != nil || !v.OK {
			t.Errorf("the audit chain: %+v, %v", v, err)
		}
	}
}

// rotated rotates billing-api and waits until that is over; unlike
// [keybatontest.Server.Rotate] it may be called from any goroutine, and gets
// over a server that cannot answer for a while.
func rotated(t *testing.T, s *keybatontest.Server, environment string) (r api.Rotation, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if r, err = s.Client.Rotate(ctx, client.Credential{Service: "billing-api", Environment: environment}, api.Rotate{}); err != nil {
		return r, err
	}
	return over(ctx, s, r.ID)
}

func over(ctx context.Context, s *keybatontest.Server, id string) (r api.Rotation, err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		got, gerr := s.Client.Rotation(ctx, id)
		if gerr == nil {
			if r = got; r.Over {
				return r, nil
			}
		}
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("%w: %w", ctx.Err(), gerr)
		case <-tick.C:
		}
	}
}
