package nethttp_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
)

const wide = "sk_live_a-token-in-the-vendors-shape"

// town is a frame with two services in two environments.
func town(c key.Call) link.Frame {
	dev := c
	dev.Upstream = c.Upstream + "/sandbox"
	f := frame(1,
		cred(prod, c, 7), cred(key.CredentialID{Service: "billing-api", Environment: "dev"}, dev, 2),
		cred(key.CredentialID{Service: "mail", Environment: "prod"}, c, 3))
	f.Tokens = append(f.Tokens,
		link.Token{Name: "wide", Hash: hash(wide), Grants: []access.Grant{{Environment: "*", Services: []string{"billing-api"}}}},
		link.Token{Name: "old", Hash: hash("kbt_expired"), Expires: time.Now().Add(-time.Second), Grants: []access.Grant{{Environment: "*", Services: []string{"*"}}}})
	return f
}

func TestRouting(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, bearerOf(req)[len("MARKED-key-of-"):][:2]+" "+req.RequestURI)
	}, nil)
	r.install(town(r.call))
	for _, tc := range []struct {
		token, host, path string
		want              string // version and request target at the vendor
		status            int
		code              string
	}{
		{token: token, path: "/billing-api/v1/me", want: "v7 /v1/me"},
		{token: token, path: "/billing-api", want: "v7 /"},
		{token: token, path: "/billing-api/", want: "v7 /"},
		{token: token, path: "/billing-api//x", want: "v7 //x"},
		{token: token, path: "/billing-api/a%2Fb/%7Euser/../c?q=%20+&&x;y=1", want: "v7 /a%2Fb/%7Euser/../c?q=%20+&&x;y=1"},
		{token: token, path: "/billing-api/x?", want: "v7 /x?"},
		{token: token, path: "/mail/send", want: "v3 /send"},
		{token: token, path: "/prod/billing-api/v1", want: "v7 /v1"},
		{token: token, path: "/billing-api@prod/v1", want: "v7 /v1"},
		{token: token, host: "billing-api.prod.keybaton", path: "/billing-api/v1", want: "v7 /billing-api/v1"},
		{token: token, host: "Billing-API.PROD.Keybaton:7461", path: "/v1", want: "v7 /v1"},
		{token: wide, path: "/dev/billing-api/v1", want: "v2 /sandbox/v1"},
		{token: wide, path: "/billing-api@dev", want: "v2 /sandbox"},
		{token: wide, path: "/billing-api/v1", status: 400, code: "ambiguous_environment"},
		{token: wide, path: "/dev/billing-api/%2e%2E/admin", status: 400, code: "bad_path"},
		{token: wide, path: "/mail/v1", status: 403, code: "not_granted"},
		{token: token, path: "/dev/billing-api/v1", status: 403, code: "not_granted"},
		{token: token, path: "/nothing/v1", status: 404, code: "unknown_service"},
		{token: token, path: "/", status: 404, code: "unknown_service"},
		{token: token, path: "/billing%2Dapi/v1", status: 404, code: "unknown_service"},
		{token: token, path: "/mail@dev/v1", status: 404, code: "unknown_environment"},
		{token: token, host: "mail.dev.keybaton", path: "/", status: 404, code: "unknown_environment"},
		{path: "/billing-api/v1", status: 401, code: "no_token"},
		{path: "/nothing/v1", status: 401, code: "no_token"},
		{token: "wrong", path: "/billing-api/v1", status: 401, code: "bad_token"},
		{token: token + "x", path: "/nothing/v1", status: 401, code: "bad_token"},
		{token: strings.Repeat("x", 100_0), path: "/billing-api/v1", status: 401, code: "no_token"},
		{token: "kbt_expired", path: "/billing-api/v1", status: 401, code: "expired_token"},
	} {
		t.Run(tc.host+tc.path+" "+tc.code, func(t *testing.T) {
			a := raw(t, r, tc.host, tc.path, tc.token)
			if tc.code != "" {
				wantFault(t, a, tc.status, tc.code)
				return
			}
			if a.body != tc.want || a.StatusCode != 200 {
				t.Errorf("got %d %q, want %q", a.StatusCode, a.body, tc.want)
			}
		})
	}
	if u := r.use(7); u.Live.Auth+u.Live.Perm+u.Live.Other != 0 {
		t.Errorf("answers of ours were counted as the vendor's: %+v", u)
	}
}

// raw sends a request target byte for byte.
func raw(t *testing.T, r *rig, host, target, token string, lines ...string) answer {
	t.Helper()
	c, err := net.Dial("tcp", r.front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if host == "" {
		host = "127.0.0.1:7461"
	}
	method := "GET"
	if len(lines) > 0 && !strings.Contains(lines[0], ":") {
		method, lines = lines[0], lines[1:]
	}
	msg := method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\nKeybaton-Close: 1\r\n"
	if token != "" {
		msg += "Authorization: Bearer " + token + "\r\n"
	}
	for _, l := range lines {
		msg += l + "\r\n"
	}
	if _, err := io.WriteString(c, msg+"\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	resp, err := http.ReadResponse(newReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, string(b)}
}

func TestWhereTheTokenMayBe(t *testing.T) {
	basic := func(user, pass string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))
	}
	header := key.Place{In: key.InHeader, Name: "X-Api-Key"}
	for _, tc := range []struct {
		name   string
		place  key.Place
		header http.Header
		query  string
		body   string
		want   string // "" means refused
	}{
		{"bearer", key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}, http.Header{"Authorization": {"Bearer " + token}}, "", "", "Bearer KEY"},
		{"bearer in lower case", key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}, http.Header{"Authorization": {"bearer " + token}}, "", "", "Bearer KEY"},
		{"raw authorization", key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}, http.Header{"Authorization": {token}}, "", "", "Bearer KEY"},
		{"the vendor's own scheme", key.Place{In: key.InHeader, Name: "Authorization", Value: `Token token="{{key}}"`}, http.Header{"Authorization": {`Token token="` + token + `"`}}, "", "", `Token token="KEY"`},
		{"the key's header", header, http.Header{"X-Api-Key": {token}}, "", "", "KEY"},
		{"bearer for a key header", header, http.Header{"Authorization": {"Bearer " + token}}, "", "", "KEY"},
		{"basic password", key.Place{In: key.InBasic, User: "api", Value: "{{key}}"}, http.Header{"Authorization": {basic("api", token)}}, "", "", basic("api", "KEY")},
		{"basic user", key.Place{In: key.InBasic, User: "{{key}}"}, http.Header{"Authorization": {basic(token, "")}}, "", "", basic("KEY", "")},
		{"our header", header, http.Header{"Keybaton-Token": {token}}, "", "", "KEY"},
		{"proxy authorization", header, http.Header{"Proxy-Authorization": {basic("x", token)}}, "", "", "KEY"},
		{"query", key.Place{In: key.InQuery, Name: "key"}, nil, "a=1&key=" + token + "&b=2", "", "a=1&b=2&key=KEY"},
		{"query, escaped name", key.Place{In: key.InQuery, Name: "api key"}, nil, "api%20key=" + token, "", "api+key=KEY"},
		{"form", key.Place{In: key.InForm, Name: "token"}, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, "", "a=1&token=" + token, "a=1&token=KEY"},
		{"json", key.Place{In: key.InJSON, Name: "$.auth.key"}, http.Header{"Content-Type": {"application/json"}}, "", `{"auth":{"key":"` + token + `"},"n":12345678901234567890}`, `{"auth":{"key":"KEY"},"n":12345678901234567890}`},
		{"json, our header", key.Place{In: key.InJSON, Name: "$.key"}, http.Header{"Keybaton-Token": {token}}, "", ``, `{"key":"KEY"}`},
		{"nowhere", header, nil, "", "", ""},
		{"in another query parameter", key.Place{In: key.InQuery, Name: "key"}, nil, "other=" + token, "", ""},
		{"in a header of no meaning", header, http.Header{"X-Other": {token}}, "", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
				b, _ := io.ReadAll(req.Body)
				all := fmt.Sprint(req.Header, req.URL, string(b))
				if strings.Contains(all, token) || strings.Contains(all, base64.StdEncoding.EncodeToString([]byte("x:"+token))) {
					t.Errorf("the token reached the vendor: %s", all)
				}
				var got string
				switch tc.place.In {
				case key.InQuery:
					got = req.URL.RawQuery
				case key.InForm, key.InJSON:
					got = string(b)
				default:
					name := tc.place.Name
					if name == "" {
						name = "Authorization"
					}
					got = req.Header.Get(name)
				}
				if tc.place.Name == "X-Api-Key" && req.Header["Authorization"] != nil {
					t.Errorf("the header that held the token went to the vendor empty or not: %v", req.Header)
				}
				w.Header().Set("X-Got", got) // holds the key: must not come back
				_, _ = io.WriteString(w, strings.NewReplacer(keyOf(7), "KEY",
					basic("api", keyOf(7)), basic("api", "KEY"), basic(keyOf(7), ""), basic("KEY", "")).Replace(got))
			}, func(c *key.Call) { c.Place = tc.place }, 7)
			req := r.request("POST", "/billing-api/x?"+tc.query, strings.NewReader(tc.body))
			if tc.body == "" {
				req = r.request("GET", "/billing-api/x?"+tc.query, nil)
			}
			for k, v := range tc.header {
				req.Header[k] = v
			}
			a := r.do(req)
			if tc.want == "" {
				if a.StatusCode != 401 || a.Header.Get("Keybaton-Error") == "" {
					t.Errorf("answered %d, want our 401", a.StatusCode)
				}
				return
			}
			if a.StatusCode != 200 || a.body != tc.want {
				t.Errorf("answered %d %q, want %q", a.StatusCode, a.body, tc.want)
			}
			if got := a.Header.Get("X-Got"); got != "" {
				t.Errorf("the vendor's echo of the key came back: %q", got)
			}
		})
	}
}

func TestHeadersThatCouldHarm(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		if bearerOf(req) != keyOf(7) {
			w.WriteHeader(401)
		}
		for _, n := range []string{"Connection", "X-Drop", "Keep-Alive", "Proxy-Connection", "Te", "Upgrade", "Keybaton-Anything", "Expect", "X-Forwarded-For", "Forwarded", "User-Agent"} {
			if v := req.Header[n]; v != nil {
				t.Errorf("%s: %q reached the vendor", n, v)
			}
		}
		if req.Header.Get("X-Keep") != "yes" {
			t.Errorf("an ordinary header was lost")
		}
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Keybaton-Error", "forged")
		w.Header().Set("Keybaton-Version", "forged")
	}, nil, 7, 8)
	a := raw(t, r, "", "/billing-api/x", token, "Connection: close, X-Drop", "X-Drop: 1", "Keep-Alive: 5", "Proxy-Connection: x", "TE: gzip",
		"keybaton-anything: 1", "X-Keep: yes")
	if a.StatusCode != 200 || a.Header.Get("X-Hop") != "" || a.Header.Get("Keybaton-Error") != "" || a.Header.Get("Keybaton-Version") != "v7" {
		t.Errorf("answered %d with %v", a.StatusCode, a.Header)
	}
	for _, tc := range []struct {
		line   string
		status int
		code   string
	}{
		{"Connection: authorization", 400, "bad_connection_header"},
		{"Connection: close, AUTHORIZATION", 400, "bad_connection_header"},
		{"Connection: Host", 400, "bad_connection_header"},
		{"Connection: Content-Length", 400, "bad_connection_header"},
		{"Upgrade: h2c", 501, "upgrade_refused"},
		{"Upgrade: websocket", 501, "websocket_unsupported"},
	} {
		wantFault(t, raw(t, r, "", "/billing-api/x", token, tc.line), tc.status, tc.code)
	}
	for _, m := range []string{"TRACE", "TRACK"} {
		wantFault(t, raw(t, r, "", "/billing-api/x", token, m), 405, "method_refused")
	}
	if u, v := r.use(7), r.use(8); u.Live.Auth != 0 || u.Worse != 0 || v.Live.Attempts() != 0 {
		t.Errorf("a caller's header made evidence against a key: %+v %+v", u, v)
	}
}
