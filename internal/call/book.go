package call

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

// Book keeps the meters and tallies of one boot and makes its reports. The
// zero Book is empty. It is safe for concurrent use.
type Book struct {
	mu      sync.Mutex
	meters  map[key.VersionID]*Meter
	tallies map[key.CredentialID]*Tally
	sent    sent
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

// Meter returns the meter of the version id, always the same one.
func (b *Book) Meter(id key.VersionID) *Meter {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.meters[id]
	if m == nil {
		if b.meters == nil {
			b.meters = map[key.VersionID]*Meter{}
		}
		m = &Meter{id: id}
		b.meters[id] = m
	}
	return m
}

// Tally returns the tally of the credential id, always the same one.
func (b *Book) Tally(id key.CredentialID) *Tally {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.tallies[id]
	if t == nil {
		if b.tallies == nil {
			b.tallies = map[key.CredentialID]*Tally{}
		}
		t = &Tally{}
		b.tallies[id] = t
	}
	return t
}

// Report fills r with the uses and answers that changed since the last report
// that [Book.Reported] says has arrived, cumulative per boot; where it is never
// called, with all that ever changed. r says who sends it and its number, and
// r.Elapsed the sender's clock; clock is the time on that of the meters.
func (b *Book) Report(r evidence.Report, clock time.Duration) evidence.Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.sent.aligned {
		// The sender's clock may have begun before this one. Last uses are put
		// on it, rather late than early: quiet is measured from them.
		b.sent.aligned = true
		if d := r.Elapsed - clock; d > 0 {
			b.sent.shift = d.Truncate(alignment) + alignment
		}
	}
	for id, m := range b.meters {
		if m.idle() {
			continue // of many thousands most are
		}
		now := m.load()
		if now.LastUse > 0 {
			now.LastUse += b.sent.shift
		}
		if now != b.sent.uses[id] && now != (evidence.Use{Version: id}) {
			r.Uses = append(r.Uses, now)
		}
	}
	for id, t := range b.tallies {
		if t.requests.Load() == 0 {
			continue
		}
		now := evidence.Answers{Credential: id, Requests: t.requests.Load(), Refused: t.refused.Load(), Failed: t.failed.Load()}
		if now != b.sent.answers[id] && now != (evidence.Answers{Credential: id}) {
			r.Answers = append(r.Answers, now)
		}
	}
	slices.SortFunc(r.Uses, func(a, c evidence.Use) int {
		return cmp.Or(a.Version.Credential.Compare(c.Version.Credential), cmp.Compare(a.Version.Number, c.Version.Number))
	})
	slices.SortFunc(r.Answers, func(a, c evidence.Answers) int { return a.Credential.Compare(c.Credential) })
	b.sent.pending = r
	return r
}

// Reported says that the report seq has arrived, so that what has not changed
// since is left out of the next. One that is not the last made is ignored.
func (b *Book) Reported(seq int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if seq != b.sent.pending.Seq || seq == b.sent.seq {
		return
	}
	if b.sent.uses == nil {
		b.sent.uses, b.sent.answers = map[key.VersionID]evidence.Use{}, map[key.CredentialID]evidence.Answers{}
	}
	b.sent.seq = seq
	for _, u := range b.sent.pending.Uses {
		b.sent.uses[u.Version] = u
	}
	for _, a := range b.sent.pending.Answers {
		b.sent.answers[a.Credential] = a
	}
}
