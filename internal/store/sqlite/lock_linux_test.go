package sqlite_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/keybaton/keybaton/internal/key"
)

// TestHardLinkIsRefused comes to the file by a second name with a lock file of
// its own: in this process, and in another. SQLite's own locks are unharmed: a
// program that knows nothing of ours finds the file in use.
func TestHardLinkIsRefused(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "keybaton.db"), filepath.Join(dir, "sub", "other.db")
	s := open(t, path)
	if err := os.Mkdir(filepath.Dir(link), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	locks := func() int {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 5 && f[1] == "POSIX" && f[4] == strconv.Itoa(os.Getpid()) && strings.HasSuffix(f[5], ":"+strconv.FormatUint(st.Ino, 10)) {
				n++
			}
		}
		return n
	}
	before := locks()
	if before == 0 {
		t.Fatal("SQLite has no lock on the file that it has open")
	}
	refused(t, link, key.ErrLocked, "stop the other server")
	if after := locks(); after != before {
		t.Errorf("SQLite had %d locks on the file, and has %d", before, after)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), childEnv+"="+link)
	if out, err := child.CombinedOutput(); err == nil || !strings.Contains(string(out), "another keybaton has it open") {
		t.Errorf("another process opens the file by its other name: %v, %s", err, out)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, link)
}
