package nethttp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/keybaton/keybaton/internal/call"
)

// vendors has one transport for each upstream, so that one vendor's troubles
// stay its own. Requests find theirs without a lock.
type vendors struct {
	roots *x509.CertPool
	table atomic.Pointer[map[place]*http.Transport]
	mu    sync.Mutex // of whoever adds one
}

type place struct{ scheme, host string }

func newVendors(roots *x509.CertPool) *vendors {
	v := &vendors{roots: roots}
	v.table.Store(&map[place]*http.Transport{})
	return v
}

// RoundTrip sends the request over the transport of its upstream.
func (v *vendors) RoundTrip(req *http.Request) (*http.Response, error) {
	return v.of(req).RoundTrip(req)
}

// of returns the transport of a request's upstream.
func (v *vendors) of(req *http.Request) *http.Transport {
	p := place{req.URL.Scheme, req.URL.Host}
	if t := (*v.table.Load())[p]; t != nil {
		return t
	}
	return v.add(p)
}

func (v *vendors) add(p place) *http.Transport {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := *v.table.Load()
	if t := old[p]; t != nil {
		return t
	}
	next := maps.Clone(old)
	t := v.transport()
	next[p] = t
	v.table.Store(&next)
	return t
}

func (v *vendors) closeIdle() {
	for _, t := range *v.table.Load() {
		t.CloseIdleConnections()
	}
}

// transport returns a transport for one upstream. There is no time-out for the
// beginning of an answer: some vendors think for minutes, and callers have
// time-outs of their own.
func (v *vendors) transport() *http.Transport {
	d := &net.Dialer{Timeout: 10 * time.Second, ControlContext: guard}
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            d.DialContext,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    256,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 1 << 20,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: v.roots, ClientSessionCache: tls.NewLRUClientSessionCache(64)},
	}
}

// guard looks at the address itself, after the name was resolved and for each
// try, so that no name can lead to a cloud's metadata service.
func guard(_ context.Context, _, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dialing: the address is not one")
	}
	if call.Metadata(a.Addr()) || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
		return fmt.Errorf("dialing %s: keys never go there", a.Addr())
	}
	return nil
}
