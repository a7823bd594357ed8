//go:build linux

// Program bench measures Keybaton against what one would use instead, and
// prints the figures as ratios of one run: the parties take turns, round by
// round, on the same core, so that what else the machine does hits all alike.
//
//	go run ./bench [-rounds N] [gateway|reads|scale]
//
// gateway compares the gateway with nginx that does the same job by hand; reads
// counts secret reads per core; scale starts a server on 100,000 credentials.
// Each ends with one last line of JSON. The server measured is the real binary,
// on cpu 0; whatever puts load on it is on cpu 1. CPU times come from
// /proc/PID/stat of all processes of a party, in ticks of 10 ms.
//
// It needs Linux with two cores; gateway needs nginx, and every one is better
// with wrk (scripts/deps.sh bench installs both).
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// bench is one run of the program.
type bench struct {
	rounds   int
	warm     time.Duration
	measured time.Duration
	conns    int
	nice     int
	creds    int
	profile  string // directory for profiles and logs that are kept; "" for none
	binary   string // of keybaton
	dir      string // everything else; removed at the end
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] { // the bench's own children
		case "upstream":
			return upstream(args[1:])
		case "load":
			return loadMain(args[1:])
		}
	}
	b := &bench{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&b.rounds, "rounds", 3, "how often each party has its turn")
	f.DurationVar(&b.warm, "warm", time.Second, "before each measurement")
	f.DurationVar(&b.measured, "for", 3*time.Second, "each measurement")
	f.IntVar(&b.conns, "conns", 64, "connections of the load")
	f.IntVar(&b.nice, "nice", 0, "priority of the measured processes, such as -15 on a busy machine (needs root)")
	f.IntVar(&b.creds, "credentials", 100_000, "of scale")
	f.StringVar(&b.profile, "keep", "", "directory in which logs are kept")
	f.StringVar(&b.binary, "binary", "", "the keybaton to measure; empty: it is built from this module")
	if err := f.Parse(args); err != nil {
		return err
	}
	all := []struct {
		name string
		run  func(context.Context) (any, error)
	}{{"gateway", b.gateway}, {"reads", b.reads}, {"scale", b.scale}}
	want := map[string]bool{}
	for _, a := range f.Args() {
		want[a] = true
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	ran := 0
	for _, x := range all {
		if len(want) > 0 && !want[x.name] {
			continue
		}
		ran++
		fmt.Printf("== %s  (%s, %s, load average %s)\n", x.name, runtime.Version(), cpuName(), loadAverage())
		res, err := x.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		line, err := json.Marshal(res)
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	if ran == 0 {
		return fmt.Errorf("nothing to do: name gateway, reads or scale")
	}
	return nil
}

// prepare makes the directory of the run and the binary.
func (b *bench) prepare(ctx context.Context) error {
	if runtime.NumCPU() < 2 {
		return fmt.Errorf("it takes two cores: one is measured, the other puts load on it")
	}
	if _, err := exec.LookPath("taskset"); err != nil {
		return fmt.Errorf("taskset is missing (util-linux)")
	}
	var err error
	if b.dir, err = os.MkdirTemp("", "keybaton-bench-"); err != nil {
		return err
	}
	if err := os.Chmod(b.dir, 0o755); err != nil { // nginx reads its part as another user
		return err
	}
	if b.binary != "" {
		b.binary, err = filepath.Abs(b.binary)
		return err
	}
	b.binary = filepath.Join(b.dir, "keybaton")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.binary, "github.com/keybaton/keybaton/cmd/keybaton")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building keybaton: %w\n%s", err, out)
	}
	return nil
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return fmt.Sprintf("%d × %s", runtime.NumCPU(), strings.TrimSpace(v))
		}
	}
	return fmt.Sprintf("%d cores", runtime.NumCPU())
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
