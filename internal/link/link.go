package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// Config is what a Link works with. Server and Token are required.
type Config struct {
	Server    string            // base URL of the server; whether plain http is allowed is the caller's rule
	Token     secret.Value      // of the consumer
	Transport http.RoundTripper // nil means a transport of its own; see [HandlerTransport] for the same process

	// CachePath is the file that keeps the last frame, sealed under CacheKey
	// (32 bytes, see [LoadOrCreateCacheKey]). Without one nothing is kept, and
	// what this process held stays held until a person says that it is gone.
	CachePath string
	CacheKey  secret.Value

	Consumer string        // the consumer's name, if known; the server goes by the token
	Boot     string        // "" means random; one per process start
	Every    time.Duration // between reports; default 1 s
	Silence  time.Duration // without a byte from the server, the line counts as cut; default 15 s
	Backoff  time.Duration // longest wait before the next try; default 5 s
	Linger   time.Duration // for the last report after the context has ended; default 2 s

	Now   func() time.Time // wall clock, for State; nil means time.Now
	Event func(Event)      // nil drops events; called from the Link's goroutines, must not block
}

// EventKind says what happened on the line.
type EventKind string

// The kinds of event.
const (
	Connected    EventKind = "connected"     // the server answered the watch
	Disconnected EventKind = "disconnected"  // Err says why; what is held keeps serving
	Applied      EventKind = "applied"       // Revision is in use
	Acknowledged EventKind = "acknowledged"  // the server has taken the acknowledgement of Revision
	Refused      EventKind = "refused"       // a frame was not taken; Err says why
	AckFailed    EventKind = "ack_failed"    // an acknowledgement was not accepted; it is tried again
	ReportFailed EventKind = "report_failed" // a report was not accepted; it is tried again
	CacheLost    EventKind = "cache_lost"    // the cache does not open; it is begun anew
	CacheFailed  EventKind = "cache_failed"  // the cache cannot be written; nothing is acknowledged until it can
	CacheApplied EventKind = "cache_applied" // Revision is in use, from the cache
)

// Event is something that happened on the line. It never holds a key.
type Event struct {
	Kind     EventKind
	Revision key.Revision
	Err      error
}

// State is how the line stands, for people.
type State struct {
	Connected bool
	Boot      string
	Revision  key.Revision // in use; zero before the first frame
	Acked     key.Revision // accepted by the server
	Cached    key.Revision // on disk
	Contact   time.Time    // last byte from the server; zero: never
	Err       error        // why it is not connected, or what is not accepted; nil when all is well
}

// Link is one consumer's line to its server. Run it once.
type Link struct {
	c      Config
	client *http.Client
	base   string
	began  time.Time // monotonic zero of Elapsed
	cache  *cache    // nil without a path

	apply  func(Frame) error
	pinned func(key.Revision) []key.VersionID

	kick chan struct{} // a frame was applied: acknowledge

	taking sync.Mutex // orders what is written to the cache; taken before mu

	mu       sync.Mutex
	frame    Frame // in use
	state    State
	replaced []string // boots that this process took over and the server does not know of yet
	lastPins []key.VersionID
	told     map[EventKind]string // failures that were told and have not passed
}

// New returns a Link; nothing happens before [Link.Run].
func New(c Config) (*Link, error) {
	u, err := url.Parse(c.Server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" {
		return nil, key.WithHint(fmt.Errorf("%w: the address of the server is not an http or https URL", key.ErrInvalid), "write it like https://keys.example.com:7460")
	}
	if c.Token.IsZero() {
		return nil, key.WithHint(fmt.Errorf("%w: the line to %s has no token", key.ErrNoToken, u.Host), "create one with keybaton token create, and set KEYBATON_TOKEN")
	}
	c.Every, c.Silence = orDefault(c.Every, time.Second), orDefault(c.Silence, 15*time.Second)
	c.Backoff, c.Linger = orDefault(c.Backoff, 5*time.Second), orDefault(c.Linger, 2*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Event == nil {
		c.Event = func(Event) {}
	}
	if c.Boot == "" {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		c.Boot = hex.EncodeToString(b[:])
	}
	l := &Link{c: c, base: strings.TrimRight(c.Server, "/"), began: time.Now(), kick: make(chan struct{}, 1), told: map[EventKind]string{}}
	if c.CachePath != "" {
		if l.cache, err = newCache(c.CachePath, c.CacheKey, c.Consumer); err != nil {
			return nil, err
		}
	}
	rt := c.Transport
	if rt == nil {
		t := http.DefaultTransport.(*http.Transport).Clone() // the standard library's own type
		t.ResponseHeaderTimeout = c.Silence
		rt = t
	}
	l.client = &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("the server redirects; the token goes nowhere else")
	}}
	l.state.Boot = c.Boot
	return l, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Boot returns the id of this process start.
func (l *Link) Boot() string { return l.c.Boot }

// Elapsed returns the time since the Link was made, on the monotonic clock: the
// clock of its acknowledgements and reports.
func (l *Link) Elapsed() time.Duration { return time.Since(l.began) }

// State returns how the line stands.
func (l *Link) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Run follows the server until ctx ends; then it sends the last report and
// returns nil. It returns an error only if it cannot begin: the cache is in use
// by another process ([key.ErrLocked]) or was written by a newer program
// ([key.ErrNewer]). A server that is down, now or later, is no error: what is
// held keeps serving, for as long as it takes.
//
// Each frame is put on top of the one in use, handed to apply, written to the
// cache, and then acknowledged at once: what is on disk may be older than what
// is in use, and is held until the acknowledgement. apply gets whole frames, one at a time,
// the cached one first and before Run talks to the server; it must not keep
// running requests on an older one without listing their versions in pinned,
// and returns an error to refuse the frame. pinned returns the versions that
// running requests still use from frames below a revision. report returns what
// was seen up to now; the Link fills in who, boot, number and time. pinned and
// report may be nil, and are called from other goroutines than apply.
func (l *Link) Run(ctx context.Context, apply func(Frame) error, pinned func(below key.Revision) []key.VersionID, report func(seq int64, elapsed time.Duration) evidence.Report) error {
	if pinned == nil {
		pinned = func(key.Revision) []key.VersionID { return nil }
	}
	l.apply, l.pinned = apply, pinned
	if l.cache != nil {
		unlock, err := l.cache.lock()
		if err != nil {
			return err
		}
		defer unlock()
		if err := l.resume(); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { l.acknowledging(ctx) })
	if report != nil {
		wg.Go(func() { l.reporting(ctx, report) })
	}
	l.watching(ctx)
	wg.Wait()
	l.client.CloseIdleConnections()
	return nil
}

// resume takes over what the process before left in the cache.
func (l *Link) resume() error {
	kept, err := l.cache.load()
	if err != nil {
		if errors.Is(err, key.ErrNewer) {
			return err
		}
		l.event(CacheLost, key.Revision{}, err)
	}
	l.replaced = kept.Replaced
	if kept.Boot != "" && !slices.Contains(l.replaced, kept.Boot) {
		l.replaced = append(l.replaced, kept.Boot)
	}
	if !kept.Frame.Revision.IsZero() { // it serves at once
		if err := l.apply(kept.Frame); err != nil {
			l.event(Refused, kept.Frame.Revision, fmt.Errorf("the cached frame: %w", err))
		} else {
			l.use(kept.Frame)
			l.event(CacheApplied, kept.Frame.Revision, nil)
		}
	}
	// The cache names this boot before the server can record a hold of it, so
	// that whoever comes after can say that this process is gone.
	if err := l.save(kept.Frame); err != nil {
		l.event(CacheFailed, kept.Frame.Revision, err)
	}
	return nil
}

// save writes f to the cache with this boot and those it replaces; taking is
// held, or nothing else runs yet.
func (l *Link) save(f Frame) error {
	if l.cache == nil {
		return nil
	}
	l.mu.Lock()
	k := kept{Boot: l.c.Boot, Replaced: slices.Clone(l.replaced), Frame: f}
	l.mu.Unlock()
	if err := l.cache.save(k); err != nil {
		return err
	}
	l.mu.Lock()
	l.state.Cached = f.Revision
	l.mu.Unlock()
	l.passed(CacheFailed)
	return nil
}

// passed notes that a failure of kind k is over: the next one is told again.
func (l *Link) passed(k EventKind) {
	l.mu.Lock()
	delete(l.told, k)
	l.mu.Unlock()
}

// use makes f the frame in use and asks for its acknowledgement.
func (l *Link) use(f Frame) {
	l.mu.Lock()
	l.frame = f
	l.state.Revision = f.Revision
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// event notes what happened and tells it, but a failure that lasts only once.
func (l *Link) event(k EventKind, r key.Revision, err error) {
	l.mu.Lock()
	switch k {
	case Connected:
		l.state.Connected, l.state.Err = true, nil
		delete(l.told, Disconnected)
	case Disconnected:
		l.state.Connected, l.state.Err = false, err
	case Refused, CacheFailed, AckFailed, ReportFailed:
		l.state.Err = err
	case Applied:
		delete(l.told, Refused)
	case Acknowledged:
		l.state.Acked = r
		if l.state.Connected {
			l.state.Err = nil
		}
		delete(l.told, AckFailed)
	}
	again := false
	if err != nil {
		again = l.told[k] == err.Error()
		l.told[k] = err.Error()
	}
	l.mu.Unlock()
	if !again {
		l.c.Event(Event{Kind: k, Revision: r, Err: err})
	}
}

func (l *Link) contact() {
	now := l.c.Now()
	l.mu.Lock()
	l.state.Contact = now
	l.mu.Unlock()
}

// take puts a frame that came over the line in use.
func (l *Link) take(f Frame) error {
	l.taking.Lock()
	defer l.taking.Unlock()
	l.mu.Lock()
	old := l.frame
	l.mu.Unlock()
	switch {
	case f.Revision.IsZero():
		return fmt.Errorf("%w: a frame without a revision", key.ErrInvalid)
	case f.Revision.Compare(old.Revision) < 0:
		return key.WithHint(fmt.Errorf("%w: the server offers revision %s, older than %s in use", key.ErrStale, f.Revision, old.Revision),
			"if the server was restored from a backup, restore it with keybaton restore, which begins a new epoch")
	case !f.Full && (old.Revision.IsZero() || f.Revision.Epoch != old.Revision.Epoch):
		return fmt.Errorf("%w: a change without the frame it belongs to", key.ErrStale)
	}
	next := old.Apply(f)
	next.Full = true
	if err := l.apply(next); err != nil {
		return fmt.Errorf("using revision %s: %w", next.Revision, err)
	}
	if err := l.save(next); err != nil {
		// The keys are used all the same: they may be the only ones that work.
		// What waits is the promise that they are on disk.
		l.event(CacheFailed, next.Revision, err)
	}
	l.use(next)
	l.event(Applied, next.Revision, nil)
	return nil
}

// acknowledging promises each frame in use to the server, at once; again when
// less is pinned; and again and again until the server has taken it.
func (l *Link) acknowledging(ctx context.Context) {
	tick := time.NewTicker(l.c.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.c.Linger)
			defer cancel()
			_ = l.acknowledge(last) // the next process says it again
			return
		case <-l.kick:
		case <-tick.C:
		}
		if err := l.acknowledge(ctx); err != nil && ctx.Err() == nil {
			l.event(AckFailed, l.State().Revision, fmt.Errorf("acknowledging: %w", err))
		}
	}
}

// acknowledge sends what the server does not know yet, if anything.
func (l *Link) acknowledge(ctx context.Context) error {
	l.mu.Lock()
	f, st, replaced := l.frame, l.state, slices.Clone(l.replaced)
	lastPins := l.lastPins
	l.mu.Unlock()
	if f.Revision.IsZero() {
		return nil
	}
	known := st.Acked == f.Revision && len(replaced) == 0
	if known && len(lastPins) == 0 {
		return nil
	}
	pins := l.pinned(f.Revision)
	if known && samePins(pins, lastPins) {
		return nil
	}
	if l.cache != nil && st.Cached != f.Revision {
		if moved, err := l.saveAgain(f); moved || err != nil {
			return err
		}
	}
	if len(replaced) == 0 {
		replaced = []string{""}
	}
	for _, r := range replaced {
		a := evidence.Ack{Consumer: l.c.Consumer, Boot: l.c.Boot, Replaces: r, Revision: f.Revision, Elapsed: l.Elapsed(), Pinned: pins}
		if err := l.post(ctx, AckPath, a); err != nil {
			return err
		}
		l.mu.Lock()
		l.replaced = slices.DeleteFunc(l.replaced, func(s string) bool { return s == r })
		l.lastPins = pins
		l.mu.Unlock()
	}
	l.event(Acknowledged, f.Revision, nil)
	return nil
}

// saveAgain writes f to the cache after the disk refused it, unless a newer one
// has come meanwhile, which has an acknowledgement of its own.
func (l *Link) saveAgain(f Frame) (moved bool, err error) {
	l.taking.Lock()
	defer l.taking.Unlock()
	if l.State().Revision != f.Revision {
		return true, nil
	}
	return false, l.save(f)
}

func samePins(a, b []key.VersionID) bool {
	if len(a) != len(b) {
		return false
	}
	for _, v := range a {
		if !slices.Contains(b, v) {
			return false
		}
	}
	return true
}

// reporting sends what was seen, each second. A report is sent until it has
// been accepted; only then comes the next number. So a number that is missing
// at the server means a report that nobody has, and never one that is late.
func (l *Link) reporting(ctx context.Context, report func(int64, time.Duration) evidence.Report) {
	tick := time.NewTicker(l.c.Every)
	defer tick.Stop()
	var (
		seq     int64 // of the last one accepted
		waiting *evidence.Report
		wait    = l.c.Every
		retryAt time.Time
	)
	send := func(ctx context.Context) error {
		if waiting == nil {
			elapsed := l.Elapsed() // before the counters are read: no use is dated later than its report
			r := report(seq+1, elapsed)
			r.Consumer, r.Boot, r.Seq, r.Elapsed = l.c.Consumer, l.c.Boot, seq+1, elapsed
			waiting = &r
		}
		err := l.post(ctx, ReportPath, *waiting)
		if err == nil {
			seq, waiting = seq+1, nil
			l.passed(ReportFailed)
			return nil
		}
		if r, ok := errors.AsType[*refusal](err); ok && r.final() {
			waiting = nil // not taken, so its number is free; the next one says it all again
		}
		return err
	}
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.c.Linger)
			defer cancel()
			if waiting != nil && send(last) != nil {
				return
			}
			_ = send(last) // nobody is left to send it again
			return
		case <-tick.C:
		}
		if time.Now().Before(retryAt) {
			continue
		}
		if err := send(ctx); err != nil {
			if ctx.Err() == nil {
				l.event(ReportFailed, l.State().Revision, fmt.Errorf("reporting: %w", err))
			}
			retryAt = time.Now().Add(jitter(wait))
			wait = min(2*wait, max(l.c.Backoff, l.c.Every))
			continue
		}
		wait = l.c.Every
	}
}

// jitter returns something between d/2 and d.
func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(mrand.Int64N(int64(d/2)+1))
}

// watching keeps a watch open until ctx ends.
func (l *Link) watching(ctx context.Context) {
	const first = 50 * time.Millisecond
	wait := min(first, l.c.Backoff)
	for ctx.Err() == nil {
		heard, err := l.watch(ctx)
		if ctx.Err() != nil {
			l.event(Disconnected, l.State().Revision, nil)
			return
		}
		l.event(Disconnected, l.State().Revision, err)
		if heard {
			wait = min(first, l.c.Backoff)
		}
		t := time.NewTimer(jitter(wait))
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
		wait = min(2*wait, l.c.Backoff)
	}
}

// request returns a request with the token on it.
func (l *Link) request(ctx context.Context, method, path string, body []byte) (*http.Request, error) {
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, l.base+path, rd)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+string(l.c.Token.Reveal()))
	return req, nil
}
