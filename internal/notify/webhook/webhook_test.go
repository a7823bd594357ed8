package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/notify"
	"github.com/keybaton/keybaton/internal/notify/webhook"
	"github.com/keybaton/keybaton/secret"
)

var (
	now      = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	delivery = alert.Delivery{ID: "al_1.000001.hook", Channel: "hook", Alert: alert.Alert{ID: "al_1", State: alert.Firing, Started: now, LastSeen: now, Change: 1,
		Signal: alert.Signal{Credential: key.CredentialID{Service: "billing-api", Environment: "prod"}, Version: 2, Kind: alert.Spike, Severity: alert.Critical,
			Error: "401 Unauthorized", Cause: "refused", Fix: "keybaton rotate billing-api --env prod"}}}
)

const hidden = "s3cr3t-path"

// hook starts a receiver and a webhook that posts to it.
func hook(t *testing.T, key string, answer http.HandlerFunc) *webhook.Webhook {
	t.Helper()
	srv := httptest.NewServer(answer)
	t.Cleanup(srv.Close)
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	w, err := webhook.New(webhook.Config{URL: secret.FromString(strings.Replace(srv.URL, "//", "//user:"+hidden+"@", 1) + "/" + hidden + "?token=" + hidden),
		Secret: secret.FromString(key), Transport: tr, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestPosts(t *testing.T) {
	var got map[string]any
	w := hook(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" || r.URL.Path != "/"+hidden || r.Header.Get("Webhook-Signature") != "" {
			t.Errorf("got %s %s %v", r.Method, r.URL, r.Header)
		}
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	if err := w.Send(t.Context(), delivery); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{"service": "billing-api", "error": "401 Unauthorized", "timestamp": "2026-11-22T10:00:00Z", "environment": "prod",
		"state": "firing", "severity": "critical", "kind": "spike", "cause": "refused", "version": 2.0, "id": "al_1"} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

func TestSigns(t *testing.T) {
	w := hook(t, "a key", func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mac := hmac.New(sha256.New, []byte("a key"))
		mac.Write([]byte("al_1.000001.hook.1795341600." + string(body)))
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("Webhook-Signature") != want ||
			r.Header.Get("Webhook-Id") != delivery.ID || r.Header.Get("Webhook-Timestamp") != "1795341600" {
			t.Errorf("signed as %v, want %s", r.Header, want)
		}
	})
	if err := w.Send(t.Context(), delivery); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		status int
		after  string
		want   string
		later  time.Duration // -1: not said
	}{
		{400, "", "answered 400", -1},
		{400, "7", "answered 400", -1},
		{500, "", "answered 500", -1},
		{302, "", "answered 302, and redirects are not followed", -1},
		{307, "", "answered 307, and redirects are not followed", -1},
		{429, "", "answered 429", -1},
		{429, "7", "answered 429", 7 * time.Second},
		{429, "Sun, 22 Nov 2026 10:01:00 GMT", "answered 429", time.Minute},
		{429, "Sun, 22 Nov 2026 09:00:00 GMT", "answered 429", 0},
		{429, "soon", "answered 429", -1},
		{429, "-5", "answered 429", -1},
		{503, "9", "answered 503", 9 * time.Second},
	}
	for _, tt := range tests {
		calls := 0
		w := hook(t, "", func(w http.ResponseWriter, _ *http.Request) {
			calls++
			w.Header().Set("Location", "/elsewhere")
			if tt.after != "" {
				w.Header().Set("Retry-After", tt.after)
			}
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, hidden)
		})
		err := w.Send(t.Context(), delivery)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), hidden) || calls != 1 {
			t.Errorf("%d: got %v after %d calls", tt.status, err, calls)
		}
		l := (*notify.Later)(nil)
		if later := errors.As(err, &l); later != (tt.later >= 0) || later && l.After != tt.later {
			t.Errorf("%d %q: later is %v", tt.status, tt.after, l)
		}
	}
}

type broken struct{}

func (broken) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("no route") }

// No error says more of the URL than its host.
func TestErrorsHideTheURL(t *testing.T) {
	w, err := webhook.New(webhook.Config{URL: secret.FromString("https://u:" + hidden + "@hooks.example.com/" + hidden + "?t=" + hidden + "#" + hidden), Transport: broken{}})
	if err != nil {
		t.Fatal(err)
	}
	err = w.Send(t.Context(), delivery)
	if err == nil || err.Error() != "the webhook at hooks.example.com did not answer: no route" {
		t.Errorf("got %v", err)
	}
	if w.Host() != "hooks.example.com" {
		t.Errorf("the host is %q", w.Host())
	}
	for _, u := range []string{"", hidden, "ftp://x/" + hidden, "https:///" + hidden, "https://x:y:z/" + hidden, "https://%zz/" + hidden, "http://x/" + hidden + "\x7f"} {
		_, err := webhook.New(webhook.Config{URL: secret.FromString(u)})
		if !errors.Is(err, key.ErrInvalid) || strings.Contains(err.Error(), hidden) {
			t.Errorf("%q is %v", u, err)
		}
	}
}

func TestEndsWithTheContext(t *testing.T) {
	there := make(chan struct{})
	w := hook(t, "", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(there)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-there
		cancel()
	}()
	if err := w.Send(ctx, delivery); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), hidden) {
		t.Errorf("got %v", err)
	}
}
