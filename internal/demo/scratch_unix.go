//go:build unix

package demo

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// tryLock locks f until it is closed, or the process ends, and reports whether
// nobody else had it.
func tryLock(f *os.File) (free bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// own reports whether this user made the directory.
func own(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// removeDead removes the directory of a demo that is gone. Its lock is held
// meanwhile.
func removeDead(dir string) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if err != nil {
		return // one that is just beginning
	}
	defer func() { _ = f.Close() }() // nothing was written
	if free, err := tryLock(f); err == nil && free {
		_ = os.RemoveAll(dir)
	}
}
