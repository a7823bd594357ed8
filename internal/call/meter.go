package call

import (
	"sync/atomic"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

// counts are cumulative attempts by outcome.
type counts struct{ ok, auth, perm, rate, other atomic.Int64 }

func (c *counts) add(o evidence.Outcome) {
	switch o {
	case evidence.OK:
		c.ok.Add(1)
	case evidence.Auth:
		c.auth.Add(1)
	case evidence.Perm:
		c.perm.Add(1)
	case evidence.Rate:
		c.rate.Add(1)
	default:
		c.other.Add(1)
	}
}

func (c *counts) load() evidence.Counts {
	return evidence.Counts{OK: c.ok.Load(), Auth: c.auth.Load(), Perm: c.perm.Load(), Rate: c.rate.Load(), Other: c.other.Load()}
}

// Breaker says when a version becomes suspect and is tried again. Only the
// order in which versions are tried hangs on it.
type Breaker struct {
	Hits       int           // differential refusals that make a version suspect; 0: 3
	RetryAfter time.Duration // after which a suspect is tried again, doubled while it fails; 0: 1 s
	RetryMax   time.Duration // at most; 0: 1 min
}

// WithDefaults returns b with what is not said filled in.
func (b Breaker) WithDefaults() Breaker {
	if b.Hits == 0 {
		b.Hits = 3
	}
	if b.RetryAfter == 0 {
		b.RetryAfter = time.Second
	}
	if b.RetryMax == 0 {
		b.RetryMax = time.Minute
	}
	return b
}

// Meter is what one process has seen of one version since it booted. It is
// made by a [Book], outlives the frames that the version is in, and is safe
// for concurrent use. Times are elapsed since boot.
type Meter struct {
	id        key.VersionID
	live      counts
	probes    counts
	worse     atomic.Int64
	better    atomic.Int64
	fallbacks atomic.Int64
	lastUse   atomic.Int64 // elapsed ns
	lastAuth  atomic.Pointer[string]
	lastProbe atomic.Pointer[evidence.Outcome]

	hits    atomic.Int32
	suspect atomic.Bool
	due     atomic.Int64 // elapsed ns at which a suspect is tried again
	wait    atomic.Int64 // ns from one trial to the next
	goods   atomic.Int32 // trials in a row that went well

	probing   atomic.Bool
	nextProbe atomic.Int64 // elapsed ns
	misses    atomic.Int32 // probes in a row that were not ok
}

// OKs returns how often the version has answered ok to this boot.
func (m *Meter) OKs() int64 { return m.live.ok.Load() + m.probes.ok.Load() }

// Suspect reports whether the version is suspect.
func (m *Meter) Suspect() bool { return m.suspect.Load() }

// stamp notes that the version is about to be written to the wire.
func (m *Meter) stamp(at time.Duration) {
	for {
		was := m.lastUse.Load()
		if int64(at) <= was || m.lastUse.CompareAndSwap(was, int64(at)) {
			return
		}
	}
}

// goodsNeeded is how many trials of a suspect must go well in a row before it
// is trusted again.
const goodsNeeded = 2

// good notes that the version was accepted.
func (m *Meter) good(at time.Duration) {
	if m.suspect.Load() {
		if m.goods.Add(1) < goodsNeeded {
			m.due.Store(int64(at)) // it looks well: the next trial comes at once
			return
		}
		m.goods.Store(0)
		m.hits.Store(0)
		m.wait.Store(0)
		m.suspect.Store(false)
		return
	}
	for {
		n := m.hits.Load()
		if n <= 0 || m.hits.CompareAndSwap(n, n-1) {
			return
		}
	}
}

// bad notes that the version was refused where that says something about it.
func (m *Meter) bad(at time.Duration, b Breaker) {
	m.goods.Store(0)
	if !m.suspect.Load() {
		if int(m.hits.Add(1)) < b.Hits {
			return
		}
		m.wait.Store(int64(b.RetryAfter))
		m.due.Store(int64(at + b.RetryAfter))
		m.suspect.Store(true)
		return
	}
	w := min(2*max(m.wait.Load(), int64(b.RetryAfter)), int64(b.RetryMax))
	m.wait.Store(w)
	m.due.Store(int64(at) + w)
}

// claim reports whether the caller is the one that tries a suspect again now.
func (m *Meter) claim(at time.Duration) bool {
	d := m.due.Load()
	return int64(at) >= d && m.due.CompareAndSwap(d, int64(at)+max(m.wait.Load(), int64(time.Second)))
}

func (m *Meter) refused(text string) { m.lastAuth.Store(&text) }

// BeginProbe reports whether the caller is to probe the version at the time at,
// because it has answered ok less than want times to this boot and no probe is
// running or too recent. After true the caller owes [Meter.EndProbe].
func (m *Meter) BeginProbe(at time.Duration, want int64) bool {
	return m.OKs() < want && int64(at) >= m.nextProbe.Load() && m.probing.CompareAndSwap(false, true)
}

// EndProbe says that the probe is over, made or not.
func (m *Meter) EndProbe() { m.probing.Store(false) }

// Probed counts a probe. The next one comes no sooner than every after at, and
// later while probes are refused.
func (m *Meter) Probed(res ProbeResult, at, every time.Duration) {
	m.probes.add(res.Outcome)
	m.lastProbe.Store(&res.Outcome)
	if res.Outcome == evidence.Auth || res.Outcome == evidence.Perm {
		m.refused(res.Text)
	}
	wait := every
	if res.Outcome == evidence.OK {
		m.misses.Store(0)
		if m.suspect.Load() {
			m.due.Store(int64(at)) // worth another try
		}
	} else {
		n := min(m.misses.Add(1), 6)
		most := 8 * every
		if res.Outcome == evidence.Rate {
			most = 64 * every
		}
		wait = min(every<<n, most)
	}
	m.nextProbe.Store(int64(at + wait))
}

// idle reports whether the version was never tried and never probed.
func (m *Meter) idle() bool {
	return m.lastUse.Load() == 0 && m.lastProbe.Load() == nil && m.live.load() == evidence.Counts{}
}

// load returns what was seen, as a report carries it.
func (m *Meter) load() evidence.Use {
	out := evidence.Use{Version: m.id, Live: m.live.load(), Probes: m.probes.load(), Worse: m.worse.Load(), Better: m.better.Load(),
		Fallbacks: m.fallbacks.Load(), LastUse: time.Duration(m.lastUse.Load())}
	if p := m.lastAuth.Load(); p != nil {
		out.LastAuth = *p
	}
	if p := m.lastProbe.Load(); p != nil {
		out.LastProbe = *p
	}
	return out
}

// Tally counts the requests of one credential as callers saw them, since boot.
// It is made by a [Book] and safe for concurrent use.
type Tally struct {
	requests, refused, failed atomic.Int64
	refetched                 atomic.Int64 // elapsed ns of the last true of Refetch, plus one
}

// Fail counts a request that was not tried with any version.
func (t *Tally) Fail() {
	t.requests.Add(1)
	t.failed.Add(1)
}

// Refetch reports, at most once a second, that it is time to look for a newer
// frame, as all that was tried was refused.
func (t *Tally) Refetch(at time.Duration) bool {
	was := t.refetched.Load()
	if was != 0 && int64(at)-(was-1) < int64(time.Second) {
		return false
	}
	return t.refetched.CompareAndSwap(was, int64(at)+1)
}
