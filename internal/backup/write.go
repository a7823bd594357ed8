package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"filippo.io/age"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store/dump"
)

// Written says what was written.
type Written struct {
	Manifest dump.Manifest
	Bytes    int64  // of the file
	SHA256   string // hex, of the file
	Opened   bool   // it was decrypted again and compared; otherwise only its bytes were
}

// Write writes a backup to a new file of mode 0600 at path. dump writes the
// dump, which is checked as it passes by. The file is read back before it gets
// its name: its hash is compared, and where k can open it, it is decrypted and
// its dump compared too. If path exists, Write fails with [key.ErrExists] unless
// overwrite is set; the old file is replaced in one step. On an error no file is
// left, and an old one stays.
func Write(path string, k Keys, h Head, overwrite bool, write func(io.Writer) (dump.Manifest, error)) (w Written, err error) {
	exists := key.WithHint(fmt.Errorf("%s: %w", path, key.ErrExists), "name another file, or say --overwrite")
	if _, err := os.Lstat(path); err == nil && !overwrite {
		return w, exists
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return w, cannot(path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // once it has its name there is nothing to remove
	sum := sha256.New()
	out := &sink{w: io.MultiWriter(f, sum)}
	w.Manifest, err = encrypt(out, k, h, write)
	if out.err != nil { // why everything else failed
		err = out.err
	}
	if out.err == nil && err != nil {
		_ = f.Close()
		return w, err // of the store
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return w, cannot(path, err)
	}
	w.Bytes, w.SHA256 = out.n, hex.EncodeToString(sum.Sum(nil))
	if err := readBack(f.Name(), k, &w); err != nil {
		return w, key.WithHint(fmt.Errorf("the backup was written, but cannot be read back: %w; it was removed", err), "look at the disk, and try again")
	}
	if err := rename(f.Name(), path, overwrite); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return w, exists
		}
		return w, cannot(path, err)
	}
	return w, nil
}

// sink remembers that a write failed, and counts.
type sink struct {
	w   io.Writer
	n   int64
	err error
}

func (s *sink) Write(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.w.Write(b)
	s.n += int64(n)
	s.err = err
	return n, err
}

func cannot(path string, err error) error {
	err = fmt.Errorf("writing the backup %s: %w", path, err)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return key.WithHint(fmt.Errorf("%w: %w", key.ErrFull, err), "free space there, or name a file on another disk; no part of a backup was left")
	}
	return key.WithHint(err, "name a file in a directory that may be written")
}

// encrypt writes the encrypted backup to out. What goes in is checked at the
// same time, so that what is encrypted is known to be whole.
func encrypt(out io.Writer, k Keys, h Head, write func(io.Writer) (dump.Manifest, error)) (m dump.Manifest, err error) {
	to, err := k.encrypt()
	if err != nil {
		return m, err
	}
	buf := bufio.NewWriterSize(out, 64<<10)
	in, err := age.Encrypt(buf, to...)
	if err != nil {
		return m, err
	}
	first, err := h.line()
	if err != nil {
		return m, err
	}
	_, err = in.Write(first)
	clear(first)
	if err != nil {
		return m, err
	}
	r, w := io.Pipe()
	type seen struct {
		m   dump.Manifest
		err error
	}
	checked := make(chan seen, 1)
	go func() {
		m, err := dump.Verify(r)
		_ = r.CloseWithError(err) // nobody waits for a reader that is gone
		checked <- seen{m, err}
	}()
	m, err = write(io.MultiWriter(in, w))
	_ = w.CloseWithError(err)
	s := <-checked
	switch {
	case err != nil:
		return m, err
	case s.err != nil:
		return m, fmt.Errorf("checking what is backed up: %w", s.err)
	case s.m.SHA256 != m.SHA256:
		return m, errors.New("checking what is backed up: its hash is another")
	}
	if err := in.Close(); err != nil {
		return m, err
	}
	return m, buf.Flush()
}

func (h Head) line() ([]byte, error) {
	b := h.MasterKey.Reveal()
	defer clear(b)
	out, err := json.Marshal(head{magic, Format, h.Program, h.At.UTC(), h.Source, string(bytes.TrimSpace(b))})
	return append(out, '\n'), err
}

// readBack compares the file with what was written.
func readBack(path string, k Keys, w *Written) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) != w.SHA256 {
		return errors.New("the file holds other bytes than were written")
	}
	if !k.Opens() {
		return nil
	}
	r, err := Open(path, k)
	if err != nil {
		return err
	}
	m, err := r.Check(nil)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err == nil && m.SHA256 != w.Manifest.SHA256 {
		err = errors.New("it opens, and holds something else")
	}
	w.Opened = err == nil
	return err
}

// rename gives the file its name for good.
func rename(from, to string, overwrite bool) error {
	if overwrite {
		if err := os.Rename(from, to); err != nil {
			return err
		}
	} else if err := os.Link(from, to); err != nil { // unlike a rename, it replaces nothing
		if errors.Is(err, fs.ErrExist) {
			return err
		}
		if _, serr := os.Lstat(to); !errors.Is(serr, fs.ErrNotExist) {
			return fs.ErrExist
		}
		if err := os.Rename(from, to); err != nil { // a file system without hard links
			return err
		}
	}
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	d, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // nothing was written
	return d.Sync()
}
