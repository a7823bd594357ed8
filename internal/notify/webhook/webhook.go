// Package webhook is the channel that posts alerts as JSON to a URL.
//
// The body is an [alert.Payload]. With a secret, requests are signed as
// Standard Webhooks does: the headers webhook-id, webhook-timestamp and
// webhook-signature, the last "v1," and the base64 HMAC-SHA256 of id, timestamp
// and body joined with dots. The id is the delivery's, the same on each
// attempt, so that a receiver can drop what it has. A status from 200 to 299
// takes the delivery; redirects are not followed. The URL counts as a secret:
// no error names more of it than its host.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/notify"
	"github.com/keybaton/keybaton/secret"
)

// Config is what a webhook works with. URL is required.
type Config struct {
	URL       secret.Value      // https or http
	Secret    secret.Value      // signs the requests; empty: they are not signed
	Transport http.RoundTripper // nil means a transport of its own
	Now       func() time.Time  // nil means time.Now
}

// Webhook is the channel. It is safe for concurrent use.
type Webhook struct {
	cfg    Config
	host   string
	client *http.Client
}

// New returns a webhook, or key.ErrInvalid.
func New(c Config) (*Webhook, error) {
	u, err := url.Parse(string(c.URL.Reveal()))
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		// NOTE: url.Parse puts the text into its error.
		return nil, key.WithHint(fmt.Errorf("%w: the URL of a webhook is not an http or https URL", key.ErrInvalid), "write it like https://hooks.example.com/alerts")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Transport == nil {
		c.Transport = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 2,
			IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10}
	}
	return &Webhook{cfg: c, host: u.Host, client: &http.Client{
		Transport:     c.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Host returns the host of the URL, for people.
func (w *Webhook) Host() string { return w.host }

// Send posts d. It blocks until the answer is there or ctx ends. A 429 or 503
// with Retry-After is a [*notify.Later].
func (w *Webhook) Send(ctx context.Context, d alert.Delivery) error {
	body, err := json.Marshal(alert.Message(d.Alert))
	if err != nil {
		return fmt.Errorf("encoding the alert: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, string(w.cfg.URL.Reveal()), bytes.NewReader(body))
	if err != nil {
		return w.errorf("the request cannot be made")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "keybaton")
	if !w.cfg.Secret.IsZero() {
		at := strconv.FormatInt(w.cfg.Now().Unix(), 10)
		mac := hmac.New(sha256.New, w.cfg.Secret.Reveal())
		mac.Write([]byte(d.ID + "." + at + "."))
		mac.Write(body)
		req.Header.Set("Webhook-Id", d.ID)
		req.Header.Set("Webhook-Timestamp", at)
		req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	res, err := w.client.Do(req)
	if err != nil {
		// The error of the client names the URL; the one in it does not.
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			err = ue.Err
		}
		return w.errorf("did not answer: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 4<<10)) // so that the connection is used again
	switch {
	case res.StatusCode/100 == 2:
		return nil
	case res.StatusCode/100 == 3:
		return w.errorf("answered %d, and redirects are not followed", res.StatusCode)
	}
	err = w.errorf("answered %d", res.StatusCode)
	if res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusServiceUnavailable {
		if after, ok := retryAfter(res.Header.Get("Retry-After"), w.cfg.Now()); ok {
			return &notify.Later{After: after, Err: err}
		}
	}
	return err
}

func (w *Webhook) errorf(format string, args ...any) error {
	return fmt.Errorf("the webhook at %s %w", w.host, fmt.Errorf(format, args...))
}

// retryAfter reads seconds or a date (RFC 9110 §10.2.3).
func retryAfter(s string, now time.Time) (time.Duration, bool) {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil && n >= 0 {
		return time.Duration(n) * time.Second, true
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now)), true
	}
	return 0, false
}
