package sim_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/vendortest"
)

// backup returns the store's file as it is now.
func (w *world) backup() []byte {
	w.t.Helper()
	w.must(w.store.Close())
	b, err := os.ReadFile(filepath.Join(w.dir, "keybaton.db"))
	w.must(err)
	w.start()
	return b
}

// restore puts a backup in the store's place and begins a new epoch.
func (w *world) restore(b []byte) {
	w.t.Helper()
	w.must(w.store.Close())
	w.must(os.WriteFile(filepath.Join(w.dir, "keybaton.db"), b, 0o600))
	w.epoch = true
	w.start()
	w.epoch = false
	w.must(w.engine.Refresh(w.t.Context()))
}

func (w *world) settled() {
	w.t.Helper()
	w.until(600, "settled", func(tx store.Tx) bool {
		c, err := tx.Credential(cred)
		w.must(err)
		r, err := tx.Revision()
		w.must(err)
		return c.Settled(r.Epoch)
	})
}

func TestARestoreOfWhatIsStillTrue(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 2)
	w.setUp()
	b := w.backup()
	w.goOn(20, time.Second)
	w.vendor.SetDown(true)
	gates := w.gates
	w.gates = nil // callers would see the outage
	w.restore(b)
	w.goOn(30, time.Second)
	w.vendor.SetDown(false)
	w.gates = gates
	w.goOn(1, time.Second)
	w.settled()
	w.rotate(engine.RotateOptions{})
	w.settle(900)
	w.ends(1, key.StateRevoked)
	w.finish()
}

// TestARestoreOfDeadKeys goes back to a backup whose primary was revoked since.
// Gateways keep the newer key, which the store does not know any more, until
// there is one that works and that the store knows.
func TestARestoreOfDeadKeys(t *testing.T) {
	w := newWorld(t, &plan{}, vendortest.Config{}, 2)
	w.shape = "sim-no-disable"
	w.setUp()
	b := w.backup()
	w.rotate(engine.RotateOptions{})
	w.settle(900)
	w.served(2)
	w.goOn(3, time.Second)
	w.restore(b)
	w.goOn(1, time.Second)
	w.settled()
	w.asks(900, "issued after the backup")
	w.goOn(30, time.Second)
	w.view(func(tx store.Tx) {
		c, err := tx.Credential(cred)
		w.must(err)
		if c.Slots.Primary < 1000 {
			t.Errorf("the primary is %s, want a number that was not given before: %s", c.Slots.Primary, w.describe())
		}
		rets, err := tx.Retirements(cred)
		w.must(err)
		if len(rets) != 1 || !rets[0].Restored {
			t.Errorf("retirements: %+v, want only that of the key issued after the backup", rets)
		}
	})
	w.approve()
	w.settle(900)
	w.finish()
}

// TestARestoreInTheMiddleOfARotation goes back to a backup in which the key
// that is the primary now was the fallback.
func TestARestoreInTheMiddleOfARotation(t *testing.T) {
	for _, at := range []rotation.State{rotation.Proving, rotation.Distribute, rotation.Soaking, rotation.Quieting, rotation.Retiring} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, &plan{}, vendortest.Config{}, 2)
			w.setUp()
			w.rotate(engine.RotateOptions{})
			w.until(900, string(at), openIn(at))
			b := w.backup()
			w.settle(900)
			w.served(2)
			w.goOn(3, time.Second)
			w.restore(b)
			w.goOn(1, time.Second)
			w.settled()
			w.settle(3000)
			w.finish()
		})
	}
}

// TestTheProcessDiesAfterARestore lets the process die at every few effects of
// bringing store and vendor to agree.
func TestTheProcessDiesAfterARestore(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(map[bool]string{false: "before", true: "after"}[after], func(t *testing.T) {
			t.Parallel()
			for k := 0; ; k += 3 * stride {
				p := &plan{at: k, after: after}
				w := newWorld(t, p, vendortest.Config{}, 1)
				w.shape = "sim-no-disable"
				w.setUp()
				b := w.backup()
				w.rotate(engine.RotateOptions{})
				w.settle(900)
				w.goOn(3, time.Second)
				w.restore(b)
				p.armed = true
				w.goOn(1, time.Second)
				w.settled()
				w.asks(900, "issued after the backup")
				p.armed = false
				w.approve()
				w.settle(900)
				w.finish()
				if p.fired == "" {
					return
				}
			}
		})
	}
}
