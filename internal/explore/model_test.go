package explore_test

import (
	"fmt"
	"slices"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// config is one world to explore: who is in it, and how often what may happen.
type config struct {
	Name      string
	Policy    rotation.Policy
	Can       rotation.Abilities
	Followers int // gateways and clients
	Clients   int // how many of them are clients
	Readers   int // the first declares a refresh interval, the second none
	Twins     bool
	Pins      bool // requests, or a child, outlive the revision they began at
	Prompt    bool // one acknowledgement of each process is on its way at most
	Lies      bool // the vendor says that it revokes, and does not
	Spare     bool // v2 is a warm spare at the start
	Copies    bool // v1 was set by a person
	Approves  bool // people answer what gates ask
	Elsewhere bool // a spoiled key works for the server and for nobody else
	Alone     bool // no gateway
	Idle      bool // gateways report also when they had no request
	Foreign   bool // the vendor has a key that is not ours
	DeadFirst bool // v1 is refused at the start
	OneServer bool
	Kind      rotation.Kind

	Crashes, Losses, Restarts, Rollbacks, Emergencies, Kills, Spoils, Epochs, Refuses, Stalls uint8

	without rule
}

func (c *config) out(r rule) bool    { return c.without&r != 0 }
func (c *config) unbound(i int) bool { return i == 1 }

// violation is a promise that was broken; the text says which.
type violation uint8

const (
	kept violation = iota
	survivorDead
	possessed
	lastKey
	notCommitted
	touchedForeign
	unknownKey
	falseProof
	wrongSlots
)

func (v violation) String() string {
	return []string{"", "a key is given up while the survivor does not work", "a key ended while somebody may hold it",
		"a consumer is left without a valid key", "a key ended without a durable commitment", "a foreign key was touched",
		"the vendor has a key that nobody will look for", "a key counts as proven dead and is accepted", "the slots and the states of versions differ"}[v]
}

// model explores one config.
type model struct {
	cfg       config
	decisions map[uint64]decision
	asked     int // how often the rules were asked
	cut       int // how often a history was too long for the model
	telling   bool
	told      string
}

func (m *model) say(format string, args ...any) {
	if m.telling {
		m.told = fmt.Sprintf(format, args...)
	}
}

// start returns the first state: v1 is the primary, everybody has it, and a
// rotation has just begun.
func (m *model) start() state {
	c := &m.cfg
	var s state
	s.mem.next, s.mem.rev, s.mem.crev = 2, 1, 1
	s.mem.slots[0] = 1
	s.mem.v[1] = version{state: keyState(key.StatePrimary), vid: 1, parts: true, copies: c.Copies}
	s.vendor[0] = vkey{label: 1, is: good}
	if c.DeadFirst {
		s.vendor[0].is = gone
	}
	if c.Spare {
		s.mem.next, s.mem.slots[1] = 3, 2
		s.mem.v[2] = version{state: keyState(key.StateFallback), vid: 2, parts: true}
		s.vendor[1] = vkey{label: 2, is: good}
	}
	if c.Foreign {
		s.vendor[2] = vkey{label: foreign, is: good}
	}
	at := frame{1, s.mem.slots[0], s.mem.slots[1]}
	for f := range c.Followers {
		s.fol[f] = follower{on: true, mem: at, disk: at}
		s.mem.boots[f][0] = boot{known: true, acked: 1}
		s.record(f, 0, at)
	}
	for i := range c.Readers {
		s.rd[i].on = true
	}
	kind := c.Kind
	if kind == "" {
		kind = rotation.Manual
	}
	s.mem.rot = rot{open: true, kind: uint8(slices.Index(rotKinds, kind)), state: stateOf(rotation.Planned), from: 1}
	if kind == rotation.Emergency {
		s.mem.rot.leaked = 1
	}
	return s
}

// steps calls emit with every state that can follow s.
func (m *model) steps(s *state, emit func(state)) {
	for i := range s.srv {
		if i == 0 || !m.cfg.OneServer {
			m.serverSteps(s, i, emit)
		}
	}
	m.vendorSteps(s, emit)
	for f := range s.fol {
		m.followerSteps(s, f, emit)
	}
	for i := range s.rd {
		m.readerSteps(s, i, emit)
	}
	m.personSteps(s, emit)
	m.tick(s, emit)
}

// ending is the moment at which a key of ours ends at the vendor.
func (m *model) ending(s *state, n num, to uint8, need key.State) {
	k := s.keyOf(n)
	if k == nil || k.is == gone || k.is == lagging || k.is == none {
		return // 404 counts as done
	}
	if k.label == foreign {
		s.broken = touchedForeign
	}
	if got := s.mem.v[n].is(); got != need && got != key.StateRevoked && got != key.StateRevoking {
		s.broken = notCommitted
	}
	alive := s.accepted(n)
	k.is = to
	r := s.mem.ret[n]
	if r.emergency && r.deadline == 1 {
		return // those who have not moved are named, not waited for
	}
	for f := range s.fol {
		x := &s.fol[f]
		if x.on && (x.mem.serves(n) || x.disk.serves(n) || x.pins&(1<<n) != 0) {
			s.broken = possessed
			if alive && !s.works(x.mem.primary) && !s.works(x.mem.fallback) {
				s.broken = lastKey
			}
		}
	}
	for i := range s.rd {
		if x := &s.rd[i]; x.on && x.has.serves(n) && (!m.cfg.unbound(i) || r.approved&1 == 0) {
			s.broken = possessed
		}
	}
}

// check returns what is broken in t, which follows s.
func (m *model) check(s, t *state) violation {
	if t.broken != kept {
		return t.broken
	}
	for f := range t.fol {
		x, y := &s.fol[f], &t.fol[f]
		if t.spent.kill == 0 && y.on && s.accepted2(x.mem) && !t.accepted2(y.mem) && !t.expired() {
			return lastKey
		}
	}
	for i := range t.rd {
		x, y := &s.rd[i], &t.rd[i]
		if m.cfg.unbound(i) && m.cfg.Approves {
			continue // a person has said that it may be passed over
		}
		if t.spent.kill == 0 && y.has != (frame{}) && (s.accepted2(x.has) || x.has == frame{}) && !t.accepted2(y.has) && !t.expired() {
			return lastKey
		}
	}
	for k, x := range t.vendor {
		if x.is == none || x.is == gone || x.is == lagging || x.label == foreign {
			continue
		}
		if m.cfg.Can.List && x.label <= maxVersions && !t.known(uint8(k+1)) && !t.pending(x.label, uint8(k)) {
			return unknownKey
		}
	}
	for n := num(1); n <= maxVersions; n++ {
		if t.mem.v[n].is() == key.StateRevoked && t.accepted(n) {
			return falseProof
		}
	}
	for i, st := range []key.State{key.StatePrimary, key.StateFallback, key.StateCandidate} {
		if n := t.mem.slots[i]; n != 0 && t.mem.v[n].is() != st {
			return wrongSlots
		}
	}
	return kept
}

func (s *state) accepted2(f frame) bool { return s.works(f.primary) || s.works(f.fallback) }

// expired reports whether the deadline of an emergency has passed.
func (s *state) expired() bool {
	return slices.ContainsFunc(s.mem.ret[:], func(r ret) bool { return r.emergency && r.deadline == 1 }) || s.spent.emergency > 0 && s.mem.rot.kind == 1
}

// pending reports whether somebody is about to record the key k of n, or will
// look for it.
func (s *state) pending(n num, k uint8) bool {
	for _, p := range s.srv {
		if p.stage == answered && acts[p.act] == rotation.DoIssue && p.v == n && p.outcome == 2+k {
			return true
		}
	}
	st := s.mem.v[n].is()
	return st == key.StateIntent || st == key.StateUnknown
}

// next and nextRetire ask the real rules; a test that takes one out falsifies
// what they are told.
func (m *model) next(r rotation.Rotation, f rotation.Facts) (rotation.Action, rotation.Gate) {
	if m.cfg.out(unprobedBack) && (r.State == rotation.RollingBack) {
		f.Probes[r.From] = rotation.Probe{Outcome: evidence.OK, At: now, First: now, Run: 1}
	}
	if m.cfg.out(unprobedNew) {
		f.Probes[r.To] = rotation.Probe{Outcome: evidence.OK, At: now, First: now, Run: 1}
	}
	if m.cfg.out(unseen) {
		f.Ledger.Boots = slices.Clone(f.Ledger.Boots)
		for i := range f.Ledger.Boots {
			f.Ledger.Boots[i].Kind = key.KindClient
		}
		f.Ledger.Holds = slices.Clone(f.Ledger.Holds)
		for i := range f.Ledger.Holds {
			f.Ledger.Holds[i].Kind = key.KindClient
		}
	}
	if m.cfg.out(silenceOpens) {
		f.Ledger = silent(f.Ledger)
	}
	return rotation.Next(r, f, now)
}

func (m *model) nextRetire(r rotation.Retirement, f rotation.Facts) (rotation.Action, rotation.Gate) {
	if m.cfg.out(unprobedSurvivor) {
		f.Probes[f.Slots.Primary] = rotation.Probe{Outcome: evidence.OK, At: now, First: now, Run: 1}
	}
	if m.cfg.out(holdersIgnored) {
		f.Ledger = evidence.Ledger{}
	}
	if m.cfg.out(silenceOpens) {
		f.Ledger = silent(f.Ledger)
	}
	if p, ok := f.Probes[f.Slots.Primary]; ok && m.cfg.out(staleProbes) {
		p.At = now
		f.Probes[f.Slots.Primary] = p
	}
	if m.cfg.out(unboundIgnored) {
		f.Ledger.Holds = slices.DeleteFunc(slices.Clone(f.Ledger.Holds), func(h evidence.Hold) bool { return h.Unbound })
	}
	return rotation.NextRetire(r, f, now)
}

// silent drops the holds of those who have not been heard from for a while.
func silent(l evidence.Ledger) evidence.Ledger {
	l.Holds = slices.DeleteFunc(slices.Clone(l.Holds), func(h evidence.Hold) bool {
		b, known := l.Boot(h.Consumer, h.Boot)
		return known && now.Sub(b.Seen) >= tick
	})
	return l
}
