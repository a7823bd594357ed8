package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// rotation returns a rotation of alpha.
func (f *fixture) rotation(id string, s rotation.State) rotation.Rotation {
	return rotation.Rotation{ID: id, Credential: alpha(), Machine: rotation.Machine, Kind: rotation.Manual, State: s, Started: f.Tx(), Entered: f.Tx()}
}

func rotationIDs(rs []rotation.Rotation) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.ID)
	}
	return out
}

func testRotations(t *testing.T, f *fixture) {
	f.seed(t)
	r := f.rotation("r1", rotation.Soaking)
	r.From, r.To, r.By, r.Why, r.Paused = 1, 2, "ann", "because", true
	r.Revision = key.Revision{Epoch: 1, Number: 7}
	r.Marks = []rotation.Mark{{Consumer: "c", Boot: "b", Worse: 3}}
	r.Approved = map[rotation.Step]string{rotation.StepRetire: "ann"}
	r.Gate = rotation.Gate{Reason: "waits", Missing: []string{"c"}, Again: f.Tx()}
	r.Steps = []rotation.StepRecord{{Step: rotation.StepGenerate, Started: f.Tx(), Gate: "probed"}}
	open := func(tx store.Tx) error { _, err := tx.OpenRotation(alpha()); return err }
	f.missing(t, "open rotation", open)
	f.missing(t, "rotation", func(tx store.Tx) error { _, err := tx.Rotation("r1"); return err })
	f.update(t, func(tx store.Tx) error { return tx.PutRotation(r) })
	same(t, "rotation", read(t, f, func(tx store.Tx) (rotation.Rotation, error) { return tx.Rotation("r1") }), r)
	same(t, "open rotation", read(t, f, func(tx store.Tx) (rotation.Rotation, error) { return tx.OpenRotation(alpha()) }), r)
	same(t, "open rotations", read(t, f, store.Tx.OpenRotations), []rotation.Rotation{r})

	f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.PutRotation(f.rotation("r2", rotation.Planned)) })
	other := f.rotation("r1", rotation.Planned)
	other.Credential = credential("beta", "prod")
	f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.PutRotation(other) })
	lost := f.rotation("r3", rotation.Planned)
	lost.Credential = credential("no", "no")
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.PutRotation(lost) })

	// One supersedes another in one transaction, even at the same moment.
	r.State = rotation.Superseded
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutRotation(r), tx.PutRotation(f.rotation("r2", rotation.Planned)))
	})
	f.update(t, func(tx store.Tx) error { return tx.PutRotation(f.rotation("r2", rotation.Done)) })
	f.missing(t, "open rotation", open)
	same(t, "open rotations", len(read(t, f, store.Tx.OpenRotations)), 0)
	f.Move(time.Second)
	other.ID = "b1"
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutRotation(other), tx.PutRotation(f.rotation("r3", rotation.Planned)))
	})
	list := func(id key.CredentialID, limit int) []string {
		t.Helper()
		return rotationIDs(read(t, f, func(tx store.Tx) ([]rotation.Rotation, error) { return tx.Rotations(id, limit) }))
	}
	same(t, "rotations of alpha, newest first", list(alpha(), 0), []string{"r3", "r2", "r1"})
	same(t, "the newest two", list(alpha(), 2), []string{"r3", "r2"})
	same(t, "rotations of beta", list(credential("beta", "prod"), 5), []string{"b1"})
	same(t, "the newest of all", list(key.CredentialID{}, 1), []string{"r3"})
	same(t, "all rotations", len(list(key.CredentialID{}, 0)), 4)
}

func testRotationStates(t *testing.T, f *fixture) {
	f.seed(t)
	for _, s := range rotation.States() {
		f.update(t, func(tx store.Tx) error { return tx.PutRotation(f.rotation("r-"+string(s), s)) })
		if !s.Ended() { // it is the open one
			f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.PutRotation(f.rotation("other", rotation.Planned)) })
			f.update(t, func(tx store.Tx) error { return tx.PutRotation(f.rotation("r-"+string(s), rotation.Done)) })
		}
	}
	for _, k := range []rotation.Kind{rotation.Scheduled, rotation.Manual, rotation.Set, rotation.First, rotation.Spare, rotation.Emergency} {
		r := f.rotation("k-"+string(k), rotation.Done)
		r.Kind = k
		f.update(t, func(tx store.Tx) error { return tx.PutRotation(r) })
	}
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutRotation(f.rotation("bad", "sleeping")) })
	bad := f.rotation("bad", rotation.Done)
	bad.Kind = "odd"
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutRotation(bad) })
}

func testRetirements(t *testing.T, f *fixture) {
	f.seed(t, key.StateRetired, key.StateRevoking)
	beta := f.version(1, key.StateOrphan)
	beta.ID.Credential = credential("beta", "prod")
	r1 := rotation.Retirement{Version: version(alpha(), 1), State: key.StateRetired, Revision: key.Revision{Epoch: 1, Number: 2},
		Rotation: "r", Entered: f.Tx(), Attempts: 2, Gate: rotation.Gate{Reason: "waits"}}
	r2 := rotation.Retirement{Version: version(alpha(), 2), State: key.StateRevoking, Entered: f.Tx(), Attempts: 1}
	r3 := rotation.Retirement{Version: beta.ID, State: key.StateOrphan, Entered: f.Tx()}
	f.update(t, func(tx store.Tx) error {
		return errors.Join(tx.PutVersion(beta), tx.PutRetirement(r3), tx.PutRetirement(r2), tx.PutRetirement(r1))
	})
	same(t, "retirement", read(t, f, func(tx store.Tx) (rotation.Retirement, error) { return tx.Retirement(r1.Version) }), r1)
	list := func(id key.CredentialID) []rotation.Retirement {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]rotation.Retirement, error) { return tx.Retirements(id) })
	}
	same(t, "retirements of alpha", list(alpha()), []rotation.Retirement{r1, r2})
	same(t, "all retirements", list(key.CredentialID{}), []rotation.Retirement{r1, r2, r3})
	r2.State, r2.Ended = key.StateRevoked, f.Tx()
	f.update(t, func(tx store.Tx) error { return tx.PutRetirement(r2) })
	same(t, "retirements that have not ended", list(key.CredentialID{}), []rotation.Retirement{r1, r3})
	same(t, "those of alpha", list(alpha()), []rotation.Retirement{r1})
	same(t, "one that has", read(t, f, func(tx store.Tx) (rotation.Retirement, error) { return tx.Retirement(r2.Version) }), r2)

	f.missing(t, "retirement", func(tx store.Tx) error { _, err := tx.Retirement(version(alpha(), 3)); return err })
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error {
		return tx.PutRetirement(rotation.Retirement{Version: version(alpha(), 3), State: key.StateRetired})
	})
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error {
		return tx.PutRetirement(rotation.Retirement{Version: r1.Version, State: key.StatePrimary})
	})
}

func testGates(t *testing.T, f *fixture) {
	f.seed(t, key.StateRetired)
	v := version(alpha(), 1)
	r := f.rotation("r", rotation.Soaking)
	r.Why = "kept"
	out := rotation.Retirement{Version: v, State: key.StateRetired, Entered: f.Tx(), Rotation: "kept"}
	f.update(t, func(tx store.Tx) error { return errors.Join(tx.PutRotation(r), tx.PutRetirement(out)) })
	es := read(t, f, entries)
	r.Gate = rotation.Gate{Reason: "waits for c", Missing: []string{"c"}, Again: f.Tx().Add(time.Second)}
	out.Gate = rotation.Gate{Reason: "quiet", Person: true}
	f.observe(t, func(tx store.Tx) error {
		return errors.Join(tx.PutGate("r", r.Gate), tx.PutRetirementGate(v, out.Gate))
	})
	same(t, "rotation", read(t, f, func(tx store.Tx) (rotation.Rotation, error) { return tx.Rotation("r") }), r)
	same(t, "retirement", read(t, f, func(tx store.Tx) (rotation.Retirement, error) { return tx.Retirement(v) }), out)
	same(t, "entries", read(t, f, entries), es)

	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.PutGate("no", r.Gate) })
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.PutRetirementGate(version(alpha(), 9), r.Gate) })
	r.State, out.State, out.Ended = rotation.Done, key.StateRevoked, f.Tx()
	f.update(t, func(tx store.Tx) error { return errors.Join(tx.PutRotation(r), tx.PutRetirement(out)) })
	f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.PutGate("r", rotation.Gate{}) })
	f.refused(t, key.ErrConflict, func(tx store.Tx) error { return tx.PutRetirementGate(v, rotation.Gate{}) })
}
