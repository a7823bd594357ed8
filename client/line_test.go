package client_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

// line is the server's end of the line, with frames that the test pushes.
type line struct {
	*httptest.Server
	mu      sync.Mutex
	frame   link.Frame
	moved   chan struct{}
	acks    []evidence.Ack
	reports []evidence.Report
}

func newLine(t *testing.T) *line {
	l := &line{moved: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+link.WatchPath, l.watch)
	mux.HandleFunc("POST "+link.AckPath, func(w http.ResponseWriter, r *http.Request) {
		var a evidence.Ack
		if json.NewDecoder(r.Body).Decode(&a) == nil {
			l.mu.Lock()
			l.acks = append(l.acks, a)
			l.mu.Unlock()
		}
	})
	mux.HandleFunc("POST "+link.ReportPath, func(w http.ResponseWriter, r *http.Request) {
		var rep evidence.Report
		if json.NewDecoder(r.Body).Decode(&rep) == nil {
			l.mu.Lock()
			l.reports = append(l.reports, rep)
			l.mu.Unlock()
		}
	})
	l.Server = httptest.NewServer(mux)
	t.Cleanup(l.stop)
	return l
}

func (l *line) stop() {
	l.CloseClientConnections()
	l.Close()
}

func (l *line) watch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	var sent key.Revision
	for {
		l.mu.Lock()
		f, moved := l.frame, l.moved
		l.mu.Unlock()
		if f.Revision.Compare(sent) > 0 {
			sent = f.Revision
			b, err := json.Marshal(f)
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(w, "event: frame\ndata: %s\n\n", b)
		}
		w.(http.Flusher).Flush()
		select {
		case <-moved:
		case <-r.Context().Done():
			return
		}
	}
}

// push makes the next frame from the credentials.
func (l *line) push(creds ...link.Credential) key.Revision {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frame = link.Frame{Revision: key.Revision{Epoch: 1, Number: l.frame.Revision.Number + 1}, Full: true, Credentials: creds}
	close(l.moved)
	l.moved = make(chan struct{})
	return l.frame.Revision
}

// acked returns the newest acknowledgement.
func (l *line) acked() evidence.Ack {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.acks) == 0 {
		return evidence.Ack{}
	}
	return l.acks[len(l.acks)-1]
}

// seen merges the reports.
func (l *line) seen() evidence.Boot {
	l.mu.Lock()
	defer l.mu.Unlock()
	var led evidence.Ledger
	for _, r := range l.reports {
		led = led.Merge(r, time.Unix(1, 0))
	}
	if len(led.Boots) == 0 {
		return evidence.Boot{}
	}
	return led.Boots[0]
}

// until waits for ok, for at most ten seconds.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited ten seconds for %s", what)
		}
		<-tick.C
	}
}

// plain is a key of the test with a text in it.
func plain(n key.Number) string { return fmt.Sprintf("plaintext-key-%d", n) }

// credential is the service crm in prod, with the primary first.
func credential(upstream string, edit func(*key.Call), numbers ...key.Number) link.Credential {
	c := link.Credential{ID: key.CredentialID{Service: "crm", Environment: "prod"},
		Call: key.Call{Upstream: upstream, Place: key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}}}
	if edit != nil {
		edit(&c.Call)
	}
	for i, n := range numbers {
		if i == 0 {
			c.Slots.Primary = n
		} else {
			c.Slots.Fallback = n
		}
		c.Versions = append(c.Versions, link.Version{Number: n, Parts: secret.ExposeParts(secret.Parts{"key": secret.FromString(plain(n))})})
	}
	return c
}

var crm = client.Credential{Service: "crm", Environment: "prod"}

// follow opens the line to l.
func follow(t *testing.T, l *line, o client.FollowOptions) *client.Keys {
	t.Helper()
	c, err := client.New(client.Config{Address: l.URL, Token: secret.FromString("kbt_token")})
	if err != nil {
		t.Fatal(err)
	}
	if o.Every == 0 {
		o.Every = 20 * time.Millisecond
	}
	k, err := c.Follow(t.Context(), o)
	if err != nil {
		t.Fatalf("following: %v", err)
	}
	t.Cleanup(k.Close)
	return k
}

func handle(t *testing.T, k *client.Keys) *client.Handle {
	t.Helper()
	h, err := k.Handle(crm)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func pins(a evidence.Ack, n key.Number) bool {
	return slices.ContainsFunc(a.Pinned, func(v key.VersionID) bool { return v.Number == n })
}
