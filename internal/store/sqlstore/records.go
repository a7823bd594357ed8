package sqlstore

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
)

// Tokens implements [store.Tx].
func (t *transaction) Tokens() ([]access.Token, error) {
	out, err := all(t, doc[access.Token], `SELECT doc FROM token ORDER BY name`)
	slices.SortFunc(out, func(a, b access.Token) int { return cmp.Compare(a.Name, b.Name) })
	return out, wrap(err, "reading tokens")
}

// TokenByHash implements [store.Tx].
func (t *transaction) TokenByHash(hash string) (access.Token, error) {
	v, err := one(t, doc[access.Token], `SELECT doc FROM token WHERE hash = $1`, hash)
	return v, wrap(err, "reading a token")
}

// PutToken implements [store.Tx].
func (t *transaction) PutToken(v access.Token) error {
	if err := t.may(inUpdate, "writing a token"); err != nil {
		return err
	}
	d, err := encode(v)
	if err != nil {
		return wrap(err, "writing token %q", v.Name)
	}
	n, err := t.exec(`INSERT INTO token (name, hash, doc)
		SELECT $1, $2, $3 FROM meta WHERE NOT EXISTS
			(SELECT 1 FROM token o WHERE (o.name = $1 AND o.hash <> $2) OR (o.hash = $2 AND o.name <> $1))
		ON CONFLICT (name) DO UPDATE SET doc = excluded.doc`, v.Name, v.Hash, d)
	if err == nil && n == 0 {
		err = key.WithHint(fmt.Errorf("%w: a token of this name or hash", key.ErrExists), "delete it first, or use another name")
	}
	return wrap(err, "writing token %q", v.Name)
}

// DeleteToken implements [store.Tx].
func (t *transaction) DeleteToken(name string) error {
	if err := t.may(inUpdate, "deleting a token"); err != nil {
		return err
	}
	return wrap(gone(t.exec(`DELETE FROM token WHERE name = $1`, name)), "deleting token %q", name)
}

// Alerts implements [store.Tx].
func (t *transaction) Alerts(state alert.State, limit int) ([]alert.Alert, error) {
	var out []alert.Alert
	var err error
	if state == "" {
		out, err = all(t, doc[alert.Alert], `SELECT doc FROM alert ORDER BY started_ms DESC, id LIMIT $1`, most(limit))
	} else {
		out, err = all(t, doc[alert.Alert], `SELECT doc FROM alert WHERE state = $1 ORDER BY started_ms DESC, id LIMIT $2`,
			string(state), most(limit))
	}
	return out, wrap(err, "reading alerts")
}

// PutAlert implements [store.Tx].
func (t *transaction) PutAlert(a alert.Alert) error {
	if err := t.may(inObserve, "writing an alert"); err != nil {
		return err
	}
	d, err := encode(a)
	if err == nil {
		_, err = t.exec(`INSERT INTO alert (id, state, started_ms, doc) VALUES ($1, $2, $3, $4)
			ON CONFLICT (id) DO UPDATE SET state = excluded.state, started_ms = excluded.started_ms, doc = excluded.doc`,
			a.ID, string(a.State), ms(a.Started), d)
	}
	return wrap(err, "writing alert %q", a.ID)
}

// Deliveries implements [store.Tx].
func (t *transaction) Deliveries(due time.Time) ([]alert.Delivery, error) {
	out, err := all(t, doc[alert.Delivery], `SELECT doc FROM delivery WHERE sent_ms = 0 AND next_ms <= $1 ORDER BY created_ms, id`, ms(due))
	return out, wrap(err, "reading deliveries")
}

// PutDelivery implements [store.Tx].
func (t *transaction) PutDelivery(v alert.Delivery) error {
	if err := t.may(inObserve, "writing a delivery"); err != nil {
		return err
	}
	d, err := encode(v)
	if err == nil {
		_, err = t.exec(`INSERT INTO delivery (id, created_ms, next_ms, sent_ms, doc) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (id) DO UPDATE SET created_ms = excluded.created_ms, next_ms = excluded.next_ms,
				sent_ms = excluded.sent_ms, doc = excluded.doc`, v.ID, ms(v.Created), ms(v.Next), ms(v.Sent), d)
	}
	return wrap(err, "writing delivery %q", v.ID)
}

const entryColumns = `seq, at_ms, actor, action, service, environment, version, rotation, detail, prev, hash`

func readEntry(s scan) (e audit.Entry, err error) {
	var when int64
	var detail string
	err = s(&e.Seq, &when, &e.Actor, &e.Action, &e.Credential.Service, &e.Credential.Environment, (*int64)(&e.Version),
		&e.Rotation, &detail, &e.Prev, &e.Hash)
	e.At = time.UnixMilli(when).UTC()
	if err == nil && detail != "" {
		err = json.Unmarshal([]byte(detail), &e.Detail)
	}
	return e, err
}

// Audit implements [store.Tx].
func (t *transaction) Audit(e audit.Entry) error {
	if err := t.may(inUpdate, "writing an audit entry"); err != nil {
		return err
	}
	if e.Action == "" {
		return fmt.Errorf("writing an audit entry: %w: it has no action", key.ErrInvalid)
	}
	return wrap(t.append(e), "writing the audit entry %q", e.Action)
}

func (t *transaction) append(e audit.Entry) error {
	if t.head == nil {
		h, err := t.Head()
		if err != nil {
			return err
		}
		t.head = &h
	}
	e.At = t.now
	e = audit.Chain(*t.head, e)
	detail := ""
	if len(e.Detail) > 0 {
		var err error
		if detail, err = encode(e.Detail); err != nil {
			return err
		}
	}
	_, err := t.exec(`INSERT INTO audit (`+entryColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		e.Seq, e.At.UnixMilli(), e.Actor, e.Action, e.Credential.Service, e.Credential.Environment, int64(e.Version),
		e.Rotation, detail, e.Prev, e.Hash)
	if err == nil {
		h := e.Head()
		t.head = &h
	}
	return err
}

// Entries implements [store.Tx].
func (t *transaction) Entries(from int64, limit int) ([]audit.Entry, error) {
	out, err := all(t, readEntry, `SELECT `+entryColumns+` FROM audit WHERE seq >= $1 ORDER BY seq LIMIT $2`, from, most(limit))
	return out, wrap(err, "reading audit entries")
}

// Head implements [store.Tx].
func (t *transaction) Head() (audit.Head, error) {
	h, err := one(t, func(s scan) (h audit.Head, err error) { return h, s(&h.Seq, &h.Hash) },
		`SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1`)
	if t.err == nil && errors.Is(err, key.ErrNotFound) {
		return audit.Head{}, nil
	}
	return h, wrap(err, "reading the head of the audit chain")
}

// Setting implements [store.Tx].
func (t *transaction) Setting(name string) (string, error) {
	v, err := one(t, text, `SELECT value FROM setting WHERE name = $1`, name)
	if t.err == nil && errors.Is(err, key.ErrNotFound) {
		return "", nil
	}
	return v, wrap(err, "reading setting %q", name)
}

// PutSetting implements [store.Tx].
func (t *transaction) PutSetting(name, value string) error {
	if err := t.may(inObserve, "writing a setting"); err != nil {
		return err
	}
	_, err := t.exec(`INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
	return wrap(err, "writing setting %q", name)
}
