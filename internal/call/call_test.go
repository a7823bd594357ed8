package call_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

const marked = "MARKED-key-0123456789/+="

func one(s string) secret.Parts { return secret.Parts{"key": secret.FromString(s)} }

func TestClassify(t *testing.T) {
	yes := true
	for _, tc := range []struct {
		name  string
		probe bool
		own   []key.Rule
		rules []key.Rule
		a     call.Answer
		want  evidence.Outcome
		dead  bool
	}{
		{name: "200", a: call.Answer{Status: 200}, want: evidence.OK},
		{name: "302", a: call.Answer{Status: 302}, want: evidence.OK},
		{name: "404", a: call.Answer{Status: 404}, want: evidence.OK},
		{name: "422", a: call.Answer{Status: 422}, want: evidence.OK},
		{name: "401", a: call.Answer{Status: 401}, want: evidence.Auth, dead: true},
		{name: "403", a: call.Answer{Status: 403}, want: evidence.Perm},
		{name: "403 as a limit", a: call.Answer{Status: 403, Header: http.Header{"X-Ratelimit-Remaining": {"0"}}}, want: evidence.Rate},
		{name: "407", a: call.Answer{Status: 407}, want: evidence.Other},
		{name: "429", a: call.Answer{Status: 429}, want: evidence.Rate},
		{name: "503", a: call.Answer{Status: 503}, want: evidence.Other},
		{name: "probe 200", probe: true, a: call.Answer{Status: 200}, want: evidence.OK},
		{name: "probe 404", probe: true, a: call.Answer{Status: 404}, want: evidence.Other},
		{name: "probe 302", probe: true, a: call.Answer{Status: 302}, want: evidence.Other},
		{name: "probe 401", probe: true, a: call.Answer{Status: 401}, want: evidence.Auth, dead: true},
		{name: "declared probe, named", probe: true, own: []key.Rule{{Status: []int{200}, Is: key.IsValid}}, a: call.Answer{Status: 200}, want: evidence.OK},
		{name: "declared probe, not named", probe: true, own: []key.Rule{{Status: []int{200}, Is: key.IsValid}}, a: call.Answer{Status: 401}, want: evidence.Other},
		{name: "declared probe, named by the call", probe: true, own: []key.Rule{{Status: []int{200}, Is: key.IsValid}},
			rules: []key.Rule{{Status: []int{4}, Is: key.IsInvalid}}, a: call.Answer{Status: 401}, want: evidence.Auth, dead: true},
		{name: "first match wins", rules: []key.Rule{{Status: []int{401}, Is: key.IsOther}, {Status: []int{401}, Is: key.IsInvalid}}, a: call.Answer{Status: 401}, want: evidence.Other},
		{name: "no test, no match", rules: []key.Rule{{Is: key.IsInvalid}}, a: call.Answer{Status: 200}, want: evidence.OK},
		{name: "method", rules: []key.Rule{{Status: []int{403}, Methods: []string{"post"}, Is: key.IsInvalid}}, a: call.Answer{Method: "GET", Status: 403}, want: evidence.Perm},
		{name: "dead scope", rules: []key.Rule{{Status: []int{403}, Is: key.IsOutOfScope, Dead: true}}, a: call.Answer{Status: 403}, want: evidence.Perm, dead: true},
		{name: "header", rules: []key.Rule{{Header: map[string]string{"X-Error": "^expired"}, Is: key.IsInvalid}}, a: call.Answer{Status: 400, Header: http.Header{"X-Error": {"expired key"}}}, want: evidence.Auth, dead: true},
		{name: "header absent", rules: []key.Rule{{Header: map[string]string{"X-Error": ""}, Is: key.IsInvalid}}, a: call.Answer{Status: 400}, want: evidence.OK},
		{name: "body", rules: []key.Rule{{Status: []int{400}, Body: "(?i)api key not valid", Is: key.IsInvalid}}, a: call.Answer{Status: 400, Body: []byte("API key not valid.")}, want: evidence.Auth, dead: true},
		{name: "json", rules: []key.Rule{{JSON: []key.JSONTest{{Path: "$.errors[0].code", Equals: "9109"}, {Path: "$.ok", Filled: new(bool)}}, Is: key.IsInvalid}},
			a: call.Answer{Status: 400, Whole: true, Body: []byte(`{"ok":false,"errors":[{"code":9109}]}`)}, want: evidence.Auth, dead: true},
		{name: "json that is cut", rules: []key.Rule{{JSON: []key.JSONTest{{Path: "$.ok", Exists: &yes}}, Is: key.IsInvalid}},
			a: call.Answer{Status: 200, Body: []byte(`{"ok":false}`)}, want: evidence.OK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := call.CompileRules(tc.rules)
			if tc.probe {
				r, err = call.CompileProbeRules(tc.own, tc.rules)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, dead := r.Classify(tc.a); got != tc.want || dead != tc.dead {
				t.Errorf("got %s dead %t, want %s dead %t", got, dead, tc.want, tc.dead)
			}
		})
	}
	for _, bad := range []key.Rule{{Is: "valdi", Status: []int{200}}, {Is: key.IsValid, Status: []int{42}}, {Is: key.IsValid, Body: "("},
		{Is: key.IsValid, Header: map[string]string{"a": "("}}, {Is: key.IsValid, JSON: []key.JSONTest{{Path: "$["}}}} {
		if _, err := call.CompileRules([]key.Rule{bad}); !errors.Is(err, key.ErrInvalid) {
			t.Errorf("%+v: %v, want invalid", bad, err)
		}
	}
}

func TestNeedsBody(t *testing.T) {
	r, err := call.CompileRules([]key.Rule{{Status: []int{401}, Is: key.IsInvalid}, {Status: []int{4}, Body: "x", Is: key.IsOther}})
	if err != nil {
		t.Fatal(err)
	}
	for status, want := range map[int]bool{200: false, 400: true, 401: false, 403: true, 500: false} {
		if got := r.NeedsBody(status); got != want {
			t.Errorf("%d: %t, want %t", status, got, want)
		}
	}
}

func TestPath(t *testing.T) {
	var doc any
	if err := json.Unmarshal([]byte(`{"a":{"b":[{"k":"x","v":1},{"k":"y","v":2.5,"on":true}],"c d":null},"list":["p","q"]}`), &doc); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"$": `{"a":{"b":[{"k":"x","v":1},{"k":"y","on":true,"v":2.5}],"c d":null},"list":["p","q"]}`, "": "", "$.a.b[0].k": "x", "$.a.b[-1].v": "2.5",
		"$['a'][\"c d\"]": "null", "$.a.b[?(@.k=='y')].v": "2.5", "$.a.b[?(@.k!='y')].v": "1", "$.a.b[?(@.v==2.5)].k": "y", "$.a.b[?@.on].k": "y",
		"$.list[*]": "p", "$.list[1]": "q", "a.b[1].k": "y", "$.a.*[0].k": "x",
	} {
		p, err := call.ParsePath(path)
		if err != nil {
			t.Errorf("%q: %v", path, err)
			continue
		}
		if path == "" {
			continue
		}
		v, ok := p.Find(doc)
		if got := call.Text(v); !ok || got != want {
			t.Errorf("%q: %q (%t), want %q", path, got, ok, want)
		}
		if p.String() != path {
			t.Errorf("%q prints as %q", path, p)
		}
	}
	for _, absent := range []string{"$.x", "$.list[2]", "$.list[-3]", "$.a.b[?(@.k=='z')]", "$.list.x", "$.a[0]"} {
		p, err := call.ParsePath(absent)
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := p.Find(doc); ok {
			t.Errorf("%q found %v", absent, v)
		}
	}
	if p, err := call.ParsePath("$.a.b[*].k"); err != nil || fmt.Sprint(p.All(doc)) != "[x y]" {
		t.Errorf("all: %v, %v", p.All(doc), err)
	}
	for _, bad := range []string{"$x", "$.", "$.a[", "$.a[x]", "$.a[?(b)]", "$.a[?(@.k=='x' && @.v==1)]", "$..a"} {
		if _, err := call.ParsePath(bad); !errors.Is(err, key.ErrInvalid) {
			t.Errorf("%q: %v, want invalid", bad, err)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"$.a[0]['x']", "$.a[?(@.k=='v')]", "$[*].*", "a.b", "$['"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := call.ParsePath(s)
		if err != nil {
			if !errors.Is(err, key.ErrInvalid) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		p.Find(map[string]any{"a": []any{map[string]any{"k": "v"}, nil, 1.5}})
	})
}

func TestRender(t *testing.T) {
	pair := secret.Parts{"id": secret.FromString("AKIA1234"), "secret": secret.FromString("s3cr3t-value")}
	for _, tc := range []struct {
		name  string
		place key.Place
		parts secret.Parts
		url   string
		body  string
		want  string // header value, query, or body
		err   bool
	}{
		{name: "header", place: key.Place{In: "header", Name: "authorization", Value: "Bearer {{key}}"}, parts: one("k1"), want: "Bearer k1"},
		{name: "header, two parts", place: key.Place{In: "header", Name: "X-Auth", Value: "{{id}}:{{ secret }}"}, parts: pair, want: "AKIA1234:s3cr3t-value"},
		{name: "line break", place: key.Place{In: "header", Name: "X-Auth"}, parts: one("k1\r\nX: y"), err: true},
		{name: "trailing line break", place: key.Place{In: "header", Name: "X-Auth"}, parts: one("k1\n"), err: true},
		{name: "tab", place: key.Place{In: "header", Name: "X-Auth"}, parts: one("k\t1"), err: true},
		{name: "missing part", place: key.Place{In: "header", Name: "X-Auth", Value: "{{id}}"}, parts: secret.Parts{"secret": secret.FromString("x")}, err: true},
		{name: "basic", place: key.Place{In: "basic", User: "{{id}}", Value: "{{secret}}"}, parts: pair, want: "Basic QUtJQTEyMzQ6czNjcjN0LXZhbHVl"},
		{name: "basic, key as user", place: key.Place{In: "basic", User: "{{key}}"}, parts: one("k1"), want: "Basic azE6"},
		{name: "basic, colon in user", place: key.Place{In: "basic", User: "{{key}}"}, parts: one("k:1"), err: true},
		{name: "query", place: key.Place{In: "query", Name: "api key"}, parts: one("a&b=c"), url: "http://v.example/p?x=1&api+key=old&y=%20&api%20key", want: "x=1&y=%20&api+key=a%26b%3Dc"},
		{name: "query, empty", place: key.Place{In: "query", Name: "k"}, parts: one("k1"), want: "k=k1"},
		{name: "form", place: key.Place{In: "form", Name: "k"}, parts: one("k 1"), body: "a=1&k=old&b=%20", want: "a=1&b=%20&k=k+1"},
		{name: "json", place: key.Place{In: "json", Name: "$.auth.key"}, parts: one(`k"1<`), body: `{"n":1e400,"auth":{"x":[1]}}`, want: `{"auth":{"key":"k\"1<","x":[1]},"n":1e400}`},
		{name: "json that is none", place: key.Place{In: "json", Name: "$.auth"}, parts: one("k1"), body: `[1]`, err: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := call.CompilePlace(tc.place, tc.parts.Names())
			if tc.name == "missing part" {
				p, err = call.CompilePlace(tc.place, []string{"id", "secret"})
			}
			if err != nil {
				t.Fatal(err)
			}
			url := tc.url
			if url == "" {
				url = "http://v.example/p"
			}
			req := httptest.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(tc.body))
			if p.In() == "form" {
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
			}
			req.Header["Authorization"] = []string{"theirs", "more"}
			r, err := p.Render(tc.parts)
			if err == nil {
				err = r.Apply(req)
			}
			if tc.err {
				if !errors.Is(err, key.ErrInvalid) {
					t.Fatalf("got %v, want invalid", err)
				}
				for _, v := range tc.parts {
					if s := string(v.Reveal()); strings.Contains(err.Error(), s) {
						t.Errorf("the error holds the key: %v", err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got string
			switch p.In() {
			case "query":
				got = req.URL.RawQuery
			case "form", "json":
				b, _ := io.ReadAll(req.Body)
				got = string(b)
				if req.ContentLength != int64(len(b)) {
					t.Errorf("length %d of %d bytes", req.ContentLength, len(b))
				}
				again, err := req.GetBody()
				if err != nil {
					t.Fatal(err)
				}
				if b2, _ := io.ReadAll(again); string(b2) != got {
					t.Errorf("the second body is %q", b2)
				}
			default:
				got = strings.Join(req.Header[p.Name()], "|")
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestPlacesThatAreRefused(t *testing.T) {
	for _, p := range []key.Place{
		{}, {In: "cookie"}, {In: "header"}, {In: "header", Name: "a b"}, {In: "header", Name: "Host"}, {In: "header", Name: "connection"},
		{In: "header", Name: "Transfer-Encoding"}, {In: "header", Name: "keybaton-token"}, {In: "header", Name: "A", Value: "static"},
		{In: "header", Name: "A", Value: "{{key"}, {In: "header", Name: "A", Value: "{{other}}"}, {In: "query"}, {In: "form"}, {In: "json"},
		{In: "json", Name: "$.a[0]"}, {In: "basic", User: "u", Value: "static"}, {In: "header", Name: "A", User: "u"},
	} {
		if _, err := call.CompilePlace(p, nil); !errors.Is(err, key.ErrInvalid) {
			t.Errorf("%+v: %v, want invalid", p, err)
		}
	}
}

func TestRenderedCannotBePrinted(t *testing.T) {
	for _, p := range []key.Place{{In: "header", Name: "A"}, {In: "basic"}, {In: "query", Name: "k"}, {In: "form", Name: "k"}, {In: "json", Name: "$.k"}} {
		c, err := call.CompilePlace(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Render(one(marked))
		if err != nil {
			t.Fatal(err)
		}
		type holder struct{ r call.Rendered } // unexported: fmt goes past methods
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if s := fmt.Sprintf(verb+verb+verb, r, &r, holder{r}); strings.Contains(s, "MARKED") || strings.Contains(strings.ToUpper(s), fmt.Sprintf("%X", "MARKED")) {
				t.Errorf("%s in %s prints %s", verb, p.In, s)
			}
		}
		if b, err := json.Marshal(r); err == nil {
			t.Errorf("it encodes as %s", b)
		}
		if !r.Leaks("x"+marked+"y") || r.Leaks("nothing of it") || r.Leaks("") {
			t.Errorf("%s: leaks are not recognised", p.In)
		}
	}
}

func TestPublicPartsAreNoLeak(t *testing.T) {
	c, err := call.CompilePlace(key.Place{In: "basic", User: "{{id}}", Value: "{{secret}}"}, []string{"id", "secret"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Render(secret.Parts{"id": secret.FromString("AC0123456789"), "secret": secret.FromString("hush-hush-hush")})
	if err != nil {
		t.Fatal(err)
	}
	if r.Leaks("/Accounts/AC0123456789/Calls") {
		t.Errorf("the id is public, and links hold it")
	}
	if !r.Leaks("hush-hush-hush") || !r.Leaks("Basic QUMwMTIzNDU2Nzg5Omh1c2gtaHVzaC1odXNo") {
		t.Errorf("the secret is not recognised")
	}
}

func TestFallbackFirst(t *testing.T) {
	ok := call.Standing{Proven: true}
	for _, tc := range []struct {
		name       string
		p, f       call.Standing
		replayable bool
		want       bool
	}{
		{"all well", ok, ok, true, false},
		{"suspect", call.Standing{Suspect: true}, ok, true, true},
		{"suspect, due", call.Standing{Suspect: true, Due: true}, ok, true, false},
		{"suspect, due, cannot be repeated", call.Standing{Suspect: true, Due: true}, ok, false, true},
		{"both suspect", call.Standing{Suspect: true}, call.Standing{Suspect: true}, true, false},
		{"early", call.Standing{Early: true}, ok, true, false},
		{"early, cannot be repeated", call.Standing{Early: true}, ok, false, true},
		{"early but proven, cannot be repeated", call.Standing{Early: true, Proven: true}, ok, false, false},
		{"early, fallback unproven", call.Standing{Early: true}, call.Standing{}, false, false},
	} {
		if got := call.FallbackFirst(tc.p, tc.f, tc.replayable); got != tc.want {
			t.Errorf("%s: %t, want %t", tc.name, got, tc.want)
		}
	}
}

func TestUpstream(t *testing.T) {
	for in, want := range map[string]string{
		"https://API.Example.com": "https://api.example.com", "http://10.0.0.1:8080/v1/": "http://10.0.0.1:8080/v1", "https://x.example/a%2Fb": "https://x.example/a%2Fb",
	} {
		if u, err := call.ParseUpstream(in); err != nil || u.String() != want {
			t.Errorf("%q: %v, %v; want %q", in, u, err, want)
		}
	}
	for _, bad := range []string{"", "x", "ftp://x", "https://", "https://u:MARKED@x", "https://x?a=MARKED", "https://x#f", "https://x/../y", "https://x/%2e%2E", "http://169.254.169.254", "http://[fd00:ec2::254]/", "https://x/%zz?MARKED"} {
		_, err := call.ParseUpstream(bad)
		if !errors.Is(err, key.ErrInvalid) || strings.Contains(err.Error(), "MARKED") {
			t.Errorf("%q: %v, want invalid without the text", bad, err)
		}
	}
	for addr, want := range map[string]bool{"169.254.169.254": true, "169.254.170.2": true, "::ffff:169.254.169.254": true, "64:ff9b::a9fe:a9fe": true,
		"2002:a9fe:a9fe::1": true, "fe80::1%eth0": true, "100.100.100.200": true, "10.0.0.1": false, "127.0.0.1": false, "8.8.8.8": false, "2001:db8::1": false} {
		if got := call.Metadata(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %t, want %t", addr, got, want)
		}
	}
}

func TestProbe(t *testing.T) {
	var seen *http.Request
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		switch r.Header.Get("Authorization") {
		case "Bearer good":
			_, _ = io.WriteString(w, `{"ok":true}`)
		case "Bearer moved":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "Bearer lame":
			_, _ = io.WriteString(w, `{"ok":false}`)
		default:
			w.WriteHeader(401)
			_, _ = io.WriteString(w, "not "+r.Header.Get("Authorization"))
		}
	}))
	defer srv.Close()
	c := key.Call{Upstream: srv.URL + "/base", Place: key.Place{In: "header", Name: "Authorization", Value: "Bearer {{key}}"},
		Probe: &key.Probe{Path: "/me?full=1", Header: map[string]string{"X-Version": "2"}, Rules: []key.Rule{
			{Status: []int{200}, JSON: []key.JSONTest{{Path: "$.ok", Equals: "true"}}, Is: key.IsValid}, {Status: []int{401}, Is: key.IsInvalid}}}}
	p, err := call.CompileProbe(c)
	if err != nil {
		t.Fatal(err)
	}
	rt := srv.Client().Transport
	for k, want := range map[string]call.ProbeResult{
		"good":  {Outcome: evidence.OK, Status: 200, Text: "200 OK"},
		"lame":  {Outcome: evidence.Other, Status: 200, Text: "200 OK"},
		"moved": {Outcome: evidence.Other, Status: 302, Text: "302 Found"},
		marked:  {Outcome: evidence.Auth, Status: 401, Text: "401 Unauthorized"},
	} {
		got, err := p.Do(t.Context(), rt, one(k))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", k, got, err, want)
		}
		if seen.RequestURI != "/base/me?full=1" || seen.Header.Get("X-Version") != "2" || seen.Method != "GET" {
			t.Errorf("the probe was %s %s", seen.Method, seen.RequestURI)
		}
	}
	if s := p.String(); s != "GET "+srv.URL+"/base/me?full=1" {
		t.Errorf("it prints as %q", s)
	}
	if _, err := p.Do(t.Context(), rt, one("a\nb")); !errors.Is(err, key.ErrInvalid) {
		t.Errorf("a key that cannot ride: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Do(ctx, rt, one("good")); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	srv.Close()
	got, err := p.Do(t.Context(), rt, one(marked))
	if err != nil || got.Outcome != evidence.Other || !strings.HasPrefix(got.Text, "no answer") || strings.Contains(got.Text, "MARKED") {
		t.Errorf("unreachable: %+v, %v", got, err)
	}
	for _, path := range []string{"https://elsewhere.example/me", "//elsewhere.example/me", "http://u:p@" + strings.TrimPrefix(srv.URL, "http://") + "/me"} {
		bad := c
		bad.Probe = &key.Probe{Path: path}
		if _, err := call.CompileProbe(bad); !errors.Is(err, key.ErrInvalid) {
			t.Errorf("a probe of %s: %v, want invalid", path, err)
		}
	}
	abs := c
	abs.Probe = &key.Probe{Path: srv.URL + "/whoami"}
	if p, err := call.CompileProbe(abs); err != nil || p.String() != "GET "+srv.URL+"/whoami" {
		t.Errorf("an absolute probe: %v, %v", p, err)
	}
	if _, err := call.CompileProbe(key.Call{Upstream: srv.URL}); !errors.Is(err, key.ErrInvalid) {
		t.Errorf("no probe: %v", err)
	}
}

func TestCutQuery(t *testing.T) {
	for _, tc := range []struct{ raw, name, rest, value string }{
		{"", "k", "", ""}, {"a=1", "k", "a=1", ""}, {"k=1", "k", "", "1"}, {"k=1&a=2", "k", "a=2", "1"}, {"a=2&k=1", "k", "a=2", "1"},
		{"a&&k=%31&b=;&k=2&", "k", "a&&b=;&", "1"}, {"%6b=x&kk=1", "k", "kk=1", "x"}, {"k", "k", "", ""},
	} {
		rest, value, _ := call.CutQuery(tc.raw, tc.name)
		if rest != tc.rest || value != tc.value {
			t.Errorf("%q without %q: %q and %q, want %q and %q", tc.raw, tc.name, rest, value, tc.rest, tc.value)
		}
	}
}
