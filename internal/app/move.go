package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
)

// Moved says what was moved.
type Moved struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Tables   int    `json:"tables"`
	Rows     int64  `json:"rows"`
	SHA256   string `json:"sha256"` // hex, of the dump
	Revision string `json:"revision"`
	Back     string `json:"back"` // the command that goes back
}

// Move copies the store at from to the empty place to, compares both, and closes
// the one at from. No server may be running on either. At every moment at most
// one of the two lets a server start.
func Move(ctx context.Context, from, to Place) (Moved, error) {
	src, err := from.database()
	if err != nil {
		return Moved{}, err
	}
	dst, err := to.database()
	if err != nil {
		return Moved{}, err
	}
	if src.String() == dst.String() {
		return Moved{}, key.WithHint(fmt.Errorf("%w: a store cannot be moved to where it is", key.ErrInvalid), "name another place: --to URL")
	}
	old, err := src.attach(ctx, true, false)
	if err != nil {
		return Moved{}, fmt.Errorf("opening the store that is to be moved: %w", err)
	}
	defer old.Close() //nolint:errcheck // what was written is committed
	if err := checkOpen(ctx, old); err != nil {
		return Moved{}, err
	}
	if old.Schema() != sqlstore.Known() {
		return Moved{}, key.WithHint(fmt.Errorf("%w: the store has schema %d, and this program %d", key.ErrConflict, old.Schema(), sqlstore.Known()),
			"start a server of this version on it once, stop it, then move")
	}
	fresh, m, err := fill(ctx, old, dst, src.String())
	if err != nil {
		return Moved{}, fmt.Errorf("filling %s: %w", dst, err)
	}
	defer fresh.Close() //nolint:errcheck // what was written is committed
	if err := compare(ctx, old, fresh); err != nil {
		return Moved{}, err
	}
	if err := moveCache(src, dst); err != nil {
		return Moved{}, fmt.Errorf("copying the gateway's cache: %w", err)
	}
	err = old.Observe(ctx, func(tx store.Tx) error { return store.PutClosed(tx, &store.Closed{At: tx.Now(), To: dst.String()}) })
	if err != nil {
		return Moved{}, fmt.Errorf("closing the old store: %w", err)
	}
	out := Moved{From: src.String(), To: dst.String(), Tables: len(m.Tables), Rows: m.Rows(), SHA256: m.SHA256, Revision: m.Revision().String(), Back: reopenText(src.String())}
	err = fresh.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "store.moved", Detail: map[string]string{"from": out.From, "to": out.To, "sha256": out.SHA256}},
		func(tx store.Tx) error { return store.PutClosed(tx, nil) })
	if err != nil {
		return Moved{}, fmt.Errorf("opening the new store: %w", err)
	}
	return out, fresh.Close()
}

// fill loads what old holds into dst, which stays closed for servers.
func fill(ctx context.Context, old *sqlstore.Store, dst database, from string) (*sqlstore.Store, dump.Manifest, error) {
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := old.Dump(ctx, w)
		_ = w.CloseWithError(err) // nil is the end
		ended <- err
	}()
	fresh, m, err := dst.load(ctx, r, sqlstore.LoadOptions{Then: func(tx store.Tx, _ dump.Manifest) error {
		return store.PutClosed(tx, &store.Closed{At: tx.Now(), From: from})
	}})
	_ = r.CloseWithError(io.ErrClosedPipe) // it was read to its end, or nobody reads it any more
	<-ended                                // its error came by the pipe
	return fresh, m, err
}

// moveCache copies the gateway's sealed cache from one data directory to
// another: by it the gateway of the next server knows that it takes the place of
// the last one, which would be waited for otherwise.
func moveCache(src, dst database) error {
	from, ok := src.(sqliteFile)
	to, also := dst.(sqliteFile)
	if !ok || !also {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(string(from)), cacheFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(string(to)), cacheFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// compare proves that two stores hold the same.
func compare(ctx context.Context, a, b *sqlstore.Store) error {
	one, err := a.Dump(ctx, io.Discard)
	if err != nil {
		return err
	}
	two, err := b.Dump(ctx, io.Discard)
	if err != nil {
		return err
	}
	if names := dump.Differ(one, two); len(names) > 0 {
		return key.WithHint(fmt.Errorf("%w: the new store differs from the old one in %s", key.ErrConflict, strings.Join(names, ", ")),
			"nothing may write to either meanwhile: stop every server, remove the new store, and move again; the old one is as it was")
	}
	return nil
}

// Reopen takes back that a store was closed by a move. What was done in the
// other store since is not in it: it begins a new epoch.
func Reopen(ctx context.Context, at Place) (place, revision string, err error) {
	db, err := at.database()
	if err != nil {
		return "", "", err
	}
	st, err := db.attach(ctx, true, true)
	if err != nil {
		return "", "", fmt.Errorf("opening the store: %w", err)
	}
	var m store.Closed
	closed := false
	err = st.View(ctx, func(tx store.Tx) error {
		m, closed, err = store.ReadClosed(tx)
		return err
	})
	if cerr := st.Close(); err == nil {
		err = cerr
	}
	switch {
	case err != nil:
		return "", "", err
	case !closed:
		return "", "", key.WithHint(fmt.Errorf("%w: %s is not closed", key.ErrConflict, db), "nothing is to be done: start the server")
	case m.From != "":
		return "", "", closedError(m)
	}
	s, err := db.anew(ctx)
	if err != nil {
		return "", "", err
	}
	defer s.Close() //nolint:errcheck // what was written is committed
	err = s.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "store.reopened", Detail: map[string]string{"moved_to": m.To}},
		func(tx store.Tx) error { return store.PutClosed(tx, nil) })
	return db.String(), s.Revision().String(), err
}
