package gateway

import (
	"cmp"
	"slices"
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

// use is what this boot has seen of one version. It outlives snapshots, so
// that its numbers are cumulative per boot.
type use struct {
	id        key.VersionID
	live      counts
	probes    counts
	worse     atomic.Int64
	better    atomic.Int64
	fallbacks atomic.Int64
	lastUse   atomic.Int64 // elapsed ns
	lastAuth  atomic.Pointer[string]
	lastProbe atomic.Pointer[evidence.Outcome]

	// The breaker: only the order in which versions are tried hangs on it.
	hits    atomic.Int32
	suspect atomic.Bool
	due     atomic.Int64 // elapsed ns at which a suspect is tried again
	wait    atomic.Int64 // ns from one trial to the next
	goods   atomic.Int32 // trials in a row that went well

	probing   atomic.Bool
	nextProbe atomic.Int64 // elapsed ns
	misses    atomic.Int32 // probes in a row that were not ok
}

// oks returns how often the version has answered ok to this boot.
func (u *use) oks() int64 { return u.live.ok.Load() + u.probes.ok.Load() }

// stamp notes that the version is about to be written to the wire.
func (u *use) stamp(at time.Duration) {
	for {
		was := u.lastUse.Load()
		if int64(at) <= was || u.lastUse.CompareAndSwap(was, int64(at)) {
			return
		}
	}
}

// goodsNeeded is how many trials of a suspect must go well in a row before it
// is trusted again.
const goodsNeeded = 2

// good notes that the version was accepted.
func (u *use) good(at time.Duration) {
	if u.suspect.Load() {
		if u.goods.Add(1) < goodsNeeded {
			u.due.Store(int64(at)) // it looks well: the next trial comes at once
			return
		}
		u.goods.Store(0)
		u.hits.Store(0)
		u.wait.Store(0)
		u.suspect.Store(false)
		return
	}
	for {
		n := u.hits.Load()
		if n <= 0 || u.hits.CompareAndSwap(n, n-1) {
			return
		}
	}
}

// bad notes that the version was refused where that says something about it.
func (u *use) bad(at time.Duration, c *Config) {
	u.goods.Store(0)
	if !u.suspect.Load() {
		if int(u.hits.Add(1)) < c.Hits {
			return
		}
		u.wait.Store(int64(c.RetryAfter))
		u.due.Store(int64(at + c.RetryAfter))
		u.suspect.Store(true)
		return
	}
	w := min(2*max(u.wait.Load(), int64(c.RetryAfter)), int64(c.RetryMax))
	u.wait.Store(w)
	u.due.Store(int64(at) + w)
}

// claim reports whether the caller is the one that tries a suspect again now.
func (u *use) claim(at time.Duration) bool {
	d := u.due.Load()
	return int64(at) >= d && u.due.CompareAndSwap(d, int64(at)+max(u.wait.Load(), int64(time.Second)))
}

func (u *use) refused(text string) { u.lastAuth.Store(&text) }

// idle reports whether the version was never tried and never probed.
func (u *use) idle() bool {
	return u.lastUse.Load() == 0 && u.lastProbe.Load() == nil && u.live.load() == evidence.Counts{}
}

func (u *use) load() evidence.Use {
	out := evidence.Use{Version: u.id, Live: u.live.load(), Probes: u.probes.load(), Worse: u.worse.Load(), Better: u.better.Load(),
		Fallbacks: u.fallbacks.Load(), LastUse: time.Duration(u.lastUse.Load())}
	if p := u.lastAuth.Load(); p != nil {
		out.LastAuth = *p
	}
	if p := u.lastProbe.Load(); p != nil {
		out.LastProbe = *p
	}
	return out
}

// tally counts requests of one credential as callers saw them, since boot.
type tally struct {
	requests, refused, failed atomic.Int64
	refetched                 atomic.Int64 // elapsed ns of the last call of Refetch, plus one
}

// sent is what the receiver of reports is known to have.
type sent struct {
	uses    map[key.VersionID]evidence.Use
	answers map[key.CredentialID]evidence.Answers
	seq     int64
	pending evidence.Report
	aligned bool
	shift   time.Duration // from this clock to the one of reports, never back
}

// alignment is the grain to which clocks are aligned.
const alignment = 10 * time.Millisecond

// Report returns the uses and answers that changed since the last report that
// [Core.Reported] says has arrived, cumulative per boot; where it is never
// called, all that ever changed. seq and elapsed are the caller's: the report's
// number, and the monotonic time since Config.Booted.
func (c *Core) Report(seq int64, elapsed time.Duration) evidence.Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := evidence.Report{Consumer: c.cfg.Consumer, Boot: c.cfg.Boot, Seq: seq, Elapsed: elapsed}
	if !c.sent.aligned {
		// The sender's clock may have begun before this one. Last uses are put
		// on it, rather late than early: quiet is measured from them.
		c.sent.aligned = true
		if d := elapsed - c.elapsed(c.cfg.Now()); d > 0 {
			c.sent.shift = d.Truncate(alignment) + alignment
		}
	}
	for id, u := range c.uses {
		if u.idle() {
			continue // of many thousands most are
		}
		now := u.load()
		if now.LastUse > 0 {
			now.LastUse += c.sent.shift
		}
		if now != c.sent.uses[id] && now != (evidence.Use{Version: id}) {
			r.Uses = append(r.Uses, now)
		}
	}
	for id, t := range c.tallies {
		if t.requests.Load() == 0 {
			continue
		}
		now := evidence.Answers{Credential: id, Requests: t.requests.Load(), Refused: t.refused.Load(), Failed: t.failed.Load()}
		if now != c.sent.answers[id] && now != (evidence.Answers{Credential: id}) {
			r.Answers = append(r.Answers, now)
		}
	}
	slices.SortFunc(r.Uses, func(a, b evidence.Use) int {
		return cmp.Or(a.Version.Credential.Compare(b.Version.Credential), cmp.Compare(a.Version.Number, b.Version.Number))
	})
	slices.SortFunc(r.Answers, func(a, b evidence.Answers) int { return a.Credential.Compare(b.Credential) })
	c.sent.pending = r
	return r
}

// Reported says that the report seq has arrived, so that what has not changed
// since is left out of the next. One that is not the last made is ignored.
func (c *Core) Reported(seq int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seq != c.sent.pending.Seq || seq == c.sent.seq {
		return
	}
	if c.sent.uses == nil {
		c.sent.uses, c.sent.answers = map[key.VersionID]evidence.Use{}, map[key.CredentialID]evidence.Answers{}
	}
	c.sent.seq = seq
	for _, u := range c.sent.pending.Uses {
		c.sent.uses[u.Version] = u
	}
	for _, a := range c.sent.pending.Answers {
		c.sent.answers[a.Credential] = a
	}
}
