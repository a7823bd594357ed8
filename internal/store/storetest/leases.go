package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

const ttl = 30 * time.Second

func (f *fixture) claim(t *testing.T, owner string) (l store.Lease) {
	t.Helper()
	f.observe(t, func(tx store.Tx) (err error) {
		l, err = tx.Claim("work", owner, ttl)
		return err
	})
	return l
}

func (f *fixture) idle(t *testing.T, kind string) {
	t.Helper()
	err := f.Observe(context.Background(), func(tx store.Tx) error { _, err := tx.Claim(kind, "o", ttl); return err })
	if !errors.Is(err, key.ErrNotFound) {
		t.Fatalf("claiming when nothing is due: got error %v, want %v", err, key.ErrNotFound)
	}
}

func (f *fixture) due(t *testing.T, item string, at time.Time) {
	t.Helper()
	f.observe(t, func(tx store.Tx) error { return tx.Due("work", item, at) })
}

func (f *fixture) nextDue(t *testing.T) time.Time {
	t.Helper()
	return read(t, f, func(tx store.Tx) (time.Time, error) { return tx.NextDue("work") })
}

func (f *fixture) fence(l store.Lease) error {
	return f.View(context.Background(), func(tx store.Tx) error { return tx.Fence(l) })
}

func (f *fixture) release(l store.Lease, next time.Time) error {
	return f.Observe(context.Background(), func(tx store.Tx) error { return tx.Release(l, next) })
}

// sentinel fails the test unless err wraps want.
func sentinel(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: got error %v, want %v", what, err, want)
	}
}

func testClaim(t *testing.T, f *fixture) {
	f.idle(t, "work")
	same(t, "next due of nothing", f.nextDue(t), time.Time{})
	now := f.Tx()
	f.due(t, "late", now)
	f.due(t, "early", now.Add(-time.Second))
	f.due(t, "future", now.Add(time.Hour))
	f.idle(t, "other")
	same(t, "next due", f.nextDue(t), now.Add(-time.Second))
	l := f.claim(t, "one")
	same(t, "the one that waited longest", l, store.Lease{Kind: "work", Item: "early", Owner: "one", Term: 1, Until: now.Add(ttl)})
	same(t, "next due", f.nextDue(t), now)
	same(t, "the next", f.claim(t, "two").Item, "late")
	f.idle(t, "work")
	same(t, "next due: the end of a claim", f.nextDue(t), now.Add(ttl))

	// What nobody released is due again when its time has ended, not before.
	f.Move(ttl - time.Millisecond)
	f.idle(t, "work")
	f.Move(time.Millisecond)
	again := f.claim(t, "two")
	same(t, "item", again.Item, "early")
	same(t, "term", again.Term, 2)
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { _, err := tx.Claim("work", "", ttl); return err })
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { _, err := tx.Claim("work", "o", 0); return err })
}

func testClaimItem(t *testing.T, f *fixture) {
	item := func(owner string) (l store.Lease, err error) {
		err = f.Observe(context.Background(), func(tx store.Tx) (err error) {
			l, err = tx.ClaimItem("work", "i", owner, ttl)
			return err
		})
		return l, err
	}
	l, err := item("one")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "lease", l, store.Lease{Kind: "work", Item: "i", Owner: "one", Term: 1, Until: f.Tx().Add(ttl)})
	_, err = item("two")
	sentinel(t, "an item that another owner holds", err, key.ErrConflict)
	f.Move(time.Second)
	m, err := item("one") // the same owner, anew
	if err != nil {
		t.Fatal(err)
	}
	same(t, "term", m.Term, 2)
	sentinel(t, "the earlier claim", f.fence(l), key.ErrFenced)
	sentinel(t, "its release", f.release(l, time.Time{}), key.ErrFenced)
	if err := f.release(m, time.Time{}); err != nil {
		t.Fatal(err)
	}
	same(t, "next due of an item that is not due by itself", f.nextDue(t), time.Time{})
	f.idle(t, "work")
	l, err = item("two")
	if err != nil || l.Term != 3 {
		t.Fatalf("claiming a released item: %+v, %v", l, err)
	}
	f.Move(ttl)
	if l, err = item("one"); err != nil || l.Term != 4 {
		t.Fatalf("claiming an item whose claim has ended: %+v, %v", l, err)
	}
	f.Move(ttl)
	same(t, "an abandoned item", f.claim(t, "three").Term, 5)
}

func testFence(t *testing.T, f *fixture) {
	f.due(t, "i", f.Tx())
	l := f.claim(t, "one")
	f.Move(ttl - time.Millisecond)
	if err := f.fence(l); err != nil {
		t.Fatalf("a lease with a millisecond left: %v", err)
	}
	for name, change := range map[string]func(*store.Lease){
		"kind":  func(l *store.Lease) { l.Kind = "other" },
		"item":  func(l *store.Lease) { l.Item = "other" },
		"owner": func(l *store.Lease) { l.Owner = "other" },
		"term":  func(l *store.Lease) { l.Term++ },
	} {
		other := l
		change(&other)
		sentinel(t, "a lease with another "+name, f.fence(other), key.ErrFenced)
	}
	f.Move(time.Millisecond)
	sentinel(t, "a lease with no time left", f.fence(l), key.ErrFenced)
	l.Until = f.Tx().Add(time.Hour)
	sentinel(t, "a lease that claims to have more time", f.fence(l), key.ErrFenced)

	// What follows a lost lease is not written.
	err := f.Update(context.Background(), why(), func(tx store.Tx) error {
		if err := tx.PutSetting("half", "1"); err != nil {
			return err
		}
		return tx.Fence(l)
	})
	sentinel(t, "an update", err, key.ErrFenced)
	same(t, "setting", read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("half") }), "")
}

func testRelease(t *testing.T, f *fixture) {
	f.due(t, "i", f.Tx())
	l := f.claim(t, "one")
	next := f.Tx().Add(time.Hour)
	if err := f.release(l, next); err != nil {
		t.Fatal(err)
	}
	same(t, "next due", f.nextDue(t), next)
	sentinel(t, "a released lease", f.fence(l), key.ErrFenced)
	sentinel(t, "releasing it again", f.release(l, next), key.ErrFenced)
	f.idle(t, "work")
	f.Move(time.Hour)
	l = f.claim(t, "two")
	same(t, "term", l.Term, 2)

	// A release that comes late is taken as long as nobody else has the item.
	f.Move(ttl)
	if err := f.release(l, time.Time{}); err != nil {
		t.Fatal(err)
	}
	f.idle(t, "work")
	f.due(t, "i", f.Tx())
	l = f.claim(t, "one")
	f.Move(ttl)
	m := f.claim(t, "two")
	sentinel(t, "releasing what another has", f.release(l, time.Time{}), key.ErrFenced)
	if err := f.fence(m); err != nil {
		t.Fatalf("the lease of the other: %v", err)
	}
}

func testDue(t *testing.T, f *fixture) {
	now := f.Tx()
	f.due(t, "i", now.Add(time.Hour))
	f.due(t, "i", now.Add(2*time.Hour))
	same(t, "next due: the earlier", f.nextDue(t), now.Add(time.Hour))
	f.due(t, "i", now)
	same(t, "next due: earlier still", f.nextDue(t), now)

	// What is asked for while it is held counts after the release.
	l := f.claim(t, "one")
	f.due(t, "i", now)
	f.idle(t, "work")
	same(t, "next due of a held item", f.nextDue(t), now.Add(ttl))
	if err := f.release(l, time.Time{}); err != nil {
		t.Fatal(err)
	}
	same(t, "next due after the release", f.nextDue(t), now)
	l = f.claim(t, "one")
	f.due(t, "i", now.Add(time.Minute))
	if err := f.release(l, now.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	same(t, "next due: as released", f.nextDue(t), now.Add(time.Second))
	f.Move(time.Second)
	l = f.claim(t, "one")
	f.due(t, "i", now.Add(time.Minute))
	if err := f.release(l, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	same(t, "next due: as asked for", f.nextDue(t), now.Add(time.Minute))

	// Nor does a claim out of turn lose it.
	f.observe(t, func(tx store.Tx) error {
		l, err := tx.ClaimItem("work", "i", "two", ttl)
		return errors.Join(err, tx.Release(l, time.Time{}))
	})
	same(t, "next due after a claim out of turn", f.nextDue(t), now.Add(time.Minute))
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.Due("work", "i", time.Time{}) })
}

func testWork(t *testing.T, f *fixture) {
	ctx := context.Background()
	work := func(fn func(context.Context, *store.Lease) (time.Time, error)) (bool, error) {
		return store.Work(ctx, f, "work", "one", ttl, fn)
	}
	did, err := work(func(context.Context, *store.Lease) (time.Time, error) {
		t.Error("there was no work")
		return time.Time{}, nil
	})
	same(t, "nothing to do", []any{did, err}, []any{false, nil})

	now := f.Tx()
	f.due(t, "i", now)
	did, err = work(func(_ context.Context, l *store.Lease) (time.Time, error) {
		if err := f.fence(*l); err != nil {
			t.Error(err)
		}
		return now.Add(time.Minute), nil
	})
	same(t, "done", []any{did, err}, []any{true, nil})
	same(t, "next due", f.nextDue(t), now.Add(time.Minute))

	f.Move(time.Minute)
	mine := errors.New("mine")
	did, err = work(func(context.Context, *store.Lease) (time.Time, error) { return time.Time{}, mine })
	same(t, "failed", []any{did, errors.Is(err, mine)}, []any{true, true})
	same(t, "next due: the end of the lease", f.nextDue(t), f.Tx().Add(ttl))

	f.Move(ttl)
	did, err = work(func(context.Context, *store.Lease) (time.Time, error) { return f.Tx().Add(time.Second), mine })
	same(t, "failed, with a time", []any{did, errors.Is(err, mine)}, []any{true, true})
	same(t, "next due", f.nextDue(t), f.Tx().Add(time.Second))

	f.Move(time.Second)
	did, err = work(func(_ context.Context, l *store.Lease) (time.Time, error) {
		f.due(t, "i", f.Tx()) // somebody asks, then the lease is renewed
		f.observe(t, func(tx store.Tx) (err error) {
			*l, err = tx.ClaimItem(l.Kind, l.Item, l.Owner, ttl)
			return err
		})
		return f.Tx().Add(time.Hour), nil
	})
	same(t, "renewed", []any{did, err}, []any{true, nil})
	same(t, "next due: as asked for before the renewal", f.nextDue(t), f.Tx())

	did, err = work(func(context.Context, *store.Lease) (time.Time, error) {
		f.Move(ttl)
		f.claim(t, "two")
		return f.Tx(), nil
	})
	same(t, "the lease was lost meanwhile", []any{did, err}, []any{true, nil})
}
