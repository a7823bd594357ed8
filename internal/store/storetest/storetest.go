// Package storetest is the suite that every database behind the store contract
// must pass. A room that opens one runs it with [Run] in its tests.
//
// It proves what store.Store and store.Tx promise: what is written is read back
// whole, exclusions and missing things are refused with the right sentinel, a
// change and its audit entry are one, revisions wake who waits, leases fence.
// It leaves to the room what only that database can do wrong: files, locks,
// full disks.
package storetest

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// Open opens a new, empty store whose transactions take their time from now.
// The suite closes it.
type Open func(t *testing.T, now func() time.Time) store.Store

// Seal makes a sealed key: key.SealedFrom, which only tests may hand out.
type Seal func(dataKey string, box []byte) key.Sealed

// Run runs the suite, each part on a store of its own.
func Run(t *testing.T, open Open, seal Seal) {
	for _, p := range []struct {
		name string
		fn   func(*testing.T, *fixture)
	}{
		{"empty", testEmpty},
		{"update", testUpdate},
		{"rollback", testRollback},
		{"panic", testPanic},
		{"cancel", testCancel},
		{"modes", testModes},
		{"concurrent", testConcurrent},
		{"snapshot", testSnapshot},
		{"now", testNow},
		{"revision", testRevision},
		{"wait", testWait},
		{"close", testClose},
		{"services", testServices},
		{"policies", testPolicies},
		{"credentials", testCredentials},
		{"deletion", testDeletion},
		{"versions", testVersions},
		{"states", testStates},
		{"slots", testSlots},
		{"swap", testSwap},
		{"fingerprints", testFingerprints},
		{"sealed", testSealed},
		{"rotations", testRotations},
		{"rotation states", testRotationStates},
		{"retirements", testRetirements},
		{"gates", testGates},
		{"tokens", testTokens},
		{"holds", testHolds},
		{"boots", testBoots},
		{"asks", testAsks},
		{"alerts", testAlerts},
		{"deliveries", testDeliveries},
		{"settings", testSettings},
		{"audit", testAudit},
		{"names", testNames},
		{"texts", testTexts},
		{"numbers", testNumbers},
		{"refused within", testRefusedWithin},
		{"claim", testClaim},
		{"claim item", testClaimItem},
		{"fence", testFence},
		{"release", testRelease},
		{"due", testDue},
		{"work", testWork},
	} {
		t.Run(p.name, func(t *testing.T) {
			c := &clock{t: time.Date(2030, 1, 2, 3, 4, 5, 678_901_234, time.FixedZone("", 3600))}
			f := &fixture{Store: open(t, c.Now), clock: c, seal: seal}
			t.Cleanup(func() {
				if err := f.Close(); err != nil {
					t.Errorf("closing the store: %v", err)
				}
			})
			p.fn(t, f)
		})
	}
}

// patience is how long a part waits for what must happen at once.
const patience = 10 * time.Second

// clock is a clock that stands still until it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

// Tx returns the time that a transaction has now.
func (c *clock) Tx() time.Time { return time.UnixMilli(c.Now().UnixMilli()).UTC() }

func (c *clock) Move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// fixture is one store under test.
type fixture struct {
	store.Store
	*clock
	seal Seal
}

// why is the audit entry of changes that the suite makes.
func why() audit.Entry { return audit.Entry{Actor: "suite", Action: "suite.change"} }

// update, observe and view run fn and fail the test on an error.
func (f *fixture) update(t *testing.T, fn func(store.Tx) error) {
	t.Helper()
	if err := f.Update(context.Background(), why(), fn); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func (f *fixture) observe(t *testing.T, fn func(store.Tx) error) {
	t.Helper()
	if err := f.Observe(context.Background(), fn); err != nil {
		t.Fatalf("observe: %v", err)
	}
}

func (f *fixture) view(t *testing.T, fn func(store.Tx) error) {
	t.Helper()
	if err := f.View(context.Background(), fn); err != nil {
		t.Fatalf("view: %v", err)
	}
}

// refused runs fn in an Update of its own, which must fail with want.
func (f *fixture) refused(t *testing.T, want error, fn func(store.Tx) error) {
	t.Helper()
	if err := f.Update(context.Background(), why(), fn); !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// missing runs fn in a View, which must fail with key.ErrNotFound.
func (f *fixture) missing(t *testing.T, what string, fn func(store.Tx) error) {
	t.Helper()
	if err := f.View(context.Background(), fn); !errors.Is(err, key.ErrNotFound) {
		t.Fatalf("%s: got error %v, want %v", what, err, key.ErrNotFound)
	}
}

// read returns what get reads in a View.
func read[T any](t *testing.T, f *fixture, get func(store.Tx) (T, error)) T {
	t.Helper()
	var v T
	f.view(t, func(tx store.Tx) (err error) {
		v, err = get(tx)
		return err
	})
	return v
}

// same fails the test unless got is want, field by field.
func same[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

// credential and version name things for tests.
func credential(service, environment string) key.CredentialID {
	return key.CredentialID{Service: service, Environment: environment}
}

func version(id key.CredentialID, n key.Number) key.VersionID {
	return key.VersionID{Credential: id, Number: n}
}

// alpha is the credential that most parts use.
func alpha() key.CredentialID { return credential("alpha", "prod") }

// seed writes credentials, and versions of alpha in the given states as v1, v2 …
func (f *fixture) seed(t *testing.T, states ...key.State) {
	t.Helper()
	f.update(t, func(tx store.Tx) error {
		for _, id := range []key.CredentialID{alpha(), credential("alpha", "dev"), credential("beta", "prod")} {
			if err := errors.Join(tx.PutService(key.Service{Name: id.Service, Provider: "manual"}),
				tx.PutCredential(key.Credential{ID: id, Next: 1})); err != nil {
				return err
			}
		}
		for i, s := range states {
			if err := tx.PutVersion(f.version(key.Number(i+1), s)); err != nil {
				return err
			}
		}
		return nil
	})
}

// version returns a version of alpha.
func (f *fixture) version(n key.Number, s key.State) key.Version {
	return key.Version{ID: version(alpha(), n), State: s, Origin: key.OriginIssued, Created: f.Tx(), Since: f.Tx()}
}
