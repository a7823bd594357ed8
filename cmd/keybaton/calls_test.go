package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keybaton/keybaton/vendortest"
)

const vendorUsage = `usage:
  vendor start            a vendor at $VENDOR
  vendor down | up        it refuses connections, and answers again at the same address
  vendor issue FILE       a key by the vendor's console, into FILE
  vendor revoke FILE      that key is revoked there
  [!] vendor valid FILE   it works
  vendor active N         so many keys exist
  vendor mark             remember how many requests there were
  vendor quiet            there was none since`

// vendor is the simulated vendor of a script.
func vendor(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	verb, arg := "", ""
	if len(args) > 0 {
		verb = args[0]
	}
	if len(args) > 1 {
		arg = args[1]
	}
	if neg && verb != "valid" {
		ts.Fatalf(vendorUsage)
	}
	seen := func() int64 { return w.vendor.Requests() + w.vendor.KeyRequests() }
	switch verb {
	case "start":
		w.vendor = vendortest.New(vendortest.Config{})
		w.front = httptest.NewServer(w.listening())
		w.address = w.front.Listener.Addr().String()
		ts.Setenv("VENDOR", w.front.URL)
		w.issued = append(w.issued, vendortest.DefaultManager)
		ts.Check(os.WriteFile(ts.MkAbs("keys/manager"), []byte(vendortest.DefaultManager+"\n"), 0o600))
	case "down":
		w.front.CloseClientConnections()
		w.front.Close()
		w.front = nil
	case "up":
		l, err := net.Listen("tcp", w.address)
		ts.Check(err)
		w.front = &httptest.Server{Listener: l, Config: &http.Server{Handler: w.listening()}}
		w.front.Start()
	case "issue":
		_, k := w.vendor.Issue("by hand")
		w.know(k)
		ts.Check(os.WriteFile(ts.MkAbs(arg), []byte(k+"\n"), 0o600))
		ts.Setenv("VENDOR_ID", w.vendor.IDOf(k))
	case "revoke":
		if !w.vendor.RevokeKey(w.vendor.IDOf(strings.TrimSpace(ts.ReadFile(arg)))) {
			ts.Fatalf("the vendor knows no such key")
		}
	case "valid":
		if w.vendor.Valid(strings.TrimSpace(ts.ReadFile(arg))) == neg {
			ts.Fatalf("the key works: %v", neg)
		}
	case "active":
		n, err := strconv.Atoi(arg)
		ts.Check(err)
		if got := w.vendor.Active(); got != n {
			ts.Fatalf("there are %d keys, not %d", got, n)
		}
	case "mark":
		w.base = seen()
	case "quiet":
		if n := seen() - w.base; n != 0 {
			ts.Fatalf("the vendor got %d requests", n)
		}
	default:
		ts.Fatalf(vendorUsage)
	}
}

// listening serves the vendor and remembers every key that it gives out.
func (w *world) listening() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/keys" {
			w.vendor.ServeHTTP(rw, r)
			return
		}
		rec := httptest.NewRecorder()
		w.vendor.ServeHTTP(rec, r)
		var k struct {
			Key string `json:"key"`
		}
		if json.Unmarshal(rec.Body.Bytes(), &k) == nil && k.Key != "" {
			w.know(k.Key)
		}
		rw.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
		rw.WriteHeader(rec.Code)
		_, _ = rw.Write(rec.Body.Bytes())
	})
}

func (w *world) know(k string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.issued = append(w.issued, k)
}

// request is curl with a token: request URL TOKENFILE [METHOD [PATTERN]]. With
// a pattern it asks until the answer matches. It prints status, Keybaton's
// headers and body.
func request(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 4 {
		ts.Fatalf("usage: request URL TOKENFILE [METHOD [PATTERN]]")
	}
	method := http.MethodGet
	if len(args) > 2 {
		method = args[2]
	}
	send := func() string { return ask(ts, method, args[0], args[1], nil) }
	said := ""
	if len(args) < 4 {
		said = send()
	} else {
		re := regexp.MustCompile(args[3])
		worldOf(ts).until(ts, "an answer like "+args[3], func() (bool, string) {
			said = send()
			return re.MatchString(said), said
		})
	}
	_, _ = io.WriteString(ts.Stdout(), said)
}

// traffic calls the gateway ten times a second: traffic URL TOKENFILE. It ends
// with traffic end, and wants that every request was answered 200.
func traffic(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	switch {
	case !neg && len(args) == 2 && w.calling == nil:
		req, err := http.NewRequest(http.MethodPost, args[0], http.NoBody)
		ts.Check(err)
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[1])))
		ctx, cancel := context.WithCancel(context.Background())
		end, called := make(chan struct{}), make(chan [2]int, 1)
		w.calling, w.called = end, called
		ts.Defer(cancel)
		go func() {
			n := [2]int{}
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			defer func() { called <- n }()
			for {
				resp, err := http.DefaultClient.Do(req.Clone(ctx))
				n[0]++
				if err != nil {
					n[1]++
				} else {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						n[1]++
					}
				}
				select {
				case <-tick.C:
				case <-end:
					return
				case <-ctx.Done():
					return
				}
			}
		}()
	case !neg && len(args) == 1 && args[0] == "end" && w.calling != nil:
		close(w.calling)
		w.calling = nil
		if n := <-w.called; n[0] == 0 || n[1] > 0 {
			ts.Fatalf("%d requests, %d of them not answered 200", n[0], n[1])
		}
	default:
		ts.Fatalf("usage: traffic URL TOKENFILE, then traffic end")
	}
}

// callAPI calls the API: api METHOD PATH [BODY], with the admin token, or that
// of the file $TOKEN.
func callAPI(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: api METHOD PATH [BODY]")
	}
	token := ts.Getenv("KEYBATON_TOKEN_FILE")
	if t := ts.Getenv("TOKEN"); t != "" {
		token = t
	}
	var body []byte
	if len(args) > 2 {
		body = []byte(args[2])
	}
	_, _ = io.WriteString(ts.Stdout(), ask(ts, args[0], ts.Getenv("KEYBATON_ADDR")+args[1], token, body))
}

// ask sends one request and returns what a person would want to see of the
// answer.
func ask(ts *testscript.TestScript, method, url, tokenFile string, body []byte) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	ts.Check(err)
	if tokenFile != "-" {
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(tokenFile)))
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "no answer: " + err.Error() + "\n"
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	b, err := io.ReadAll(resp.Body)
	ts.Check(err)
	var out strings.Builder
	_, _ = fmt.Fprintf(&out, "HTTP %d\n", resp.StatusCode)
	for _, h := range []string{"Keybaton-Version", "Keybaton-Fallback", "Keybaton-Error"} {
		if v := resp.Header.Get(h); v != "" {
			_, _ = fmt.Fprintf(&out, "%s: %s\n", h, v)
		}
	}
	_, _ = fmt.Fprintf(&out, "%s\n", bytes.TrimSpace(b))
	return out.String()
}
