package sim_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

func (w *world) rotate(o engine.RotateOptions) {
	w.t.Helper()
	_, err := w.engine.Rotate(w.t.Context(), admin, cred, o)
	w.must(err)
}

// goOn lets n ticks pass.
func (w *world) goOn(n int, d time.Duration) {
	for range n {
		w.step()
		w.tick(d)
	}
}

// until goes on until ok, for at most limit ticks.
func (w *world) until(limit int, what string, ok func(store.Tx) bool) {
	w.t.Helper()
	for range limit {
		done := false
		w.view(func(tx store.Tx) { done = ok(tx) })
		if done {
			return
		}
		w.goOn(1, 200*time.Millisecond)
	}
	w.t.Fatalf("never %s: %s", what, w.describe())
}

func (w *world) state(n key.Number) (s key.State) {
	w.view(func(tx store.Tx) {
		v, err := tx.Version(key.VersionID{Credential: cred, Number: n})
		if !errors.Is(err, key.ErrNotFound) {
			w.must(err)
		}
		s = v.State
	})
	return s
}

func openIn(s rotation.State) func(store.Tx) bool {
	return func(tx store.Tx) bool {
		r, err := tx.OpenRotation(cred)
		return err == nil && r.State == s
	}
}

func TestALiveConsumerIsNotForgotten(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.setUp()
	if _, err := w.engine.Forget(t.Context(), admin, "gw-0"); !errors.Is(err, key.ErrConflict) {
		t.Fatalf("forgetting a live gateway: got %v, want it refused", err)
	}
	// Cut off and given up for gone, it comes back: it holds again what it is
	// given, and is waited for again.
	w.gates[0].cut = true
	w.goOn(20, time.Second)
	if _, err := w.engine.Forget(t.Context(), admin, "gw-0"); err != nil {
		t.Fatal(err)
	}
	w.desk.Forgotten("gw-0")
	w.gates[0].cut = false
	w.goOn(2, time.Second)
	w.gates[0].cut = true
	w.rotate(engine.RotateOptions{})
	w.goOn(60, time.Second)
	if s := w.state(1); s != key.StatePrimary {
		t.Errorf("v1 is %s, want it kept for the gateway that came back: %s", s, w.describe())
	}
}

func TestAnOutageProvesNothing(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.setUp()
	w.vendor.SetLyingRevoke(true)
	w.vendor.SetLyingDisable(true)
	w.rotate(engine.RotateOptions{})
	w.until(400, "revoking", func(store.Tx) bool { return w.state(1) == key.StateRevoking })
	gates := w.gates
	w.gates = nil // callers would see the outage
	w.vendor.FailData(10, 401)
	w.settle(4000)
	w.gates = gates
	if s := w.state(1); s != key.StateUnproven {
		t.Errorf("v1 is %s, want revoke_unproven: the vendor refused everything for a while, and v1 lives", s)
	}
}

// A server that saw the new key refused before another server revoked it goes
// on where that one stopped. What it saw then neither proves the end nor hides
// the refusals since.
func TestWhatWasSeenBeforeDoesNotHideAnEnd(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.setUp()
	w.vendor.SetCreateDelay(time.Hour) // the new key is never accepted
	first, other := w.engine, w.config
	other.Owner = "another"
	w.rotate(engine.RotateOptions{})
	w.until(100, "proving", openIn(rotation.Proving))
	w.goOn(2, 200*time.Millisecond)
	w.engine = engine.New(other)
	w.until(400, "revoked by the other server", func(tx store.Tx) bool {
		r, err := tx.Retirement(key.VersionID{Credential: cred, Number: 2})
		return err == nil && r.State == key.StateRevoking && !r.Called.IsZero()
	})
	w.engine = first
	w.settle(600)
	if s := w.state(2); s != key.StateRevoked {
		t.Errorf("v2 is %s, want it proven dead", s)
	}
	w.finish()
}

func TestARotationThatWasTakenBackDoesNotBeginAgainAtOnce(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.policy.Every, w.policy.Jitter = time.Hour, time.Nanosecond
	w.setUp()
	w.clock = w.clock.Add(time.Hour)
	w.until(50, "begun by schedule", openIn(rotation.Proving))
	if _, err := w.engine.Rollback(t.Context(), admin, cred, ""); err != nil {
		t.Fatal(err)
	}
	w.goOn(300, time.Second)
	w.view(func(tx store.Tx) {
		rs, err := tx.Rotations(cred, 100)
		w.must(err)
		if len(rs) != 2 {
			t.Errorf("%d rotations, want the first and the one that was taken back", len(rs))
		}
	})
	w.finish()
}

func TestAnEmergencyOnALeakedSpare(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.policy.Spare = true
	w.setUp()
	w.rotate(engine.RotateOptions{})
	w.until(100, "proving", openIn(rotation.Proving))
	w.rotate(engine.RotateOptions{Emergency: true, Leaked: 2})
	w.settle(600)
	if s := w.state(2); s != key.StateRevoked {
		t.Errorf("the leaked spare is %s, want it revoked", s)
	}
	w.finish()
}

func TestAnEmergencyOnALostAnswerIsRefused(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.setUp()
	w.vendor.LoseCreateAnswers(1)
	w.vendor.SetListDelay(20 * time.Second) // it appears late
	w.rotate(engine.RotateOptions{})
	w.until(100, "an unknown version", func(store.Tx) bool { return w.state(2) == key.StateUnknown })
	if _, err := w.engine.Rotate(t.Context(), admin, cred, engine.RotateOptions{Emergency: true, Leaked: 2}); !errors.Is(err, key.ErrConflict) {
		t.Errorf("got %v, want it refused: nobody knows whether v2 exists", err)
	}
	w.settle(600)
	w.until(600, "the stray revoked", func(store.Tx) bool { return w.state(2) == key.StateRevoked })
	w.settle(600)
	w.finish()
}

func TestAFullVendorWithASpare(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{MaxActive: 2}, 1)
	w.policy.Spare = true
	w.setUp()
	w.rotate(engine.RotateOptions{})
	w.until(600, "the spare promoted", func(tx store.Tx) bool {
		c, err := tx.Credential(cred)
		return err == nil && c.Slots.Primary == 2
	})
	w.settle(3000)
	if s := w.state(1); s != key.StateRevoked {
		t.Errorf("v1 is %s, want it revoked and its room used for the next spare: %s", s, w.describe())
	}
	w.finish()
}

func TestSetDoesNotEndAnEmergency(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.setUp()
	w.vendor.SetCreateDelay(3 * time.Second)
	w.rotate(engine.RotateOptions{Emergency: true})
	w.until(100, "proving", openIn(rotation.Proving))
	_, k := w.vendor.Issue("by hand", "read", "write")
	if _, err := w.engine.Set(t.Context(), admin, cred, secret.Parts{"key": secret.FromString(k)}, key.OriginSet, ""); !errors.Is(err, key.ErrConflict) {
		t.Errorf("got %v, want it refused while the emergency is under way", err)
	}
	w.settle(600)
	if s := w.state(1); s != key.StateRevoked {
		t.Errorf("the leaked v1 is %s, want it revoked", s)
	}
}

// A spare that takes over was handed to whoever held the leaked key: it is
// replaced at once, and does not wait for the leaked one to be gone.
func TestASpareThatTookOverIsReplaced(t *testing.T) {
	for _, room := range []int{0, 3, 2} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			w := newWorld(t, &plan{}, vendortest.Config{MaxActive: room}, 2)
			w.policy.Spare = true
			w.setUp()
			w.rotate(engine.RotateOptions{Emergency: true})
			w.until(100, "the spare promoted", func(tx store.Tx) bool {
				c, err := tx.Credential(cred)
				return err == nil && c.Slots.Primary == 2
			})
			w.until(2000, "the bridge replaced", func(tx store.Tx) bool {
				c, err := tx.Credential(cred)
				return err == nil && c.Slots.Primary > 2
			})
			w.settle(3000)
			w.ends(1, key.StateRevoked)
			w.ends(2, key.StateRevoked)
			w.finish()
		})
	}
}

// An emergency names at its deadline who has not acknowledged, and revokes all
// the same.
func TestAnEmergencyNamesWhomItDoesNotWaitFor(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 2)
	w.policy.Deadline = time.Minute
	w.setUp()
	w.gates[1].cut = true
	w.rotate(engine.RotateOptions{Emergency: true})
	w.goOn(40, time.Second)
	if s := w.state(1); s != key.StateRetired {
		t.Fatalf("before the deadline the leaked v1 is %s, want it to wait for gw-1: %s", s, w.describe())
	}
	if g := w.gate(); len(g.Missing) != 1 || !strings.Contains(g.Missing[0], "gw-1") {
		t.Errorf("it waits for %v, want gw-1", g.Missing)
	}
	w.outage = true // of gw-1, which was given up
	w.goOn(60, time.Second)
	w.ends(1, key.StateRevoked)
	w.view(func(tx store.Tx) {
		es, err := tx.Entries(1, 10_000)
		w.must(err)
		for _, e := range es {
			if e.Version == 1 && strings.Contains(e.Detail["why"], "not waited for") && strings.Contains(e.Detail["why"], "gw-1") {
				return
			}
		}
		t.Error("no audit entry names who was not waited for")
	})
}
