// Package gateway decides each request that passes on its way to a vendor:
// who is asking, which credential it is for, which version goes first, what
// the answer says of that version, and whether the next one is tried. It works
// from an immutable snapshot, compiled from a frame and swapped whole; every
// request keeps the one it began with, and counts as a hold until it ends.
//
// It guarantees that at most one attempt is made per distinct version; that a
// verdict against a version needs another version that was accepted on the
// same request; that every attempt is counted, also when the caller hangs up;
// and that nothing is disabled for ever. Moving the bytes is left to the rooms
// under it; fetching frames and sending reports to the caller.
package gateway

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

// Config is what a Core is made of. The zero Config is usable.
type Config struct {
	Consumer string    // this gateway's name in reports
	Boot     string    // this process in reports
	Booted   time.Time // with a monotonic reading; the elapsed times of reports are measured from it; zero: when New was called

	// Refetch is called, at most once a second for each credential, when every
	// version that was tried was refused: the frame may be out of date. It must
	// not block. nil: nobody is told.
	Refetch func(key.CredentialID)

	Now        func() time.Time // nil: time.Now
	Breaker    call.Breaker     // when a version becomes suspect
	ProbeEvery time.Duration    // least time between two probes of one version; 0: 1 s
}

func (c Config) withDefaults() Config {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Booted.IsZero() {
		c.Booted = c.Now()
	}
	c.ProbeEvery = cmp.Or(c.ProbeEvery, time.Second)
	return c
}

// Core is the deciding half of a gateway. It is safe for concurrent use.
// Requests take no lock; installing frames and making reports take one.
type Core struct {
	cfg     Config
	breaker call.Breaker
	book    call.Book
	snap    atomic.Pointer[snapshot]
	wake    chan struct{} // level trigger for RunProbes

	mu      sync.Mutex
	frame   link.Frame
	retired []*credential // out of the snapshot, perhaps still pinned
}

// New returns a Core without a snapshot: until the first [Core.Install] every
// request is answered 503.
func New(c Config) *Core {
	return &Core{cfg: c.withDefaults(), breaker: c.Breaker.WithDefaults(), wake: make(chan struct{}, 1)}
}

// elapsed returns the monotonic time since boot.
func (c *Core) elapsed(now time.Time) time.Duration { return now.Sub(c.cfg.Booted) }

// snapshot is a compiled frame. It never changes.
type snapshot struct {
	revision key.Revision
	creds    map[key.CredentialID]*credential
	services map[string][]*credential // sorted by environment
	envs     map[string]bool
	places   []*credential // one for each place where a token may be; maxPlaces at most
	tokens   map[[32]byte]*consumer
}

// maxPlaces bounds how many places are looked at for the token of a request
// that names no service.
const maxPlaces = 32

type consumer struct {
	name    string
	grants  []access.Grant
	expires time.Time
}

func (p *consumer) covers(id key.CredentialID) bool {
	for i := range p.grants {
		if p.grants[i].Covers(id) {
			return true
		}
	}
	return false
}

// credential is one compiled credential. It is shared by successive snapshots
// for as long as nothing in it changes.
type credential struct {
	id       key.CredentialID
	from     link.Credential // what it was compiled from
	err      error           // why it is disabled; nil: it works
	upstream *Upstream
	place    call.Place
	affixes  [2]string
	rules    call.Rules
	sniffs   bool // the rules look at bodies
	probe    *call.Probe
	fallOn   []int
	early    time.Duration
	slots    []*slot // served: primary first
	kept     *slot   // the last version that worked, until a served one has; nil: none
	all      map[key.Number]*slot
	tally    *call.Tally
	pins     atomic.Int64 // requests that may still use any slot
	last     key.Revision // of the last snapshot it was in; guarded by Core.mu
}

// slot is one version of a credential, ready to ride.
type slot struct {
	id     key.VersionID
	since  time.Time
	parts  secret.Parts
	key    call.Rendered
	header []string // value of Keybaton-Version; shared, never changed
	rival  call.Rival
	pins   atomic.Int64 // requests that are past choosing and use this one
}

// Upstream is where a credential's requests go, and nowhere else.
type Upstream struct {
	Scheme  string // https or http
	Host    string // host or host:port, lower case
	Path    string // decoded prefix, without a slash at its end; "" for none
	RawPath string // escaped prefix
}

// Problem says which credential of the frame is disabled, and why.
type Problem struct {
	Credential key.CredentialID
	Err        error
}

// Install compiles frame and swaps it in; one that is not full comes on top of
// the frames before it. A credential that does not compile is disabled by
// itself (see [Core.Problems]). A frame older than the installed one is refused
// with key.ErrStale.
func (c *Core) Install(frame link.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.snap.Load()
	if old != nil && frame.Revision.Compare(old.revision) < 0 {
		return fmt.Errorf("installing revision %s over %s: %w", frame.Revision, old.revision, key.ErrStale)
	}
	merged := c.frame.Apply(frame)
	next := &snapshot{revision: merged.Revision, creds: make(map[key.CredentialID]*credential, len(merged.Credentials)),
		tokens: make(map[[32]byte]*consumer, len(merged.Tokens))}
	for _, lc := range merged.Credentials {
		var was *credential
		if old != nil {
			was = old.creds[lc.ID]
		}
		if was != nil && was.from.Same(lc) {
			was.last = next.revision
			next.creds[lc.ID] = was
			continue
		}
		next.creds[lc.ID] = c.compileLocked(lc, was, next.revision)
	}
	for _, t := range merged.Tokens {
		var h [32]byte
		if n, err := hex.Decode(h[:], []byte(t.Hash)); err == nil && n == len(h) {
			next.tokens[h] = &consumer{name: t.Name, grants: t.Grants, expires: t.Expires}
		}
	}
	c.frame = merged
	c.swapLocked(next)
	return nil
}

// swapLocked makes next the snapshot. What left it is kept in sight for as
// long as requests pin it.
func (c *Core) swapLocked(next *snapshot) {
	next.services, next.envs = map[string][]*credential{}, map[string]bool{}
	for id, cr := range next.creds {
		next.services[id.Service] = append(next.services[id.Service], cr)
		next.envs[id.Environment] = true
	}
	for _, list := range next.services {
		slices.SortFunc(list, func(a, b *credential) int { return a.id.Compare(b.id) })
	}
	next.places = places(next.creds)
	old := c.snap.Swap(next)
	if old != nil {
		for id, cr := range old.creds {
			if next.creds[id] != cr {
				c.retired = append(c.retired, cr)
			}
		}
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// places returns one credential for each header and parameter in which creds
// have their keys.
func places(creds map[key.CredentialID]*credential) []*credential {
	type place struct {
		in, name string
		affixes  [2]string
	}
	seen := map[place]bool{}
	var out []*credential
	for _, cr := range creds {
		p := place{cr.place.In(), cr.place.Name(), cr.affixes}
		if p.name == "" || cr.place.InBody() || seen[p] {
			continue
		}
		if seen[p] = true; len(seen) <= maxPlaces {
			out = append(out, cr)
		}
	}
	return out
}

// compileLocked returns lc compiled. was is what the credential was before; its
// last working version is kept until a served one has answered ok here.
func (c *Core) compileLocked(lc link.Credential, was *credential, at key.Revision) *credential {
	cr := &credential{id: lc.ID, from: lc, last: at, all: map[key.Number]*slot{}, fallOn: lc.Call.FallbackOn, early: call.Early(lc.Call)}
	cr.tally = c.book.Tally(lc.ID)
	if cr.err = c.fillLocked(cr, lc); cr.err != nil {
		return cr
	}
	if was == nil || len(cr.slots) == 0 || proven(cr.slots) {
		return cr
	}
	for _, s := range append(slices.Clone(was.slots), was.kept) {
		if s == nil || cr.all[s.id.Number] != nil || s.rival.Meter.OKs() == 0 {
			continue
		}
		if k, err := c.slotLocked(cr, s.id.Number, s.since, s.parts); err == nil {
			cr.kept = k
			break
		}
	}
	return cr
}

func proven(slots []*slot) bool {
	return slices.ContainsFunc(slots, func(s *slot) bool { return call.Proven(s.rival) })
}

func (c *Core) fillLocked(cr *credential, lc link.Credential) error {
	u, err := call.ParseUpstream(lc.Call.Upstream)
	if err != nil {
		return err
	}
	cr.upstream = &Upstream{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.EscapedPath()}
	if cr.place, err = call.CompilePlace(lc.Call.Place, lc.Call.PartNames()); err != nil {
		return err
	}
	cr.affixes[0], cr.affixes[1] = cr.place.Affixes()
	if cr.rules, err = call.CompileRules(lc.Call.Rules); err != nil {
		return err
	}
	cr.sniffs = cr.rules.ReadsBodies()
	if lc.Call.Probe != nil {
		if cr.probe, err = call.CompileProbe(lc.Call); err != nil {
			return err
		}
	}
	var bad error
	for _, v := range lc.Versions {
		s, err := c.slotLocked(cr, v.Number, v.Since, secret.PartsOf(v.Parts))
		if err != nil {
			bad = cmp.Or(bad, fmt.Errorf("version %s: %w", v.Number, err))
			continue
		}
		cr.all[v.Number] = s
	}
	for _, n := range lc.Slots.Served() {
		if s := cr.all[n]; s != nil {
			cr.slots = append(cr.slots, s)
		}
	}
	if len(cr.slots) == 0 {
		return bad // nil when there is no key yet
	}
	return nil
}

func (c *Core) slotLocked(cr *credential, n key.Number, since time.Time, parts secret.Parts) (*slot, error) {
	r, err := cr.place.Render(parts)
	if err != nil {
		return nil, err
	}
	id := key.VersionID{Credential: cr.id, Number: n}
	rival := call.Rival{Meter: c.book.Meter(id)}
	if !since.IsZero() {
		rival.Until = since.Add(cr.early)
	}
	return &slot{id: id, since: since, parts: parts, key: r, header: []string{n.String()}, rival: rival}, nil
}

// Revision returns the revision of the installed frame; zero before the first.
func (c *Core) Revision() key.Revision {
	if s := c.snap.Load(); s != nil {
		return s.revision
	}
	return key.Revision{}
}

// Problems returns the credentials of the snapshot that are disabled, sorted.
// Their errors hold no key.
func (c *Core) Problems() []Problem {
	s := c.snap.Load()
	if s == nil {
		return nil
	}
	var out []Problem
	for id, cr := range s.creds {
		if cr.err != nil {
			out = append(out, Problem{id, cr.err})
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return a.Credential.Compare(b.Credential) })
	return out
}

// Pinned returns the versions that may still be used by requests that began
// before the frame of revision below was installed, or that are kept because
// no version of the new frame has answered ok here yet; sorted. An
// acknowledgement of below lists them. It also lets go of kept versions that
// are needed no more, so it is to be called again until it returns nothing.
func (c *Core) Pinned(below key.Revision) []key.VersionID {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settleLocked()
	set := map[key.VersionID]bool{}
	c.retired = slices.DeleteFunc(c.retired, func(cr *credential) bool {
		pinned := cr.pinned()
		if cr.last.Compare(below) < 0 {
			for _, id := range pinned {
				set[id] = true
			}
		}
		return len(pinned) == 0
	})
	if s := c.snap.Load(); s != nil {
		for _, cr := range s.creds {
			if cr.kept != nil {
				set[cr.kept.id] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b key.VersionID) int {
		return cmp.Or(a.Credential.Compare(b.Credential), cmp.Compare(a.Number, b.Number))
	})
}

// pinned returns the versions of cr that running requests may use.
//
// NOTE: a request that has chosen pins its slot before it lets go of the
// credential, and here the credential is read first: it is seen in one of them.
func (cr *credential) pinned() []key.VersionID {
	every := cr.pins.Load() > 0
	var out []key.VersionID
	for _, s := range cr.all {
		if s.pins.Load() > 0 || every && slices.Contains(cr.slots, s) {
			out = append(out, s.id)
		}
	}
	if k := cr.kept; k != nil && (every || k.pins.Load() > 0) {
		out = append(out, k.id)
	}
	return out
}

// settleLocked lets go of kept versions whose successor has answered ok.
func (c *Core) settleLocked() {
	s := c.snap.Load()
	if s == nil {
		return
	}
	var next *snapshot
	for id, cr := range s.creds {
		if cr.kept == nil || !proven(cr.slots) {
			continue
		}
		if next == nil {
			next = &snapshot{revision: s.revision, creds: maps.Clone(s.creds), tokens: s.tokens}
		}
		n := &credential{id: cr.id, from: cr.from, upstream: cr.upstream, place: cr.place, affixes: cr.affixes, rules: cr.rules,
			sniffs: cr.sniffs, probe: cr.probe, fallOn: cr.fallOn, early: cr.early, all: map[key.Number]*slot{}, tally: cr.tally, last: s.revision}
		for num, was := range cr.all { // pins are counted anew: the old ones drain with cr
			n.all[num] = &slot{id: was.id, since: was.since, parts: was.parts, key: was.key, header: was.header, rival: was.rival}
		}
		for _, was := range cr.slots {
			n.slots = append(n.slots, n.all[was.id.Number])
		}
		next.creds[id] = n
		// What is being served is listed below any newer revision only.
		cr.last = key.Revision{Epoch: s.revision.Epoch, Number: s.revision.Number - 1}
	}
	if next != nil {
		c.swapLocked(next)
	}
}

// Report returns the uses and answers that changed since the last report that
// [Core.Reported] says has arrived, cumulative per boot; where it is never
// called, all that ever changed. seq and elapsed are the caller's: the report's
// number, and the monotonic time since Config.Booted.
func (c *Core) Report(seq int64, elapsed time.Duration) evidence.Report {
	return c.book.Report(evidence.Report{Consumer: c.cfg.Consumer, Boot: c.cfg.Boot, Seq: seq, Elapsed: elapsed}, c.elapsed(c.cfg.Now()))
}

// Reported says that the report seq has arrived, so that what has not changed
// since is left out of the next. One that is not the last made is ignored.
func (c *Core) Reported(seq int64) { c.book.Reported(seq) }
