package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/internal/store/postgres"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
	"github.com/keybaton/keybaton/internal/store/storetest"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
)

// database is the URL of a database of its own.
type database string

func (d database) Open(now func() time.Time) (storetest.Copied, error) {
	return postgres.Open(context.Background(), string(d), postgres.Options{Now: now})
}

func (d database) Load(r io.Reader, newEpoch bool, then func(store.Tx, dump.Manifest) error) (storetest.Copied, dump.Manifest, error) {
	return postgres.Load(context.Background(), string(d), r, sqlstore.LoadOptions{NewEpoch: newEpoch, Then: then})
}

func TestCopies(t *testing.T) {
	storetest.RunCopies(t, func(t *testing.T) storetest.Place { return database(pgtest.Database(t)) }, key.SealedFrom)
}

// A dump has every table and every column of the database, so that none can be
// forgotten.
func TestDumpHasEveryTable(t *testing.T) {
	url := pgtest.Database(t)
	s := open(t, url, postgres.Options{})
	m, err := s.Dump(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := raw(t, url).Query(t.Context(), `SELECT table_name, column_name, data_type FROM information_schema.columns
		WHERE table_schema = current_schema() AND table_name <> 'schema_version'`)
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for rows.Next() {
		var table, column, typ string
		if err := rows.Scan(&table, &column, &typ); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprint(table, ".", column, " ", map[string]string{"text": "text", "bigint": "integer", "bytea": "bytes"}[typ]))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for _, tab := range m.Tables {
		for _, c := range tab.Columns {
			got = append(got, fmt.Sprint(tab.Name, ".", c.Name, " ", c.Type))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("a dump has\n %s\nand the database\n %s", strings.Join(got, "\n "), strings.Join(want, "\n "))
	}
}

// A store is read beside a server that runs on it; alone, only without one.
func TestAttach(t *testing.T) {
	url := pgtest.Database(t)
	if _, err := postgres.Attach(t.Context(), url, false); !errors.Is(err, key.ErrNotFound) {
		t.Fatalf("an empty database: got error %v, want %v", err, key.ErrNotFound)
	}
	s, err := postgres.Open(t.Context(), url, postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Observe(t.Context(), func(tx store.Tx) error { return tx.PutSetting("a", "1") }); err != nil {
		t.Fatal(err)
	}
	a, err := postgres.Attach(t.Context(), url, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Observe(t.Context(), func(tx store.Tx) error { return tx.PutSetting("beside", "1") }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Check(t.Context()), a.Close()); err != nil {
		t.Fatal(err)
	}
	refused := func() bool {
		a, err := postgres.Attach(t.Context(), url, true)
		if err == nil {
			_ = a.Close()
		}
		return errors.Is(err, key.ErrLocked)
	}
	until(t, "the server to be seen", refused)
	if _, _, err := postgres.Load(t.Context(), url, strings.NewReader(""), sqlstore.LoadOptions{}); !errors.Is(err, key.ErrLocked) {
		t.Errorf("a load beside a server: got error %v, want %v", err, key.ErrLocked)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the server to be gone", func() bool { return !refused() })
}
