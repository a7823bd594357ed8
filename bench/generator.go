//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// loadMain is the generator of load, in a process of its own: one thread and
// one epoll, like the upstream. Without a rate every connection sends its next
// request when the last is answered. With one, requests are sent when they are
// due, whether earlier ones are answered or not, and latency counts from the
// moment they were due: a server that stalls does not hide it by slowing the
// load down.
func loadMain(args []string) error {
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	raw := f.String("url", "", "")
	bearer := f.String("bearer", "", "")
	d := f.Duration("for", time.Second, "")
	conns := f.Int("conns", 1, "")
	rate := f.Int("rate", 0, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	u, err := url.Parse(*raw)
	if err != nil {
		return err
	}
	req := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n", u.RequestURI(), u.Host)
	if *bearer != "" {
		req = fmt.Appendf(req, "Authorization: Bearer %s\r\n", *bearer)
	}
	g := &generator{request: append(req, "\r\n"...), conns: map[int32]*genConn{}, buf: make([]byte, 64<<10)}
	runtime.LockOSThread()
	if g.epoll, err = syscall.EpollCreate1(0); err != nil {
		return err
	}
	for range *conns {
		if err := g.dial(u.Host); err != nil {
			return err
		}
	}
	if *rate > 0 {
		err = g.open(*d, *rate)
	} else {
		err = g.closed(*d)
	}
	if err != nil {
		return err
	}
	slices.Sort(g.latency)
	out := loaded{Requests: int64(len(g.latency)), Failed: g.failed, Seconds: g.took.Seconds()}
	if n := len(g.latency); n > 0 {
		out.P50 = float64(g.latency[n/2].Nanoseconds()) / 1000
		out.P99 = float64(g.latency[n*99/100].Nanoseconds()) / 1000
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

type generator struct {
	request []byte
	epoll   int
	timer   int
	conns   map[int32]*genConn
	buf     []byte
	free    []*genConn
	latency []time.Duration
	failed  int64
	took    time.Duration
}

// genConn is one connection with at most one request on it.
type genConn struct {
	fd   int32
	due  time.Time
	in   []byte
	busy bool
}

// dial opens a connection; the descriptor is ours alone.
func (g *generator) dial(host string) error {
	c, err := net.Dial("tcp", host)
	if err != nil {
		return err
	}
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return err
	}
	fd, err := syscall.Dup(int(f.Fd()))
	_, _ = f.Close(), c.Close()
	if err != nil {
		return err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		return err
	}
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	gc := &genConn{fd: int32(fd)}
	g.conns[gc.fd] = gc
	g.free = append(g.free, gc)
	return syscall.EpollCtl(g.epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: gc.fd})
}

func (g *generator) send(c *genConn, due time.Time) error {
	c.due, c.busy = due, true
	n, err := syscall.Write(int(c.fd), g.request)
	if err != nil || n != len(g.request) {
		return fmt.Errorf("writing a request: %d bytes, %w", n, err)
	}
	return nil
}

// closed keeps every connection busy for d.
func (g *generator) closed(d time.Duration) error {
	begin := time.Now()
	for _, c := range g.free {
		if err := g.send(c, begin); err != nil {
			return err
		}
	}
	for time.Since(begin) < d {
		if err := g.wait(100, func(c *genConn) error { return g.send(c, time.Now()) }); err != nil {
			return err
		}
	}
	g.took = time.Since(begin)
	return nil
}

// open sends rate requests a second for d, the first second of which does not
// count.
func (g *generator) open(d time.Duration, rate int) error {
	if err := g.armTimer(); err != nil {
		return err
	}
	gap := time.Second / time.Duration(rate)
	begin := time.Now()
	var late []time.Time // due, and no connection free
	next, counted := begin, false
	give := func(c *genConn) error {
		if len(late) == 0 {
			g.free = append(g.free, c)
			return nil
		}
		due := late[0]
		late = late[1:]
		return g.send(c, due)
	}
	for {
		now := time.Now()
		if now.Sub(begin) >= d+time.Second {
			break
		}
		if !counted && now.Sub(begin) >= time.Second {
			counted, g.latency, g.failed = true, g.latency[:0], 0
		}
		for !next.After(now) {
			if n := len(g.free); n > 0 {
				c := g.free[n-1]
				g.free = g.free[:n-1]
				if err := g.send(c, next); err != nil {
					return err
				}
			} else {
				late = append(late, next)
			}
			next = next.Add(gap)
		}
		if err := g.setTimer(time.Until(next)); err != nil {
			return err
		}
		if err := g.wait(100, give); err != nil {
			return err
		}
	}
	// What was never answered counts as late as it is by now, not as nothing.
	end := time.Now()
	for _, c := range g.conns {
		if c.busy {
			g.latency = append(g.latency, end.Sub(c.due))
		}
	}
	for _, due := range late {
		g.latency = append(g.latency, end.Sub(due))
	}
	g.took = d
	return nil
}

// wait takes the answers that come within ms milliseconds, and gives each
// connection that is free again to next.
func (g *generator) wait(ms int, next func(*genConn) error) error {
	var events [128]syscall.EpollEvent
	n, err := syscall.EpollWait(g.epoll, events[:], ms)
	if err != nil && !errors.Is(err, syscall.EINTR) {
		return err
	}
	for _, e := range events[:max(n, 0)] {
		c := g.conns[e.Fd]
		if c == nil { // the timer
			var b [8]byte
			_, _ = syscall.Read(int(e.Fd), b[:])
			continue
		}
		n, err := syscall.Read(int(c.fd), g.buf)
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return fmt.Errorf("the connection ended: %d bytes, %w", n, err)
		}
		c.in = append(c.in, g.buf[:n]...)
		status, whole, err := answer(c.in)
		if err != nil {
			return err
		}
		if !whole {
			continue
		}
		c.in, c.busy = c.in[:0], false
		g.latency = append(g.latency, time.Since(c.due))
		if status != 200 {
			g.failed++
		}
		if err := next(c); err != nil {
			return err
		}
	}
	return nil
}

// answer reports whether b is one whole answer. Only answers with a length are
// understood.
func answer(b []byte) (status int, whole bool, err error) {
	head, body, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok {
		return 0, false, nil
	}
	if len(head) < 12 {
		return 0, false, fmt.Errorf("no answer: %q", head)
	}
	if status, err = strconv.Atoi(string(head[9:12])); err != nil {
		return 0, false, err
	}
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, v, ok := bytes.Cut(line, []byte(":"))
		if ok && bytes.EqualFold(name, []byte("Content-Length")) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(v)))
			return status, len(body) >= n, err
		}
	}
	return status, false, fmt.Errorf("an answer without a length: %q", head)
}

// armTimer makes a timer that epoll waits for: its own time-out has whole
// milliseconds only.
func (g *generator) armTimer() error {
	fd, _, e := syscall.Syscall(syscall.SYS_TIMERFD_CREATE, 1 /* CLOCK_MONOTONIC */, syscall.O_NONBLOCK, 0)
	if e != 0 {
		return e
	}
	g.timer = int(fd)
	return syscall.EpollCtl(g.epoll, syscall.EPOLL_CTL_ADD, g.timer, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(g.timer)})
}

func (g *generator) setTimer(d time.Duration) error {
	spec := [2]syscall.Timespec{{}, syscall.NsecToTimespec(int64(max(d, time.Microsecond)))}
	_, _, e := syscall.Syscall6(syscall.SYS_TIMERFD_SETTIME, uintptr(g.timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
