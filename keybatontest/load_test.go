package keybatontest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

// load is steady requests through the gateway, each of which must succeed.
type load struct {
	total, failed, fallbacks atomic.Int64
	mu                       sync.Mutex
	errs                     []string
	stop                     func()
}

// startCalls makes about rate calls a second in each of n callers until stop.
func startCalls(t *testing.T, n, rate int, do func(ctx context.Context, caller, i int) error) *load {
	l := &load{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for c := range n {
		wg.Go(func() {
			tick := time.NewTicker(time.Second / time.Duration(rate))
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				err := do(context.WithoutCancel(ctx), c, i)
				l.total.Add(1)
				if err != nil {
					l.failed.Add(1)
					l.mu.Lock()
					if len(l.errs) < 10 {
						l.errs = append(l.errs, err.Error())
					}
					l.mu.Unlock()
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(l.stop)
	return l
}

// startLoad sends about rate requests a second in each of n callers until
// stop; check looks at each answer.
func startLoad(t *testing.T, n, rate int, tok secret.Value, request func(caller, i int) (*http.Request, error), check func(*http.Response, string) error) *load {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.Proxy, tr.MaxIdleConnsPerHost = nil, n
	t.Cleanup(tr.CloseIdleConnections)
	hc := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	var l *load
	ready := make(chan struct{})
	l = startCalls(t, n, rate, func(_ context.Context, caller, i int) error {
		<-ready
		req, err := request(caller, i)
		if err != nil {
			return err
		}
		client.Authorize(req, tok)
		return l.send(hc, req, check)
	})
	close(ready)
	return l
}

func (l *load) send(hc *http.Client, req *http.Request, check func(*http.Response, string) error) error {
	resp, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.Header.Get("Keybaton-Fallback") != "" {
		l.fallbacks.Add(1)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s %s", req.Method, req.URL.Path, resp.Status, resp.Header.Get("Keybaton-Error"))
	}
	return check(resp, string(b))
}

// want fails t unless every request succeeded.
func (l *load) want(t *testing.T) {
	t.Helper()
	l.stop()
	t.Logf("%d requests, %d failed, %d fallbacks", l.total.Load(), l.failed.Load(), l.fallbacks.Load())
	if l.failed.Load() > 0 || l.total.Load() == 0 {
		t.Errorf("%d of %d requests failed:\n%s", l.failed.Load(), l.total.Load(), strings.Join(l.errs, "\n"))
	}
}
