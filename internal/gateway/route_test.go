package gateway_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
)

const otherToken = "kbt_fedcba9876543210fedcba9876543210"

// routed is a core with the calls as services named svc-a, svc-b …, all in
// prod, and two tokens.
func routed(t *testing.T, ck *clock, calls ...key.Call) *gateway.Core {
	t.Helper()
	f := frame(1, bearer(), ck.ago(time.Hour), 7)
	for i, c := range calls {
		f.Credentials = append(f.Credentials, link.Credential{ID: key.CredentialID{Service: "svc-" + string(rune('a'+i)), Environment: "prod"}, Call: c,
			Slots: key.Slots{Primary: 7}, Versions: []link.Version{version(7, ck.ago(time.Hour))}})
	}
	f.Tokens = append(f.Tokens, link.Token{Name: "other", Hash: hash(otherToken), Grants: []access.Grant{{Environment: "prod", Services: []string{"*"}}}})
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	install(t, c, f)
	return c
}

func in(place, name string) key.Call {
	return key.Call{Upstream: "https://api.vendor.example", Place: key.Place{In: place, Name: name, Value: "{{key}}"}}
}

// begin begins h and returns the code of the fault; "" when it may go on.
func begin(t *testing.T, c *gateway.Core, ck *clock, h gateway.Head, ok func(*gateway.Exchange)) string {
	t.Helper()
	var x gateway.Exchange
	err := c.Begin(&x, h, ck.now)
	if err == nil {
		if ok != nil {
			ok(&x)
		}
		x.Done()
		return ""
	}
	f := (*gateway.Fault)(nil)
	if !errors.As(err, &f) {
		t.Fatalf("the error %v is no fault", err)
	}
	if strings.Contains(f.Detail, token) || strings.Contains(f.Detail, otherToken) {
		t.Errorf("the answer repeats a token: %s", f.Detail)
	}
	return f.Code
}

// TestTokenIsForwardedNowhere repeats the caller's token wherever it may be: the
// vendor gets it in none of the places, and all else as it was.
func TestTokenIsForwardedNowhere(t *testing.T) {
	ck := newClock()
	c := routed(t, ck)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+token))
	for _, r := range []struct{ name, value, query, want string }{
		{"X-Api-Key", token, "", ""},
		{"X-Forwarded-Authorization", "Bearer " + token, "", ""},
		{"X-Original-Authorization", basic, "", ""},
		{"Cookie", "a=1; session=" + token, "", ""},
		{"Referer", "https://example.com/?t=" + token, "", ""},
		{"X-Trace", "plain", "token=" + token, ""},
		{"X-Trace", "plain", "a=1&token=" + token + "&b=%20", "a=1&b=%20"},
		{"X-Trace", "plain", "token=k%62" + token[2:] + "&b=2", "b=2"},
		{"X-Trace", "plain", "a=1&" + token, "a=1"},
		{"X-Trace", "plain", "a=1&b=a-long-value-that-is-no-token", "a=1&b=a-long-value-that-is-no-token"},
	} {
		h := head("GET")
		h.Query = r.query
		h.Header = http.Header{"Authorization": {"Bearer " + token}, "X-Kept": {"a-long-value-that-is-no-token"}, r.name: {"first", r.value}}
		if code := begin(t, c, ck, h, func(x *gateway.Exchange) {
			if got := x.Query(); got != r.want {
				t.Errorf("query %q goes on as %q, want %q", r.query, got, r.want)
			}
			if got, want := x.Forwards(r.name), r.name == "X-Trace"; got != want {
				t.Errorf("%s: it is forwarded: %v, want %v", r.name, got, want)
			}
			if !x.Forwards("X-Kept") {
				t.Error("a header without a token is not forwarded")
			}
		}); code != "" {
			t.Errorf("%s and %q are refused: %s", r.name, r.query, code)
		}
	}
}

func TestTwoTokensAreRefused(t *testing.T) {
	ck := newClock()
	c := routed(t, ck)
	for _, r := range []struct{ name, value, query string }{
		{"X-Api-Key", otherToken, ""},
		{"Keybaton-Token", otherToken, ""},
		{"Proxy-Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(otherToken+":")), ""},
		{"X-Other", "Bearer " + otherToken, ""},
		{"Cookie", "a=1; session=" + otherToken, ""},
		{"X-Other", "plain", "a=1&token=" + otherToken},
	} {
		h := head("GET")
		h.Query = r.query
		h.Header[r.name] = []string{r.value}
		if code := begin(t, c, ck, h, nil); code != "two_tokens" {
			t.Errorf("%s: %s, ?%s: got %q, want two_tokens", r.name, r.value, r.query, code)
		}
	}
}

// TestMissNamesTheServiceToTokensOnly asks for what is not there: whoever has a
// token, in the place of any credential, is told so, and nobody else.
func TestMissNamesTheServiceToTokensOnly(t *testing.T) {
	ck := newClock()
	c := routed(t, ck, in(key.InHeader, "X-Api-Key"), in(key.InQuery, "api_key"), in(key.InForm, "key"))
	for _, r := range []struct {
		path, query string
		header      http.Header
		want        string
	}{
		{"/nope/x", "", http.Header{"X-Api-Key": {token}}, "unknown_service"},
		{"/svc-a@dev/x", "", http.Header{"X-Api-Key": {token}}, "unknown_environment"},
		{"/nope/x", "api_key=" + token, http.Header{}, "unknown_service"},
		{"/nope/x", "", http.Header{"Authorization": {"Bearer " + token}}, "unknown_service"},
		{"/nope/x", "", http.Header{}, "no_token"},
		{"/svc-a@dev/x", "", http.Header{}, "no_token"},
		{"/svc-a/x", "", http.Header{}, "no_token"},
		{"/nope/x", "", http.Header{"X-Api-Key": {"wrong"}}, "bad_token"},
		{"/svc-a@dev/x", "", http.Header{"X-Api-Key": {"wrong"}}, "bad_token"},
	} {
		h := head("GET")
		h.Path, h.Query, h.Header = r.path, r.query, r.header
		if code := begin(t, c, ck, h, nil); code != r.want {
			t.Errorf("%s?%s: got %q, want %q", r.path, r.query, code, r.want)
		}
	}
}

// TestPathsStayUnderThePrefix sends what some vendors read as leading out of an
// upstream's path; without one, every path goes on.
func TestPathsStayUnderThePrefix(t *testing.T) {
	ck := newClock()
	under := bearer()
	under.Upstream += "/api/v2"
	c := routed(t, ck, under)
	for _, p := range []struct {
		path string
		ok   bool
	}{
		{"/..", false}, {"/../x", false}, {"/./x", false}, {"/%2e%2E/x", false}, {"/..%2fx", false}, {"/a%2f..%2f..%2fx", false},
		{`/\..\x`, false}, {"/%5c..%5cx", false}, {"/..;/x", false}, {"/..;a=b/x", false}, {"/%2e%2e%3b/x", false}, {"/%252e%252e/x", false},
		{"/..%252fx", false}, {"/a%255c..%255cx", false}, {"/.%2e", false},
		{"", true}, {"/", true}, {"/x", true}, {"/a..b/...", true}, {"/a%2fb", true}, {"/v1;p=../x%zz", true}, {"/100%", true}, {"/.well-known/x", true},
	} {
		for service, ok := range map[string]bool{"svc-a": p.ok, "billing-api": true} {
			h := head("GET")
			h.Path = "/" + service + p.path
			want := ""
			if !ok {
				want = "bad_path"
			}
			if code := begin(t, c, ck, h, nil); code != want {
				t.Errorf("%s: got %q, want %q", h.Path, code, want)
			}
		}
	}
}
