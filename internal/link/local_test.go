package link_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/internal/link"
)

func get(t *testing.T, ctx context.Context, h http.HandlerFunc, body io.Reader) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://host.test/path?q=1", body)
	if err != nil {
		t.Fatal(err)
	}
	return (&http.Client{Transport: link.HandlerTransport(h)}).Do(req)
}

func TestLocalRoundTrip(t *testing.T) {
	resp, err := get(t, t.Context(), func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Seen", r.Host+r.RequestURI+r.RemoteAddr)
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusTeapot)
		w.WriteHeader(http.StatusOK)
		w.Header().Set("X-Late", "1")
		_, _ = w.Write([]byte("got " + string(b)))
	}, strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "got body" || resp.StatusCode != http.StatusTeapot ||
		resp.Header.Get("X-Seen") != "host.test/path?q=1127.0.0.1:0" || resp.Header.Get("X-Late") != "" {
		t.Fatalf("%d %q %v %v", resp.StatusCode, b, resp.Header, err)
	}
}

func TestLocalWithoutAnyWrite(t *testing.T) {
	resp, err := get(t, t.Context(), func(http.ResponseWriter, *http.Request) {}, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || len(b) != 0 {
		t.Fatal(b, err)
	}
	_ = resp.Body.Close()
}

// Each line is read before the next is written; closing the body ends the
// handler.
func TestLocalStreams(t *testing.T) {
	next, ended := make(chan struct{}), make(chan error, 1)
	resp, err := get(t, t.Context(), func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.Flush(); err != nil {
			t.Error(err)
		}
		for range 3 {
			<-next
			if _, err := io.WriteString(w, "line\n"); err != nil {
				t.Error(err)
			}
		}
		<-r.Context().Done()
		_, err := io.WriteString(w, "too late")
		ended <- err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(resp.Body)
	for range 3 {
		next <- struct{}{}
		if s, err := br.ReadString('\n'); err != nil || s != "line\n" {
			t.Fatal(s, err)
		}
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Fatal("a write after the reader has gone succeeded")
	}
}

func TestLocalCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{})
	ended := make(chan struct{})
	go func() { <-entered; cancel() }()
	_, err := get(t, ctx, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(ended)
	}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-ended

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	resp, err := get(t, ctx, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		<-r.Context().Done()
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
}

func TestLocalPanic(t *testing.T) {
	_, err := get(t, t.Context(), func(http.ResponseWriter, *http.Request) { panic("SECRET") }, nil)
	if err == nil || strings.Contains(err.Error(), "SECRET") {
		t.Fatal(err)
	}
	resp, err := get(t, t.Context(), func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half"))
		panic(http.ErrAbortHandler)
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "half" {
		t.Fatalf("%q, %v", b, err)
	}
}
