package sqlite_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
	"github.com/keybaton/keybaton/internal/store/storetest"
)

// file is a place in a directory of its own.
type file string

func (f file) Open(now func() time.Time) (storetest.Copied, error) {
	s, err := sqlite.Open(context.Background(), string(f), sqlite.Options{Now: now})
	if err != nil {
		return nil, err
	}
	return s.(storetest.Copied), nil
}

func (f file) Load(r io.Reader, newEpoch bool, then func(store.Tx, dump.Manifest) error) (storetest.Copied, dump.Manifest, error) {
	return sqlite.Load(context.Background(), string(f), r, sqlstore.LoadOptions{NewEpoch: newEpoch, Then: then})
}

func place(t *testing.T) storetest.Place { return file(filepath.Join(t.TempDir(), "keybaton.db")) }

func TestCopies(t *testing.T) { storetest.RunCopies(t, place, key.SealedFrom) }

// A dump has every table and every column of the database, so that none can be
// forgotten.
func TestDumpHasEveryTable(t *testing.T) {
	s, db := openRaw(t, filepath.Join(t.TempDir(), "keybaton.db"))
	m, err := s.(storetest.Copied).Dump(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(`SELECT m.name, c.name, lower(c.type), c.pk FROM sqlite_master m, pragma_table_info(m.name) c
		WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name <> 'schema_version' ORDER BY m.name, c.cid`)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for rows.Next() {
		var table, column, typ string
		var pk int
		if err := rows.Scan(&table, &column, &typ, &pk); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprint(table, ".", column, " ", map[string]string{"text": "text", "bigint": "integer", "bytea": "bytes"}[typ]))
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		t.Fatal(err)
	}
	var got []string
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
	var newest int64
	if err := db.QueryRow(`SELECT MAX(version_id) FROM schema_version`).Scan(&newest); err != nil {
		t.Fatal(err)
	}
	same(t, "schema", m.Schema, newest)
	same(t, "newest schema that is known", sqlstore.Known(), newest)
}

// Tables are filled in an order that foreign keys allow: what a table refers to
// comes before it.
func TestDumpOrder(t *testing.T) {
	s, db := openRaw(t, filepath.Join(t.TempDir(), "keybaton.db"))
	m, err := s.(storetest.Copied).Dump(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) int {
		return slices.IndexFunc(m.Tables, func(t dump.Table) bool { return t.Name == name })
	}
	for _, tab := range m.Tables {
		rows, err := db.Query(`SELECT "table" FROM pragma_foreign_key_list($1)`, tab.Name)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var to string
			if err := rows.Scan(&to); err != nil {
				t.Fatal(err)
			}
			if at(to) >= at(tab.Name) {
				t.Errorf("%s refers to %s and comes before it", tab.Name, to)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// What was dumped once loads for ever: these files are never made anew.
func TestOldDumpsLoad(t *testing.T) {
	files, err := filepath.Glob("testdata/schema-*.dump")
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(files)) != sqlstore.Known() {
		t.Fatalf("there are dumps of %d schemas, and %d are known", len(files), sqlstore.Known())
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s, m, err := place(t).Load(bytes.NewReader(text), false, nil)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		back, err := s.Dump(t.Context(), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if m.Schema == sqlstore.Known() {
			same(t, "sums", back.Sums, m.Sums)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A store is read beside a server that runs on it; alone, only without one.
func TestAttach(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keybaton.db")
	if _, err := sqlite.Attach(t.Context(), path, sqlite.AttachOptions{}); !errors.Is(err, key.ErrNotFound) {
		t.Fatalf("no file: got error %v, want %v", err, key.ErrNotFound)
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a file was made")
	}
	s := open(t, path)
	if err := seed(s); err != nil {
		t.Fatal(err)
	}
	_, err := sqlite.Attach(t.Context(), path, sqlite.AttachOptions{Alone: true})
	if !errors.Is(err, key.ErrLocked) {
		t.Fatalf("alone beside a server: got error %v, want %v", err, key.ErrLocked)
	}
	a, err := sqlite.Attach(t.Context(), path, sqlite.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "schema", a.Schema(), sqlstore.Known())
	same(t, "revision", a.Revision(), s.Revision())
	if err := a.Observe(t.Context(), func(tx store.Tx) error { return tx.PutSetting("beside", "1") }); err != nil {
		t.Fatal(err)
	}
	same(t, "setting that was written beside", setting(t, s, "beside"), "1")
	if err := a.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := sqlite.Attach(t.Context(), path, sqlite.AttachOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Observe(t.Context(), func(tx store.Tx) error { return tx.PutSetting("beside", "2") }); err == nil {
		t.Fatal("a store that is only read was written")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := write(s, 2); err != nil { // the server goes on
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err = sqlite.Attach(t.Context(), path, sqlite.AttachOptions{Alone: true, ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	same(t, "setting without a server", setting(t, r, "n"), "2")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(path + "-*"); err != nil || len(left) > 0 {
		t.Errorf("reading left files behind: %v, %v", left, err)
	}
	empty := filepath.Join(t.TempDir(), "empty.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Attach(t.Context(), empty, sqlite.AttachOptions{ReadOnly: true}); !errors.Is(err, key.ErrNotFound) {
		t.Fatalf("an empty file: got error %v, want %v", err, key.ErrNotFound)
	}
}

// Damage of the file is found by a check.
func TestCheckFindsDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keybaton.db")
	s := open(t, path)
	if err := seed(s); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		if err := write(s, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[len(b)/2/4096*4096:], bytes.Repeat([]byte{0xa5}, 8192))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := sqlite.Attach(t.Context(), path, sqlite.AttachOptions{ReadOnly: true})
	if err == nil {
		err = a.Check(t.Context())
		_ = a.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("the damage was not found: %v", err)
	}
}
