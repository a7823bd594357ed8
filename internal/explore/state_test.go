// Package explore_test visits the states of the rotation protocol: a vendor, a
// store, two servers, gateways or clients with a cache on disk, readers, and
// people, with processes that die or stall, answers that are lost and messages
// that arrive late, twice or never.
//
// The rules are the real ones: [rotation.Next], [rotation.NextRetire], their
// transitions, [rotation.MayTouch], [evidence.Hold.Released],
// [evidence.Ack.Covers] and the ledger are called with facts made from the
// state, at one fixed now. What is modelled is the effect of each act, as small
// as it can be; a comment names the function that it mirrors. The crash tests of
// internal/sim run that code itself, on far fewer histories.
//
// Time is counted in ticks, as long as a probe is fresh. Every length of time
// that a rule looks at is zero or one tick or two, and what is older than any
// of them is of one age, so that the states are finitely many. A state is known
// by 64 bits of its hash: of ten million, two share theirs with a probability
// of 3 in a million, and one of them is then not visited.
package explore_test

import (
	"slices"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// Sizes of the model. A history that would need more is cut off there, and
// counted.
const (
	maxVersions = 4
	maxKeys     = 5
	followers   = 2
	readers     = 2
	old         = 4 // ages are in ticks, and anything older is as old as this
)

// num is the number of a version; 0 is none.
type num = uint8

// rev is a revision: 64 × (epoch − 1) + number. Only the order counts, so that
// numbers are made small again after each step.
type rev = uint8

// state is everything at one moment. It holds no pointers and nothing but
// bytes, so that it is compared and hashed as it is.
type state struct {
	mem    memory
	vendor [maxKeys]vkey
	late   num // a create that was given up, and may still arrive
	srv    [2]server
	fol    [followers]follower
	rd     [readers]reader
	spent  budget
	broken violation // what the step that led here broke
}

// memory is the store: what decisions are made from.
type memory struct {
	slots [3]num // primary, fallback, candidate
	next  num
	rev   rev // newest
	crev  rev // of the credential's last change
	v     [maxVersions + 1]version
	rot   rot
	ret   [maxVersions + 1]ret
	lease lease
	boots [followers][2]boot
	read  [readers][maxVersions + 1]term
}

type version struct {
	state  uint8 // index in key.States, plus 1; 0: there is none
	vid    uint8 // index in state.vendor, plus 1
	parts  bool  // the key itself is stored
	copies bool  // it may live where nobody is seen
}

type rot struct {
	open                         bool
	gen                          uint8 // which rotation it is
	kind, state, resume          uint8 // indices
	from, to, leaked, bridge     num
	attempted                    bool
	rev                          rev
	full, paused, back, approved bool
	entered, started             uint8 // ages
	retry                        uint8 // ticks left
}

type ret struct {
	open      bool
	state     uint8
	rev       rev
	entered   uint8
	retry     uint8
	called    uint8 // age plus 1; 0: not called
	emergency bool
	deadline  uint8 // ticks left plus 1; 0: none
	approved  uint8 // bits: readers, copies, revoked
}

type lease struct {
	owner uint8 // server plus 1; 3: one that has died
	left  uint8
}

// boot is what the store knows of one process of a follower.
type boot struct {
	known  bool
	buried bool
	acked  rev
	pinned uint8
	holds  [maxVersions + 1]rev // revision plus nothing; 0: no hold
	// Evidence of the rotation's new version since the watch began.
	marked, ok, worse, refused bool
	quiet                      uint8 // at the newest report: since the old key was used, or the watch began
	age                        uint8 // of the newest report
}

type term struct {
	held, unbound bool
	left          uint8
}

// vkey is a key at the vendor.
type vkey struct {
	label num // of the version it was issued for; foreign: somebody else's
	is    uint8
}

const foreign num = 99

// What a key at the vendor is.
const (
	none     = iota
	good     // accepted
	early    // listed, not accepted yet
	disabled // listed, not accepted
	lagging  // revoked and not listed, accepted for a little longer
	gone     // revoked
	bad      // listed, never accepted
	partial  // accepted from the server, refused elsewhere
)

type server struct {
	act     uint8 // index in acts; 0: idle
	of      uint8 // 0 the rotation, 1 a retirement, 2 a stray
	v       num
	gen     uint8
	stage   uint8 // decided, called, answered
	outcome uint8 // of the vendor's answer: 0 done, 1 no room
	intent  bool
	probes  [maxVersions + 1]probe
}

const (
	decided = iota + 1
	called
	answered
)

type probe struct {
	is        uint8 // 0: none, 1 ok, 2 auth
	at, first uint8 // ages
}

type frame struct {
	rev               rev
	primary, fallback num
}

func (f frame) serves(n num) bool { return n != 0 && (f.primary == n || f.fallback == n) }

type ack struct {
	rev      rev
	boot     uint8 // plus 1; 0: no message
	replaces uint8 // plus 1; 0: none
	pinned   uint8
}

// follower is a gateway or a client: one process, its memory and its disk.
type follower struct {
	on       bool
	boot     uint8 // 0, or 1 after its restart
	mem      frame
	disk     frame
	replaces uint8 // plus 1
	flight   frame // on its way to it
	unheld   bool  // flight's holds are not recorded yet
	pins     uint8 // versions that running requests or its child still use
	acks     [2]ack
}

// reader is who reads and does not follow.
type reader struct {
	on   bool
	has  frame
	left uint8 // of its own term; it drops the key when that ends
	prep num   // read by a desk that has not recorded the hold yet
}

// budget is how often each thing has happened.
type budget struct {
	crash, lost, restart, rollback, emergency, kill, spoil, epoch, refuse, stall uint8
}

var (
	keyStates = key.States()
	rotStates = rotation.States()
	rotKinds  = []rotation.Kind{rotation.Manual, rotation.Emergency, rotation.Spare, rotation.Set}
)

func keyState(s key.State) uint8 { return uint8(slices.Index(keyStates, s)) + 1 }

func (v version) is() key.State {
	if v.state == 0 {
		return ""
	}
	return keyStates[v.state-1]
}

// accepted reports whether a request of the server with version n is accepted
// now.
func (s *state) accepted(n num) bool {
	if n == 0 || s.mem.v[n].vid == 0 {
		return false
	}
	k := s.vendor[s.mem.v[n].vid-1].is
	return k == good || k == lagging || k == partial
}

// works reports whether it is accepted from where consumers are.
func (s *state) works(n num) bool { return s.accepted(n) && s.vendor[s.mem.v[n].vid-1].is != partial }

func (m *memory) serves(n num) bool { return n != 0 && (m.slots[0] == n || m.slots[1] == n) }

// touch makes a new revision of the credential.
func (m *memory) touch() rev {
	m.rev++
	m.crev = m.rev
	return m.rev
}

// revisions calls fn with every revision in s.
func (s *state) revisions(fn func(*rev)) {
	fn(&s.mem.rev)
	fn(&s.mem.crev)
	fn(&s.mem.rot.rev)
	for i := range s.mem.ret {
		fn(&s.mem.ret[i].rev)
	}
	for i := range s.mem.boots {
		for j := range s.mem.boots[i] {
			b := &s.mem.boots[i][j]
			fn(&b.acked)
			for n := range b.holds {
				fn(&b.holds[n])
			}
		}
	}
	for i := range s.fol {
		f := &s.fol[i]
		fn(&f.mem.rev)
		fn(&f.disk.rev)
		fn(&f.flight.rev)
		for j := range f.acks {
			fn(&f.acks[j].rev)
		}
	}
}

// canonical gives s the one form of all states that differ in nothing that any
// rule looks at, now or later: what nobody looks at is forgotten, revisions are
// renumbered in their order, and two servers that differ in nothing but their
// place are put in order.
func (m *model) canonical(s *state) {
	m.forget(s)
	for i := range s.fol {
		f := &s.fol[i]
		if f.flight.rev != 0 && f.flight.rev < f.mem.rev && !f.unheld {
			f.flight = frame{} // it is refused
		}
		for j := range f.acks {
			// What changes nothing now changes nothing later: slots that change
			// are of a later revision, and so are holds that come.
			if f.acks[j].boot != 0 {
				t := *s
				if m.acknowledge(&t, i, f.acks[j]); t == *s {
					f.acks[j] = ack{}
				}
			}
		}
		if f.acks[0] == f.acks[1] {
			f.acks[1] = ack{}
		}
		if f.acks[0].boot == 0 {
			f.acks[0], f.acks[1] = f.acks[1], ack{}
		}
	}
	var used [256]bool
	s.revisions(func(r *rev) { used[*r] = true })
	var to [256]rev
	for e := range 4 {
		n := rev(0)
		for i := 64 * e; i < 64*e+64; i++ {
			if used[i] && i != 0 {
				n++
				to[i] = rev(64*e) + n
			}
		}
	}
	s.revisions(func(r *rev) { *r = to[*r] })
	if a, b := s.srv[0], s.srv[1]; s.mem.lease.owner != 1 && s.mem.lease.owner != 2 && less(b, a) {
		s.srv[0], s.srv[1] = b, a
	} else if s.mem.lease.owner == 2 {
		s.srv[0], s.srv[1], s.mem.lease.owner = b, a, 1
	}
}

// forget drops ages and counters that no rule asks for before they begin anew.
func (m *model) forget(s *state) {
	st := rotStates[s.mem.rot.state]
	counted := st == rotation.Distribute || st == rotation.Soaking
	quiets := st == rotation.Quieting || st == rotation.Undoing
	for f := range s.mem.boots {
		for i := range s.mem.boots[f] {
			b := &s.mem.boots[f][i]
			if !counted {
				b.ok, b.worse, b.refused = false, false, false
			}
			if !quiets {
				b.quiet = 0
			}
			if !quiets && !m.cfg.out(silenceOpens) {
				b.age = 0
			}
			if !counted && !quiets {
				b.marked = false
			}
		}
	}
	if !counted && st != rotation.Proving {
		s.mem.rot.entered = 0
	}
	if rotKinds[s.mem.rot.kind] != rotation.Emergency {
		s.mem.rot.started = 0
	}
	for n := range s.mem.ret {
		if r := &s.mem.ret[n]; r.open && keyStates[r.state-1] != key.StateDisabled && (r.called > 0 || m.cfg.Can.Revoke) {
			r.entered = 0
		}
	}
	for i := range s.srv {
		for n := range s.srv[i].probes {
			p := &s.srv[i].probes[n]
			if p.is != 1 {
				continue
			}
			p.first = p.at // the beginning of a run counts for refusals only
			if p.at > 0 && !m.cfg.out(staleProbes) && !(st == rotation.Proving && s.mem.rot.to == num(n)) && !s.mem.ret[n].open {
				*p = probe{} // not fresh: as good as none
			}
		}
	}
}

// less is some total order of idle and busy servers.
func less(a, b server) bool { return a.order() < b.order() }

func (a server) order() uint64 {
	n := uint64(a.act)<<8 | uint64(a.of)<<6 | uint64(a.v)<<3 | uint64(a.stage)
	n = n<<2 | uint64(a.gen)&1<<1
	if a.intent {
		n |= 1
	}
	for _, p := range a.probes {
		n = n<<8 | uint64(p.is)<<6 | uint64(p.at)<<3 | uint64(p.first)
	}
	return n
}
