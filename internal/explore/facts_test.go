package explore_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// tick is the unit of time: the shortest in which a probe is not fresh any
// more. Within a tick anything may happen in any order; every length of time
// that a rule looks at is a whole number of them.
const tick = rotation.Fresh + time.Second

var (
	now  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	cred = key.CredentialID{Service: "billing-api", Environment: "prod"}
)

func vid(n num) key.VersionID { return key.VersionID{Credential: cred, Number: key.Number(n)} }

func ago(n uint8) time.Time    { return now.Add(-time.Duration(n) * tick) }
func within(n uint8) time.Time { return now.Add(time.Duration(n) * tick) }

// left returns how many ticks there are until t.
func left(t time.Time) uint8 {
	if !t.After(now) {
		return 0
	}
	return uint8((t.Sub(now) + tick - 1) / tick)
}

func revision(r rev) key.Revision {
	if r == 0 {
		return key.Revision{}
	}
	return key.Revision{Epoch: 1 + int64(r/64), Number: int64(r % 64)}
}

func packed(r key.Revision) rev {
	if r.IsZero() {
		return 0
	}
	return rev(64*(r.Epoch-1) + r.Number)
}

// rotation returns the rotation as the rules see it.
func (m *model) rotation(s *memory) rotation.Rotation {
	t := s.rot
	r := rotation.Rotation{ID: fmt.Sprint(t.gen), Credential: cred, Machine: rotation.Machine, Kind: rotKinds[t.kind], State: rotStates[t.state],
		From: key.Number(t.from), To: key.Number(t.to), Leaked: key.Number(t.leaked), Bridge: key.Number(t.bridge), Revision: revision(t.rev), Full: t.full,
		Started: ago(t.started), Entered: ago(t.entered), Paused: t.paused}
	if t.attempted {
		r.Attempt = 1
	}
	if t.retry > 0 {
		r.Retry = within(t.retry)
	}
	if r.State == rotation.Stopped {
		r.Why = "both keys are bad"
	}
	if t.back {
		r.Back = "asked"
	}
	if t.resume > 0 {
		r.Resume = rotStates[t.resume-1]
	}
	if t.approved {
		r.Approved = map[rotation.Step]string{r.State.Step(): "a person"}
	}
	for f := range s.boots {
		for i, b := range s.boots[f] {
			if b.marked {
				mk := rotation.Mark{Consumer: m.consumer(f), Boot: bootID(f, i), Elapsed: elapsed - time.Duration(b.quiet)*tick, Worse: base}
				mk.Probes.OK = base
				r.Marks = append(r.Marks, mk)
			}
		}
	}
	return r
}

// The counters and the clock of a process, which only count as differences.
const (
	base    = 10
	elapsed = 100 * tick
)

func name(f int) string        { return fmt.Sprintf("gw-%d", f) }
func bootID(f, i int) string   { return fmt.Sprintf("boot-%d-%d", f, i) }
func readerName(i int) string  { return fmt.Sprintf("reader-%d", i) }
func (m *model) is(f int) bool { return m.cfg.Clients > 0 && f >= followers-m.cfg.Clients }

// keep stores what became of the rotation; marks are those of a new watch.
func (m *memory) keep(r rotation.Rotation, began bool) {
	t := &m.rot
	t.kind, t.state = uint8(slices.Index(rotKinds, r.Kind)), uint8(slices.Index(rotStates, r.State))
	t.from, t.to, t.leaked, t.bridge, t.rev, t.full, t.paused = num(r.From), num(r.To), num(r.Leaked), num(r.Bridge), packed(r.Revision), r.Full, r.Paused
	t.back, t.approved, t.resume = r.Back != "", r.Approved[r.State.Step()] != "", 0
	t.attempted = r.Attempt > 0 && r.State == rotation.Issuing
	if r.Resume != "" {
		t.resume = uint8(slices.Index(rotStates, r.Resume)) + 1
	}
	t.entered, t.retry = uint8(now.Sub(r.Entered)/tick), left(r.Retry)
	if began {
		for f := range m.boots {
			for i := range m.boots[f] {
				b := &m.boots[f][i]
				b.marked, b.ok, b.worse, b.refused, b.quiet = b.known, false, false, false, 0
			}
		}
	}
	if r.State.Ended() {
		*t = rot{gen: t.gen, state: t.state}
		for f := range m.boots {
			for i := range m.boots[f] {
				m.boots[f][i].forget()
			}
		}
	}
}

// forget drops what nobody looks at while no rotation is open.
func (b *boot) forget() {
	b.marked, b.ok, b.worse, b.refused, b.quiet, b.age = false, false, false, false, 0, 0
}

func (m *memory) retirement(n num) rotation.Retirement {
	t := m.ret[n]
	r := rotation.Retirement{Version: vid(n), State: keyStates[t.state-1], Revision: revision(t.rev), Emergency: t.emergency, Entered: ago(t.entered)}
	if t.retry > 0 {
		r.Retry = within(t.retry)
	}
	if t.called > 0 {
		r.Called = ago(t.called - 1)
	}
	if t.deadline > 0 {
		r.Deadline = within(t.deadline - 1)
	}
	for i, q := range questions {
		if t.approved&(1<<i) != 0 {
			if r.Approved == nil {
				r.Approved = rotation.Answers{}
			}
			r.Approved[q] = "a person"
		}
	}
	return r
}

var questions = []rotation.Question{rotation.AskReaders, rotation.AskCopies, rotation.AskRevoked}

func (m *memory) keepRet(r rotation.Retirement) {
	n := num(r.Version.Number)
	if !r.Ended.IsZero() {
		m.ret[n] = ret{}
		return
	}
	t := &m.ret[n]
	t.open, t.state, t.rev = true, keyState(r.State), packed(r.Revision)
	t.entered, t.retry = uint8(now.Sub(r.Entered)/tick), left(r.Retry)
	t.called, t.deadline = 0, 0
	if !r.Called.IsZero() {
		t.called = uint8(now.Sub(r.Called)/tick) + 1
	}
	t.emergency = r.Emergency
	if !r.Deadline.IsZero() {
		t.deadline = left(r.Deadline) + 1
	}
}

// ledger returns what the store knows of consumers, as engine.read gathers it.
func (m *model) ledger(s *memory) evidence.Ledger {
	var l evidence.Ledger
	for f := range s.boots {
		for i := range s.boots[f] {
			l.Holds = append(l.Holds, m.holds(s, f, i)...)
			if b := s.boots[f][i]; b.known {
				l.Boots = append(l.Boots, m.boot(s, f, i))
			}
		}
	}
	for i := range s.read {
		for n, t := range s.read[i] {
			if t.held {
				h := evidence.Hold{Consumer: readerName(i), Kind: key.KindReader, Version: vid(num(n)), Unbound: t.unbound}
				if !t.unbound {
					h.Until = within(t.left)
				}
				l.Holds = append(l.Holds, h)
			}
		}
	}
	return l
}

func (m *model) holds(s *memory, f, i int) (out []evidence.Hold) {
	for n, at := range s.boots[f][i].holds {
		if at != 0 {
			out = append(out, evidence.Hold{Consumer: m.consumer(f), Kind: m.kind(f), Boot: bootID(f, i), Version: vid(num(n)), Revision: revision(at)})
		}
	}
	return out
}

// consumer returns the identity of follower f: twins share one.
func (m *model) consumer(f int) string {
	if m.cfg.Twins {
		return name(0)
	}
	return name(f)
}

func (m *model) kind(f int) key.Kind {
	if m.is(f) {
		return key.KindClient
	}
	return key.KindGateway
}

func (m *model) boot(s *memory, f, i int) evidence.Boot {
	b := s.boots[f][i]
	e := evidence.Boot{Consumer: m.consumer(f), Kind: m.kind(f), Boot: bootID(f, i), Seq: 1, Elapsed: elapsed, Contiguous: elapsed - 2*tick,
		Seen: ago(b.age), Acked: revision(b.acked), Pinned: versions(b.pinned)}
	at := int64(0)
	if b.marked {
		at = base
	}
	if s.rot.to != 0 {
		u := evidence.Use{Version: vid(s.rot.to), Worse: at}
		u.Probes.OK = at
		if b.ok {
			u.Probes.OK++
		}
		if b.worse {
			u.Worse++
		}
		if b.refused {
			u.LastProbe, u.LastAuth = evidence.Auth, "401 Unauthorized"
		}
		e.Uses = append(e.Uses, u)
	}
	if n := s.outgoing(); n != 0 && n != s.rot.to {
		u := evidence.Use{Version: vid(n), LastUse: elapsed - time.Duration(b.quiet)*tick}
		u.Live.OK = 1
		e.Uses = append(e.Uses, u)
	} else if n != 0 {
		e.Uses[0].LastUse, e.Uses[0].Live.OK = elapsed-time.Duration(b.quiet)*tick, 0
		e.Uses[0].Live.Other = 1
	}
	slices.SortFunc(e.Uses, func(a, b evidence.Use) int { return int(a.Version.Number - b.Version.Number) })
	return e
}

// outgoing returns the version whose last use matters: the one that the open
// rotation replaces or, on its way back, the one that it had brought.
func (m *memory) outgoing() num {
	if rotStates[m.rot.state] == rotation.Undoing {
		return m.rot.to
	}
	return m.rot.from
}

func versions(set uint8) (out []key.VersionID) {
	for n := num(1); n <= maxVersions; n++ {
		if set&(1<<n) != 0 {
			out = append(out, vid(n))
		}
	}
	return out
}

// facts returns what server i decides from.
func (m *model) facts(s *state, i int) rotation.Facts {
	f := rotation.Facts{Policy: m.cfg.Policy, Can: m.cfg.Can, Ledger: m.ledger(&s.mem), Versions: map[key.Number]key.Version{},
		Slots:  key.Slots{Primary: key.Number(s.mem.slots[0]), Fallback: key.Number(s.mem.slots[1]), Candidate: key.Number(s.mem.slots[2])},
		Probes: map[key.Number]rotation.Probe{}, Retirements: map[key.Number]rotation.Retirement{}}
	if s.srv[i].intent {
		f.Intent = 1
	}
	for n := num(1); n <= maxVersions; n++ {
		if v := s.mem.v[n]; v.state != 0 {
			kv := key.Version{ID: vid(n), State: v.is(), Origin: key.OriginIssued}
			if v.copies {
				kv.Origin = key.OriginSet
			}
			if v.vid != 0 {
				kv.VendorID = fmt.Sprint(v.vid)
			}
			if v.parts {
				kv.Fingerprint = fmt.Sprint(v.vid)
			}
			f.Versions[key.Number(n)] = kv
		}
		if s.mem.ret[n].open {
			f.Retirements[key.Number(n)] = s.mem.retirement(n)
		}
		if p := s.srv[i].probes[n]; p.is != 0 {
			f.Probes[key.Number(n)] = p.rule()
		}
	}
	return f
}

// rule returns the probe as the rules see it.
func (p probe) rule() rotation.Probe {
	return rotation.Probe{Outcome: outcomes[p.is], At: ago(p.at), First: ago(p.first), Run: 1, Text: string(outcomes[p.is])}
}

var outcomes = []evidence.Outcome{"", evidence.OK, evidence.Auth}
