// Package notify runs the detector over what the store knows, keeps the alerts,
// and sends them.
//
// A transition of an alert (it fires, changes, resolves), its audit entry and
// its deliveries are one transaction; a delivery is retried until its channel
// takes it, also by the next process. Each channel gets each transition at
// least once, and those of one alert in their order; one that is slow or down
// holds up no other. What the detector remembers is stored too, so that a
// restart neither fires nor resolves anything by itself.
//
// It leaves to the caller: that one process at a time runs it on a store, and
// which channels there are.
package notify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// Sender is one channel at work. Send returns nil when the channel has taken
// the delivery. It may be called again with the same one, also after it was
// taken, and is never called twice at the same time. Its error holds no secret
// and is a [*Later] where the channel said when to come back.
type Sender interface {
	Send(ctx context.Context, d alert.Delivery) error
}

// Later is the error of a channel that asked to be left alone for a while.
type Later struct {
	After time.Duration
	Err   error
}

// Error returns the text of the error.
func (l *Later) Error() string { return l.Err.Error() }

// Unwrap returns the error.
func (l *Later) Unwrap() error { return l.Err }

// Config is what a Notifier works with. Store is required.
type Config struct {
	Store    store.Store
	Channels map[string]Sender // by name
	Now      func() time.Time  // nil means time.Now
	Every    time.Duration     // between two looks; 0: 1 s
	Timeout  time.Duration     // of one sending; 0: 10 s
	Hold     time.Duration     // a key that works again is well after this long; 0: detect.DefaultHold
	Log      *slog.Logger      // what could not be read or sent; nil: nowhere
}

// Notifier is a detector with its channels. Use [New].
type Notifier struct {
	cfg   Config
	names []string                 // of the channels, sorted
	wake  map[string]chan struct{} // there may be something to send
	memory
	known known
}

// New returns a Notifier, or key.ErrInvalid.
func New(c Config) (*Notifier, error) {
	if c.Store == nil {
		return nil, fmt.Errorf("%w: a notifier needs a store", key.ErrInvalid)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Every, c.Timeout = cmp.Or(c.Every, time.Second), cmp.Or(c.Timeout, 10*time.Second)
	n := &Notifier{cfg: c, names: slices.Sorted(maps.Keys(c.Channels)), wake: map[string]chan struct{}{}}
	for name, s := range c.Channels {
		if s == nil {
			return nil, fmt.Errorf("%w: the channel %q has no sender", key.ErrInvalid, name)
		}
		n.wake[name] = make(chan struct{}, 1)
	}
	return n, nil
}

// Run looks and sends until ctx ends, then stores what the detector remembers
// and returns nil. What fails is logged and tried again. Call it once.
func (n *Notifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, name := range n.names {
		wg.Go(func() {
			n.every(ctx, n.wake[name], func() error { return n.send(ctx, name) }, "sending alerts", "channel", name)
		})
	}
	n.every(ctx, nil, func() error { return n.look(ctx) }, "looking for signals")
	wg.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := n.save(last); err != nil {
		n.cfg.Log.Warn("keeping the detector's state", "error", err)
	}
	return nil
}

// every runs fn at once, then each Every and when woken, until ctx ends.
func (n *Notifier) every(ctx context.Context, wake <-chan struct{}, fn func() error, what string, args ...any) {
	tick := time.NewTicker(n.cfg.Every)
	defer tick.Stop()
	failed := ""
	for {
		err := fn()
		if ctx.Err() != nil {
			return
		}
		// A failure that lasts is told once.
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != failed && err != nil {
			n.cfg.Log.Warn(what, append(args, "error", err)...)
		}
		failed = text
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-tick.C:
		}
	}
}

const (
	firstWait = time.Second
	mostWait  = 5 * time.Minute
	mostLater = time.Hour // however long a channel asks for
	mostError = 256       // bytes of an error that are kept
)

// send sends what is due to one channel, oldest first. An earlier delivery of
// an alert that was not taken holds up the later ones of that alert alone.
func (n *Notifier) send(ctx context.Context, channel string) error {
	var unsent []alert.Delivery
	err := n.cfg.Store.View(ctx, func(tx store.Tx) (err error) {
		unsent, err = tx.Deliveries(n.cfg.Now().AddDate(100, 0, 0))
		return err
	})
	if err != nil {
		return err
	}
	held := map[string]bool{}
	for _, d := range unsent {
		if d.Channel != channel || held[d.Alert.ID] {
			continue
		}
		if d.Next.After(n.cfg.Now()) {
			held[d.Alert.ID] = true
			continue
		}
		taken, err := n.try(ctx, d)
		if err != nil {
			return err
		}
		held[d.Alert.ID] = !taken
	}
	return nil
}

// try sends one delivery and notes how it went.
func (n *Notifier) try(ctx context.Context, d alert.Delivery) (taken bool, err error) {
	sctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	serr := n.cfg.Channels[d.Channel].Send(sctx, d)
	cancel()
	if serr != nil && ctx.Err() != nil {
		return false, ctx.Err() // it was cut short by us and counts for nothing
	}
	now := n.cfg.Now()
	d.Attempts++
	if serr == nil {
		d.Sent, d.Error = now, ""
	} else {
		d.Error = short(serr.Error())
		wait := min(firstWait<<min(d.Attempts-1, 16), mostWait)
		wait += time.Duration(rand.Int64N(int64(wait)/4 + 1))
		if l := (*Later)(nil); errors.As(serr, &l) {
			wait = max(wait, min(l.After, mostLater))
		}
		d.Next = now.Add(wait)
		n.cfg.Log.Warn("an alert was not taken", "channel", d.Channel, "alert", d.Alert.ID, "attempt", d.Attempts, "again", d.Next, "error", d.Error)
	}
	// Taken and not noted means sent twice, so the note outlives ctx a little.
	nctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return serr == nil, n.cfg.Store.Observe(nctx, func(tx store.Tx) error { return tx.PutDelivery(d) })
}

func short(s string) string {
	if len(s) <= mostError {
		return s
	}
	return string([]rune(s[:mostError-4])) + "…"
}
