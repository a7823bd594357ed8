package backup_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/keybaton/keybaton/internal/backup"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/secret"
)

// marked is what no file and no error may hold in the clear.
const marked = "a key that is marked, 0123456789"

// small writes a dump of one row.
func small(w io.Writer) (dump.Manifest, error) {
	d, err := dump.NewWriter(w, dump.Header{Schema: 1, Epoch: 1, Number: 2, At: time.Unix(1_900_000_000, 0),
		Tables: []dump.Table{{Name: "t", Columns: []dump.Column{{Name: "a", Type: dump.Text}}, Rows: 1}}})
	if err != nil {
		return dump.Manifest{}, err
	}
	if err := errors.Join(d.Table(), d.Row([]any{marked})); err != nil {
		return dump.Manifest{}, err
	}
	return d.Close()
}

// pair returns keys that write and open.
func pair(t *testing.T) (to, by backup.Keys) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	to, err = backup.Recipients("# a comment\n" + id.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	by, err = backup.Identities(secret.FromString(id.String()))
	if err != nil {
		t.Fatal(err)
	}
	return to, by
}

func head() backup.Head {
	return backup.Head{Program: "1.2.3", At: time.Unix(1_900_000_000, 0).UTC(), Source: "sqlite:/x", MasterKey: secret.FromString(marked)}
}

func TestWriteAndOpen(t *testing.T) {
	to, by := pair(t)
	path := filepath.Join(t.TempDir(), "b.age")
	w, err := backup.Write(path, to.With(by), head(), false, small)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Size() != w.Bytes || st.Mode().Perm() != 0o600 || !w.Opened {
		t.Fatalf("%v, %v, %+v", err, st, w)
	}
	b, err := os.ReadFile(path)
	if err != nil || bytes.Contains(b, []byte(marked)) {
		t.Fatalf("the file holds its content in the clear (%v)", err)
	}
	r, err := backup.Open(path, by)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if h := head(); r.Head.Program != h.Program || !r.Head.At.Equal(h.At) || r.Head.Source != h.Source || !r.Head.MasterKey.Equal(h.MasterKey) {
		t.Errorf("the head is %+v", r.Head)
	}
	rows := 0
	m, err := r.Check(func(tab dump.Table, row []any) {
		if rows++; tab.Name != "t" || row[0] != marked {
			t.Errorf("a row of %s: %v", tab.Name, row)
		}
	})
	if err != nil || m.SHA256 != w.Manifest.SHA256 || rows != 1 {
		t.Errorf("%v, %+v, %d rows", err, m, rows)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Every byte that is cut off or changed is found when the file is opened or
// read.
func TestDamageIsFound(t *testing.T) {
	to, by := pair(t)
	path := filepath.Join(t.TempDir(), "b.age")
	if _, err := backup.Write(path, to, head(), false, small); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) error {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := backup.Open(path, by)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = r.Check(nil)
		return err
	}
	if err := read(whole); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, i int, err error) {
		var h *key.Hint
		if !errors.Is(err, key.ErrInvalid) || !errors.As(err, &h) || strings.Contains(err.Error(), marked) {
			t.Errorf("%s at %d: got error %v", what, i, err)
		}
	}
	for i := 0; i < len(whole); i += 3 {
		refused("cut", i, read(whole[:i]))
		b := bytes.Clone(whole)
		b[i] ^= 1
		refused("flipped", i, read(b))
	}
	refused("longer", len(whole), read(append(bytes.Clone(whole), 'x')))
}

// What goes wrong while it is written leaves no file, and an old one as it was.
func TestFailuresLeaveNothing(t *testing.T) {
	to, _ := pair(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "b.age")
	stop := errors.New("stop")
	for name, write := range map[string]func(io.Writer) (dump.Manifest, error){
		"nothing": func(io.Writer) (dump.Manifest, error) { return dump.Manifest{}, stop },
		"half": func(w io.Writer) (dump.Manifest, error) {
			_, err := io.WriteString(w, "{")
			return dump.Manifest{}, errors.Join(err, stop)
		},
		"no dump": func(w io.Writer) (dump.Manifest, error) {
			_, err := io.WriteString(w, strings.Repeat("not a dump\n", 10_000))
			return dump.Manifest{}, err
		},
		"another hash": func(w io.Writer) (dump.Manifest, error) {
			m, err := small(w)
			m.SHA256 = "0"
			return m, err
		},
	} {
		if _, err := backup.Write(path, to, head(), true, write); err == nil {
			t.Errorf("%s: it was written", name)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v, %v", name, left, err)
		}
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Write(path, to, head(), false, small); !errors.Is(err, key.ErrExists) {
		t.Errorf("over a file: got error %v, want %v", err, key.ErrExists)
	}
	if _, err := backup.Write(path, to, head(), true, func(io.Writer) (dump.Manifest, error) { return dump.Manifest{}, stop }); !errors.Is(err, stop) {
		t.Errorf("got error %v, want %v", err, stop)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("the old file holds %q (%v)", b, err)
	}
	if _, err := backup.Write(path, to, head(), true, small); err != nil {
		t.Error(err)
	}
}

func TestNewerFormat(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	by, err := backup.Identities(secret.FromString(id.String()))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]error{
		`{"keybaton":"backup","format":2,"program":"9.9"}`:    key.ErrNewer,
		`{"keybaton":"something","format":1,"program":"9.9"}`: key.ErrInvalid,
		`hello`: key.ErrInvalid,
	} {
		var b bytes.Buffer
		w, err := age.Encrypt(&b, id.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text+"\n"); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "b.age")
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Open(path, by); !errors.Is(err, want) {
			t.Errorf("%s: got error %v, want %v", text, err, want)
		}
	}
}

// A mistake never repeats what may be an identity or a passphrase.
func TestKeysAreNotRepeated(t *testing.T) {
	if _, err := backup.Recipients(marked); err == nil || strings.Contains(err.Error(), marked) {
		t.Errorf("a recipient that is none: %v", err)
	}
	if _, err := backup.Identities(secret.FromString(marked)); err == nil || strings.Contains(err.Error(), marked) {
		t.Errorf("an identity that is none: %v", err)
	}
	if _, err := backup.Passphrase(secret.FromString("short pass")); !errors.Is(err, key.ErrInvalid) || strings.Contains(err.Error(), "short pass") {
		t.Errorf("a short passphrase: %v", err)
	}
	if _, err := backup.Write(filepath.Join(t.TempDir(), "b"), backup.Keys{}, head(), false, small); err == nil {
		t.Error("a backup for nobody was written")
	}
}
