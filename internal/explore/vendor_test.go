package explore_test

import (
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// vendorSteps are what the vendor does by itself: requests that are on their
// way take effect, also late ones; keys begin and cease to be accepted.
func (m *model) vendorSteps(s *state, emit func(state)) {
	for i := range s.srv {
		p := s.srv[i]
		if p.stage != called {
			continue
		}
		t := *s
		t.srv[i].stage = answered
		switch acts[p.act] {
		case rotation.DoIssue:
			m.create(t, i, p.v, emit)
			continue
		case rotation.DoDisable:
			m.say("the vendor disables v%d", p.v)
			m.ending(&t, p.v, disabled, key.StateDisabling)
		case rotation.DoEnable:
			if k := t.keyOf(p.v); k != nil && k.is == disabled {
				k.is = good
			}
			m.say("the vendor enables v%d", p.v)
		case rotation.DoRevoke:
			to := uint8(gone)
			if m.cfg.Can.Late > 0 {
				to = lagging
			}
			m.say("the vendor revokes v%d", p.v)
			if m.cfg.Lies {
				emit(t)
				continue
			}
			m.ending(&t, p.v, to, key.StateRevoking)
		}
		emit(t)
	}
	if s.late != 0 {
		t := *s
		t.late = 0
		m.create(t, -1, s.late, emit)
	}
	for k, x := range s.vendor {
		t := *s
		switch x.is {
		case early:
			t.vendor[k].is = good
			m.say("the key of v%d is accepted from now on", x.label)
		case lagging:
			t.vendor[k].is = gone
			m.say("the key of v%d is refused from now on", x.label)
		default:
			continue
		}
		emit(t)
	}
	if s.spent.kill < m.cfg.Kills {
		m.kill(s, emit)
	}
}

func (s *state) keyOf(n num) *vkey {
	if v := s.mem.v[n].vid; v != 0 {
		return &s.vendor[v-1]
	}
	return nil
}

// living counts the keys that take room at the vendor.
func (s *state) living() (n int) {
	for _, k := range s.vendor {
		if k.is != none && k.is != gone && k.is != lagging && k.label != foreign {
			n++
		}
	}
	return n
}

// create makes a key for server i, or for nobody who waits for it any more.
func (m *model) create(t state, i int, label num, emit func(state)) {
	if m.cfg.Can.Max > 0 && t.living() >= m.cfg.Can.Max {
		if i >= 0 {
			t.srv[i].outcome = 1
		}
		m.say("the vendor has no room for v%d", label)
		emit(t)
		return
	}
	at := -1
	for k := range t.vendor {
		if t.vendor[k].is == none {
			at = k
			break
		}
	}
	if at < 0 {
		m.cut++
		return
	}
	is := uint8(good)
	if m.cfg.Can.Early > 0 {
		is = early
	}
	m.say("the vendor creates the key of v%d", label)
	t.vendor[at] = vkey{label: label, is: is}
	if i >= 0 {
		t.srv[i].outcome = 2 + uint8(at)
	}
	emit(t)
	if t.spent.spoil < m.cfg.Spoils {
		u := t
		u.spent.spoil++
		u.vendor[at].is = bad
		m.say("the vendor creates the key of v%d, which never works", label)
		if m.cfg.Elsewhere {
			u.vendor[at].is = partial
		}
		emit(u)
	}
}

// kill is somebody else who revokes a key at the vendor. What is done between
// our probe and our act nobody can see: it is not modelled.
func (m *model) kill(s *state, emit func(state)) {
	for _, p := range s.srv {
		if p.stage != 0 {
			return
		}
	}
	for k, x := range s.vendor {
		if x.is != good || x.label == foreign {
			continue
		}
		t := *s
		for i := range t.srv {
			for n := range t.srv[i].probes {
				if q := &t.srv[i].probes[n]; q.is != 0 && q.at == 0 {
					q.at, q.first = 1, max(1, q.first)
				}
			}
		}
		t.spent.kill++
		t.vendor[k].is = gone
		m.say("somebody else revokes the key of v%d", x.label)
		emit(t)
	}
}

// giveUp ends a call that is not answered: what was asked may still arrive.
func (m *model) giveUp(s *state, i int, emit func(state)) {
	p := s.srv[i]
	a := acts[p.act]
	if s.spent.refuse < m.cfg.Refuses && a == rotation.DoIssue {
		t := *s
		t.spent.refuse++
		t.srv[i].done()
		m.say("the vendor refuses v%d", p.v)
		m.refused(&t, i, p, false)
		emit(t)
	}
	if s.spent.lost >= m.cfg.Losses {
		return
	}
	t := *s
	t.spent.lost++
	t.srv[i].done()
	if a == rotation.DoIssue {
		if t.late != 0 {
			return
		}
		t.late = p.v
	}
	m.say("server %d waits no longer for the vendor's answer to %s v%d", i+1, a, p.v)
	m.failed(&t, i, p)
	emit(t)
}

// failed records a call whose answer is not known.
func (m *model) failed(t *state, i int, p server) {
	if m.fenced(t, i) {
		t.srv[i].intent = false
		return
	}
	if acts[p.act] == rotation.DoIssue {
		if p.gen == t.mem.rot.gen && t.mem.rot.open && t.mem.rot.to == p.v && m.lost(t) {
			return
		}
		t.mem.v[p.v].state = keyState(key.StateUnknown) // engine.afterIssue
		return
	}
	n := p.v
	if !t.mem.ret[n].open {
		return
	}
	if r, err := rotation.ApplyRetire(t.mem.retirement(n), rotation.Event{Kind: rotation.Failed, At: now, Retry: within(1)}); err == nil {
		t.mem.keepRet(r)
	}
}

// refused records that the vendor did nothing (engine.refused).
func (m *model) refused(t *state, i int, p server, full bool) {
	if m.fenced(t, i) {
		return
	}
	e := rotation.Event{Kind: rotation.Refused, Full: full, Why: "refused"}
	if !full || t.mem.rot.full {
		e.Retry = within(1)
	}
	t.mem.v[p.v].state = keyState(key.StateVoid)
	if p.gen == t.mem.rot.gen && t.mem.rot.open && t.mem.rot.to == p.v {
		m.apply(t, e)
	}
}

// answer records the vendor's answer, or loses it on the way.
func (m *model) answer(s *state, i int, emit func(state)) {
	p := s.srv[i]
	a := acts[p.act]
	if s.spent.lost < m.cfg.Losses && p.outcome != 1 {
		t := *s
		t.spent.lost++
		t.srv[i].done()
		m.say("the vendor's answer to %s v%d is lost", a, p.v)
		m.failed(&t, i, p)
		emit(t)
	}
	t := *s
	t.srv[i].done()
	m.say("server %d records the vendor's answer to %s v%d", i+1, a, p.v)
	switch {
	case m.fenced(s, i):
		m.say("server %d cannot record the vendor's answer to %s v%d: the lease is not its own", i+1, a, p.v)
	case a == rotation.DoIssue && p.outcome == 1:
		m.refused(&t, i, p, true)
	case a == rotation.DoIssue:
		m.keepKey(&t, i, p)
	default:
		if m.cfg.out(callFirst) && a == rotation.DoRevoke && t.mem.v[p.v].is() != key.StateRevoking {
			m.retireEvent(&t, i, p.v, rotation.Event{Kind: rotation.Revoking})
		}
		e := map[rotation.Act]rotation.EventKind{rotation.DoDisable: rotation.Disabled, rotation.DoEnable: rotation.Enabled, rotation.DoRevoke: rotation.Called}[a]
		m.retireEvent(&t, i, p.v, rotation.Event{Kind: e})
		if a == rotation.DoRevoke && m.cfg.out(noProof) {
			m.retireEvent(&t, i, p.v, rotation.Event{Kind: rotation.Revoked})
		}
	}
	emit(t)
}

// keepKey mirrors engine.keep.
func (m *model) keepKey(t *state, i int, p server) {
	n := p.v
	v := &t.mem.v[n]
	if p.gen == t.mem.rot.gen && t.mem.rot.open && t.mem.rot.to == n && m.apply(t, rotation.Event{Kind: rotation.Issued, To: key.Number(n)}) {
		if c := t.mem.slots[2]; c != 0 && c != n {
			m.retireVersion(t, i, c, t.mem.crev, false)
		}
		*v = version{state: keyState(key.StateCandidate), vid: p.outcome - 1, parts: true}
		t.mem.slots[2] = n
		return
	}
	*v = version{state: keyState(key.StateCandidate), vid: p.outcome - 1, parts: true}
	m.retireVersion(t, i, n, t.mem.crev, false)
}

// retireEvent mirrors engine.commitRetire.
func (m *model) retireEvent(t *state, i int, n num, e rotation.Event) bool {
	if !t.mem.ret[n].open {
		return false
	}
	e.At = now
	r, err := rotation.ApplyRetire(t.mem.retirement(n), e)
	if err != nil {
		return false
	}
	t.mem.v[n].state = keyState(r.State)
	t.mem.keepRet(r)
	if e.Kind != rotation.Failed {
		t.srv[i].probes[n] = probe{}
	}
	return true
}

// commitRetire mirrors engine.retire: what is not a call.
func (m *model) commitRetire(s *state, i int, q server) bool {
	n := q.v
	p := &s.srv[i]
	switch a := acts[q.act]; a {
	case rotation.DoDisabling, rotation.DoRevoking:
		var open rotation.Rotation
		if s.mem.rot.open {
			open = m.rotation(&s.mem)
		}
		if !m.cfg.out(noMayTouch) && rotation.MayTouch(key.Number(n), key.Slots{Primary: key.Number(s.mem.slots[0]), Fallback: key.Number(s.mem.slots[1]), Candidate: key.Number(s.mem.slots[2])}, open) != nil {
			return false
		}
		e := rotation.Event{Kind: rotation.Disabling}
		if a == rotation.DoRevoking {
			e.Kind = rotation.Revoking
		}
		orphan := s.mem.v[n].is() == key.StateOrphan
		if !m.retireEvent(s, i, n, e) {
			return false
		}
		if !orphan && m.cfg.Can.Probe && !s.accepted(s.mem.slots[0]) {
			s.broken = survivorDead
		}
		return true
	case rotation.DoConfirm: // engine.confirm
		if m.cfg.Can.Probe && s.mem.slots[0] != 0 {
			if !m.probe(s, p, s.mem.slots[0]) {
				p.probes[n] = probe{}
				return m.retireEvent(s, i, n, rotation.Event{Kind: rotation.Failed, Retry: within(1)})
			}
			if s.mem.v[n].parts && m.probe(s, p, n) {
				return m.retireEvent(s, i, n, rotation.Event{Kind: rotation.Failed, Retry: within(1)})
			}
		}
		if !m.cfg.Can.List {
			if m.cfg.Can.Probe && s.mem.v[n].parts {
				return m.retireEvent(s, i, n, rotation.Event{Kind: rotation.Revoked})
			}
			return m.retireEvent(s, i, n, rotation.Event{Kind: rotation.Unproven})
		}
		if k := s.keyOf(n); k != nil && k.is != gone && k.is != lagging {
			if c := s.mem.ret[n].called; c < 3 || s.mem.v[n].is() != key.StateRevoking {
				return m.retireEvent(s, i, n, rotation.Event{Kind: rotation.Failed, Retry: within(1)})
			}
			return m.retireEvent(s, i, n, rotation.Event{Kind: rotation.Unproven})
		}
		return m.retireEvent(s, i, n, rotation.Event{Kind: rotation.Revoked})
	case rotation.DoUnproven:
		return m.retireEvent(s, i, n, rotation.Event{Kind: rotation.Unproven})
	}
	panic("unexpected act " + string(acts[q.act]))
}
