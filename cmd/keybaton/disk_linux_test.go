package main

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// smallDisk makes a directory with a file system of its own, of few kilobytes:
// small-disk DIR SIZE. It also fills one, and makes one that can only be read:
// small-disk DIR full, small-disk DIR readonly.
func smallDisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: small-disk DIR SIZE | full | readonly")
	}
	dir := ts.MkAbs(args[0])
	if args[1] == "readonly" {
		ts.Check(unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		return
	}
	if args[1] == "full" {
		f, err := os.Create(filepath.Join(dir, "ballast"))
		ts.Check(err)
		block := make([]byte, 4096)
		for err == nil {
			_, err = f.Write(block)
		}
		_ = f.Close()
		if !errors.Is(err, unix.ENOSPC) {
			ts.Fatalf("filling the disk: %v", err)
		}
		return
	}
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,size="+args[1]))
	ts.Defer(func() {
		worldOf(ts).stop(unix.SIGTERM)
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			worldOf(ts).t.Error(err)
		}
	})
}

// mayMount reports whether this process may mount a file system.
func mayMount() bool {
	dir, err := os.MkdirTemp("", "keybaton-mount-")
	if err != nil {
		return false
	}
	defer os.Remove(dir) //nolint:errcheck // it is empty
	if unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k") != nil {
		return false
	}
	return unix.Unmount(dir, unix.MNT_DETACH) == nil
}
