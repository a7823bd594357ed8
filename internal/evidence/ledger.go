package evidence

import (
	"cmp"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// Ledger is what is known of the consumers that matter for one question. It is
// a value: its methods return changed copies and leave the receiver alone.
type Ledger struct {
	Boots []Boot
	Holds []Hold
}

// Standing is how one holder stands towards one version.
type Standing struct {
	Consumer string       `json:"consumer"`
	Kind     key.Kind     `json:"kind"`
	Boot     string       `json:"boot,omitempty"`
	Place    Place        `json:"standing"`
	Acked    key.Revision `json:"acked"`
	Seen     time.Time    `json:"seen,omitzero"`
	Until    time.Time    `json:"until,omitzero"`
	Unbound  bool         `json:"unbound,omitempty"`
	Why      string       `json:"why,omitempty"` // for people
}

// Place is where a holder stands towards a version.
type Place string

// The places of a standing.
const (
	Moved  Place = "moved"  // has promised not to use it again
	Holds  Place = "holds"  // may still use it, and is heard from
	Silent Place = "silent" // may still use it, and is not heard from; waited for all the same
)

// SilentAfter is how long without a report makes a holder "silent". It changes
// the words shown and opens no gate.
const SilentAfter = 15 * time.Second

// Boot returns what is known of one process of a consumer.
func (l Ledger) Boot(consumer, boot string) (Boot, bool) {
	i := slices.IndexFunc(l.Boots, func(b Boot) bool { return b.Consumer == consumer && b.Boot == boot })
	if i < 0 {
		return Boot{}, false
	}
	return l.Boots[i], true
}

// Merge returns l with the report taken in. Merging a report twice, or an
// older one after a newer one, changes nothing.
func (l Ledger) Merge(r Report, at time.Time) Ledger {
	out := Ledger{Boots: slices.Clone(l.Boots), Holds: l.Holds}
	i := slices.IndexFunc(out.Boots, func(b Boot) bool { return b.Consumer == r.Consumer && b.Boot == r.Boot })
	if i < 0 {
		out.Boots = append(out.Boots, Boot{Consumer: r.Consumer, Boot: r.Boot})
		i = len(out.Boots) - 1
	}
	out.Boots[i] = out.Boots[i].Merge(r, at)
	return out
}

// Merge returns b with the report taken in.
func (b Boot) Merge(r Report, at time.Time) Boot {
	if r.Seq <= b.Seq {
		return b
	}
	if r.Seq != b.Seq+1 || r.Elapsed < b.Elapsed {
		// A report is missing: what happened meanwhile is only known in sum,
		// so quiet begins again when this one was made.
		b.Contiguous = r.Elapsed
	}
	b.Seq, b.Elapsed, b.Seen = r.Seq, max(b.Elapsed, r.Elapsed), at
	b.Uses = slices.Clone(b.Uses)
	for _, u := range r.Uses {
		i, found := slices.BinarySearchFunc(b.Uses, u, func(a, c Use) int { return compareVersion(a.Version, c.Version) })
		if !found {
			b.Uses = slices.Insert(b.Uses, i, u)
		} else {
			b.Uses[i] = u
		}
	}
	b.Answers = slices.Clone(b.Answers)
	for _, a := range r.Answers {
		i, found := slices.BinarySearchFunc(b.Answers, a, func(x, y Answers) int { return x.Credential.Compare(y.Credential) })
		if !found {
			b.Answers = slices.Insert(b.Answers, i, a)
		} else {
			b.Answers[i] = a
		}
	}
	return b
}

func compareVersion(a, b key.VersionID) int {
	return cmp.Or(a.Credential.Compare(b.Credential), cmp.Compare(a.Number, b.Number))
}

// Use returns what b has seen of v; zero when it never used it.
func (b Boot) Use(v key.VersionID) Use {
	i, found := slices.BinarySearchFunc(b.Uses, v, func(a Use, v key.VersionID) int { return compareVersion(a.Version, v) })
	if !found {
		return Use{Version: v}
	}
	return b.Uses[i]
}

// Acknowledge returns b after the acknowledgement a. An older one than is
// known changes nothing.
func (b Boot) Acknowledge(a Ack, at time.Time) Boot {
	if a.Revision.Compare(b.Acked) < 0 {
		return b
	}
	if b.Acked != a.Revision {
		b.Acked = a.Revision
	}
	b.Pinned = slices.Clone(a.Pinned)
	b.Seen = at
	return b
}

// passed reports whether b has acknowledged at or something after it. What was
// changed before a restore is part of the store that a later epoch began with,
// so an acknowledgement of that epoch covers it; one of an earlier epoch covers
// nothing of a later one.
func (b Boot) passed(at key.Revision) bool { return b.Acked.Compare(at) >= 0 }

// Quiet returns for how long b has not used v: contiguous reports, on the
// sender's clock, none of it before began, which is after its acknowledgement
// of at. Zero when it has not acknowledged at.
func (b Boot) Quiet(v key.VersionID, at key.Revision, began time.Duration) time.Duration {
	if !b.passed(at) {
		return 0
	}
	from := max(b.Contiguous, began)
	if u := b.Use(v); u.Live.Attempts() > 0 {
		from = max(from, u.LastUse)
	}
	return max(0, b.Elapsed-from)
}

// Covers reports whether a says something about a credential as it is now: that
// what its slots do not serve now is not in use. The credential was last changed
// at changed, in a store that is at now; handed says whether the consumer is
// handed it at all.
func (a Ack) Covers(handed bool, changed, now key.Revision) bool {
	switch {
	case a.Revision.Epoch != now.Epoch:
		return false // before a restore: what was handed out then is not known now
	case handed:
		return a.Revision.Compare(changed) >= 0 // else a later frame may hand it out again
	}
	// It is not handed out any more, but since which revision is not known: only
	// the newest surely comes after.
	return a.Revision.Reached(now)
}

// Released reports whether the acknowledgement a lets go of the hold h, given
// served, the versions that the frame of a.Revision hands to this consumer. A
// hold handed out after that revision is not let go.
func (h Hold) Released(a Ack, served func(key.VersionID) bool) bool {
	if h.Consumer != a.Consumer || (h.Boot != a.Boot && (a.Replaces == "" || h.Boot != a.Replaces)) {
		return false
	}
	if !a.Revision.Reached(h.Revision) && a.Revision.Epoch == h.Revision.Epoch {
		return false
	}
	if a.Revision.Epoch != h.Revision.Epoch && a.Revision.Epoch < h.Revision.Epoch {
		return false
	}
	return !served(h.Version) && !slices.Contains(a.Pinned, h.Version)
}

// Ended reports whether the term that the holder itself enforces has ended.
func (h Hold) Ended(now time.Time) bool { return !h.Until.IsZero() && !now.Before(h.Until) }

// Standings returns how everyone who may hold v stands towards it, given that
// it stopped being handed out at revision at. A holder has moved when no hold
// of it is left: holds are removed by acknowledgement, by the end of their
// term, or by a person's waiver, never by silence.
func (l Ledger) Standings(v key.VersionID, at key.Revision, now time.Time) []Standing {
	var out []Standing
	for _, h := range l.Holds {
		if h.Version != v {
			continue
		}
		s := Standing{Consumer: h.Consumer, Kind: h.Kind, Boot: h.Boot, Place: Holds, Until: h.Until, Unbound: h.Unbound}
		b, known := l.Boot(h.Consumer, h.Boot)
		if known {
			s.Acked, s.Seen = b.Acked, b.Seen
		}
		switch {
		case h.Ended(now):
			s.Place, s.Why = Moved, "its refresh interval has passed"
		case !h.Kind.Acknowledges():
			s.Why = "read it " + h.Since.UTC().Format(time.RFC3339)
			if h.Unbound {
				s.Why += " and declares no refresh interval"
			} else {
				s.Why += "; refreshes by " + h.Until.UTC().Format(time.RFC3339)
			}
		case known && slices.Contains(b.Pinned, v):
			s.Why = "requests that use it are still running"
		case !known || now.Sub(b.Seen) > SilentAfter:
			s.Place, s.Why = Silent, "has not been heard from"
			if known && !b.Seen.IsZero() {
				s.Why += " since " + b.Seen.UTC().Format(time.RFC3339)
			}
		default:
			s.Why = "has acknowledged revision " + b.Acked.String() + ", not " + at.String()
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Standing) int {
		return cmp.Or(cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.Boot, b.Boot))
	})
	return out
}

// Followers returns the standing of every acknowledging process that holds any
// of vs towards revision at: moved when it has acknowledged it.
func (l Ledger) Followers(vs []key.VersionID, at key.Revision, now time.Time) []Standing {
	var out []Standing
	seen := map[[2]string]bool{}
	for _, h := range l.Holds {
		id := [2]string{h.Consumer, h.Boot}
		if !h.Kind.Acknowledges() || seen[id] || h.Ended(now) || !slices.Contains(vs, h.Version) {
			continue
		}
		seen[id] = true
		s := Standing{Consumer: h.Consumer, Kind: h.Kind, Boot: h.Boot, Place: Holds}
		b, known := l.Boot(h.Consumer, h.Boot)
		if known {
			s.Acked, s.Seen = b.Acked, b.Seen
		}
		switch {
		case known && b.passed(at):
			s.Place = Moved
		case !known || now.Sub(b.Seen) > SilentAfter:
			s.Place, s.Why = Silent, "has not been heard from"
		default:
			s.Why = "is at revision " + b.Acked.String() + ", not yet " + at.String()
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Standing) int {
		return cmp.Or(cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.Boot, b.Boot))
	})
	return out
}

// Total returns the sum of what every boot has seen of v.
func (l Ledger) Total(v key.VersionID) Use {
	t := Use{Version: v}
	for _, b := range l.Boots {
		u := b.Use(v)
		t.Live, t.Probes = t.Live.Plus(u.Live), t.Probes.Plus(u.Probes)
		t.Worse, t.Better, t.Fallbacks = t.Worse+u.Worse, t.Better+u.Better, t.Fallbacks+u.Fallbacks
		if u.LastAuth != "" {
			t.LastAuth = u.LastAuth
		}
	}
	return t
}
