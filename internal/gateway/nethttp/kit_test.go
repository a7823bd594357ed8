package nethttp_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/gateway/nethttp"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

const token = "kbt_0123456789abcdef0123456789abcdef"

var prod = key.CredentialID{Service: "billing-api", Environment: "prod"}

func keyOf(n key.Number) string { return fmt.Sprintf("MARKED-key-of-%s-%020d", n, n) }

func hash(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func cred(id key.CredentialID, c key.Call, numbers ...key.Number) link.Credential {
	lc := link.Credential{ID: id, Call: c}
	for i, n := range numbers {
		lc.Versions = append(lc.Versions, link.Version{Number: n, Since: time.Now().Add(-time.Hour),
			Parts: map[string]secret.Exposed{"key": secret.Expose(secret.FromString(keyOf(n)))}})
		if i == 0 {
			lc.Slots.Primary = n
		} else {
			lc.Slots.Fallback = n
		}
	}
	return lc
}

func frame(rev int64, creds ...link.Credential) link.Frame {
	return link.Frame{Revision: key.Revision{Epoch: 1, Number: rev}, Full: true, Credentials: creds,
		Tokens: []link.Token{{Name: "n8n", Hash: hash(token), Grants: []access.Grant{{Environment: "prod", Services: []string{"*"}}}}}}
}

// rig is a gateway in front of a vendor.
type rig struct {
	t      *testing.T
	core   *gateway.Core
	front  *httptest.Server
	vendor *httptest.Server
	client *http.Client
	call   key.Call

	mu      sync.Mutex
	dumps   []string
	logs    bytes.Buffer
	refetch int
}

func (r *rig) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logs.Write(b)
}

// newRig starts a vendor with handler and a gateway; the frame serves numbers
// of billing-api/prod at place, changed by edit.
func newRig(t *testing.T, handler http.HandlerFunc, edit func(*key.Call), numbers ...key.Number) *rig {
	t.Helper()
	return newRigOf(t, gateway.Config{}, handler, edit, numbers...)
}

// trusting makes no version suspect, so that each request tries both.
func trusting() gateway.Config { return gateway.Config{Breaker: call.Breaker{Hits: 1 << 30}} }

func newRigOf(t *testing.T, c gateway.Config, handler http.HandlerFunc, edit func(*key.Call), numbers ...key.Number) *rig {
	t.Helper()
	r := &rig{t: t}
	r.vendor = httptest.NewServer(handler)
	t.Cleanup(r.vendor.Close)
	c.Refetch = func(key.CredentialID) { r.mu.Lock(); r.refetch++; r.mu.Unlock() }
	r.core = gateway.New(c)
	h, err := nethttp.New(nethttp.Config{Core: r.core})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	r.front = httptest.NewUnstartedServer(nil)
	r.front.Config = h.Server()
	r.front.Config.ErrorLog = log.New(r, "", 0)
	r.front.Start()
	t.Cleanup(r.front.Close)
	r.client = r.front.Client()
	r.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r.call = key.Call{Upstream: r.vendor.URL, Place: key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}}
	if edit != nil {
		edit(&r.call)
	}
	if len(numbers) > 0 {
		r.install(frame(1, cred(prod, r.call, numbers...)))
	}
	return r
}

func (r *rig) install(f link.Frame) {
	r.t.Helper()
	if err := r.core.Install(f); err != nil {
		r.t.Fatal(err)
	}
}

// record keeps what came over the wire, for the tests to look through.
func (r *rig) record(req *http.Request) {
	b, err := httputil.DumpRequest(req, false)
	if err != nil {
		r.t.Errorf("dumping: %v", err)
	}
	r.mu.Lock()
	r.dumps = append(r.dumps, string(b))
	r.mu.Unlock()
}

func (r *rig) request(method, path string, body io.Reader) *http.Request {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.front.URL+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	return req
}

type answer struct {
	*http.Response
	body string
}

func (r *rig) do(req *http.Request) answer {
	r.t.Helper()
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: reading the answer: %v", req.Method, req.URL, err)
	}
	return answer{resp, string(b)}
}

// send makes a request with the token where the key would be.
func (r *rig) send(method, path string, body io.Reader) answer {
	r.t.Helper()
	req := r.request(method, path, body)
	req.Header.Set("Authorization", "Bearer "+token)
	return r.do(req)
}

func (r *rig) use(n key.Number) evidence.Use {
	for _, u := range r.core.Report(1, 0).Uses {
		if u.Version.Number == n {
			return u
		}
	}
	return evidence.Use{}
}

// eventually waits until ok, or fails after some seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

func bearerOf(req *http.Request) string {
	return strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
}

func wantFault(t *testing.T, a answer, status int, code string) {
	t.Helper()
	if a.StatusCode != status || a.Header.Get("Keybaton-Error") != code {
		t.Errorf("answered %d %q, want %d %q; body %s", a.StatusCode, a.Header.Get("Keybaton-Error"), status, code, a.body)
	}
	if a.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(a.body, `"detail":`) {
		t.Errorf("a fault without a problem body: %s", a.body)
	}
	if a.Header.Get("Keybaton-Version") != "" {
		t.Errorf("an answer of ours names a version")
	}
	if strings.Contains(a.body, "MARKED") {
		t.Errorf("the fault holds a key: %s", a.body)
	}
}
