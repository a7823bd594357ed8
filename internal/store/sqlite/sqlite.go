// Package sqlite opens the store on one SQLite file, for a server on one
// machine.
//
// It guarantees that a commit is on the disk when it returns (write-ahead log,
// synchronous FULL), that one process at a time has the file (a lock beside
// it, and on Linux one of the file itself, whatever its name), and that only the owner can read it (mode 0600, directory 0700). Writes
// have one connection and never meet; reads have their own and never wait for
// them. All SQL is in package sqlstore.
//
// It leaves to the caller: backups, and a local disk. Network file systems do
// not keep the locks that SQLite needs.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// readers is how many Views can run at once.
const readers = 8

// busy is how long SQLite waits for a lock of another process, such as a
// backup program.
const busy = 10 * time.Second

// Options say how a store is opened.
type Options struct {
	Now      func() time.Time // time of transactions; nil means time.Now
	NewEpoch bool             // the file was restored from a backup: begin the next epoch
}

// Open opens the store in the file at path, creating it and its directory if
// needed. A second process on the same file gets key.ErrLocked, a file made by
// a newer program key.ErrNewer, a full disk key.ErrFull; each says what to do
// next. Open may block while the schema is brought up to date; ctx ends that
// between two steps.
func Open(ctx context.Context, path string, o Options) (store.Store, error) {
	s, _, err := open(ctx, path, o)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// open returns the connection for writing, too.
func open(ctx context.Context, path string, o Options) (*sqlstore.Store, *sql.DB, error) {
	c, err := config(path, o)
	if err != nil {
		return nil, nil, err
	}
	s, err := sqlstore.Open(ctx, c)
	return s, c.Write, err
}

// config claims the file and connects to it.
func config(path string, o Options) (sqlstore.Config, error) {
	path, unlock, err := claim(path)
	if err != nil {
		return sqlstore.Config{}, err
	}
	write, err := connect(path, "immediate", "cache_size(-65536)") // KiB, for large updates
	if err != nil {
		_ = unlock()
		return sqlstore.Config{}, classify(err).Explain("opening the database", path, err)
	}
	write.SetMaxOpenConns(1)
	read, err := connect(path, "deferred", "query_only(1)")
	if err != nil {
		_, _ = write.Close(), unlock()
		return sqlstore.Config{}, classify(err).Explain("opening the database", path, err)
	}
	read.SetMaxOpenConns(readers)
	read.SetMaxIdleConns(readers)
	return sqlstore.Config{
		Write:    write,
		Read:     read,
		Dialect:  dialect,
		Where:    path,
		Now:      o.Now,
		NewEpoch: o.NewEpoch,
		Close:    unlock,
	}, nil
}

// dialect is that of SQLite. Its texts compare by their bytes.
var dialect = sqlstore.Dialect{Goose: goose.DialectSQLite3, Classify: classify, Local: true, Integrity: `PRAGMA quick_check(1)`,
	Tables: `SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = $1`}

// ReadSchema says which schema the file at path has, without changing it; none
// where there is no file. A server that runs on it keeps it locked.
func ReadSchema(ctx context.Context, path string) (sqlstore.Schema, error) {
	c := sqlstore.Config{Dialect: dialect, Where: path}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		path = "" // a private database that is gone when it is closed
	} else {
		var unlock func() error
		if path, unlock, err = claim(path); err != nil {
			return sqlstore.Schema{}, err
		}
		defer func() { _ = unlock() }() // nothing was written
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: "_pragma=query_only(1)"}).String())
	if err != nil {
		return sqlstore.Schema{}, classify(err).Explain("reading the schema", path, err)
	}
	defer func() { _ = db.Close() }() // nothing was written
	c.Write, c.Read = db, db
	return sqlstore.ReadSchema(ctx, c)
}

// claim makes the file if needed, and locks it for this process. It returns the
// one absolute path of it.
func claim(path string) (string, func() error, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", nil, classify(err).Explain("making the data directory", filepath.Dir(path), err)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // so that every way to the file leads to one lock
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", nil, classify(err).Explain("locking the database", path, err)
	}
	if err := heldHere(path); err != nil {
		_ = unlock()
		return "", nil, classify(err).Explain("locking the database", path, err)
	}
	if err := private(path); err != nil {
		_ = unlock()
		return "", nil, classify(err).Explain("opening the database", path, err)
	}
	release, err := lockFile(path)
	if err != nil {
		_ = unlock()
		return "", nil, classify(err).Explain("locking the database", path, err)
	}
	return path, func() error { return errors.Join(release(), unlock()) }, nil
}

// private makes sure that the file exists and that only its owner may use it;
// SQLite gives the files beside it the same mode.
func private(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("it is not a regular file but %s", st.Mode().Type())
	}
	if st.Mode().Perm()&0o077 != 0 {
		return f.Chmod(0o600)
	}
	return nil
}

// connect opens the file. The busy timeout comes first: the other settings may
// have to wait, too.
func connect(path, txlock string, more ...string) (*sql.DB, error) {
	q := url.Values{"_txlock": {txlock}}
	for _, p := range append([]string{
		fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds()),
		"journal_mode(WAL)",
		"synchronous(FULL)",
		"foreign_keys(1)",
		"temp_store(MEMORY)",
		"journal_size_limit(67108864)",
	}, more...) {
		q.Add("_pragma", p)
	}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: q.Encode()}
	return sql.Open("sqlite", u.String())
}

// errLocked is what lock returns when another process has the lock.
var errLocked = errors.New("another keybaton has it open")

// classify says what an error of SQLite or of the file system means.
func classify(err error) sqlstore.Problem {
	var e *sqlite.Error
	switch {
	case err == nil:
		return sqlstore.Unknown
	case errors.Is(err, errLocked):
		return sqlstore.Taken
	case errors.As(err, &e):
		return classifyCode(e.Code())
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return sqlstore.Full
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrNotExist),
		errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		return sqlstore.ReadOnly
	}
	return sqlstore.Unknown
}

func classifyCode(code int) sqlstore.Problem {
	if code == sqlite3.SQLITE_IOERR_SHMSIZE { // the index of the log could not grow
		return sqlstore.Full
	}
	switch code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return sqlstore.Busy
	case sqlite3.SQLITE_FULL:
		return sqlstore.Full
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return sqlstore.ReadOnly
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return sqlstore.Damaged
	case sqlite3.SQLITE_IOERR:
		return sqlstore.Broken
	case sqlite3.SQLITE_CONSTRAINT:
		return sqlstore.Rule
	}
	return sqlstore.Unknown
}
