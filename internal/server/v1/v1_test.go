package v1_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/server"
	"github.com/keybaton/keybaton/internal/server/v1"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/secret"
)

// plaintext is the key of every test: no answer, header or log line may hold
// it, nor any eight characters of its middle.
const plaintext = "sk_live_PLAINTEXTmustnotleak0123456789"

var (
	billingDev  = key.CredentialID{Service: "billing", Environment: "dev"}
	billingProd = key.CredentialID{Service: "billing", Environment: "prod"}
	mailDev     = key.CredentialID{Service: "mail", Environment: "dev"}
)

// fakeEngine records what it was asked, and answers err or what was prepared.
type fakeEngine struct {
	mu        sync.Mutex
	calls     []string
	by        access.Principal
	parts     secret.Parts
	names     []string
	values    []secret.Value
	configure engine.Configuration
	checked   engine.Configuration // on dry runs
	options   engine.RotateOptions
	rotation  rotation.Rotation
	found     []engine.Found
	err       error
	panics    bool
}

func (f *fakeEngine) note(by access.Principal, call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.by = append(f.calls, call), by
	if f.panics {
		panic(plaintext)
	}
	return f.err
}

func (f *fakeEngine) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeEngine) Configure(_ context.Context, by access.Principal, c engine.Configuration) error {
	if c.DryRun {
		f.checked = c
		return nil
	}
	f.configure = c
	return f.note(by, "configure")
}

func (f *fakeEngine) Set(_ context.Context, by access.Principal, id key.CredentialID, p secret.Parts, o key.Origin, why string) (engine.SetResult, error) {
	f.parts = p
	return engine.SetResult{Version: 1, Installed: true, Outcome: "ok"}, f.note(by, "set "+id.String()+" "+string(o)+" "+why)
}

func (f *fakeEngine) Import(_ context.Context, by access.Principal, env string, names []string, values []secret.Value, dry bool) ([]engine.Found, error) {
	f.names, f.values = names, values
	call := "import " + env
	if dry {
		call += " dry"
	}
	return f.found, f.note(by, call)
}

func (f *fakeEngine) Rotate(_ context.Context, by access.Principal, id key.CredentialID, o engine.RotateOptions) (rotation.Rotation, error) {
	f.options = o
	return f.rotation, f.note(by, "rotate "+id.String())
}

func (f *fakeEngine) Plan(_ context.Context, id key.CredentialID, o engine.RotateOptions) (engine.Plan, error) {
	f.options = o
	return engine.Plan{Credential: id, Provider: "manual", Steps: []engine.PlanStep{{Step: rotation.StepGenerate, Does: "asks for a key", Gate: "3 probes"}}}, f.note(access.Principal{}, "plan "+id.String())
}

func (f *fakeEngine) Rollback(_ context.Context, by access.Principal, id key.CredentialID, why string) (rotation.Rotation, error) {
	return f.rotation, f.note(by, "rollback "+id.String()+" "+why)
}

func (f *fakeEngine) Pause(_ context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error) {
	return f.rotation, f.note(by, "pause "+id.String())
}

func (f *fakeEngine) Resume(_ context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error) {
	return f.rotation, f.note(by, "resume "+id.String())
}

func (f *fakeEngine) Approve(_ context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error) {
	return f.rotation, f.note(by, "approve "+id.String())
}

func (f *fakeEngine) Revoke(_ context.Context, by access.Principal, id key.VersionID) error {
	return f.note(by, "revoke "+id.String())
}

func (f *fakeEngine) Discover(_ context.Context, by access.Principal, id key.CredentialID) ([]engine.Discovered, error) {
	return []engine.Discovered{{VendorID: "k1", Version: 1, State: key.StatePrimary, Relation: engine.Known}, {VendorID: "k9", Relation: engine.Foreign}}, f.note(by, "discover "+id.String())
}

func (f *fakeEngine) Adopt(_ context.Context, by access.Principal, id key.CredentialID, o engine.AdoptOptions) (key.Version, error) {
	return key.Version{ID: key.VersionID{Credential: id, Number: 1}, State: key.StatePrimary, VendorID: o.VendorID}, f.note(by, "adopt "+id.String()+" "+o.VendorID)
}

func (f *fakeEngine) Forget(_ context.Context, by access.Principal, consumer string) (int, error) {
	return 2, f.note(by, "forget "+consumer)
}

// byHash finds tokens in the store, as the wiring of a server does.
type byHash struct{ store.Store }

func (b byHash) TokenByHash(ctx context.Context, hash string) (t access.Token, err error) {
	err = b.View(ctx, func(tx store.Tx) (err error) {
		t, err = tx.TokenByHash(hash)
		return err
	})
	return t, err
}

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// house is a server with a real store and a fake engine.
type house struct {
	t      *testing.T
	store  store.Store
	engine *fakeEngine
	clock  *clock
	url    string
	log    *lockedBuffer
	http   *http.Client
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// guard fails the test when an answer holds the plaintext.
type guard struct {
	t    *testing.T
	next http.RoundTripper
}

func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := g.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	for n, vs := range resp.Header {
		noLeak(g.t, "header "+n+" of "+r.URL.Path, strings.Join(vs, " "))
	}
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(resp.Body, leakWriter{g.t, r.URL.Path}), resp.Body}
		return resp, nil
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	noLeak(g.t, "answer of "+r.Method+" "+r.URL.Path, string(b))
	resp.Body = io.NopCloser(bytes.NewReader(b))
	return resp, nil
}

type leakWriter struct {
	t    *testing.T
	path string
}

func (l leakWriter) Write(p []byte) (int, error) {
	noLeak(l.t, "stream of "+l.path, string(p))
	return len(p), nil
}

func noLeak(t *testing.T, where, text string) {
	t.Helper()
	if i := strings.Index(text, plaintext[8:16]); i >= 0 {
		t.Errorf("%s holds plaintext", where)
	}
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, engine: &fakeEngine{}, clock: &clock{now: start}, log: &lockedBuffer{}}
	var err error
	if h.store, err = sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "keybaton.db"), sqlite.Options{Now: h.clock.Now}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
		noLeak(t, "log", h.log.String())
	})
	srv, err := server.New(server.Config{Tokens: byHash{h.store}, Now: h.clock.Now, Log: slog.New(slog.NewJSONHandler(h.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	routes, err := v1.New(v1.Config{Server: srv, Store: h.store, Engine: h.engine, Version: "test", Now: h.clock.Now, Every: 10 * time.Millisecond,
		Recipes: func() []api.Recipe {
			return []api.Recipe{{ID: "manual", Parts: []string{"key"}, Params: []api.RecipeParam{}, Steps: []string{}, Undo: []string{}}}
		}})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	routes.Register(mux)
	mux.Handle("/", srv.NotFound())
	ts := httptest.NewServer(srv.Wrap(mux))
	t.Cleanup(ts.Close)
	h.url = ts.URL
	h.http = &http.Client{Transport: guard{t, ts.Client().Transport}}
	return h
}

// token puts a token into the store and returns it in plaintext.
func (h *house) token(t access.Token) secret.Value {
	h.t.Helper()
	v, hash, err := client.NewToken("")
	if err != nil {
		h.t.Fatal(err)
	}
	t.Hash, t.Created, t.By = hash, start, "test"
	h.update(func(tx store.Tx) error { return tx.PutToken(t) })
	return v
}

// as returns a client with a new token of that name and role.
func (h *house) as(name string, role access.Role, grants ...access.Grant) *client.Client {
	h.t.Helper()
	t := access.Token{Name: name, Role: role, Grants: grants}
	switch role {
	case access.RoleConsumer:
		t.Kind = key.KindReader
	case access.RoleGateway:
		t.Kind = key.KindGateway
	}
	return h.client(h.token(t))
}

func (h *house) client(v secret.Value) *client.Client {
	h.t.Helper()
	c, err := client.New(client.Config{Address: h.url, Token: v, HTTP: h.http})
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *house) update(fn func(store.Tx) error) {
	h.t.Helper()
	if err := h.store.Update(h.t.Context(), audit.Entry{Actor: "test", Action: "test.prepared"}, fn); err != nil {
		h.t.Fatal(err)
	}
}

// credentials declares the credentials of the tests.
func (h *house) credentials(ids ...key.CredentialID) {
	h.t.Helper()
	h.update(func(tx store.Tx) error {
		for _, id := range ids {
			if err := tx.PutService(key.Service{Name: id.Service, Provider: "manual", Call: key.Call{Upstream: "https://api.example.com"}}); err != nil {
				return err
			}
			if err := tx.PutCredential(key.Credential{ID: id, Next: 1, Created: tx.Now(), Call: key.Call{Upstream: "https://api.example.com"}}); err != nil {
				return err
			}
			if _, err := tx.Touch(id); err != nil {
				return err
			}
		}
		return nil
	})
}

// install gives the credential its primary n.
func (h *house) install(id key.CredentialID, n key.Number, change func(*key.Version)) {
	h.t.Helper()
	h.update(func(tx store.Tx) error {
		c, err := tx.Credential(id)
		if err != nil {
			return err
		}
		v := key.Version{ID: key.VersionID{Credential: id, Number: n}, State: key.StatePrimary, Origin: key.OriginIssued, Created: tx.Now(), Since: tx.Now(),
			Fingerprint: hex.EncodeToString(sha256.New().Sum([]byte{byte(n)}))}
		if change != nil {
			change(&v)
		}
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		c.Slots.Primary, c.Next, c.Rotated = n, n+1, tx.Now()
		if err := tx.PutCredential(c); err != nil {
			return err
		}
		_, err = tx.Touch(id)
		return err
	})
}

// wantError fails unless err has that status and code.
func wantError(t *testing.T, err error, status int, code string) *client.Error {
	t.Helper()
	e, ok := err.(*client.Error) //nolint:errorlint // the client returns it bare
	if !ok {
		t.Fatalf("got error %v (%T), want %d %s", err, err, status, code)
	}
	if e.Status != status || e.Code != code {
		t.Fatalf("got %d %s (%s), want %d %s", e.Status, e.Code, e.Detail, status, code)
	}
	return e
}
