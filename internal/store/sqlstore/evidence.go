package sqlstore

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

// sortBy sorts list by what of returns.
func sortBy[T, K any](list []T, of func(T) K, compare func(a, b K) int) {
	slices.SortStableFunc(list, func(a, b T) int { return compare(of(a), of(b)) })
}

const holdColumns = `consumer, boot, service, environment, number, kind, epoch, revision, since_ms, until_ms, unbound`

func readHold(s scan) (h evidence.Hold, err error) {
	var since, until, unbound int64
	err = s(&h.Consumer, &h.Boot, &h.Version.Credential.Service, &h.Version.Credential.Environment, (*int64)(&h.Version.Number),
		(*string)(&h.Kind), &h.Revision.Epoch, &h.Revision.Number, &since, &until, &unbound)
	h.Since, h.Until, h.Unbound = at(since), at(until), unbound != 0
	return h, err
}

func sortHolds(hs []evidence.Hold) []evidence.Hold {
	slices.SortFunc(hs, func(a, b evidence.Hold) int {
		return cmp.Or(cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.Boot, b.Boot), compareVersions(a.Version, b.Version))
	})
	return hs
}

// Holds implements [store.Tx].
func (t *transaction) Holds(id key.CredentialID) ([]evidence.Hold, error) {
	if id.IsZero() {
		out, err := all(t, readHold, `SELECT `+holdColumns+` FROM hold`)
		return sortHolds(out), wrap(err, "reading holds")
	}
	out, err := all(t, readHold, `SELECT `+holdColumns+` FROM hold WHERE service = $1 AND environment = $2`, id.Service, id.Environment)
	out, err = listed(t, id, out, err)
	return sortHolds(out), wrap(err, "reading holds of %s", id)
}

// HoldsOf implements [store.Tx].
func (t *transaction) HoldsOf(consumer string) ([]evidence.Hold, error) {
	out, err := all(t, readHold, `SELECT `+holdColumns+` FROM hold WHERE consumer = $1`, consumer)
	return sortHolds(out), wrap(err, "reading holds of consumer %q", consumer)
}

// PutHold implements [store.Tx].
func (t *transaction) PutHold(h evidence.Hold) error {
	if err := t.may(inObserve, "writing a hold"); err != nil {
		return err
	}
	id := h.Version
	n, err := t.exec(`INSERT INTO hold (`+holdColumns+`)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 FROM version v
		WHERE v.service = $3 AND v.environment = $4 AND v.number = $5
		ON CONFLICT (consumer, boot, service, environment, number) DO UPDATE SET kind = excluded.kind, epoch = excluded.epoch,
			revision = excluded.revision, since_ms = excluded.since_ms, until_ms = excluded.until_ms, unbound = excluded.unbound`,
		h.Consumer, h.Boot, id.Credential.Service, id.Credential.Environment, int64(id.Number), string(h.Kind),
		h.Revision.Epoch, h.Revision.Number, ms(h.Since), ms(h.Until), bit(h.Unbound))
	return wrap(gone(n, err), "writing a hold of %q on %s", h.Consumer, id)
}

// DeleteHold implements [store.Tx].
func (t *transaction) DeleteHold(consumer, boot string, v key.VersionID) error {
	if err := t.may(inObserve, "deleting a hold"); err != nil {
		return err
	}
	n, err := t.exec(`DELETE FROM hold WHERE consumer = $1 AND boot = $2 AND service = $3 AND environment = $4 AND number = $5`,
		consumer, boot, v.Credential.Service, v.Credential.Environment, int64(v.Number))
	return wrap(gone(n, err), "deleting the hold of %q on %s", consumer, v)
}

// process names one process of a consumer.
type process struct{ consumer, boot string }

// Boots implements [store.Tx].
func (t *transaction) Boots(consumers ...string) ([]evidence.Boot, error) {
	if len(consumers) == 0 {
		out, err := t.boots("")
		return out, wrap(err, "reading boots")
	}
	consumers = slices.Clone(consumers)
	slices.Sort(consumers)
	var out []evidence.Boot
	for _, c := range slices.Compact(consumers) {
		bs, err := t.boots(` WHERE consumer = $1`, c)
		if err != nil {
			return nil, wrap(err, "reading boots of consumer %q", c)
		}
		out = append(out, bs...)
	}
	return out, nil
}

func (t *transaction) boots(where string, args ...any) ([]evidence.Boot, error) {
	out, err := all(t, doc[evidence.Boot], `SELECT doc FROM boot`+where, args...)
	if err != nil || len(out) == 0 {
		return nil, err
	}
	slices.SortFunc(out, func(a, b evidence.Boot) int {
		return cmp.Or(cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.Boot, b.Boot))
	})
	index := make(map[process]*evidence.Boot, len(out))
	for i := range out {
		index[process{out[i].Consumer, out[i].Boot}] = &out[i]
	}
	err = parts(t, index, func(b *evidence.Boot, u evidence.Use) { b.Uses = append(b.Uses, u) },
		`SELECT consumer, boot, doc FROM boot_use`+where, args...)
	if err == nil {
		err = parts(t, index, func(b *evidence.Boot, a evidence.Answers) { b.Answers = append(b.Answers, a) },
			`SELECT consumer, boot, doc FROM boot_answer`+where, args...)
	}
	if err != nil {
		return nil, err
	}
	for i := range out {
		sortBy(out[i].Uses, func(u evidence.Use) key.VersionID { return u.Version }, compareVersions)
		sortBy(out[i].Answers, func(a evidence.Answers) key.CredentialID { return a.Credential }, key.CredentialID.Compare)
	}
	return out, nil
}

// parts gives each row of the query to the boot that it belongs to.
func parts[T any](t *transaction, index map[process]*evidence.Boot, add func(*evidence.Boot, T), q string, args ...any) error {
	return t.each(func(s scan) error {
		var p process
		var d []byte
		if err := s(&p.consumer, &p.boot, &d); err != nil {
			return err
		}
		var v T
		if err := json.Unmarshal(d, &v); err != nil {
			return err
		}
		if b := index[p]; b != nil {
			add(b, v)
		}
		return nil
	}, q, args...)
}

// PutBoot implements [store.Tx].
func (t *transaction) PutBoot(b evidence.Boot) error {
	if err := t.may(inObserve, "writing a boot"); err != nil {
		return err
	}
	return wrap(t.putBoot(b), "writing boot %q of %q", b.Boot, b.Consumer)
}

func (t *transaction) putBoot(b evidence.Boot) error {
	uses, answers := b.Uses, b.Answers
	b.Uses, b.Answers = nil, nil // rows of their own
	d, err := encode(b)
	if err != nil {
		return err
	}
	if _, err := t.exec(`INSERT INTO boot (consumer, boot, doc) VALUES ($1, $2, $3)
		ON CONFLICT (consumer, boot) DO UPDATE SET doc = excluded.doc`, b.Consumer, b.Boot, d); err != nil {
		return err
	}
	for _, u := range uses {
		if d, err = encode(u); err != nil {
			return err
		}
		if _, err := t.exec(`INSERT INTO boot_use (consumer, boot, service, environment, number, doc) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (consumer, boot, service, environment, number) DO UPDATE SET doc = excluded.doc`,
			b.Consumer, b.Boot, u.Version.Credential.Service, u.Version.Credential.Environment, int64(u.Version.Number), d); err != nil {
			return err
		}
	}
	for _, a := range answers {
		if d, err = encode(a); err != nil {
			return err
		}
		if _, err := t.exec(`INSERT INTO boot_answer (consumer, boot, service, environment, doc) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (consumer, boot, service, environment) DO UPDATE SET doc = excluded.doc`,
			b.Consumer, b.Boot, a.Credential.Service, a.Credential.Environment, d); err != nil {
			return err
		}
	}
	return nil
}

// DeleteBoot implements [store.Tx].
func (t *transaction) DeleteBoot(consumer, boot string) error {
	if err := t.may(inObserve, "deleting a boot"); err != nil {
		return err
	}
	return wrap(gone(t.exec(`DELETE FROM boot WHERE consumer = $1 AND boot = $2`, consumer, boot)), "deleting boot %q of %q", boot, consumer)
}

// Asks implements [store.Tx].
func (t *transaction) Asks(id key.CredentialID) ([]evidence.Ask, error) {
	read := func(s scan) (a evidence.Ask, err error) {
		return a, s(&a.Version.Credential.Service, &a.Version.Credential.Environment, (*int64)(&a.Version.Number), &a.OK)
	}
	if id.IsZero() {
		out, err := all(t, read, `SELECT service, environment, number, ok FROM ask`)
		sortBy(out, func(a evidence.Ask) key.VersionID { return a.Version }, compareVersions)
		return out, wrap(err, "reading asks")
	}
	out, err := all(t, read, `SELECT service, environment, number, ok FROM ask WHERE service = $1 AND environment = $2 ORDER BY number`, id.Service, id.Environment)
	out, err = listed(t, id, out, err)
	return out, wrap(err, "reading asks of %s", id)
}

// PutAsks implements [store.Tx].
func (t *transaction) PutAsks(id key.CredentialID, asks []evidence.Ask) error {
	if err := t.may(inObserve, "writing asks"); err != nil {
		return err
	}
	return wrap(t.putAsks(id, asks), "writing asks of %s", id)
}

func (t *transaction) putAsks(id key.CredentialID, asks []evidence.Ask) error {
	if err := t.exists(id); err != nil {
		return err
	}
	for _, a := range asks {
		if a.Version.Credential != id {
			return fmt.Errorf("%w: an ask for %s", key.ErrInvalid, a.Version)
		}
	}
	if _, err := t.exec(`DELETE FROM ask WHERE service = $1 AND environment = $2`, id.Service, id.Environment); err != nil {
		return err
	}
	for _, a := range asks {
		if _, err := t.exec(`INSERT INTO ask (service, environment, number, ok) VALUES ($1, $2, $3, $4)
			ON CONFLICT (service, environment, number) DO UPDATE SET ok = excluded.ok`,
			id.Service, id.Environment, int64(a.Version.Number), a.OK); err != nil {
			return err
		}
	}
	return nil
}
