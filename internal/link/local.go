package link

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
)

// HandlerTransport returns a RoundTripper that calls h in this process, for
// every host: a consumer beside its server uses the same line as a remote one.
// Bodies stream in both directions, a write waits for its reader, Flush is
// honoured, and the handler's context ends with the request's or when the
// answer's body is closed. A panic of h is an error of the round trip.
func HandlerTransport(h http.Handler) http.RoundTripper { return localTransport{h} }

type localTransport struct{ h http.Handler }

// RoundTrip answers req by the handler.
func (t localTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	in := req.Clone(ctx)
	in.RequestURI = req.URL.RequestURI()
	in.RemoteAddr = "127.0.0.1:0"
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	pr, pw := io.Pipe()
	w := &localWriter{header: http.Header{}, out: pw, ready: make(chan struct{})}
	context.AfterFunc(ctx, func() { _ = pw.CloseWithError(context.Cause(ctx)) }) // never fails
	go func() {
		defer cancel()
		defer in.Body.Close()
		defer func() {
			if recover() != nil {
				w.fail(errAborted)
			}
		}()
		t.h.ServeHTTP(w, in)
		w.WriteHeader(http.StatusOK)
		_ = pw.CloseWithError(context.Cause(ctx)) // nil is the end of the body; never fails
	}()
	select {
	case <-w.ready:
	case <-req.Context().Done():
	}
	if err := context.Cause(req.Context()); err != nil {
		cancel()
		return nil, err
	}
	if w.err != nil {
		return nil, w.err
	}
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, ContentLength: -1, Body: &localBody{PipeReader: pr, cancel: cancel}, Request: req,
	}, nil
}

var errAborted = errors.New("the handler ended without an answer")

// localBody ends the handler when it is closed.
type localBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (b *localBody) Close() error {
	err := b.PipeReader.Close()
	b.cancel()
	return err
}

// localWriter is the answer as the handler writes it.
type localWriter struct {
	header http.Header
	out    *io.PipeWriter
	once   sync.Once
	ready  chan struct{} // closed once sent and status, or err, are set
	sent   http.Header
	status int
	err    error
}

// Header returns the headers that will be sent.
func (w *localWriter) Header() http.Header { return w.header }

// WriteHeader sends the headers; only the first final status counts.
func (w *localWriter) WriteHeader(status int) {
	if status >= 100 && status < 200 {
		return // interim answers are for wires
	}
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.ready)
	})
}

// Write blocks until the reader has taken b.
func (w *localWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.out.Write(b)
}

// Flush sends the headers; what was written has been read already.
func (w *localWriter) Flush() { w.WriteHeader(http.StatusOK) }

func (w *localWriter) fail(err error) {
	w.once.Do(func() {
		w.err = err
		close(w.ready)
	})
	_ = w.out.CloseWithError(err) // never fails
}
