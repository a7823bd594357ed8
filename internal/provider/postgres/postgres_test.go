package postgres_test

import (
	"context"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/postgres"
	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/secret"
)

// world is a server with a database, its owner, and a manager that is no
// superuser.
type world struct {
	env   provider.Env
	admin *pgconn.PgConn
}

func connect(t *testing.T, address string, user, password, database string) *pgconn.PgConn {
	t.Helper()
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: address, Path: "/" + database, RawQuery: "sslmode=disable"}
	var c *pgconn.PgConn
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(50 * time.Millisecond); ; <-tick.C {
		var err error
		if c, err = pgconn.Connect(t.Context(), u.String()); err == nil {
			break
		}
		if time.Now().After(deadline) || !strings.Contains(err.Error(), "57P03") { // starting up
			t.Fatal("logging in does not work")
		}
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func exec(t *testing.T, c *pgconn.PgConn, sql string) error {
	t.Helper()
	_, err := c.Exec(t.Context(), sql).ReadAll()
	return err
}

func start(t *testing.T) *world {
	address, user, password := providertest.Postgres(t)
	w := &world{admin: connect(t, address, user, password, "postgres"),
		env: provider.Env{Params: map[string]string{"address": address, "owner": "app owner", "tls": "disable", "database": "shop"},
			Manager: secret.Parts{"user": secret.FromString("manager"), "password": secret.FromString("manager-password-of-the-test")}}}
	for _, sql := range []string{`CREATE ROLE "app owner" NOLOGIN`, `CREATE DATABASE shop OWNER "app owner"`,
		`CREATE ROLE manager LOGIN CREATEROLE PASSWORD 'manager-password-of-the-test'`, `GRANT "app owner" TO manager WITH ADMIN OPTION`, `GRANT pg_signal_backend, pg_read_all_stats TO manager`} {
		if err := exec(t, w.admin, sql); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) issue(t *testing.T, label string) provider.Issued {
	t.Helper()
	k, err := postgres.New().Issue(t.Context(), w.env, provider.Request{Label: label})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// login opens a session with a key.
func (w *world) login(t *testing.T, k provider.Issued) *pgconn.PgConn {
	t.Helper()
	return connect(t, w.env.Params["address"], string(k.Parts["user"].Reveal()), string(k.Parts["password"].Reveal()), "shop")
}

func TestConformance(t *testing.T) {
	w := start(t)
	providertest.Run(t, providertest.Harness{Driver: postgres.New(), Env: w.env})
}

// What one key makes, the next can change: both act as the owner.
func TestKeysActAsTheOwner(t *testing.T) {
	w := start(t)
	a, b := w.issue(t, `odd "name'; --`), w.issue(t, strings.Repeat("long-", 20))
	if len(b.VendorID) > 63 {
		t.Errorf("the role %q is %d bytes long", b.VendorID, len(b.VendorID))
	}
	if err := exec(t, w.login(t, a), "CREATE TABLE things (n int); INSERT INTO things VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	if err := exec(t, w.login(t, b), "ALTER TABLE things ADD COLUMN m int; UPDATE things SET m = 2"); err != nil {
		t.Errorf("the next key cannot change what the first made: %v", err)
	}
}

// Sessions outlive their role's right to log in; it is dropped when they end,
// or with them where that is agreed to.
func TestRevokeWaitsForSessions(t *testing.T) {
	w := start(t)
	d := postgres.New()
	k := w.issue(t, "busy")
	c := w.login(t, k)
	if _, err := d.(provider.Disabler).Disable(t.Context(), w.env, k.VendorID); err != nil {
		t.Fatal(err)
	}
	if o, err := d.Probe(t.Context(), w.env, k.Parts); o != evidence.Auth || err != nil {
		t.Errorf("disabled: %s, %v", o, err)
	}
	if err := exec(t, c, "SELECT 1"); err != nil {
		t.Errorf("the session has ended: %v", err)
	}
	if s, err := d.(provider.Sessioner).Sessions(t.Context(), w.env, k.VendorID, time.Now()); err != nil || s.Open != 1 || !s.Exact || s.Oldest <= 0 {
		t.Errorf("sessions: %+v, %v", s, err)
	}
	err := d.Revoke(t.Context(), w.env, k.VendorID)
	if provider.KindOf(err) != provider.Transient || !strings.Contains(err.Error(), "1 open sessions") {
		t.Errorf("revoking a role in use: %v", err)
	}
	_ = c.Close(t.Context())
	deadline := time.Now().Add(10 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		if err = d.Revoke(t.Context(), w.env, k.VendorID); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the session has ended: %v", err)
		}
	}

	k = w.issue(t, "cut")
	c = w.login(t, k)
	w.env.Params["terminate"] = "yes"
	if err := d.Revoke(t.Context(), w.env, k.VendorID); err != nil {
		t.Errorf("revoking with consent: %v", err)
	}
	if err := exec(t, c, "SELECT 1"); err == nil {
		t.Error("the session goes on")
	}
}

func TestWhatCannotBeRevokedSaysWhy(t *testing.T) {
	w := start(t)
	d := postgres.New()
	k := w.issue(t, "hoarder")
	c := w.login(t, k)
	if err := exec(t, c, `RESET role; SET role NONE; CREATE TABLE own (n int)`); err == nil {
		_ = c.Close(t.Context())
	} else if err := exec(t, w.admin, `CREATE TABLE own (n int); ALTER TABLE own OWNER TO hoarder`); err != nil {
		t.Fatal(err)
	}
	_ = c.Close(t.Context())
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	err := d.Revoke(t.Context(), w.env, k.VendorID)
	for provider.KindOf(err) == provider.Transient && time.Now().Before(deadline) {
		<-tick.C
		err = d.Revoke(t.Context(), w.env, k.VendorID)
	}
	if provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), "REASSIGN OWNED") {
		t.Errorf("dropping a role that owns a table: %v", err)
	}
	if err := d.Revoke(t.Context(), w.env, "app owner"); provider.KindOf(err) != provider.Denied {
		t.Errorf("dropping the owner: %v", err)
	}
	w.env.Params["owner"] = "nobody"
	if _, err := d.Issue(t.Context(), w.env, provider.Request{Label: "x"}); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), "no role") {
		t.Errorf("an owner that is not there: %v", err)
	}
}

// A server that does not let a key in for another reason says nothing of it.
func TestProbeTellsRightsFromKeys(t *testing.T) {
	w := start(t)
	d := postgres.New()
	k := w.issue(t, "guest")
	if err := exec(t, w.admin, `CREATE DATABASE closed; REVOKE CONNECT ON DATABASE closed FROM PUBLIC`); err == nil {
		t.Fatal("CREATE DATABASE ran in a transaction")
	}
	for _, sql := range []string{`CREATE DATABASE closed`, `REVOKE CONNECT ON DATABASE closed FROM PUBLIC`} {
		if err := exec(t, w.admin, sql); err != nil {
			t.Fatal(err)
		}
	}
	for database, want := range map[string]evidence.Outcome{"shop": evidence.OK, "closed": evidence.Perm, "none": evidence.Other} {
		w.env.Params["database"] = database
		if o, err := d.Probe(t.Context(), w.env, k.Parts); o != want || err != nil {
			t.Errorf("at %s: %s, %v, want %s", database, o, err, want)
		}
	}
	host, _, _ := net.SplitHostPort(w.env.Params["address"])
	w.env.Params["address"] = host + ":99999"
	if _, err := d.Probe(t.Context(), w.env, k.Parts); provider.KindOf(err) != provider.Denied {
		t.Errorf("a port that is none: %v", err)
	}
}
