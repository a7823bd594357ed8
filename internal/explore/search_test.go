package explore_test

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/rotation"
)

// result is what an exploration found.
type result struct {
	states  int
	whole   bool // nothing was left out for want of room
	broken  violation
	stuck   string
	trace   []string
	asked   int
	cut     int
	elapsed time.Duration
	healed  int
	ends    int // states in which nothing is left to do
}

// explore visits states breadth first, at most limit of them (0: all), and
// stops at the first that breaks a promise. From every sample-th state it lets
// everything be well again and wants the end to be reached.
func explore(cfg config, limit, sample int) result {
	m := &model{cfg: cfg, decisions: map[uint64]decision{}}
	began := time.Now()
	seen := map[uint64]int32{}
	type origin struct {
		parent int32
		step   uint16
	}
	var from []origin
	var res result
	add := func(s *state, o origin) bool {
		h := maphash.Comparable(seed, *s)
		if _, ok := seen[h]; ok {
			return false
		}
		seen[h] = int32(len(from))
		from = append(from, o)
		return true
	}
	type item struct {
		s  state
		id int32
	}
	first := m.start()
	m.canonical(&first)
	add(&first, origin{-1, 0})
	level := []item{{first, 0}}
	tell := func(id int32) []string {
		var path []int
		for ; id > 0; id = from[id].parent {
			path = append(path, int(from[id].step))
		}
		slices.Reverse(path)
		return m.tell(first, path)
	}
	good := map[uint64]bool{}
	res.whole = true
	for len(level) > 0 && res.broken == kept && res.stuck == "" {
		var nextLevel []item
		for i := range level {
			it := &level[i]
			if m.ended(&it.s) {
				res.ends++
			}
			if sample > 0 && (int(it.id)%sample == 0 || it.id < 2000) {
				res.healed++
				if why := heal(cfg, it.s, m.decisions, good, nil); why != "" {
					res.stuck, res.trace = why, append(tell(it.id), "from here on nothing goes wrong")
					heal(cfg, it.s, m.decisions, map[uint64]bool{}, &res.trace)
					res.trace = res.trace[:min(len(res.trace), 120)]
					break
				}
			}
			if limit > 0 && len(from) >= limit/2 {
				res.whole = false
				break
			}
			n := uint16(0)
			m.steps(&it.s, func(t state) {
				step := n
				n++
				if res.broken != kept {
					return
				}
				b := m.check(&it.s, &t)
				m.canonical(&t)
				if add(&t, origin{it.id, step}) {
					id := int32(len(from) - 1)
					nextLevel = append(nextLevel, item{t, id})
					if b != kept {
						res.broken = b
						res.trace = tell(id)
					}
				} else if b != kept {
					panic("a broken state was seen before")
				}
			})
			if res.broken != kept {
				break
			}
		}
		if !res.whole {
			break
		}
		level = nextLevel
	}
	if !res.whole && res.broken == kept && res.stuck == "" {
		m.walk(&res, first, limit/2, seen)
	}
	res.states, res.asked, res.cut, res.elapsed = len(seen), m.asked, m.cut, time.Since(began)
	return res
}

// walk goes random ways from first to an end, as breadth first search with a
// bound does not come so far, until it has visited n states more or has begun
// as many ways as a bound allows. The ways are the same in each run.
func (m *model) walk(res *result, first state, n int, seen map[uint64]int32) {
	random := rand.New(rand.NewPCG(1, 2))
	most := len(seen) + n
	for ways := 0; len(seen) < most && ways < n/60; ways++ {
		s := first
		var path []int
		for range 400 {
			var next []state
			m.steps(&s, func(t state) { next = append(next, t) })
			if len(next) == 0 {
				break
			}
			path = append(path, random.IntN(len(next)))
			t := next[path[len(path)-1]]
			if b := m.check(&s, &t); b != kept {
				res.broken, res.trace = b, m.tell(first, path)
				return
			}
			m.canonical(&t)
			s = t
			if h := maphash.Comparable(seed, s); seen[h] == 0 {
				seen[h] = -1
			}
			if m.ended(&s) {
				res.ends++
				break
			}
		}
	}
}

// tell says in words what happens on a path from s: which of the steps that can
// be taken is taken, again and again.
func (m *model) tell(s state, path []int) (out []string) {
	m.telling = true
	defer func() { m.telling = false }()
	for _, p := range path {
		n, was := 0, s
		m.steps(&was, func(t state) {
			if n == p {
				out, s = append(out, m.told), t
			}
			n++
		})
		m.canonical(&s)
	}
	return out
}

// heal lets everything be well from s on: nothing more goes wrong, everybody
// is reachable, a person approves what waits for one. It returns what is broken on
// the way or why the end is not reached; "" when it is. It adds what happens to
// trace unless that is nil; good are states from which the end was reached.
func heal(cfg config, s state, decisions map[uint64]decision, good map[uint64]bool, trace *[]string) string {
	cfg.Crashes, cfg.Losses, cfg.Restarts, cfg.Rollbacks, cfg.Emergencies, cfg.Kills, cfg.Spoils, cfg.Epochs, cfg.Refuses = 0, 0, 0, 0, 0, 0, 0, 0, 0
	s.spent = budget{kill: s.spent.kill, emergency: s.spent.emergency}
	cfg.Stalls, cfg.Prompt = 9, true
	for f := range s.fol {
		s.fol[f].acks = [2]ack{} // they are sent again
	}
	m := &model{cfg: cfg, decisions: decisions, telling: trace != nil}
	var path []uint64
	broken := kept
	one := func(gen func(*state, func(state))) bool {
		var to state
		found := false
		gen(&s, func(t state) {
			if found {
				return
			}
			b := m.check(&s, &t)
			if m.canonical(&t); t != s {
				to, found = t, true
				if trace != nil {
					*trace = append(*trace, m.told)
				}
				if b != kept && broken == kept {
					broken = b
				}
			}
		})
		if found {
			s = to
		}
		return found
	}
	for round := range 80 {
		if p := s.mem.slots[0]; round == 40 && p != 0 && !s.accepted(p) {
			m.cfg.Emergencies = s.spent.emergency + 1 // a person sees that the primary is dead
			one(m.personSteps)
			m.cfg.Emergencies = 0
		}
		for range 60 {
			if broken != kept {
				return broken.String() + ", once everything is well again"
			}
			h := maphash.Comparable(seed, s)
			if good[h] || m.ended(&s) {
				for _, p := range path {
					good[p] = true
				}
				return ""
			}
			path = append(path, h)
			if one(m.vendorSteps) || one(func(s *state, e func(state)) { m.serverStage(s, e) }) || one(m.lineSteps) {
				continue
			}
			if !one(func(s *state, e func(state)) { m.serverSteps(s, 0, e) }) {
				break
			}
		}
		for f := range s.fol {
			if s.fol[f].on && s.mem.rot.open {
				one(func(s *state, e func(state)) { m.report(s, f, true, e) })
			}
		}
		for i := range s.rd {
			if s.rd[i].has != (frame{}) && (!m.cfg.unbound(i) || !s.mem.serves(s.rd[i].has.primary)) {
				one(func(s *state, e func(state)) { m.readerSteps(s, i, e) })
			}
		}
		m.approve(&s)
		one(m.tick)
	}
	f := m.facts(&s, 0)
	var why []string
	if s.mem.rot.open {
		a, g := m.next(m.rotation(&s.mem), f)
		why = append(why, fmt.Sprintf("the rotation is %s: %s, %s %v", rotStates[s.mem.rot.state], a.Do, g.Reason, g.Missing))
	}
	for n := num(1); n <= maxVersions; n++ {
		if s.mem.ret[n].open {
			a, g := m.nextRetire(s.mem.retirement(n), f)
			why = append(why, fmt.Sprintf("v%d is %s: %s, %s %v", n, s.mem.v[n].is(), a.Do, g.Reason, g.Missing))
		}
	}
	return "the end is not reached: " + strings.Join(why, "; ")
}

// serverStage is what servers have begun.
func (m *model) serverStage(s *state, emit func(state)) {
	for i := range s.srv {
		if s.srv[i].stage != 0 {
			m.serverSteps(s, i, emit)
		}
	}
}

// lineSteps are those of followers that are no report.
func (m *model) lineSteps(s *state, emit func(state)) {
	rotating := s.mem.rot.open
	u := *s
	u.mem.rot.open = false
	for f := range u.fol {
		m.followerSteps(&u, f, func(t state) { t.mem.rot.open = rotating; emit(t) })
	}
}

// ended reports whether there is nothing left to do but what only a person can.
func (m *model) ended(s *state) bool {
	if rotStates[s.mem.rot.state] == rotation.Stopped && s.mem.rot.open {
		return true
	}
	for k, x := range s.vendor {
		if x.label <= maxVersions && x.label != 0 && x.is != gone && x.is != lagging && !s.known(uint8(k+1)) && s.mem.next <= maxVersions && m.cfg.Can.List {
			return false // a stray
		}
	}
	if s.late != 0 || slices.ContainsFunc(s.mem.ret[:], func(r ret) bool { return r.open }) && (s.accepted(s.mem.slots[0]) || s.mem.next <= maxVersions) {
		return false
	}
	switch st := rotStates[s.mem.rot.state]; {
	case !s.accepted(s.mem.slots[0]) && s.mem.next <= maxVersions && st != rotation.Stopped:
		return false
	case !s.mem.rot.open, st == rotation.Stopped, st == rotation.WaitingKey:
		return true
	case s.mem.next > maxVersions && (st == rotation.Planned || !s.accepted(s.mem.slots[0])):
		return true // the model ends here
	}
	return false
}

// approve is a person who answers what is asked.
func (m *model) approve(s *state) {
	f := m.facts(s, 0)
	if s.mem.rot.open {
		if _, g := m.next(m.rotation(&s.mem), f); g.Person {
			s.mem.rot.approved = true
		}
	}
	for n := num(1); n <= maxVersions; n++ {
		if s.mem.ret[n].open {
			if _, g := m.nextRetire(s.mem.retirement(n), f); g.Person && g.Asks != "" {
				s.mem.ret[n].approved |= 1 << slices.Index(questions, g.Asks)
			}
		}
	}
}

func report(t *testing.T, r result) {
	t.Helper()
	whole := "all"
	if !r.whole {
		whole = "to the bound, then random ways"
	}
	t.Logf("%d states (%s) in %.1f s, %.0f a second; the rules were asked %d times; %d were let go on to their end, %d are one", r.states, whole, r.elapsed.Seconds(),
		float64(r.states)/r.elapsed.Seconds(), r.asked, r.healed, r.ends)
}

func story(r result) string {
	var b strings.Builder
	for i, l := range r.trace {
		fmt.Fprintf(&b, "%3d. %s\n", i+1, l)
	}
	return b.String()
}
