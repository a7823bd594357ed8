package nethttp

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// gated is a source whose reads wait to be let through.
type gated struct {
	started chan struct{}
	chunks  chan string
}

func (g *gated) Read(b []byte) (int, error) {
	g.started <- struct{}{}
	s, ok := <-g.chunks
	if !ok {
		return 0, io.EOF
	}
	return copy(b, s), nil
}

func TestReplayGoesOnWhereTheFirstAttemptStopped(t *testing.T) {
	pool := newBodies(16, 64)
	p := pool.replay(iotest.OneByteReader(strings.NewReader("hello world")))
	first := p.reader()
	if b, err := io.ReadAll(io.LimitReader(first, 5)); string(b) != "hello" || err != nil {
		t.Fatalf("first attempt: %q, %v", b, err)
	}
	ok := p.freeze()
	p.thaw(ok)
	if !ok {
		t.Fatal("five kept bytes cannot be replayed")
	}
	second := p.reader()
	if n, err := first.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errDetached) {
		t.Errorf("the first reader goes on: %d, %v", n, err)
	}
	if b, err := io.ReadAll(second); string(b) != "hello world" || err != nil {
		t.Errorf("second attempt: %q, %v", b, err)
	}
	p.release()
	_ = first.Close()
	if pool.left.Load() != 48 {
		t.Errorf("%d bytes of the budget left while a reader is open, want 48", pool.left.Load())
	}
	_ = second.Close()
	_ = second.Close()
	if pool.left.Load() != 64 {
		t.Errorf("%d bytes of the budget left at the end, want 64", pool.left.Load())
	}
}

// TestReplayKeepsWhatAReadBrings has the second attempt begin while the first
// waits in a read of the source: what it brings belongs to the second.
func TestReplayKeepsWhatAReadBrings(t *testing.T) {
	pool := newBodies(16, 64)
	g := &gated{make(chan struct{}), make(chan string)}
	p := pool.replay(g)
	first := p.reader()
	waited := make(chan error)
	go func() {
		_, err := first.Read(make([]byte, 16))
		waited <- err
	}()
	<-g.started
	ok := p.freeze()
	p.thaw(ok)
	second := p.reader()
	_ = first.Close()
	p.release()
	g.chunks <- "abc"
	if err := <-waited; err == nil {
		t.Errorf("the closed reader got bytes")
	}
	b := make([]byte, 16)
	if n, err := second.Read(b); string(b[:n]) != "abc" || err != nil {
		t.Errorf("second attempt: %q, %v", b[:n], err)
	}
	_ = second.Close()
	if pool.left.Load() != 64 {
		t.Errorf("%d bytes of the budget left, want 64", pool.left.Load())
	}
}

// TestBufferStaysLentDuringARead closes everything while a read of the source
// still writes into the buffer.
func TestBufferStaysLentDuringARead(t *testing.T) {
	pool := newBodies(16, 64)
	g := &gated{make(chan struct{}), make(chan string)}
	p := pool.replay(g)
	r := p.reader()
	done := make(chan struct{})
	go func() { defer close(done); _, _ = r.Read(make([]byte, 16)) }()
	<-g.started
	_ = r.Close()
	p.release()
	if pool.left.Load() != 48 {
		t.Errorf("the buffer was given back under a running read")
	}
	g.chunks <- "late"
	<-done
	if pool.left.Load() != 64 {
		t.Errorf("%d bytes of the budget left, want 64", pool.left.Load())
	}
}

func TestReplayLimits(t *testing.T) {
	for _, tc := range []struct {
		name   string
		budget int64
		body   string
		want   bool
	}{
		{"fits", 64, strings.Repeat("x", 15), true},
		{"fits exactly", 64, strings.Repeat("x", 16), true},
		{"too large", 64, strings.Repeat("x", 17), false},
		{"no budget", 15, "x", false},
		{"no budget and nothing there", 15, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pool := newBodies(16, tc.budget)
			p := pool.replay(strings.NewReader(tc.body))
			r := p.reader()
			var got bytes.Buffer
			if _, err := got.ReadFrom(r); err != nil || got.String() != tc.body {
				t.Errorf("the first attempt got %q, %v", got.String(), err)
			}
			_ = r.Close()
			ok := p.freeze()
			p.thaw(ok)
			if ok != tc.want {
				t.Errorf("replayable %t, want %t", ok, tc.want)
			}
			again, err := p.again()
			if (err == nil) != tc.want {
				t.Errorf("again: %v", err)
			}
			if err == nil {
				if b, err := io.ReadAll(again); string(b) != tc.body || err != nil {
					t.Errorf("the second attempt got %q, %v", b, err)
				}
				_ = again.Close()
			}
			p.release()
			if pool.left.Load() != tc.budget {
				t.Errorf("%d bytes of the budget left, want %d", pool.left.Load(), tc.budget)
			}
		})
	}
}

func TestReplayOfABrokenSource(t *testing.T) {
	broken := errors.New("gone")
	p := newBodies(16, 64).replay(iotest.ErrReader(broken))
	r := p.reader()
	if _, err := r.Read(make([]byte, 4)); !errors.Is(err, broken) {
		t.Errorf("got %v, want the source's error", err)
	}
	ok := p.freeze()
	p.thaw(false)
	if ok {
		t.Errorf("half a body counts as replayable")
	}
}
