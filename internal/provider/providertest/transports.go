package providertest

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"sync"
)

// Lossy makes each request and then loses the answers that Lose names.
type Lossy struct {
	Base http.RoundTripper
	Lose func(*http.Request) bool
}

// RoundTrip returns io.ErrUnexpectedEOF for an answer that is lost.
func (l *Lossy) RoundTrip(q *http.Request) (*http.Response, error) {
	lose := l.Lose(q)
	resp, err := l.Base.RoundTrip(q)
	if err != nil || !lose {
		return resp, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return nil, io.ErrUnexpectedEOF
}

// Broken answers nothing: every request fails with Err.
type Broken struct{ Err error }

// RoundTrip returns the error.
func (b Broken) RoundTrip(*http.Request) (*http.Response, error) { return nil, b.Err }

// Forged answers every request with the same.
type Forged struct {
	Status int
	Header http.Header
	Body   string
}

// RoundTrip returns the forged answer.
func (f Forged) RoundTrip(q *http.Request) (*http.Response, error) {
	if err := q.Context().Err(); err != nil {
		return nil, err
	}
	h := f.Header.Clone()
	if h == nil {
		h = http.Header{}
	}
	return &http.Response{StatusCode: f.Status, Header: h, Request: q, ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewBufferString(f.Body)), ContentLength: int64(len(f.Body))}, nil
}

// Seen remembers the requests that go through it.
type Seen struct {
	Base http.RoundTripper
	mu   sync.Mutex
	all  []string
}

// RoundTrip remembers "METHOD URL" and passes the request on.
func (s *Seen) RoundTrip(q *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.all = append(s.all, q.Method+" "+q.URL.String())
	s.mu.Unlock()
	return s.Base.RoundTrip(q)
}

// Requests returns what was seen so far.
func (s *Seen) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}
