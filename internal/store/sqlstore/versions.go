package sqlstore

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
)

const versionColumns = `service, environment, number, state, origin, vendor_id, label, fingerprint, read_out,
	created_ms, since_ms, expires_ms, saved, note, rotation`

func readVersion(s scan) (v key.Version, err error) {
	var readOut, created, since, expires int64
	err = s(&v.ID.Credential.Service, &v.ID.Credential.Environment, (*int64)(&v.ID.Number), (*string)(&v.State), (*string)(&v.Origin),
		&v.VendorID, &v.Label, &v.Fingerprint, &readOut, &created, &since, &expires, &v.Saved, &v.Note, &v.Rotation)
	v.ReadOut, v.Created, v.Since, v.Expires = readOut != 0, at(created), at(since), at(expires)
	return v, err
}

func compareVersions(a, b key.VersionID) int {
	return cmp.Or(a.Credential.Compare(b.Credential), cmp.Compare(a.Number, b.Number))
}

// inStates returns the condition that column is one of states, and its
// arguments; any state when there are none.
func inStates(column string, states []key.State) (string, []any) {
	if len(states) == 0 {
		return "", nil
	}
	places, args := make([]string, len(states)), make([]any, len(states))
	for i, st := range states {
		places[i], args[i] = "$"+strconv.Itoa(i+1), string(st)
	}
	return " WHERE " + column + " IN (" + strings.Join(places, ", ") + ")", args
}

// Versions implements [store.Tx].
func (t *transaction) Versions(id key.CredentialID) ([]key.Version, error) {
	out, err := all(t, readVersion, `SELECT `+versionColumns+` FROM version WHERE service = $1 AND environment = $2 ORDER BY number`,
		id.Service, id.Environment)
	out, err = listed(t, id, out, err)
	return out, wrap(err, "reading versions of %s", id)
}

// AllVersions implements [store.Tx].
func (t *transaction) AllVersions(states ...key.State) ([]key.Version, error) {
	where, args := inStates("state", states)
	out, err := all(t, readVersion, `SELECT `+versionColumns+` FROM version`+where, args...)
	slices.SortFunc(out, func(a, b key.Version) int { return compareVersions(a.ID, b.ID) })
	return out, wrap(err, "reading versions")
}

// Version implements [store.Tx].
func (t *transaction) Version(id key.VersionID) (key.Version, error) {
	v, err := one(t, readVersion, `SELECT `+versionColumns+` FROM version WHERE service = $1 AND environment = $2 AND number = $3`,
		id.Credential.Service, id.Credential.Environment, int64(id.Number))
	return v, wrap(err, "reading version %s", id)
}

// PutVersion implements [store.Tx].
func (t *transaction) PutVersion(v key.Version) error {
	if err := t.may(inUpdate, "writing a version"); err != nil {
		return err
	}
	return wrap(t.putVersion(v), "writing version %s", v.ID)
}

func (t *transaction) putVersion(v key.Version) error {
	id := v.ID.Credential
	var known, twin, inSlot int64 // the credential; the numbers that have the fingerprint and the slot
	err := t.each(func(s scan) error { return s(&known, &twin, &inSlot) }, `SELECT
		COALESCE((SELECT 1 FROM credential WHERE service = $1 AND environment = $2), 0),
		COALESCE((SELECT number FROM version WHERE service = $1 AND environment = $2
			AND fingerprint <> '' AND fingerprint = $4 AND number <> $3), 0),
		COALESCE((SELECT number FROM version WHERE service = $1 AND environment = $2
			AND state = $5 AND parked = 0 AND state IN ('primary', 'fallback', 'candidate') AND number <> $3), 0)`,
		id.Service, id.Environment, int64(v.ID.Number), v.Fingerprint, string(v.State))
	switch {
	case err != nil:
		return err
	case known == 0:
		return fmt.Errorf("credential %s: %w", id, key.ErrNotFound)
	case twin != 0:
		return fmt.Errorf("%w: %s has this fingerprint", key.ErrExists, key.Number(twin))
	case inSlot != 0:
		if _, err := t.exec(`UPDATE version SET parked = 1 WHERE service = $1 AND environment = $2 AND number = $3`,
			id.Service, id.Environment, inSlot); err != nil {
			return err
		}
		if t.crowded == nil {
			t.crowded = map[key.CredentialID]struct{}{}
		}
		t.crowded[id] = struct{}{}
	}
	_, err = t.exec(`INSERT INTO version (`+versionColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
		ON CONFLICT (service, environment, number) DO UPDATE SET parked = 0,
			state = excluded.state, origin = excluded.origin, vendor_id = excluded.vendor_id, label = excluded.label,
			fingerprint = excluded.fingerprint, read_out = excluded.read_out, created_ms = excluded.created_ms,
			since_ms = excluded.since_ms, expires_ms = excluded.expires_ms, saved = excluded.saved, note = excluded.note,
			rotation = excluded.rotation`,
		id.Service, id.Environment, int64(v.ID.Number), string(v.State), string(v.Origin), v.VendorID, v.Label, v.Fingerprint,
		bit(v.ReadOut), ms(v.Created), ms(v.Since), ms(v.Expires), v.Saved, v.Note, v.Rotation)
	return err
}

// checkSlots refuses to commit two versions in one slot. The schema does too;
// this says which.
func (t *transaction) checkSlots() error {
	for id := range t.crowded {
		v, err := one(t, readVersion, `SELECT `+versionColumns+` FROM version WHERE service = $1 AND environment = $2 AND parked = 1 LIMIT 1`,
			id.Service, id.Environment)
		if err == nil {
			return fmt.Errorf("writing versions of %s: %w: %s and another version are both %s", id, key.ErrConflict, v.ID.Number, v.State)
		}
		if t.err != nil {
			return t.err
		}
	}
	return nil
}

// Sealed implements [store.Tx].
func (t *transaction) Sealed(id key.VersionID) (key.Sealed, error) {
	v, err := one(t, func(s scan) (key.Sealed, error) {
		var name string
		var box []byte
		err := s(&name, &box)
		return key.SealedFrom(name, box), err
	}, `SELECT data_key, box FROM sealed WHERE service = $1 AND environment = $2 AND number = $3`,
		id.Credential.Service, id.Credential.Environment, int64(id.Number))
	return v, wrap(err, "reading the sealed key of %s", id)
}

// AllSealed implements [store.Tx].
func (t *transaction) AllSealed(states ...key.State) (map[key.VersionID]key.Sealed, error) {
	where, args := inStates("v.state", states)
	out := map[key.VersionID]key.Sealed{}
	err := t.each(func(s scan) error {
		var id key.VersionID
		var name string
		var box []byte
		err := s(&id.Credential.Service, &id.Credential.Environment, (*int64)(&id.Number), &name, &box)
		out[id] = key.SealedFrom(name, box)
		return err
	}, `SELECT s.service, s.environment, s.number, s.data_key, s.box FROM version v
		JOIN sealed s ON s.service = v.service AND s.environment = v.environment AND s.number = v.number`+where, args...)
	if err != nil {
		return nil, wrap(err, "reading sealed keys")
	}
	return out, nil
}

// PutSealed implements [store.Tx].
func (t *transaction) PutSealed(id key.VersionID, s key.Sealed) error {
	if err := t.may(inUpdate, "writing a sealed key"); err != nil {
		return err
	}
	if s.IsZero() {
		return fmt.Errorf("writing the sealed key of %s: %w: it is empty", id, key.ErrInvalid)
	}
	n, err := t.exec(`INSERT INTO sealed (service, environment, number, data_key, box)
		SELECT v.service, v.environment, v.number, k.name, $5 FROM version v, data_key k
		WHERE v.service = $1 AND v.environment = $2 AND v.number = $3 AND k.name = $4
		ON CONFLICT (service, environment, number) DO UPDATE SET data_key = excluded.data_key, box = excluded.box`,
		id.Credential.Service, id.Credential.Environment, int64(id.Number), s.DataKey(), s.Box())
	if err == nil && n == 0 {
		if _, err = t.Version(id); err == nil {
			err = fmt.Errorf("data key %q: %w", s.DataKey(), key.ErrNotFound)
		}
	}
	return wrap(err, "writing the sealed key of %s", id)
}

// DataKeys implements [store.Tx].
func (t *transaction) DataKeys() (map[string][]byte, error) {
	out := map[string][]byte{}
	err := t.each(func(s scan) error {
		var name string
		var wrapped []byte
		err := s(&name, &wrapped)
		out[name] = wrapped
		return err
	}, `SELECT name, wrapped FROM data_key`)
	if err != nil {
		return nil, wrap(err, "reading data keys")
	}
	return out, nil
}

// PutDataKey implements [store.Tx].
func (t *transaction) PutDataKey(name string, wrapped []byte) error {
	if err := t.may(inUpdate, "writing a data key"); err != nil {
		return err
	}
	if len(wrapped) == 0 {
		return fmt.Errorf("writing data key %q: %w: it is empty", name, key.ErrInvalid)
	}
	n, err := t.exec(`INSERT INTO data_key (name, wrapped, created_ms) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING`,
		name, wrapped, ms(t.now))
	if err == nil && n == 0 {
		err = key.ErrExists
	}
	return wrap(err, "writing data key %q", name)
}
