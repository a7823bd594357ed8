package app

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/backup"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
)

// proveBackup reads a whole backup and returns its head and its data keys.
func proveBackup(file string, keys backup.Keys) (backup.Head, map[string][]byte, error) {
	b, err := backup.Open(file, keys)
	if err != nil {
		return backup.Head{}, nil, err
	}
	defer b.Close() //nolint:errcheck // it was only read
	wrapped := map[string][]byte{}
	m, err := b.Check(func(t dump.Table, row []any) {
		if t.Name != "data_key" {
			return
		}
		at := func(column string) int {
			return slices.IndexFunc(t.Columns, func(c dump.Column) bool { return c.Name == column })
		}
		if n, w := at("name"), at("wrapped"); n >= 0 && w >= 0 {
			name, _ := row[n].(string)
			wrapped[name], _ = row[w].([]byte)
		}
	})
	if err != nil {
		return backup.Head{}, nil, fmt.Errorf("the backup %s: %w", file, err)
	}
	if m.Schema > sqlstore.Known() {
		return backup.Head{}, nil, key.WithHint(fmt.Errorf("the backup %s: %w: its schema has number %d, this program knows %d", file, key.ErrNewer, m.Schema, sqlstore.Known()),
			"use keybaton "+b.Head.Program+" or a newer one")
	}
	return b.Head, wrapped, nil
}

// masterFor returns the master key that a restore is to write to path: nil when
// the right one is there already, or when there is none at all.
func masterFor(path string, head backup.Head, wrapped map[string][]byte) (*seal.Master, error) {
	var in *seal.Master
	if !head.MasterKey.IsZero() {
		var err error
		if in, err = seal.ParseMaster(path, head.MasterKey); err != nil {
			return nil, fmt.Errorf("the master key in the backup: %w", err)
		}
		if err := in.Opens(wrapped); err != nil {
			return nil, fmt.Errorf("the master key in the backup: %w", err)
		}
	}
	have, err := seal.LoadMaster(path)
	switch {
	case errors.Is(err, key.ErrNotFound):
		return in, nil
	case err != nil:
		return nil, err
	case in != nil && have.Same(in):
		return nil, nil
	case in != nil:
		return nil, key.WithHint(fmt.Errorf("%w: the master key in %s is another than the one in the backup", key.ErrConflict, path),
			"keep it elsewhere if anything still needs it, and restore with a configuration directory of its own: --config DIR; nothing was changed")
	}
	if err := have.Opens(wrapped); err != nil {
		return nil, key.WithHint(fmt.Errorf("%w: the master key in %s does not open the keys in the backup", key.ErrConflict, path),
			"put the master key there that was in use when the backup was made, or restore with --master-key FILE; nothing was changed")
	}
	return nil, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// saveMaster writes the master key, and returns what removes it again.
func saveMaster(m *seal.Master) (undo func() error, err error) {
	if err := m.Save(); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = key.WithHint(fmt.Errorf("%s: %w", m.Path(), key.ErrExists), "somebody else put it there just now: try again")
		}
		return func() error { return nil }, fmt.Errorf("writing the master key: %w", err)
	}
	return func() error { return os.Remove(m.Path()) }, nil
}

// loadAs says what becomes of a store that is restored: it begins a new epoch,
// and is marked, in one transaction, at the end of which before is called.
func loadAs(head backup.Head, file string, before func() error) sqlstore.LoadOptions {
	return sqlstore.LoadOptions{NewEpoch: true, Then: func(tx store.Tx, m dump.Manifest) error {
		rev, err := tx.Revision()
		if err != nil {
			return err
		}
		err = store.PutRestored(tx, store.Restored{Epoch: rev.Epoch, At: tx.Now(), From: m.Revision(), Taken: m.At, Source: file, Origin: head.Source})
		if err != nil {
			return err
		}
		err = tx.Audit(audit.Entry{Actor: access.System.Name, Action: "store.restored", Detail: map[string]string{
			"from": m.Revision().String(), "taken": m.At.UTC().Format("2006-01-02T15:04:05Z"), "origin": head.Source, "sha256": m.SHA256}})
		if err != nil {
			return err
		}
		return before()
	}}
}
