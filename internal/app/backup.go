package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/backup"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/secret"
)

// BackupKeys say who can open a backup: exactly one of a passphrase and
// recipients is given.
type BackupKeys struct {
	Passphrase secret.Value
	Recipients []string     // age1…, or the content of files with one a line
	Identity   secret.Value // the content of a file of age-keygen: opens what is for a recipient
}

// forWriting and forReading return the keys as package backup takes them.
func (k BackupKeys) forWriting() (backup.Keys, error) {
	switch {
	case k.Passphrase.IsZero() && len(k.Recipients) == 0:
		return backup.Keys{}, key.WithHint(fmt.Errorf("%w: who may open the backup?", key.ErrInvalid),
			"run it on a terminal to be asked for a passphrase, or say --passphrase-file FILE or --recipient age1…")
	case !k.Passphrase.IsZero() && len(k.Recipients) > 0:
		return backup.Keys{}, key.WithHint(fmt.Errorf("%w: a passphrase and recipients exclude each other", key.ErrInvalid), "give one of them")
	case !k.Passphrase.IsZero() && !k.Identity.IsZero():
		return backup.Keys{}, key.WithHint(fmt.Errorf("%w: an identity opens what is for recipients", key.ErrInvalid), "leave out --identity, or say --recipient")
	case !k.Passphrase.IsZero():
		return backup.Passphrase(k.Passphrase)
	}
	to, err := backup.Recipients(k.Recipients...)
	if err != nil || k.Identity.IsZero() {
		return to, err
	}
	by, err := backup.Identities(k.Identity)
	return to.With(by), err
}

func (k BackupKeys) forReading() (backup.Keys, error) {
	if k.Identity.IsZero() {
		return backup.KnownPassphrase(k.Passphrase), nil
	}
	return backup.Identities(k.Identity)
}

// BackupOptions say what a backup holds and who can open it.
type BackupOptions struct {
	File      string
	Keys      BackupKeys
	MasterKey bool // put the master key in it
	Overwrite bool // an older backup of the same name
}

// Backed says what was backed up.
type Backed struct {
	File      string    `json:"file"`
	Source    string    `json:"source"`
	At        time.Time `json:"at"`
	Bytes     int64     `json:"bytes"`
	SHA256    string    `json:"sha256"`
	Revision  string    `json:"revision"`
	Schema    int64     `json:"schema"`
	Tables    int       `json:"tables"`
	Rows      int64     `json:"rows"`
	Opened    bool      `json:"opened"`                    // it was decrypted again and compared
	MasterKey bool      `json:"master_key"`                // it holds the master key
	KeyFile   string    `json:"key_file"`                  // where the master key is
	Warnings  []string  `json:"warnings" nullable:"false"` // what may keep somebody from using it
}

// Backup writes a backup of the store to a file, while a server may be running
// on it; see backup.Write. It notes the backup in the store.
func Backup(ctx context.Context, set Settings, o BackupOptions) (Backed, error) {
	set, err := set.complete()
	if err != nil {
		return Backed{}, err
	}
	keys, err := o.Keys.forWriting()
	if err != nil {
		return Backed{}, err
	}
	db, err := set.database()
	if err != nil {
		return Backed{}, err
	}
	if o.File, err = filepath.Abs(o.File); err != nil {
		return Backed{}, err
	}
	st, err := db.attach(ctx, false, false)
	if err != nil {
		return Backed{}, fmt.Errorf("opening the store: %w", err)
	}
	defer st.Close() //nolint:errcheck // what was written is committed
	out := Backed{File: o.File, Source: db.String(), At: set.Now().UTC().Truncate(time.Millisecond), KeyFile: set.MasterKey, MasterKey: o.MasterKey, Warnings: []string{}}
	head := backup.Head{Program: Version, At: out.At, Source: out.Source}
	master, err := fitting(ctx, set.MasterKey, st)
	switch {
	case err != nil && o.MasterKey:
		return Backed{}, fmt.Errorf("including the master key: %w", err)
	case err != nil:
		what, next := Explain(err)
		out.Warnings = append(out.Warnings, "the keys in this backup cannot be read with what is here: "+what+"; "+next)
	case o.MasterKey:
		head.MasterKey = master.Text()
	}
	w, err := backup.Write(o.File, keys, head, o.Overwrite, func(w io.Writer) (dump.Manifest, error) { return st.Dump(ctx, w) })
	if err != nil {
		return Backed{}, err
	}
	m := w.Manifest
	out.Bytes, out.SHA256, out.Opened = w.Bytes, w.SHA256, w.Opened
	out.Revision, out.Schema, out.Tables, out.Rows = m.Revision().String(), m.Schema, len(m.Tables), m.Rows()
	if !w.Opened {
		out.Warnings = append(out.Warnings, "it was not opened again, as only its recipients can: check that you have an identity of one of them, or back up with --identity FILE once")
	}
	if beside(o.File, set.Data) {
		out.Warnings = append(out.Warnings, "it lies beside the data that it is a backup of: copy it to another machine")
	}
	err = st.Observe(ctx, func(tx store.Tx) error {
		return store.PutBackup(tx, store.Backup{At: out.At, File: o.File, SHA256: w.SHA256, Bytes: w.Bytes, Revision: m.Revision(), MasterKey: o.MasterKey})
	})
	if err != nil {
		what, _ := Explain(err)
		out.Warnings = append(out.Warnings, "it could not be noted in the store, so that keybaton doctor does not know of it: "+what)
	}
	return out, nil
}

// beside reports whether file is in dir.
func beside(file, dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(dir, file)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// fitting returns the master key at path, if it opens the data keys of st.
func fitting(ctx context.Context, path string, st store.Store) (*seal.Master, error) {
	m, err := seal.LoadMaster(path)
	if err != nil {
		return nil, err
	}
	keys, err := dataKeys{st}.DataKeys(ctx)
	if err != nil {
		return nil, err
	}
	return m, m.Opens(keys)
}

// RestoreOptions name the backup, and what opens it.
type RestoreOptions struct {
	File string
	Keys BackupKeys
}

// Restored says what was restored.
type Restored struct {
	File        string    `json:"file"`
	Place       string    `json:"place"` // of the store
	Taken       time.Time `json:"taken"` // when it was backed up
	Origin      string    `json:"origin"`
	Tables      int       `json:"tables"`
	Rows        int64     `json:"rows"`
	Backed      string    `json:"backed"`   // revision that was backed up
	Revision    string    `json:"revision"` // first of the new epoch
	MasterKey   string    `json:"master_key"`
	KeyWritten  bool      `json:"key_written"` // the master key was in the backup, and was written
	KeyMissing  bool      `json:"key_missing"` // it must be put there before a server starts
	Credentials int64     `json:"credentials"`
}

// Restore fills an empty store with a backup. The whole backup is read and
// proven, and the master key that is there compared, before anything is written.
// The store gets a new epoch and a mark, see [store.Restored].
func Restore(ctx context.Context, set Settings, o RestoreOptions) (Restored, error) {
	set, err := set.complete()
	if err != nil {
		return Restored{}, err
	}
	keys, err := o.Keys.forReading()
	if err != nil {
		return Restored{}, err
	}
	db, err := set.database()
	if err != nil {
		return Restored{}, err
	}
	if o.File, err = filepath.Abs(o.File); err != nil {
		return Restored{}, err
	}
	head, wrapped, err := proveBackup(o.File, keys)
	if err != nil {
		return Restored{}, err
	}
	out := Restored{File: o.File, Place: db.String(), Taken: head.At, Origin: head.Source, MasterKey: set.MasterKey}
	master, err := masterFor(set.MasterKey, head, wrapped)
	if err != nil {
		return Restored{}, err
	}
	out.KeyWritten, out.KeyMissing = master != nil, master == nil && !exists(set.MasterKey)
	b, err := backup.Open(o.File, keys)
	if err != nil {
		return Restored{}, err
	}
	defer b.Close() //nolint:errcheck // it was only read
	undo := func() error { return nil }
	st, m, err := db.load(ctx, b.Dump(), loadAs(head, o.File, func() (err error) {
		if master != nil {
			undo, err = saveMaster(master)
		}
		return err
	}))
	if err != nil {
		return Restored{}, errors.Join(fmt.Errorf("restoring %s: %w", o.File, err), undo())
	}
	out.Tables, out.Rows, out.Backed, out.Revision = len(m.Tables), m.Rows(), m.Revision().String(), st.Revision().String()
	for _, t := range m.Tables {
		if t.Name == "credential" {
			out.Credentials = t.Rows
		}
	}
	return out, st.Close()
}
