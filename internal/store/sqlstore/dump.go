package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
)

// Dump writes everything that the store holds at one moment, see package dump;
// servers may go on writing. Claims of leases are written as ended. The store
// may have an older schema than the program's, when it was attached to.
func (s *Store) Dump(ctx context.Context, w io.Writer) (m dump.Manifest, err error) {
	err = s.attempt(ctx, s.read, inView, nil, func(tx store.Tx) (err error) {
		t := tx.(*transaction)
		schema, err := t.schema()
		if err == nil {
			m, err = t.dump(schema, w)
		}
		return err
	})
	return m, s.explain("reading the store", err)
}

// Check reads everything that the store holds, and asks the database whether it
// finds damage in itself. It may take minutes where there is much.
func (s *Store) Check(ctx context.Context) error {
	if q := s.c.Dialect.Integrity; q != "" {
		err := s.View(ctx, func(tx store.Tx) error {
			said, err := one(tx.(*transaction), text, q)
			if err == nil && said != "ok" {
				err = Damaged.Explain("", s.c.Where, errors.New(said))
			}
			return err
		})
		if err != nil {
			return s.explain("checking the database", err)
		}
	}
	_, err := s.Dump(ctx, io.Discard)
	return err
}

// schema returns the number of the schema that the database has.
func (t *transaction) schema() (int64, error) {
	// The newest row counts: there is no way back.
	return one(t, count, `SELECT version_id FROM schema_version ORDER BY id DESC LIMIT 1`)
}

func count(s scan) (n int64, err error) { return n, s(&n) }

// layout returns the tables of a schema.
func layout(schema int64) ([]table, error) {
	if ts, ok := layouts[schema]; ok {
		return ts, nil
	}
	return nil, key.WithHint(fmt.Errorf("%w: the schema has number %d, which this program does not know", key.ErrNewer, schema),
		"use the newer keybaton that made it")
}

func (t *transaction) dump(schema int64, w io.Writer) (dump.Manifest, error) {
	tables, err := layout(schema)
	if err != nil {
		return dump.Manifest{}, err
	}
	rev, err := t.Revision()
	if err != nil {
		return dump.Manifest{}, err
	}
	h := dump.Header{Schema: schema, Epoch: rev.Epoch, Number: rev.Number, At: t.now}
	for _, tab := range tables {
		n, err := one(t, count, tab.counts())
		if err != nil {
			return dump.Manifest{}, wrap(err, "counting %s", tab.Name)
		}
		tab.Rows = n
		h.Tables = append(h.Tables, tab.Table)
	}
	out, err := dump.NewWriter(w, h)
	if err != nil {
		return dump.Manifest{}, err
	}
	for _, tab := range tables {
		if err := t.dumpTable(tab, out); err != nil {
			return dump.Manifest{}, wrap(err, "reading %s", tab.Name)
		}
	}
	return out.Close()
}

func (t *transaction) dumpTable(tab table, out *dump.Writer) error {
	if err := out.Table(); err != nil {
		return err
	}
	row := make([]any, len(tab.Columns))
	texts := make([]sql.NullString, len(row))
	numbers := make([]sql.NullInt64, len(row))
	into := make([]any, len(row))
	for i, c := range tab.Columns {
		switch c.Type {
		case dump.Integer:
			into[i] = &numbers[i]
		case dump.Bytes:
			into[i] = new([]byte)
		default:
			into[i] = &texts[i]
		}
	}
	return t.each(func(s scan) error {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		if err := s(into...); err != nil {
			return err
		}
		for i, v := range into {
			row[i] = nil
			switch v := v.(type) {
			case *sql.NullInt64:
				if v.Valid {
					row[i] = v.Int64
				}
			case *sql.NullString:
				if v.Valid {
					row[i] = v.String
				}
			case *[]byte:
				if *v != nil {
					row[i] = *v
				}
			}
		}
		if tab.Name == "lease" {
			free(row)
		}
		return out.Row(row)
	}, tab.selects())
}
