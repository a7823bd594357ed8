//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"syscall"
)

// The keys that the upstream knows, and how it treats them.
const (
	keyA = "KEY-A"
	keyB = "KEY-B"

	modeAll  = "all"          // both are accepted
	modeDead = "dead-primary" // only KEY-B is
)

// bodySize is the length of the upstream's answer.
const bodySize = 1024

// upstream is the vendor of the benchmark, in a process of its own. It shares
// its core with the load, so it has to be cheaper than what is measured: one
// thread, one epoll, no allocation for a request. It prints its address.
//
// GET /.mode/MODE changes how it treats keys; GET /.count answers how many
// requests it accepted and refused since the last time it was asked.
func upstream(args []string) error {
	if len(args) != 1 || args[0] != modeAll && args[0] != modeDead {
		return fmt.Errorf("upstream: name the mode: %s or %s", modeAll, modeDead)
	}
	runtime.LockOSThread()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fd, addr, err := ownListener(l)
	if err != nil {
		return err
	}
	u := &vendor{listener: fd, dead: args[0] == modeDead, conns: map[int32]*upConn{}}
	fmt.Println("upstream", addr)
	u.ok = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Mon, 02 Nov 2026 00:00:00 GMT\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\nCache-Control: no-store\r\nX-Request-Id: 0123456789abcdef\r\nVary: Accept-Encoding\r\nX-Content-Type-Options: nosniff\r\n\r\n%s",
		bodySize, jsonBody(bodySize))
	u.refused = plainAnswer("401 Unauthorized", `{"error":"invalid key"}`)
	return u.serve()
}

// ownListener takes over the descriptor of l. What the net package keeps of it
// would be closed by the garbage collector, minutes later.
func ownListener(l net.Listener) (fd int, addr string, err error) {
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	fd, err = syscall.Dup(int(f.Fd()))
	return fd, l.Addr().String(), err
}

// jsonBody returns a JSON object of n bytes.
func jsonBody(n int) string {
	const head, tail = `{"data":"`, `"}`
	return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
}

func plainAnswer(status, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

type vendor struct {
	listener        int
	epoll           int
	dead            bool
	accepted        int64
	rejected        int64
	ok, refused     []byte
	conns           map[int32]*upConn
	scratch, answer []byte
}

// upConn keeps the beginning of a request that has not come whole.
type upConn struct{ rest []byte }

func (u *vendor) serve() (err error) {
	if u.epoll, err = syscall.EpollCreate1(0); err != nil {
		return err
	}
	if err := syscall.SetNonblock(u.listener, true); err != nil {
		return err
	}
	if err := u.watch(u.listener); err != nil {
		return err
	}
	u.scratch = make([]byte, 64<<10)
	events := make([]syscall.EpollEvent, 256)
	for {
		n, err := syscall.EpollWait(u.epoll, events, -1)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			if int(e.Fd) == u.listener {
				u.accept()
				continue
			}
			if !u.read(e.Fd) {
				delete(u.conns, e.Fd)
				_ = syscall.Close(int(e.Fd))
			}
		}
	}
}

func (u *vendor) watch(fd int) error {
	return syscall.EpollCtl(u.epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)})
}

func (u *vendor) accept() {
	for {
		fd, _, err := syscall.Accept4(u.listener, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
		if u.watch(fd) != nil {
			_ = syscall.Close(fd)
			continue
		}
		u.conns[int32(fd)] = &upConn{}
	}
}

// read answers the requests that came on fd; false means that it has ended.
func (u *vendor) read(fd int32) bool {
	n, err := syscall.Read(int(fd), u.scratch)
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		return true
	}
	c := u.conns[fd]
	if err != nil || n <= 0 || c == nil {
		return false
	}
	in := u.scratch[:n]
	if len(c.rest) > 0 {
		in = append(c.rest, in...)
		c.rest = nil
	}
	u.answer = u.answer[:0]
	for {
		head, rest, ok := bytes.Cut(in, []byte("\r\n\r\n"))
		if !ok {
			break
		}
		u.answer = append(u.answer, u.decide(head)...)
		in = rest
	}
	if len(in) > 0 {
		c.rest = bytes.Clone(in)
	}
	for out := u.answer; len(out) > 0; {
		n, err := syscall.Write(int(fd), out)
		if err != nil { // an answer fits into the buffer of a socket that is read
			return false
		}
		out = out[n:]
	}
	return true
}

// decide returns the answer to one request without a body.
func (u *vendor) decide(head []byte) []byte {
	if bytes.HasPrefix(head, []byte("GET /.")) {
		return u.control(head)
	}
	if bytes.Contains(head, []byte("Bearer "+keyB)) || !u.dead && bytes.Contains(head, []byte("Bearer "+keyA)) {
		u.accepted++
		return u.ok
	}
	u.rejected++
	return u.refused
}

func (u *vendor) control(head []byte) []byte {
	path, _, _ := strings.Cut(strings.TrimPrefix(string(head), "GET "), " ")
	switch path {
	case "/.mode/" + modeAll, "/.mode/" + modeDead:
		u.dead = path == "/.mode/"+modeDead
		return plainAnswer("200 OK", "{}")
	case "/.count":
		body := fmt.Sprintf(`{"accepted":%d,"refused":%d}`, u.accepted, u.rejected)
		u.accepted, u.rejected = 0, 0
		return plainAnswer("200 OK", body)
	}
	return plainAnswer("404 Not Found", "{}")
}
