package client_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/gateway/nethttp"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

// vendor answers by what the request says the key's fate is: the query v1=401
// is what a request with version 1 is answered.
func vendor(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		n := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer plaintext-key-")
		switch fate := r.URL.Query().Get("v" + n); fate {
		case "":
			_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
		case "revoked":
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":{"code":"key_revoked"}}`)
		default:
			var status int
			_, _ = fmt.Sscan(fate, &status)
			w.WriteHeader(status)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// odd is a call with a rule over bodies and a status of its own to fall back on.
func odd(c *key.Call) {
	c.Rules = []key.Rule{{Status: []int{400}, JSON: []key.JSONTest{{Path: "$.error.code", Equals: "key_revoked"}}, Is: key.IsInvalid}}
	c.FallbackOn = []int{429}
}

var stories = []struct{ method, query, body string }{
	{"GET", "", ""}, {"POST", "", "x"}, {"GET", "v2=401", ""}, {"POST", "v2=401", "twice"}, {"GET", "v2=403", ""}, {"POST", "v2=403", "once"},
	{"GET", "v2=401&v1=401", ""}, {"GET", "v2=403&v1=403", ""}, {"GET", "v2=429", ""}, {"GET", "v2=500", ""}, {"GET", "v2=404", ""},
	{"POST", "v2=revoked", "y"}, {"POST", "v2=revoked&v1=revoked", "y"}, {"GET", "v2=401", ""}, {"GET", "v2=401", ""}, {"GET", "v2=401", ""},
	{"GET", "v1=401", ""}, {"PUT", "v1=401", "z"}, {"GET", "v1=401&v2=401", ""},
}

// TestEvidenceIsTheGateways sends the same requests through a gateway and
// through a client, and compares what the two report.
func TestEvidenceIsTheGateways(t *testing.T) {
	v := vendor(t)
	l := newLine(t)
	cr := credential(v.URL, odd, 2, 1)
	l.push(cr)
	k := follow(t, l, client.FollowOptions{})
	hc := &http.Client{Transport: handle(t, k).Transport(nil)}

	core := gateway.New(gateway.Config{})
	tok := "kbt_gateway_token_of_the_test"
	sum := sha256.Sum256([]byte(tok))
	f := l.frame
	f.Tokens = []link.Token{{Name: "app", Hash: hex.EncodeToString(sum[:]), Grants: []access.Grant{{Environment: "*", Services: []string{"*"}}}}}
	if err := core.Install(f); err != nil {
		t.Fatal(err)
	}
	gh, err := nethttp.New(nethttp.Config{Core: core})
	if err != nil {
		t.Fatal(err)
	}
	gw := httptest.NewServer(gh)
	defer gw.Close()

	type seen struct {
		Status            int
		Body              string
		Version, Fallback string
	}
	send := func(c *http.Client, base, method, query, body string) seen {
		req, err := http.NewRequestWithContext(t.Context(), method, base+"/items?"+query, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if base != v.URL {
			client.Authorize(req, secret.FromString(tok))
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		return seen{resp.StatusCode, string(b), resp.Header.Get(client.HeaderVersion), resp.Header.Get(client.HeaderFallback)}
	}
	for _, s := range stories {
		a, b := send(hc, v.URL, s.method, s.query, s.body), send(http.DefaultClient, gw.URL+"/crm", s.method, s.query, s.body)
		if a != b {
			t.Errorf("%s %s: the client got %+v, the gateway's caller %+v", s.method, s.query, a, b)
		}
	}
	until(t, "the report", func() bool { b := l.seen(); return len(b.Answers) == 1 && b.Answers[0].Requests == int64(len(stories)) })
	got, want := l.seen(), core.Report(1, time.Second)
	strip := func(us []evidence.Use) []evidence.Use {
		for i := range us {
			if us[i].LastUse == 0 {
				t.Errorf("%s has no last use", us[i].Version)
			}
			us[i].LastUse = 0
		}
		return us
	}
	if g, w := strip(got.Uses), strip(want.Uses); !reflect.DeepEqual(g, w) {
		t.Errorf("uses:\n client %+v\ngateway %+v", g, w)
	}
	if !reflect.DeepEqual(got.Answers, want.Answers) {
		t.Errorf("answers: client %+v, gateway %+v", got.Answers, want.Answers)
	}
	for _, u := range got.Uses {
		if u.Version.Number == 2 && u.Worse < 3 {
			t.Errorf("the sequence proves little: %+v", u)
		}
	}
}

func TestTransportSendsTheKeyNowhereElse(t *testing.T) {
	v := vendor(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s came with the header %q", r.URL, r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	l := newLine(t)
	l.push(credential(v.URL+"/v1", nil, 1))
	k := follow(t, l, client.FollowOptions{})
	hc := &http.Client{Transport: handle(t, k).Transport(nil)}
	for _, u := range []string{elsewhere.URL + "/v1/x", v.URL + "/v2", v.URL + "/v1x", v.URL + "/v1/../v2", v.URL + "/v1/%2e%2e/v2"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hc.Do(req); !client.IsCode(err, api.CodeDenied) { //nolint:bodyclose // there is none
			t.Errorf("%s: %v", u, err)
		}
	}
	for _, u := range []string{v.URL + "/v1", v.URL + "/v1/", v.URL + "/v1/items"} {
		resp, err := hc.Get(u)
		if err != nil {
			t.Fatalf("%s: %v", u, err)
		}
		_ = resp.Body.Close()
		if h := resp.Request.Header.Get("Authorization"); h != "" {
			t.Error("the answer's request holds the key")
		}
	}
}

// A body that cannot be sent again is sent once; then the other version has its
// turn.
func TestTransportSendsAnUnreplayableBodyOnce(t *testing.T) {
	v := vendor(t)
	l := newLine(t)
	l.push(credential(v.URL, nil, 2, 1))
	k := follow(t, l, client.FollowOptions{})
	hc := &http.Client{Transport: handle(t, k).Transport(nil)}
	for i := range 4 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, v.URL+"/?v2=401", io.MultiReader(bytes.NewReader(bytes.Repeat([]byte("x"), 100_000))))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if want := []int{401, 401, 401, 200}[i]; resp.StatusCode != want {
			t.Errorf("request %d: %d, want %d", i, resp.StatusCode, want)
		}
	}
}

// The version of an answer is in use until its body is closed.
func TestTransportPinsUntilTheBodyIsClosed(t *testing.T) {
	v := vendor(t)
	l := newLine(t)
	l.push(credential(v.URL, nil, 2, 1))
	k := follow(t, l, client.FollowOptions{})
	hc := &http.Client{Transport: handle(t, k).Transport(nil)}
	resp, err := hc.Get(v.URL + "/?v2=401")
	if err != nil {
		t.Fatal(err)
	}
	r := l.push(credential(v.URL, nil, 3))
	until(t, "the acknowledgement", func() bool { return l.acked().Revision == r })
	if a := l.acked(); !pins(a, 1) || pins(a, 2) {
		t.Errorf("pinned: %v, want v1 alone", a.Pinned)
	}
	_ = resp.Body.Close()
	until(t, "the release", func() bool { return !pins(l.acked(), 1) })
}

type leaky struct{}

func (leaky) RoundTrip(r *http.Request) (*http.Response, error) {
	return nil, errors.New("malformed: " + r.URL.String())
}

func TestTransportErrorsHoldNoKey(t *testing.T) {
	l := newLine(t)
	l.push(credential("https://crm.example", func(c *key.Call) { c.Place = key.Place{In: key.InQuery, Name: "key"} }, 1))
	k := follow(t, l, client.FollowOptions{})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://crm.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = handle(t, k).Transport(leaky{}).RoundTrip(req) //nolint:bodyclose // there is none
	if err == nil || strings.Contains(fmt.Sprintf("%v %+v", err, err), "plaintext") || !strings.Contains(err.Error(), call.FailureText(io.ErrShortBuffer)) {
		t.Errorf("got %v", err)
	}
	id := key.VersionID{Credential: key.CredentialID{Service: "crm", Environment: "prod"}, Number: 1}
	until(t, "the report", func() bool { return l.seen().Use(id).Live.Other == 1 })
}
