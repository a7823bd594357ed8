package keybatontest_test

import (
	"context"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
	"github.com/keybaton/keybaton/keybatontest"
)

// interrupted rotates under load, takes the database away in the middle, and
// wants that to be noticed by nobody who calls.
func interrupted(t *testing.T, url string, down, up func()) {
	w := startShared(t, url, "prod")
	l := w.load(t, "prod", w.a, w.b)
	for round := range 2 {
		r, err := w.a.Client.Rotate(t.Context(), client.Credential{Service: "billing-api", Environment: "prod"}, api.Rotate{})
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			// In the middle: the new key is known to the gateways, the old one in use.
			w.b.Until(t, "the rotation to be under way", func(ctx context.Context) bool {
				got, err := w.b.Client.Rotation(ctx, r.ID)
				return err == nil && (got.State == "distributing" || got.State == "soaking")
			})
			down()
			before := l.total.Load()
			for _, s := range []*keybatontest.Server{w.a, w.b} {
				s.Until(t, "the API to say what is wrong", func(ctx context.Context) bool {
					_, err := s.Client.Rotations(ctx, client.Filter{}, false, 1)
					return err != nil && strings.Contains(err.Error(), "PostgreSQL database") && strings.Contains(err.Error(), "does not answer")
				})
			}
			w.a.Until(t, "requests to be served without a database", func(context.Context) bool { return l.total.Load() > before+100 })
			if n := l.failed.Load(); n > 0 {
				t.Errorf("%d requests failed while the database was down: %v", n, l.errs)
			}
			up()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		if r, err = over(ctx, w.b, r.ID); err != nil || r.State != "done" || r.Proof != "revoked_proven" {
			t.Fatalf("round %d: got %s, %s: %s (%v)\n%s\n%s", round, r.State, r.Proof, r.Gate.Reason, err, w.a.Log, w.b.Log)
		}
		cancel()
	}
	l.want(t)
	if n := w.vendor.Active(); n != 1 {
		t.Errorf("the vendor has %d living keys, want 1: %+v", n, w.vendor.Keys())
	}
	for _, s := range []*keybatontest.Server{w.a, w.b} {
		if !strings.Contains(s.Log.String(), "changes by other servers are seen at once again") {
			t.Error("the listener did not come back")
		}
		if strings.Contains(s.Log.String(), "pg-") {
			t.Error("the log holds the password of the database")
		}
		if v, err := s.Client.Verify(t.Context(), ""); err != nil || !v.OK {
			t.Errorf("the audit chain: %+v, %v", v, err)
		}
	}
}

// TestPostgreSQLCrashesInARotation: it is killed and starts again.
func TestPostgreSQLCrashesInARotation(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t, "fsync = on", "full_page_writes = on")
	interrupted(t, c.Database(t), func() { c.Down(syscall.SIGQUIT) }, func() {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPostgreSQLFailsOverInARotation: the primary is killed, and a standby that
// has all that was committed takes its place.
func TestPostgreSQLFailsOverInARotation(t *testing.T) {
	t.Parallel()
	c := pgtest.Start(t)
	u, err := url.Parse(c.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	standby := c.Standby(t)
	for _, s := range []string{`ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()`} {
		if err := c.Exec("postgres", s); err != nil {
			t.Fatal(err)
		}
	}
	u.Host += "," + standby.Host
	u.RawQuery += "&target_session_attrs=read-write"
	interrupted(t, u.String(), func() { c.Down(syscall.SIGQUIT) }, func() {
		if err := standby.Promote(); err != nil {
			t.Fatal(err)
		}
	})
}
