package vendortest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keybaton/keybaton/vendortest"
)

// clock is a clock that only moves when told.
type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(1_800_000_000, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// rig is a vendor behind a real server.
type rig struct {
	t *testing.T
	*vendortest.Vendor
	srv *httptest.Server
	clk *clock
}

func newRig(t *testing.T, c vendortest.Config) *rig {
	t.Helper()
	clk := &clock{}
	c.Now = clk.now
	v := vendortest.New(c)
	srv := httptest.NewServer(v)
	t.Cleanup(srv.Close)
	return &rig{t, v, srv, clk}
}

// do makes a request; status 0 is a dropped connection.
func (r *rig) do(method, path, token string, body any, header ...string) (int, map[string]any, http.Header) {
	r.t.Helper()
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			r.t.Fatal(err)
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, r.srv.URL+path, rd)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.srv.Client().Transport.RoundTrip(req)
	if err != nil {
		return 0, nil, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	var m map[string]any
	if len(b) > 0 {
		if err := json.Unmarshal(b, &m); err != nil {
			r.t.Fatalf("answer %q: %v", b, err)
		}
	}
	return resp.StatusCode, m, resp.Header
}

func (r *rig) want(status int, method, path, token string, body any, header ...string) map[string]any {
	r.t.Helper()
	got, m, _ := r.do(method, path, token, body, header...)
	if got != status {
		r.t.Fatalf("%s %s: status %d, want %d: %v", method, path, got, status, m)
	}
	return m
}

func (r *rig) create(name string, scopes ...string) (id, key string) {
	r.t.Helper()
	m := r.want(201, "POST", "/keys", vendortest.DefaultManager, map[string]any{"name": name, "scopes": scopes})
	return m["id"].(string), m["key"].(string)
}

func TestLifeOfAKey(t *testing.T) {
	r := newRig(t, vendortest.Config{})
	mgr := vendortest.DefaultManager
	id, key := r.create("first")
	if !regexp.MustCompile(`^sim_[0-9A-Za-z]{32}$`).MatchString(key) {
		t.Errorf("key does not look like sim_ and 32 of base62")
	}
	r.want(200, "GET", "/v1/me", key, nil)
	m := r.want(200, "POST", "/v1/orders", key, map[string]int{"a": 1}, "X-Request-Id", "r1")
	if m["method"] != "POST" || m["path"] != "/v1/orders" || m["request_id"] != "r1" || m["key_id"] != id ||
		m["body_sha256"] != "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862" {
		t.Errorf("echo: %v", m)
	}
	r.want(200, "POST", "/keys/"+id+"/disable", mgr, nil)
	r.want(401, "GET", "/v1/me", key, nil)
	if m := r.want(200, "GET", "/keys/"+id, mgr, nil); m["disabled"] != true {
		t.Errorf("not shown as disabled: %v", m)
	}
	r.want(200, "POST", "/keys/"+id+"/enable", mgr, nil)
	r.want(200, "GET", "/v1/me", key, nil)
	r.want(204, "DELETE", "/keys/"+id, mgr, nil)
	r.want(404, "DELETE", "/keys/"+id, mgr, nil)
	r.want(404, "POST", "/keys/"+id+"/enable", mgr, nil)
	r.want(401, "GET", "/v1/me", key, nil)
	if r.Valid(key) || r.IDOf(key) != id {
		t.Error("a revoked key counts as valid, or lost its id")
	}
	u := r.Uses(id)
	if u != (vendortest.Uses{OK: 3, Refused: 2, Probes: 4}) {
		t.Errorf("uses: %+v", u)
	}
	ks := r.Keys()
	if len(ks) != 1 || !ks[0].Revoked || ks[0].LastUsed.IsZero() || r.Active() != 0 {
		t.Errorf("keys: %+v", ks)
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	r := newRig(t, vendortest.Config{Manager: "boss"})
	r.want(401, "POST", "/keys", "nobody", map[string]any{"name": "x"})
	r.want(201, "POST", "/keys", "boss", map[string]any{"name": "x"})
	r.SetManager("new-boss")
	r.want(401, "GET", "/keys", "boss", nil)
	r.want(200, "GET", "/keys", "new-boss", nil)
	r.want(400, "POST", "/keys", "new-boss", map[string]any{"name": "x", "scopes": []string{"admin"}})
	_, ro := r.Issue("ro", "read")
	r.want(200, "GET", "/v1/a", ro, nil)
	r.want(403, "POST", "/v1/a", ro, nil)
	_, wo := r.Issue("wo", "write")
	r.want(403, "GET", "/v1/a", wo, nil)
	r.want(200, "GET", "/v1/me", wo, nil)
	r.want(401, "GET", "/v1/a", "not-a-key", nil)
	if r.Unknown() != 1 {
		t.Errorf("unknown: %d", r.Unknown())
	}
	r.SetDeadStatus(403)
	r.want(403, "GET", "/v1/a", "not-a-key", nil)
}

func TestKeyRidesElsewhere(t *testing.T) {
	r := newRig(t, vendortest.Config{})
	_, key := r.Issue("a")
	for name, req := range map[string]func(*http.Request){
		"basic":  func(q *http.Request) { q.SetBasicAuth("anybody", key) },
		"header": func(q *http.Request) { q.Header.Set("X-Api-Key", key) },
		"query":  func(q *http.Request) { q.URL.RawQuery = "api_key=" + key },
	} {
		q := httptest.NewRequest("GET", "/v1/x", nil)
		req(q)
		w := httptest.NewRecorder()
		r.ServeHTTP(w, q)
		if w.Code != 200 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
}

func TestDelays(t *testing.T) {
	r := newRig(t, vendortest.Config{Nodes: 2})
	r.SetCreateDelay(0, 10*time.Second)
	r.SetListDelay(5 * time.Second)
	id, key := r.create("slow")
	got := map[int]int{}
	for range 4 {
		s, _, _ := r.do("GET", "/v1/me", key, nil)
		got[s]++
	}
	if got[200] != 2 || got[401] != 2 || r.Valid(key) {
		t.Errorf("with one of two nodes late: %v", got)
	}
	if m := r.want(200, "GET", "/keys", vendortest.DefaultManager, nil); len(m["keys"].([]any)) != 0 {
		t.Errorf("listed too early: %v", m)
	}
	r.clk.advance(10 * time.Second)
	for range 4 {
		r.want(200, "GET", "/v1/me", key, nil)
	}
	r.SetRevokeDelay(time.Minute)
	r.want(204, "DELETE", "/keys/"+id, vendortest.DefaultManager, nil)
	r.want(200, "GET", "/v1/me", key, nil)
	r.clk.advance(time.Minute)
	r.want(401, "GET", "/v1/me", key, nil)
}

func TestExpiry(t *testing.T) {
	r := newRig(t, vendortest.Config{})
	m := r.want(201, "POST", "/keys", vendortest.DefaultManager, map[string]any{"name": "short", "expires_in": 60})
	key := m["key"].(string)
	if m["expires"] != r.clk.now().Add(time.Minute).UTC().Format(time.RFC3339) {
		t.Errorf("expires: %v", m["expires"])
	}
	r.want(200, "GET", "/v1/me", key, nil)
	r.clk.advance(time.Minute)
	r.want(401, "GET", "/v1/me", key, nil)
}

func TestFaults(t *testing.T) {
	r := newRig(t, vendortest.Config{UniqueName: true})
	mgr := vendortest.DefaultManager
	body := func(n string) map[string]any { return map[string]any{"name": n} }

	r.LoseCreateAnswers(1)
	r.want(0, "POST", "/keys", mgr, body("lost"))
	if ks := r.Keys(); len(ks) != 1 || ks[0].Name != "lost" {
		t.Errorf("a lost answer did not create: %+v", ks)
	}
	r.DropCreates(1)
	r.want(0, "POST", "/keys", mgr, body("dropped"))
	r.RefuseCreates(1, 422)
	r.want(422, "POST", "/keys", mgr, body("refused"))
	if r.Active() != 1 {
		t.Errorf("active: %d", r.Active())
	}
	if m := r.want(409, "POST", "/keys", mgr, body("lost")); code(m) != "name_taken" {
		t.Errorf("code: %v", m)
	}
	r.SetMaxActive(1)
	if m := r.want(409, "POST", "/keys", mgr, body("b")); code(m) != "limit_reached" {
		t.Errorf("code: %v", m)
	}
	r.SetMaxActive(0)

	r.ThrottleKeys(1, 1500*time.Millisecond)
	s, _, h := r.do("GET", "/keys", mgr, nil)
	if s != 429 || h.Get("Retry-After") != "2" {
		t.Errorf("throttled: %d %q", s, h.Get("Retry-After"))
	}
	r.want(200, "GET", "/keys", mgr, nil)

	id, key := r.create("victim")
	r.FailRevokes(1, 500)
	r.want(500, "DELETE", "/keys/"+id, mgr, nil)
	r.want(200, "GET", "/v1/me", key, nil)
	r.SetLyingDisable(true)
	r.want(200, "POST", "/keys/"+id+"/disable", mgr, nil)
	r.want(200, "GET", "/v1/me", key, nil)
	r.SetLyingRevoke(true)
	r.want(200, "DELETE", "/keys/"+id, mgr, nil)
	r.want(200, "GET", "/v1/me", key, nil)
	r.Behave()
	id, key = r.create("next")
	r.LoseRevokeAnswers(1)
	r.want(0, "DELETE", "/keys/"+id, mgr, nil)
	r.want(401, "GET", "/v1/me", key, nil)

	_, key = r.create("one")
	r.SetDuplicateSecrets(true)
	if _, again := r.create("two"); again != key {
		t.Error("no duplicate secret")
	}
	r.SetNoList(true)
	r.want(404, "GET", "/keys", mgr, nil)
	r.SetDown(true)
	r.want(503, "GET", "/v1/me", key, nil)
	r.SetDown(false)
	r.SetDropping(true)
	r.want(0, "GET", "/v1/me", key, nil)
	r.Behave()
	r.ThrottleData(-1, 0)
	r.want(429, "GET", "/v1/me", key, nil)
	r.want(429, "GET", "/v1/me", key, nil)
	r.ThrottleData(0, 0)
	r.FailData(1, 502)
	r.want(502, "GET", "/v1/me", key, nil)
	r.FailKeys(1, 500)
	r.want(500, "GET", "/keys", mgr, nil)
	r.want(200, "GET", "/v1/me", key, nil)
}

func code(m map[string]any) any { return m["error"].(map[string]any)["code"] }

func TestOutOfBand(t *testing.T) {
	r := newRig(t, vendortest.Config{})
	id, key := r.Issue("console")
	if !r.DisableKey(id, true) || r.Valid(key) || !r.DisableKey(id, false) || !r.Valid(key) {
		t.Error("disabling out of band")
	}
	if !r.RevokeKey(id) || r.RevokeKey(id) || r.RevokeKey("nope") || r.Valid(key) || r.DisableKey(id, true) {
		t.Error("revoking out of band")
	}
}

func TestPages(t *testing.T) {
	r := newRig(t, vendortest.Config{PageSize: 3})
	var gone string
	for i := range 8 {
		id, _ := r.Issue(fmt.Sprint("k", i))
		if i == 4 {
			gone = id
		}
	}
	r.RevokeKey(gone)
	var names []string
	cursor, pages := "", 0
	for {
		m := r.want(200, "GET", "/keys?cursor="+cursor, vendortest.DefaultManager, nil)
		pages++
		for _, k := range m["keys"].([]any) {
			names = append(names, k.(map[string]any)["name"].(string))
		}
		next, ok := m["next"].(string)
		if !ok {
			break
		}
		cursor = next
	}
	if got := strings.Join(names, " "); got != "k0 k1 k2 k3 k5 k6 k7" || pages != 3 {
		t.Errorf("%d pages: %s", pages, got)
	}
	r.want(400, "GET", "/keys?cursor=x", vendortest.DefaultManager, nil)
}

func TestEffectsAreCountedOncePerRequestID(t *testing.T) {
	r := newRig(t, vendortest.Config{})
	_, key := r.Issue("a")
	r.want(200, "POST", "/v1/x", key, nil, "Idempotency-Key", "one")
	r.want(200, "POST", "/v1/x", key, nil, "Idempotency-Key", "one")
	r.want(200, "POST", "/v1/x", key, nil, "Idempotency-Key", "one")
	r.want(200, "PUT", "/v1/x", key, nil, "X-Request-Id", "two")
	r.want(200, "GET", "/v1/x", key, nil, "X-Request-Id", "three")
	r.want(401, "POST", "/v1/x", "dead", nil, "X-Request-Id", "four")
	if done, again := r.Effects(); done != 2 || again != 1 {
		t.Errorf("done %d, repeated %d", done, again)
	}
}

// Under load, every request finds a valid answer while switches are thrown and
// keys come and go, and the counters add up.
func TestUnderLoad(t *testing.T) {
	v := vendortest.New(vendortest.Config{Nodes: 3, MaxActive: 5})
	id, key := v.Issue("busy")
	const workers, each = 8, 500
	var wg sync.WaitGroup
	var ok, throttled, bad atomic.Int64
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				q := httptest.NewRequest("POST", "/v1/x", strings.NewReader("hello"))
				q.Header.Set("Authorization", "Bearer "+key)
				q.Header.Set("X-Request-Id", fmt.Sprint(w, "-", i))
				rec := httptest.NewRecorder()
				v.ServeHTTP(rec, q)
				switch rec.Code {
				case 200:
					ok.Add(1)
				case 429:
					throttled.Add(1)
				default:
					bad.Add(1)
				}
			}
		})
	}
	var created atomic.Int64
	for range 4 {
		wg.Go(func() {
			for range 20 {
				v.ThrottleData(1, time.Second)
				q := httptest.NewRequest("POST", "/keys", strings.NewReader(`{"name":"n"}`))
				q.Header.Set("Authorization", "Bearer "+vendortest.DefaultManager)
				rec := httptest.NewRecorder()
				v.ServeHTTP(rec, q)
				if rec.Code == 201 {
					created.Add(1)
				}
				v.Keys()
				v.Active()
			}
		})
	}
	wg.Wait()
	if ok.Load()+throttled.Load() != workers*each || bad.Load() != 0 {
		t.Errorf("ok %d, throttled %d, bad %d", ok.Load(), throttled.Load(), bad.Load())
	}
	if done, again := v.Effects(); done != ok.Load() || again != 0 {
		t.Errorf("effects %d/%d for %d answers", done, again, ok.Load())
	}
	if u := v.Uses(id); u.OK != ok.Load() || u.Other != throttled.Load() {
		t.Errorf("uses %+v, ok %d, throttled %d", u, ok.Load(), throttled.Load())
	}
	if created.Load() != 4 || v.Active() != 5 {
		t.Errorf("created %d, active %d: the limit of 5 does not hold under load", created.Load(), v.Active())
	}
}

func BenchmarkData(b *testing.B) {
	v := vendortest.New(vendortest.Config{})
	_, key := v.Issue("busy")
	q := httptest.NewRequest("GET", "/v1/x", nil)
	q.Header.Set("Authorization", "Bearer "+key)
	b.ReportAllocs()
	for b.Loop() {
		v.ServeHTTP(httptest.NewRecorder(), q)
	}
}
