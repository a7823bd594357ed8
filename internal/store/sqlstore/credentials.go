package sqlstore

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// Rows are sorted here where their order is one of texts: databases compare
// texts by rules of their own.

// Revision implements [store.Tx].
func (t *transaction) Revision() (key.Revision, error) {
	if t.touched {
		return t.rev, nil
	}
	r, err := one(t, readRevision, `SELECT epoch, number FROM meta WHERE id = 0`)
	return r, wrap(err, "reading the revision")
}

func readRevision(s scan) (r key.Revision, err error) { return r, s(&r.Epoch, &r.Number) }

// TouchAll implements [store.Tx].
func (t *transaction) TouchAll() (key.Revision, error) {
	if err := t.may(inUpdate, "touching"); err != nil {
		return key.Revision{}, err
	}
	if t.touched {
		return t.rev, nil
	}
	r, err := one(t, readRevision, `UPDATE meta SET number = number + 1 WHERE id = 0 RETURNING epoch, number`)
	if err != nil {
		return key.Revision{}, wrap(err, "making a revision")
	}
	t.touched, t.rev = true, r
	return r, nil
}

// lostNumbers is how many numbers of versions are passed over in each
// credential when an epoch begins: those that were given after the backup was
// made are in use somewhere, and no number is used twice.
const lostNumbers = 1000

// newEpoch begins the next epoch: the Unix time in seconds, as a backup that is
// restored twice must not begin the same epoch twice, or one more than the last.
func (t *transaction) newEpoch() error {
	if _, err := t.exec(`UPDATE meta SET epoch = CASE WHEN epoch < $1 THEN $1 ELSE epoch + 1 END WHERE id = 0`, t.now.Unix()); err != nil {
		return wrap(err, "beginning an epoch")
	}
	for _, table := range []string{"credential", "spent"} {
		if _, err := t.exec(`UPDATE `+table+` SET next_number = next_number + $1`, lostNumbers); err != nil {
			return wrap(err, "beginning an epoch")
		}
	}
	_, err := t.TouchAll()
	return err
}

// Touch implements [store.Tx].
func (t *transaction) Touch(id key.CredentialID) (key.Revision, error) {
	r, err := t.TouchAll()
	if err != nil {
		return key.Revision{}, err
	}
	err = gone(t.exec(`UPDATE credential SET epoch = $3, revision = $4 WHERE service = $1 AND environment = $2`,
		id.Service, id.Environment, r.Epoch, r.Number))
	if err != nil {
		return key.Revision{}, wrap(err, "touching credential %s", id)
	}
	return r, nil
}

// Services implements [store.Tx].
func (t *transaction) Services() ([]key.Service, error) {
	out, err := all(t, doc[key.Service], `SELECT doc FROM service ORDER BY name`)
	slices.SortFunc(out, func(a, b key.Service) int { return cmp.Compare(a.Name, b.Name) })
	return out, wrap(err, "reading services")
}

// Service implements [store.Tx].
func (t *transaction) Service(name string) (key.Service, error) {
	s, err := one(t, doc[key.Service], `SELECT doc FROM service WHERE name = $1`, name)
	return s, wrap(err, "reading service %q", name)
}

// PutService implements [store.Tx].
func (t *transaction) PutService(s key.Service) error {
	if err := t.may(inUpdate, "writing a service"); err != nil {
		return err
	}
	d, err := encode(s)
	if err == nil {
		_, err = t.exec(`INSERT INTO service (name, doc) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET doc = excluded.doc`, s.Name, d)
	}
	return wrap(err, "writing service %q", s.Name)
}

// DeleteService implements [store.Tx].
func (t *transaction) DeleteService(name string) error {
	if err := t.may(inUpdate, "deleting a service"); err != nil {
		return err
	}
	used, err := one(t, text, `SELECT environment FROM credential WHERE service = $1 ORDER BY environment LIMIT 1`, name)
	if err == nil {
		return key.WithHint(fmt.Errorf("deleting service %q: %w: it has a credential in %q", name, key.ErrConflict, used),
			"delete its credentials first")
	}
	if t.err == nil {
		err = gone(t.exec(`DELETE FROM service WHERE name = $1`, name))
	}
	return wrap(err, "deleting service %q", name)
}

// Policies implements [store.Tx].
func (t *transaction) Policies() ([]rotation.Policy, error) {
	out, err := all(t, doc[rotation.Policy], `SELECT doc FROM policy ORDER BY name`)
	slices.SortFunc(out, func(a, b rotation.Policy) int { return cmp.Compare(a.Name, b.Name) })
	return out, wrap(err, "reading policies")
}

// Policy implements [store.Tx].
func (t *transaction) Policy(name string) (rotation.Policy, error) {
	p, err := one(t, doc[rotation.Policy], `SELECT doc FROM policy WHERE name = $1`, name)
	return p, wrap(err, "reading policy %q", name)
}

// PutPolicy implements [store.Tx].
func (t *transaction) PutPolicy(p rotation.Policy) error {
	if err := t.may(inUpdate, "writing a policy"); err != nil {
		return err
	}
	d, err := encode(p)
	if err == nil {
		_, err = t.exec(`INSERT INTO policy (name, doc) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET doc = excluded.doc`, p.Name, d)
	}
	return wrap(err, "writing policy %q", p.Name)
}

// DeletePolicy implements [store.Tx].
func (t *transaction) DeletePolicy(name string) error {
	if err := t.may(inUpdate, "deleting a policy"); err != nil {
		return err
	}
	return wrap(gone(t.exec(`DELETE FROM policy WHERE name = $1`, name)), "deleting policy %q", name)
}

// settings is what the doc of a credential holds.
type settings struct {
	Params map[string]string `json:"params,omitempty"`
	Call   key.Call          `json:"call"`
	Epoch  int64             `json:"epoch,omitempty"`
}

const credentialColumns = `service, environment, primary_slot, fallback_slot, candidate_slot, next_number, policy, upstream,
	epoch, revision, created_ms, rotated_ms, doc`

// credentialReader reads credentials. Those of one service mostly have the same
// doc, which is decoded once and copied.
func credentialReader() func(scan) (key.Credential, error) {
	var last string
	var have settings
	return func(s scan) (c key.Credential, err error) {
		var d string
		var created, rotated int64
		if err := s(&c.ID.Service, &c.ID.Environment, (*int64)(&c.Slots.Primary), (*int64)(&c.Slots.Fallback), (*int64)(&c.Slots.Candidate),
			(*int64)(&c.Next), &c.Policy, &c.Upstream, &c.Revision.Epoch, &c.Revision.Number, &created, &rotated, &d); err != nil {
			return c, err
		}
		c.Created, c.Rotated = at(created), at(rotated)
		if d != last {
			if have, err = doc[settings](func(dest ...any) error { *(dest[0].(*[]byte)) = []byte(d); return nil }); err != nil {
				return c, err
			}
			last = d
		}
		c.Params, c.Call, c.Epoch = maps.Clone(have.Params), have.Call.Clone(), have.Epoch
		return c, nil
	}
}

func sortCredentials(cs []key.Credential) []key.Credential {
	slices.SortFunc(cs, func(a, b key.Credential) int { return a.ID.Compare(b.ID) })
	return cs
}

// Credentials implements [store.Tx].
func (t *transaction) Credentials() ([]key.Credential, error) {
	out, err := all(t, credentialReader(), `SELECT `+credentialColumns+` FROM credential ORDER BY service, environment`)
	return sortCredentials(out), wrap(err, "reading credentials")
}

// Credential implements [store.Tx].
func (t *transaction) Credential(id key.CredentialID) (key.Credential, error) {
	c, err := one(t, credentialReader(), `SELECT `+credentialColumns+` FROM credential WHERE service = $1 AND environment = $2`,
		id.Service, id.Environment)
	return c, wrap(err, "reading credential %s", id)
}

// exists returns key.ErrNotFound for a credential that is not there.
func (t *transaction) exists(id key.CredentialID) error {
	ok, err := t.has(`SELECT 1 FROM credential WHERE service = $1 AND environment = $2`, id.Service, id.Environment)
	if err == nil && !ok {
		err = key.ErrNotFound
	}
	return wrap(err, "credential %s", id)
}

// listed returns the list of something of a credential, or key.ErrNotFound if it
// is empty because there is no such credential.
func listed[T any](t *transaction, id key.CredentialID, list []T, err error) ([]T, error) {
	if err == nil && len(list) == 0 && !id.IsZero() {
		err = t.exists(id)
	}
	return list, err
}

// ChangedSince implements [store.Tx].
func (t *transaction) ChangedSince(r key.Revision) ([]key.Credential, error) {
	have, err := t.Revision()
	if err != nil {
		return nil, err
	}
	if !have.Reached(r) {
		return nil, fmt.Errorf("reading what changed since revision %s: %w: the store is at %s", r, key.ErrStale, have)
	}
	out, err := all(t, credentialReader(), `SELECT `+credentialColumns+` FROM credential WHERE epoch = $1 AND revision > $2`,
		r.Epoch, r.Number)
	return sortCredentials(out), wrap(err, "reading what changed since revision %s", r)
}

// PutCredential implements [store.Tx].
func (t *transaction) PutCredential(c key.Credential) error {
	if err := t.may(inUpdate, "writing a credential"); err != nil {
		return err
	}
	d, err := encode(settings{Params: c.Params, Call: c.Call, Epoch: c.Epoch})
	if err != nil {
		return wrap(err, "writing credential %s", c.ID)
	}
	n, err := t.exec(`INSERT INTO credential (`+credentialColumns+`)
		SELECT $1, $2, $3, $4, $5, CASE WHEN p.next_number > $6 THEN p.next_number ELSE $6 END, $7, $8, 0, 0, $9, $10, $11
		FROM service s LEFT JOIN spent p ON p.service = $1 AND p.environment = $2
		WHERE s.name = $1
		ON CONFLICT (service, environment) DO UPDATE SET
			primary_slot = excluded.primary_slot, fallback_slot = excluded.fallback_slot, candidate_slot = excluded.candidate_slot,
			next_number = CASE WHEN credential.next_number > excluded.next_number THEN credential.next_number ELSE excluded.next_number END,
			policy = excluded.policy, upstream = excluded.upstream,
			created_ms = excluded.created_ms, rotated_ms = excluded.rotated_ms, doc = excluded.doc`,
		c.ID.Service, c.ID.Environment, int64(c.Slots.Primary), int64(c.Slots.Fallback), int64(c.Slots.Candidate), int64(c.Next),
		c.Policy, c.Upstream, ms(c.Created), ms(c.Rotated), d)
	if err == nil && n == 0 {
		err = fmt.Errorf("service %q: %w", c.ID.Service, key.ErrNotFound)
	}
	return wrap(err, "writing credential %s", c.ID)
}

// DeleteCredential implements [store.Tx].
func (t *transaction) DeleteCredential(id key.CredentialID) error {
	if err := t.may(inUpdate, "deleting a credential"); err != nil {
		return err
	}
	vs, err := t.Versions(id)
	if err != nil {
		return wrap(err, "deleting credential %s", id)
	}
	for _, v := range vs {
		if !v.State.Terminal() {
			return key.WithHint(fmt.Errorf("deleting credential %s: %w: %s is %s", id, key.ErrConflict, v.ID.Number, v.State),
				"revoke its versions first")
		}
	}
	_, err = t.exec(`INSERT INTO spent (service, environment, next_number)
		SELECT service, environment, next_number FROM credential WHERE service = $1 AND environment = $2
		ON CONFLICT (service, environment) DO UPDATE SET next_number = excluded.next_number`, id.Service, id.Environment)
	if err == nil {
		err = gone(t.exec(`DELETE FROM credential WHERE service = $1 AND environment = $2`, id.Service, id.Environment))
	}
	return wrap(err, "deleting credential %s", id)
}
