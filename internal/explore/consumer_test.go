package explore_test

import (
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// followerSteps are what can happen between the desk and follower f.
func (m *model) followerSteps(s *state, f int, emit func(state)) {
	x := &s.fol[f]
	if !x.on {
		return
	}
	b := &s.mem.boots[f][x.boot]
	now := frame{s.mem.rev, s.mem.slots[0], s.mem.slots[1]}

	// The desk hands out (handover.Desk.Frame): holds first, in a transaction
	// that fails unless the store is still where it was read. So reading and
	// recording are one step, and the bytes leave later.
	if x.mem.rev < now.rev && x.flight.rev < now.rev && !x.unheld && !b.buried {
		t := *s
		t.fol[f].flight = now
		if m.cfg.out(holdLater) {
			t.fol[f].unheld = true
		} else {
			if m.cfg.out(holdReplaces) {
				t.mem.boots[f][x.boot].holds = [maxVersions + 1]rev{}
			}
			t.record(f, x.boot, now)
		}
		m.say("the desk hands revision %v (v%d, v%d) to %s", revision(now.rev), now.primary, now.fallback, name(f))
		emit(t)
	}
	if x.unheld && x.flight.rev == 0 {
		t := *s
		t.fol[f].unheld = false
		t.record(f, x.boot, x.mem)
		m.say("the desk records what %s holds", name(f))
		emit(t)
	}
	// The frame arrives (link.Link.take): it is put to use before it is on disk.
	if x.flight.rev != 0 && x.flight.rev >= x.mem.rev {
		t := *s
		y := &t.fol[f]
		y.mem, y.flight = x.flight, frame{}
		m.say("%s uses revision %v (v%d, v%d)", name(f), revision(y.mem.rev), y.mem.primary, y.mem.fallback)
		emit(t)
		if m.cfg.Pins {
			pins := y.pins
			for _, n := range []num{x.mem.primary, x.mem.fallback} {
				if n != 0 && !y.mem.serves(n) {
					pins |= 1 << n
				}
			}
			if pins != y.pins {
				y.pins = pins
				m.say("%s uses revision %v (v%d, v%d); requests that use older keys go on", name(f), revision(y.mem.rev), y.mem.primary, y.mem.fallback)
				emit(t)
			}
		}
	}
	if x.pins != 0 {
		t := *s
		t.fol[f].pins = 0
		m.say("%s ends its requests with older keys", name(f))
		emit(t)
	}
	if x.mem != x.disk {
		t := *s
		t.fol[f].disk = x.mem
		m.say("%s has revision %v on disk", name(f), revision(x.mem.rev))
		emit(t)
	}
	// The acknowledgement leaves (link.Link.acknowledge). Messages stay until
	// others take their place: they arrive late, twice, in any order, or never.
	if x.mem.rev != 0 && (x.disk == x.mem || m.cfg.out(ackBeforeDisk)) {
		a := ack{rev: x.mem.rev, boot: x.boot + 1, replaces: x.replaces, pinned: x.pins}
		if m.cfg.out(pinsUnsaid) {
			a.pinned = 0
		}
		if a != x.acks[0] && a != x.acks[1] && (b.acked != a.rev || b.pinned != a.pinned || x.replaces != 0) {
			t := *s
			t.fol[f].acks[1], t.fol[f].acks[0] = x.acks[0], a
			if m.cfg.Prompt {
				t.fol[f].acks[1] = ack{}
			}
			m.say("%s sends its acknowledgement of %v", name(f), revision(a.rev))
			emit(t)
		}
	}
	for _, a := range x.acks {
		if a.boot != 0 {
			t := *s
			m.acknowledge(&t, f, a)
			if t != *s {
				m.say("the acknowledgement of %v by %s arrives", revision(a.rev), name(f))
				emit(t)
			}
		}
	}
	if s.mem.rot.open && x.mem.rev != 0 {
		m.report(s, f, true, emit)
		if m.cfg.Idle {
			m.report(s, f, false, emit)
		}
	}
	if s.spent.restart < m.cfg.Restarts && x.boot == 0 {
		// It dies and comes back with what is on its disk (link.Link.resume).
		t := *s
		t.spent.restart++
		y := &t.fol[f]
		y.boot, y.mem, y.pins, y.flight, y.replaces = 1, x.disk, 0, frame{}, 1
		if y.unheld {
			y.unheld = false
		}
		m.say("%s dies and starts again with v%d, v%d on disk", name(f), y.mem.primary, y.mem.fallback)
		emit(t)
	}
}

// record makes what fr hands out held, as Desk.hold does.
func (s *state) record(f int, boot uint8, fr frame) {
	for _, n := range []num{fr.primary, fr.fallback} {
		if h := &s.mem.boots[f][boot].holds[n]; n != 0 && *h == 0 {
			*h = fr.rev
		}
	}
}

// acknowledge mirrors handover.acknowledge.
func (m *model) acknowledge(s *state, f int, a ack) {
	if a.rev > s.mem.rev || s.mem.boots[f][a.boot-1].buried {
		return
	}
	if a.replaces != 0 {
		s.mem.boots[f][a.replaces-1].buried = true
	}
	e := evidence.Ack{Consumer: m.consumer(f), Boot: bootID(f, int(a.boot-1)), Revision: revision(a.rev), Elapsed: elapsed, Pinned: versions(a.pinned)}
	if a.replaces != 0 {
		e.Replaces = bootID(f, int(a.replaces-1))
	}
	b := &s.mem.boots[f][a.boot-1]
	late := a.rev < b.acked
	if !late {
		got := m.boot(&s.mem, f, int(a.boot-1)).Acknowledge(e, now)
		if !b.known {
			*b = boot{known: true, holds: b.holds}
		}
		b.acked, b.pinned = packed(got.Acked), 0
		for _, v := range got.Pinned {
			b.pinned |= 1 << v.Number
		}
	}
	served := func(v key.VersionID) bool { return s.mem.serves(num(v.Number)) }
	covers := e.Covers(true, revision(s.mem.crev), revision(s.mem.rev))
	if m.cfg.out(oldEpochs) && !covers {
		covers = num(a.rev%64) >= s.mem.crev%64
	}
	if m.cfg.out(ackUncovered) {
		covers = true
	}
	own := *b
	for g := range s.mem.boots {
		if m.consumer(g) != m.consumer(f) {
			continue
		}
		for i := range s.mem.boots[g] {
			mine := g == f && i == int(a.boot-1)
			taken := g == f && a.replaces != 0 && i == int(a.replaces-1)
			if !mine && !taken && !m.cfg.out(bootsAsOne) || mine && late {
				continue
			}
			for _, h := range m.holds(&s.mem, g, i) {
				n := num(h.Version.Number)
				if m.cfg.out(bootsAsOne) {
					h.Boot = e.Boot
				}
				if m.cfg.out(oldEpochs) || m.cfg.out(ackUncovered) {
					h.Revision = e.Revision
				}
				switch {
				case covers && h.Released(e, served):
					s.mem.boots[g][i].holds[n] = 0
				case taken:
					s.mem.boots[g][i].holds[n] = 0
					if own.holds[n] == 0 {
						b.holds[n] = packed(h.Revision)
					}
				}
			}
		}
	}
	if a.replaces != 0 {
		s.mem.boots[f][a.replaces-1] = boot{buried: true}
		if s.fol[f].replaces == a.replaces {
			s.fol[f].replaces = 0 // the server has said so
		}
	}
}

// report is a report of f, after one request or none: what it sees of the new
// key and of the old one (evidence.Boot.Merge; gateway.Core counts).
func (m *model) report(s *state, f int, request bool, emit func(state)) {
	x := &s.fol[f]
	b := s.mem.boots[f][x.boot]
	if !b.known || b.buried {
		return
	}
	e := m.boot(&s.mem, f, int(x.boot))
	to, out := s.mem.rot.to, s.mem.outgoing()
	r := evidence.Report{Consumer: e.Consumer, Boot: e.Boot, Seq: 2, Elapsed: elapsed + time.Duration(b.age)*tick}
	for _, u := range e.Uses {
		n := num(u.Version.Number)
		p, q := x.mem.primary, x.mem.fallback
		if request && (n == p || n == q && !s.works(p)) {
			if s.works(n) {
				u.Live.OK++
			} else {
				u.Live.Auth++
				if n == p && s.works(q) {
					u.Worse++
				}
			}
			u.LastUse = r.Elapsed
		}
		if n == to && x.mem.serves(n) && m.cfg.Can.Probe { // the probe that was asked for
			if s.works(n) {
				u.Probes.OK++
				u.LastProbe = evidence.OK
			} else {
				u.LastProbe, u.LastAuth = evidence.Auth, "401 Unauthorized"
			}
		}
		r.Uses = append(r.Uses, u)
	}
	got := e.Merge(r, now)
	t := *s
	y := &t.mem.boots[f][x.boot]
	at := int64(0)
	if b.marked {
		at = base
	}
	if to != 0 {
		was, u := e.Use(vid(to)), got.Use(vid(to))
		y.ok = y.ok || u.Live.OK+u.Probes.OK > was.Live.OK+was.Probes.OK
		y.worse, y.refused = u.Worse > at, u.LastProbe == evidence.Auth
	}
	y.age = 0
	if out != 0 {
		y.quiet = ticks(got.Elapsed - got.Use(vid(out)).LastUse)
	}
	if t != *s {
		m.say("%s reports, after a request: %v", name(f), request)
		emit(t)
	}
}

// ticks returns d in ticks, at most two: no window of use is longer.
func ticks(d time.Duration) uint8 { return uint8(min(2, max(0, d/tick))) }

// readerSteps are reads: the hold is durable before the answer leaves
// (Desk.ReadPair), and lasts longer than the reader's own term.
func (m *model) readerSteps(s *state, i int, emit func(state)) {
	x := &s.rd[i]
	if !x.on || s.mem.slots[0] == 0 {
		return
	}
	t := *s
	has := frame{primary: s.mem.slots[0]}
	if m.cfg.out(holdStale) {
		if x.prep == 0 {
			t.rd[i].prep = has.primary
			m.say("a desk reads v%d for %s", has.primary, readerName(i))
			emit(t)
			return
		}
		has.primary, t.rd[i].prep = x.prep, 0
	}
	if m.cfg.unbound(i) {
		has.fallback = s.mem.slots[1] // it reads both (Desk.ReadPair), the other one the primary alone (Desk.Read)
	}
	t.rd[i].has, t.rd[i].left = has, 2
	for _, n := range []num{has.primary, has.fallback} {
		if n != 0 {
			h := term{held: true, left: 3}
			if m.cfg.unbound(i) {
				h = term{held: true, unbound: true}
			}
			if m.cfg.out(readersUnheld) {
				h = term{}
			}
			t.mem.read[i][n] = h
		}
	}
	if t != *s {
		m.say("%s reads v%d, v%d", readerName(i), has.primary, has.fallback)
		emit(t)
	}
}

// personSteps are what people ask for while it goes on.
func (m *model) personSteps(s *state, emit func(state)) {
	r := s.mem.rot
	if s.spent.rollback < m.cfg.Rollbacks && r.open { // engine.Rollback
		from := s.mem.v[r.from].is()
		ok := from != key.StateRevoking && !from.Terminal()
		if s.mem.slots[0] == r.to && r.to != 0 && m.cfg.Can.Probe && from != key.StateDisabled && from != key.StateDisabling && !s.accepted(r.from) {
			ok = false
		}
		t := *s
		t.mem.rot.paused = false
		if ok && m.apply(&t, rotation.Event{Kind: rotation.Back, Why: "asked"}) {
			t.spent.rollback++
			m.say("a person asks for a rollback")
			emit(t)
		}
	}
	if s.spent.emergency < m.cfg.Emergencies { // engine.begin, supersede, leak
		t := *s
		t.spent.emergency++
		if r.open {
			m.apply(&t, rotation.Event{Kind: rotation.Replaced})
		}
		if c := t.mem.slots[2]; r.open && c != 0 {
			t.mem.v[c].state = keyState(key.StateRetired)
			t.mem.keepRet(rotation.Retirement{Version: vid(c), State: key.StateRetired, Revision: revision(t.mem.crev), Entered: now})
			t.mem.slots[2] = 0
		}
		g := t.mem.rot.gen + 1
		t.mem.rot = rot{open: true, gen: g, kind: uint8(slices.Index(rotKinds, rotation.Emergency)), state: stateOf(rotation.Planned), from: t.mem.slots[0], leaked: t.mem.slots[0]}
		m.say("a person declares an emergency for v%d", t.mem.slots[0])
		emit(t)
	}
	if m.cfg.Approves { // engine.Approve
		t := *s
		if m.approve(&t); t != *s {
			m.say("a person approves")
			emit(t)
		}
	}
	if s.spent.epoch < m.cfg.Epochs { // sqlstore.newEpoch
		t := *s
		t.spent.epoch++
		t.mem.rev = t.mem.rev/64*64 + 64 + t.mem.rev%64 + 1
		m.say("the store begins a new epoch")
		emit(t)
	}
}

// tick lets the time pass that makes a probe old. A call that is running ends
// before its lease does (engine.renew), so a tick waits for it.
func (m *model) tick(s *state, emit func(state)) {
	t := *s
	for _, p := range s.srv {
		if p.stage == called && !m.cfg.out(callUnfenced) {
			return
		}
		if p.stage != 0 || p.intent { // a server is stopped in the middle of an act
			if t.spent.stall++; t.spent.stall > m.cfg.Stalls {
				return
			}
		}
	}
	older := func(n *uint8, most uint8) { *n = min(most, *n+1) }
	down := func(n *uint8, least uint8) {
		if *n > least {
			*n--
		}
	}
	if t.mem.rot.open {
		older(&t.mem.rot.entered, 2)
		older(&t.mem.rot.started, old)
		down(&t.mem.rot.retry, 0)
	}
	for n := range t.mem.ret {
		if r := &t.mem.ret[n]; r.open {
			older(&r.entered, old)
			down(&r.retry, 0)
			down(&r.deadline, 1)
			if r.called > 0 {
				older(&r.called, old+1)
			}
		}
	}
	down(&t.mem.lease.left, 0)
	if t.mem.lease.left == 0 && t.mem.lease.owner == 3 {
		t.mem.lease.owner = 0
	}
	for f := range t.mem.boots {
		for i := range t.mem.boots[f] {
			if b := &t.mem.boots[f][i]; b.known && t.mem.rot.open {
				older(&b.age, 2)
			}
		}
	}
	for i := range t.mem.read {
		for n := range t.mem.read[i] {
			if r := &t.mem.read[i][n]; r.held && !r.unbound {
				if r.left--; r.left == 0 {
					*r = term{}
				}
			}
		}
		if x := &t.rd[i]; x.on && !m.cfg.unbound(i) && x.has != (frame{}) {
			if x.left == 0 {
				x.has = frame{} // it does not use a key beyond its own term
			} else {
				x.left--
			}
		}
	}
	for k := range t.vendor {
		switch x := &t.vendor[k]; x.is {
		case early:
			x.is = good
		case lagging:
			x.is = gone
		}
	}
	for i := range t.srv {
		for n := range t.srv[i].probes {
			if p := &t.srv[i].probes[n]; p.is != 0 {
				older(&p.at, old)
				// An age that has reached its end keeps its distance to others.
				if r := t.mem.ret[n]; !r.open || r.called < old+1 && r.entered < old {
					older(&p.first, old+1)
				}
			}
		}
	}
	if t != *s {
		m.say("time passes")
		emit(t)
	}
}
