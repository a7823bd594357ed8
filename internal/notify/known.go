package notify

import (
	"errors"
	"maps"
	"slices"

	"github.com/keybaton/keybaton/internal/detect"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// known is what the last look read of the credentials that concern the
// detector, so that the next one reads only what has changed since. The audit
// log says what that is: see [store.Store.Update]. What is under way is read
// each time, as gates are noted without an entry.
type known struct {
	seq   int64        // of the audit log
	rev   key.Revision // of the store
	creds map[key.CredentialID]detect.Credential
}

// Beyond so many, reading everything anew costs less than going one by one.
const (
	manyEntries = 1000
	manyCreds   = 1000
)

// credentials returns those of which a step of the detector can say anything:
// those that some process has used, that it remembers, and that have something
// under way or an end that could not be proven. Most of many are idle, and cost
// nothing. They are sorted by id.
func (k *known) credentials(tx store.Tx, s detect.State, boots []evidence.Boot) ([]detect.Credential, error) {
	if err := k.forget(tx); err != nil {
		return nil, err
	}
	want := map[key.CredentialID]bool{}
	for _, in := range s.Incidents {
		want[in.Version.Credential] = true
	}
	for _, u := range s.Undead {
		want[u.Version.Credential] = true
	}
	for _, b := range boots {
		for _, u := range b.Uses {
			want[u.Version.Credential] = true
		}
	}
	unproven, err := tx.AllVersions(key.StateUnproven)
	if err != nil {
		return nil, err
	}
	for _, v := range unproven {
		want[v.ID.Credential] = true
	}
	rotations, err := tx.OpenRotations()
	if err != nil {
		return nil, err
	}
	open := make(map[key.CredentialID]*rotation.Rotation, len(rotations))
	for i, r := range rotations {
		want[r.Credential], open[r.Credential] = true, &rotations[i]
	}
	all, err := tx.Retirements(key.CredentialID{})
	if err != nil {
		return nil, err
	}
	retirements := map[key.CredentialID][]rotation.Retirement{}
	for _, r := range all {
		id := r.Version.Credential
		want[id], retirements[id] = true, append(retirements[id], r)
	}
	if err := k.read(tx, want); err != nil {
		return nil, err
	}
	out := make([]detect.Credential, 0, len(k.creds))
	for id, d := range k.creds {
		d.Open, d.Retirements = open[id], retirements[id]
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b detect.Credential) int { return a.ID.Compare(b.ID) })
	return out, nil
}

// forget drops what may have changed.
func (k *known) forget(tx store.Tx) error {
	head, err := tx.Head()
	if err != nil {
		return err
	}
	rev, err := tx.Revision()
	if err != nil {
		return err
	}
	seq, was := k.seq, k.rev
	k.seq, k.rev = head.Seq, rev
	if head.Seq == seq && rev == was {
		return nil
	}
	if head.Seq < seq || !rev.Reached(was) || head.Seq-seq > manyEntries {
		clear(k.creds)
		return nil
	}
	es, err := tx.Entries(seq+1, manyEntries)
	if err != nil {
		clear(k.creds)
		return err
	}
	for _, e := range es {
		switch {
		case !e.Credential.IsZero():
			delete(k.creds, e.Credential)
		case e.Action != askedAction:
			clear(k.creds)
			return nil
		}
	}
	return nil
}

// read makes k hold what want names, as far as it is there, and nothing else.
func (k *known) read(tx store.Tx, want map[key.CredentialID]bool) error {
	if k.creds == nil {
		k.creds = map[key.CredentialID]detect.Credential{}
	}
	maps.DeleteFunc(k.creds, func(id key.CredentialID, _ detect.Credential) bool { return !want[id] })
	if len(want)-len(k.creds) > manyCreds {
		return k.readAll(tx, want)
	}
	for id := range want {
		if _, ok := k.creds[id]; ok {
			continue
		}
		c, err := tx.Credential(id)
		if errors.Is(err, key.ErrNotFound) {
			continue // it was used, and is gone
		}
		if err != nil {
			return err
		}
		vs, err := tx.Versions(id)
		if err != nil {
			return err
		}
		k.creds[id] = detect.Credential{Credential: c, Versions: vs}
	}
	return nil
}

func (k *known) readAll(tx store.Tx, want map[key.CredentialID]bool) error {
	cs, err := tx.Credentials()
	if err != nil {
		return err
	}
	vs, err := tx.AllVersions()
	if err != nil {
		return err
	}
	for _, c := range cs {
		if want[c.ID] {
			k.creds[c.ID] = detect.Credential{Credential: c}
		}
	}
	for from := 0; from < len(vs); { // sorted: those of one credential follow each other
		id, to := vs[from].ID.Credential, from+1
		for to < len(vs) && vs[to].ID.Credential == id {
			to++
		}
		if d, ok := k.creds[id]; ok {
			d.Versions = slices.Clone(vs[from:to])
			k.creds[id] = d
		}
		from = to
	}
	return nil
}

func open(tx store.Tx, id key.CredentialID) (*rotation.Rotation, error) {
	r, err := tx.OpenRotation(id)
	if errors.Is(err, key.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &r, nil
}
