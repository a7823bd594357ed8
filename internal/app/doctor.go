package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
)

// Level says how bad a finding is.
type Level string

// The levels of a finding.
const (
	LevelOK      Level = "ok"
	LevelWarning Level = "warning" // it works, and somebody should look at it
	LevelError   Level = "error"   // it does not work, or will not
)

// Finding is what one check of the doctor found.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Text  string `json:"text"`
	Next  string `json:"next,omitempty"` // what to do; "" where nothing is
}

// DoctorOptions say what is looked at.
type DoctorOptions struct {
	Settings
	Client    *client.Client // of the server; its token may be missing
	ClientErr error          // why there is no client
	Upstreams bool           // connect to every declared upstream
}

// The limits of the doctor.
const (
	little     = 512 << 20 // bytes of free disk: a warning
	tooLittle  = 32 << 20
	oldBackup  = 8 * 24 * time.Hour
	skew       = 2 * time.Minute // by which clocks may differ
	connecting = 5 * time.Second // to an upstream, or to our own server
)

// doctor collects findings.
type doctor struct {
	o     DoctorOptions
	found []Finding
	store *sqlstore.Store // nil: there is none, or it does not open
	tell  func(Finding)
}

func (d *doctor) add(check string, l Level, next, format string, args ...any) {
	f := Finding{check, l, fmt.Sprintf(format, args...), next}
	d.found = append(d.found, f)
	if d.tell != nil {
		d.tell(f)
	}
}

func (d *doctor) ok(check, format string, args ...any) { d.add(check, LevelOK, "", format, args...) }

// fail adds an error with its own next step, or else.
func (d *doctor) fail(check string, err error, otherwise string) {
	what, next := Explain(err)
	if next == "" {
		next = otherwise
	}
	d.add(check, LevelError, next, "%s", what)
}

// Examine checks an installation and changes nothing. Each finding is told as it
// is made. The server may be running or not. It reads the whole store, and makes
// no connection but to the server itself unless upstreams were asked for.
func Examine(ctx context.Context, o DoctorOptions, tell func(Finding)) ([]Finding, error) {
	set, err := o.complete()
	if err != nil {
		return nil, err
	}
	o.Settings = set
	d := &doctor{o: o, tell: tell}
	d.ok("program", "keybaton %s, %s, %s/%s, schema %d", Version, runtime.Version(), runtime.GOOS, runtime.GOARCH, sqlstore.Known())
	d.configuration()
	d.disk("data directory", set.Data)
	d.openStore(ctx)
	if d.store != nil {
		defer d.store.Close() //nolint:errcheck // it was only read
	}
	d.masterKey(ctx)
	if d.store != nil {
		d.contents(ctx)
	}
	d.clock(ctx)
	d.ports(ctx)
	d.server(ctx)
	if d.store != nil {
		d.backups(ctx)
		if o.Upstreams {
			d.upstreams(ctx)
		}
	}
	return d.found, ctx.Err()
}

// configuration looks at the configuration directory and the files in it that
// others must not read.
func (d *doctor) configuration() {
	dir := d.o.Config
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.add("configuration", LevelWarning, "start the server: keybaton serve; or name the right one: --config DIR", "there is no configuration directory %s", dir)
		return
	case err != nil:
		d.fail("configuration", err, "run as the user that runs the server")
		return
	case !st.IsDir():
		d.add("configuration", LevelError, "name the directory: --config DIR", "%s is not a directory", dir)
		return
	case runtime.GOOS != "windows" && st.Mode().Perm()&0o022 != 0:
		d.add("configuration", LevelError, "chmod 700 "+dir, "others may put files into %s (mode %04o)", dir, st.Mode().Perm())
	default:
		d.ok("configuration", "%s", dir)
	}
	for _, f := range []string{"admin.token", "gateway-cache.key"} {
		d.private(f, filepath.Join(dir, f))
	}
}

// private looks at a file that only its owner may read.
func (d *doctor) private(check, path string) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.add(check, LevelWarning, "the next start of the server makes it", "there is no %s", path)
	case err != nil:
		d.fail(check, err, "run as the user that runs the server")
	case !st.Mode().IsRegular():
		d.add(check, LevelError, "remove it; the next start of the server makes it anew", "%s is not a file", path)
	case runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0:
		d.add(check, LevelError, "chmod 600 "+path+"; remove it instead if it may have been read, and start the server anew", "%s can be read by others (mode %04o)", path, st.Mode().Perm())
	default:
		d.ok(check, "%s, readable by its owner alone", path)
	}
}

// openStore attaches to the store.
func (d *doctor) openStore(ctx context.Context) {
	db, err := d.o.database()
	if err == nil {
		d.store, err = db.attach(ctx, false, true)
	}
	switch {
	case errors.Is(err, key.ErrNotFound):
		d.add("store", LevelWarning, "start the server: keybaton serve; or name the right one: --data DIR", "there is no store at %s yet", db)
		return
	case err != nil:
		d.fail("store", err, "restore the newest backup: keybaton restore FILE")
		return
	}
	have, know := d.store.Schema(), sqlstore.Known()
	switch {
	case have > know:
		d.add("store", LevelError, "run the newer keybaton that made it", "%s has schema %d, and this program knows %d", db, have, know)
		_ = d.store.Close() // it was only read
		d.store = nil
	case have < know:
		d.add("store", LevelWarning, "make a backup, then start the server: it brings the schema up to date", "%s has schema %d, and this program knows %d", db, have, know)
	default:
		d.ok("store", "%s, schema %d, revision %s", db, have, d.store.Revision())
	}
}

// masterKey looks whether the master key is there, and opens this store.
func (d *doctor) masterKey(ctx context.Context) {
	const check = "master key"
	path := d.o.MasterKey
	m, err := seal.LoadMaster(path)
	wrapped := map[string][]byte{}
	if d.store != nil {
		var kerr error
		if wrapped, kerr = (dataKeys{d.store}).DataKeys(ctx); kerr != nil {
			d.fail(check, kerr, "restore the newest backup: keybaton restore FILE")
			return
		}
	}
	switch {
	case errors.Is(err, key.ErrNotFound) && len(wrapped) == 0:
		d.add(check, LevelWarning, "the first start of the server makes it", "there is no %s yet", path)
	case err != nil:
		d.fail(check, err, "")
	case d.store == nil:
		d.add(check, LevelOK, "", "%s is a master key; whether it is the right one cannot be seen without the store", path)
	default:
		if err := m.Opens(wrapped); err != nil {
			d.fail(check, err, "")
			return
		}
		d.add(check, LevelOK, "", "%s opens the %d data keys of this store", path, len(wrapped))
	}
}

// contents reads everything in the store.
func (d *doctor) contents(ctx context.Context) {
	if err := d.store.Check(ctx); err != nil {
		d.fail("integrity", err, "keep a copy of the store as it is, and restore the newest backup: keybaton restore FILE")
	} else {
		d.ok("integrity", "every table can be read")
	}
	v := audit.NewVerifier()
	last := int64(0)
	err := d.store.View(ctx, func(tx store.Tx) error {
		for {
			es, err := tx.Entries(last+1, 1000)
			if err != nil || len(es) == 0 {
				return err
			}
			for _, e := range es {
				if err := v.Add(e); err != nil {
					return err
				}
				last = e.Seq
			}
		}
	})
	var broken *audit.Broken
	switch {
	case errors.As(err, &broken):
		d.add("audit", LevelError, "keep a copy of the database as it is, and find out who could write to it", "%s", broken.Text)
	case err != nil:
		d.fail("audit", err, "restore the newest backup: keybaton restore FILE")
	default:
		d.ok("audit", "%d entries, each as it was written", last)
	}
	err = d.store.View(ctx, func(tx store.Tx) error {
		if m, closed, err := store.ReadClosed(tx); err != nil {
			return err
		} else if closed {
			d.fail("store", closedError(m), "")
		}
		m, restored, err := store.ReadRestored(tx)
		if restored {
			d.ok("store", "restored at %s from a backup of %s, as epoch %d", short(m.At), short(m.Taken), m.Epoch)
		}
		return err
	})
	if err != nil {
		d.fail("store", err, "")
	}
}

// backups looks when the last backup was made.
func (d *doctor) backups(ctx context.Context) {
	const check, next = "backup", "make one: keybaton backup FILE"
	var m store.Backup
	any := false
	err := d.store.View(ctx, func(tx store.Tx) (err error) {
		m, any, err = store.ReadBackup(tx)
		return err
	})
	age := d.o.Now().Sub(m.At)
	switch {
	case err != nil:
		d.fail(check, err, "")
	case !any:
		d.add(check, LevelWarning, next, "no backup was ever made")
	case age > oldBackup:
		d.add(check, LevelWarning, next, "the last backup is %d days old: %s", age/(24*time.Hour), m.File)
	default:
		holds := "without the master key"
		if m.MasterKey {
			holds = "with the master key"
		}
		d.ok(check, "the last one was made at %s, %s: %s", short(m.At), holds, m.File)
	}
}

func short(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") + " UTC" }
