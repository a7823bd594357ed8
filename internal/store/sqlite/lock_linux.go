package sqlite

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// inode names a file whatever its path.
type inode struct{ dev, ino uint64 }

// held are the files that this process has locked with lockFile. They must not
// even be opened again here: closing any descriptor of a file ends the locks
// that SQLite has on it in the same process (fcntl(2), "Advisory record
// locking").
var held = struct {
	sync.Mutex
	files map[inode]bool
}{files: map[inode]bool{}}

// heldHere returns errLocked when this process has locked the file at path,
// under this name or another.
func heldHere(path string) error {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return nil // whatever it is, opening the file will tell
	}
	held.Lock()
	defer held.Unlock()
	if held.files[inode{uint64(st.Dev), st.Ino}] {
		return errLocked
	}
	return nil
}

// lockFile locks the file at path itself, so that a second process is refused
// also where it comes by a hard link or another mount, beside which lies
// another lock file.
//
// NOTE: Linux keeps the locks of flock apart from those of fcntl, which SQLite
// uses. Other systems do not, and have the lock file alone.
func lockFile(path string) (unlock func() error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, err
	}
	id := inode{uint64(st.Dev), st.Ino}
	held.Lock()
	held.files[id] = true
	held.Unlock()
	return func() error {
		held.Lock()
		delete(held.files, id)
		held.Unlock()
		return f.Close()
	}, nil
}
