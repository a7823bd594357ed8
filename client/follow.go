package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

// FollowOptions say how keys are followed. The zero FollowOptions keep them in
// memory only.
type FollowOptions struct {
	// Cache is the file that keeps the keys, sealed, so that a process starts
	// and serves with every server down, and says at its start that the one
	// before is gone. One process at a time can use it. "": the keys live in
	// memory only; what a process held when it ended is then waited for until a
	// person says that it is gone (keybaton consumer forget).
	Cache string
	// CacheKey is the file with the key of the cache, made when it is missing;
	// keep it away from the cache. "": keybaton/client-cache.key in the user's
	// configuration directory.
	CacheKey string

	Every time.Duration    // between reports, and so the most that a released version is held on; 0: 1 s
	Event func(LineEvent)  // what happens on the line, for logs; called from its goroutines, must not block; nil drops it
	Moved func(Credential) // the keys of a credential have changed; called like Event; nil: nobody is told
}

// LineEvent is something that happened on the line to the server. It never
// holds a key.
type LineEvent struct {
	What string // such as "connected", "disconnected", "acknowledged", "cache_failed"
	Err  error  // why; nil when all is well
}

// Keys follows the keys that the client's token grants, for as long as it is
// open. Every version in it is held: the server revokes none of them before
// this process has acknowledged a frame without it and has let go of what it
// still used. It counts what it sees of each version and reports it, by the
// rules of a gateway. It is safe for concurrent use.
type Keys struct {
	o     FollowOptions
	link  *link.Link
	stop  context.CancelFunc
	done  chan struct{}
	first chan struct{} // closed by the first frame
	err   error         // of the line; read after done

	book    call.Book
	breaker call.Breaker

	mu      sync.Mutex
	frame   link.Frame
	handles map[key.CredentialID]*Handle
	retired []*served // out of their handles, perhaps still in use
	closed  bool
}

// Follow opens the line to the server with the client's token, which must be
// one of a consumer of kind client, and returns when the first keys are there:
// those of the cache, or the server's. It waits for them until ctx ends. The
// caller owes [Keys.Close].
func (c *Client) Follow(ctx context.Context, o FollowOptions) (*Keys, error) {
	k := &Keys{o: o, done: make(chan struct{}), first: make(chan struct{}), handles: map[key.CredentialID]*Handle{}, breaker: call.Breaker{}.WithDefaults()}
	lc := link.Config{Server: c.base.String(), Token: c.token, Transport: c.http.Transport, CachePath: o.Cache, Every: o.Every, Event: k.event}
	if o.Cache != "" {
		path, err := cacheKeyPath(o.CacheKey)
		if err == nil {
			lc.CacheKey, err = link.LoadOrCreateCacheKey(path)
		}
		if err != nil {
			return nil, lineError(err)
		}
	}
	var err error
	if k.link, err = link.New(lc); err != nil {
		return nil, lineError(err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	k.stop = stop
	go func() {
		defer close(k.done)
		k.err = k.link.Run(run, k.install, k.pinned, k.report())
	}()
	select {
	case <-k.first:
		return k, nil
	case <-k.done:
		return nil, lineError(k.err)
	case <-ctx.Done():
		why := k.link.State().Err
		k.Close()
		if why == nil {
			why = ctx.Err()
		}
		e := lineError(fmt.Errorf("waiting for the first keys: %w", why))
		e.Err = errors.Join(why, ctx.Err())
		return nil, e
	}
}

func cacheKeyPath(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", key.WithHint(fmt.Errorf("%w: there is no configuration directory for the key of the cache", key.ErrInvalid), "name a file: FollowOptions.CacheKey")
	}
	return filepath.Join(dir, "keybaton", "client-cache.key"), nil
}

// lineError returns err as an [*Error].
func lineError(err error) *Error {
	e := &Error{Code: CodeUnreachable, Detail: err.Error(), Err: err}
	if h, ok := errors.AsType[*key.Hint](err); ok {
		e.Detail, e.Next = h.Err.Error(), h.Next
	}
	for code, s := range map[string]error{api.CodeInvalid: key.ErrInvalid, api.CodeNoToken: key.ErrNoToken, api.CodeDenied: key.ErrDenied,
		api.CodeLocked: key.ErrLocked, api.CodeNewer: key.ErrNewer} {
		if errors.Is(err, s) {
			e.Code = code
		}
	}
	return e
}

// Close sends what was seen last and closes the line. Handles keep their last
// keys; nothing tells them of changes any more. A second call waits like the
// first.
func (k *Keys) Close() {
	k.stop()
	<-k.done
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
}

// State is how the line stands, for people.
type State struct {
	Connected    bool
	Revision     string    // in use; "0.0" before the first
	Acknowledged string    // accepted by the server
	Contact      time.Time // last word of the server; zero: never
	Err          error     // why it is not connected, or what is not accepted; nil when all is well
}

// State returns how the line stands.
func (k *Keys) State() State {
	s := k.link.State()
	return State{Connected: s.Connected, Revision: s.Revision.String(), Acknowledged: s.Acked.String(), Contact: s.Contact, Err: s.Err}
}

// Credentials returns what there are keys of, sorted.
func (k *Keys) Credentials() []Credential {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Credential
	for id, h := range k.handles {
		if h.cur.Load() != nil {
			out = append(out, Credential{Service: id.Service, Environment: id.Environment})
		}
	}
	slices.SortFunc(out, func(a, b Credential) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Environment, b.Environment))
	})
	return out
}

// Handle returns the handle of a credential, always the same one. The error is
// an [*Error] with [api.CodeNotFound] when the token does not grant the
// credential, or it has no key yet.
func (k *Keys) Handle(id Credential) (*Handle, error) {
	k.mu.Lock()
	h := k.handles[key.CredentialID{Service: id.Service, Environment: id.Environment}]
	k.mu.Unlock()
	if h == nil || h.cur.Load() == nil {
		return nil, withdrawn(id)
	}
	return h, nil
}

func withdrawn(id Credential) *Error {
	return &Error{Code: api.CodeNotFound, Detail: "there is no key of " + id.Service + "/" + id.Environment + " for this client",
		Next: "look at what its token grants: keybaton token list; and at the keys: keybaton list"}
}

func (k *Keys) event(e link.Event) {
	if k.o.Event != nil {
		k.o.Event(LineEvent{What: string(e.Kind), Err: e.Err})
	}
}

// install puts a whole frame to use.
func (k *Keys) install(f link.Frame) error {
	k.mu.Lock()
	var moved []Credential
	there := map[key.CredentialID]bool{}
	for _, lc := range f.Credentials {
		h := k.handles[lc.ID]
		if h == nil {
			h = &Handle{keys: k, id: Credential{Service: lc.ID.Service, Environment: lc.ID.Environment}}
		}
		was := h.cur.Load()
		if was != nil && was.from.Same(lc) {
			was.last, there[lc.ID] = f.Revision, true
			continue
		}
		next := k.serve(lc, f.Revision)
		if next == nil {
			continue // no key yet
		}
		there[lc.ID] = true
		k.handles[lc.ID] = h
		k.swapLocked(h, next)
		moved = append(moved, h.id)
	}
	for id, h := range k.handles {
		if !there[id] && h.cur.Load() != nil {
			k.swapLocked(h, nil)
			moved = append(moved, h.id)
		}
	}
	first := k.frame.Revision.IsZero()
	k.frame = f
	k.mu.Unlock()
	if first {
		close(k.first)
	}
	if k.o.Moved != nil {
		for _, id := range moved {
			k.o.Moved(id)
		}
	}
	return nil
}

// swapLocked makes next what h serves; what it served before is kept in sight
// for as long as somebody uses it.
func (k *Keys) swapLocked(h *Handle, next *served) {
	if was := h.cur.Swap(next); was != nil {
		k.retired = append(k.retired, was)
		close(was.changed)
	}
}

// serve returns lc ready for use, nil when it has no key.
func (k *Keys) serve(lc link.Credential, at key.Revision) *served {
	s := &served{from: lc, last: at, changed: make(chan struct{}), tally: k.book.Tally(lc.ID)}
	early := call.Early(lc.Call)
	for _, n := range lc.Slots.Served() {
		for _, v := range lc.Versions {
			if v.Number != n {
				continue
			}
			r := call.Rival{Meter: k.book.Meter(key.VersionID{Credential: lc.ID, Number: n})}
			if !v.Since.IsZero() {
				r.Until = v.Since.Add(early)
			}
			s.slots = append(s.slots, &slot{number: n, parts: secret.PartsOf(v.Parts), rival: r, fallback: n != lc.Slots.Primary})
		}
	}
	if len(s.slots) == 0 {
		return nil
	}
	s.web, s.err = compileWeb(lc.Call, s.slots)
	return s
}

// pinned returns the versions that are still in use from frames below a
// revision.
func (k *Keys) pinned(below key.Revision) []key.VersionID {
	k.mu.Lock()
	defer k.mu.Unlock()
	set := map[key.VersionID]bool{}
	k.retired = slices.DeleteFunc(k.retired, func(s *served) bool {
		ns := s.pinned()
		if s.last.Compare(below) < 0 {
			for _, n := range ns {
				set[key.VersionID{Credential: s.from.ID, Number: n}] = true
			}
		}
		return len(ns) == 0
	})
	return slices.SortedFunc(maps.Keys(set), func(a, b key.VersionID) int {
		return cmp.Or(a.Credential.Compare(b.Credential), cmp.Compare(a.Number, b.Number))
	})
}

// report returns what makes the line's reports.
func (k *Keys) report() func(int64, time.Duration) evidence.Report {
	var last int64
	return func(seq int64, elapsed time.Duration) evidence.Report {
		if seq > last {
			k.book.Reported(last) // the line asks for the next only when the last was taken
			last = seq
		}
		return k.book.Report(evidence.Report{Boot: k.link.Boot(), Seq: seq, Elapsed: elapsed}, k.link.Elapsed())
	}
}
