package sqlstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// A lease is free (no owner) and due at next_ms, or held and due again when its
// time ends. A claim clears a next_ms that has come: it is being answered. One
// that lies ahead, or is asked for while the lease is held (and maybe renewed),
// counts after the release.

const leaseColumns = `kind, item, owner, term, until_ms`

func readLease(s scan) (l store.Lease, err error) {
	var until int64
	err = s(&l.Kind, &l.Item, &l.Owner, &l.Term, &until)
	l.Until = at(until)
	return l, err
}

// claimable reports what is wrong with the terms of a claim.
func claimable(owner string, ttl time.Duration) error {
	if owner == "" || ttl < time.Millisecond {
		return fmt.Errorf("%w: a claim needs an owner and at least a millisecond, not %q and %s", key.ErrInvalid, owner, ttl)
	}
	return nil
}

// due returns t as it is stored, where 0 is never.
func due(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(1, t.UnixMilli())
}

// Claim implements [store.Tx].
func (t *transaction) Claim(kind, owner string, ttl time.Duration) (store.Lease, error) {
	if err := t.may(inObserve, "claiming"); err != nil {
		return store.Lease{}, err
	}
	l, err := t.claim(kind, owner, ttl)
	return l, wrap(err, "claiming a lease of kind %q", kind)
}

func (t *transaction) claim(kind, owner string, ttl time.Duration) (store.Lease, error) {
	if err := claimable(owner, ttl); err != nil {
		return store.Lease{}, err
	}
	return one(t, readLease, `UPDATE lease SET owner = $2, term = term + 1, until_ms = $3, due_ms = $3,
			next_ms = CASE WHEN next_ms > $4 THEN next_ms ELSE 0 END
		WHERE kind = $1 AND due_ms > 0 AND due_ms <= $4 AND item = (SELECT l.item FROM lease l
			WHERE l.kind = $1 AND l.due_ms > 0 AND l.due_ms <= $4 ORDER BY l.due_ms, l.item LIMIT 1)
		RETURNING `+leaseColumns, kind, owner, t.now.Add(ttl).UnixMilli(), t.now.UnixMilli())
}

// ClaimItem implements [store.Tx].
func (t *transaction) ClaimItem(kind, item, owner string, ttl time.Duration) (store.Lease, error) {
	if err := t.may(inObserve, "claiming"); err != nil {
		return store.Lease{}, err
	}
	l, err := t.claimItem(kind, item, owner, ttl)
	return l, wrap(err, "claiming the lease %s %q", kind, item)
}

func (t *transaction) claimItem(kind, item, owner string, ttl time.Duration) (store.Lease, error) {
	if err := claimable(owner, ttl); err != nil {
		return store.Lease{}, err
	}
	l, err := one(t, readLease, `INSERT INTO lease (kind, item, owner, term, until_ms, next_ms, due_ms) VALUES ($1, $2, $3, 1, $4, 0, $4)
		ON CONFLICT (kind, item) DO UPDATE SET owner = excluded.owner, term = lease.term + 1,
			until_ms = excluded.until_ms, due_ms = excluded.due_ms,
			next_ms = CASE WHEN lease.next_ms > $5 OR lease.owner = excluded.owner THEN lease.next_ms ELSE 0 END
			WHERE lease.owner = '' OR lease.owner = excluded.owner OR lease.until_ms <= $5
		RETURNING `+leaseColumns, kind, item, owner, t.now.Add(ttl).UnixMilli(), t.now.UnixMilli())
	if t.err != nil || !errors.Is(err, key.ErrNotFound) {
		return l, err
	}
	l, err = one(t, readLease, `SELECT `+leaseColumns+` FROM lease WHERE kind = $1 AND item = $2`, kind, item)
	if err != nil {
		return store.Lease{}, err
	}
	return store.Lease{}, key.WithHint(fmt.Errorf("%w: %q works on it", key.ErrConflict, l.Owner),
		"try again after "+l.Until.Format(time.RFC3339))
}

// Fence implements [store.Tx].
func (t *transaction) Fence(l store.Lease) error {
	held, err := t.has(`SELECT 1 FROM lease WHERE kind = $1 AND item = $2 AND owner = $3 AND term = $4 AND until_ms > $5`,
		l.Kind, l.Item, l.Owner, l.Term, t.now.UnixMilli())
	if err == nil && !held {
		err = key.ErrFenced
	}
	return wrap(err, "checking the lease %s %q", l.Kind, l.Item)
}

// Release implements [store.Tx].
func (t *transaction) Release(l store.Lease, next time.Time) error {
	if err := t.may(inObserve, "releasing"); err != nil {
		return err
	}
	n, err := t.exec(`UPDATE lease SET owner = '', until_ms = 0,
			next_ms = CASE WHEN next_ms > 0 AND (CAST($5 AS BIGINT) = 0 OR next_ms < $5) THEN next_ms ELSE $5 END,
			due_ms  = CASE WHEN next_ms > 0 AND (CAST($5 AS BIGINT) = 0 OR next_ms < $5) THEN next_ms ELSE $5 END
		WHERE kind = $1 AND item = $2 AND owner = $3 AND term = $4`, l.Kind, l.Item, l.Owner, l.Term, due(next))
	if err == nil && n == 0 {
		err = key.ErrFenced
	}
	return wrap(err, "releasing the lease %s %q", l.Kind, l.Item)
}

// Due implements [store.Tx].
func (t *transaction) Due(kind, item string, when time.Time) error {
	if err := t.may(inObserve, "making work due"); err != nil {
		return err
	}
	if when.IsZero() {
		return fmt.Errorf("making %s %q due: %w: at no time", kind, item, key.ErrInvalid)
	}
	_, err := t.exec(`INSERT INTO lease (kind, item, owner, term, until_ms, next_ms, due_ms) VALUES ($1, $2, '', 0, 0, $3, $3)
		ON CONFLICT (kind, item) DO UPDATE SET next_ms = excluded.next_ms,
			due_ms = CASE WHEN lease.owner = '' THEN excluded.next_ms ELSE lease.due_ms END
			WHERE lease.next_ms = 0 OR lease.next_ms > excluded.next_ms`, kind, item, due(when))
	return wrap(err, "making %s %q due", kind, item)
}

// NextDue implements [store.Tx].
func (t *transaction) NextDue(kind string) (time.Time, error) {
	n, err := one(t, func(s scan) (n int64, err error) { return n, s(&n) },
		`SELECT COALESCE(MIN(due_ms), 0) FROM lease WHERE kind = $1 AND due_ms > 0`, kind)
	return at(n), wrap(err, "reading when %s is due", kind)
}
