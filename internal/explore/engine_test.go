package explore_test

import (
	"hash/maphash"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// acts gives every act of the rules a small number.
var acts = []rotation.Act{rotation.Wait, rotation.DoIntent, rotation.DoIssue, rotation.DoLost, rotation.DoLook, rotation.DoNeedKey, rotation.DoSpare,
	rotation.DoProbe, rotation.DoProven, rotation.DoInstall, rotation.DoStage, rotation.DoPromote, rotation.DoSoaked, rotation.DoEmpty, rotation.DoFinish,
	rotation.DoBack, rotation.DoSwapBack, rotation.DoEnable, rotation.DoDrop, rotation.DoStop, rotation.DoDiscard,
	rotation.DoDisabling, rotation.DoDisable, rotation.DoRevoking, rotation.DoRevoke, rotation.DoConfirm, rotation.DoUnproven, doStray}

// doStray is the engine's own act: to look again for a lost answer.
const doStray rotation.Act = "look again for a lost answer"

var actOf = func() map[rotation.Act]uint8 {
	m := map[rotation.Act]uint8{}
	for i, a := range acts {
		m[a] = uint8(i)
	}
	return m
}()

// What an act is done for.
const (
	ofRotation = iota
	ofRetirement
	ofStray
)

type option struct {
	act uint8
	of  uint8
	v   num // the version that the rules named
	of2 num // the version that retires
}

// decision is what one pass could do first: the act of the rotation, or else
// one of any retirement or stray. The engine takes them in turn; the model
// takes each.
type decision struct {
	n    uint8
	opts [2*maxVersions + 1]option
}

func (d *decision) add(o option) { d.opts[d.n] = o; d.n++ }

var seed = maphash.MakeSeed()

// decide mirrors engine.once. What the rules say of the same facts is asked
// once and remembered.
func (m *model) decide(s *state, i int) decision {
	k := struct {
		m      memory
		probes [maxVersions + 1]probe
		intent bool
	}{s.mem, s.srv[i].probes, s.srv[i].intent}
	k.m.lease = lease{}
	h := maphash.Comparable(seed, k)
	if d, ok := m.decisions[h]; ok {
		return d
	}
	var d decision
	f := m.facts(s, i)
	m.asked++
	if s.mem.rot.open {
		r := m.rotation(&s.mem)
		a, g := m.next(r, f)
		if a.Do == rotation.DoIntent && s.mem.next > maxVersions {
			m.cut++ // the model ends here
		} else if a.Do != rotation.Wait {
			d.add(option{act: actOf[a.Do], of: ofRotation, v: num(a.Version)})
			m.decisions[h] = d
			return d
		}
		if g.Reason == "" {
			panic("a gate without a reason: " + string(r.State))
		}
	}
	for n := num(1); n <= maxVersions; n++ {
		if !s.mem.ret[n].open {
			continue
		}
		a, g := m.nextRetire(s.mem.retirement(n), f)
		if a.Do != rotation.Wait {
			d.add(option{act: actOf[a.Do], of: ofRetirement, v: num(a.Version), of2: n})
		} else if g.Reason == "" && s.mem.ret[n].retry == 0 {
			panic("a gate of a retirement without a reason: " + string(s.mem.v[n].is()))
		}
	}
	for n := num(1); n <= maxVersions; n++ { // engine.facts.strays
		if st := s.mem.v[n].is(); (st == key.StateUnknown || st == key.StateIntent) && (!s.mem.rot.open || s.mem.rot.to != n) && !m.cfg.out(noReconcile) {
			d.add(option{act: actOf[doStray], of: ofStray, v: n, of2: n})
		}
	}
	m.decisions[h] = d
	return d
}

// serverSteps are the steps of server i: to take the lease and decide, to call
// the vendor, to record, to die.
func (m *model) serverSteps(s *state, i int, emit func(state)) {
	p := &s.srv[i]
	me := uint8(i + 1)
	l := s.mem.lease
	holds := l.owner == me && l.left > 0
	if p.stage != 0 || holds && p.hasMemory() {
		m.crash(s, i, emit)
	}
	switch p.stage {
	case 0:
		if l.owner != 0 && l.owner != me && l.left > 0 && !m.cfg.out(noLease) {
			return
		}
		d := m.decide(s, i)
		for _, o := range d.opts[:d.n] {
			t := *s
			t.mem.lease = lease{owner: me, left: leaseTicks}
			if l.owner != me || l.left == 0 { // a new pass: an intent of an earlier one is not its own
				if o.act == actOf[rotation.DoIssue] {
					o.act = actOf[rotation.DoLost]
				}
				t.srv[i].intent = false
			}
			if m.cfg.out(callFirst) && acts[o.act] == rotation.DoRevoking {
				o.act = actOf[rotation.DoRevoke]
			}
			q := &t.srv[i]
			q.act, q.of, q.v, q.gen, q.stage = o.act, o.of, o.v, t.mem.rot.gen, decided
			switch {
			case o.of != ofRetirement:
			case acts[o.act] != rotation.DoProbe:
				q.v = o.of2
			case o.v == o.of2 && t.mem.retirement(o.v).Anew(q.probes[o.v].rule()): // engine.retire
				q.probes[o.v] = probe{}
			}
			m.say("server %d takes the lease and decides: %s v%d", i+1, acts[o.act], o.v)
			if !deferred[acts[o.act]] {
				m.carryOut(&t, i, emit)
				continue
			}
			emit(t)
		}
	case decided:
		m.carryOut(s, i, emit)
	case called:
		m.giveUp(s, i, emit)
	case answered:
		m.answer(s, i, emit)
	}
}

func (p *server) hasMemory() bool { return p.intent || p.probes != [maxVersions + 1]probe{} }

const leaseTicks = 1

// deferred are the acts between whose decision and transaction (or call)
// something else may happen that matters. The others are done at once.
var deferred = map[rotation.Act]bool{rotation.DoIssue: true, rotation.DoSpare: true, rotation.DoStage: true, rotation.DoInstall: true, rotation.DoPromote: true,
	rotation.DoEmpty: true, rotation.DoSwapBack: true, rotation.DoDrop: true, rotation.DoEnable: true, rotation.DoDisabling: true, rotation.DoDisable: true,
	rotation.DoRevoking: true, rotation.DoRevoke: true}

// calls are the acts that ask the vendor to change something.
func calls(a rotation.Act) bool {
	return a == rotation.DoIssue || a == rotation.DoDisable || a == rotation.DoEnable || a == rotation.DoRevoke
}

// crash is the end of a process: what it remembered is gone, its lease is held
// by nobody until it ends, and what it asked of the vendor may still arrive.
func (m *model) crash(s *state, i int, emit func(state)) {
	if s.spent.crash >= m.cfg.Crashes {
		return
	}
	t := *s
	t.spent.crash++
	p := t.srv[i]
	if p.stage == called && acts[p.act] == rotation.DoIssue {
		if t.late != 0 {
			return
		}
		t.late = p.v
	}
	if m.cfg.out(intentLater) && p.stage >= called && acts[p.act] == rotation.DoIssue {
		t.mem.v[p.v] = version{state: keyState(key.StateVoid)}
		t.mem.rot.state, t.mem.rot.to, t.mem.rot.attempted = stateOf(rotation.Planned), 0, false
	}
	t.srv[i] = server{}
	if t.mem.lease.owner == uint8(i+1) {
		t.mem.lease.owner = 3
	}
	m.say("server %d dies", i+1)
	emit(t)
}

// fenced reports whether server i may write (store.Tx.Fence).
func (m *model) fenced(s *state, i int) bool {
	if m.cfg.out(noFence) {
		return false
	}
	return s.mem.lease.owner != uint8(i+1) || s.mem.lease.left == 0
}

func (p *server) done() { p.act, p.of, p.v, p.gen, p.stage, p.outcome = 0, 0, 0, 0, 0, 0 }

// carryOut commits what server i decided or, when that is a call, makes it:
// engine.act, engine.retire, engine.renew.
func (m *model) carryOut(s *state, i int, emit func(state)) {
	t := *s
	p := &t.srv[i]
	a := acts[p.act]
	if m.fenced(s, i) && !(calls(a) && m.cfg.out(callUnfenced)) {
		p.done()
		p.intent = false
		m.say("server %d finds that the lease is not its own any more", i+1)
		emit(t)
		return
	}
	if calls(a) {
		if !m.fenced(s, i) {
			t.mem.lease = lease{owner: uint8(i + 1), left: leaseTicks}
		}
		p.stage = called
		if a == rotation.DoIssue {
			p.intent = false
		}
		m.say("server %d calls the vendor: %s v%d", i+1, a, p.v)
		emit(t)
		return
	}
	q := *p
	p.done()
	if m.commit(&t, i, q) {
		m.say("server %d commits: %s v%d", i+1, a, q.v)
	} else {
		u := *s
		u.srv[i].done()
		t = u
		m.say("server %d cannot commit: %s v%d", i+1, a, q.v)
	}
	emit(t)
}

// commit does one transaction; false when it was refused.
func (m *model) commit(s *state, i int, q server) bool {
	mem := &s.mem
	p := &s.srv[i]
	a := acts[q.act]
	if q.of == ofRetirement && a != rotation.DoProbe {
		return m.commitRetire(s, i, q)
	}
	if q.of == ofStray { // engine.stray
		if m.cfg.Can.List {
			if m.orphans(s, q.v) {
				return true
			}
		}
		if mem.v[q.v].is() == key.StateIntent {
			mem.v[q.v].state = keyState(key.StateUnknown)
			return true
		}
		return false
	}
	if a == rotation.DoProbe { // engine.probe
		m.probe(s, p, q.v)
		return true
	}
	if q.gen != mem.rot.gen || !mem.rot.open {
		return false
	}
	r := &mem.rot
	to, from := r.to, r.from
	switch a {
	case rotation.DoIntent: // engine.writeIntent
		n := mem.next
		if !m.apply(s, rotation.Event{Kind: rotation.Intended, To: key.Number(n)}) {
			return false
		}
		mem.next++
		mem.v[n] = version{state: keyState(key.StateIntent)}
		p.intent = true
		return true
	case rotation.DoLost: // engine.lost
		return m.lost(s)
	case rotation.DoLook: // engine.look
		if !m.apply(s, rotation.Event{Kind: rotation.Looked}) {
			return false
		}
		if !m.cfg.Can.List {
			mem.v[to].state = keyState(key.StateVoid)
		} else if m.cfg.out(orphanUnmarked) {
			mem.v[to].state = keyState(key.StateVoid)
		} else {
			m.orphans(s, to)
		}
		return true
	case rotation.DoNeedKey:
		return m.apply(s, rotation.Event{Kind: rotation.NeedKey})
	case rotation.DoSpare:
		if mem.slots[1] != q.v {
			return false
		}
		return m.apply(s, rotation.Event{Kind: rotation.SpareTaken, To: key.Number(q.v), Revision: revision(mem.touch())})
	case rotation.DoProven:
		return m.apply(s, rotation.Event{Kind: rotation.Proven})
	case rotation.DoStage: // engine.stage
		if mem.slots[2] != to {
			return false
		}
		at := mem.touch()
		if f := mem.slots[1]; f != 0 {
			m.retireVersion(s, i, f, at, false)
		}
		mem.slots[1], mem.slots[2] = to, 0
		mem.v[to].state = keyState(key.StateFallback)
		return m.apply(s, rotation.Event{Kind: rotation.Staged, Revision: revision(at)})
	case rotation.DoInstall: // engine.install
		if mem.slots[2] != to || mem.slots[0] != from {
			return false
		}
		at := mem.touch()
		if from != 0 {
			m.retireVersion(s, i, from, at, rotKinds[r.kind] == rotation.Emergency)
		}
		mem.slots[0], mem.slots[2] = to, 0
		mem.v[to].state = keyState(key.StatePrimary)
		return m.apply(s, rotation.Event{Kind: rotation.Installed, Revision: revision(at)})
	case rotation.DoPromote: // engine.promote
		if !mem.swap(from, to) {
			return false
		}
		return m.apply(s, rotation.Event{Kind: rotation.Promoted, Revision: revision(mem.crev)})
	case rotation.DoSoaked:
		mem.touch()
		return m.apply(s, rotation.Event{Kind: rotation.Soaked})
	case rotation.DoEmpty: // engine.empty
		e := rotation.Event{Kind: rotation.Emptied}
		if mem.slots[1] == q.v {
			if mem.slots[0] == 0 || mem.slots[0] == q.v {
				return false
			}
			if m.cfg.Can.Probe && !s.accepted(mem.slots[0]) {
				s.broken = survivorDead
			}
			mem.slots[1] = 0
			at := mem.touch()
			m.retireVersion(s, i, q.v, at, rotKinds[r.kind] == rotation.Emergency)
			e.Revision = revision(at)
		}
		return m.apply(s, e)
	case rotation.DoFinish:
		return m.apply(s, rotation.Event{Kind: rotation.Finished})
	case rotation.DoBack:
		return m.apply(s, rotation.Event{Kind: rotation.Back, Why: "bad"})
	case rotation.DoSwapBack: // engine.swapBack
		at := mem.touch()
		if mem.slots[0] == to {
			if m.cfg.Can.Probe && !s.accepted(from) {
				s.broken = survivorDead
			}
			if mem.slots[1] == from {
				if !mem.swap(to, from) {
					return false
				}
			} else {
				if !mem.ret[from].open {
					return false
				}
				ret, err := rotation.ApplyRetire(mem.retirement(from), rotation.Event{Kind: rotation.Withdrawn, At: now})
				if err != nil {
					return false
				}
				mem.keepRet(ret)
				if f := mem.slots[1]; f != 0 {
					m.retireVersion(s, i, f, at, false)
				}
				mem.slots[0], mem.slots[1] = from, to
				mem.v[from].state, mem.v[to].state = keyState(key.StatePrimary), keyState(key.StateFallback)
			}
		}
		return m.apply(s, rotation.Event{Kind: rotation.SwappedBack, Revision: revision(at)})
	case rotation.DoDrop: // engine.drop
		if !m.apply(s, rotation.Event{Kind: rotation.Dropped}) {
			return false
		}
		if to != 0 {
			if mem.slots[2] == to {
				mem.slots[2] = 0
			}
			if mem.v[to].is() == key.StateCandidate {
				m.retireVersion(s, i, to, mem.crev, false)
			}
		}
		return true
	case rotation.DoStop:
		return m.apply(s, rotation.Event{Kind: rotation.Stop, Why: "dead"})
	case rotation.DoDiscard: // engine.discard
		if mem.slots[1] != q.v {
			return true
		}
		mem.slots[1] = 0
		m.retireVersion(s, i, q.v, mem.touch(), false)
		return true
	}
	panic("unexpected act " + string(a))
}

// swap mirrors change.swap.
func (m *memory) swap(from, to num) bool {
	if m.slots[0] != from || m.slots[1] != to {
		return false
	}
	m.touch()
	m.slots[0], m.slots[1] = to, from
	m.v[from].state, m.v[to].state = keyState(key.StateFallback), keyState(key.StatePrimary)
	return true
}

// apply takes e in by the real table (engine.commitWith).
func (m *model) apply(s *state, e rotation.Event) bool {
	e.At = now
	r, err := rotation.Apply(m.rotation(&s.mem), e)
	if err != nil {
		return false
	}
	switch e.Kind {
	case rotation.SpareTaken, rotation.Staged, rotation.Installed, rotation.Promoted, rotation.SwappedBack, rotation.Soaked:
		s.mem.keep(r, true)
	default:
		s.mem.keep(r, false)
	}
	if e.Kind == rotation.Intended || e.Kind == rotation.SpareTaken || e.Kind == rotation.Looked || e.Kind == rotation.Refused {
		for f := range s.mem.boots {
			for i := range s.mem.boots[f] {
				b := &s.mem.boots[f][i]
				b.ok, b.worse, b.refused = false, false, false
			}
		}
	}
	return true
}

// retireVersion mirrors change.retireVersion.
func (m *model) retireVersion(s *state, i int, n num, at rev, emergency bool) {
	v := &s.mem.v[n]
	if v.is().Terminal() || v.is().Retiring() {
		return
	}
	if i >= 0 {
		s.srv[i].probes[n] = probe{}
	}
	v.state = keyState(key.StateRetired)
	r := rotation.Retirement{Version: vid(n), State: key.StateRetired, Revision: revision(at), Entered: now, Emergency: emergency}
	if emergency {
		r.Deadline = ago(s.mem.rot.started).Add(m.cfg.Policy.Deadline)
	}
	s.mem.keepRet(r)
}

// orphans mirrors engine.look: a stray under the label of n is marked.
func (m *model) orphans(s *state, n num) bool {
	for k := range s.vendor {
		x := &s.vendor[k]
		if x.label != n || x.is == none || x.is == gone || x.is == lagging || s.known(uint8(k+1)) {
			continue
		}
		v := &s.mem.v[n]
		v.state, v.vid = keyState(key.StateOrphan), uint8(k+1)
		s.mem.keepRet(rotation.Retirement{Version: vid(n), State: key.StateOrphan, Revision: revision(s.mem.crev), Entered: now})
		return true
	}
	return false
}

// known reports whether the store knows the key k by its vendor id.
func (s *state) known(k uint8) bool {
	for _, v := range s.mem.v {
		if v.vid == k {
			return true
		}
	}
	return false
}

// lost records that nobody knows whether a key was issued (engine.lost).
func (m *model) lost(s *state) bool {
	n := s.mem.rot.to
	if m.cfg.out(blindRetry) {
		s.mem.v[n].state = keyState(key.StateVoid)
		return m.apply(s, rotation.Event{Kind: rotation.Refused})
	}
	if !m.apply(s, rotation.Event{Kind: rotation.Lost}) {
		return false
	}
	s.mem.v[n].state = keyState(key.StateUnknown)
	return true
}

// probe asks the vendor about n, and p remembers (engine.probe).
func (m *model) probe(s *state, p *server, n num) bool {
	ok := s.accepted(n)
	is := uint8(2)
	if ok {
		is = 1
	}
	if p.probes[n].is == is {
		p.probes[n].at = 0
	} else {
		p.probes[n] = probe{is: is}
	}
	return ok
}

func stateOf(s rotation.State) uint8 {
	for i, t := range rotStates {
		if s == t {
			return uint8(i)
		}
	}
	panic(s)
}
