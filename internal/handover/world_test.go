package handover_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/handover"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/store"
)

// world is one gateway and two servers on one store, with a network that
// delays, repeats and reorders between them, and a process that dies.
type world struct {
	*house
	r     *rand.Rand
	desks []*handover.Desk
	by    access.Principal

	boots  []string        // the last one lives; each took over the cache of the one before
	gone   []string        // boots that the servers may still count
	frame  link.Frame      // in use, and in the cache
	pins   []key.VersionID // of running requests
	frames []link.Frame    // on the way to the gateway
	acks   []evidence.Ack  // on the way to a server
	log    []string
}

func (w *world) boot() string { return w.boots[len(w.boots)-1] }

func (w *world) desk() *handover.Desk { return w.desks[w.r.IntN(len(w.desks))] }

func (w *world) say(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

// promise puts on the way what the gateway can promise now.
func (w *world) promise() {
	if w.frame.Revision.IsZero() {
		return
	}
	for _, old := range append([]string{""}, w.gone...) {
		w.acks = append(w.acks, evidence.Ack{Boot: w.boot(), Replaces: old, Revision: w.frame.Revision, Pinned: slices.Clone(w.pins)})
	}
}

func (w *world) step() {
	switch w.r.IntN(10) {
	case 0, 1:
		id := cred([]string{"a", "b"}[w.r.IntN(2)], "prod")
		p, f := key.Number(1+w.r.IntN(4)), key.Number(w.r.IntN(5))
		if f == p {
			f = 0
		}
		rev := w.install(id, p, f)
		w.say("%s: %s has %s, %s", rev, id, p, f)
	case 2, 3:
		f, err := w.desk().Frame(w.t.Context(), w.by, w.boot(), w.frame.Revision)
		if err != nil {
			w.t.Fatal(err)
		}
		if !f.Full && f.Revision != w.frame.Revision && len(w.frames) > 0 {
			return // a difference comes on the stream it belongs to, or not at all
		}
		w.frames = append(w.frames, f)
		w.say("sent %s %v", f.Revision, f.Versions())
	case 4, 5:
		if len(w.frames) == 0 {
			return
		}
		f := w.frames[0]
		w.frames = w.frames[1:]
		if f.Revision.Compare(w.frame.Revision) < 0 || !f.Full && w.frame.Revision.IsZero() {
			return
		}
		old := w.frame.Versions()
		w.frame = w.frame.Apply(f)
		for _, v := range old {
			if !slices.Contains(w.frame.Versions(), v) && !slices.Contains(w.pins, v) && w.r.IntN(2) == 0 {
				w.pins = append(w.pins, v)
			}
		}
		w.say("uses %s %v, pins %v", w.frame.Revision, w.frame.Versions(), w.pins)
		w.promise()
	case 6:
		if len(w.pins) > 0 {
			w.pins = slices.Delete(w.pins, 0, 1)
			w.say("pins %v", w.pins)
			w.promise()
		}
	case 7:
		for range 2 {
			if len(w.acks) > 0 {
				w.deliver(w.r.IntN(len(w.acks)), w.r.IntN(4) > 0)
			}
		}
	case 8: // the last request of a process that is gone
		_, err := w.desk().Frame(w.t.Context(), w.by, w.boots[w.r.IntN(len(w.boots))], key.Revision{})
		if err != nil && !errors.Is(err, key.ErrConflict) {
			w.t.Fatal(err)
		}
	case 9:
		switch w.r.IntN(4) {
		case 0:
			w.gone = append(w.gone, w.boot())
			w.boots = append(w.boots, fmt.Sprintf("boot-%d", len(w.boots)))
			w.frames, w.pins = nil, nil
			w.say("restarted as %s", w.boot())
			w.promise()
		case 1:
			w.by.Grants = []access.Grant{grant("prod", []string{"*", "a"}[w.r.IntN(2)])}
			w.update(func(tx store.Tx) error { _, err := tx.TouchAll(); return err })
			w.say("%s: granted %v", w.store.Revision(), w.by.Grants)
		}
	}
}

func (w *world) deliver(i int, last bool) {
	a := w.acks[i]
	if last {
		w.acks = slices.Delete(w.acks, i, i+1)
	}
	err := w.desk().Ack(w.t.Context(), w.by, a)
	if err != nil && (a.Boot == w.boot() || !errors.Is(err, key.ErrConflict)) {
		w.t.Fatal(err)
	}
	if a.Boot == w.boot() {
		w.gone = slices.DeleteFunc(w.gone, func(s string) bool { return s == a.Replaces })
	}
	w.say("acknowledged %+v", a)
}

// check proves that whatever the gateway has, or is about to get, is held by
// its process or by one that it took over.
func (w *world) check() {
	w.t.Helper()
	has := append(w.frame.Versions(), w.pins...)
	for _, f := range w.frames {
		if f.Revision.Compare(w.frame.Revision) >= 0 {
			has = append(has, f.Versions()...)
		}
	}
	hs := w.holds(w.by.Name)
	for _, v := range has {
		if !slices.ContainsFunc(hs, func(h evidence.Hold) bool {
			return h.Version == v && (h.Boot == w.boot() || slices.Contains(w.gone, h.Boot))
		}) {
			for _, l := range w.log {
				w.t.Log(l)
			}
			w.t.Fatalf("%s has %s, and nothing holds it: %+v", w.boot(), v, hs)
		}
	}
}

func TestWhoHasAKeyHoldsItWhateverHappens(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := newHouse(t)
			w := &world{house: h, r: rand.New(rand.NewPCG(seed, 7)), desks: []*handover.Desk{h.desk, h.newDesk(h.store)},
				by: gateway("gw", grant("prod", "*")), boots: []string{"boot-0"}}
			h.install(cred("a", "prod"), 1, 0)
			h.install(cred("b", "prod"), 1, 0)
			for range 150 {
				w.step()
				w.check()
			}
			// When all has arrived, what is served is held, and nothing else.
			w.frames, w.pins = nil, nil
			f, err := w.desk().Frame(t.Context(), w.by, w.boot(), key.Revision{})
			if err != nil {
				t.Fatal(err)
			}
			w.frame = f
			w.promise()
			for len(w.acks) > 0 {
				w.deliver(0, true)
				w.check()
			}
			want := []string{}
			for _, v := range f.Versions() {
				want = append(want, v.String())
			}
			slices.Sort(want)
			if got := h.held("gw", w.boot()); !slices.Equal(got, want) || len(h.holds("gw")) != len(want) {
				for _, l := range w.log {
					t.Log(l)
				}
				t.Fatalf("held %+v, want %v", h.holds("gw"), want)
			}
			if b := h.boots("gw"); len(b) != 1 {
				t.Fatalf("boots %+v", b)
			}
		})
	}
}
