package keybatontest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/keybatontest"
	"github.com/keybaton/keybaton/secret"
)

// mark is in every key of the story. It has characters that encoders change.
const mark = "MARKED/kEy+zq7"

// forms are the shapes in which a mark could come out.
func forms() [][]byte {
	out := [][]byte{[]byte(mark), []byte(url.QueryEscape(mark)), []byte(url.PathEscape(mark)), []byte(hex.EncodeToString([]byte(mark)))}
	for shift := range 3 { // the three ways in which base64 can cut it
		b := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + mark))
		out = append(out, []byte(strings.TrimRight(b, "=")[4:14]))
	}
	return out
}

func leaks(b []byte) bool {
	for _, f := range forms() {
		if bytes.Contains(b, f) {
			return true
		}
	}
	return false
}

// TestNoKeyLeaks runs the whole story with marked keys (set, call, refused,
// rotated, rolled back, alerted, wrong input of every kind) and finds the mark
// in no log, metric, error, event, page, audit row or store file.
func TestNoKeyLeaks(t *testing.T) {
	t.Parallel()
	var dead sync.Map // keys that the vendor refuses
	var seen atomic.Int64
	vendor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if _, ok := dead.Load(k); ok || !strings.HasPrefix(k, mark) {
			w.Header().Set("X-Echo", k) // a vendor that talks too much
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		seen.Add(1)
		w.Header().Set("X-Echo", k)
		_, _ = io.WriteString(w, `{"ok":true}`)
	}))
	defer vendor.Close()
	hooks := &keybatontest.Buffer{}
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(hooks, "%v %s\n", r.Header, b)
	}))
	defer hook.Close()

	s := keybatontest.Start(t, keybatontest.Config{Webhooks: []secret.Value{secret.FromString(hook.URL)}})
	out := &keybatontest.Buffer{} // everything that anybody could read
	id := client.Credential{Service: "crm", Environment: "prod"}
	file := fmt.Sprintf(`version: 1
services:
  crm: {provider: manual, upstream: %q, probe: {get: /me, valid: [200], invalid: [401]}}
credentials:
  - {service: crm, environment: prod, policy: quick}
`, vendor.URL) + strings.Replace(quick, "watch: 100ms", "watch: 100ms, unverified: proceed", 1)
	s.Apply(t, file)
	set := func(k string) error {
		_, err := s.Client.Set(t.Context(), id, secret.Parts{"key": secret.FromString(k)}, "the story")
		_, _ = fmt.Fprintf(out, "set: %v %+v\n", err, err)
		return err
	}
	if err := set(mark + "-1"); err != nil {
		t.Fatal(err)
	}
	if set(mark+"-1") == nil {
		t.Error("the same key was taken twice")
	}
	dead.Store(mark+"-dead", true)
	_ = set(mark + "-dead") // refused at once, or a rotation that rolls back: either way nothing shows it
	s.Until(t, "the dead key to be gone", func(ctx context.Context) bool {
		c, err := s.Client.Credential(ctx, id)
		return err == nil && c.Rotation == nil
	})
	tok := s.Consumer(t, "callers", "crm", "prod")
	call := func(path string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.Gateway+path, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		client.Authorize(req, tok)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		_, _ = fmt.Fprintf(out, "%s: %s %v %s\n", path, resp.Status, resp.Header, b)
	}
	call("/crm/items")
	call("/none/items")
	if err := set(mark + "-2"); err != nil {
		t.Fatal(err)
	}
	s.Until(t, "the second key to be the primary", func(ctx context.Context) bool {
		call("/crm/items")
		c, err := s.Client.Credential(ctx, id)
		if err != nil {
			return false
		}
		for _, v := range c.Versions {
			if v.Number == c.Slots.Primary && v.Number > 1 && c.Rotation != nil {
				return true
			}
		}
		return false
	})
	dead.Store(mark+"-2", true) // behind our back: the fallback carries on, the alert goes out
	s.Until(t, "the alert", func(context.Context) bool {
		call("/crm/items")
		return strings.Contains(hooks.String(), `"service":"crm"`)
	})
	dead.Store(mark+"-1", true)
	call("/crm/items")
	_, err := s.Client.Rollback(t.Context(), id, "")
	_, _ = fmt.Fprintf(out, "rollback: %v\n", err)
	s.Client.Rotate(t.Context(), id, api.Rotate{Emergency: true}) //nolint:errcheck // whatever it says is looked at in the log

	// Wrong input that carries a key must not be echoed.
	raw := func(method, path, body string) {
		req, err := http.NewRequestWithContext(t.Context(), method, s.API+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(s.Dir, "config", "admin.token"))
		if err != nil {
			t.Fatal(err)
		}
		client.Authorize(req, secret.FromString(strings.TrimSpace(string(b))))
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		got, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		_, _ = fmt.Fprintf(out, "%s %s: %s %v %s\n", method, path, resp.Status, resp.Header, got)
	}
	for _, body := range []string{`{"parts":{"key":["` + mark + `"]}}`, `{"parts":"` + mark + `"}`, `{"parts":{"other":"` + mark + `"}}`, `{"parts":{"key":"` + mark + `"`, `{"part":{"key":"` + mark + `"}}`, mark} {
		raw(http.MethodPost, "/api/v1/credentials/crm/prod/set", body)
	}
	raw(http.MethodPost, "/api/v1/import", `{"environment":"prod","dry_run":true,"variables":[{"name":"CRM_API_KEY","value":"`+mark+`-3"},{"name":"X","value":7}]}`)
	raw(http.MethodPost, "/api/v1/import", `{"environment":"prod","dry_run":true,"variables":[{"name":"CRM_API_KEY","value":"`+mark+`-3"}]}`)
	for _, p := range []string{"/api/v1/status", "/api/v1/services", "/api/v1/credentials", "/api/v1/credentials/crm/prod", "/api/v1/credentials/crm/prod/plan", "/api/v1/rotations", "/api/v1/consumers", "/api/v1/tokens",
		"/api/v1/audit", "/api/v1/audit/verify", "/api/v1/alerts", "/api/v1/recipes", "/metrics", "/api/v1/openapi.json", "/api/v1/consumer/key?service=crm&environment=prod", "/nothing"} {
		raw(http.MethodGet, p, "")
	}

	if seen.Load() == 0 {
		t.Fatal("the vendor never saw a marked key: the story proves nothing")
	}
	if leaks([]byte(out.String())) {
		t.Errorf("an answer or error holds the mark:\n%s", out)
	}
	if leaks([]byte(s.Log.String())) {
		t.Errorf("the log holds the mark:\n%s", s.Log)
	}
	if leaks([]byte(hooks.String())) {
		t.Errorf("a webhook holds the mark:\n%s", hooks)
	}
	scan := func() {
		files := 0
		err := filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err == nil && leaks(b) {
				t.Errorf("the file %s holds the mark", filepath.Base(path))
			}
			files++
			return err
		})
		if err != nil || files < 4 {
			t.Errorf("looked at %d files: %v", files, err)
		}
	}
	scan()
	s.Close()
	scan()
}
