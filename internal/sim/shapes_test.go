package sim_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/internal/provider/spec"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

// shapes returns the drivers of the recipes in testdata: other ways in which the
// simulated vendor hands out keys. "sim-used-day" is "sim-used" whose vendor
// tells the last use by the day.
func shapes(t *testing.T) provider.Registry {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recipes in testdata: %v", err)
	}
	out := provider.Registry{}
	add := func(name, src string) {
		r, err := spec.Parse(name, []byte(src))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out[r.ID] = recipe.New(r)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		add(f, string(b))
		if filepath.Base(f) == "sim-used.yaml" {
			add(f, strings.NewReplacer("id: sim-used", "id: sim-used-day", "granularity: 10s", "granularity: 24h").Replace(string(b)))
		}
	}
	return out
}

// given manages the vendor's credential with a key that was made by hand.
func (w *world) given(k string) {
	w.t.Helper()
	w.configure()
	_, err := w.engine.Set(w.t.Context(), admin, cred, secret.Parts{"key": secret.FromString(k)}, key.OriginSet, "")
	w.must(err)
	w.settle(200)
}

// gate returns what the open rotation or, without one, the first retirement
// waits for.
func (w *world) gate() (g rotation.Gate) {
	w.view(func(tx store.Tx) {
		if r, err := tx.OpenRotation(cred); err == nil && r.State != rotation.Retiring {
			g = r.Gate
			return
		}
		if rets, err := tx.Retirements(cred); err == nil && len(rets) > 0 {
			g = rets[0].Gate
		}
	})
	return g
}

// asks goes on until a person is asked something that has text in it.
func (w *world) asks(limit int, text string) {
	w.t.Helper()
	w.until(limit, "asking about "+text, func(store.Tx) bool {
		g := w.gate()
		return g.Person && strings.Contains(g.Reason+strings.Join(g.Missing, " "), text)
	})
}

func (w *world) approve() {
	w.t.Helper()
	_, err := w.engine.Approve(w.t.Context(), admin, cred)
	w.must(err)
}

// served checks that the slots hold what is wanted, and that the vendor accepts
// every version in them.
func (w *world) served(primary key.Number) {
	w.t.Helper()
	w.view(func(tx store.Tx) {
		c, err := tx.Credential(cred)
		w.must(err)
		if c.Slots.Primary != primary {
			w.t.Errorf("the primary is %s, want %s: %s", c.Slots.Primary, primary, w.describe())
		}
	})
	for _, g := range w.gates {
		c, _ := g.credential()
		for _, n := range c.Slots.Served() {
			if o := g.send(w, c, n); o != "ok" {
				w.t.Errorf("%s answers %s", n, o)
			}
		}
	}
}

func (w *world) ends(n key.Number, want key.State) {
	w.t.Helper()
	if s := w.state(n); s != want {
		w.t.Errorf("%s is %s, want %s: %s", n, s, want, w.describe())
	}
}

func TestFixedKeysAreMadeAnewInTurn(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 2)
	w.shape = "sim-two-slot"
	w.given(w.vendor.IssueSlot("key1"))
	w.vendor.IssueSlot("key2") // somebody's
	w.rotate(engine.RotateOptions{})
	w.asks(50, "key2 at the vendor was not made by Keybaton")
	w.approve()
	w.asks(600, "approve") // v1 was pasted: it may live elsewhere
	w.approve()
	w.settle(600)
	w.ends(1, key.StateRevoked)
	w.served(2)
	for n := key.Number(3); n < 6; n++ { // from here on the keys are ours, and nobody is asked
		w.rotate(engine.RotateOptions{})
		w.settle(600)
		w.ends(n-1, key.StateRevoked)
		w.served(n)
	}
}

func TestAFixedKeyThatIsNotKnownIsNotGuessed(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.shape = "sim-two-slot"
	k := w.vendor.IssueSlot("key2")
	w.vendor.FailKeys(1, 500) // it cannot be looked up when it is set
	w.given(k)
	w.rotate(engine.RotateOptions{})
	w.asks(50, "--vendor-id")
	w.goOn(50, time.Second)
	w.served(1)
}

func TestALostAnswerOfAFixedKeyIsOverwritten(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.shape = "sim-two-slot"
	w.policy.Unverified = rotation.UnverifiedProceed
	w.given(w.vendor.IssueSlot("key1"))
	w.vendor.LoseCreateAnswers(1)
	w.rotate(engine.RotateOptions{})
	w.asks(50, "key2")
	w.approve()
	w.settle(900)
	w.ends(1, key.StateRevoked)
	w.ends(2, key.StateVoid)
	w.served(3)
}

func TestAKeyThatIsReplacedWithGrace(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{Grace: time.Minute}, 2)
	w.shape = "sim-roll-grace"
	w.given(w.vendor.IssueOne())
	for n := key.Number(2); n < 5; n++ {
		w.rotate(engine.RotateOptions{})
		w.settle(900)
		w.ends(n-1, key.StateRevoked)
		w.served(n)
	}
}

func TestAGraceThatEndsDuringASlowRotation(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{Grace: time.Minute}, 2)
	w.shape = "sim-roll-grace"
	w.given(w.vendor.IssueOne())
	w.policy.Soak.For, w.policy.Quiet = 5*time.Minute, 5*time.Minute
	w.configure()
	w.gates[1].cut = true // it holds the old key only, and is waited for in vain
	w.rotate(engine.RotateOptions{})
	w.until(600, "promoted", func(tx store.Tx) bool {
		c, err := tx.Credential(cred)
		return err == nil && c.Slots.Primary == 2
	})
	w.gates[1].cut = false // back before the old key ends
	w.settle(3000)
	w.ends(1, key.StateRevoked)
	w.served(2)
}

func TestALostAnswerOfAReplacementIsForAPerson(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{Grace: time.Minute}, 1)
	w.shape = "sim-roll-grace"
	w.given(w.vendor.IssueOne())
	w.vendor.LoseCreateAnswers(1)
	w.rotate(engine.RotateOptions{})
	w.asks(50, "rolling again may end it at once")
	w.outage = true
	w.until(600, "rolled again by itself", func(tx store.Tx) bool {
		c, err := tx.Credential(cred)
		return err == nil && c.Slots.Primary == 3
	})
	w.settle(600)
	w.ends(1, key.StateRevoked)
	w.served(3)
}

func TestAKeyThatIsReplacedAtOnceNeedsConsent(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 2)
	w.shape = "sim-roll-hard"
	w.given(w.vendor.IssueOne())
	w.rotate(engine.RotateOptions{})
	w.asks(50, "refused from then until")
	w.goOn(60, time.Second)
	w.served(1) // nothing is done before somebody says so
	w.outage = true
	w.approve()
	w.settle(600)
	w.ends(1, key.StateRevoked)
	w.served(2)
	w.vendor.LoseCreateAnswers(1)
	w.rotate(engine.RotateOptions{})
	w.asks(50, "refused from then until")
	w.approve()
	w.settle(600)
	w.ends(2, key.StateRevoked)
	w.served(4)
	w.rotate(engine.RotateOptions{Emergency: true}) // is consent by itself
	w.settle(600)
	w.ends(4, key.StateRevoked)
	w.served(5)
}

func TestOtherShapes(t *testing.T) {
	for shape, fault := range map[string]func(v *vendortest.Vendor){
		"sim-two-step":   nil,
		"sim-no-disable": nil,
		"sim-200":        func(v *vendortest.Vendor) { v.SetAlways200(true) },
		"simulated":      func(v *vendortest.Vendor) { v.SetCreateDelay(0, 2*time.Second, 4*time.Second) },
		"sim-used":       func(v *vendortest.Vendor) { v.SetClockSkew(-time.Hour) },
	} {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, &plan{}, vendortest.Config{Nodes: 3}, 2)
			w.shape = shape
			if shape == "sim-200" {
				fault(w.vendor)
			}
			w.setUp()
			if fault != nil {
				fault(w.vendor)
			}
			for n := key.Number(2); n < 5; n++ {
				w.rotate(engine.RotateOptions{})
				w.settle(900)
				w.ends(n-1, key.StateRevoked)
			}
			w.served(4)
			w.finish()
		})
	}
}

func TestALostAnswerWhereNothingCanBeListed(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.shape = "sim-no-list"
	w.setUp()
	w.vendor.LoseCreateAnswers(1)
	w.rotate(engine.RotateOptions{})
	w.asks(50, "look at the vendor for a key named keybaton-billing-api-prod-v2-")
	keys := w.vendor.Keys()
	w.vendor.RevokeKey(keys[len(keys)-1].ID) // a person looks
	w.approve()
	w.settle(600)
	w.ends(1, key.StateRevoked)
	w.served(3)
}

func TestTheSecondCallOfACreationIsLost(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.shape = "sim-two-step"
	w.setUp()
	w.vendor.RefuseCreates(1, 500) // as good as lost: it may have been done
	w.rotate(engine.RotateOptions{})
	w.settle(900)
	w.ends(1, key.StateRevoked)
	w.finish()
}

// TestACopyElsewhereIsSeenByTheVendor pastes a key that somebody else uses too.
// It is not revoked before the vendor has not seen it used for long enough.
func TestACopyElsewhereIsSeenByTheVendor(t *testing.T) {
	for shape, c := range map[string]struct {
		tick  time.Duration // between the other's uses
		uses  int
		quiet time.Duration // unused at least for so long before it is revoked
	}{
		"sim-used":     {3 * time.Second, 40, 10 * time.Second},
		"sim-used-day": {2 * time.Hour, 36, 6 * time.Hour},
	} {
		for _, skew := range []time.Duration{0, -3 * time.Hour, 3 * time.Hour} {
			t.Run(shape+" "+skew.String(), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, &plan{}, vendortest.Config{}, 1)
				w.shape = shape
				w.vendor.SetClockSkew(skew)
				if shape == "sim-used-day" {
					w.vendor.SetUsedGrain(24 * time.Hour)
				}
				id, k := w.vendor.Issue("by hand")
				w.given(k)
				w.adopt(1, id)
				w.rotate(engine.RotateOptions{})
				w.until(900, "soaked", openIn(rotation.Quieting))
				w.policy.Quiet = c.quiet
				w.configure()
				w.goOn(100, c.quiet/50)
				w.until(900, "v1 out of its slot", func(store.Tx) bool { return w.state(1) == key.StateRetired })
				for range c.uses {
					w.useElsewhere(k)
					w.goOn(1, c.tick)
				}
				w.ends(1, key.StateRetired)
				last := w.clock.Add(-c.tick)
				for w.state(1) == key.StateRetired {
					w.goOn(1, c.tick/3)
					if w.clock.Sub(last) > 100*c.tick {
						t.Fatalf("it is never revoked: %s", w.describe())
					}
				}
				if unused := w.clock.Sub(last); unused < c.quiet {
					t.Errorf("it was given up %s after its last use, want %s at least", unused, c.quiet)
				}
				w.settle(900)
				w.ends(1, key.StateRevoked)
			})
		}
	}
}

func TestALastUseThatTheVendorDoesNotTell(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.shape = "sim-used"
	w.vendor.SetUsedMissing(true)
	id, k := w.vendor.Issue("by hand")
	w.given(k)
	w.adopt(1, id)
	w.rotate(engine.RotateOptions{})
	w.asks(900, "the vendor does not say when it was used last")
	w.goOn(50, time.Minute)
	w.ends(1, key.StateRetired)
	w.approve()
	w.settle(600)
	w.ends(1, key.StateRevoked)
}

func TestADisableThatIsNotEnforcedTeachesNothing(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.vendor.SetLyingDisable(true)
	id, k := w.vendor.Issue("by hand")
	w.given(k)
	w.adopt(1, id)
	w.rotate(engine.RotateOptions{})
	w.asks(900, "still accepts it, so nothing is learned by watching")
	w.goOn(50, time.Minute)
	w.ends(1, key.StateDisabled)
	w.approve()
	w.settle(600)
	w.ends(1, key.StateRevoked)
}

func TestAVendorWithRoomForOneKeyIsNotEmptiedFirst(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{MaxActive: 1}, 1)
	w.shape = "sim-no-disable"
	w.setUp()
	w.rotate(engine.RotateOptions{})
	w.goOn(200, time.Second)
	if g := w.gate(); !strings.Contains(g.Reason, "no room for another key") {
		t.Errorf("it waits for %q, want it to say that there is no room", g.Reason)
	}
	w.served(1)
	_, err := w.engine.Rollback(t.Context(), admin, cred, "")
	w.must(err)
	w.settle(600)
	w.finish()
}

func TestADuplicateSecretStopsTheRotation(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 1)
	w.setUp()
	w.vendor.SetDuplicateSecrets(true)
	w.rotate(engine.RotateOptions{})
	w.until(100, "stopped", func(tx store.Tx) bool {
		r, err := tx.OpenRotation(cred)
		return err == nil && (r.State == rotation.Stopped || strings.Contains(r.Gate.Reason, "the present key has"))
	})
	w.goOn(50, time.Second)
	w.served(1)
}

// TestKeysThatDieBehindOurBack revokes the old or the new key at the vendor in
// every state of a rotation: callers see nothing, and it ends well.
func TestKeysThatDieBehindOurBack(t *testing.T) {
	for _, at := range []rotation.State{rotation.Proving, rotation.Distribute, rotation.Soaking, rotation.Quieting} {
		for _, old := range []bool{true, false} {
			if at == rotation.Proving && old {
				continue // no other key is out yet: callers must see it
			}
			name := map[bool]string{true: "old", false: "new"}[old]
			t.Run(string(at)+" "+name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, &plan{}, vendortest.Config{}, 2)
				w.setUp()
				w.rotate(engine.RotateOptions{})
				w.until(600, string(at), openIn(at))
				w.goOn(1, 10*time.Millisecond) // consumers have what was handed out
				n := map[bool]int{true: 0, false: 1}[old]
				w.vendor.RevokeKey(w.vendor.Keys()[n].ID)
				if at == rotation.Quieting && !old {
					// It was the primary for long: the fallback serves, and is kept as long
					// as it is needed.
					w.goOn(300, time.Second)
					w.ends(1, key.StateFallback)
					return
				}
				w.settle(3000)
				primary := key.Number(2)
				if !old {
					primary = 1
				}
				w.served(primary)
			})
		}
	}
}
