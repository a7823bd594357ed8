package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/pressly/goose/v3"
)

// Attach returns the store of a database on which a server may be running, as it
// is: no schema is brought up to date, and none made. What has no schema is
// key.ErrNotFound. With an older schema, only Dump, Setting and PutSetting are
// sure to work; [Store.Schema] says which it is.
func Attach(ctx context.Context, c Config) (*Store, error) {
	s := newStore(c)
	err := s.View(ctx, func(tx store.Tx) error {
		schema, err := tx.(*transaction).schema()
		if err != nil {
			if s.problem(err) == Unknown && !ours(err) { // no such table, as each database says it
				err = key.ErrNotFound
			}
			return err
		}
		s.schema = schema
		rev, err := tx.Revision()
		s.advance(rev)
		return err
	})
	if err == nil {
		return s, nil
	}
	_ = s.Close() // the first error is the one to tell
	if errors.Is(err, key.ErrNotFound) {
		err = key.WithHint(fmt.Errorf("%s: %w: there is no store in it", c.Where, key.ErrNotFound), "name the place of the store that is meant")
	}
	return nil, s.explain("opening the database", err)
}

// Schema returns the number of the schema that [Attach] found.
func (s *Store) Schema() int64 { return s.schema }

// Known returns the number of the newest schema that this program knows.
func Known() (n int64) {
	for s := range layouts {
		n = max(n, s)
	}
	return n
}

// LoadOptions say what becomes of a store that was loaded.
type LoadOptions struct {
	// NewEpoch makes what consumers acknowledged count for nothing: the dump is
	// of the past, and they may have got more since.
	NewEpoch bool
	// Then is run in the transaction of the load, once every row was read back
	// and compared, and after the new epoch. It may be nil.
	Then func(store.Tx, dump.Manifest) error
}

// Load fills an empty database with a dump and returns the store. All rows are
// written in one transaction, read back and compared with the dump's hashes
// before it is committed: a dump that is damaged, cut off, or that does not fit
// leaves an empty store. A database with anything in it is key.ErrConflict, a
// newer schema key.ErrNewer. A dump of an older schema is loaded into that, and
// then brought up to date. When Load fails, it closes what c holds.
func Load(ctx context.Context, c Config, r io.Reader, o LoadOptions) (*Store, dump.Manifest, error) {
	s := newStore(c)
	m, err := s.load(ctx, r, o)
	if err != nil {
		_ = s.Close() // the first error is the one to tell
		return nil, dump.Manifest{}, s.explain("loading the store", err)
	}
	return s, m, nil
}

func newStore(c Config) *Store {
	return &Store{c: c, write: &pool{db: c.Write}, read: &pool{db: c.Read}, changed: make(chan struct{}), closed: make(chan struct{})}
}

func (s *Store) load(ctx context.Context, r io.Reader, o LoadOptions) (m dump.Manifest, err error) {
	in, err := dump.NewReader(r)
	if err != nil {
		return m, err
	}
	tables, err := fits(in.Header())
	if err != nil {
		return m, err
	}
	if err := s.prepare(ctx, in.Header().Schema); err != nil {
		return m, err
	}
	err = s.attempt(ctx, s.write, inUpdate, nil, func(tx store.Tx) error { // once: r cannot be read again
		t := tx.(*transaction)
		if err := t.fill(in, tables); err != nil {
			return err
		}
		m, _ = in.Manifest()
		back, err := t.dump(m.Schema, io.Discard)
		if err != nil {
			return wrap(err, "reading back what was written")
		}
		if names := dump.Differ(m, back); len(names) > 0 {
			return fmt.Errorf("reading back what was written: the tables %s are not as in the dump; nothing was kept", strings.Join(names, ", "))
		}
		if o.NewEpoch {
			if err := t.newEpoch(); err != nil {
				return err
			}
		}
		if o.Then == nil {
			return nil
		}
		return o.Then(tx, m)
	})
	if err != nil {
		return m, err
	}
	if err := migrate(ctx, s.c); err != nil {
		return m, err
	}
	s.schema = Known()
	return m, s.Refresh(ctx)
}

// fits returns the tables of the dump's schema, if the dump has exactly these.
func fits(h dump.Header) ([]table, error) {
	tables, err := layout(h.Schema)
	if err != nil {
		return nil, err
	}
	if !slices.EqualFunc(tables, h.Tables, table.same) {
		return nil, &dump.Damage{Line: 1, What: fmt.Sprintf("its tables are not those of schema %d", h.Schema)}
	}
	return tables, nil
}

// prepare brings the schema of an empty database to the number to.
func (s *Store) prepare(ctx context.Context, to int64) error {
	p, err := provider(s.c)
	if err != nil {
		return err
	}
	up := func() error { return s.upTo(ctx, p, to) }
	if s.c.Dialect.Alone == nil {
		return up()
	}
	return s.c.Dialect.Alone(ctx, up)
}

func (s *Store) upTo(ctx context.Context, p *goose.Provider, to int64) error {
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	if have > to {
		if err := s.View(ctx, func(tx store.Tx) error { return tx.(*transaction).empty(have) }); err != nil {
			return err
		}
		return key.WithHint(fmt.Errorf("%w: %s is empty, but has schema %d already, and the dump has %d", key.ErrConflict, s.c.Where, have, to),
			"remove that empty database, or name another place")
	}
	_, err = p.UpTo(ctx, to)
	return err
}

// empty returns key.ErrConflict unless the database holds nothing.
func (t *transaction) empty(schema int64) error {
	tables, err := layout(schema)
	if err != nil {
		return err
	}
	for _, tab := range tables {
		if tab.Name == "meta" { // its one row is of the schema
			continue
		}
		if found, err := t.has("SELECT 1 FROM " + tab.Name + " LIMIT 1"); err != nil {
			return err
		} else if found {
			return key.WithHint(fmt.Errorf("%w: there is a store already, and it is not empty (%s)", key.ErrConflict, tab.Name),
				"name an empty place, or move the store away first; nothing was changed")
		}
	}
	return nil
}

// fill writes the rows of in into the empty tables.
func (t *transaction) fill(in *dump.Reader, tables []table) error {
	if err := t.empty(in.Header().Schema); err != nil {
		return err
	}
	if _, err := t.exec(`DELETE FROM meta`); err != nil {
		return wrap(err, "emptying meta")
	}
	for {
		i, row, err := in.Next()
		if err == io.EOF { //nolint:errorlint // Next returns it as it is
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := t.exec(tables[i].inserts(), row...); err != nil {
			return wrap(err, "writing %s", tables[i].Name)
		}
	}
}
