// Package nethttp moves the bytes of a gateway with net/http: a handler of its
// own over one tuned transport per upstream.
//
// It guarantees that a request reaches only the upstream that its credential
// declares, with the key set last and only the key of the attempt at hand on
// it; that no byte goes to the caller before the answer is chosen; and that a
// pooled buffer is used again only when the transport has closed the body that
// it backed. It follows no redirect, uses no proxy and decodes nothing on the
// way. Which version is tried, and what an answer means, the core decides.
package nethttp

import (
	"cmp"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/gateway"
)

// Config is what a Handler is made of. Core is required.
type Config struct {
	Core *gateway.Core

	RootCAs    *x509.CertPool   // that vendors' certificates are checked against; nil: the system's
	BodyBuffer int              // bytes of a request body kept for a second attempt; 0: 64 KiB
	BodyBudget int64            // bytes of bodies kept at the same time, of all requests; 0: 64 MiB
	Now        func() time.Time // nil: time.Now
}

// Handler serves callers. It is safe for concurrent use.
type Handler struct {
	core    *gateway.Core
	now     func() time.Time
	bodies  *bodies
	vendors *vendors
	states  sync.Pool // *state
	chunks  sync.Pool // *[chunkSize]byte
}

const chunkSize = 32 << 10

// state is what one request needs; it is used again.
type state struct {
	x     gateway.Exchange
	whole whole
}

// New returns a Handler.
func New(c Config) (*Handler, error) {
	if c.Core == nil {
		return nil, errors.New("nethttp: Config.Core is required")
	}
	h := &Handler{core: c.Core, now: c.Now, vendors: newVendors(c.RootCAs)}
	if h.now == nil {
		h.now = time.Now
	}
	h.bodies = newBodies(cmp.Or(c.BodyBuffer, 64<<10), cmp.Or(c.BodyBudget, 64<<20))
	h.states.New = func() any { return new(state) }
	h.chunks.New = func() any { return new([chunkSize]byte) }
	return h, nil
}

// Server returns a server for h with the limits of a data plane: headers must
// come soon and be small; bodies and answers may take their time. The caller
// sets the address, and closes it.
func (h *Handler) Server() *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
}

// Vendors returns the transport to the vendors, for probes. It never dials a
// cloud's metadata address.
func (h *Handler) Vendors() http.RoundTripper { return h.vendors }

// Close closes idle connections to vendors. Running requests go on.
func (h *Handler) Close() { h.vendors.closeIdle() }

// ServeHTTP relays one request. It panics with http.ErrAbortHandler when a
// vendor's answer breaks off, so that the caller does not take it for whole.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	st := h.states.Get().(*state)
	x := &st.x
	st.whole = whole{h: h, r: r}
	defer func() {
		x.Done()
		st.whole.release()
		st.whole = whole{}
		h.states.Put(st)
	}()
	hasBody := r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
	head := gateway.Head{
		Method: r.Method, Host: r.Host, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Header: r.Header,
		Body: &st.whole, Replayable: !hasBody || r.ContentLength > 0 && r.ContentLength <= int64(h.bodies.size),
	}
	if err := h.core.Begin(x, head, h.now()); err != nil {
		writeFault(w, err)
		return
	}
	var rp *replay
	if hasBody && !x.InBody() {
		rp = h.bodies.replay(r.Body)
		defer rp.release()
	}
	for {
		at, resp, err := h.attempt(st, r, head.Path, rp)
		if err != nil {
			if r.Context().Err() != nil {
				panic(http.ErrAbortHandler) // the caller is gone; Done counts what was written
			}
			x.Failed()
			writeFault(w, err)
			return
		}
		if h.answered(w, st, at, resp, rp) {
			return
		}
	}
}

// attempt makes one attempt. The error is a fault to answer with.
func (h *Handler) attempt(st *state, r *http.Request, path string, rp *replay) (gateway.Attempt, *http.Response, error) {
	x := &st.x
	out := &outgoing{req: *r}
	req := &out.req
	up := x.Upstream()
	out.url = url.URL{Scheme: up.Scheme, Host: up.Host, Path: up.Path + r.URL.Path[x.Prefix():], RawQuery: x.Query(), ForceQuery: r.URL.ForceQuery}
	if r.URL.RawPath != "" || up.RawPath != up.Path {
		out.url.RawPath = up.RawPath + path[x.Prefix():]
	}
	req.URL, req.Host, req.RequestURI = &out.url, up.Host, ""
	req.Close, req.TransferEncoding, req.TLS = false, nil, nil
	req.Header = forwarded(x, r)
	if rp == nil {
		req.Body, req.GetBody, req.ContentLength = http.NoBody, nil, 0
	} else {
		req.Body, req.GetBody = rp.reader(), rp.again
	}
	at := x.Attempt()
	// The key goes on last, over whatever is there.
	if name, values := at.Key.Header(); name != "" {
		req.Header[name] = values
	} else if name, pair := at.Key.Query(); name != "" {
		out.url.RawQuery = call.JoinQuery(out.url.RawQuery, pair)
	} else {
		b, err := st.whole.Whole()
		if err != nil {
			return at, nil, err
		}
		req.Body, req.ContentLength = body(b)
		if err := at.Key.Apply(req); err != nil {
			return at, nil, &gateway.Fault{Status: 400, Code: "bad_body", Detail: err.Error(), Err: err}
		}
	}
	resp, err := h.send(req)
	if err != nil {
		return at, nil, &gateway.Fault{Status: 502, Code: "upstream_unreachable",
			Detail: "the vendor of " + x.Credential().String() + " at " + up.Host + " gave " + call.FailureText(err) + "; try again, or check the upstream"}
	}
	return at, resp, nil
}

// send sends one attempt. A kept connection that the vendor has closed in the
// meantime must not show: what may be repeated is sent again, with the same
// key, the second time over a new connection. A POST is not, once any of it
// was written: it may have been taken.
//
// NOTE: the transport does so by itself when the end of a connection is read;
// not when a write meets it.
func (h *Handler) send(req *http.Request) (*http.Response, error) {
	for try := 0; ; try++ {
		resp, err := h.vendors.RoundTrip(req)
		if err == nil || try == 2 || !repeatable(req) || !cut(err) || req.Context().Err() != nil {
			return resp, err
		}
		next := *req // the transport may still look at the other one
		if req.Body != http.NoBody {
			if next.Body, _ = req.GetBody(); next.Body == nil {
				return nil, err
			}
		}
		if req = &next; try == 1 {
			h.vendors.of(req).CloseIdleConnections()
		}
	}
}

// repeatable reports whether sending req twice does no harm (RFC 9110 §9.2.2),
// or the caller says so.
func repeatable(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return req.Header["Idempotency-Key"] != nil || req.Header["X-Idempotency-Key"] != nil
}

// cut reports whether err is the end of a connection that was there.
func cut(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op != "dial" && !op.Timeout()
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// outgoing is a request to a vendor and its URL, in one allocation.
type outgoing struct {
	req http.Request
	url url.URL
}

// forwarded returns a new header with what of the caller's goes to the vendor.
//
// NOTE: it is never the caller's own map: that one is seen by whatever wraps
// this handler, and a key must not be found in it.
func forwarded(x *gateway.Exchange, r *http.Request) http.Header {
	out := make(http.Header, len(r.Header)+3)
	for name, v := range r.Header {
		if x.Forwards(name) {
			out[name] = v
		}
	}
	if te := r.Header["Te"]; len(te) > 0 && strings.Contains(strings.ToLower(te[0]), "trailers") {
		out["Te"] = []string{"trailers"}
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = []string{""} // net/http would add its own
	}
	if ae, ok := out["Accept-Encoding"]; ok && x.Sniffs() {
		if strings.Contains(strings.ToLower(strings.Join(ae, ",")), "gzip") {
			out["Accept-Encoding"] = []string{"gzip"}
		} else {
			out["Accept-Encoding"] = []string{"identity"}
		}
	}
	switch r.Method {
	case http.MethodPut, http.MethodDelete:
		// Repeating these does no harm (RFC 9110 §9.2.2), so the transport may
		// when a kept connection turns out to be closed. The empty value tells
		// it, and is not sent.
		if out["Idempotency-Key"] == nil && out["X-Idempotency-Key"] == nil {
			out["X-Idempotency-Key"] = []string{}
		}
	}
	return out
}

// writeFault answers with a fault.
func writeFault(w http.ResponseWriter, err error) {
	var f *gateway.Fault
	if !errors.As(err, &f) {
		f = &gateway.Fault{Status: 500, Code: "internal", Detail: "Keybaton could not relay the request"}
	}
	b := f.Body()
	hd := w.Header()
	hd.Set(gateway.HeaderError, f.Code)
	hd.Set("Content-Type", "application/problem+json")
	hd.Set("Content-Length", strconv.Itoa(len(b)))
	hd.Set("Cache-Control", "no-store")
	if f.Status == http.StatusUnauthorized {
		hd.Set("WWW-Authenticate", `Bearer realm="keybaton"`)
	}
	w.WriteHeader(f.Status)
	_, _ = w.Write(b)
}
