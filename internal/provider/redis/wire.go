package redis

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/provider"
)

// Limits of what is read of one answer.
const (
	maxBulk  = 16 << 20 // bytes of one string: a list of ten thousand clients or users
	maxItems = 1 << 20
	maxDepth = 8
)

// callTimeout bounds one connection, whatever ctx allows.
const callTimeout = 20 * time.Second

// conn is one connection that speaks RESP2
// (https://redis.io/docs/latest/develop/reference/protocol-spec/).
//
// A client library would bring pools and retries that an act at a vendor must
// not have: what may have been sent has to be known.
type conn struct {
	net.Conn
	r    *bufio.Reader
	stop func() bool
}

// refused is an error that the server answered: its code, such as WRONGPASS.
// The rest of the text is dropped, as servers quote what they were sent.
type refused string

func (r refused) Error() string { return string(r) }

// noFile stands for the one answer that has no code of its own.
const noFile = "NOACLFILE"

var errProtocol = errors.New("the answer is not of Redis")

// dial opens a connection; it is closed when ctx ends.
func dial(ctx context.Context, env provider.Env, address, host string, secure bool) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	nc, err := env.Connect(ctx, "tcp", address)
	if err != nil {
		cancel()
		return nil, err
	}
	if secure {
		nc = tls.Client(nc, &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12})
	}
	if d, ok := ctx.Deadline(); ok {
		if err := nc.SetDeadline(d); err != nil {
			cancel()
			_ = nc.Close()
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	return &conn{nc, bufio.NewReader(nc), func() bool { s := stop(); cancel(); return s }}, nil
}

func (c *conn) close() {
	c.stop()
	_ = c.Close()
}

// do sends one command and returns its answer: string, int64, []any or nil. An
// error of type refused is the server's; any other means that there was no
// answer.
func (c *conn) do(args ...string) (any, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(c.Conn, b.String()); err != nil {
		return nil, err
	}
	return c.read(0)
}

func (c *conn) line() (string, error) {
	b, err := c.r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = errProtocol
		}
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func (c *conn) read(depth int) (any, error) {
	l, err := c.line()
	if err != nil {
		return nil, err
	}
	if l == "" || depth > maxDepth {
		return nil, errProtocol
	}
	kind, rest := l[0], l[1:]
	switch kind {
	case '+':
		return rest, nil
	case '-':
		code, text, _ := strings.Cut(rest, " ")
		if strings.Contains(text, "not configured to use an ACL file") {
			code = noFile
		}
		if len(code) > 20 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			code = "ERR"
		}
		return nil, refused(code)
	}
	n, err := strconv.ParseInt(rest, 10, 64)
	if err != nil {
		return nil, errProtocol
	}
	switch {
	case kind == ':':
		return n, nil
	case n == -1 && (kind == '$' || kind == '*'):
		return nil, nil
	case kind == '$' && n >= 0 && n <= maxBulk:
		b := make([]byte, n+2)
		if _, err := io.ReadFull(c.r, b); err != nil {
			return nil, err
		}
		return string(b[:n]), nil
	case kind == '*' && n >= 0 && n <= maxItems:
		var out []any
		for range n {
			x, err := c.read(depth + 1)
			var no refused
			if errors.As(err, &no) {
				x, err = no, nil
			}
			if err != nil {
				return nil, err
			}
			out = append(out, x)
		}
		return out, nil
	}
	return nil, errProtocol
}
