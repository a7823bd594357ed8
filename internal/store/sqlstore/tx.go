package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// mode is what a transaction may write; a higher one may write more.
type mode int

const (
	inView mode = iota
	inObserve
	inUpdate
)

func (m mode) String() string { return [...]string{"View", "Observe", "Update"}[m] }

// transaction implements [store.Tx].
type transaction struct {
	ctx    context.Context // of the caller; looked at before each statement
	sqlCtx context.Context // of the statements
	pool   *pool
	tx     *sql.Tx
	direct bool // the driver keeps statements by itself
	mode   mode
	now    time.Time
	done   bool
	err    error // of the database: nothing may be committed any more

	stmts map[string]*sql.Stmt
	fresh []string // queries that the pool had not prepared

	touched bool
	rev     key.Revision // with touched
	head    *audit.Head  // once known
	crowded map[key.CredentialID]struct{}
}

var _ store.Tx = (*transaction)(nil)

// Now implements [store.Tx].
func (t *transaction) Now() time.Time { return t.now }

// may refuses a write that needs a transaction of another kind.
func (t *transaction) may(least mode, what string) error {
	if t.mode < least {
		return fmt.Errorf("%s in %s: %w; use %s", what, t.mode, store.ErrWrongTx, least)
	}
	return nil
}

// fail keeps the first error of the database.
func (t *transaction) fail(err error) error {
	if t.err == nil {
		t.err = err
	}
	return err
}

// ready reports why no statement with args can be run. A text that one of the
// databases could not keep is refused before it sees any.
func (t *transaction) ready(args []any) error {
	if t.done {
		return errors.New("the transaction is over")
	}
	if t.err != nil {
		return t.err
	}
	for _, a := range args {
		if s, ok := a.(string); ok && (strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s)) {
			return fmt.Errorf("%w: a text that is not UTF-8, or has a NUL in it", key.ErrInvalid)
		}
	}
	if err := t.ctx.Err(); err != nil {
		return t.fail(err)
	}
	return nil
}

func (t *transaction) stmt(q string) (*sql.Stmt, error) {
	if st := t.stmts[q]; st != nil {
		return st, nil
	}
	var st *sql.Stmt
	if p := t.pool.get(q); p != nil {
		st = t.tx.StmtContext(t.sqlCtx, p)
	} else {
		var err error
		if st, err = t.tx.PrepareContext(t.sqlCtx, q); err != nil {
			return nil, t.fail(err)
		}
		t.fresh = append(t.fresh, q)
	}
	if t.stmts == nil {
		t.stmts = map[string]*sql.Stmt{}
	}
	t.stmts[q] = st
	return st, nil
}

// exec runs a statement and returns how many rows it changed.
func (t *transaction) exec(q string, args ...any) (int64, error) {
	if err := t.ready(args); err != nil {
		return 0, err
	}
	var r sql.Result
	var err error
	if t.direct {
		r, err = t.tx.ExecContext(t.sqlCtx, q, args...)
	} else {
		st, serr := t.stmt(q)
		if serr != nil {
			return 0, serr
		}
		r, err = st.ExecContext(t.sqlCtx, args...)
	}
	if err != nil {
		return 0, t.fail(err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		return 0, t.fail(err)
	}
	return n, nil
}

// scan reads the columns of one row.
type scan func(dest ...any) error

// each calls fn with each row.
func (t *transaction) each(fn func(scan) error, q string, args ...any) error {
	if err := t.ready(args); err != nil {
		return err
	}
	var rows *sql.Rows
	var err error
	if t.direct {
		rows, err = t.tx.QueryContext(t.sqlCtx, q, args...)
	} else {
		st, serr := t.stmt(q)
		if serr != nil {
			return serr
		}
		rows, err = st.QueryContext(t.sqlCtx, args...)
	}
	if err != nil {
		return t.fail(err)
	}
	defer func() { _ = rows.Close() }() // after Err there is nothing more to learn
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return t.fail(err)
		}
	}
	if err := rows.Err(); err != nil {
		return t.fail(err)
	}
	return nil
}

// all returns what read makes of each row.
func all[T any](t *transaction, read func(scan) (T, error), q string, args ...any) ([]T, error) {
	var out []T
	err := t.each(func(s scan) error {
		v, err := read(s)
		out = append(out, v)
		return err
	}, q, args...)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// one returns what read makes of the only row, or key.ErrNotFound.
func one[T any](t *transaction, read func(scan) (T, error), q string, args ...any) (T, error) {
	var zero T
	rows, err := all(t, read, q, args...)
	if err != nil {
		return zero, err
	}
	if len(rows) == 0 {
		return zero, key.ErrNotFound
	}
	return rows[0], nil
}

// has reports whether the query finds a row.
func (t *transaction) has(q string, args ...any) (bool, error) {
	found := false
	err := t.each(func(scan) error { found = true; return nil }, q, args...)
	return found, err
}

// gone turns "no row changed" into key.ErrNotFound.
func gone(n int64, err error) error {
	if err == nil && n == 0 {
		return key.ErrNotFound
	}
	return err
}

// wrap says what was being done; nil stays nil.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}

// encode returns v as a doc.
func encode(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// doc reads a row whose only column is the doc of a T.
func doc[T any](s scan) (v T, err error) {
	var d []byte
	if err := s(&d); err != nil {
		return v, err
	}
	return v, json.Unmarshal(d, &v)
}

// text reads a row of one text.
func text(s scan) (v string, err error) { return v, s(&v) }

// ms returns t as it is stored: Unix milliseconds, 0 for no time.
func ms(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// at returns the time stored as n.
func at(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// most returns limit as SQL takes it; 0 is none.
func most(limit int) int64 {
	if limit <= 0 {
		return math.MaxInt64
	}
	return int64(limit)
}
