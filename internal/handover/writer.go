package handover

import (
	"context"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/store"
)

// writer puts the small writes of many consumers into common transactions: a
// thousand gateways that acknowledge at once cost a few syncs of the disk, not
// a thousand. Whoever comes first writes for all who wait.
type writer struct {
	store store.Store
	turn  chan struct{} // holds one token while somebody writes

	mu    sync.Mutex
	queue []*write
}

type write struct {
	fn   func(store.Tx) error
	err  error
	done chan struct{}
}

const (
	writesAtOnce = 64
	writeTime    = 30 * time.Second
)

// observe runs fn in a transaction of [store.Store.Observe], perhaps with those
// of others, perhaps more than once, and perhaps after ctx has ended. It
// returns once that is durable, or with the error that fn returned.
func (w *writer) observe(ctx context.Context, fn func(store.Tx) error) error {
	own := &write{fn: fn, done: make(chan struct{})}
	w.mu.Lock()
	w.queue = append(w.queue, own)
	w.mu.Unlock()
	for {
		select {
		case <-own.done:
			return own.err
		case <-ctx.Done():
			return ctx.Err()
		case w.turn <- struct{}{}:
			w.batch(ctx)
			<-w.turn
		}
	}
}

// batch does what waits. Its transaction does not end with the context of one
// of those it is for.
func (w *writer) batch(ctx context.Context) {
	w.mu.Lock()
	n := min(len(w.queue), writesAtOnce)
	todo := w.queue[:n:n]
	w.queue = w.queue[n:]
	w.mu.Unlock()
	if n == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	err := w.store.Observe(ctx, func(tx store.Tx) error {
		for _, j := range todo {
			if err := j.fn(tx); err != nil {
				return err
			}
		}
		return nil
	})
	for _, j := range todo {
		if j.err = err; err != nil && n > 1 { // one of them is to blame; the others are not
			j.err = w.store.Observe(ctx, j.fn)
		}
		close(j.done)
	}
}
