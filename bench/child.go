//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The cores of the measured party, and of all that puts load on it.
const (
	partyCPU = 0
	loadCPU  = 1
)

// tick is the unit of the CPU times of /proc/PID/stat (USER_HZ).
const tick = 10 * time.Millisecond

// child is a process that this one started, with all that it starts.
type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // why; read after done
}

// start runs a program on one core, in a session of its own. Its output goes to
// out; nil drops it.
func (b *bench) start(name string, cpu int, out io.Writer, program string, args ...string) (*child, error) {
	return b.startArgs(name, out, append([]string{"-c", strconv.Itoa(cpu), program}, args...))
}

// startArgs runs taskset.
func (b *bench) startArgs(name string, out io.Writer, args []string) (*child, error) {
	line := append([]string{"taskset"}, args...)
	if b.nice != 0 {
		line = append([]string{"nice", "-n", strconv.Itoa(b.nice)}, line...)
	}
	c := &child{name: name, cmd: exec.Command(line[0], line[1:]...), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if b.nice != 0 { // of its session against others; where that cannot be set, it does without
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", c.pid()), []byte(strconv.Itoa(b.nice)), 0)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// stop ends the child as a person would, and kills it if that takes long.
func (c *child) stop() error {
	if c == nil {
		return nil
	}
	select {
	case <-c.done:
		return fmt.Errorf("%s ended by itself: %w", c.name, errors.Join(c.err, io.EOF))
	default:
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(15 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.done
	}
	return nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// cpu returns the CPU time that the child and its descendants have used.
func (c *child) cpu() (time.Duration, error) {
	ticks, err := cpuOf(c.pid())
	if err != nil {
		return 0, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == c.pid() {
			continue
		}
		f, err := stat(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		if f[1] == strconv.Itoa(c.pid()) { // nginx: a master and its worker
			n, err := cpuOf(pid)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * tick, nil
}

// stat returns the fields of /proc/PID/stat after the name: state, parent, …
func stat(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	i := strings.LastIndexByte(string(text), ')')
	f := strings.Fields(string(text)[i+1:])
	if i < 0 || len(f) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat cannot be read", pid)
	}
	return f, nil
}

func cpuOf(pid int) (int64, error) {
	f, err := stat(pid)
	if err != nil {
		return 0, err
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	sys, err2 := strconv.ParseInt(f[12], 10, 64)
	return user + sys, errors.Join(err1, err2)
}

// memory returns the resident memory of the child now and at most, in MiB.
func (c *child) memory() (now, most float64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid()))
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			now = kib / 1024
		case "VmHWM:":
			most = kib / 1024
		}
	}
	return now, most
}

// lines is a writer that hands over whole lines.
type lines struct {
	pw *io.PipeWriter
	ch chan string
}

// newLines returns a writer whose lines can be waited for; each goes to keep as
// well, when that is not nil. Lines that nobody waits for are dropped.
func newLines(keep io.Writer) *lines {
	pr, pw := io.Pipe()
	l := &lines{pw, make(chan string, 1000)}
	go func() {
		s := bufio.NewScanner(pr)
		for s.Scan() {
			if keep != nil {
				fmt.Fprintln(keep, s.Text())
			}
			select {
			case l.ch <- s.Text():
			default:
			}
		}
		_, _ = io.Copy(io.Discard, pr)
	}()
	return l
}

// Write passes p on.
func (l *lines) Write(p []byte) (int, error) { return l.pw.Write(p) }

// after returns what follows prefix in the next line that has it.
func (l *lines) after(ctx context.Context, c *child, prefix string) (string, error) {
	var seen []string
	for {
		select {
		case line := <-l.ch:
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
				return strings.TrimSpace(v), nil
			}
			seen = append(seen, line)
		case <-c.done:
			return "", fmt.Errorf("%s ended: %v\n%s", c.name, c.err, strings.Join(seen, "\n"))
		case <-ctx.Done():
			return "", fmt.Errorf("waiting for %s: %w\n%s", c.name, ctx.Err(), strings.Join(seen, "\n"))
		}
	}
}

// self returns the path of this program, for its own children.
func self() (string, error) { return os.Executable() }
