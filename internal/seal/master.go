package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// Master is the key that wraps the data keys. It cannot be printed or encoded.
type Master struct {
	path   string
	reveal func() []byte // a copy, owned by the caller
}

// Path returns the file that the master key was read from.
func (m *Master) Path() string { return m.path }

// Format prints "[secret]" for every verb.
func (m *Master) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue returns "[secret]".
func (m *Master) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalJSON always fails with [secret.ErrEncode].
func (m *Master) MarshalJSON() ([]byte, error) { return nil, secret.ErrEncode }

func newMaster(path string, raw []byte) *Master {
	c := bytes.Clone(raw)
	return &Master{path: path, reveal: func() []byte { return bytes.Clone(c) }}
}

// LoadMaster reads the master key from the file at path: 32 bytes in base64,
// readable by its owner alone. Its errors name the file and the next step; a
// missing file is [key.ErrNotFound].
func LoadMaster(path string) (*Master, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, key.WithHint(fmt.Errorf("master key %s: %w", path, key.ErrNotFound),
			"put back the file that belongs to this store, or restore it from a backup; without it the stored keys cannot be read")
	}
	if err != nil {
		return nil, key.WithHint(fmt.Errorf("reading the master key: %w", err), "make the file readable for the user that runs keybaton")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the master key: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, key.WithHint(fmt.Errorf("master key %s: %w: it is not a regular file", path, key.ErrInvalid), "name the file itself")
	}
	if mode := st.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return nil, key.WithHint(fmt.Errorf("master key %s: %w: others may read or change it (mode %04o)", path, key.ErrInvalid, mode),
			"run chmod 600 "+path+", and replace the keys it protects if it may have been read")
	}
	text, err := io.ReadAll(io.LimitReader(f, 1024))
	defer clear(text)
	if err != nil {
		return nil, fmt.Errorf("reading the master key: %w", err)
	}
	raw := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	defer clear(raw)
	n, err := base64.StdEncoding.Strict().Decode(raw, bytes.TrimSpace(text))
	if err != nil || n != secret.KeySize {
		return nil, key.WithHint(fmt.Errorf("master key %s: %w: it must hold %d bytes in base64", path, key.ErrInvalid, secret.KeySize),
			"put back the file that belongs to this store, or restore it from a backup")
	}
	return newMaster(path, raw[:n]), nil
}

// Text returns what the master key's file holds, for a backup that is encrypted.
func (m *Master) Text() secret.Value {
	raw := m.reveal()
	defer clear(raw)
	text := base64.StdEncoding.AppendEncode(nil, raw)
	defer clear(text)
	return secret.New(text)
}

// ParseMaster returns the master key of a text that [Master.Text] returned; path
// is where it belongs.
func ParseMaster(path string, text secret.Value) (*Master, error) {
	b := text.Reveal()
	defer clear(b)
	raw := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	defer clear(raw)
	n, err := base64.StdEncoding.Strict().Decode(raw, b)
	if err != nil || n != secret.KeySize {
		return nil, fmt.Errorf("%w: a master key is %d bytes in base64", key.ErrInvalid, secret.KeySize)
	}
	return newMaster(path, raw[:n]), nil
}

// Same reports whether o is the same key, wherever it was read from.
func (m *Master) Same(o *Master) bool {
	a, b := m.reveal(), o.reveal()
	defer clear(a)
	defer clear(b)
	return subtle.ConstantTimeCompare(a, b) == 1
}

// Save writes the master key to a new file at its path, of mode 0600. It fails
// with fs.ErrExist if there is one.
func (m *Master) Save() error {
	text := m.Text().Reveal()
	defer clear(text)
	return createFile(m.path, append(text, '\n'))
}

// Opens proves that m unwraps every one of the data keys, as [Keyring.Check]
// does, without a store. Without data keys, any master key does.
func (m *Master) Opens(wrapped map[string][]byte) error {
	k := New(m, nil)
	for _, name := range slices.Sorted(maps.Keys(wrapped)) {
		if _, err := k.unwrap(name, wrapped[name]); err != nil {
			return err
		}
	}
	return nil
}

// LoadOrCreateMaster reads the master key from the file at path, or makes one
// when there is no file. It is for stores that are known to be new; see
// [OpenMaster].
func LoadOrCreateMaster(path string) (*Master, error) {
	m, err := LoadMaster(path)
	if !errors.Is(err, key.ErrNotFound) {
		return m, err
	}
	raw := make([]byte, secret.KeySize)
	defer clear(raw)
	_, _ = rand.Read(raw) // never fails: crypto/rand crashes the program instead
	text := base64.StdEncoding.AppendEncode(nil, raw)
	defer clear(text)
	err = createFile(path, append(text, '\n'))
	if errors.Is(err, fs.ErrExist) { // another process was faster: its key counts
		return LoadMaster(path)
	}
	if err != nil {
		return nil, key.WithHint(fmt.Errorf("creating the master key: %w", err), "make the directory "+filepath.Dir(path)+" writable")
	}
	return newMaster(path, raw), nil
}

// OpenMaster reads the master key from the file at path. It makes one only if
// source has no data keys yet: a missing file beside a store with keys is an
// error that says so.
func OpenMaster(ctx context.Context, path string, source KeySource) (*Master, error) {
	m, err := LoadMaster(path)
	if !errors.Is(err, key.ErrNotFound) {
		return m, err
	}
	wrapped, serr := source.DataKeys(ctx)
	if serr != nil {
		return nil, fmt.Errorf("reading the data keys: %w", serr)
	}
	if len(wrapped) > 0 {
		return nil, err
	}
	return LoadOrCreateMaster(path)
}

// createFile writes a new file of mode 0600 that is either whole and durable
// or not there. It fails with fs.ErrExist if path exists.
func createFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".master-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	// A link, unlike a rename, never replaces a master key that another
	// process has just put there.
	err = os.Link(f.Name(), path)
	if err != nil && !errors.Is(err, fs.ErrExist) { // a file system without hard links
		if _, serr := os.Lstat(path); !errors.Is(serr, fs.ErrNotExist) {
			return err
		}
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
