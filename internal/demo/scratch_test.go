package demo

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestScratch leaves what a killed demo would, beside a demo that runs and
// something of somebody else's: the next demo removes the first alone.
func TestScratch(t *testing.T) {
	tmp := t.TempDir()
	running, end, err := scratch(tmp)
	if err != nil {
		t.Fatal(err)
	}
	killed := filepath.Join(tmp, scratchName+"killed")
	beginning := filepath.Join(tmp, scratchName+"beginning")
	for _, d := range []string{killed, beginning} {
		if err := os.MkdirAll(filepath.Join(d, "config"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{lockName, "config/admin.token"} {
		if err := os.WriteFile(filepath.Join(killed, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, end2, err := scratch(tmp)
	if err != nil {
		t.Fatal(err)
	}
	end2()
	if _, err := os.Stat(killed); !os.IsNotExist(err) {
		t.Errorf("what a killed demo left is still there: %v", err)
	}
	for _, d := range []string{running, beginning} {
		if _, err := os.Stat(d); err != nil {
			t.Errorf("the next demo removed the directory of one that runs: %v", err)
		}
	}
	end()
	if _, err := os.Stat(running); !os.IsNotExist(err) {
		t.Errorf("a demo that ended left its directory: %v", err)
	}
}

// TestStopped stops a demo before its end: it says so, and leaves nothing.
func TestStopped(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("TMP", os.Getenv("TMPDIR"))
	ctx, stop := context.WithCancel(t.Context())
	_, err := Run(ctx, Config{Out: io.Discard, Start: func(ctx context.Context, dir string) (Server, error) {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
		stop()
		<-ctx.Done()
		return Server{}, ctx.Err()
	}})
	if !errors.Is(err, ErrStopped) {
		t.Errorf("a demo that was stopped returns %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("it leaves %v", left)
	}
}
