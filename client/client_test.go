package client_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

func TestNewToken(t *testing.T) {
	seen := map[string]bool{}
	for shape, re := range map[string]string{
		"":                       `^kbt_[0-9A-Za-z]{38}$`,
		"AC{hex:32}":             `^AC[0-9a-f]{32}$`,
		"sk_live_{base62:24}":    `^sk_live_[0-9A-Za-z]{24}$`,
		"pre-{base62:40}-suffix": `^pre-[0-9A-Za-z]{40}-suffix$`,
	} {
		for range 20 {
			v, hash, err := client.NewToken(shape)
			if err != nil {
				t.Fatal(err)
			}
			text := string(v.Reveal())
			sum := sha256.Sum256([]byte(text))
			if !regexp.MustCompile(re).MatchString(text) || hash != hex.EncodeToString(sum[:]) || seen[text] {
				t.Errorf("a token of shape %q has another one, another hash, or was made before", shape)
			}
			seen[text] = true
			if err := client.CheckToken(v); err != nil {
				t.Errorf("a token of shape %q: %v", shape, err)
			}
		}
	}
	for _, shape := range []string{"fixed", "{hex:31}", "{base62:21}", "{hex:0}", "{hex:}", "{base64:32}", "{hex:32}{hex:32}", "a b{hex:32}", "a\n{hex:32}", strings.Repeat("a", 300) + "{hex:32}"} {
		if _, _, err := client.NewToken(shape); !client.IsCode(err, api.CodeInvalid) {
			t.Errorf("shape %.20q: %v", shape, err)
		}
	}
}

func TestCheckTokenFindsEveryTypo(t *testing.T) {
	v, _, err := client.NewToken("")
	if err != nil {
		t.Fatal(err)
	}
	text := v.Reveal()
	for i := len(client.TokenPrefix); i < len(text); i++ {
		damaged := append([]byte(nil), text...)
		if damaged[i]++; damaged[i] == text[i] {
			t.Fatal("nothing was damaged")
		}
		if client.CheckToken(secret.New(damaged)) == nil {
			t.Errorf("a typo at %d is not found", i)
		}
	}
	for _, cut := range [][]byte{text[:len(text)-1], append(append([]byte(nil), text...), 'x'), text[:6]} {
		if client.CheckToken(secret.New(cut)) == nil {
			t.Errorf("a token of %d digits passes", len(cut))
		}
	}
}

func TestAddressesThatAreNotSafe(t *testing.T) {
	for addr, ok := range map[string]bool{
		"": true, "http://127.0.0.1:7460": true, "http://localhost:7460/": true, "http://[::1]:7460": true, "http://127.8.9.1": true,
		"https://keys.example.com": true, "https://keys.example.com/base": true,
		"http://keys.example.com": false, "http://10.0.0.1:7460": false, "http://localhost.evil.com": false, "ftp://127.0.0.1": false, "127.0.0.1:7460": false,
		"https://user:pass@keys.example.com": false, "https://keys.example.com?x=y": false, "https://": false, "::": false,
	} {
		_, err := client.New(client.Config{Address: addr})
		if (err == nil) != ok || err != nil && !client.IsCode(err, api.CodeInvalid) {
			t.Errorf("%q: %v", addr, err)
		}
	}
	if _, err := client.New(client.Config{Address: "http://keys.example.com", InsecureHTTP: true}); err != nil {
		t.Error(err)
	}
}

func serve(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	ts := httptest.NewServer(h)
	t.Cleanup(ts.Close)
	c, err := client.New(client.Config{Address: ts.URL, Token: secret.FromString("the-token"), HTTP: ts.Client()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheTokenFollowsNoRedirect(t *testing.T) {
	asked := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer other.Close()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) })
	if _, err := c.Status(t.Context()); !client.IsCode(err, client.CodeAnswer) || asked != 0 {
		t.Errorf("%v, and the other server was asked %d times", err, asked)
	}
}

func TestNamesAreEscaped(t *testing.T) {
	path := ""
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		path = r.URL.EscapedPath()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	})
	if _, err := c.Credential(t.Context(), client.Credential{Service: "a/../b", Environment: "{service}?x"}); err != nil {
		t.Fatal(err)
	}
	if path != "/api/v1/credentials/a%2F..%2Fb/%7Bservice%7D%3Fx" {
		t.Errorf("the path is %s", path)
	}
}

func TestAnswersThatAreNotKeybatons(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"a page":            func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"a page that fails": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) },
		"broken JSON": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"version":`)
		},
		"a problem of others": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"title":"no"}`)
		},
	} {
		c := serve(t, h)
		if _, err := c.Status(t.Context()); !client.IsCode(err, client.CodeAnswer) {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.Events(t.Context(), client.Filter{}, func(api.Event) error { return nil }); !client.IsCode(err, client.CodeAnswer) {
			t.Errorf("%s as a stream: %v", name, err)
		}
	}
}

func TestEventsAreReadWhole(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, ": hello\n\nevent: credential\ndata: {\"kind\":\"credential\",\ndata: \"service\":%q}\n\nid: 7\ndata: {\"kind\":\"ready\"}\n\ndata: {\"kind\":\"cut", long)
	})
	var got []string
	err := c.Events(t.Context(), client.Filter{}, func(e api.Event) error { got = append(got, e.Kind+fmt.Sprint(len(e.Service))); return nil })
	if err != nil || strings.Join(got, " ") != fmt.Sprintf("credential%d ready0", len(long)) {
		t.Errorf("%v, %v", got, err)
	}
	stop := errors.New("enough")
	if err := c.Events(t.Context(), client.Filter{}, func(api.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

func TestNoAnswer(t *testing.T) {
	ts := httptest.NewServer(http.NotFoundHandler())
	addr := ts.URL
	ts.Close()
	c, err := client.New(client.Config{Address: addr, Token: secret.FromString("the-token")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Status(t.Context())
	if !client.IsCode(err, client.CodeUnreachable) || strings.Contains(err.Error(), "the-token") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestReadGivesValues(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("service") != "billing" || r.Header.Get("Authorization") != "Bearer the-token" {
			t.Errorf("asked %s", r.URL)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"credential":{"service":"billing","environment":"dev"},"version":3,"parts":{"key":"plain"},"fallback":{"key":"before"},"env_name":"K"}`)
	})
	k, err := c.Read(t.Context(), client.Credential{Service: "billing", Environment: "dev"})
	if err != nil || k.Version != 3 || !k.Parts["key"].Equal(secret.FromString("plain")) || !k.Fallback["key"].Equal(secret.FromString("before")) || k.EnvName != "K" {
		t.Errorf("%v, %v", k, err)
	}
	if s := fmt.Sprintf("%v %+v", k, k); strings.Contains(s, "plain") {
		t.Error("a key prints")
	}
}
