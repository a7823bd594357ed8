package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

func testServices(t *testing.T, f *fixture) {
	yes := true
	b := key.Service{Name: "beta", Provider: "sendgrid", Params: map[string]string{"base_url": "https://x"}, Manager: "boss", EnvName: "B_KEY",
		Call: key.Call{Upstream: "https://x", Place: key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"},
			Rules: []key.Rule{{Status: []int{401}, JSON: []key.JSONTest{{Path: "$.a", Exists: &yes}}, Is: key.IsInvalid, Dead: true}},
			Probe: &key.Probe{Path: "/me", Header: map[string]string{"A": "b"}}, FallbackOn: []int{401, 403}, Parts: []string{"id", "secret"},
			Early: time.Minute}}
	a, d := key.Service{Name: "a-b", Provider: "manual"}, key.Service{Name: "ab", Provider: "manual"}
	f.update(t, func(tx store.Tx) error { return errors.Join(tx.PutService(b), tx.PutService(d), tx.PutService(a)) })
	same(t, "services by name", read(t, f, store.Tx.Services), []key.Service{a, d, b})
	b.Provider = "manual"
	f.update(t, func(tx store.Tx) error { return tx.PutService(b) })
	same(t, "service", read(t, f, func(tx store.Tx) (key.Service, error) { return tx.Service("beta") }), b)

	f.missing(t, "service", func(tx store.Tx) error { _, err := tx.Service("no"); return err })
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.DeleteService("no") })
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutService(key.Service{}) })
	f.update(t, func(tx store.Tx) error { return tx.PutCredential(key.Credential{ID: credential("beta", "prod")}) })
	f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.DeleteService("beta") })
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.DeleteCredential(credential("beta", "prod")), tx.DeleteService("beta"))
	})
	same(t, "services that are left", read(t, f, store.Tx.Services), []key.Service{a, d})
}

func testPolicies(t *testing.T, f *fixture) {
	a := rotation.Policy{Name: "a", Every: time.Hour, Spare: true, Soak: rotation.Soak{For: time.Minute, Requests: 3}, Unverified: rotation.UnverifiedWait}
	b := rotation.Policy{Name: "b", Cron: "0 3 * * *", Zone: "Europe/Berlin"}
	f.update(t, func(tx store.Tx) error { return errors.Join(tx.PutPolicy(b), tx.PutPolicy(a)) })
	same(t, "policies", read(t, f, store.Tx.Policies), []rotation.Policy{a, b})
	a.Every = 2 * time.Hour
	f.update(t, func(tx store.Tx) error { return errors.Join(tx.PutPolicy(a), tx.DeletePolicy("b")) })
	same(t, "policy", read(t, f, func(tx store.Tx) (rotation.Policy, error) { return tx.Policy("a") }), a)
	f.missing(t, "policy", func(tx store.Tx) error { _, err := tx.Policy("b"); return err })
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.DeletePolicy("b") })
}

func testCredentials(t *testing.T, f *fixture) {
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.PutCredential(key.Credential{ID: alpha()}) })
	f.seed(t)
	same(t, "ids in order", ids(read(t, f, store.Tx.Credentials)),
		[]key.CredentialID{credential("alpha", "dev"), alpha(), credential("beta", "prod")})

	c := key.Credential{ID: alpha(), Slots: key.Slots{Primary: 3, Fallback: 2, Candidate: 4}, Next: 5, Policy: "careful", Upstream: "https://y",
		Params: map[string]string{"a": "b"}, Call: key.Call{Upstream: "https://x", FallbackOn: []int{401}, Probe: &key.Probe{Path: "/me"}},
		Created: f.Tx(), Rotated: f.Tx().Add(time.Millisecond)}
	other := c
	other.ID = credential("alpha", "dev")
	f.update(t, func(tx store.Tx) error { return errors.Join(tx.PutCredential(c), tx.PutCredential(other)) })
	same(t, "credential", read(t, f, func(tx store.Tx) (key.Credential, error) { return tx.Credential(alpha()) }), c)

	// What is returned belongs to the caller: changing one changes no other.
	list := read(t, f, store.Tx.Credentials)
	list[0].Params["a"], list[0].Call.FallbackOn[0], list[0].Call.Probe.Path = "x", 0, "x"
	same(t, "the next credential", list[1], c)

	c.Next, c.Rotated = 2, time.Time{}
	f.update(t, func(tx store.Tx) error { return tx.PutCredential(c) })
	got := read(t, f, func(tx store.Tx) (key.Credential, error) { return tx.Credential(alpha()) })
	same(t, "next number after a lower one was written", got.Next, 5)
	same(t, "time of rotation", got.Rotated, time.Time{})

	no := credential("no", "no")
	for what, fn := range map[string]func(store.Tx) error{
		"credential":  func(tx store.Tx) error { _, err := tx.Credential(no); return err },
		"versions":    func(tx store.Tx) error { _, err := tx.Versions(no); return err },
		"rotations":   func(tx store.Tx) error { _, err := tx.Rotations(no, 1); return err },
		"retirements": func(tx store.Tx) error { _, err := tx.Retirements(no); return err },
		"holds":       func(tx store.Tx) error { _, err := tx.Holds(no); return err },
		"asks":        func(tx store.Tx) error { _, err := tx.Asks(no); return err },
	} {
		f.missing(t, what, fn)
	}
}

func ids(cs []key.Credential) []key.CredentialID {
	var out []key.CredentialID
	for _, c := range cs {
		out = append(out, c.ID)
	}
	return out
}

func testDeletion(t *testing.T, f *fixture) {
	f.seed(t, key.StateRevoked, key.StatePrimary)
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.DeleteCredential(credential("no", "no")) })
	f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.DeleteCredential(alpha()) })
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutCredential(key.Credential{ID: alpha(), Next: 3}), tx.PutVersion(f.version(2, key.StateUnproven)),
			tx.PutDataKey("dk", []byte("w")), tx.PutSealed(version(alpha(), 1), f.seal("dk", []byte("b"))),
			tx.PutRetirement(rotation.Retirement{Version: version(alpha(), 1), State: key.StateRevoked, Ended: tx.Now()}),
			tx.PutRotation(f.rotation("r", rotation.Done)), tx.DeleteCredential(alpha()))
	})
	f.missing(t, "credential", func(tx store.Tx) error { _, err := tx.Credential(alpha()); return err })
	f.missing(t, "version", func(tx store.Tx) error { _, err := tx.Version(version(alpha(), 1)); return err })
	f.missing(t, "sealed key", func(tx store.Tx) error { _, err := tx.Sealed(version(alpha(), 1)); return err })
	same(t, "sealed keys", len(read(t, f, func(tx store.Tx) (map[key.VersionID]key.Sealed, error) { return tx.AllSealed() })), 0)
	same(t, "credentials", len(read(t, f, store.Tx.Credentials)), 2)

	f.update(t, func(tx store.Tx) error { return tx.PutCredential(key.Credential{ID: alpha(), Next: 1}) })
	c := read(t, f, func(tx store.Tx) (key.Credential, error) { return tx.Credential(alpha()) })
	same(t, "next number of a credential that was there before", c.Next, 3)
}

func testVersions(t *testing.T, f *fixture) {
	f.seed(t)
	v := key.Version{ID: version(alpha(), 10), State: key.StatePrimary, Origin: key.OriginAdopted, VendorID: "vid", Label: "label",
		Fingerprint: "fp", ReadOut: true, Created: f.Tx(), Since: f.Tx().Add(time.Second), Expires: f.Tx().Add(time.Hour),
		Saved: "saved", Note: "note", Rotation: "rot"}
	plain, dev := f.version(2, key.StateRevoked), f.version(1, key.StatePrimary)
	dev.ID.Credential = credential("alpha", "dev")
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error {
		w := v
		w.ID.Credential = credential("no", "no")
		return tx.PutVersion(w)
	})
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutVersion(v), tx.PutVersion(plain), tx.PutVersion(dev))
	})
	same(t, "version", read(t, f, func(tx store.Tx) (key.Version, error) { return tx.Version(v.ID) }), v)
	versions := func(tx store.Tx) ([]key.Version, error) { return tx.Versions(alpha()) }
	same(t, "versions by number", read(t, f, versions), []key.Version{plain, v})

	all := func(states ...key.State) []key.Version {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]key.Version, error) { return tx.AllVersions(states...) })
	}
	same(t, "all versions", all(), []key.Version{dev, plain, v})
	same(t, "all primaries and fallbacks", all(key.StatePrimary, key.StateFallback), []key.Version{dev, v})
	same(t, "all orphans", len(all(key.StateOrphan)), 0)

	v.State, v.Note, v.ReadOut, v.Expires = key.StateRetired, "", false, time.Time{}
	f.update(t, func(tx store.Tx) error { return tx.PutVersion(v) })
	same(t, "versions after a change", read(t, f, versions), []key.Version{plain, v})
	f.missing(t, "version", func(tx store.Tx) error { _, err := tx.Version(version(alpha(), 3)); return err })
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutVersion(f.version(0, key.StateIntent)) })
}

func testStates(t *testing.T, f *fixture) {
	f.seed(t)
	for i, s := range key.States() {
		v := f.version(key.Number(i+1), s)
		f.update(t, func(tx store.Tx) error { return tx.PutVersion(v) })
		same(t, "version", read(t, f, func(tx store.Tx) (key.Version, error) { return tx.Version(v.ID) }), v)
	}
	for _, s := range []key.State{"", "Primary", "gone"} {
		f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutVersion(f.version(100, s)) })
	}
	bad := f.version(100, key.StateRetired)
	bad.Origin = "found"
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutVersion(bad) })
	same(t, "versions", len(read(t, f, func(tx store.Tx) ([]key.Version, error) { return tx.AllVersions() })), len(key.States()))
}

func testSlots(t *testing.T, f *fixture) {
	for i, s := range []key.State{key.StatePrimary, key.StateFallback, key.StateCandidate} {
		f.seed(t)
		n := key.Number(2*i + 1)
		f.update(t, func(tx store.Tx) error { return tx.PutVersion(f.version(n, s)) })
		f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.PutVersion(f.version(n+1, s)) })
		f.refused(t, key.ErrConflict, func(tx store.Tx) error { // not even for those who look away
			_ = tx.PutVersion(f.version(n+1, s))
			return nil
		})
		f.missing(t, "second version", func(tx store.Tx) error { _, err := tx.Version(version(alpha(), n+1)); return err })
		got := read(t, f, func(tx store.Tx) (key.Version, error) { return tx.Version(version(alpha(), n)) })
		same(t, "first version", got.State, s)
		f.update(t, func(tx store.Tx) error { return tx.PutVersion(f.version(n, s)) }) // again, the same

		// Another credential has slots of its own.
		other := f.version(1, s)
		other.ID.Credential = credential("beta", "prod")
		f.update(t, func(tx store.Tx) error { return tx.PutVersion(other) })
		f.update(t, func(tx store.Tx) error {
			other.State = key.StateRetired
			return tx.PutVersion(other)
		})
	}

	// A refusal that fn gets over leaves the slot to whom it belongs.
	marked := f.version(20, key.StateRetired)
	marked.Fingerprint = "fp"
	f.update(t, func(tx store.Tx) error { return tx.PutVersion(marked) })
	f.update(t, func(tx store.Tx) error {
		w := f.version(21, key.StatePrimary)
		w.Fingerprint = "fp"
		if err := tx.PutVersion(w); !errors.Is(err, key.ErrExists) {
			t.Errorf("got error %v, want %v", err, key.ErrExists)
		}
		return nil
	})
	f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.PutVersion(f.version(21, key.StatePrimary)) })
}

func testSwap(t *testing.T, f *fixture) {
	f.seed(t, key.StatePrimary, key.StateFallback, key.StateCandidate)
	states := func() string {
		t.Helper()
		s := ""
		for _, v := range read(t, f, func(tx store.Tx) ([]key.Version, error) { return tx.Versions(alpha()) }) {
			s += fmt.Sprintf("%s %s,", v.ID.Number, v.State)
		}
		return s
	}
	put := func(pairs ...any) error {
		return f.Update(context.Background(), why(), func(tx store.Tx) error {
			for i := 0; i < len(pairs); i += 2 {
				if err := tx.PutVersion(f.version(key.Number(pairs[i].(int)), pairs[i+1].(key.State))); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := put(1, key.StateFallback, 2, key.StatePrimary); err != nil {
		t.Fatalf("swapping, the primary first: %v", err)
	}
	same(t, "states", states(), "v1 fallback,v2 primary,v3 candidate,")
	if err := put(1, key.StatePrimary, 2, key.StateFallback); err != nil {
		t.Fatalf("swapping, the fallback first: %v", err)
	}
	same(t, "states", states(), "v1 primary,v2 fallback,v3 candidate,")
	if err := put(3, key.StateFallback, 2, key.StateRetired, 2, key.StateRetired); err != nil {
		t.Fatalf("displacing a fallback: %v", err)
	}
	if err := put(3, key.StatePrimary, 2, key.StateFallback, 1, key.StateCandidate); err != nil {
		t.Fatalf("turning three: %v", err)
	}
	same(t, "states", states(), "v1 candidate,v2 fallback,v3 primary,")
	if err := put(1, key.StatePrimary, 3, key.StateFallback); !errors.Is(err, key.ErrConflict) {
		t.Fatalf("a swap that leaves two fallbacks: got error %v, want %v", err, key.ErrConflict)
	}
	if err := put(1, key.StatePrimary, 3, key.StatePrimary); !errors.Is(err, key.ErrConflict) {
		t.Fatalf("two primaries: got error %v, want %v", err, key.ErrConflict)
	}
	same(t, "states", states(), "v1 candidate,v2 fallback,v3 primary,")
}

func testFingerprints(t *testing.T, f *fixture) {
	f.seed(t)
	marked := func(id key.CredentialID, n key.Number, fp string) key.Version {
		v := f.version(n, key.StateRetired)
		v.ID.Credential, v.Fingerprint = id, fp
		return v
	}
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutVersion(marked(alpha(), 1, "x")), tx.PutVersion(marked(alpha(), 2, "")), tx.PutVersion(marked(alpha(), 3, "")),
			tx.PutVersion(marked(credential("beta", "prod"), 1, "x")), tx.PutVersion(marked(alpha(), 1, "x")))
	})
	f.refused(t, key.ErrExists, func(tx store.Tx) error { return tx.PutVersion(marked(alpha(), 4, "x")) })
	f.refused(t, key.ErrExists, func(tx store.Tx) error { return tx.PutVersion(marked(alpha(), 2, "x")) })
	f.update(t, func(tx store.Tx) error { // a refusal can be got over
		if err := tx.PutVersion(marked(alpha(), 4, "x")); !errors.Is(err, key.ErrExists) {
			t.Errorf("got error %v, want %v", err, key.ErrExists)
		}
		return tx.PutVersion(marked(alpha(), 4, "y"))
	})
	same(t, "versions", len(read(t, f, func(tx store.Tx) ([]key.Version, error) { return tx.Versions(alpha()) })), 4)
}

func testSealed(t *testing.T, f *fixture) {
	f.seed(t, key.StatePrimary, key.StateFallback, key.StateRetired)
	v1, v2, v3 := version(alpha(), 1), version(alpha(), 2), version(alpha(), 3)
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.PutSealed(v1, f.seal("prod", []byte("box"))) })
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutDataKey("prod", []byte{0, 1, 0xff}), tx.PutDataKey("dev", []byte("w")))
	})
	f.refused(t, key.ErrExists, func(tx store.Tx) error { return tx.PutDataKey("prod", []byte("other")) })
	same(t, "data keys", read(t, f, store.Tx.DataKeys), map[string][]byte{"prod": {0, 1, 0xff}, "dev": []byte("w")})
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.PutSealed(version(alpha(), 9), f.seal("prod", []byte("box"))) })
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutSealed(v1, key.Sealed{}) })
	f.missing(t, "sealed key", func(tx store.Tx) error { _, err := tx.Sealed(v1); return err })

	box := []byte{1, 0, 0xfe, 'x'}
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutSealed(v1, f.seal("prod", box)), tx.PutSealed(v3, f.seal("dev", []byte("three"))))
	})
	same(t, "sealed key", read(t, f, func(tx store.Tx) (key.Sealed, error) { return tx.Sealed(v1) }), f.seal("prod", box))
	f.update(t, func(tx store.Tx) error { return tx.PutSealed(v1, f.seal("dev", []byte("again"))) })
	all := func(states ...key.State) map[key.VersionID]key.Sealed {
		t.Helper()
		return read(t, f, func(tx store.Tx) (map[key.VersionID]key.Sealed, error) { return tx.AllSealed(states...) })
	}
	one, three := f.seal("dev", []byte("again")), f.seal("dev", []byte("three"))
	same(t, "all sealed keys", all(), map[key.VersionID]key.Sealed{v1: one, v3: three})
	same(t, "those of the slots", all(key.StatePrimary, key.StateFallback), map[key.VersionID]key.Sealed{v1: one})
	f.missing(t, "sealed key", func(tx store.Tx) error { _, err := tx.Sealed(v2); return err })
}
