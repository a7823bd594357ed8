package nethttp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/gateway"
)

var (
	errDetached     = errors.New("another attempt has taken over the body")
	errUnreplayable = errors.New("the body is too large to be sent again")
)

// bodies lends buffers in which request bodies are kept for a second attempt,
// within a budget that all requests share.
type bodies struct {
	size int
	left atomic.Int64 // bytes of the budget not lent
	pool sync.Pool    // *[]byte of len size
}

func newBodies(size int, budget int64) *bodies {
	b := &bodies{size: size}
	b.left.Store(budget)
	b.pool.New = func() any { s := make([]byte, size); return &s }
	return b
}

// reserve takes n bytes of the budget, and reports whether there were so many.
func (b *bodies) reserve(n int64) bool {
	if b.left.Add(-n) < 0 {
		b.left.Add(n)
		return false
	}
	return true
}

// replay returns src as a body that can be read from the beginning again for
// as long as it fits in a buffer. The caller owes it a release.
func (b *bodies) replay(src io.Reader) *replay {
	return &replay{from: b, src: src, refs: 1}
}

// replay keeps what was read of a body while it streams. One reader at a time
// is in force; a new one begins at the beginning and, after what was kept,
// goes on with the rest of the source.
//
// The buffer is lent to everyone who may touch it: the handler until release,
// each reader until it is closed, each read of the source until it returns.
// The last one gives it back. NOTE: RoundTrip may return before the transport
// is done with a body, so nothing less will do.
type replay struct {
	from *bodies
	src  io.Reader

	reading sync.Mutex // held while the source is read; taken before mu

	mu     sync.Mutex
	buf    *[]byte
	n      int // bytes of buf that are filled
	refs   int
	gen    int   // of the reader in force
	over   bool  // bytes went by that were not kept
	direct bool  // a read past the buffer is on its way
	err    error // of the source; io.EOF at its end
}

// reader returns a body for one attempt, and puts the readers before it out of
// force.
func (p *replay) reader() io.ReadCloser {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gen++
	p.refs++
	return &bodyReader{p: p, gen: p.gen}
}

// again is the GetBody of a request.
func (p *replay) again() (io.ReadCloser, error) {
	ok := p.freeze()
	p.thaw(ok)
	if !ok {
		return nil, errUnreplayable
	}
	return p.reader(), nil
}

// freeze holds the body still, and reports whether another reader would see
// all of it. The caller owes it a thaw.
func (p *replay) freeze() bool {
	p.mu.Lock()
	return !p.over && !p.direct && (p.err == nil || p.err == io.EOF)
}

// thaw lets the body go on; with detach the reader in force is so no more, and
// what it would have read is kept for the next.
func (p *replay) thaw(detach bool) {
	if detach {
		p.gen++
	}
	p.mu.Unlock()
}

func (p *replay) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unrefLocked()
}

func (p *replay) unrefLocked() {
	p.refs--
	if p.refs == 0 && p.buf != nil {
		p.from.pool.Put(p.buf)
		p.from.left.Add(int64(p.from.size))
		p.buf = nil
	}
}

// lendLocked gets a buffer for the first bytes, if the budget has one.
func (p *replay) lendLocked() {
	if p.buf == nil && !p.over && p.n == 0 && p.from.reserve(int64(p.from.size)) {
		p.buf = p.from.pool.Get().(*[]byte)
	}
}

type bodyReader struct {
	p      *replay
	gen    int
	off    int
	closed bool // guarded by p.mu
}

// ready returns what can be had without reading the source.
func (r *bodyReader) readyLocked(b []byte) (n int, err error, ok bool) {
	p := r.p
	switch {
	case r.closed:
		return 0, http.ErrBodyReadAfterClose, true
	case r.gen != p.gen:
		return 0, errDetached, true
	case r.off < p.n:
		n = copy(b, (*p.buf)[r.off:p.n])
		r.off += n
		if r.off == p.n && p.err != nil && !p.over {
			err = p.err
		}
		return n, err, true
	case p.err != nil:
		return 0, p.err, true
	}
	return 0, nil, len(b) == 0
}

// Read reads what was kept, then the source.
func (r *bodyReader) Read(b []byte) (int, error) {
	p := r.p
	p.mu.Lock()
	n, err, ok := r.readyLocked(b)
	p.mu.Unlock()
	if ok {
		return n, err
	}
	p.reading.Lock()
	defer p.reading.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if n, err, ok := r.readyLocked(b); ok { // whoever was reading kept it
		return n, err
	}
	p.lendLocked()
	if p.buf == nil || p.n == len(*p.buf) {
		p.direct = true
		p.mu.Unlock()
		n, err := p.src.Read(b)
		p.mu.Lock()
		p.direct = false
		p.over = p.over || n > 0
		p.err = err
		return n, err
	}
	into := (*p.buf)[p.n:]
	p.refs++
	p.mu.Unlock()
	n, err = p.src.Read(into)
	p.mu.Lock()
	p.n += n
	p.err = err
	defer p.unrefLocked()
	n, err, _ = r.readyLocked(b)
	return n, err
}

// Close gives the reader's share of the buffer back.
func (r *bodyReader) Close() error {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.p.unrefLocked()
	}
	return nil
}

// whole reads the whole body of a request, for keys that ride in it.
type whole struct {
	h        *Handler
	r        *http.Request
	b        []byte
	err      error
	read     bool
	reserved int64
}

// Whole returns the body, read once. It fails with a fault when the body is
// larger than a key can be put into, or when there is no room.
func (w *whole) Whole() ([]byte, error) {
	if w.read {
		return w.b, w.err
	}
	w.read = true
	if w.r.Body == nil || w.r.Body == http.NoBody {
		return nil, nil
	}
	tooLarge := &gateway.Fault{Status: 413, Code: "body_too_large", Detail: "this service takes its key in the body, and the body is larger than 1 MiB; send a smaller one"}
	n := w.r.ContentLength
	if n > call.ApplyLimit {
		w.err = tooLarge
		return nil, w.err
	}
	if n < 0 {
		n = call.ApplyLimit
	}
	if !w.h.bodies.reserve(n) {
		w.err = &gateway.Fault{Status: 503, Code: "busy", Detail: "too many request bodies are being held at the same time; try again"}
		return nil, w.err
	}
	w.reserved = n
	b, err := io.ReadAll(io.LimitReader(w.r.Body, call.ApplyLimit+1))
	switch {
	case err != nil:
		w.err = &gateway.Fault{Status: 400, Code: "unreadable_body", Detail: "the request's body could not be read; send it again"}
	case len(b) > call.ApplyLimit:
		w.err = tooLarge
	default:
		w.b = b
	}
	return w.b, w.err
}

func (w *whole) release() {
	if w.reserved > 0 {
		w.h.bodies.left.Add(w.reserved)
		w.reserved = 0
	}
}

// body returns b as the body of a request.
func body(b []byte) (io.ReadCloser, int64) {
	if len(b) == 0 {
		return http.NoBody, 0
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b))
}
