package sqlstore

import (
	"fmt"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// Rotation implements [store.Tx].
func (t *transaction) Rotation(id string) (rotation.Rotation, error) {
	r, err := one(t, doc[rotation.Rotation], `SELECT doc FROM rotation WHERE id = $1`, id)
	return r, wrap(err, "reading rotation %q", id)
}

// OpenRotation implements [store.Tx].
func (t *transaction) OpenRotation(id key.CredentialID) (rotation.Rotation, error) {
	r, err := one(t, doc[rotation.Rotation], `SELECT doc FROM rotation WHERE service = $1 AND environment = $2
		AND state NOT IN ('done', 'rolled_back', 'superseded')`, id.Service, id.Environment)
	return r, wrap(err, "reading the open rotation of %s", id)
}

// OpenRotations implements [store.Tx].
func (t *transaction) OpenRotations() ([]rotation.Rotation, error) {
	out, err := all(t, doc[rotation.Rotation], `SELECT doc FROM rotation WHERE state NOT IN ('done', 'rolled_back', 'superseded')`)
	sortBy(out, func(r rotation.Rotation) key.CredentialID { return r.Credential }, key.CredentialID.Compare)
	return out, wrap(err, "reading the open rotations")
}

// Rotations implements [store.Tx].
func (t *transaction) Rotations(id key.CredentialID, limit int) ([]rotation.Rotation, error) {
	if id.IsZero() {
		out, err := all(t, doc[rotation.Rotation], `SELECT doc FROM rotation ORDER BY started_ms DESC, place DESC LIMIT $1`, most(limit))
		return out, wrap(err, "reading rotations")
	}
	out, err := all(t, doc[rotation.Rotation], `SELECT doc FROM rotation WHERE service = $1 AND environment = $2
		ORDER BY started_ms DESC, place DESC LIMIT $3`, id.Service, id.Environment, most(limit))
	out, err = listed(t, id, out, err)
	return out, wrap(err, "reading rotations of %s", id)
}

// PutRotation implements [store.Tx].
func (t *transaction) PutRotation(r rotation.Rotation) error {
	if err := t.may(inUpdate, "writing a rotation"); err != nil {
		return err
	}
	return wrap(t.putRotation(r), "writing rotation %q of %s", r.ID, r.Credential)
}

func (t *transaction) putRotation(r rotation.Rotation) error {
	if err := t.exists(r.Credential); err != nil {
		return err
	}
	if !r.State.Ended() {
		other, err := one(t, text, `SELECT id FROM rotation WHERE service = $1 AND environment = $2
			AND state NOT IN ('done', 'rolled_back', 'superseded') AND id <> $3`, r.Credential.Service, r.Credential.Environment, r.ID)
		if err == nil {
			return fmt.Errorf("%w: rotation %q has not ended", key.ErrConflict, other)
		}
		if t.err != nil {
			return t.err
		}
	}
	d, err := encode(r)
	if err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO rotation (id, place, service, environment, machine, kind, state, started_ms, doc)
		VALUES ($1, (SELECT COALESCE(MAX(place), 0) + 1 FROM rotation), $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (id) DO UPDATE SET machine = excluded.machine, kind = excluded.kind, state = excluded.state,
			started_ms = excluded.started_ms, doc = excluded.doc
			WHERE rotation.service = excluded.service AND rotation.environment = excluded.environment`,
		r.ID, r.Credential.Service, r.Credential.Environment, int64(r.Machine), string(r.Kind), string(r.State), ms(r.Started), d)
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: it is of another credential", key.ErrConflict)
	}
	return err
}

// PutGate implements [store.Tx].
func (t *transaction) PutGate(id string, g rotation.Gate) error {
	if err := t.may(inObserve, "noting a gate"); err != nil {
		return err
	}
	r, err := t.Rotation(id)
	if err == nil && r.State.Ended() {
		err = fmt.Errorf("%w: the rotation has ended", key.ErrConflict)
	}
	var d string
	if err == nil {
		r.Gate = g
		d, err = encode(r)
	}
	if err == nil {
		_, err = t.exec(`UPDATE rotation SET doc = $2 WHERE id = $1`, id, d)
	}
	return wrap(err, "noting the gate of rotation %q", id)
}

// Retirement implements [store.Tx].
func (t *transaction) Retirement(id key.VersionID) (rotation.Retirement, error) {
	r, err := one(t, doc[rotation.Retirement], `SELECT doc FROM retirement WHERE service = $1 AND environment = $2 AND number = $3`,
		id.Credential.Service, id.Credential.Environment, int64(id.Number))
	return r, wrap(err, "reading the retirement of %s", id)
}

// Retirements implements [store.Tx].
func (t *transaction) Retirements(id key.CredentialID) ([]rotation.Retirement, error) {
	if id.IsZero() {
		out, err := all(t, doc[rotation.Retirement], `SELECT doc FROM retirement WHERE ended_ms = 0`)
		sortBy(out, func(r rotation.Retirement) key.VersionID { return r.Version }, compareVersions)
		return out, wrap(err, "reading retirements")
	}
	out, err := all(t, doc[rotation.Retirement], `SELECT doc FROM retirement
		WHERE service = $1 AND environment = $2 AND ended_ms = 0 ORDER BY number`, id.Service, id.Environment)
	out, err = listed(t, id, out, err)
	return out, wrap(err, "reading retirements of %s", id)
}

// PutRetirement implements [store.Tx].
func (t *transaction) PutRetirement(r rotation.Retirement) error {
	if err := t.may(inUpdate, "writing a retirement"); err != nil {
		return err
	}
	id := r.Version
	d, err := encode(r)
	if err != nil {
		return wrap(err, "writing the retirement of %s", id)
	}
	n, err := t.exec(`INSERT INTO retirement (service, environment, number, state, ended_ms, doc)
		SELECT v.service, v.environment, v.number, $4, $5, $6 FROM version v
		WHERE v.service = $1 AND v.environment = $2 AND v.number = $3
		ON CONFLICT (service, environment, number) DO UPDATE SET
			state = excluded.state, ended_ms = excluded.ended_ms, doc = excluded.doc`,
		id.Credential.Service, id.Credential.Environment, int64(id.Number), string(r.State), ms(r.Ended), d)
	return wrap(gone(n, err), "writing the retirement of %s", id)
}

// PutRetirementGate implements [store.Tx].
func (t *transaction) PutRetirementGate(id key.VersionID, g rotation.Gate) error {
	if err := t.may(inObserve, "noting a gate"); err != nil {
		return err
	}
	r, err := t.Retirement(id)
	if err == nil && !r.Ended.IsZero() {
		err = fmt.Errorf("%w: the retirement has ended", key.ErrConflict)
	}
	var d string
	if err == nil {
		r.Gate = g
		d, err = encode(r)
	}
	if err == nil {
		_, err = t.exec(`UPDATE retirement SET doc = $4 WHERE service = $1 AND environment = $2 AND number = $3`,
			id.Credential.Service, id.Credential.Environment, int64(id.Number), d)
	}
	return wrap(err, "noting the gate of the retirement of %s", id)
}
