package link_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "kbt_TOKEN-OF-THE-TEST"

// soon is how long a test waits for what must happen.
const soon = 20 * time.Second

// server is a server's end of the line. What is put into out goes to the
// watcher that is connected.
type server struct {
	out chan string // events as they are written

	mu      sync.Mutex
	down    bool
	refuse  int // status of the next answers to acknowledgements and reports; 0 takes them
	acks    []evidence.Ack
	reports []evidence.Report
	watches []string // raw queries
	open    int      // streams
	changed chan struct{}
	cut     chan struct{} // closed to end the open streams
}

func newServer() *server {
	return &server{out: make(chan string, 100), changed: make(chan struct{}), cut: make(chan struct{})}
}

func (s *server) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	close(s.changed)
	s.changed = make(chan struct{})
}

// until waits for cond, which is checked under the lock.
func (s *server) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	limit := time.After(soon)
	for {
		s.mu.Lock()
		ok, changed := cond(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (s *server) acked() []evidence.Ack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.acks)
}

func (s *server) reported() []evidence.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reports)
}

func (s *server) watched() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.watches)
}

func (s *server) stop() {
	s.change(func() { s.down = true; close(s.cut); s.cut = make(chan struct{}) })
}

func (s *server) start() { s.change(func() { s.down = false }) }

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	down, refuse, cut := s.down, s.refuse, s.cut
	s.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer "+token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	switch r.URL.Path {
	case link.WatchPath:
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		s.change(func() { s.watches = append(s.watches, r.URL.RawQuery); s.open++ })
		defer s.change(func() { s.open-- })
		for {
			select {
			case e := <-s.out:
				_, _ = io.WriteString(w, e)
				w.(http.Flusher).Flush()
			case <-cut:
				return
			case <-r.Context().Done():
				return
			}
		}
	case link.AckPath:
		var a evidence.Ack
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.change(func() {
			if refuse == 0 {
				s.acks = append(s.acks, a)
			}
		})
	case link.ReportPath:
		var v evidence.Report
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.change(func() { s.reports = append(s.reports, v) })
	default:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if refuse != 0 {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(refuse)
		_, _ = io.WriteString(w, `{"detail":"not now","next":"wait"}`)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// send gives the watcher a frame.
func (s *server) send(t *testing.T, f link.Frame) {
	t.Helper()
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	s.out <- fmt.Sprintf("id: %s\nevent: frame\ndata: %s\n\n", f.Revision, b)
}

func rev(epoch, number int64) key.Revision { return key.Revision{Epoch: epoch, Number: number} }

// frame is a full frame with one key in it for each number.
func frame(r key.Revision, numbers ...key.Number) link.Frame {
	f := link.Frame{Revision: r, Full: true}
	for _, n := range numbers {
		f.Credentials = append(f.Credentials, credential(fmt.Sprintf("svc%d", int64(n)), n))
	}
	return f
}

func credential(service string, n key.Number) link.Credential {
	return link.Credential{ID: key.CredentialID{Service: service, Environment: "prod"}, Slots: key.Slots{Primary: n},
		Versions: []link.Version{{Number: n, Parts: map[string]secret.Exposed{"key": secret.Expose(secret.FromString(plaintext))}}}}
}

const plaintext = "PLAINTEXT-OF-A-KEY"

// consumer is the other end: what it was given, and what was told.
type consumer struct {
	t    *testing.T
	link *link.Link
	stop func()
	done chan error

	mu      sync.Mutex
	frames  []link.Frame
	pins    []key.VersionID
	fail    error
	events  []link.Event
	changed chan struct{}
}

func (c *consumer) change(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *consumer) until(what string, cond func() bool) {
	c.t.Helper()
	limit := time.After(soon)
	for {
		c.mu.Lock()
		ok, changed := cond(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Fatalf("waited in vain for %s; frames %d, events %v", what, len(c.frames), c.events)
		}
	}
}

func (c *consumer) using(r key.Revision) {
	c.t.Helper()
	c.until("revision "+r.String(), func() bool { return len(c.frames) > 0 && c.frames[len(c.frames)-1].Revision == r })
}

func (c *consumer) told(k link.EventKind) func() bool {
	return func() bool {
		return slices.ContainsFunc(c.events, func(e link.Event) bool { return e.Kind == k })
	}
}

func (c *consumer) used() []link.Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.frames)
}

func (c *consumer) seen() []link.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// has reports whether k was told up to now.
func (c *consumer) has(k link.EventKind) bool {
	return slices.ContainsFunc(c.seen(), func(e link.Event) bool { return e.Kind == k })
}

// end stops the consumer and waits for it.
func (c *consumer) end() {
	c.t.Helper()
	c.stop()
	select {
	case err := <-c.done:
		if err != nil {
			c.t.Fatal(err)
		}
	case <-time.After(soon):
		c.t.Fatal("Run did not end")
	}
}

func config(rt http.RoundTripper) link.Config {
	return link.Config{Server: "http://keybaton.test", Token: secret.FromString(token), Transport: rt,
		Every: 10 * time.Millisecond, Backoff: 20 * time.Millisecond, Linger: 5 * time.Second}
}

func run(t *testing.T, cfg link.Config) *consumer {
	t.Helper()
	c := &consumer{t: t, changed: make(chan struct{}), done: make(chan error, 1)}
	cfg.Event = func(e link.Event) { c.change(func() { c.events = append(c.events, e) }) }
	l, err := link.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.link = l
	ctx, cancel := context.WithCancel(t.Context())
	c.stop = cancel
	go func() {
		c.done <- l.Run(ctx, func(f link.Frame) error {
			var err error
			c.change(func() {
				if err = c.fail; err == nil {
					c.frames = append(c.frames, f)
				}
			})
			return err
		}, func(key.Revision) []key.VersionID {
			c.mu.Lock()
			defer c.mu.Unlock()
			return slices.Clone(c.pins)
		}, func(seq int64, elapsed time.Duration) evidence.Report {
			return evidence.Report{Uses: []evidence.Use{{LastUse: elapsed}}}
		})
	}()
	t.Cleanup(func() { cancel() })
	return c
}

func cached(t *testing.T, rt http.RoundTripper) link.Config {
	t.Helper()
	cfg := config(rt)
	cfg.CachePath = filepath.Join(t.TempDir(), "cache", "frame")
	cfg.CacheKey = secret.New(bytes.Repeat([]byte{3}, 32))
	return cfg
}

func TestFramesAreUsedAndAcknowledged(t *testing.T) {
	for name, transport := range map[string]func(*server) (http.RoundTripper, string, func()){
		"same process": func(s *server) (http.RoundTripper, string, func()) {
			return link.HandlerTransport(s), "http://keybaton.test", func() {}
		},
		"over the wire": func(s *server) (http.RoundTripper, string, func()) {
			ts := httptest.NewServer(s)
			return nil, ts.URL + "/", ts.Close
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer()
			rt, url, closeServer := transport(s)
			defer closeServer()
			cfg := config(rt)
			cfg.Server, cfg.Boot = url, "boot-1"
			c := run(t, cfg)
			s.send(t, frame(rev(1, 5), 1, 2))
			c.using(rev(1, 5))
			s.until(t, "the acknowledgement", func() bool { return len(s.acks) == 1 })
			if a := s.acked()[0]; a.Boot != "boot-1" || a.Revision != rev(1, 5) || a.Replaces != "" || a.Elapsed <= 0 || len(a.Pinned) != 0 {
				t.Fatalf("acknowledged %+v", a)
			}
			// A difference comes on top; apply gets the whole.
			s.out <- ": alive\n\n"
			s.send(t, link.Frame{Revision: rev(1, 7), Credentials: []link.Credential{credential("svc2", 9)}, Removed: []key.CredentialID{{Service: "svc1", Environment: "prod"}}})
			c.using(rev(1, 7))
			f := c.used()[1]
			if !f.Full || len(f.Credentials) != 1 || f.Credentials[0].Slots.Primary != 9 || !f.Credentials[0].Versions[0].Parts["key"].Value().Equal(secret.FromString(plaintext)) {
				t.Fatalf("frame %+v", f)
			}
			s.until(t, "the second acknowledgement", func() bool { return len(s.acks) == 2 && s.acks[1].Revision == rev(1, 7) })
			c.until("that it is known", func() bool { return c.link.State().Acked == rev(1, 7) })
			if st := c.link.State(); !st.Connected || st.Revision != rev(1, 7) || st.Contact.IsZero() || st.Boot != "boot-1" || st.Err != nil {
				t.Fatalf("state %+v", st)
			}
			c.end()
			if st := c.link.State(); st.Connected {
				t.Fatalf("state %+v", st)
			}
		})
	}
}

func TestPinnedIsAcknowledgedAgainWhenItShrinks(t *testing.T) {
	s := newServer()
	c := run(t, config(link.HandlerTransport(s)))
	old := key.VersionID{Credential: key.CredentialID{Service: "a", Environment: "prod"}, Number: 1}
	c.change(func() { c.pins = []key.VersionID{old} })
	s.send(t, frame(rev(1, 5), 2))
	s.until(t, "the acknowledgement", func() bool { return len(s.acks) == 1 })
	if !slices.Equal(s.acked()[0].Pinned, []key.VersionID{old}) {
		t.Fatalf("acknowledged %+v", s.acked()[0])
	}
	s.until(t, "some more reports", func() bool { return len(s.reports) > 5 })
	if len(s.acked()) != 1 {
		t.Fatalf("acknowledged the same %d times", len(s.acked()))
	}
	c.change(func() { c.pins = nil })
	s.until(t, "the next acknowledgement", func() bool { return len(s.acks) == 2 })
	if a := s.acked()[1]; len(a.Pinned) != 0 || a.Revision != rev(1, 5) {
		t.Fatalf("acknowledged %+v", a)
	}
	c.end()
}

func TestTheWatchIsResumed(t *testing.T) {
	s := newServer()
	c := run(t, config(link.HandlerTransport(s)))
	s.send(t, frame(rev(1, 5), 1))
	c.using(rev(1, 5))
	s.stop()
	c.until("the cut", func() bool { return c.told(link.Disconnected)() })
	s.start()
	s.until(t, "another watch", func() bool { return len(s.watches) >= 2 })
	if q := s.watched()[len(s.watched())-1]; !strings.Contains(q, "since=1.5") || !strings.Contains(q, "boot="+c.link.Boot()) {
		t.Fatalf("watched with %q", q)
	}
	if q := s.watched()[0]; strings.Contains(q, "since") {
		t.Fatalf("first watched with %q", q)
	}
	s.send(t, link.Frame{Revision: rev(1, 6), Credentials: []link.Credential{credential("svc1", 2)}})
	c.using(rev(1, 6))
	c.end()
}

func TestASilentServerIsLeft(t *testing.T) {
	s := newServer()
	cfg := config(link.HandlerTransport(s))
	cfg.Silence = 50 * time.Millisecond
	c := run(t, cfg)
	s.until(t, "the second watch", func() bool { return len(s.watches) >= 2 })
	c.until("why", func() bool { return c.told(link.Disconnected)() })
	for _, e := range c.seen() {
		if e.Kind == link.Disconnected && !strings.Contains(e.Err.Error(), "silent") {
			t.Fatalf("left because of %v", e.Err)
		}
	}
	c.end()
}

func TestOlderFramesAreRefused(t *testing.T) {
	s := newServer()
	c := run(t, config(link.HandlerTransport(s)))
	s.send(t, frame(rev(2, 5), 1))
	c.using(rev(2, 5))
	for _, f := range []link.Frame{
		frame(rev(2, 4), 7), frame(rev(1, 99), 7), frame(rev(0, 0), 7),
		{Revision: rev(3, 1), Credentials: []link.Credential{credential("x", 7)}}, // a difference across epochs
	} {
		c.change(func() { c.events = nil })
		n := len(s.watched())
		s.send(t, f)
		c.until("the refusal of "+f.Revision.String(), func() bool {
			return slices.ContainsFunc(c.events, func(e link.Event) bool { return e.Kind == link.Refused && e.Revision == f.Revision && e.Err != nil })
		})
		if n := len(c.used()); n != 1 || c.link.State().Revision != rev(2, 5) {
			t.Fatalf("%v was used", f.Revision)
		}
		s.until(t, "another watch alone", func() bool { return len(s.watches) > n && s.open == 1 })
	}
	s.send(t, frame(rev(3, 1), 7)) // a new epoch, whole
	c.using(rev(3, 1))
	s.until(t, "its acknowledgement", func() bool { return len(s.acks) > 0 && s.acks[len(s.acks)-1].Revision == rev(3, 1) })
	c.end()
}

func TestAFrameThatCannotBeUsedIsNotAcknowledged(t *testing.T) {
	s := newServer()
	cfg := cached(t, link.HandlerTransport(s))
	c := run(t, cfg)
	s.send(t, frame(rev(1, 5), 1))
	c.using(rev(1, 5))
	c.change(func() { c.fail = errors.New("no") })
	s.send(t, frame(rev(1, 6), 2))
	c.until("the refusal", c.told(link.Refused))
	c.change(func() { c.fail = nil })
	s.until(t, "another watch", func() bool { return len(s.watches) >= 2 })
	if q := s.watched()[1]; !strings.Contains(q, "since=1.5") {
		t.Fatalf("watched with %q", q)
	}
	c.end()
	for _, a := range s.acked() {
		if a.Revision != rev(1, 5) {
			t.Fatalf("acknowledged %+v", a)
		}
	}
	// What comes after begins with what worked.
	c = run(t, cfg)
	c.using(rev(1, 5))
	c.end()
}

func TestReportsAreSentUntilTheyAreTaken(t *testing.T) {
	s := newServer()
	s.refuse = http.StatusServiceUnavailable
	c := run(t, config(link.HandlerTransport(s)))
	s.until(t, "some tries", func() bool { return len(s.reports) >= 3 })
	for _, r := range s.reported() {
		if r.Seq != 1 || r.Elapsed != s.reported()[0].Elapsed || r.Uses[0].LastUse != r.Elapsed || r.Boot != c.link.Boot() {
			t.Fatalf("a try of the first report: %+v", r)
		}
	}
	s.change(func() { s.refuse = 0; s.reports = nil })
	s.until(t, "five reports", func() bool { return len(s.reports) >= 5 })
	for i, r := range s.reported()[:5] {
		if r.Seq != int64(i+1) {
			t.Fatalf("report %d has number %d", i, r.Seq)
		}
	}
	// One that can never be taken is made anew under its number.
	s.change(func() { s.refuse = http.StatusUnprocessableEntity; s.reports = nil })
	s.until(t, "two refused reports", func() bool { return len(s.reports) >= 3 })
	if a, b := s.reported()[1], s.reported()[2]; a.Seq != b.Seq || a.Elapsed >= b.Elapsed {
		t.Fatalf("%+v, then %+v", a, b)
	}
	s.change(func() { s.refuse = 0; s.reports = nil })
	c.end()
	n := len(s.reported())
	if n < 1 || s.reported()[n-1].Elapsed < s.reported()[0].Elapsed {
		t.Fatalf("the last reports: %+v", s.reported())
	}
	if !c.has(link.ReportFailed) {
		t.Fatal("a refused report was not told")
	}
}

func TestStartsAndServesWithEveryServerDown(t *testing.T) {
	s := newServer()
	cfg := cached(t, link.HandlerTransport(s))
	c := run(t, cfg)
	s.send(t, frame(rev(1, 5), 1, 2))
	s.until(t, "the acknowledgement", func() bool { return len(s.acks) == 1 })
	c.until("the cache", func() bool { return c.link.State().Cached == rev(1, 5) })
	first := c.link.Boot()
	c.end()

	s.stop()
	var boots []string
	for range 2 { // twice, so that two processes are to be replaced
		c = run(t, cfg)
		c.using(rev(1, 5))
		if f := c.used()[0]; !f.Full || len(f.Credentials) != 2 || !f.Credentials[0].Versions[0].Parts["key"].Value().Equal(secret.FromString(plaintext)) {
			t.Fatalf("from the cache: %+v", f)
		}
		c.until("that the server is down", c.told(link.Disconnected))
		if st := c.link.State(); st.Connected || st.Err == nil || st.Revision != rev(1, 5) || !st.Acked.IsZero() {
			t.Fatalf("state %+v", st)
		}
		boots = append(boots, c.link.Boot())
		c.end()
	}

	// The server comes back: everybody who is gone is named.
	s.start()
	s.change(func() { s.acks = nil })
	c = run(t, cfg)
	s.until(t, "the acknowledgements", func() bool { return len(s.acks) == 3 })
	var gone []string
	for _, a := range s.acked() {
		gone = append(gone, a.Replaces)
		if a.Boot != c.link.Boot() || a.Revision != rev(1, 5) {
			t.Fatalf("acknowledged %+v", a)
		}
	}
	if want := append([]string{first}, boots...); !slices.Equal(gone, want) {
		t.Fatalf("replaces %v, want %v", gone, want)
	}
	c.until("that they are known", func() bool { return c.link.State().Acked == rev(1, 5) })
	s.send(t, frame(rev(1, 6), 1))
	s.until(t, "the acknowledgement of the next frame", func() bool { return len(s.acks) == 4 })
	if a := s.acked()[3]; a.Replaces != "" {
		t.Fatalf("acknowledged %+v", a)
	}
	last := c.link.Boot()
	c.end()
	c = run(t, cfg)
	s.until(t, "the acknowledgement of the next process", func() bool { return s.acks[len(s.acks)-1].Boot == c.link.Boot() })
	if a := s.acked(); a[len(a)-1].Replaces != last || a[len(a)-1].Revision != rev(1, 6) {
		t.Fatalf("acknowledged %+v", a)
	}
	c.end()
}

func TestTheCacheIsSealed(t *testing.T) {
	s := newServer()
	cfg := cached(t, link.HandlerTransport(s))
	c := run(t, cfg)
	s.send(t, frame(rev(1, 5), 1))
	s.until(t, "the acknowledgement", func() bool { return len(s.acks) == 1 })
	c.end()
	dir := filepath.Dir(cfg.CachePath)
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(plaintext)) || bytes.Contains(b, []byte(token)) {
			t.Fatalf("%s holds plaintext", f.Name())
		}
		if st, err := f.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Fatalf("%s has mode %v, %v", f.Name(), st.Mode(), err)
		}
	}
	if !slices.Equal(names, []string{"frame", "frame.lock"}) {
		t.Fatalf("files: %v", names)
	}
	if shown := fmt.Sprintf("%v %+v", c.seen(), c.link.State()) + fmt.Sprintf("%+v", c.used()); strings.Contains(shown, plaintext) || strings.Contains(shown, token) {
		t.Fatal("plaintext is shown")
	}
}

func TestACacheThatDoesNotOpenIsBegunAnew(t *testing.T) {
	s := newServer()
	write := func(t *testing.T, cfg link.Config) {
		t.Helper()
		c := run(t, cfg)
		s.send(t, frame(rev(1, 5), 1))
		c.using(rev(1, 5))
		c.until("the cache", func() bool { return c.link.State().Cached == rev(1, 5) })
		c.end()
	}
	for name, spoil := range map[string]func(*testing.T, *link.Config){
		"changed": func(t *testing.T, cfg *link.Config) {
			b, err := os.ReadFile(cfg.CachePath)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)-1] ^= 1
			if err := os.WriteFile(cfg.CachePath, b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"cut": func(t *testing.T, cfg *link.Config) {
			if err := os.Truncate(cfg.CachePath, 30); err != nil {
				t.Fatal(err)
			}
		},
		"empty": func(t *testing.T, cfg *link.Config) {
			if err := os.Truncate(cfg.CachePath, 0); err != nil {
				t.Fatal(err)
			}
		},
		"something else": func(t *testing.T, cfg *link.Config) {
			if err := os.WriteFile(cfg.CachePath, []byte("keybaton-cache x\nhello"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"another key":      func(_ *testing.T, cfg *link.Config) { cfg.CacheKey = secret.New(bytes.Repeat([]byte{4}, 32)) },
		"another consumer": func(_ *testing.T, cfg *link.Config) { cfg.Consumer = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cached(t, link.HandlerTransport(s))
			write(t, cfg)
			spoil(t, &cfg)
			c := run(t, cfg)
			c.until("the warning", c.told(link.CacheLost))
			if len(c.used()) != 0 {
				t.Fatal("a spoiled cache was used")
			}
			s.send(t, frame(rev(1, 6), 1))
			c.using(rev(1, 6))
			c.until("the cache", func() bool { return c.link.State().Cached == rev(1, 6) })
			c.end()
			c = run(t, cfg)
			c.using(rev(1, 6))
			if c.has(link.CacheLost) {
				t.Fatal("the cache was lost again")
			}
			c.end()
		})
	}
}

func TestCacheOfOthersIsRefused(t *testing.T) {
	s := newServer()
	cfg := cached(t, link.HandlerTransport(s))
	c := run(t, cfg)
	c.until("the connection", c.told(link.Connected))
	none := func(link.Frame) error { return nil }
	second, err := link.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	hint := (*key.Hint)(nil)
	if err := second.Run(t.Context(), none, nil, nil); !errors.Is(err, key.ErrLocked) || !errors.As(err, &hint) {
		t.Fatalf("a second process on the cache: %v", err)
	}
	c.end()
	if err := os.WriteFile(cfg.CachePath, []byte("keybaton-cache 2\nwhatever"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context(), none, nil, nil); !errors.Is(err, key.ErrNewer) || !errors.As(err, &hint) {
		t.Fatalf("a cache of a newer program: %v", err)
	}
	if b, err := os.ReadFile(cfg.CachePath); err != nil || string(b) != "keybaton-cache 2\nwhatever" {
		t.Fatal("a cache of a newer program was changed")
	}
}

// A disk that refuses the cache keeps nobody from the keys, but nothing is
// promised until it takes it.
func TestNothingIsAcknowledgedBeforeItIsOnDisk(t *testing.T) {
	s := newServer()
	cfg := cached(t, link.HandlerTransport(s))
	dir := filepath.Dir(cfg.CachePath)
	c := run(t, cfg)
	s.send(t, frame(rev(1, 5), 1))
	s.until(t, "the acknowledgement", func() bool { return len(s.acks) == 1 })
	moved := dir + "-away"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	s.send(t, frame(rev(1, 6), 2))
	c.using(rev(1, 6))
	c.until("the failure", c.told(link.CacheFailed))
	s.until(t, "some more reports", func() bool {
		n := len(s.reports)
		return n > 0 && s.reports[n-1].Elapsed > c.link.Elapsed()-time.Millisecond || n > 20
	})
	if len(s.acked()) != 1 {
		t.Fatalf("acknowledged %+v", s.acked()[1:])
	}
	if err := os.Rename(moved, dir); err != nil {
		t.Fatal(err)
	}
	s.until(t, "the acknowledgement", func() bool { return len(s.acks) == 2 && s.acks[1].Revision == rev(1, 6) })
	if st := c.link.State(); st.Cached != rev(1, 6) {
		t.Fatalf("state %+v", st)
	}
	c.end()
}

func TestRefusedTokenIsTold(t *testing.T) {
	s := newServer()
	cfg := config(link.HandlerTransport(s))
	cfg.Token = secret.FromString("kbt_wrong")
	c := run(t, cfg)
	c.until("the refusal", func() bool {
		return slices.ContainsFunc(c.events, func(e link.Event) bool { return e.Kind == link.Disconnected && errors.Is(e.Err, key.ErrNoToken) })
	})
	s.until(t, "nothing", func() bool { return true })
	c.end()
	n := 0
	for _, e := range c.seen() {
		if e.Kind == link.Disconnected && e.Err != nil {
			n++
		}
	}
	if n != 1 {
		t.Fatalf("a lasting failure was told %d times", n)
	}
}

func TestTheTokenFollowsNoRedirect(t *testing.T) {
	var seen sync.Map
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen.Store("seen", r.Header) }))
	defer other.Close()
	ts := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer ts.Close()
	cfg := config(nil)
	cfg.Server = ts.URL
	c := run(t, cfg)
	c.until("the failure", c.told(link.Disconnected))
	c.end()
	if _, ok := seen.Load("seen"); ok {
		t.Fatal("the redirect was followed")
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	for name, change := range map[string]func(*link.Config){
		"no server":    func(c *link.Config) { c.Server = "" },
		"no scheme":    func(c *link.Config) { c.Server = "keys.example.com:7460" },
		"user in URL":  func(c *link.Config) { c.Server = "http://u:p@keys.example.com" },
		"query in URL": func(c *link.Config) { c.Server = "http://keys.example.com?x" },
		"no token":     func(c *link.Config) { c.Token = secret.Value{} },
		"no cache key": func(c *link.Config) { c.CachePath = "x" },
	} {
		cfg := config(nil)
		change(&cfg)
		_, err := link.New(cfg)
		if h, ok := errors.AsType[*key.Hint](err); !ok || h.Next == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCacheKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conf", "cache.key")
	a, err := link.LoadOrCreateCacheKey(path)
	if err != nil || a.Len() != 32 {
		t.Fatal(a.Len(), err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	b, err := link.LoadOrCreateCacheKey(path)
	if err != nil || !a.Equal(b) {
		t.Fatal("another key was read back", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := link.LoadOrCreateCacheKey(path); !errors.Is(err, key.ErrInvalid) || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := link.LoadOrCreateCacheKey(path); !errors.Is(err, key.ErrInvalid) {
		t.Fatal(err)
	}
}
