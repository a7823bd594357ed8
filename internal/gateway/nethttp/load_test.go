package nethttp_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/gateway/nethttp"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// storm makes total requests from 32 callers while turn is called again and
// again; it returns how many were not answered 200.
func (r *rig) storm(total int64, turn func(done func() bool)) (bad int64) {
	r.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	var sent, failed atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for sent.Add(1) <= total {
				n := sent.Load()
				method, body := "GET", ""
				if n%4 == 0 {
					method, body = "POST", "hello"
				}
				req := r.request(method, "/billing-api/x", strings.NewReader(body))
				req.Header.Set("Authorization", "Bearer "+token)
				resp, err := r.client.Do(req)
				if err != nil {
					r.t.Errorf("request %d: %v", n, err)
					failed.Add(1)
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != 200 {
					failed.Add(1)
				}
			}
		})
	}
	turned := make(chan struct{})
	go func() {
		defer close(turned)
		turn(func() bool { return sent.Load() >= total })
	}()
	wg.Wait()
	<-turned
	return failed.Load()
}

// TestFramesSwapUnderLoad swaps two versions back and forth, one of which is
// dead: no caller sees it.
func TestFramesSwapUnderLoad(t *testing.T) {
	v := &refusing{dead: []key.Number{7}}
	r := newRigOf(t, trusting(), v.ServeHTTP, nil, 7, 8)
	swaps := 0
	bad := r.storm(10_000, func(done func() bool) {
		for rev := int64(2); !done(); rev++ {
			at := v.all.Load()
			if rev%2 == 0 {
				r.install(frame(rev, cred(prod, r.call, 8, 7)))
			} else {
				r.install(frame(rev, cred(prod, r.call, 7, 8)))
			}
			swaps++
			eventually(t, "requests pass between two swaps", func() bool { return v.all.Load() >= at+50 || done() })
		}
	})
	if bad != 0 {
		t.Errorf("%d callers were refused during %d swaps", bad, swaps)
	}
	if swaps < 20 {
		t.Errorf("only %d swaps", swaps)
	}
	if u := r.use(7); u.Live.Auth == 0 || u.Live.OK != 0 {
		t.Errorf("the dead version: %+v", u.Live)
	}
	eventually(t, "all pins are gone", func() bool { return len(r.core.Pinned(key.Revision{Epoch: 2})) == 0 })
}

// TestRotationsUnderLoad follows the protocol: the new version is served as the
// fallback, then as the primary, then alone; the old one is revoked when no
// request pins it. Nobody is refused, not even by the vendor.
func TestRotationsUnderLoad(t *testing.T) {
	var valid sync.Map
	var refusals, all atomic.Int64
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		all.Add(1)
		if _, ok := valid.Load(bearerOf(req)); !ok {
			refusals.Add(1)
			w.WriteHeader(401)
			return
		}
		_, _ = io.WriteString(w, "fine")
	}, nil)
	valid.Store(keyOf(1), true)
	r.install(frame(1, cred(prod, r.call, 1)))
	rotations := 0
	bad := r.storm(10_000, func(done func() bool) {
		rev := int64(1)
		next := func(numbers ...key.Number) key.Revision {
			rev++
			r.install(frame(rev, cred(prod, r.call, numbers...)))
			return key.Revision{Epoch: 1, Number: rev}
		}
		pass := func() {
			at := all.Load()
			eventually(t, "requests pass", func() bool { return all.Load() >= at+60 || done() })
		}
		for n := key.Number(1); !done(); n++ {
			valid.Store(keyOf(n+1), true)
			next(n, n+1)
			pass()
			next(n+1, n)
			pass()
			at := next(n + 1)
			// At the end of the storm the new version may not have been used
			// yet, and then the old one is kept.
			eventually(t, "the old version is let go", func() bool { return len(r.core.Pinned(at)) == 0 || done() })
			if done() {
				return
			}
			valid.Delete(keyOf(n))
			rotations++
		}
	})
	if bad != 0 || refusals.Load() != 0 {
		t.Errorf("%d callers failed, the vendor refused %d requests, in %d rotations", bad, refusals.Load(), rotations)
	}
	if rotations < 10 {
		t.Errorf("only %d rotations", rotations)
	}
}

// TestVendorKillsTheOldKeyAtOnce has a vendor that ends the primary the moment
// the next key exists, while the gateway still serves the old order.
func TestVendorKillsTheOldKeyAtOnce(t *testing.T) {
	var dead atomic.Int64 // versions up to this number are refused
	var all atomic.Int64
	r := newRigOf(t, gateway.Config{}, func(w http.ResponseWriter, req *http.Request) {
		all.Add(1)
		for n := key.Number(1); n <= key.Number(dead.Load()); n++ {
			if bearerOf(req) == keyOf(n) {
				w.WriteHeader(401)
				return
			}
		}
		_, _ = io.WriteString(w, "fine")
	}, nil, 1, 2)
	bad := r.storm(10_000, func(done func() bool) {
		for n := key.Number(1); !done(); n++ {
			dead.Store(int64(n)) // n is the primary; n+1 the fallback
			at := all.Load()
			eventually(t, "requests pass", func() bool { return all.Load() >= at+100 || done() })
			r.install(frame(int64(n)+1, cred(prod, r.call, n+1, n+2)))
			at = all.Load()
			eventually(t, "requests pass", func() bool { return all.Load() >= at+100 || done() })
			eventually(t, "old requests end", func() bool {
				return len(r.core.Pinned(key.Revision{Epoch: 1, Number: int64(n) + 1})) == 0 || done()
			})
		}
	})
	if bad != 0 {
		t.Errorf("%d callers were refused", bad)
	}
}

// TestNothingShowsTheKey makes every kind of answer of ours, and looks through
// all that came out.
func TestNothingShowsTheKey(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X-Echo", bearerOf(req))
		w.Header().Set("X-Echo-More", "your key "+bearerOf(req)+" is fine")
		if req.URL.Path == "/die" {
			panic(http.ErrAbortHandler)
		}
		if req.URL.Path == "/bad" {
			w.Header().Set("Www-Authenticate", `Bearer key="`+bearerOf(req)+`"`)
			w.WriteHeader(401)
		}
	}, nil)
	bad := cred(key.CredentialID{Service: "broken", Environment: "prod"}, r.call, 9)
	bad.Versions[0].Parts["key"] = secret.Expose(secret.FromString("MARKED\r\nX-Injected: 1"))
	body := cred(key.CredentialID{Service: "in-body", Environment: "prod"}, r.call, 9)
	body.Call.Place = key.Place{In: key.InJSON, Name: "$.key"}
	query := cred(key.CredentialID{Service: "in-query", Environment: "prod"}, r.call, 9)
	query.Call.Place = key.Place{In: key.InQuery, Name: "key"}
	query.Call.Upstream = "http://127.0.0.1:1"
	r.install(frame(1, cred(prod, r.call, 7, 8), bad, body, query))
	var out strings.Builder
	for _, p := range []string{"/billing-api/x", "/billing-api/bad", "/billing-api/die", "/broken/x", "/in-body/x", "/in-query/x?y=1", "/nothing"} {
		a := r.send("POST", p, strings.NewReader("not json"))
		out.WriteString(a.body)
		if err := a.Header.Write(&out); err != nil {
			t.Fatal(err)
		}
	}
	r.mu.Lock()
	out.WriteString(r.logs.String())
	r.mu.Unlock()
	if s := out.String(); strings.Contains(s, "MARKED") {
		t.Errorf("a key came out:\n%s", s)
	}
	for _, code := range []string{"credential_disabled", "bad_body", "upstream_unreachable", "unknown_service"} {
		if !strings.Contains(out.String(), code) {
			t.Errorf("no answer of ours with %s was made", code)
		}
	}
}

// blackhole is a response writer that keeps nothing.
type blackhole struct {
	h      http.Header
	status int
}

func (b *blackhole) Header() http.Header         { return b.h }
func (b *blackhole) WriteHeader(s int)           { b.status = s }
func (b *blackhole) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkServeHTTP(b *testing.B) {
	vendor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 1024))
	}))
	defer vendor.Close()
	core := gateway.New(gateway.Config{})
	h, err := nethttp.New(nethttp.Config{Core: core})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	f := frame(1, cred(prod, key.Call{Upstream: vendor.URL, Place: key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}}, 7, 8))
	if err := core.Install(f); err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/billing-api/v1/me?a=1", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Accept", "*/*")
	r.Header.Set("User-Agent", "bench")
	w := &blackhole{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		h.ServeHTTP(w, r)
		if w.status != 200 {
			b.Fatalf("status %d", w.status)
		}
	}
}
