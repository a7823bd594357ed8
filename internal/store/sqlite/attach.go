package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
)

// AttachOptions say how an existing store is opened beside a server.
type AttachOptions struct {
	Alone    bool // only while no server has it: key.ErrLocked otherwise
	ReadOnly bool // nothing can be written
}

// Attach opens the store in the file at path as it is, while a server may be
// running on it; see [sqlstore.Attach]. It reads a snapshot by SQLite's own
// means, which the server's writes do not wait for. No file is
// key.ErrNotFound; none is made.
func Attach(ctx context.Context, path string, o AttachOptions) (*sqlstore.Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	_, err = os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, key.WithHint(fmt.Errorf("%s: %w: there is no store in it", path, key.ErrNotFound), "name the place of the store that is meant")
	}
	if err != nil {
		return nil, classify(err).Explain("opening the database", path, err)
	}
	unlock := func() error { return nil }
	if o.Alone {
		if unlock, err = lock(path + ".lock"); err != nil {
			return nil, classify(err).Explain("locking the database", path, err)
		}
	}
	// A connection that may only read makes the files of the log and leaves them.
	// One that could write, and does not, removes them when it is the last; where
	// there is a log, somebody else is there, or has crashed and left work.
	mode := "mode=rw"
	if exists(path + "-wal") {
		mode = "mode=ro"
	}
	read, err := beside(path, "deferred", mode, "query_only(1)")
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	write := read
	if !o.ReadOnly {
		if write, err = beside(path, "immediate", "mode=rw", "synchronous(FULL)"); err != nil {
			return nil, errors.Join(err, read.Close(), unlock())
		}
		write.SetMaxOpenConns(1)
	}
	return sqlstore.Attach(ctx, sqlstore.Config{Write: write, Read: read, Dialect: dialect, Where: path, Close: unlock})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// beside connects to a file that is there; its settings stay as they are.
func beside(path, txlock, mode, pragma string) (*sql.DB, error) {
	q := url.Values{"_txlock": {txlock}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds()), "foreign_keys(1)", pragma}}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: mode + "&" + q.Encode()}
	return sql.Open("sqlite", u.String())
}

// Load fills the store in the file at path, which is made if needed and must be
// empty, with a dump; see [sqlstore.Load].
func Load(ctx context.Context, path string, r io.Reader, o sqlstore.LoadOptions) (*sqlstore.Store, dump.Manifest, error) {
	c, err := config(path, Options{})
	if err != nil {
		return nil, dump.Manifest{}, err
	}
	return sqlstore.Load(ctx, c, r, o)
}
