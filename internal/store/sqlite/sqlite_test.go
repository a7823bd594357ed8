package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/internal/store/storetest"
)

// childEnv names the file that the test binary opens and holds when it is run
// as a second process.
const childEnv = "KEYBATON_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(hold(path))
	}
	os.Exit(m.Run())
}

// hold opens the store at path until its standard input ends, or says why it
// cannot.
func hold(path string) int {
	s, err := sqlite.Open(context.Background(), path, sqlite.Options{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("open")
	_, _ = os.Stdin.Read(make([]byte, 1))
	if s.Close() != nil {
		return 1
	}
	return 0
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, now func() time.Time) store.Store {
		s, err := sqlite.Open(context.Background(), filepath.Join(t.TempDir(), "keybaton.db"), sqlite.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, key.SealedFrom)
}

// open opens the store at path and closes it when the test ends.
func open(t *testing.T, path string) store.Store {
	t.Helper()
	s, _ := openRaw(t, path)
	return s
}

func openRaw(t *testing.T, path string) (store.Store, *sql.DB) {
	t.Helper()
	s, db, err := sqlite.OpenRaw(context.Background(), path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	return s, db
}

// refused opens the store at path, which must fail with want (nil: any error)
// and a text that says says.
func refused(t *testing.T, path string, want error, says ...string) {
	t.Helper()
	s, err := sqlite.Open(context.Background(), path, sqlite.Options{})
	if err == nil {
		_ = s.Close()
		t.Fatal("the store was opened")
	}
	if s != nil {
		t.Error("a store that is not nil came with the error")
	}
	if want != nil && !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	var hint *key.Hint
	if !errors.As(err, &hint) {
		t.Errorf("error %q has no next step", err)
	}
	for _, w := range says {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

// shown is everything that a store shows of what the tests write.
type shown struct {
	Revision    key.Revision
	Credentials []key.Credential
	Versions    []key.Version
	Sealed      map[key.VersionID]key.Sealed
	Entries     []audit.Entry
	Due         time.Time
}

func read(t *testing.T, s store.Store) (d shown) {
	t.Helper()
	err := s.View(context.Background(), func(tx store.Tx) error {
		var errs [6]error
		d.Revision, errs[0] = tx.Revision()
		d.Credentials, errs[1] = tx.Credentials()
		d.Versions, errs[2] = tx.AllVersions()
		d.Sealed, errs[3] = tx.AllSealed()
		d.Entries, errs[4] = tx.Entries(0, 0)
		d.Due, errs[5] = tx.NextDue("work")
		return errors.Join(errs[:]...)
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func same[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	// The path has what means something in a URL.
	path := filepath.Join(t.TempDir(), "a b?c=d%20#e&_pragma=x", "keybaton.db")
	s := open(t, path)
	if err := fill(s, 120); err != nil {
		t.Fatal(err)
	}
	if err := s.Observe(context.Background(), func(tx store.Tx) error { return tx.Due("work", "i", tx.Now().Add(time.Hour)) }); err != nil {
		t.Fatal(err)
	}
	before := read(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	again := open(t, path)
	same(t, "revision", again.Revision(), before.Revision)
	same(t, "what was stored", read(t, again), before)
}

func TestNewEpoch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keybaton.db")
	s := open(t, path)
	if err := fill(s, 1); err != nil {
		t.Fatal(err)
	}
	before := read(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(context.Background(), path, sqlite.Options{NewEpoch: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := key.Revision{Epoch: s.Revision().Epoch, Number: before.Revision.Number + 1}
	same(t, "revision", s.Revision(), want)
	if want.Epoch < time.Now().Unix()-3600 {
		t.Errorf("the epoch is %d, want the time: a backup that is restored again must not begin it again", want.Epoch)
	}
	after := read(t, s)
	same(t, "revision in a view", after.Revision, want)
	same(t, "entries", len(after.Entries), len(before.Entries)+1)
	same(t, "action", after.Entries[len(before.Entries)].Action, "store.epoch")
	err = s.View(context.Background(), func(tx store.Tx) error { _, err := tx.ChangedSince(before.Revision); return err })
	if !errors.Is(err, key.ErrStale) {
		t.Fatalf("changes since the epoch before: got error %v, want %v", err, key.ErrStale)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keybaton.db")
	s := open(t, path)
	refused(t, path, key.ErrLocked, "process "+strconv.Itoa(os.Getpid()), "stop the other server")
	if err := os.Symlink(path, filepath.Join(dir, "other.db")); err != nil {
		t.Fatal(err)
	}
	refused(t, filepath.Join(dir, "other.db"), key.ErrLocked)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Close(); err != nil { // the lock went with the store
		t.Fatal(err)
	}

	// The same between processes; the lock ends with the process.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), childEnv+"="+path)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 5)
	if _, err := out.Read(line); err != nil || string(line) != "open\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	refused(t, path, key.ErrLocked, "process "+strconv.Itoa(child.Process.Pid))
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	open(t, path)
}

func TestNewerSchemaIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keybaton.db")
	s, db := openRaw(t, path)
	if _, err := db.Exec(`INSERT INTO schema_version (version_id, is_applied) VALUES (99999, 1)`); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, path, key.ErrNewer, "99999", "run the newer keybaton")
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the file was changed")
	}
}

func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keybaton.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("this is no database. "), 500), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, path, nil, path, "damaged or is not a Keybaton database", "restore the newest backup")

	path = filepath.Join(t.TempDir(), "keybaton.db")
	s := open(t, path)
	if err := fill(s, 2000); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 64 * 1024; i < len(b); i++ { // past the pages that opening needs
		b[i] = 0xa5
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err = sqlite.Open(context.Background(), path, sqlite.Options{})
	if err == nil {
		defer s.Close()
		err = s.View(context.Background(), func(tx store.Tx) error { _, err := tx.AllVersions(); return err })
	}
	if err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Fatalf("got error %v, want one that says that the file is damaged", err)
	}
}

func TestFileIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "keybaton.db")
	s := open(t, path)
	if err := fill(s, 1); err != nil {
		t.Fatal(err)
	}
	mode := func(path string) os.FileMode {
		t.Helper()
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Mode().Perm()
	}
	same(t, "mode of the directory", mode(dir), 0o700)
	for _, p := range []string{path, path + "-wal", path + "-shm", path + ".lock"} {
		same(t, "mode of "+filepath.Base(p), mode(p), 0o600)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	same(t, "mode of a file that was open to others", mode(path), 0o600)
}

func TestCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, filepath.Join(file, "keybaton.db"), key.ErrUnavailable, "writable for the user")
	if err := os.Mkdir(filepath.Join(dir, "keybaton.db"), 0o700); err != nil {
		t.Fatal(err)
	}
	refused(t, filepath.Join(dir, "keybaton.db"), key.ErrUnavailable)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := sqlite.Open(ctx, filepath.Join(dir, "a.db"), sqlite.Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("opening with an ended context: got error %v", err)
	}
	open(t, filepath.Join(dir, "a.db")) // what failed gave the lock back
}

// The rules hold for whoever writes the file, not only for this program.
func TestSchemaKeepsTheRules(t *testing.T) {
	s, db := openRaw(t, filepath.Join(t.TempDir(), "keybaton.db"))
	if err := fill(s, 1); err != nil {
		t.Fatal(err)
	}
	another := func(state, parked, fingerprint string) string {
		return `INSERT INTO version SELECT service, environment, 2, '` + state + `', ` + parked + `, origin, vendor_id, label, '` + fingerprint +
			`', read_out, created_ms, since_ms, expires_ms, saved, note, rotation FROM version WHERE number = 1`
	}
	if _, err := db.Exec(another("fallback", "0", "")); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`DELETE FROM version WHERE number = 2`); err != nil {
		t.Fatal(err)
	}
	for what, q := range map[string]string{
		"two primaries":          another("primary", "0", ""),
		"two primaries, parked":  another("primary", "1", ""),
		"a state that is none":   another("odd", "0", ""),
		"a fingerprint twice":    another("retired", "0", fmt.Sprintf("%032x", 0)),
		"a version of nothing":   `UPDATE version SET environment = 'no'`,
		"a key without data key": `UPDATE sealed SET data_key = 'no'`,
		"another revision row":   `INSERT INTO meta VALUES (1, 1, 1)`,
		"a lease due never":      `INSERT INTO lease VALUES ('k', 'i', 'o', 1, 5, 0, 0)`,
		"a fork of the audit":    `INSERT INTO audit SELECT 2, at_ms, actor, action, service, environment, version, rotation, detail, prev, 'x' FROM audit`,
	} {
		if _, err := db.Exec(q); err == nil {
			t.Errorf("the schema takes %s", what)
		}
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000"} {
		var got string
		if err := db.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), not %q", pragma, got, err, want)
		}
	}
}
