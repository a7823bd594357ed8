package call

import (
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
)

// maxVersions is how many versions one request may try: those of the slots
// that are served, and one that is kept.
const maxVersions = 3

// Rival is one version that a request may be tried with.
type Rival struct {
	Meter *Meter
	Until time.Time // before it the version is early: a refusal does not speak against it
}

// early reports whether the version is so new that a refusal does not speak
// against it.
func (r Rival) early(now time.Time) bool { return now.Before(r.Until) }

// Trial is one request on its way over the versions that it may use, at most
// one attempt for each: [Trial.Arrange] and perhaps [Trial.Last], then
// [Trial.Attempt] and [Trial.Answered] (or [Trial.Saw]) until there is no other
// attempt, then [Trial.Done]. It draws the verdicts: a version is bad only
// where another was accepted on the same request. Gateways and clients count
// by it alike. The zero Trial is ready; it is for one goroutine at a time.
//
// at is the time since boot on the clock of the meters, now the same moment on
// the wall.
type Trial struct {
	rivals  [maxVersions]Rival
	tried   [maxVersions]bool // refused with auth or perm
	n, i    int
	pending bool // an attempt was written and is not classified yet
	final   bool // the answer is chosen
	failed  bool // the caller gets an answer that the vendor did not make
	outcome evidence.Outcome
	dead    bool
}

// Proven reports whether one of rs has answered ok to this boot.
func Proven(rs ...Rival) bool {
	for _, r := range rs {
		if r.Meter.OKs() > 0 {
			return true
		}
	}
	return false
}

// Arrange takes the versions of the slots, primary first, and reports whether
// the fallback is to be tried before the primary. replayable says whether the
// request can be sent again.
func (t *Trial) Arrange(served []Rival, replayable bool, now time.Time, at time.Duration) (swapped bool) {
	t.n = copy(t.rivals[:maxVersions-1], served)
	if t.n != 2 {
		return false
	}
	a, b := &t.rivals[0], &t.rivals[1]
	p := Standing{Suspect: a.Meter.Suspect(), Proven: a.Meter.live.ok.Load() > 0, Early: a.early(now)}
	if !p.Suspect && (!p.Early || p.Proven) {
		return false
	}
	f := Standing{Suspect: b.Meter.Suspect(), Proven: b.Meter.OKs() > 0, Early: b.early(now)}
	if p.Suspect && !f.Suspect && replayable {
		p.Due = a.Meter.claim(at)
	}
	if !FallbackFirst(p, f, replayable) {
		return false
	}
	*a, *b = *b, *a
	return true
}

// Last adds a version that is tried after all others.
func (t *Trial) Last(r Rival) {
	t.rivals[t.n] = r
	t.n++
}

// Position returns which version the present attempt is made with: its place
// in the order that Arrange and Last have made.
func (t *Trial) Position() int { return t.i }

// More reports whether another version is left to try.
func (t *Trial) More() bool { return t.i+1 < t.n }

// Attempt counts the attempt as being written: it is called right before the
// request goes out.
func (t *Trial) Attempt(at time.Duration) {
	if t.i == 0 {
		t.rivals[0].Meter.stamp(at)
	}
	t.pending = true
}

// Answered classifies an answer to the last attempt by rules and counts it; on
// are the statuses that the service names for falling back. replayable says
// whether the request can still be sent again in full. It returns true when
// the answer is to be dropped and Attempt called again.
func (t *Trial) Answered(rules Rules, on []int, a Answer, replayable bool, b Breaker, now time.Time, at time.Duration) (again bool) {
	o, dead := rules.Classify(a)
	return t.saw(o, dead, FallsBack(a.Method, a.Status, o, dead, on), a.Status, "", replayable, b, now, at)
}

// Saw is Answered for an answer that was classified already, as those of
// vendors that do not speak HTTP: text says in a few words, without a secret,
// how the vendor refused.
func (t *Trial) Saw(o evidence.Outcome, text string, b Breaker, now time.Time, at time.Duration) (again bool) {
	dead := o == evidence.Auth
	return t.saw(o, dead, FallsBack("", 0, o, dead, nil), 0, text, true, b, now, at)
}

func (t *Trial) saw(o evidence.Outcome, dead, back bool, status int, text string, replayable bool, b Breaker, now time.Time, at time.Duration) (again bool) {
	r := t.rivals[t.i]
	t.pending, t.outcome, t.dead = false, o, dead
	r.Meter.live.add(o)
	if t.i > 0 && o != evidence.Auth && o != evidence.Perm {
		// A second version that is refused like the first was not what the
		// request needed: it does not count as in use, or callers who may not do
		// what they ask could keep an old key alive.
		r.Meter.stamp(at)
	}
	switch o {
	case evidence.OK:
		t.verdict(b, now, at)
	case evidence.Auth, evidence.Perm:
		if status != 0 {
			text = StatusText(status)
		}
		r.Meter.refused(text)
	}
	if back && t.More() {
		if replayable {
			t.tried[t.i] = o == evidence.Auth || o == evidence.Perm
			t.i++
			return true
		}
		if o == evidence.Auth && !r.early(now) {
			// Nothing can be compared, but if this goes on the other version is
			// to have its turn at requests of this kind.
			r.Meter.bad(at, b)
		}
	}
	t.final = true
	return false
}

// verdict draws the conclusion of an accepted attempt: what was refused before
// it on the same request was refused for the key's sake.
func (t *Trial) verdict(b Breaker, now time.Time, at time.Duration) {
	m := t.rivals[t.i].Meter
	m.good(at)
	for i := range t.i {
		if !t.tried[i] {
			continue
		}
		m.better.Add(1)
		if bad := t.rivals[i]; !bad.early(now) {
			bad.Meter.worse.Add(1)
			bad.Meter.bad(at, b)
		}
	}
}

// Failed counts the last attempt as one without an answer: the caller gets one
// that the vendor did not make.
func (t *Trial) Failed(at time.Duration) {
	if t.pending {
		t.pending = false
		t.rivals[t.i].Meter.live.other.Add(1)
		t.rivals[t.i].Meter.stamp(at)
	}
	t.outcome, t.dead, t.failed, t.final = evidence.Other, false, true, true
}

// Refused reports whether the last answer is a refusal of the key.
func (t *Trial) Refused() bool { return t.outcome == evidence.Auth }

// Done ends the trial and counts the request. An attempt whose answer was not
// waited for counts as other: hanging up does not hide a use.
func (t *Trial) Done(tally *Tally) {
	m := t.rivals[t.i].Meter
	if t.pending {
		t.pending = false
		m.live.other.Add(1)
	}
	tally.requests.Add(1)
	switch {
	case t.failed:
		tally.failed.Add(1)
	case t.final:
		if t.outcome == evidence.Auth || t.outcome == evidence.Perm && t.dead {
			tally.refused.Add(1)
		} else if t.i > 0 {
			m.fallbacks.Add(1)
		}
	}
}
