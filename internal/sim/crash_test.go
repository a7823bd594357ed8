package sim_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
	"github.com/keybaton/keybaton/vendortest"
)

// TestTheProcessDiesAtEveryEffect runs a rotation whose process dies at its
// k-th effect, before or after it, for k = 0, 1, 2 … until none is left. An
// effect is a commit or a call to the vendor. Another process opens the store
// and goes on; callers see no failure, and in the end the store and the
// vendor's own list agree.
func TestTheProcessDiesAtEveryEffect(t *testing.T) {
	for _, after := range []bool{false, true} {
		side := map[bool]string{false: "before", true: "after"}[after]
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			for k := 0; ; k += stride {
				p := &plan{at: k, after: after}
				ok := t.Run(fmt.Sprintf("effect %d", k), func(t *testing.T) { rotateOnce(t, "", p) })
				if !ok || p.fired == "" {
					if k < 20 {
						t.Errorf("only %d effects were found", k)
					}
					return
				}
			}
		})
	}
}

// TestTheProcessDiesOnPostgreSQL does the same at every few effects, with the
// store in PostgreSQL.
func TestTheProcessDiesOnPostgreSQL(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(map[bool]string{false: "before", true: "after"}[after], func(t *testing.T) {
			t.Parallel()
			for k := 0; ; k += 7 * stride {
				p := &plan{at: k, after: after}
				ok := t.Run(fmt.Sprintf("effect %d", k), func(t *testing.T) { rotateOnce(t, pgtest.Database(t), p) })
				if !ok || p.fired == "" {
					return
				}
			}
		})
	}
}

func rotateOnce(t *testing.T, database string, p *plan) {
	w := newWorldAt(t, database, p, vendortest.Config{PageSize: 2}, 1)
	w.policy.Spare = true
	w.setUp()
	p.armed = true
	rotate := func() {
		_, err := w.engine.Rotate(t.Context(), admin, cred, engine.RotateOptions{})
		w.must(err)
	}
	if w.survive(rotate) && w.idle() {
		rotate() // who asked got no answer, and asks again
	}
	w.settle(600)
	p.armed = false
	w.finish()
	w.view(func(tx store.Tx) {
		rs, err := tx.Rotations(cred, 20)
		w.must(err)
		for _, r := range rs {
			if !r.State.Ended() {
				t.Errorf("rotation %s is %s", r.ID, r.State)
			}
		}
		v, err := tx.Version(key.VersionID{Credential: cred, Number: 1})
		w.must(err)
		if v.State != key.StateRevoked {
			t.Errorf("the old key is %s, want it proven dead", v.State)
		}
	})
}

// TestEveryShapeSurvives does the same at every few effects, and loses the
// answer to every single call, for each other way in which a vendor hands out
// keys.
func TestEveryShapeSurvives(t *testing.T) {
	for i, shape := range []string{"sim-two-slot", "sim-roll-grace", "sim-roll-hard", "sim-two-step", "sim-no-list", "sim-no-disable", "sim-used", "sim-200"} {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			for _, mode := range []string{"before", "after", "lost answer"} {
				step, k := 11*stride, i
				if shape == "sim-roll-grace" {
					step = 67 * stride // most of it waits for the grace to end
				}
				if mode == "lost answer" {
					step, k = (stride+1)/2, 0
				}
				for ; ; k += step {
					p := &plan{at: k, after: mode == "after", lost: mode == "lost answer"}
					ok := t.Run(fmt.Sprintf("%s %d", mode, k), func(t *testing.T) { shapeOnce(t, p, shape) })
					if !ok || p.fired == "" {
						break
					}
				}
			}
		})
	}
}

// shapeOnce rotates twice; a person answers what is asked.
func shapeOnce(t *testing.T, p *plan, shape string) {
	w := newWorld(t, p, vendortest.Config{PageSize: 2, Grace: time.Minute}, 1)
	w.shape = shape
	rolls, fixed := strings.HasPrefix(shape, "sim-roll"), shape == "sim-two-slot"
	w.outage = rolls // replaced at once, or after an answer that was lost
	switch {
	case rolls:
		w.given(w.vendor.IssueOne())
	case fixed:
		w.given(w.vendor.IssueSlot("key1"))
	default:
		w.vendor.SetAlways200(shape == "sim-200")
		w.setUp()
	}
	for range 2 {
		p.armed = true
		rotate := func() {
			_, err := w.engine.Rotate(w.t.Context(), admin, cred, engine.RotateOptions{})
			w.must(err)
		}
		if w.survive(rotate) && w.idle() {
			rotate()
		}
		w.answering(3000)
	}
	p.armed = false
	w.view(func(tx store.Tx) {
		c, err := tx.Credential(cred)
		w.must(err)
		w.served(c.Slots.Primary)
		vs, err := tx.Versions(cred)
		w.must(err)
		for _, v := range vs {
			if !v.State.Terminal() && !c.Slots.Has(v.ID.Number) && v.State != key.StateUnknown {
				t.Errorf("%s is %s: %s", v.ID, v.State, w.describe())
			}
		}
	})
	if !rolls && !fixed && shape != "sim-no-list" {
		w.finish()
	}
}

// answering settles, and answers what a person is asked as one would.
func (w *world) answering(limit int) {
	w.t.Helper()
	for range limit {
		w.step()
		w.tick(300 * time.Millisecond)
		if w.idle() {
			return
		}
		if g := w.gate(); g.Person {
			if text := strings.Join(g.Missing, " "); strings.Contains(text, "look at the vendor") {
				for _, k := range w.vendor.Keys() {
					if !k.Revoked && strings.Contains(text, k.Name) {
						w.vendor.RevokeKey(k.ID)
					}
				}
			}
			if w.survive(func() { _, _ = w.engine.Approve(w.t.Context(), admin, cred) }) {
				continue
			}
		}
	}
	w.t.Fatalf("it does not settle: %s", w.describe())
}

// TestTheProcessDiesOnOtherWays does the same, at every few effects, to a
// rotation that is taken back while it soaks, and to an emergency with a spare.
func TestTheProcessDiesOnOtherWays(t *testing.T) {
	ways := map[string]func(w *world){
		"rollback": func(w *world) {
			ask := func() {
				_, err := w.engine.Rollback(w.t.Context(), admin, cred, "")
				w.must(err)
			}
			w.rotate(engine.RotateOptions{})
			w.until(200, "soaking", openIn(rotation.Soaking))
			w.plan.armed = true
			if w.survive(ask) {
				w.view(func(tx store.Tx) {
					if openIn(rotation.Soaking)(tx) {
						w.plan.armed = false
					}
				})
				if !w.plan.armed {
					ask()
				}
			}
			w.settle(900)
			if s := w.state(1); s != key.StatePrimary {
				w.t.Errorf("v1 is %s, want it back: %s", s, w.describe())
			}
		},
		"emergency": func(w *world) {
			ask := func() { w.rotate(engine.RotateOptions{Emergency: true}) }
			w.plan.armed = true
			if w.survive(ask) && w.idle() {
				ask()
			}
			w.settle(900)
			if s := w.state(1); s != key.StateRevoked {
				w.t.Errorf("the leaked v1 is %s, want it revoked: %s", s, w.describe())
			}
		},
	}
	for name, way := range ways {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s after=%v", name, after), func(t *testing.T) {
				t.Parallel()
				for k := 0; ; k += 5 * stride {
					p := &plan{at: k, after: after}
					ok := t.Run(fmt.Sprintf("effect %d", k), func(t *testing.T) {
						w := newWorld(t, p, vendortest.Config{PageSize: 2}, 1)
						w.policy.Spare = name == "emergency"
						w.setUp()
						way(w)
						p.armed = false
						w.finish()
					})
					if !ok || p.fired == "" {
						return
					}
				}
			})
		}
	}
}

// TestTheVendorMisbehaves lets one rotation go through each fault that the
// simulated vendor has, and wants the outcome that a person would want.
func TestTheVendorMisbehaves(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(v *vendortest.Vendor)
		mend  func(v *vendortest.Vendor) // after a while
		want  key.State                  // of the old key
	}{
		"a lost answer is looked for, its key revoked, and another issued": {func(v *vendortest.Vendor) { v.LoseCreateAnswers(1) }, nil, key.StateRevoked},
		"a dropped request is tried again":                                 {func(v *vendortest.Vendor) { v.DropCreates(2) }, nil, key.StateRevoked},
		"a refused create is tried again":                                  {func(v *vendortest.Vendor) { v.RefuseCreates(1, 503) }, nil, key.StateRevoked},
		"a throttled key API is waited for":                                {func(v *vendortest.Vendor) { v.ThrottleKeys(3, 2*time.Second) }, nil, key.StateRevoked},
		"a failing revoke is tried again":                                  {func(v *vendortest.Vendor) { v.FailRevokes(3, 500) }, nil, key.StateRevoked},
		"a lost revoke answer is tried again":                              {func(v *vendortest.Vendor) { v.LoseRevokeAnswers(1) }, nil, key.StateRevoked},
		"a revoke that lies is not proof":                                  {func(v *vendortest.Vendor) { v.SetLyingRevoke(true); v.SetLyingDisable(true) }, nil, key.StateUnproven},
		"a vendor that is down is waited for":                              {func(v *vendortest.Vendor) { v.FailKeys(8, 503) }, nil, key.StateRevoked},
		"a new key that spreads slowly is early, not bad":                  {func(v *vendortest.Vendor) { v.SetCreateDelay(3 * time.Second) }, nil, key.StateRevoked},
		"a revoked key that lives on for a while is proven dead later":     {func(v *vendortest.Vendor) { v.SetRevokeDelay(800 * time.Millisecond) }, nil, key.StateRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, &plan{}, vendortest.Config{}, 2)
			w.setUp()
			c.fault(w.vendor)
			if _, err := w.engine.Rotate(t.Context(), admin, cred, engine.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
			w.settle(4000)
			w.view(func(tx store.Tx) {
				v, err := tx.Version(key.VersionID{Credential: cred, Number: 1})
				w.must(err)
				if v.State != c.want {
					t.Errorf("the old key is %s, want %s: %s", v.State, c.want, w.describe())
				}
			})
			if c.want == key.StateRevoked {
				w.finish()
			}
		})
	}
}

func TestACutOffGatewayIsWaitedFor(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 2)
	w.setUp()
	w.gates[1].cut = true
	if _, err := w.engine.Rotate(t.Context(), admin, cred, engine.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		w.step()
		w.tick(time.Second)
	}
	w.view(func(tx store.Tx) {
		r, err := tx.OpenRotation(cred)
		w.must(err)
		if r.State != "distributing" || len(r.Gate.Missing) != 1 {
			t.Errorf("got %s, gate %+v; want it to wait in distribute for gw-1", r.State, r.Gate)
		}
	})
	w.gates[1].cut = false
	w.settle(300)
	w.finish()
}

func TestAForgottenConsumerIsNotWaitedFor(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 2)
	w.setUp()
	gone := w.gates[1]
	w.gates = w.gates[:1]
	if _, err := w.engine.Rotate(t.Context(), admin, cred, engine.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		w.step()
		w.tick(time.Second)
	}
	if w.idle() {
		t.Fatal("it went on without gw-1, which may still hold the old key")
	}
	if n, err := w.engine.Forget(t.Context(), admin, gone.name); err != nil || n == 0 {
		t.Fatalf("forget: got %d holds and %v", n, err)
	}
	w.desk.Forgotten(gone.name)
	w.settle(300)
	w.finish()
}
