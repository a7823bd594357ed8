package sqlite_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// disks are the ways to run out of space. A small file system needs the right
// to mount one; without it the test says so and limits the file's size, which
// the kernel answers in its own way.
var disks = map[string]disk{"pages": pages, "mount": mount}

func mount(t *testing.T) (string, func(*testing.T, *sql.DB) func(*testing.T)) {
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m")
	if errors.Is(err, unix.EPERM) {
		t.Log("may not mount a small file system: limiting the pages of the database instead")
		return pages(t)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	return filepath.Join(dir, "keybaton.db"), func(t *testing.T, _ *sql.DB) func(*testing.T) {
		if err := os.WriteFile(ballast, make([]byte, 512*1024), 0o600); err != nil {
			t.Fatal(err)
		}
		return func(t *testing.T) {
			if err := os.Remove(ballast); err != nil {
				t.Fatal(fmt.Errorf("making space: %w", err))
			}
		}
	}
}
