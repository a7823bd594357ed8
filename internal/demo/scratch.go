package demo

import (
	"errors"
	"os"
	"path/filepath"
)

const (
	scratchName = "keybaton-demo-"
	lockName    = "running" // in the directory of a demo, locked for as long as it runs
)

// scratch makes a directory for a demo in tmp and returns it, and what removes
// it. It holds a master key and tokens, so those of demos that were killed are
// removed first.
func scratch(tmp string) (dir string, remove func(), err error) {
	sweep(tmp)
	for range 10 {
		if dir, err = os.MkdirTemp(tmp, scratchName); err != nil {
			return "", nil, err
		}
		var lock *os.File
		if lock, err = hold(dir); err == nil {
			return dir, func() {
				_ = lock.Close() // first: not everywhere can a file be removed that is open
				_ = os.RemoveAll(dir)
			}, nil
		}
		_ = os.RemoveAll(dir)
	}
	return "", nil, err
}

// errSwept is returned by hold when another demo has taken the directory for
// that of a dead one, before it was locked.
var errSwept = errors.New("another demo removed it")

// hold locks dir for this process.
func hold(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	free, err := tryLock(f)
	if err == nil && !free {
		err = errSwept
	}
	if err == nil {
		var mine, there os.FileInfo
		if mine, err = f.Stat(); err == nil {
			if there, err = os.Stat(path); err == nil && !os.SameFile(mine, there) {
				err = errSwept
			}
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// sweep removes what this user's demos left in tmp that run no more. What
// cannot be looked at or removed stays.
func sweep(tmp string) {
	dirs, err := filepath.Glob(filepath.Join(tmp, scratchName+"*"))
	if err != nil {
		return
	}
	for _, d := range dirs {
		if fi, err := os.Lstat(d); err == nil && fi.IsDir() && own(fi) {
			removeDead(d)
		}
	}
}
