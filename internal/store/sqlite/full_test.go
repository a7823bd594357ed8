package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// A full disk: nothing is written by half, reads go on, and so does everything
// when there is space again.
func TestFullDisk(t *testing.T) {
	for name, limit := range disks {
		t.Run(name, func(t *testing.T) {
			path, fill := limit(t)
			s, db := openRaw(t, path)
			if err := seed(s); err != nil {
				t.Fatal(err)
			}
			free := fill(t, db)
			last := grow(t, s)
			before := read(t, s)
			same(t, "what the last good update wrote", setting(t, s, "n"), fmt.Sprint(last))

			for range 3 { // it fails the same way each time
				err := write(s, last+1)
				if !errors.Is(err, key.ErrFull) || !strings.Contains(err.Error(), "free space") {
					t.Fatalf("got error %v, want %v and what to do", err, key.ErrFull)
				}
				same(t, "what is stored", read(t, s), before)
				same(t, "revision", s.Revision(), before.Revision)
			}
			free(t)
			if err := write(s, last+1); err != nil {
				t.Fatalf("writing when there is space again: %v", err)
			}
			same(t, "setting", setting(t, s, "n"), fmt.Sprint(last+1))
			same(t, "revision", s.Revision().Number, before.Revision.Number+1)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			same(t, "revision after opening again", open(t, path).Revision().Number, before.Revision.Number+1)
		})
	}
}

func seed(s store.Store) error {
	return s.Update(context.Background(), audit.Entry{Actor: "test", Action: "test.seed"}, func(tx store.Tx) error {
		return errors.Join(tx.PutService(key.Service{Name: "alpha"}), tx.PutCredential(key.Credential{ID: alpha()}))
	})
}

func alpha() key.CredentialID { return key.CredentialID{Service: "alpha", Environment: "prod"} }

// write stores n and something large.
func write(s store.Store, n int) error {
	return s.Update(context.Background(), audit.Entry{Actor: "test", Action: "test.write"}, func(tx store.Tx) error {
		if err := tx.PutSetting("n", fmt.Sprint(n)); err != nil {
			return err
		}
		if _, err := tx.Touch(alpha()); err != nil {
			return err
		}
		return tx.PutSetting(fmt.Sprintf("large-%d", n), strings.Repeat("x", 64*1024))
	})
}

// grow writes until there is no space, and returns the last number that was
// written.
func grow(t *testing.T, s store.Store) int {
	t.Helper()
	for n := range 1000 {
		err := write(s, n)
		if errors.Is(err, key.ErrFull) {
			if n == 0 {
				t.Fatal("there was no space at all")
			}
			return n - 1
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the disk is never full")
	return 0
}

func setting(t *testing.T, s store.Store, name string) (v string) {
	t.Helper()
	if err := s.View(context.Background(), func(tx store.Tx) (err error) { v, err = tx.Setting(name); return err }); err != nil {
		t.Fatal(err)
	}
	return v
}

// A disk returns the path of a store with little space, and what takes that
// space away; the latter returns what gives it back.
type disk func(*testing.T) (path string, fill func(*testing.T, *sql.DB) (free func(*testing.T)))

// pages limits the database itself.
func pages(t *testing.T) (string, func(*testing.T, *sql.DB) func(*testing.T)) {
	set := func(t *testing.T, db *sql.DB, n int) {
		t.Helper()
		if _, err := db.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", n)); err != nil {
			t.Fatal(err)
		}
	}
	return t.TempDir() + "/keybaton.db", func(t *testing.T, db *sql.DB) func(*testing.T) {
		set(t, db, 200)
		return func(t *testing.T) { set(t, db, 1_000_000) }
	}
}
