package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
)

// TestMain runs the scripts, or is the program itself when a script calls it.
func TestMain(m *testing.M) {
	// Scripts wait for a server more than they work.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	testscript.Main(suite{m}, map[string]func(){"keybaton": program})
}

// suite stops what the tests of this binary shared.
type suite struct{ *testing.M }

// Run runs the tests.
func (s suite) Run() int { return pgtest.Main(s.M) }

// program is the real program. Where the environment names a directory, it
// keeps there what it printed, so that a script can look for keys in all of it
// when it is over. What a person asked to see (a key by get, a new token) is
// not kept.
func program() {
	dir := os.Getenv("KB_PRINTED")
	if dir == "" {
		os.Exit(run())
	}
	var copied sync.WaitGroup
	tee := func(f **os.File, name string) func() {
		r, w, err := os.Pipe()
		if err != nil {
			panic(err)
		}
		kept, err := os.Create(filepath.Join(dir, strconv.Itoa(os.Getpid())+"."+name))
		if err != nil {
			panic(err)
		}
		real := *f
		*f = w
		copied.Go(func() {
			_, _ = io.Copy(io.MultiWriter(real, kept), r)
			_ = kept.Close()
		})
		return func() { _ = w.Close() }
	}
	ends := []func(){tee(&os.Stderr, "stderr")}
	if !slices.Contains(os.Args, "get") && !slices.Contains(os.Args, "create") {
		ends = append(ends, tee(&os.Stdout, "stdout"))
	}
	code := run()
	for _, end := range ends {
		end()
	}
	copied.Wait()
	os.Exit(code)
}

// TestScripts tells the stories of testdata, each with servers and a vendor of
// its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUp,
		Condition: func(c string) (bool, error) {
			switch c {
			case "mount":
				return mayMount(), nil
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", c)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":       exits,
			"serve":       serve,
			"shutdown":    shutdown,
			"crash":       crash,
			"vendor":      vendor,
			"request":     request,
			"traffic":     traffic,
			"api":         callAPI,
			"wait-status": waitStatus,
			"wait-output": waitOutput,
			"mark":        mark,
			"no-leak":     noLeak,
			"sql":         runSQL,
			"fill":        fill,
			"contents":    contents,
			"listen":      listen,
			"small-disk":  smallDisk,
			"json":        readJSON,
			"damage":      damage,
			"scribble":    scribble,
			"address":     address,
			"database":    newDatabase,
		},
	})
}
