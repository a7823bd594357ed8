package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// names are texts that databases sort, compare and fold in different ways; here
// they are in the order of their bytes.
func names() []string {
	return []string{"A", "B", "Z", "a", "a b", "a-b", "aB", "a_b", "ab", "b", "z", "e\u0301", "\u00e4", "\u00e9", "\u00ed", "\u4e2d", "\U0001f511"}
}

func testNames(t *testing.T, f *fixture) {
	want := names()
	slices.Sort(want)
	now := f.Tx()
	f.update(t, func(tx store.Tx) error {
		for _, n := range slices.Backward(want) {
			if err := errors.Join(tx.PutService(key.Service{Name: n}), tx.PutCredential(key.Credential{ID: credential(n, n)}),
				tx.PutToken(access.Token{Name: n, Hash: n}), tx.Due("work", n, now),
				tx.PutAlert(alert.Alert{ID: n, State: alert.Firing, Started: now}),
				tx.PutDelivery(alert.Delivery{ID: n, Created: now, Next: now})); err != nil {
				return fmt.Errorf("%q: %w", n, err)
			}
		}
		return nil
	})
	for what, get := range map[string]func(store.Tx) ([]string, error){
		"services": func(tx store.Tx) ([]string, error) {
			return of(tx.Services())(func(s key.Service) string { return s.Name })
		},
		"tokens": func(tx store.Tx) ([]string, error) {
			return of(tx.Tokens())(func(s access.Token) string { return s.Name })
		},
		"credentials": func(tx store.Tx) ([]string, error) {
			return of(tx.Credentials())(func(c key.Credential) string { return c.ID.Service })
		},
		"alerts": func(tx store.Tx) ([]string, error) {
			return of(tx.Alerts("", 0))(func(a alert.Alert) string { return a.ID })
		},
		"deliveries": func(tx store.Tx) ([]string, error) {
			return of(tx.Deliveries(now))(func(d alert.Delivery) string { return d.ID })
		},
	} {
		same(t, what, read(t, f, get), want)
	}
	same(t, "the first alerts of one moment", read(t, f, func(tx store.Tx) ([]string, error) {
		return of(tx.Alerts(alert.Firing, 3))(func(a alert.Alert) string { return a.ID })
	}), want[:3])
	for _, n := range want {
		same(t, "the next of those that are due at one moment", f.claim(t, "one").Item, n)
		same(t, "token by hash", read(t, f, func(tx store.Tx) (access.Token, error) { return tx.TokenByHash(n) }).Name, n)
	}
	f.missing(t, "a name in capitals", func(tx store.Tx) error { _, err := tx.Service("AB"); return err })
}

// of returns what name makes of each of list.
func of[T any](list []T, err error) func(name func(T) string) ([]string, error) {
	return func(name func(T) string) ([]string, error) {
		var out []string
		for _, v := range list {
			out = append(out, name(v))
		}
		return out, err
	}
}

// Texts that a database could not keep are refused by all, before anything is
// done; what they can keep comes back as it was.
func testTexts(t *testing.T, f *fixture) {
	f.seed(t)
	for _, bad := range []string{"a\x00b", "\xff", "a\xc3"} {
		f.update(t, func(tx store.Tx) error { // a refusal can be got over
			for what, err := range map[string]error{
				"setting": tx.PutSetting("s", bad),
				"name":    tx.PutService(key.Service{Name: bad}),
				"item":    tx.Due("work", bad, tx.Now()),
			} {
				if !errors.Is(err, key.ErrInvalid) {
					t.Errorf("%s %q: got error %v, want %v", what, bad, err, key.ErrInvalid)
				}
			}
			if _, err := tx.Service(bad); !errors.Is(err, key.ErrInvalid) {
				t.Errorf("looking for %q: got error %v, want %v", bad, err, key.ErrInvalid)
			}
			return nil
		})
		v := f.version(1, key.StatePrimary)
		v.Note = bad
		f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutVersion(v) })
		// In a doc anything can be written.
		f.update(t, func(tx store.Tx) error { return tx.PutService(key.Service{Name: "beta", Provider: "x", EnvName: bad}) })
	}
	odd := "'; DROP TABLE meta; -- $1 %s \\ \r\n\t\u2028 " + strings.Repeat("x", 300_000)
	f.update(t, func(tx store.Tx) error { return tx.PutSetting("odd", odd) })
	same(t, "odd and long", read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("odd") }), odd)

	box := make([]byte, 300_000)
	for i := range box {
		box[i] = byte(i)
	}
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutVersion(f.version(1, key.StatePrimary)), tx.PutDataKey("dk", box), tx.PutSealed(version(alpha(), 1), f.seal("dk", box)))
	})
	same(t, "large box", read(t, f, func(tx store.Tx) (key.Sealed, error) { return tx.Sealed(version(alpha(), 1)) }), f.seal("dk", box))
}

// Numbers and times keep all their digits.
func testNumbers(t *testing.T, f *fixture) {
	f.seed(t)
	const most = 1<<62 + 12345
	far := time.UnixMilli(253402300799999).UTC() // the last of the year 9999
	old := time.UnixMilli(-62135596799999).UTC() // the first of the year 1
	c := key.Credential{ID: alpha(), Slots: key.Slots{Primary: most, Fallback: most - 1, Candidate: 1}, Next: most, Created: old, Rotated: far}
	v := f.version(most, key.StateRetired)
	v.Created, v.Since, v.Expires = old, f.Tx(), far
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutCredential(c), tx.PutVersion(v), tx.Due("far", "i", far))
	})
	same(t, "credential", read(t, f, func(tx store.Tx) (key.Credential, error) { return tx.Credential(alpha()) }), c)
	same(t, "version", read(t, f, func(tx store.Tx) (key.Version, error) { return tx.Version(v.ID) }), v)
	same(t, "due", read(t, f, func(tx store.Tx) (time.Time, error) { return tx.NextDue("far") }), far)
	f.observe(t, func(tx store.Tx) error {
		l, err := tx.ClaimItem("far", "i", "o", time.Minute)
		return errors.Join(err, tx.Release(l, far))
	})
	same(t, "due after a release", read(t, f, func(tx store.Tx) (time.Time, error) { return tx.NextDue("far") }), far)
	f.observe(t, func(tx store.Tx) error { // nothing is lost by a limit that is none
		_, err1 := tx.Entries(0, -1)
		_, err2 := tx.Alerts("", -1)
		_, err3 := tx.Entries(1<<62, 1)
		return errors.Join(err1, err2, err3)
	})
	same(t, "entries", len(read(t, f, entries)), 2)
}

// What the schema refuses is refused with the contract's error in the middle of
// a transaction, and whatever comes after it there.
func testRefusedWithin(t *testing.T, f *fixture) {
	check := f.unchanged(t)
	err := f.Update(context.Background(), why(), func(tx store.Tx) error {
		if err := f.half(tx); err != nil {
			return err
		}
		bad := f.version(3, key.StateRetired)
		bad.Origin = "found"
		for range 2 {
			if tx.PutVersion(bad) == nil {
				t.Error("a version of an origin that does not exist was taken")
			}
		}
		if _, err := tx.Setting("half"); err == nil {
			t.Error("a transaction that is lost answers as if it were not")
		}
		if _, err := tx.Credentials(); errors.Is(err, key.ErrNotFound) {
			t.Error("a transaction that is lost says that something does not exist")
		}
		return errors.New("mine: what the database said comes first")
	})
	if !errors.Is(err, key.ErrInvalid) && (err == nil || !strings.Contains(err.Error(), "mine")) {
		t.Fatalf("got error %v", err)
	}
	check()
}
