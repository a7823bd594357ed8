package app

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/internal/store/postgres"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
	"github.com/keybaton/keybaton/secret"
)

// database is a place where a store can be.
type database interface {
	// attach opens the store that is there; alone refuses one that a server has.
	attach(ctx context.Context, alone, readOnly bool) (*sqlstore.Store, error)
	// load fills it; it must be empty.
	load(ctx context.Context, r io.Reader, o sqlstore.LoadOptions) (*sqlstore.Store, dump.Manifest, error)
	// anew opens it with a new epoch.
	anew(ctx context.Context) (store.Store, error)
	// String names it for people, without a password.
	String() string
}

// database returns where the store of a server with these settings is.
func (s Settings) database() (database, error) {
	if s.shared() {
		return postgresAt(s.Store)
	}
	path, err := filepath.Abs(s.file())
	return sqliteFile(path), err
}

// databaseFile is the name of the store in the data directory.
const databaseFile = "keybaton.db"

// Place says where a store is: sqlite:PATH, or the URL of a PostgreSQL database.
// The first that is set counts: Flag, File, Env.
type Place struct {
	Flag string       // read by everybody on the machine: no password in it
	File string       // a file with the URL
	Env  secret.Value // the URL
}

// IsZero reports whether p names nothing.
func (p Place) IsZero() bool { return p.Flag == "" && p.File == "" && p.Env.IsZero() }

// database returns the place that p names. Its errors hold nothing of a URL.
func (p Place) database() (database, error) {
	v := p.Env
	switch {
	case p.Flag != "" && p.File != "":
		return nil, key.WithHint(fmt.Errorf("%w: the place of a store is named twice", key.ErrInvalid), "give the URL or the file with it")
	case p.Flag != "":
		if hasPassword(p.Flag) {
			return nil, key.WithHint(fmt.Errorf("%w: a password on the command line can be read by every user of this machine", key.ErrInvalid),
				"put the URL into a file (--from-file, --to-file) or the environment (KEYBATON_MOVE_FROM, KEYBATON_MOVE_TO), or the password alone into PGPASSWORD or PGPASSFILE; and change the password, as it was seen")
		}
		v = secret.FromString(p.Flag)
	case p.File != "":
		var err error
		if v, err = readStoreFile(p.File); err != nil {
			return nil, err
		}
	}
	text := string(v.Reveal())
	if path, ok := strings.CutPrefix(text, "sqlite:"); ok && path != "" {
		path, err := filepath.Abs(path)
		return sqliteFile(path), err
	}
	if strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://") {
		return postgresAt(v)
	}
	return nil, key.WithHint(fmt.Errorf("%w: that is not the place of a store", key.ErrInvalid),
		"write it like sqlite:/var/lib/keybaton/keybaton.db or postgres://user@host/database")
}

// sqliteFile is the path of a store in a file.
type sqliteFile string

func (f sqliteFile) String() string { return "sqlite:" + string(f) }

func (f sqliteFile) attach(ctx context.Context, alone, readOnly bool) (*sqlstore.Store, error) {
	return sqlite.Attach(ctx, string(f), sqlite.AttachOptions{Alone: alone, ReadOnly: readOnly})
}

func (f sqliteFile) load(ctx context.Context, r io.Reader, o sqlstore.LoadOptions) (*sqlstore.Store, dump.Manifest, error) {
	return sqlite.Load(ctx, string(f), r, o)
}

func (f sqliteFile) anew(ctx context.Context) (store.Store, error) {
	return sqlite.Open(ctx, string(f), sqlite.Options{NewEpoch: true})
}

// postgresDatabase is a store in a PostgreSQL database.
type postgresDatabase struct {
	address secret.Value
	where   string // without user and password
}

func postgresAt(address secret.Value) (database, error) {
	where, err := postgres.Where(string(address.Reveal()))
	return postgresDatabase{address, where}, err
}

func (d postgresDatabase) String() string { return d.where }

// attach opens it; who may only read says so to no more than this program.
func (d postgresDatabase) attach(ctx context.Context, alone, _ bool) (*sqlstore.Store, error) {
	return postgres.Attach(ctx, string(d.address.Reveal()), alone)
}

func (d postgresDatabase) load(ctx context.Context, r io.Reader, o sqlstore.LoadOptions) (*sqlstore.Store, dump.Manifest, error) {
	return postgres.Load(ctx, string(d.address.Reveal()), r, o)
}

func (d postgresDatabase) anew(ctx context.Context) (store.Store, error) {
	return postgres.Open(ctx, string(d.address.Reveal()), postgres.Options{NewEpoch: true})
}

// checkOpen reports why no server may start on the store: it was moved elsewhere.
func checkOpen(ctx context.Context, s store.Store) error {
	return s.View(ctx, func(tx store.Tx) error {
		m, closed, err := store.ReadClosed(tx)
		if err != nil || !closed {
			return err
		}
		return closedError(m)
	})
}

func closedError(m store.Closed) error {
	at := m.At.UTC().Format("2006-01-02 15:04 UTC")
	if m.From != "" {
		return key.WithHint(fmt.Errorf("%w: a move from %s to this store began at %s and did not come to its end", key.ErrConflict, m.From, at),
			"remove this store and move again; if the other one is closed, open it first: "+reopenText(m.From))
	}
	return key.WithHint(fmt.Errorf("%w: this store was moved to %s at %s, and is closed", key.ErrConflict, m.To, at),
		"use that one; or to go back to this one, without what was done there since: keybaton move --reopen and the URL of this store")
}

// reopenText is the command that opens the store at a place again.
func reopenText(place string) string {
	if !strings.HasPrefix(place, "sqlite:") {
		place = "with its URL, or a file that holds it"
	}
	return "keybaton move --reopen " + place
}
