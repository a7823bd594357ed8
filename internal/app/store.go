package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store/postgres"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/secret"
)

// SQLite is the name of the store that is a file in the data directory.
const SQLite = "sqlite"

// StoreSource says where the address of the store is. The first that is set
// counts: Flag, File, Env. All empty means SQLite.
type StoreSource struct {
	Flag string       // read by everybody on the machine: no password in it
	File string       // a file with the address
	Env  secret.Value // the address
}

const storeForms = `say "sqlite", or the URL of a PostgreSQL database: postgres://user@host/database`

// Read returns the address of the store: empty for SQLite, else the URL of a
// PostgreSQL database. Its errors hold nothing of an address.
func (s StoreSource) Read() (secret.Value, error) {
	v := s.Env
	switch {
	case s.Flag != "" && s.File != "":
		return secret.Value{}, key.WithHint(fmt.Errorf("%w: the store is named twice", key.ErrInvalid), "give --store or --store-file")
	case s.Flag != "":
		if hasPassword(s.Flag) {
			return secret.Value{}, key.WithHint(fmt.Errorf("%w: a password on the command line can be read by every user of this machine", key.ErrInvalid),
				"put the URL into KEYBATON_STORE or a file (--store-file), or the password alone into PGPASSWORD or PGPASSFILE; and change the password, as it was seen")
		}
		v = secret.FromString(s.Flag)
	case s.File != "":
		var err error
		if v, err = readStoreFile(s.File); err != nil {
			return secret.Value{}, err
		}
	}
	text := string(v.Reveal())
	if text == "" || text == SQLite {
		return secret.Value{}, nil
	}
	if !strings.HasPrefix(text, "postgres://") && !strings.HasPrefix(text, "postgresql://") {
		return secret.Value{}, key.WithHint(fmt.Errorf("%w: the address of the store is none that this program knows", key.ErrInvalid), storeForms)
	}
	return v, nil
}

// hasPassword reports whether an address could have a password in it.
func hasPassword(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return address != SQLite // it cannot be told
	}
	_, set := u.User.Password()
	return set || u.Query().Has("password") || u.Query().Has("sslpassword") || strings.Contains(address, "password=")
}

func readStoreFile(path string) (secret.Value, error) {
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err == nil && st.Mode().Perm()&0o007 != 0 {
		return secret.Value{}, key.WithHint(fmt.Errorf("%w: the file %s of the store's address can be read by everybody", key.ErrInvalid, path), "run chmod 600 "+path+", and change the password if it may have been read")
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return secret.Value{}, key.WithHint(fmt.Errorf("reading the address of the store: %w", err), "name a file that holds it and nothing else: --store-file FILE")
	}
	defer clear(b)
	v := secret.FromString(strings.TrimSpace(string(b)))
	if v.IsZero() {
		return secret.Value{}, key.WithHint(fmt.Errorf("%w: the file %s of the store's address is empty", key.ErrInvalid, path), storeForms)
	}
	return v, nil
}

// shared reports whether other servers may work on the same store.
func (s Settings) shared() bool { return !s.Store.IsZero() }

func (s Settings) file() string { return filepath.Join(s.Data, databaseFile) }

// openStore opens the store; an error says what to do.
func (a *App) openStore(ctx context.Context) error {
	if err := os.MkdirAll(a.set.Data, 0o700); err != nil {
		return key.WithHint(fmt.Errorf("making the data directory: %w", err), "run as a user who may write it, or name another: --data DIR")
	}
	if !a.set.shared() {
		s, err := sqlite.Open(ctx, a.set.file(), sqlite.Options{Now: a.set.Now})
		if err != nil {
			return fmt.Errorf("opening the store: %w", err)
		}
		a.store = s
		return checkOpen(ctx, s)
	}
	s, err := postgres.Open(ctx, string(a.set.Store.Reveal()), postgres.Options{Now: a.set.clock, Event: func(err error) {
		if err != nil {
			a.log.Warn("changes by other servers are seen later", "error", err)
		} else {
			a.log.Info("changes by other servers are seen at once again")
		}
	}})
	if err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	a.store = s
	a.set.Now = s.Now // one clock for every server
	return checkOpen(ctx, s)
}

// Migrated says what became of a schema.
type Migrated struct{ From, To int64 }

// Migrate brings the schema of the store up to date; with check it only reads
// which one there is.
func Migrate(ctx context.Context, set Settings, check bool) (Migrated, error) {
	set, err := set.complete()
	if err != nil {
		return Migrated{}, err
	}
	read := func() (Migrated, error) {
		if set.shared() {
			s, err := postgres.ReadSchema(ctx, string(set.Store.Reveal()))
			return Migrated{s.Have, s.Know}, err
		}
		s, err := sqlite.ReadSchema(ctx, set.file())
		return Migrated{s.Have, s.Know}, err
	}
	m, err := read()
	if err != nil || check || m.From == m.To {
		return m, err
	}
	a := &App{set: set, log: set.Log}
	if err := a.openStore(ctx); err != nil {
		return m, err
	}
	return m, a.store.Close()
}

// serverID returns what names this data directory, and so the server that runs
// on it: the same after a restart.
func serverID(data string) (string, error) {
	path := filepath.Join(data, "server.id")
	b, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(b)); err == nil && len(id) == 32 {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", key.WithHint(fmt.Errorf("reading the server's id: %w", err), "let this user read "+path)
	}
	r := make([]byte, 16)
	_, _ = rand.Read(r) // never fails: crypto/rand crashes the program instead
	id := hex.EncodeToString(r)
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		return "", key.WithHint(fmt.Errorf("writing the server's id: %w", err), "let this user write "+data)
	}
	return id, nil
}
