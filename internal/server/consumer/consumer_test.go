package consumer_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/handover"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/server"
	"github.com/keybaton/keybaton/internal/server/consumer"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soon is how long a test waits for what must happen.
const soon = 20 * time.Second

type dataKeys struct{ store.Store }

func (s dataKeys) DataKeys(ctx context.Context) (m map[string][]byte, err error) {
	err = s.View(ctx, func(tx store.Tx) (err error) { m, err = tx.DataKeys(); return err })
	return m, err
}

func (s dataKeys) PutDataKey(ctx context.Context, name string, wrapped []byte) error {
	return s.Update(ctx, audit.Entry{Actor: "test", Action: "datakey.made"}, func(tx store.Tx) error { return tx.PutDataKey(name, wrapped) })
}

// house is a server with the routes of consumers on a real store.
type house struct {
	t       testing.TB
	store   store.Store
	ring    *seal.Keyring
	desk    *handover.Desk
	handler http.Handler // what a server answers with
	slow    http.Handler // the same without the short way for reads

	mu  sync.Mutex
	now time.Time
}

func newHouse(t testing.TB) *house {
	t.Helper()
	dir := t.TempDir()
	h := &house{t: t, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "data", "keybaton.db"), sqlite.Options{Now: h.clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	h.store = s
	path := filepath.Join(dir, "master.key")
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{5}, 32))), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := seal.LoadMaster(path)
	if err != nil {
		t.Fatal(err)
	}
	h.ring = seal.New(m, dataKeys{s})
	h.desk = handover.New(handover.Config{Store: s, Keyring: h.ring, Now: h.clock})
	srv, err := server.New(server.Config{Tokens: h.desk, Now: h.clock})
	if err != nil {
		t.Fatal(err)
	}
	c, err := consumer.New(consumer.Config{Server: srv, Desk: h.desk, Heartbeat: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	c.Register(mux)
	h.slow = srv.Wrap(mux)
	h.handler = c.Fast(h.slow)
	return h
}

func (h *house) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *house) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

func (h *house) update(fn func(store.Tx) error) {
	h.t.Helper()
	if err := h.store.Update(h.t.Context(), audit.Entry{Actor: "test", Action: "test"}, fn); err != nil {
		h.t.Fatal(err)
	}
}

var id = key.CredentialID{Service: "billing-api", Environment: "prod"}

func at(n key.Number) key.VersionID { return key.VersionID{Credential: id, Number: n} }

func plain(n key.Number) string { return fmt.Sprintf("PLAINTEXT-%d", int64(n)) }

// install puts versions in the slots of the one credential.
func (h *house) install(primary, fallback key.Number) key.Revision {
	h.t.Helper()
	type sealed struct {
		s  key.Sealed
		fp string
	}
	all := map[key.Number]sealed{}
	for _, n := range []key.Number{primary, fallback} {
		if n == 0 {
			continue
		}
		s, fp, err := h.ring.Seal(h.t.Context(), at(n), secret.Parts{"key": secret.FromString(plain(n))})
		if err != nil {
			h.t.Fatal(err)
		}
		all[n] = sealed{s, fp}
	}
	var rev key.Revision
	h.update(func(tx store.Tx) error {
		c, err := tx.Credential(id)
		if err != nil {
			if err := tx.PutService(key.Service{Name: id.Service, Provider: "manual", EnvName: "BILLING_KEY"}); err != nil {
				return err
			}
			c = key.Credential{ID: id, Next: 100, Created: tx.Now(), Call: key.Call{Upstream: "https://api.example.com"}}
		}
		old := c.Slots
		c.Slots = key.Slots{Primary: primary, Fallback: fallback}
		if err := tx.PutCredential(c); err != nil {
			return err
		}
		for _, n := range old.Served() {
			v, err := tx.Version(at(n))
			if err != nil {
				return err
			}
			v.State = key.StateRetired
			if err := tx.PutVersion(v); err != nil {
				return err
			}
		}
		for n, s := range all {
			v, err := tx.Version(at(n))
			if err != nil {
				v = key.Version{ID: at(n), Origin: key.OriginIssued, Created: tx.Now(), Since: tx.Now(), Fingerprint: s.fp}
			}
			if v.State = key.StatePrimary; n == fallback {
				v.State = key.StateFallback
			}
			if err := tx.PutVersion(v); err != nil {
				return err
			}
			if err := tx.PutSealed(v.ID, s.s); err != nil {
				return err
			}
		}
		rev, err = tx.Touch(id)
		return err
	})
	return rev
}

// token makes a token and returns it.
func (h *house) token(tok access.Token) string {
	h.t.Helper()
	plain := access.TokenPrefix + tok.Name
	sum := sha256.Sum256([]byte(plain))
	tok.Hash = hex.EncodeToString(sum[:])
	h.update(func(tx store.Tx) error {
		if err := tx.PutToken(tok); err != nil {
			return err
		}
		_, err := tx.TouchAll()
		return err
	})
	return plain
}

func (h *house) gateway(name string) string {
	return h.token(access.Token{Name: name, Role: access.RoleGateway, Kind: key.KindGateway, Grants: []access.Grant{{Environment: "prod", Services: []string{"*"}}}})
}

func (h *house) reader(name string, refresh time.Duration) string {
	return h.token(access.Token{Name: name, Role: access.RoleConsumer, Kind: key.KindReader, Refresh: refresh, Grants: []access.Grant{{Environment: "prod", Services: []string{"billing-api"}}}})
}

func (h *house) do(method, path, token, body string, headers ...string) *httptest.ResponseRecorder {
	h.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.handler.ServeHTTP(w, r)
	return w
}

func (h *house) held(name string) []string {
	h.t.Helper()
	out := []string{}
	err := h.store.View(h.t.Context(), func(tx store.Tx) error {
		hs, err := tx.HoldsOf(name)
		for _, x := range hs {
			out = append(out, x.Version.Number.String())
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

const readPath = link.ReadPath + "?service=billing-api&environment=prod"

func TestRead(t *testing.T) {
	h := newHouse(t)
	h.install(2, 1)
	w := h.do("GET", readPath, h.reader("app", time.Hour), "")
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Cache-Control") != "no-store" ||
		w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	var got link.Read
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Credential != id || got.Version != 2 || got.EnvName != "BILLING_KEY" ||
		!got.Parts["key"].Value().Equal(secret.FromString(plain(2))) || !got.Fallback["key"].Value().Equal(secret.FromString(plain(1))) {
		t.Fatalf("read %+v", got)
	}
	if held := h.held("app"); !slices.Equal(held, []string{"v1", "v2"}) {
		t.Fatalf("held %v", held)
	}
}

// However a read is written, the short way and the long way give the same
// answer, and only those of the long way carry a request id.
func TestFastReadsAreTheSame(t *testing.T) {
	h := newHouse(t)
	h.install(2, 1)
	token := h.reader("app", time.Hour)
	for query, fast := range map[string]bool{
		"service=billing-api&environment=prod":                 true,
		"environment=prod&service=billing-api":                 true,
		"service=billing%2Dapi&environment=prod":               false,
		"service=billing-api&environment=prod&":                false,
		"service=billing-api&environment=prod&x=1":             false,
		"service=billing-api&service=mail&environment=prod":    false,
		"service=mail&environment=prod":                        false,
		"service=billing-api&environment=":                     false,
		"service=billing-api;environment=prod":                 false,
		"service=&environment=prod&service=billing-api":        false,
		"service=billing-api=&environment=prod":                false,
		"Service=billing-api&Environment=prod":                 false,
		"service=billing-api&environment=prod&environment=dev": false,
	} {
		answer := func(by http.Handler, method string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, link.ReadPath+"?"+query, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			by.ServeHTTP(w, r)
			return w
		}
		a, b := answer(h.handler, "GET"), answer(h.slow, "GET")
		ida, idb := a.Header().Get("X-Request-Id"), b.Header().Get("X-Request-Id")
		text := strings.ReplaceAll(b.Body.String(), idb, ida)
		if a.Code != b.Code || a.Body.String() != text && a.Code == 200 || a.Header().Get("Content-Type") != b.Header().Get("Content-Type") || a.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s, and %d %s", query, a.Code, a.Body, b.Code, b.Body)
		}
		if (ida == "") != fast || idb == "" {
			t.Errorf("%s: request ids %q and %q, want the short way: %v", query, ida, idb, fast)
		}
		if w := answer(h.handler, "POST"); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", query, w.Code)
		}
	}
}

func TestRefusals(t *testing.T) {
	h := newHouse(t)
	h.install(2, 1)
	reader, gw := h.reader("app", time.Hour), h.gateway("gw")
	old := h.token(access.Token{Name: "old", Role: access.RoleConsumer, Kind: key.KindReader, Expires: h.clock(), Grants: []access.Grant{{Environment: "*", Services: []string{"*"}}}})
	rev := h.store.Revision()
	ackOf := func(name string) string {
		return fmt.Sprintf(`{"consumer":%q,"boot":"b","revision":{"epoch":%d,"number":%d}}`, name, rev.Epoch, rev.Number)
	}
	for name, c := range map[string]struct {
		method, path, token, body string
		headers                   []string
		status                    int
		code                      string
	}{
		"read without a token":       {"GET", readPath, "", "", nil, 401, "no_token"},
		"read with a wrong token":    {"GET", readPath, "kbt_wrong", "", nil, 401, "no_token"},
		"read with an expired token": {"GET", readPath, old, "", nil, 401, "no_token"},
		"read by a gateway":          {"GET", readPath, gw, "", nil, 403, "denied"},
		"read what is not granted":   {"GET", link.ReadPath + "?service=mail&environment=prod", reader, "", nil, 403, "denied"},
		"read nothing":               {"GET", link.ReadPath, reader, "", nil, 422, "invalid"},
		"read half a name":           {"GET", link.ReadPath + "?service=billing-api", reader, "", nil, 422, "invalid"},
		"read nonsense":              {"GET", link.ReadPath + "?service=%zz", reader, "", nil, 422, "invalid"},
		"watch without a token":      {"GET", link.WatchPath + "?boot=b", "", "", nil, 401, "no_token"},
		"watch by a reader":          {"GET", link.WatchPath + "?boot=b", reader, "", nil, 403, "denied"},
		"watch without a boot":       {"GET", link.WatchPath, gw, "", nil, 422, "invalid"},
		"watch since nonsense":       {"GET", link.WatchPath + "?boot=b&since=x", gw, "", nil, 422, "invalid"},
		"ack without a token":        {"POST", link.AckPath, "", ackOf("gw"), nil, 401, "no_token"},
		"ack by a reader":            {"POST", link.AckPath, reader, ackOf("app"), nil, 403, "denied"},
		"ack for another":            {"POST", link.AckPath, gw, ackOf("other"), nil, 403, "denied"},
		"ack of the future":          {"POST", link.AckPath, gw, `{"boot":"b","revision":{"epoch":1,"number":999999}}`, nil, 409, "stale"},
		"ack of nonsense":            {"POST", link.AckPath, gw, `{"boot": PLAINTEXT`, nil, 400, "invalid"},
		"ack of nothing":             {"POST", link.AckPath, gw, "", []string{"Content-Type", "application/json"}, 400, "invalid"},
		"ack as a form":              {"POST", link.AckPath, gw, ackOf("gw"), []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "invalid"},
		"ack too large":              {"POST", link.AckPath, gw, `{"boot":"` + strings.Repeat("b", 3<<20), nil, 413, "invalid"},
		"report for another":         {"POST", link.ReportPath, gw, `{"consumer":"other","boot":"b","seq":1}`, nil, 403, "denied"},
		"report without a number":    {"POST", link.ReportPath, gw, `{"boot":"b"}`, nil, 422, "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			w := h.do(c.method, c.path, c.token, c.body, c.headers...)
			var p server.Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Header().Get("Content-Type") != server.ProblemType {
				t.Fatalf("%d %q", w.Code, w.Body)
			}
			if w.Code != c.status || p.Status != c.status || p.Code != c.code || p.Detail == "" {
				t.Fatalf("%d %+v", w.Code, p)
			}
			if p.Next == "" && c.status != 422 {
				t.Fatalf("no next step: %+v", p)
			}
			if strings.Contains(w.Body.String(), "PLAINTEXT") || (c.token != "" && strings.Contains(w.Body.String(), c.token)) {
				t.Fatalf("the answer repeats what was sent, or a key: %s", w.Body)
			}
		})
	}
	if n := h.desk.Stats(); n.Reads+n.Frames+n.Acks+n.Reports+n.Holds != 0 {
		t.Fatalf("stats %+v", n)
	}
}

func TestAckAndReport(t *testing.T) {
	h := newHouse(t)
	rev := h.install(1, 0)
	gw := h.gateway("gw")
	if w := h.do("POST", link.AckPath, gw, fmt.Sprintf(`{"consumer":"gw","boot":"b","revision":{"epoch":%d,"number":%d}}`, rev.Epoch, rev.Number)); w.Code != 204 || w.Body.Len() != 0 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := h.do("POST", link.ReportPath, gw, `{"boot":"b","seq":1,"elapsed":5}`); w.Code != 204 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	err := h.store.View(t.Context(), func(tx store.Tx) error {
		bs, err := tx.Boots("gw")
		if err == nil && (len(bs) != 1 || bs[0].Acked != rev || bs[0].Seq != 1 || bs[0].Elapsed != 5) {
			t.Errorf("boots %+v", bs)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stream opens a watch and returns its lines.
func (h *house) stream(ctx context.Context, token, query string) (lines <-chan string, closeBody func()) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://keybaton.test"+link.WatchPath+"?"+query, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := (&http.Client{Transport: link.HandlerTransport(h.handler)}).Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		b, _ := io.ReadAll(resp.Body)
		h.t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, b)
	}
	out := make(chan string)
	go func() {
		defer close(out)
		sc := bufio.NewScanner(resp.Body)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			select {
			case out <- sc.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, func() { _ = resp.Body.Close() }
}

// next returns the next line that begins with prefix; "" at the end.
func next(t *testing.T, lines <-chan string, prefix string) string {
	t.Helper()
	limit := time.After(soon)
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				return ""
			}
			if strings.HasPrefix(l, prefix) {
				return l
			}
		case <-limit:
			t.Fatalf("waited in vain for %q", prefix)
		}
	}
}

func TestWatchStreamsRevisions(t *testing.T) {
	h := newHouse(t)
	h.install(1, 0)
	gw := h.gateway("gw")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines, done := h.stream(ctx, gw, "boot=b")
	defer done()
	if got, want := next(t, lines, "id: "), "id: "+h.store.Revision().String(); got != want {
		t.Fatalf("%q, want %q", got, want)
	}
	if got := next(t, lines, "event: "); got != "event: frame" {
		t.Fatal(got)
	}
	var f link.Frame
	if err := json.Unmarshal([]byte(strings.TrimPrefix(next(t, lines, "data: "), "data: ")), &f); err != nil || !f.Full || len(f.Credentials) != 1 {
		t.Fatalf("%+v %v", f, err)
	}
	if got := next(t, lines, ": "); got != ": alive" {
		t.Fatal(got)
	}
	h.install(2, 1)
	if got, want := next(t, lines, "id: "), "id: "+h.store.Revision().String(); got != want {
		t.Fatalf("%q, want %q", got, want)
	}
	f = link.Frame{}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(next(t, lines, "data: "), "data: ")), &f); err != nil || f.Full || len(f.Versions()) != 2 {
		t.Fatalf("%+v %v", f, err)
	}
	if held := h.held("gw"); !slices.Equal(held, []string{"v1", "v2"}) {
		t.Fatalf("held %v", held)
	}
}

func TestAWithdrawnTokenEndsTheStream(t *testing.T) {
	h := newHouse(t)
	h.install(1, 0)
	for name, end := range map[string]func(){
		"withdrawn": func() {
			h.update(func(tx store.Tx) error {
				if err := tx.DeleteToken("withdrawn"); err != nil {
					return err
				}
				_, err := tx.TouchAll()
				return err
			})
		},
		"expired": func() { h.pass(2 * time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			tok := h.token(access.Token{Name: name, Role: access.RoleGateway, Kind: key.KindGateway, Expires: h.clock().Add(time.Hour),
				Grants: []access.Grant{{Environment: "prod", Services: []string{"*"}}}})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			lines, done := h.stream(ctx, tok, "boot=b")
			defer done()
			next(t, lines, "data: ")
			end()
			if l := next(t, lines, "data: "); l != "" {
				t.Fatal("the stream went on")
			}
			h.install(2, 0)
			if held := h.held(name); !slices.Equal(held, []string{"v1"}) && !slices.Equal(held, []string{"v2"}) {
				t.Fatalf("held %v", held)
			}
		})
	}
}

// recorder is what a gateway keeps of its line.
type recorder struct {
	mu      sync.Mutex
	frame   link.Frame
	pins    []key.VersionID
	changed chan struct{}
}

func (r *recorder) apply(f link.Frame) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frame = f
	close(r.changed)
	r.changed = make(chan struct{})
	return nil
}

func (r *recorder) wait(t *testing.T, what string, cond func(link.Frame) bool) {
	t.Helper()
	limit := time.After(soon)
	for {
		r.mu.Lock()
		ok, changed := cond(r.frame), r.changed
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// eventually waits until cond holds of the store.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(soon)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A whole line: a gateway on its link, in this process and over TCP, through a
// change of keys, a restart with the server away, and its return.
func TestLine(t *testing.T) {
	for name, remote := range map[string]bool{"same process": false, "over TCP": true} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.install(1, 0)
			var away sync.Map // "away" is set while the server cannot be reached
			inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, ok := away.Load("away"); ok {
					panic(http.ErrAbortHandler)
				}
				h.handler.ServeHTTP(w, r)
			})
			cfg := link.Config{Server: "http://keybaton.test", Token: secret.FromString(h.gateway("gw")), Transport: link.HandlerTransport(inner),
				CachePath: filepath.Join(t.TempDir(), "cache"), CacheKey: secret.New(bytes.Repeat([]byte{1}, 32)),
				Every: 10 * time.Millisecond, Backoff: 20 * time.Millisecond}
			if remote {
				ts := httptest.NewServer(inner)
				defer ts.Close()
				defer ts.CloseClientConnections()
				cfg.Server, cfg.Transport = ts.URL, nil
			}
			start := func() (*recorder, *link.Link, func()) {
				l, err := link.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				r := &recorder{changed: make(chan struct{})}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() {
					done <- l.Run(ctx, r.apply, func(key.Revision) []key.VersionID {
						r.mu.Lock()
						defer r.mu.Unlock()
						return slices.Clone(r.pins)
					}, func(int64, time.Duration) evidence.Report {
						return evidence.Report{Uses: []evidence.Use{{Version: at(1), Live: evidence.Counts{OK: 7}}}}
					})
				}()
				return r, l, func() {
					cancel()
					if err := <-done; err != nil {
						t.Fatal(err)
					}
				}
			}
			r, l, stop := start()
			r.wait(t, "the first key", func(f link.Frame) bool { return len(f.Versions()) == 1 })
			r.mu.Lock()
			r.pins = []key.VersionID{at(1)}
			r.mu.Unlock()
			rev := h.install(2, 0)
			r.wait(t, "the second key", func(f link.Frame) bool {
				return f.Revision.Reached(rev) && slices.Equal(f.Versions(), []key.VersionID{at(2)})
			})
			eventually(t, "the acknowledgement", func() bool { return l.State().Acked.Reached(rev) })
			if held := h.held("gw"); !slices.Equal(held, []string{"v1", "v2"}) {
				t.Fatalf("held %v while pinned", held)
			}
			r.mu.Lock()
			r.pins = nil
			r.mu.Unlock()
			eventually(t, "that the first key is let go", func() bool { return slices.Equal(h.held("gw"), []string{"v2"}) })
			stop()

			// Away: the next process serves what is in the cache.
			away.Store("away", true)
			r, l2, stop := start()
			r.wait(t, "the cached key", func(f link.Frame) bool { return slices.Equal(f.Versions(), []key.VersionID{at(2)}) })
			rev = h.install(3, 2)
			if held := h.held("gw"); !slices.Equal(held, []string{"v2"}) {
				t.Fatalf("held %v", held)
			}
			away.Delete("away")
			r.wait(t, "the third key", func(f link.Frame) bool { return f.Revision.Reached(rev) })
			eventually(t, "the last report", func() bool {
				ok := false
				err := h.store.View(t.Context(), func(tx store.Tx) error {
					bs, err := tx.Boots("gw")
					ok = len(bs) == 1 && bs[0].Boot == l2.Boot() && bs[0].Acked.Reached(rev) && bs[0].Seq > 3 && bs[0].Contiguous == 0 && bs[0].Use(at(1)).Live.OK == 7
					return err
				})
				return err == nil && ok
			})
			err := h.store.View(t.Context(), func(tx store.Tx) error {
				hs, err := tx.HoldsOf("gw")
				for _, x := range hs {
					if x.Boot != l2.Boot() {
						t.Errorf("hold of a process that is gone: %+v", x)
					}
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			stop()
		})
	}
}

func TestNewNeedsAServerAndADesk(t *testing.T) {
	if _, err := consumer.New(consumer.Config{}); err == nil {
		t.Fatal("made without anything")
	}
}

// discard is a ResponseWriter that is used again and again.
type discard struct {
	head http.Header
	n    int
}

func (d *discard) Header() http.Header { return d.head }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(b []byte) (int, error) {
	d.n += len(b)
	return len(b), nil
}

func BenchmarkRead(b *testing.B) {
	h := newHouse(b)
	h.install(2, 1)
	r := httptest.NewRequest("GET", readPath, nil)
	r.Header.Set("Authorization", "Bearer "+h.reader("app", time.Hour))
	w := &discard{head: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		h.handler.ServeHTTP(w, r)
	}
	if w.n == 0 {
		b.Fatal("nothing was read")
	}
}

// BenchmarkReadHTTP reads over kept TCP connections, by a client that does next
// to nothing.
func BenchmarkReadHTTP(b *testing.B) {
	h := newHouse(b)
	h.install(2, 1)
	ts := httptest.NewServer(h.handler)
	defer ts.Close()
	req := []byte("GET " + readPath + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + h.reader("app", time.Hour) + "\r\n\r\n")
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("tcp", ts.Listener.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		buf := make([]byte, 8192)
		for pb.Next() {
			if _, err := c.Write(req); err != nil {
				b.Error(err)
				return
			}
			n := 0
			for {
				m, err := c.Read(buf[n:])
				if err != nil {
					b.Error(err)
					return
				}
				if n += m; bytes.HasSuffix(buf[:n], []byte("}\n")) {
					break
				}
			}
			if !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 200")) {
				b.Errorf("%s", buf[:n])
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
}
