package sim_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

// TestManyWriters lets people set, rotate, roll back, call an emergency, apply,
// pause, resume, approve and revoke through one server while another works: what
// they ask comes between any two effects of the engine, also between the facts
// that it decides from and the commit that follows. Whatever the order, callers
// see no failure, what was answered is in the store, and no key is stranded.
func TestManyWriters(t *testing.T) {
	for name, seeds := range map[string]int{"sqlite": max(4, 40/stride), "postgres": max(2, 6/stride)} {
		for seed := range seeds {
			t.Run(fmt.Sprintf("%s %d", name, seed), func(t *testing.T) {
				t.Parallel()
				at := ""
				if name == "postgres" {
					at = pgtest.Database(t)
				}
				manyWriters(t, at, uint64(seed))
			})
		}
	}
}

func manyWriters(t *testing.T, database string, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	p := &plan{}
	w := newWorldAt(t, database, p, vendortest.Config{}, 2)
	w.policy.Spare = seed%2 == 0
	w.policy.Unverified = rotation.UnverifiedProceed
	w.setUp()
	if seed%3 == 0 {
		w.policy.Every, w.policy.Jitter = 30*time.Second, time.Nanosecond
		w.configure()
	}
	said := map[key.Number]bool{} // versions that were answered to somebody
	begun := map[string]bool{}
	act := func() {
		r, err := w.ask(rnd, said)
		if err != nil && !errors.Is(err, key.ErrConflict) && !errors.Is(err, key.ErrNotFound) && !errors.Is(err, key.ErrInvalid) && !errors.Is(err, key.ErrStale) {
			t.Errorf("refused without a reason that fits: %v", err)
		}
		if err == nil && r.ID != "" {
			begun[r.ID] = true
		}
	}
	p.between = func() {
		if rnd.IntN(12) == 0 {
			act()
		}
	}
	for range 120 {
		w.step()
		w.tick(300 * time.Millisecond)
	}
	p.between = nil
	w.policy.Every, w.policy.Spare = 0, false // a spare that somebody took back is not made again at once
	w.configure()
	if _, err := w.engine.Resume(t.Context(), admin, cred); err != nil && !errors.Is(err, key.ErrConflict) {
		t.Fatal(err)
	}
	w.answering(3000)
	w.view(func(tx store.Tx) {
		for n := range said {
			if _, err := tx.Version(key.VersionID{Credential: cred, Number: n}); err != nil {
				t.Errorf("%s was answered and is not there: %v", n, err)
			}
		}
		for id := range begun {
			r, err := tx.Rotation(id)
			if err != nil || !r.State.Ended() {
				t.Errorf("rotation %s was answered: %s, %v", id, r.State, err)
			}
		}
	})
	w.finish()
}

// ask does one thing that a person may ask for, through the other server.
func (w *world) ask(rnd *rand.Rand, said map[key.Number]bool) (r rotation.Rotation, err error) {
	ctx := w.t.Context()
	person := access.Principal{Name: "somebody", Role: access.RoleAdmin}
	switch n := rnd.IntN(20); {
	case n < 4:
		return w.other.Rotate(ctx, person, cred, engine.RotateOptions{})
	case n < 6:
		return w.other.Rotate(ctx, person, cred, engine.RotateOptions{Emergency: true})
	case n < 9:
		return w.other.Rollback(ctx, person, cred, "")
	case n < 12:
		id, k := w.vendor.Issue("by hand")
		res, err := w.other.Set(ctx, person, cred, secret.Parts{"key": secret.FromString(k)}, key.OriginSet, "")
		if err != nil {
			w.vendor.RevokeKey(id)
			return r, err
		}
		said[res.Version] = true
		_, err = w.other.Adopt(ctx, person, cred, engine.AdoptOptions{Version: res.Version, VendorID: id})
		return r, err
	case n < 14:
		return w.other.Approve(ctx, person, cred)
	case n < 15:
		return w.other.Pause(ctx, person, cred)
	case n < 17:
		return w.other.Resume(ctx, person, cred)
	case n < 18:
		w.configure()
		return r, nil
	default:
		return r, w.other.Revoke(ctx, person, key.VersionID{Credential: cred, Number: key.Number(1 + rnd.IntN(6))})
	}
}
