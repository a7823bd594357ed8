package nethttp_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keybaton/keybaton/internal/key"
)

// refusing answers 401 to the keys of dead, and otherwise counts an effect and
// echoes the body.
type refusing struct {
	dead    []key.Number
	status  int
	effects atomic.Int64
	all     atomic.Int64
}

func (v *refusing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.all.Add(1)
	for _, n := range v.dead {
		if bearerOf(r) == keyOf(n) {
			status := v.status
			if status == 0 {
				status = 401
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"error":"refused"}`)
			return
		}
	}
	b, _ := io.ReadAll(r.Body)
	v.effects.Add(1)
	w.Header().Set("X-Method", r.Method)
	_, _ = w.Write(b)
}

func TestFallback(t *testing.T) {
	body := make([]byte, 60<<10)
	_, _ = rand.Read(body)
	for _, tc := range []struct {
		name, method string
		body         []byte
		chunked      bool
	}{
		{"GET", "GET", nil, false},
		{"HEAD", "HEAD", nil, false},
		{"DELETE", "DELETE", nil, false},
		{"POST", "POST", []byte(`{"amount":1}`), false},
		{"POST of 60 KiB", "POST", body, false},
		{"POST of 64 KiB", "POST", append(slices.Clone(body), make([]byte, 4<<10)...), false},
		{"POST of unknown length", "POST", body, true},
		{"PUT", "PUT", body, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := &refusing{dead: []key.Number{7}}
			r := newRig(t, v.ServeHTTP, nil, 7, 8)
			var body io.Reader
			if tc.body != nil {
				body = bytes.NewReader(tc.body)
				if tc.chunked {
					body = io.MultiReader(body)
				}
			}
			a := r.send(tc.method, "/billing-api/v1/charge", body)
			if a.StatusCode != 200 || a.Header.Get("Keybaton-Version") != "v8" || a.Header.Get("Keybaton-Fallback") != "1" {
				t.Fatalf("answered %d by %q (fallback %q), want 200 by v8; error %q", a.StatusCode, a.Header.Get("Keybaton-Version"),
					a.Header.Get("Keybaton-Fallback"), a.Header.Get("Keybaton-Error"))
			}
			if tc.method != "HEAD" && a.body != string(tc.body) {
				t.Errorf("the vendor got %d bytes, want the %d that were sent", len(a.body), len(tc.body))
			}
			if got := v.effects.Load(); got != 1 {
				t.Errorf("the effect happened %d times", got)
			}
			u, w := r.use(7), r.use(8)
			if u.Live.Auth != 1 || u.Worse != 1 || w.Live.OK != 1 || w.Better != 1 || w.Fallbacks != 1 {
				t.Errorf("evidence: v7 %+v, v8 %+v", u, w)
			}
		})
	}
}

func TestNoFallbackNeeded(t *testing.T) {
	v := &refusing{}
	r := newRig(t, v.ServeHTTP, nil, 7, 8)
	a := r.send("GET", "/billing-api/", nil)
	if a.StatusCode != 200 || a.Header.Get("Keybaton-Version") != "v7" || a.Header["Keybaton-Fallback"] != nil || a.Header["Keybaton-Error"] != nil {
		t.Errorf("answered %d with %v", a.StatusCode, a.Header)
	}
}

func TestLargeBodyStreamsAndIsNotSentTwice(t *testing.T) {
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	var got atomic.Int64
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		if bearerOf(req) == keyOf(7) {
			got.Add(1)
			if !bytes.Equal(b, big) {
				t.Errorf("the vendor got %d bytes, not what was sent", len(b))
			}
			w.WriteHeader(401)
			_, _ = io.WriteString(w, "vendor says no")
			return
		}
		_, _ = w.Write(b)
	}, nil, 7, 8)
	for i := range 3 {
		a := r.send("POST", "/billing-api/upload", bytes.NewReader(big))
		if a.StatusCode != 401 || a.body != "vendor says no" || a.Header.Get("Keybaton-Version") != "v7" || a.Header["Keybaton-Error"] != nil {
			t.Fatalf("upload %d: %d %q, want the vendor's 401", i, a.StatusCode, a.body)
		}
	}
	if got.Load() != 3 {
		t.Errorf("sent %d times for 3 uploads", got.Load())
	}
	if a := r.send("POST", "/billing-api/upload", bytes.NewReader(big)); a.StatusCode != 200 || a.body != string(big) {
		t.Errorf("the fourth upload: %d; want it to go with v8 at once", a.StatusCode)
	}
}

func TestBudgetOfBodies(t *testing.T) {
	v := &refusing{dead: []key.Number{7}}
	r := newRig(t, v.ServeHTTP, nil, 7, 8)
	for range 3000 { // more than the budget has buffers: they must come back
		if a := r.send("POST", "/billing-api/x", strings.NewReader("hello")); a.StatusCode != 200 || a.body != "hello" {
			t.Fatalf("answered %d %q", a.StatusCode, a.body)
		}
	}
}

func TestBothRefused(t *testing.T) {
	v := &refusing{dead: []key.Number{7, 8}}
	r := newRig(t, v.ServeHTTP, nil, 7, 8)
	a := r.send("POST", "/billing-api/x", strings.NewReader("hello"))
	if a.StatusCode != 401 || a.body != `{"error":"refused"}` || a.Header.Get("Keybaton-Version") != "v8" || a.Header["Keybaton-Error"] != nil {
		t.Errorf("answered %d %q by %q, want the vendor's last answer", a.StatusCode, a.body, a.Header.Get("Keybaton-Version"))
	}
	if v.all.Load() != 2 {
		t.Errorf("%d attempts for two versions", v.all.Load())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refetch != 1 {
		t.Errorf("refetched %d times, want once", r.refetch)
	}
	if u := r.use(7); u.Worse != 0 {
		t.Errorf("a verdict without a comparison: %+v", u)
	}
}

func TestRefusalInABody(t *testing.T) {
	rules := []key.Rule{{Status: []int{200}, JSON: []key.JSONTest{{Path: "$.error", Equals: "invalid_auth"}}, Is: key.IsInvalid}}
	for _, coding := range []string{"", "gzip"} {
		t.Run("coding "+coding, func(t *testing.T) {
			r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
				out := `{"ok":true,"long":"` + strings.Repeat("x", 20<<10) + `"}`
				if bearerOf(req) == keyOf(7) {
					out = `{"ok":false,"error":"invalid_auth"}`
				}
				if ae := req.Header.Get("Accept-Encoding"); coding != "" && ae != "gzip" {
					t.Errorf("the vendor was offered %q, want what can be read", ae)
				}
				writeCoded(w, coding, out)
			}, func(c *key.Call) { c.Rules = rules }, 7, 8)
			req := r.request("POST", "/billing-api/chat.post", strings.NewReader("hi"))
			req.Header.Set("Authorization", "Bearer "+token)
			if coding != "" {
				req.Header.Set("Accept-Encoding", "br, gzip;q=0.8")
			}
			a := r.do(req)
			got := readCoded(t, a)
			if !strings.HasPrefix(got, `{"ok":true`) || len(got) < 20<<10 || a.Header.Get("Keybaton-Version") != "v8" {
				t.Errorf("relayed %d bytes %.60q by %q", len(got), got, a.Header.Get("Keybaton-Version"))
			}
		})
	}
}

// TestOneKeyOnTheWire looks through everything that reached the vendor.
func TestOneKeyOnTheWire(t *testing.T) {
	for _, place := range []key.Place{
		{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"},
		{In: key.InHeader, Name: "x-api-key"},
		{In: key.InQuery, Name: "api_key"},
	} {
		t.Run(place.In+" "+place.Name, func(t *testing.T) {
			var r *rig
			r = newRig(t, func(w http.ResponseWriter, req *http.Request) {
				r.record(req)
				b, _ := io.ReadAll(req.Body)
				if strings.Contains(string(b), "MARKED") {
					t.Errorf("a key in the body")
				}
				if dump := fmt.Sprint(req.Header, req.URL); strings.Contains(dump, keyOf(7)) {
					w.WriteHeader(401)
				}
			}, func(c *key.Call) { c.Place = place }, 7, 8)
			for _, m := range []string{"GET", "POST", "GET", "PUT", "GET", "GET"} {
				a := r.send(m, "/billing-api/x?a=1&api_key=theirs&b=%20", strings.NewReader("body"))
				if a.StatusCode != 200 {
					t.Fatalf("%s answered %d %s", m, a.StatusCode, a.body)
				}
			}
			both := 0
			for _, d := range r.dumps {
				seven, eight := strings.Contains(d, keyOf(7)), strings.Contains(d, keyOf(8))
				if seven == eight {
					t.Errorf("v7 %t, v8 %t on one request:\n%s", seven, eight, d)
				}
				if strings.Contains(d, token) || strings.Contains(d, "Keybaton") || strings.Contains(d, "theirs") && place.In == key.InQuery {
					t.Errorf("something of the caller's or ours went to the vendor:\n%s", d)
				}
				if seven {
					both++
				}
			}
			if both == 0 || both == len(r.dumps) {
				t.Errorf("%d of %d requests carried v7: nothing was compared", both, len(r.dumps))
			}
		})
	}
}

// TestBodiesDoNotMix has many callers at once whose first attempt is refused
// before the vendor has read the body, so that a buffer given back too early
// would carry one caller's bytes into another's request.
func TestBodiesDoNotMix(t *testing.T) {
	r := newRigOf(t, trusting(), func(w http.ResponseWriter, req *http.Request) {
		if bearerOf(req) == keyOf(7) {
			w.Header().Set("Connection", "close")
			w.WriteHeader(401) // without reading
			return
		}
		b, _ := io.ReadAll(req.Body)
		_, _ = w.Write(b)
	}, nil, 7, 8)
	r.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 40 {
				want := strings.Repeat(fmt.Sprintf("%02d-%03d|", g, i), 7000) // 49 KB
				req := r.request("PUT", "/billing-api/x", strings.NewReader(want))
				req.Header.Set("Authorization", "Bearer "+token)
				resp, err := r.client.Do(req)
				if err != nil {
					t.Errorf("caller %d: %v", g, err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || string(b) != want {
					t.Errorf("caller %d, request %d: %d (%s), %d bytes, want its own %d; %v", g, i, resp.StatusCode, resp.Header.Get("Keybaton-Error"), len(b), len(want), err)
					return
				}
			}
		})
	}
	wg.Wait()
}
