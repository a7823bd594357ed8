package nethttp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/gateway/nethttp"
	"github.com/keybaton/keybaton/internal/key"
)

func newReader(c net.Conn) *bufio.Reader { return bufio.NewReader(c) }

func TestStreamsAreFlushed(t *testing.T) {
	for _, kind := range []string{"text/event-stream", "application/x-ndjson"} {
		t.Run(kind, func(t *testing.T) {
			next := make(chan string)
			r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Type", kind)
				if kind == "text/event-stream" {
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
				}
				for s := range next {
					_, _ = io.WriteString(w, s)
					w.(http.Flusher).Flush()
				}
			}, func(c *key.Call) { c.Rules = []key.Rule{{Status: []int{4}, Body: "x", Is: key.IsInvalid}} }, 7)
			if kind != "text/event-stream" {
				go func() { next <- "first\n" }()
			}
			req := r.request("GET", "/billing-api/stream", nil)
			req.Header.Set("Authorization", "Bearer "+token)
			resp, err := r.client.Do(req) // returns: the header is not held back
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			in := bufio.NewReader(resp.Body)
			if kind != "text/event-stream" {
				if got, err := in.ReadString('\n'); got != "first\n" {
					t.Fatalf("got %q, %v", got, err)
				}
			}
			for i := range 3 {
				want := fmt.Sprintf("data %d\n", i)
				next <- want
				if got, err := in.ReadString('\n'); got != want {
					t.Fatalf("got %q, %v; want %q before anything else is sent", got, err, want)
				}
			}
			close(next)
			if rest, err := io.ReadAll(in); len(rest) != 0 || err != nil {
				t.Errorf("at the end: %q, %v", rest, err)
			}
		})
	}
}

func TestTrailers(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "body")
		w.Header().Set("X-Sum", "42 "+req.Trailer.Get("X-In"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "yes")
	}, nil, 7)
	req := r.request("POST", "/billing-api/x", io.MultiReader(strings.NewReader("in")))
	req.Header.Set("Authorization", "Bearer "+token)
	req.Trailer = http.Header{"X-In": {"sent"}}
	a := r.do(req)
	if a.body != "body" || a.Trailer.Get("X-Sum") != "42 sent" || a.Trailer.Get("X-Late") != "yes" {
		t.Errorf("body %q, trailers %v", a.body, a.Trailer)
	}
}

func TestAnswersAsTheyAre(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/v1/head":
			w.Header().Set("Content-Length", "1234")
		case "/v1/notype":
			w.Header()["Content-Type"] = nil
			_, _ = io.WriteString(w, "<html>")
		case "/v1/early":
			w.Header().Set("Link", "</x>")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(204)
		case "/v1/moved":
			w.Header().Set("Location", req.URL.Query().Get("to"))
			w.WriteHeader(302)
		case "/v1/echo":
			w.Header().Add("Location", "https://elsewhere.example/?k="+keyOf(7))
			w.Header().Add("X-Goog-Api-Key", bearerOf(req))
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("Set-Cookie", "b=2")
		}
	}, func(c *key.Call) { c.Upstream += "/v1" }, 7)
	if a := r.send("HEAD", "/billing-api/head", nil); a.ContentLength != 1234 || a.body != "" {
		t.Errorf("HEAD: length %d, %q", a.ContentLength, a.body)
	}
	if a := r.send("GET", "/billing-api/notype", nil); a.Header["Content-Type"] != nil || a.body != "<html>" {
		t.Errorf("a content type was made up: %v", a.Header)
	}
	if a := r.send("GET", "/billing-api/early", nil); a.StatusCode != 204 {
		t.Errorf("1xx: %d", a.StatusCode)
	}
	a := r.send("GET", "/billing-api/echo", nil)
	if s := fmt.Sprint(a.Header); strings.Contains(s, "MARKED") {
		t.Errorf("the key came back: %s", s)
	}
	if c := a.Header["Set-Cookie"]; len(c) != 2 {
		t.Errorf("cookies %v", c)
	}
	for to, want := range map[string]string{
		"/v1/next%3Fq":                   "/billing-api/next%3Fq",
		r.vendor.URL + "/v1/next":        "/billing-api/next",
		"/v1":                            "/billing-api",
		"/v10/next":                      "/v10/next",
		"https://elsewhere.example/next": "https://elsewhere.example/next",
		"//elsewhere.example/next":       "//elsewhere.example/next",
		"next":                           "next",
	} {
		if a := r.send("GET", "/billing-api/moved?to="+strings.ReplaceAll(to, "%", "%25"), nil); a.StatusCode != 302 || a.Header.Get("Location") != want {
			t.Errorf("redirect to %q: %d %q, want %q", to, a.StatusCode, a.Header.Get("Location"), want)
		}
	}
}

func TestBrokenAnswerIsNotTakenForWhole(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}, nil, 7)
	req := r.request("GET", "/billing-api/x", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a broken answer looked whole: %q", b)
	}
	eventually(t, "the exchange ends", func() bool {
		a := r.core.Report(1, 0).Answers
		return len(a) == 1 && a[0].Requests == 1
	})
	if got := r.core.Pinned(key.Revision{Epoch: 9}); len(got) != 0 {
		t.Errorf("it stays pinned: %v", got)
	}
}

func TestUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	r := newRig(t, nil, func(c *key.Call) { c.Upstream = "http://" + addr }, 7, 8)
	a := r.send("POST", "/billing-api/x?secret=no", strings.NewReader("x"))
	wantFault(t, a, 502, "upstream_unreachable")
	if !strings.Contains(a.body, "connection refused") {
		t.Errorf("it does not say why: %s", a.body)
	}
	if u := r.use(7); u.Live.Other != 1 || r.use(8).Live.Attempts() != 0 {
		t.Errorf("evidence %+v; an unreachable vendor says nothing of a key", u)
	}
	if got := r.core.Report(1, 0).Answers; got[0].Failed != 1 || got[0].Refused != 0 {
		t.Errorf("answers %+v", got)
	}
}

func TestMetadataAddressIsNeverDialed(t *testing.T) {
	core := gateway.New(gateway.Config{})
	h, err := nethttp.New(nethttp.Config{Core: core})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, host := range []string{"169.254.169.254", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]", "0.0.0.0"} {
		req := httptest.NewRequestWithContext(t.Context(), "GET", "http://"+host+":1/latest/meta-data", nil)
		req.RequestURI = ""
		resp, err := h.Vendors().RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "never go there") {
			t.Errorf("%s: %v", host, err)
		}
		if err := core.Install(frame(1, cred(prod, key.Call{Upstream: "http://" + host, Place: key.Place{In: key.InQuery, Name: "k"}}, 1))); err != nil {
			t.Fatal(err)
		}
		if p := core.Problems(); len(p) != 1 && host != "0.0.0.0" {
			t.Errorf("%s as an upstream: %v", host, p)
		}
	}
}

func TestCallerWhoLeavesIsCounted(t *testing.T) {
	arrived, gone := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(w http.ResponseWriter, req *http.Request) {
		close(arrived)
		<-req.Context().Done()
		close(gone)
	}, nil, 7, 8)
	ctx, cancel := context.WithCancel(t.Context())
	req := r.request("GET", "/billing-api/slow", nil).WithContext(ctx)
	req.Header.Set("Authorization", "Bearer "+token)
	failed := make(chan error, 1)
	go func() {
		resp, err := r.client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	<-arrived
	if got := r.core.Pinned(key.Revision{Epoch: 2}); len(got) != 0 {
		t.Errorf("pins of the revision in use: %v", got)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller got %v", err)
	}
	<-gone // the vendor is not kept waiting
	eventually(t, "the use is counted", func() bool { return r.use(7).Live.Other == 1 })
	if got := r.core.Report(1, 0).Answers; got[0].Requests != 1 || got[0].Failed != 0 {
		t.Errorf("answers %+v", got)
	}
	if r.use(8).Live.Attempts() != 0 {
		t.Errorf("another attempt for a caller who is gone")
	}
}

// TestClosedKeptConnection has a vendor that closes each connection after one
// answer without saying so.
func TestClosedKeptConnection(t *testing.T) {
	var conns atomic.Int64
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				req, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				b, _ := io.ReadAll(req.Body)
				_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
				// The next request is read, and never answered.
				_, _ = http.ReadRequest(in)
			}()
		}
	}()
	r := newRig(t, nil, func(c *key.Call) { c.Upstream = "http://" + ln.Addr().String() }, 7)
	for i := range 20 {
		for _, m := range []string{"GET", "PUT", "DELETE"} {
			if a := r.send(m, "/billing-api/x", strings.NewReader("body")); a.StatusCode != 200 || a.body != "body" {
				t.Fatalf("round %d, %s: %d %s", i, m, a.StatusCode, a.body)
			}
		}
	}
	if conns.Load() < 20 {
		t.Errorf("only %d connections: none was closed under a request", conns.Load())
	}
	if u := r.use(7); u.Live.OK != 60 || u.Live.Other != 0 {
		t.Errorf("evidence %+v", u.Live)
	}
}
