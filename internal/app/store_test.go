package app_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
	"github.com/keybaton/keybaton/secret"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestWhereTheStoreIs(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(p, []byte(text), mode), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const url = "postgres://keybaton:hunter2@db/keybaton"
	good := file("good", url+"\n", 0o600)
	for name, tc := range map[string]struct {
		from app.StoreSource
		want string // "" is SQLite
		says string // of the error
	}{
		"nothing":                 {},
		"sqlite by flag":          {from: app.StoreSource{Flag: "sqlite"}},
		"sqlite by environment":   {from: app.StoreSource{Env: secret.FromString("sqlite")}},
		"environment":             {from: app.StoreSource{Env: secret.FromString(url)}, want: url},
		"file":                    {from: app.StoreSource{File: good}, want: url},
		"group may read":          {from: app.StoreSource{File: file("group", url, 0o640)}, want: url},
		"file before":             {from: app.StoreSource{File: good, Env: secret.FromString("sqlite")}, want: url},
		"flag before":             {from: app.StoreSource{Flag: "sqlite", Env: secret.FromString(url)}},
		"flag without a password": {from: app.StoreSource{Flag: "postgres://keybaton@db/keybaton"}, want: "postgres://keybaton@db/keybaton"},
		"flag and file":           {from: app.StoreSource{Flag: "sqlite", File: good}, says: "--store or --store-file"},
		"flag with a password":    {from: app.StoreSource{Flag: url}, says: "PGPASSWORD or PGPASSFILE"},
		"password as parameter":   {from: app.StoreSource{Flag: "postgres://db/keybaton?password=hunter2"}, says: "PGPASSFILE"},
		"password of a TLS key":   {from: app.StoreSource{Flag: "postgres://db/keybaton?sslpassword=hunter2"}, says: "PGPASSFILE"},
		"password in keywords":    {from: app.StoreSource{Flag: "host=db password=hunter2"}, says: "PGPASSFILE"},
		"cannot be read":          {from: app.StoreSource{Flag: "postgres://keybaton:hunter2%zz@db/k"}, says: "PGPASSFILE"},
		"another database":        {from: app.StoreSource{Env: secret.FromString("mysql://keybaton:hunter2@db/keybaton")}, says: "postgres://"},
		"everybody may read":      {from: app.StoreSource{File: file("open", url, 0o644)}, says: "chmod 600"},
		"empty file":              {from: app.StoreSource{File: file("empty", "\n", 0o600)}, says: "is empty"},
		"no file":                 {from: app.StoreSource{File: filepath.Join(dir, "none")}, says: "--store-file FILE"},
		"directory":               {from: app.StoreSource{File: dir}, says: "--store-file FILE"},
	} {
		v, err := tc.from.Read()
		if got := string(v.Reveal()); got != tc.want {
			t.Errorf("%s: got another address than %q", name, tc.want)
		}
		if tc.says == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: got error %v, want one that says %q and no password", name, err, tc.says)
		}
	}
}

// log is what a server logs.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// settings are those of the server name with directories of its own in dir.
func settings(dir, store, name string, out io.Writer) app.Settings {
	return app.Settings{Store: secret.FromString(store), Name: name, Data: filepath.Join(dir, name, "data"), Config: filepath.Join(dir, name, "config"),
		MasterKey: filepath.Join(dir, "keys", "master.key"), API: "127.0.0.1:0", Gateway: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(out, nil)),
		Report: 100 * time.Millisecond, Probe: 100 * time.Millisecond, Detect: 50 * time.Millisecond}
}

func start(t *testing.T, set app.Settings) *app.App {
	t.Helper()
	a, err := app.Start(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// at returns a client of the server a with the admin token of token.
func at(t *testing.T, a, token *app.App) *client.Client {
	t.Helper()
	tok, err := token.Token()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Address: a.API(), Token: tok})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.NewTimer(time.Minute)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// Servers on one store keep out of each other's way: tokens and gateways are
// their own, a name is taken once, and the master key is the same.
func TestServersOnOneStore(t *testing.T) {
	dir, store, out := t.TempDir(), pgtest.Database(t), &log{}
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent(), goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
	a := start(t, settings(dir, store, "a", out))
	b := start(t, settings(dir, store, "b", out))
	for _, s := range []*app.App{a, b} {
		for _, token := range []*app.App{a, b} {
			until(t, "each admin token to be taken by each server", func() bool { _, err := at(t, s, token).Status(t.Context()); return err == nil })
		}
	}
	names := map[string]bool{}
	until(t, "both gateways to be heard of", func() bool {
		cs, err := at(t, a, a).Consumers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cs {
			if len(c.Boots) > 0 {
				names[c.Name] = true
			}
		}
		return len(names) == 2
	})
	if !names["gateway-a"] || !names["gateway-b"] {
		t.Errorf("the gateways are %v", names)
	}

	// One that restarts throws nobody out, and is itself again at once.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = start(t, settings(dir, store, "b", out))
	if _, err := at(t, a, a).Status(t.Context()); err != nil {
		t.Errorf("the first server's own token: %v", err)
	}
	if _, made := b.TokenFile(); made {
		t.Error("the second made another admin token")
	}
	tokens, err := at(t, a, a).Tokens(t.Context())
	if err != nil || len(tokens) != 4 {
		t.Errorf("tokens: %+v, %v", tokens, err)
	}

	var wg sync.WaitGroup
	wg.Go(func() { // while it lives, nobody else gets its name
		twin := settings(dir, store, "b", out)
		twin.Data, twin.Config = filepath.Join(dir, "twin", "data"), filepath.Join(dir, "twin", "config")
		_, err := app.Start(t.Context(), twin)
		if !errors.Is(err, key.ErrLocked) || !strings.Contains(err.Error(), `another server named "b"`) || !strings.Contains(err.Error(), "--name NAME") {
			t.Errorf("a second server of one name: got error %v", err)
		}
	})
	other := settings(dir, store, "c", out)
	other.MasterKey = filepath.Join(dir, "other", "master.key")
	if err := os.MkdirAll(filepath.Dir(other.MasterKey), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = app.Start(t.Context(), other)
	if !errors.Is(err, key.ErrNotFound) || !strings.Contains(err.Error(), other.MasterKey) {
		t.Errorf("a server without the master key: got error %v", err)
	}
	if err := os.WriteFile(other.MasterKey, []byte("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = app.Start(t.Context(), other)
	if !errors.Is(err, key.ErrConflict) || !strings.Contains(err.Error(), "the master key in "+other.MasterKey+" is not the one of this store") {
		t.Errorf("a server with another master key: got error %v", err)
	}
	for _, bad := range []string{"Not A Name", strings.Repeat("x", 49)} {
		if _, err := app.Start(t.Context(), settings(dir, store, bad, out)); !errors.Is(err, key.ErrInvalid) || !strings.Contains(err.Error(), "--name NAME") {
			t.Errorf("the name %q: got error %v", bad, err)
		}
	}
	wg.Wait()
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	if strings.Contains(out.String(), "pg-") {
		t.Error("the log holds the password of the database")
	}
}

// One server at a time looks for signals; when it ends, another goes on. Each
// alert is sent once.
func TestOneServerNotifies(t *testing.T) {
	var mu sync.Mutex
	var told []string
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		told = append(told, string(b))
	}))
	defer hook.Close()
	fired := func(service string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range told {
			if strings.Contains(s, `"service":"`+service+`"`) {
				n++
			}
		}
		return n
	}
	var dead sync.Map
	vendor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := dead.Load(r.Header.Get("Authorization")); ok {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer vendor.Close()

	dir, store, out := t.TempDir(), pgtest.Database(t), &log{}
	server := func(name string) *app.App {
		set := settings(dir, store, name, out)
		set.Webhooks = []secret.Value{secret.FromString(hook.URL)}
		return start(t, set)
	}
	db, err := pgx.Connect(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	owner := func() (o string) {
		if err := db.QueryRow(t.Context(), `SELECT owner FROM lease WHERE kind = 'notify'`).Scan(&o); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			t.Fatal(err)
		}
		return o
	}
	a := server("a")
	until(t, "the first server to look", func() bool { return owner() != "" })
	first := owner()
	b := server("b")
	c := at(t, b, b)
	yaml := "version: 1\nservices:\n"
	for _, s := range []string{"one", "two"} {
		yaml += "  " + s + ": {provider: manual, upstream: \"" + vendor.URL + "\", probe: {get: /me, valid: [200], invalid: [401]}}\n"
	}
	if _, err := c.Apply(t.Context(), api.Apply{Name: "keybaton.yaml", YAML: yaml + "credentials:\n  - {service: one, environment: prod}\n  - {service: two, environment: prod}\n"}); err != nil {
		t.Fatal(err)
	}
	refuse := func(service string) {
		t.Helper()
		if _, err := c.Set(t.Context(), client.Credential{Service: service, Environment: "prod"}, secret.Parts{"key": secret.FromString("key-" + service)}, "test"); err != nil {
			t.Fatal(err)
		}
		tok, _, err := c.CreateToken(t.Context(), client.TokenOptions{Name: "caller-" + service, Role: "consumer", Kind: "reader", Refresh: time.Second,
			Grants: []api.Grant{{Environment: "prod", Services: []string{service}}}})
		if err != nil {
			t.Fatal(err)
		}
		call := func() int {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.Gateway()+"/"+service+"/me", nil)
			if err != nil {
				t.Fatal(err)
			}
			client.Authorize(req, tok)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			return resp.StatusCode
		}
		until(t, "the gateway to serve", func() bool { return call() == http.StatusOK })
		dead.Store("Bearer key-"+service, true)
		until(t, "the alert", func() bool { call(); return fired(service) > 0 })
	}
	refuse("one")
	if owner() != first {
		t.Error("another server took over while the first lives")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the second server to look", func() bool { o := owner(); return o != "" && o != first })
	refuse("two")
	if fired("one") != 1 || fired("two") != 1 {
		t.Errorf("sent: %q", told)
	}
}

func TestMigrate(t *testing.T) {
	dir := t.TempDir()
	for name, store := range map[string]string{"sqlite": "", "postgres": pgtest.Database(t)} {
		set := settings(dir, store, name, io.Discard)
		m, err := app.Migrate(t.Context(), set, true)
		if err != nil || m.From != 0 || m.To < 1 {
			t.Errorf("%s: looking at nothing: %+v, %v", name, m, err)
		}
		if _, err := os.Stat(set.Data); err == nil {
			t.Errorf("%s: looking made the data directory", name)
		}
		m, err = app.Migrate(t.Context(), set, false)
		if err != nil || m.From != 0 || m.To < 1 {
			t.Errorf("%s: migrating: %+v, %v", name, m, err)
		}
		for _, check := range []bool{true, false} {
			if m, err = app.Migrate(t.Context(), set, check); err != nil || m.From != m.To {
				t.Errorf("%s: again: %+v, %v", name, m, err)
			}
		}
		a := start(t, set)
		m, err = app.Migrate(t.Context(), set, true)
		if store == "" && !errors.Is(err, key.ErrLocked) || store != "" && (err != nil || m.From != m.To) {
			t.Errorf("%s: while a server runs: %+v, %v", name, m, err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}
