package client

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
)

// replayLimit is the largest body, in bytes, that is kept so that a request can
// be sent again; larger ones need a GetBody.
const replayLimit = 64 << 10

// The headers that [Handle.Transport] adds to answers, as a gateway does.
const (
	HeaderVersion  = "Keybaton-Version"  // the version that the vendor answered to, such as v7
	HeaderFallback = "Keybaton-Fallback" // 1 where it is not the primary
)

// web is how the key of a credential rides on HTTP requests.
type web struct {
	upstream *url.URL
	rules    call.Rules
	sniffs   bool
	fallOn   []int
	slots    []*slot
}

// compileWeb compiles c, and gives each slot its key in the shape in which it
// rides.
func compileWeb(c key.Call, slots []*slot) (*web, error) {
	u, err := call.ParseUpstream(c.Upstream)
	if err != nil {
		return nil, err
	}
	place, err := call.CompilePlace(c.Place, c.PartNames())
	if err != nil {
		return nil, err
	}
	w := &web{upstream: u, fallOn: c.FallbackOn}
	if w.rules, err = call.CompileRules(c.Rules); err != nil {
		return nil, err
	}
	w.sniffs = w.rules.ReadsBodies()
	for _, sl := range slots {
		r, e := place.Render(sl.parts)
		if e != nil {
			err = e
			continue
		}
		sl.key = r
		w.slots = append(w.slots, sl)
	}
	if len(w.slots) == 0 {
		return nil, err
	}
	return w, nil
}

// Transport returns a RoundTripper that puts the key on requests to the
// credential's upstream, in the place that the server declares for it, and
// refuses requests to any other host or path prefix. Where the vendor refuses
// the primary, and the request can be sent again (it has no body, GetBody, or
// at most 64 KiB), it is sent once more with the fallback, by the rules of a
// gateway. Each attempt counts, and a version is in use until the answer's
// body is closed. base nil means a transport of its own without a proxy; a
// base must not add keys, follow redirects, or repeat requests by itself.
//
// Answers carry [HeaderVersion] and [HeaderFallback]. Errors hold no key.
func (h *Handle) Transport(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.Proxy = nil
		base = t
	}
	return &transport{h, base}
}

type transport struct {
	h    *Handle
	base http.RoundTripper
}

// CloseIdleConnections closes those of the base.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// RoundTrip sends req with the key on it.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.roundTrip(req)
	if err != nil && req.Body != nil {
		_ = req.Body.Close() // the contract of RoundTrip; it may be closed already
	}
	return resp, err
}

func (t *transport) roundTrip(req *http.Request) (*http.Response, error) {
	s := t.h.pin()
	if s == nil {
		return nil, withdrawn(t.h.id)
	}
	x := &exchange{t: t, s: s, req: req}
	defer x.end()
	if s.web == nil {
		return nil, &Error{Code: api.CodeConflict, Detail: fmt.Sprintf("the key of %s/%s does not ride on HTTP requests: %v", t.h.id.Service, t.h.id.Environment, s.err),
			Next: "use Handle.Do or Handle.Open", Err: s.err}
	}
	if !s.web.covers(req.URL) {
		return nil, &Error{Code: api.CodeDenied, Detail: "the key of " + t.h.id.Service + "/" + t.h.id.Environment + " goes to " + s.web.upstream.String() + " and nowhere else",
			Next: "send the request there, or change the upstream in keybaton.yaml"}
	}
	if err := x.prepare(); err != nil {
		return nil, err
	}
	return x.run()
}

// covers reports whether u is under the upstream.
func (w *web) covers(u *url.URL) bool {
	if !strings.EqualFold(u.Scheme, w.upstream.Scheme) || !strings.EqualFold(u.Host, w.upstream.Host) || u.User != nil {
		return false
	}
	prefix := w.upstream.EscapedPath()
	rest, ok := strings.CutPrefix(u.EscapedPath(), prefix)
	if !ok || prefix != "" && rest != "" && rest[0] != '/' {
		return false
	}
	if prefix != "" {
		for seg := range strings.SplitSeq(rest, "/") {
			if call.Dotted(seg) {
				return false // it could lead out of the prefix
			}
		}
	}
	return true
}

// exchange is one request on its way.
type exchange struct {
	t     *transport
	s     *served
	req   *http.Request
	body  func() (io.ReadCloser, error) // the body again; nil: it cannot be sent again
	order [2]*slot
	trial call.Trial
	begun bool
}

// end lets go of what the exchange has in use, but the version of its answer.
func (x *exchange) end() {
	if x.begun {
		x.trial.Done(x.s.tally)
	} else {
		x.s.tally.Fail()
	}
	x.s.pins.Add(-1)
}

// prepare sees to it that the body can be sent again, where that is possible,
// and orders the versions.
func (x *exchange) prepare() error {
	switch r := x.req; {
	case r.Body == nil || r.Body == http.NoBody:
		x.body = func() (io.ReadCloser, error) { return r.Body, nil }
	case r.GetBody != nil:
		x.body = r.GetBody
	case r.ContentLength > 0 && r.ContentLength <= replayLimit:
		b, err := io.ReadAll(io.LimitReader(r.Body, r.ContentLength+1))
		_ = r.Body.Close()
		if err != nil {
			return fmt.Errorf("reading the body of the request: %w", err)
		}
		x.body = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	n := copy(x.order[:], x.s.web.slots)
	var rivals [2]call.Rival
	for i, sl := range x.order[:n] {
		rivals[i] = sl.rival
	}
	if x.trial.Arrange(rivals[:n], x.body != nil, time.Now(), x.t.h.keys.link.Elapsed()) {
		x.order[0], x.order[1] = x.order[1], x.order[0]
	}
	x.begun = true
	return nil
}

func (x *exchange) run() (*http.Response, error) {
	k, w := x.t.h.keys, x.s.web
	for {
		sl := x.order[x.trial.Position()]
		req, err := x.request(sl)
		if err != nil {
			x.trial.Failed(k.link.Elapsed())
			return nil, err
		}
		x.trial.Attempt(k.link.Elapsed())
		resp, err := x.t.base.RoundTrip(req)
		if err != nil {
			x.trial.Failed(k.link.Elapsed())
			if sl.key.Leaks(err.Error()) {
				err = fmt.Errorf("calling %s: %s", w.upstream.Host, call.FailureText(err))
			}
			return nil, err
		}
		a := call.Answer{Method: x.req.Method, Status: resp.StatusCode, Header: resp.Header}
		if a.Method == "" {
			a.Method = http.MethodGet
		}
		if w.sniffs && w.rules.NeedsBody(resp.StatusCode) {
			a.Body, a.Whole = peek(resp)
		}
		if x.trial.Answered(w.rules, w.fallOn, a, x.body != nil, k.breaker, time.Now(), k.link.Elapsed()) {
			drain(resp)
			continue
		}
		resp.Header.Set(HeaderVersion, sl.number.String())
		if sl != w.slots[0] {
			resp.Header.Set(HeaderFallback, "1")
		}
		resp.Request = x.req // the one that was sent has the key on it
		sl.pins.Add(1)
		resp.Body = hold(resp.Body, func() { sl.pins.Add(-1) })
		return resp, nil
	}
}

// request returns the request of one attempt.
func (x *exchange) request(sl *slot) (*http.Request, error) {
	req := x.req.Clone(x.req.Context())
	if x.body != nil {
		var err error
		if req.Body, err = x.body(); err != nil {
			return nil, fmt.Errorf("reading the body of the request: %w", err)
		}
	}
	// The base would send a request again by itself, with a key that may be old.
	req.GetBody = nil
	if x.s.web.sniffs {
		req.Header.Del("Accept-Encoding") // so that answers can be read
	}
	if err := sl.key.Apply(req); err != nil {
		return nil, fmt.Errorf("putting the key on the request: %w", err)
	}
	req.GetBody = nil
	return req, nil
}

// peek reads the beginning of the answer and puts it back.
func peek(resp *http.Response) (b []byte, whole bool) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, call.BodyLimit+1))
	whole = err == nil && len(b) <= call.BodyLimit
	rest := io.Reader(resp.Body)
	if err != nil {
		rest = failing{err}
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(b), rest), resp.Body}
	return b[:min(len(b), call.BodyLimit)], whole
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// drain drops an answer so that its connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, replayLimit))
	_ = resp.Body.Close()
}

// hold calls done once, when body is closed or has ended.
func hold(body io.ReadCloser, done func()) io.ReadCloser {
	h := &held{ReadCloser: body, done: sync.OnceFunc(done)}
	if w, ok := body.(io.Writer); ok { // a connection that changed its protocol
		return struct {
			*held
			io.Writer
		}{h, w}
	}
	return h
}

type held struct {
	io.ReadCloser
	done func()
}

func (h *held) Read(b []byte) (int, error) {
	n, err := h.ReadCloser.Read(b)
	if err == io.EOF {
		h.done()
	}
	return n, err
}

func (h *held) Close() error {
	defer h.done()
	return h.ReadCloser.Close()
}
