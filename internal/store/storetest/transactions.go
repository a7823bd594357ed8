package storetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

func testEmpty(t *testing.T, f *fixture) {
	same(t, "revision", f.Revision(), key.Revision{Epoch: 1})
	same(t, "revision in a view", read(t, f, store.Tx.Revision), key.Revision{Epoch: 1})
	same(t, "head", read(t, f, store.Tx.Head), audit.Head{})
	f.view(t, func(tx store.Tx) error {
		s, err1 := tx.Services()
		p, err2 := tx.Policies()
		c, err3 := tx.Credentials()
		v, err4 := tx.AllVersions()
		b, err5 := tx.AllSealed()
		d, err6 := tx.DataKeys()
		k, err7 := tx.Tokens()
		h, err8 := tx.Holds(key.CredentialID{})
		o, err9 := tx.Boots()
		r, err10 := tx.Rotations(key.CredentialID{}, 0)
		e, err11 := tx.Retirements(key.CredentialID{})
		a, err12 := tx.Alerts("", 0)
		l, err13 := tx.Deliveries(tx.Now())
		n, err14 := tx.Entries(0, 0)
		if x := len(s) + len(p) + len(c) + len(v) + len(b) + len(d) + len(k) + len(h) + len(o) + len(r) + len(e) + len(a) + len(l) + len(n); x != 0 {
			t.Errorf("a new store has %d things in it", x)
		}
		return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9, err10, err11, err12, err13, err14)
	})
}

func testUpdate(t *testing.T, f *fixture) {
	f.update(t, func(tx store.Tx) error { return tx.PutSetting("a", "1") })
	same(t, "setting", read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("a") }), "1")
	same(t, "entries", len(read(t, f, entries)), 1)

	ran := false
	err := f.Update(context.Background(), audit.Entry{Actor: "suite"}, func(store.Tx) error { ran = true; return nil })
	if !errors.Is(err, key.ErrInvalid) || ran {
		t.Fatalf("an update without an action: got error %v, ran %v", err, ran)
	}
	same(t, "entries", len(read(t, f, entries)), 1)
}

func entries(tx store.Tx) ([]audit.Entry, error) { return tx.Entries(0, 0) }

// unchanged returns a check that nothing at all has changed since.
func (f *fixture) unchanged(t *testing.T) func() {
	t.Helper()
	f.seed(t)
	rev, es := f.Revision(), read(t, f, entries)
	return func() {
		t.Helper()
		same(t, "revision", f.Revision(), rev)
		same(t, "revision in a view", read(t, f, store.Tx.Revision), rev)
		same(t, "entries", read(t, f, entries), es)
		same(t, "setting", read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("half") }), "")
		same(t, "versions", len(read(t, f, func(tx store.Tx) ([]key.Version, error) { return tx.Versions(alpha()) })), 0)
		f.update(t, func(tx store.Tx) error { return tx.PutSetting("whole", "1") }) // it works on
	}
}

// half changes some of everything.
func (f *fixture) half(tx store.Tx) error {
	_, err := tx.Touch(alpha())
	return errors.Join(err, tx.PutSetting("half", "1"), tx.PutVersion(f.version(1, key.StatePrimary)), tx.Audit(why()))
}

func testRollback(t *testing.T, f *fixture) {
	check := f.unchanged(t)
	mine := errors.New("mine")
	err := f.Update(context.Background(), why(), func(tx store.Tx) error {
		if err := f.half(tx); err != nil {
			return err
		}
		return mine
	})
	if !errors.Is(err, mine) {
		t.Fatalf("got error %v, want that of the function", err)
	}
	check()

	check = f.unchanged(t)
	err = f.Observe(context.Background(), func(tx store.Tx) error {
		return errors.Join(tx.PutSetting("half", "1"), mine)
	})
	if !errors.Is(err, mine) {
		t.Fatalf("got error %v, want that of the function", err)
	}
	check()

	// What the schema refuses is not committed either, if fn looks away.
	check = f.unchanged(t)
	err = f.Update(context.Background(), why(), func(tx store.Tx) error {
		if err := f.half(tx); err != nil {
			return err
		}
		if err := tx.PutVersion(f.version(2, "no-such-state")); !errors.Is(err, key.ErrInvalid) && err == nil {
			t.Error("a version in a state that does not exist was taken")
		}
		return nil
	})
	if !errors.Is(err, key.ErrInvalid) {
		t.Fatalf("got error %v, want %v", err, key.ErrInvalid)
	}
	check()
}

func testPanic(t *testing.T, f *fixture) {
	check := f.unchanged(t)
	func() {
		defer func() {
			if p := recover(); p != "mine" {
				t.Errorf("recovered %v, want what fn panicked with", p)
			}
		}()
		_ = f.Update(context.Background(), why(), func(tx store.Tx) error {
			if err := f.half(tx); err != nil {
				t.Error(err)
			}
			panic("mine")
		})
	}()
	check()
}

func testCancel(t *testing.T, f *fixture) {
	check := f.unchanged(t)
	ctx, cancel := context.WithCancel(context.Background())
	err := f.Update(ctx, why(), func(tx store.Tx) error {
		err := f.half(tx)
		cancel()
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got error %v, want %v", err, context.Canceled)
	}
	check()

	ran := false
	for name, err := range map[string]error{
		"view":    f.View(ctx, func(store.Tx) error { ran = true; return nil }),
		"update":  f.Update(ctx, why(), func(store.Tx) error { ran = true; return nil }),
		"observe": f.Observe(ctx, func(store.Tx) error { ran = true; return nil }),
	} {
		if !errors.Is(err, context.Canceled) || ran {
			t.Fatalf("%s with an ended context: got error %v, ran %v", name, err, ran)
		}
	}

	// Who waits for another's Update stops waiting.
	ctx, cancel = context.WithCancel(context.Background())
	waiting := make(chan error, 1)
	f.update(t, func(tx store.Tx) error {
		go func() { waiting <- f.Update(ctx, why(), func(store.Tx) error { return nil }) }()
		cancel()
		select {
		case err := <-waiting:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got error %v, want %v", err, context.Canceled)
			}
		case <-time.After(patience):
			t.Error("an Update whose context ended still waits")
		}
		return nil
	})
}

// write is one method that writes.
type write struct {
	name    string
	observe bool // allowed in Observe
	fn      func(store.Tx) error
}

// writes lists every method that writes, each with something it would do.
func (f *fixture) writes() []write {
	id, v := alpha(), version(alpha(), 1)
	lease := store.Lease{Kind: "k", Item: "held", Owner: "o", Term: 1}
	return []write{
		{"Touch", false, func(tx store.Tx) error { _, err := tx.Touch(id); return err }},
		{"TouchAll", false, func(tx store.Tx) error { _, err := tx.TouchAll(); return err }},
		{"PutService", false, func(tx store.Tx) error { return tx.PutService(key.Service{Name: "new"}) }},
		{"DeleteService", false, func(tx store.Tx) error { return tx.DeleteService("gamma") }},
		{"PutPolicy", false, func(tx store.Tx) error { return tx.PutPolicy(rotation.Policy{Name: "p"}) }},
		{"DeletePolicy", false, func(tx store.Tx) error { return tx.DeletePolicy("careful") }},
		{"PutCredential", false, func(tx store.Tx) error { return tx.PutCredential(key.Credential{ID: id, Upstream: "x"}) }},
		{"DeleteCredential", false, func(tx store.Tx) error { return tx.DeleteCredential(credential("beta", "prod")) }},
		{"PutVersion", false, func(tx store.Tx) error { return tx.PutVersion(f.version(2, key.StateFallback)) }},
		{"PutSealed", false, func(tx store.Tx) error { return tx.PutSealed(v, f.seal("dk", []byte("x"))) }},
		{"PutDataKey", false, func(tx store.Tx) error { return tx.PutDataKey("dk2", []byte("x")) }},
		{"PutRotation", false, func(tx store.Tx) error { return tx.PutRotation(f.rotation("r1", rotation.Soaking)) }},
		{"PutRetirement", false, func(tx store.Tx) error {
			return tx.PutRetirement(rotation.Retirement{Version: v, State: key.StateRetired})
		}},
		{"PutToken", false, func(tx store.Tx) error { return tx.PutToken(access.Token{Name: "n", Hash: "h"}) }},
		{"DeleteToken", false, func(tx store.Tx) error { return tx.DeleteToken("ci") }},
		{"Audit", false, func(tx store.Tx) error { return tx.Audit(why()) }},
		{"PutGate", true, func(tx store.Tx) error { return tx.PutGate("r0", rotation.Gate{Reason: "x"}) }},
		{"PutRetirementGate", true, func(tx store.Tx) error { return tx.PutRetirementGate(v, rotation.Gate{Reason: "x"}) }},
		{"PutHold", true, func(tx store.Tx) error { return tx.PutHold(evidence.Hold{Consumer: "c", Version: v}) }},
		{"DeleteHold", true, func(tx store.Tx) error { return tx.DeleteHold("held", "b", v) }},
		{"PutBoot", true, func(tx store.Tx) error { return tx.PutBoot(evidence.Boot{Consumer: "c", Boot: "b"}) }},
		{"DeleteBoot", true, func(tx store.Tx) error { return tx.DeleteBoot("held", "b") }},
		{"PutAsks", true, func(tx store.Tx) error { return tx.PutAsks(id, []evidence.Ask{{Version: v, OK: 1}}) }},
		{"PutAlert", true, func(tx store.Tx) error { return tx.PutAlert(alert.Alert{ID: "a", State: alert.Firing}) }},
		{"PutDelivery", true, func(tx store.Tx) error { return tx.PutDelivery(alert.Delivery{ID: "d"}) }},
		{"PutSetting", true, func(tx store.Tx) error { return tx.PutSetting("half", "1") }},
		{"Claim", true, func(tx store.Tx) error { _, err := tx.Claim("k", "o", time.Second); return err }},
		{"ClaimItem", true, func(tx store.Tx) error { _, err := tx.ClaimItem("k", "i", "o", time.Second); return err }},
		{"Release", true, func(tx store.Tx) error { return tx.Release(lease, time.Time{}) }},
		{"Due", true, func(tx store.Tx) error { return tx.Due("k", "i", tx.Now()) }},
	}
}

func testModes(t *testing.T, f *fixture) {
	f.seed(t, key.StateRetired)
	v := version(alpha(), 1)
	f.update(t, func(tx store.Tx) error {
		_, err := tx.ClaimItem("k", "held", "o", time.Minute)
		return errors.Join(err, tx.PutDataKey("dk", []byte("x")), tx.PutService(key.Service{Name: "gamma"}),
			tx.PutPolicy(rotation.Policy{Name: "careful"}), tx.PutToken(access.Token{Name: "ci", Hash: "1"}),
			tx.PutRotation(f.rotation("r0", rotation.Stopped)), tx.Due("k", "waiting", tx.Now()),
			tx.PutHold(evidence.Hold{Consumer: "held", Boot: "b", Version: v}), tx.PutBoot(evidence.Boot{Consumer: "held", Boot: "b"}),
			tx.PutRetirement(rotation.Retirement{Version: v, State: key.StateRetired}))
	})
	undo := errors.New("undo")
	for _, w := range f.writes() {
		if err := f.View(context.Background(), w.fn); !errors.Is(err, store.ErrWrongTx) {
			t.Errorf("%s in View: got error %v, want %v", w.name, err, store.ErrWrongTx)
		}
		err := f.Observe(context.Background(), func(tx store.Tx) error { return errors.Join(w.fn(tx), undo) })
		if got := !errors.Is(err, store.ErrWrongTx); got != w.observe {
			t.Errorf("%s in Observe: got error %v, allowed should be %v", w.name, err, w.observe)
		}
		// The refusal was because of the kind of transaction and nothing else.
		err = f.Update(context.Background(), why(), func(tx store.Tx) error {
			if w.name == "PutRotation" { // one may be open
				if err := tx.PutRotation(f.rotation("r0", rotation.Superseded)); err != nil {
					return err
				}
			}
			if err := w.fn(tx); err != nil {
				t.Errorf("%s in Update: %v", w.name, err)
			}
			return undo
		})
		if !errors.Is(err, undo) {
			t.Errorf("%s in Update: got error %v", w.name, err)
		}
	}

	// A transaction is over when its function is.
	var left store.Tx
	f.update(t, func(tx store.Tx) error { left = tx; return nil })
	if err := left.PutSetting("late", "1"); err == nil {
		t.Error("a transaction that is over took a write")
	}
	same(t, "late setting", read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("late") }), "")
}

func testConcurrent(t *testing.T, f *fixture) {
	const workers, each = 8, 20
	f.seed(t)
	before := f.Revision()
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				err := f.Update(context.Background(), why(), func(tx store.Tx) error {
					n, err := tx.Setting("count")
					if err != nil {
						return err
					}
					if _, err := tx.Touch(alpha()); err != nil {
						return err
					}
					return tx.PutSetting("count", n+"x")
				})
				if err == nil && i%5 == 0 {
					err = f.View(context.Background(), func(tx store.Tx) error { _, err := tx.Credentials(); return err })
				}
				if err != nil {
					errs <- fmt.Errorf("worker %d: %w", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	same(t, "changes that were counted", len(read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("count") })), workers*each)
	same(t, "revision", f.Revision(), key.Revision{Epoch: before.Epoch, Number: before.Number + workers*each})
	checkChain(t, read(t, f, entries))
}

func testSnapshot(t *testing.T, f *fixture) {
	f.seed(t)
	f.view(t, func(tx store.Tx) error {
		first, err := tx.Revision()
		if err != nil {
			return err
		}
		f.update(t, func(tx store.Tx) error { // neither waits for the other
			_, err := tx.Touch(alpha())
			return errors.Join(err, tx.PutSetting("new", "1"))
		})
		again, err := tx.Revision()
		if err != nil {
			return err
		}
		same(t, "revision of one view", again, first)
		s, err := tx.Setting("new")
		same(t, "setting written after the view began", s, "")
		return err
	})
	same(t, "setting in the next view", read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("new") }), "1")
}

func testNow(t *testing.T, f *fixture) {
	for _, run := range []func(func(store.Tx) error){
		func(fn func(store.Tx) error) { f.view(t, fn) },
		func(fn func(store.Tx) error) { f.observe(t, fn) },
		func(fn func(store.Tx) error) { f.update(t, fn) },
	} {
		want := f.Tx()
		run(func(tx store.Tx) error {
			same(t, "time of a transaction", tx.Now(), want)
			f.Move(time.Hour)
			same(t, "time of a transaction later on", tx.Now(), want)
			return nil
		})
	}
}

func testRevision(t *testing.T, f *fixture) {
	f.seed(t)
	same(t, "revision without a touch", f.Revision(), key.Revision{Epoch: 1})
	var first key.Revision
	f.update(t, func(tx store.Tx) (err error) {
		if first, err = tx.Touch(alpha()); err != nil {
			return err
		}
		second, err := tx.Touch(credential("beta", "prod"))
		same(t, "second touch", second, first)
		third, err2 := tx.TouchAll()
		same(t, "touch of all", third, first)
		inside, err3 := tx.Revision()
		same(t, "revision inside", inside, first)
		same(t, "revision that others see before the commit", f.Revision(), key.Revision{Epoch: 1})
		return errors.Join(err, err2, err3)
	})
	same(t, "first revision", first, key.Revision{Epoch: 1, Number: 1})
	same(t, "revision", f.Revision(), first)

	f.update(t, func(tx store.Tx) error { _, err := tx.TouchAll(); return err })
	f.observe(t, func(tx store.Tx) error { return tx.PutSetting("a", "1") })
	same(t, "revision", f.Revision(), key.Revision{Epoch: 1, Number: 2})

	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { _, err := tx.Touch(credential("no", "no")); return err })
	same(t, "revision", f.Revision(), key.Revision{Epoch: 1, Number: 2})

	since := func(n int64) []key.CredentialID {
		t.Helper()
		var ids []key.CredentialID
		for _, c := range read(t, f, func(tx store.Tx) ([]key.Credential, error) {
			return tx.ChangedSince(key.Revision{Epoch: 1, Number: n})
		}) {
			ids = append(ids, c.ID)
			if c.Revision.Number <= n {
				t.Errorf("%s of revision %s changed since %d", c.ID, c.Revision, n)
			}
		}
		return ids
	}
	same(t, "changed since 0", since(0), []key.CredentialID{alpha(), credential("beta", "prod")})
	same(t, "changed since 1", since(1), nil)
	f.update(t, func(tx store.Tx) error { _, err := tx.Touch(credential("alpha", "dev")); return err })
	same(t, "changed since 1", since(1), []key.CredentialID{credential("alpha", "dev")})
	same(t, "changed since 3", since(3), nil)
	for _, r := range []key.Revision{{Epoch: 1, Number: 4}, {Epoch: 2}, {}} {
		err := f.View(context.Background(), func(tx store.Tx) error { _, err := tx.ChangedSince(r); return err })
		if !errors.Is(err, key.ErrStale) {
			t.Errorf("changed since %s, not of the store's past: got error %v, want %v", r, err, key.ErrStale)
		}
	}

	// A credential keeps its revision when it is written.
	f.update(t, func(tx store.Tx) error {
		c, err := tx.Credential(alpha())
		c.Revision = key.Revision{Epoch: 9, Number: 9}
		return errors.Join(err, tx.PutCredential(c))
	})
	c := read(t, f, func(tx store.Tx) (key.Credential, error) { return tx.Credential(alpha()) })
	same(t, "revision of the credential", c.Revision, first)
}

func testWait(t *testing.T, f *fixture) {
	f.seed(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.Wait(ctx, key.Revision{}); err != nil {
		t.Fatalf("waiting for a revision that has passed: %v", err)
	}
	const n = 5
	woken := make(chan error, n)
	for range n {
		go func() { woken <- f.Wait(ctx, key.Revision{Epoch: 1}) }()
	}
	f.observe(t, func(tx store.Tx) error { return tx.PutSetting("a", "1") })
	f.update(t, func(tx store.Tx) error { return tx.PutSetting("a", "2") })
	select {
	case err := <-woken:
		t.Fatalf("woken without a new revision: %v", err)
	default:
	}
	f.update(t, func(tx store.Tx) error { _, err := tx.Touch(alpha()); return err })
	for range n {
		if err := <-woken; err != nil {
			t.Fatalf("waiting: %v", err)
		}
	}

	ended, end := context.WithCancel(context.Background())
	go func() { woken <- f.Wait(ended, f.Revision()) }()
	end()
	if err := <-woken; !errors.Is(err, context.Canceled) {
		t.Fatalf("waiting with an ended context: got error %v", err)
	}
}

func testClose(t *testing.T, f *fixture) {
	f.seed(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	woken := make(chan error, 1)
	go func() { woken <- f.Wait(ctx, f.Revision()) }()

	// What is running is waited for.
	begun, finish, updated, closed := make(chan struct{}), make(chan struct{}), make(chan error, 1), make(chan error, 1)
	go func() {
		updated <- f.Update(ctx, why(), func(tx store.Tx) error {
			close(begun)
			<-finish
			return tx.PutSetting("a", "1")
		})
	}()
	<-begun
	go func() { closed <- f.Close() }()
	for f.View(ctx, func(store.Tx) error { return nil }) == nil {
		runtime.Gosched() // until Close has begun
	}
	select {
	case err := <-closed:
		t.Fatalf("closed while an update ran: %v", err)
	case <-time.After(100 * time.Millisecond): // it would have been by now
	}
	close(finish)
	if err := <-updated; err != nil {
		t.Fatalf("an update that ran when the store was closed: %v", err)
	}
	if err := errors.Join(<-closed, f.Close()); err != nil {
		t.Fatalf("closing, twice: %v", err)
	}
	errs := map[string]error{
		"wait":          <-woken,
		"wait after it": f.Wait(ctx, f.Revision()),
		"view":          f.View(ctx, func(store.Tx) error { return nil }),
		"update":        f.Update(ctx, why(), func(store.Tx) error { return nil }),
		"observe":       f.Observe(ctx, func(store.Tx) error { return nil }),
	}
	for name, err := range errs {
		if !errors.Is(err, key.ErrUnavailable) {
			t.Errorf("%s of a closed store: got error %v, want %v", name, err, key.ErrUnavailable)
		}
	}
}
