package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

// traffic is steady requests of several callers, each checked: a caller sees a
// failure when it gets anything but 200 with an answer to what it sent.
type traffic struct {
	base    string
	token   secret.Value
	callers int
	rate    int
	client  *http.Client
	end     context.CancelFunc
	wg      sync.WaitGroup

	requests, failed, fallbacks atomic.Int64
	versions                    [64]atomic.Int64 // answered, by version number

	mu   sync.Mutex
	errs []string
	past []sample // of the last second
}

type sample struct {
	at       time.Time
	versions [64]int64
}

func newTraffic(base string, token secret.Value, callers, rate int) *traffic {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.MaxIdleConnsPerHost = nil, callers
	return &traffic{base: base, token: token, callers: callers, rate: rate, client: &http.Client{Transport: t, Timeout: 10 * time.Second}}
}

// start begins when the gateway knows the callers' token.
func (t *traffic) start(ctx context.Context) error {
	ctx, t.end = context.WithCancel(ctx)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for t.send(ctx, 0, 0) != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the gateway to know the callers: %w", ctx.Err())
		case <-tick.C:
		}
	}
	t.requests.Store(0)
	for i := range t.versions {
		t.versions[i].Store(0)
	}
	for i := range t.callers {
		t.wg.Go(func() { t.caller(ctx, i) })
	}
	return nil
}

// stop ends the callers and waits for their last answers.
func (t *traffic) stop() {
	t.end()
	t.wg.Wait()
}

func (t *traffic) caller(ctx context.Context, n int) {
	tick := time.NewTicker(time.Second / time.Duration(t.rate))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// A request that has begun is answered, also when the story ends.
		if err := t.send(context.WithoutCancel(ctx), n, i); err != nil {
			t.failed.Add(1)
			t.mu.Lock()
			if len(t.errs) < 5 {
				t.errs = append(t.errs, err.Error())
			}
			t.mu.Unlock()
		}
	}
}

// send makes one request and checks its answer.
func (t *traffic) send(ctx context.Context, n, i int) error {
	method, path := http.MethodGet, fmt.Sprintf("/v1/invoices/%d-%d", n, i)
	body := ""
	if i%3 == 2 {
		method, path, body = http.MethodPost, "/v1/invoices", fmt.Sprintf(`{"caller":%d,"invoice":%d}`, n, i)
	}
	req, err := http.NewRequestWithContext(ctx, method, t.base+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	client.Authorize(req, t.token)
	t.requests.Add(1)
	resp, err := t.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s %s: reading the answer: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s %s", method, path, resp.Status, resp.Header.Get("Keybaton-Error"))
	}
	var echo struct {
		Method string `json:"method"`
		Path   string `json:"path"`
		Body   string `json:"body_sha256"`
	}
	if err := json.Unmarshal(got, &echo); err != nil {
		return fmt.Errorf("%s %s: the answer is not whole: %w", method, path, err)
	}
	sum := sha256.Sum256([]byte(body))
	if echo.Method != method || echo.Path != path || body != "" && echo.Body != hex.EncodeToString(sum[:]) {
		return errors.New(method + " " + path + ": the answer is to another request")
	}
	if v, err := strconv.Atoi(strings.TrimPrefix(resp.Header.Get("Keybaton-Version"), "v")); err == nil && v < len(t.versions) {
		t.versions[v].Add(1)
	}
	if resp.Header.Get("Keybaton-Fallback") != "" {
		t.fallbacks.Add(1)
	}
	return nil
}

func (t *traffic) errors() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.errs
}

// by returns how many requests were answered with version n.
func (t *traffic) by(n int64) int64 {
	if n < 0 || n >= int64(len(t.versions)) {
		return 0
	}
	return t.versions[n].Load()
}

// share is the part of the traffic that one version answered.
type share struct {
	version int
	part    float64
}

// shares returns who answered during the last second.
func (t *traffic) shares() []share {
	now := sample{at: time.Now()}
	for i := range t.versions {
		now.versions[i] = t.versions[i].Load()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.past) > 1 && now.at.Sub(t.past[1].at) > time.Second {
		t.past = t.past[1:]
	}
	t.past = append(t.past, now)
	var sum int64
	for i := range now.versions {
		sum += now.versions[i] - t.past[0].versions[i]
	}
	var out []share
	for i := range now.versions {
		if d := now.versions[i] - t.past[0].versions[i]; d > 0 {
			out = append(out, share{i, float64(d) / float64(sum)})
		}
	}
	return out
}
