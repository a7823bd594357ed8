package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/server"
)

const token = "kbt_tokenOfTheTest"

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// tokens knows one token by its hash.
type tokens struct {
	t   access.Token
	err error
}

func (k tokens) TokenByHash(_ context.Context, hash string) (access.Token, error) {
	sum := sha256.Sum256([]byte(token))
	if k.err != nil || hash != hex.EncodeToString(sum[:]) {
		return access.Token{}, errors.Join(k.err, key.ErrNotFound)
	}
	return k.t, nil
}

// broken cannot look anything up.
type broken struct{}

func (broken) TokenByHash(context.Context, string) (access.Token, error) {
	return access.Token{}, errors.New("the disk fell off")
}

func newServer(t *testing.T, k server.Tokens, log *bytes.Buffer, origins ...string) *server.Server {
	t.Helper()
	s, err := server.New(server.Config{Tokens: k, Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(log, nil)), Origins: origins})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func get(h http.Handler, method string, head map[string][]string) (*httptest.ResponseRecorder, server.Problem) {
	r := httptest.NewRequest(method, "http://keys.example.com/x", nil)
	for k, v := range head {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var p server.Problem
	_ = json.Unmarshal(w.Body.Bytes(), &p) // an answer of ours is no problem
	return w, p
}

func TestWhoIsAsking(t *testing.T) {
	known := tokens{t: access.Token{Name: "ops", Role: access.RoleOperator}}
	expired := tokens{t: access.Token{Name: "ops", Expires: now}}
	var log bytes.Buffer
	for name, c := range map[string]struct {
		tokens server.Tokens
		head   []string
		status int
		code   string
	}{
		"the token":               {known, []string{"Bearer " + token}, 200, ""},
		"another case":            {known, []string{"bearer   " + token + " "}, 200, ""},
		"none":                    {known, nil, 401, "no_token"},
		"an unknown one":          {known, []string{"Bearer kbt_other"}, 401, "no_token"},
		"another scheme":          {known, []string{"Basic " + token}, 401, "no_token"},
		"a bare token":            {known, []string{token}, 401, "no_token"},
		"nothing after the word":  {known, []string{"Bearer "}, 401, "no_token"},
		"two headers":             {known, []string{"Bearer " + token, "Bearer kbt_other"}, 401, "no_token"},
		"a very long one":         {known, []string{"Bearer " + strings.Repeat("a", 2000)}, 401, "no_token"},
		"an expired one":          {expired, []string{"Bearer " + token}, 401, "no_token"},
		"while the store is down": {broken{}, []string{"Bearer " + token}, 500, "internal"},
	} {
		s := newServer(t, c.tokens, &log)
		asked := access.Principal{}
		h := s.Wrap(s.Require(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = server.PrincipalOf(r.Context()) })))
		w, p := get(h, "GET", map[string][]string{"Authorization": c.head})
		if w.Code != c.status || p.Code != c.code {
			t.Errorf("%s: %d %q", name, w.Code, p.Code)
		}
		if c.status == 200 && (asked.Name != "ops" || asked.Role != access.RoleOperator) || c.status != 200 && asked.Name != "" {
			t.Errorf("%s: it was %+v who asked", name, asked)
		}
		if c.status == 401 && (w.Header().Get("WWW-Authenticate") == "" || p.Next == "") {
			t.Errorf("%s: %v has no next step", name, p)
		}
		if strings.Contains(w.Body.String()+log.String(), token) || strings.Contains(w.Body.String(), "disk") {
			t.Errorf("%s: the answer or the log says too much", name)
		}
	}
	if server.PrincipalOf(t.Context()).Check(access.See, key.CredentialID{}) == nil {
		t.Error("nobody may see")
	}
}

func TestPagesOfOtherOriginsChangeNothing(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, tokens{}, &log, "https://friend.example.com")
	ran := 0
	h := s.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran++ }))
	for _, c := range []struct {
		method string
		head   map[string][]string
		status int
	}{
		{"POST", nil, 200}, // not a browser
		{"POST", map[string][]string{"Sec-Fetch-Site": {"same-origin"}}, 200},
		{"GET", map[string][]string{"Sec-Fetch-Site": {"cross-site"}}, 200}, // a link
		{"POST", map[string][]string{"Sec-Fetch-Site": {"cross-site"}}, 403},
		{"DELETE", map[string][]string{"Origin": {"https://evil.example.com"}}, 403},
		{"POST", map[string][]string{"Origin": {"https://friend.example.com"}, "Sec-Fetch-Site": {"cross-site"}}, 200},
	} {
		before := ran
		w, p := get(h, c.method, c.head)
		if w.Code != c.status || (ran > before) != (c.status == 200) || c.status == 403 && (p.Code != "cross_origin" || p.Next == "") {
			t.Errorf("%s %v: %d %s", c.method, c.head, w.Code, w.Body)
		}
	}
	if _, err := server.New(server.Config{Tokens: tokens{}, Origins: []string{"friend.example.com/path"}}); !errors.Is(err, key.ErrInvalid) {
		t.Errorf("a bad origin: %v", err)
	}
	if _, err := server.New(server.Config{}); !errors.Is(err, key.ErrInvalid) {
		t.Errorf("no tokens: %v", err)
	}
}

func TestEveryAnswerHasItsHeaders(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, tokens{}, &log)
	id := ""
	for name, h := range map[string]http.Handler{
		"an answer": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { id = server.RequestID(r.Context()) }),
		"a problem": s.NotFound(),
		"a panic":   http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(token) }),
	} {
		w, p := get(s.Wrap(h), "GET", nil)
		head := w.Header()
		if head.Get("Cache-Control") != "no-store" || head.Get("X-Content-Type-Options") != "nosniff" || head.Get("X-Frame-Options") != "DENY" ||
			!strings.Contains(head.Get("Content-Security-Policy"), "default-src 'none'") || head.Get("X-Request-Id") == "" {
			t.Errorf("%s: %v", name, head)
		}
		if name == "an answer" && id != head.Get("X-Request-Id") || name != "an answer" && p.RequestID != head.Get("X-Request-Id") {
			t.Errorf("%s: the request is %q, %q and %q", name, id, p.RequestID, head.Get("X-Request-Id"))
		}
	}
	if strings.Contains(log.String(), token) || !strings.Contains(log.String(), "a request panicked") {
		t.Errorf("the log says %s", log.String())
	}
}

func TestHintsAreTakenApart(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, tokens{}, &log)
	err := fmt.Errorf("setting: %w", key.WithHint(fmt.Errorf("%w: it is bad", key.ErrInvalid), "do better"))
	if p := s.Problem(t.Context(), err); p.Detail != "setting: invalid input: it is bad" || p.Next != "do better" || p.Status != 422 {
		t.Errorf("%+v", p)
	}
	if p := s.Problem(t.Context(), fmt.Errorf("asking: %w", context.DeadlineExceeded)); p.Status != 503 || p.Code != "unavailable" {
		t.Errorf("%+v", p)
	}
	q := &server.Problem{Status: 418, Detail: "a teapot"}
	if p := s.Problem(t.Context(), fmt.Errorf("again: %w", q)); p != q {
		t.Errorf("%+v", p)
	}
	if log.Len() != 0 {
		t.Errorf("known errors were logged: %s", log.String())
	}
}
