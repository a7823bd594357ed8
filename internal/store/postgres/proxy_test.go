package postgres_test

import (
	"bytes"
	"net"
	"net/url"
	"sync"
	"testing"
)

// proxy is a line to a database that can be cut.
type proxy struct {
	url string // the way to the database through it
	to  string
	l   net.Listener
	wg  sync.WaitGroup

	mu      sync.Mutex
	conns   map[*pipe]bool
	refused bool
	lost    string // what is sent when a connection is lost; "" is none
	deliver bool   // what was sent arrives
}

// pipe is one connection through a proxy.
type pipe struct {
	client, server net.Conn
	mu             sync.Mutex
	sent           []byte
	swallow        bool // the answer is not handed on: the line ends instead
}

func (c *pipe) close() { _, _ = c.client.Close(), c.server.Close() }

func newProxy(t *testing.T, database string) *proxy {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{to: u.Host, conns: map[*pipe]bool{}}
	if p.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	u.Host = p.l.Addr().String()
	p.url = u.String()
	p.wg.Go(p.accept)
	return p
}

func (p *proxy) close() {
	_ = p.l.Close()
	p.cut("")
	p.wg.Wait()
}

// refuse makes the proxy end new connections at once, or not any more.
func (p *proxy) refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = on
}

// lose loses the next connection on which text is sent; with deliver that
// arrives, and the answer does not.
func (p *proxy) lose(text string, deliver bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost, p.deliver = text, deliver
}

// with returns the connections on which text was sent.
func (p *proxy) with(text string) (cs []*pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.mu.Lock()
		if bytes.Contains(c.sent, []byte(text)) {
			cs = append(cs, c)
		}
		c.mu.Unlock()
	}
	return cs
}

func (p *proxy) saw(text string) int { return len(p.with(text)) }

// cut ends the connections on which text was sent; "" is every one.
func (p *proxy) cut(text string) {
	for _, c := range p.with(text) {
		c.close()
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refused := p.refused
		p.mu.Unlock()
		if refused {
			_ = client.Close()
			continue
		}
		server, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		c := &pipe{client: client, server: server}
		p.mu.Lock()
		p.conns[c] = true
		p.mu.Unlock()
		p.wg.Go(func() { p.up(c) })
		p.wg.Go(func() { p.down(c) })
	}
}

func (p *proxy) up(c *pipe) {
	defer func() {
		c.close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}()
	buf := make([]byte, 64*1024)
	for {
		n, err := c.client.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		lost := p.lost != "" && bytes.Contains(buf[:n], []byte(p.lost))
		deliver := p.deliver
		if lost {
			p.lost = ""
		}
		p.mu.Unlock()
		c.mu.Lock()
		c.sent = append(c.sent, buf[:n]...)
		c.swallow = lost && deliver
		c.mu.Unlock()
		if lost && !deliver {
			return
		}
		if _, err := c.server.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) down(c *pipe) {
	defer c.close()
	buf := make([]byte, 64*1024)
	for {
		n, err := c.server.Read(buf)
		if err != nil {
			return
		}
		c.mu.Lock()
		swallow := c.swallow
		c.mu.Unlock()
		if swallow {
			return
		}
		if _, err := c.client.Write(buf[:n]); err != nil {
			return
		}
	}
}
