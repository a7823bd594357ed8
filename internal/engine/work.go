package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// leaseKind is the kind of the leases under which credentials are worked on.
const leaseKind = "credential"

// Times of the loop.
const (
	idlePoll  = 5 * time.Second  // how long the loop sleeps at most
	callLimit = 20 * time.Second // of one call to a vendor
	strayAge  = 24 * time.Hour   // how long a lost answer is looked for
)

// Engine runs rotations. It is safe for concurrent use; several engines, in
// one process or many, share a store.
type Engine struct {
	cfg    Config
	wake   chan struct{}
	mu     sync.Mutex
	probes map[key.CredentialID]map[key.Number]rotation.Probe // what this process probed; never stored
	sights map[key.CredentialID]map[key.Number]rotation.Sight // what it saw in vendors' lists; never stored
	listed map[key.CredentialID]int64                         // the epoch for which the vendor's list was compared with the store
	open   map[key.CredentialID]bool                          // what this process found at work
	moved  map[key.CredentialID]bool                          // of these: something new is known of their holders
}

var _ API = (*Engine)(nil)

// New returns an engine. It does nothing until [Engine.Run] or [Engine.Step].
func New(cfg Config) *Engine {
	if cfg.Rand == nil {
		cfg.Rand = func(b []byte) { _, _ = rand.Read(b) }
	}
	if cfg.Owner == "" {
		cfg.Owner = hexOf(cfg.Rand, 8)
	}
	if cfg.Lease == 0 {
		cfg.Lease = 30 * time.Second
	}
	if cfg.Poll == 0 {
		cfg.Poll = time.Second
	}
	if cfg.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.Proxy = nil
		t.MaxIdleConnsPerHost = 8
		cfg.Transport = t
	}
	cfg.Transport = fence{cfg.Transport}
	if cfg.Event == nil {
		cfg.Event = func(string, key.CredentialID, error) {}
	}
	if cfg.Forgot == nil {
		cfg.Forgot = func(string) {}
	}
	return &Engine{cfg: cfg, wake: make(chan struct{}, 1), probes: map[key.CredentialID]map[key.Number]rotation.Probe{},
		listed: map[key.CredentialID]int64{}, sights: map[key.CredentialID]map[key.Number]rotation.Sight{},
		open: map[key.CredentialID]bool{}, moved: map[key.CredentialID]bool{}}
}

func hexOf(random func([]byte), n int) string {
	b := make([]byte, n)
	random(b)
	return hex.EncodeToString(b)
}

// Wake makes the loop look for work now.
func (e *Engine) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Moved says that something new is known of the holders of ids. Those that are
// being worked on are looked at now; the rest costs nothing. It does not block.
func (e *Engine) Moved(ids []key.CredentialID) {
	e.mu.Lock()
	n := len(e.moved)
	for _, id := range ids {
		if e.open[id] {
			e.moved[id] = true
		}
	}
	n = len(e.moved) - n
	e.mu.Unlock()
	if n > 0 {
		e.Wake()
	}
}

// look makes due what has moved.
func (e *Engine) look(ctx context.Context) error {
	e.mu.Lock()
	ids := slices.Collect(maps.Keys(e.moved))
	clear(e.moved)
	e.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	return e.cfg.Store.Observe(ctx, func(tx store.Tx) error {
		for _, id := range ids {
			if err := tx.Due(leaseKind, id.String(), tx.Now()); err != nil {
				return err
			}
		}
		return nil
	})
}

// busy notes whether the credential is being worked on.
func (e *Engine) busy(id key.CredentialID, open bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if open {
		e.open[id] = true
	} else {
		delete(e.open, id)
	}
}

// Run works until ctx ends, and then returns nil once the present act is over.
// A failure of the store is waited out.
func (e *Engine) Run(ctx context.Context) error {
	backoff := time.Duration(0)
	for ctx.Err() == nil {
		err := e.look(ctx)
		worked := false
		if err == nil {
			worked, err = e.Step(ctx)
		}
		if err != nil && ctx.Err() == nil {
			e.cfg.Event("step", key.CredentialID{}, err)
			backoff = min(max(2*backoff, 100*time.Millisecond), 10*time.Second)
		} else {
			backoff = 0
		}
		if worked && backoff == 0 {
			continue
		}
		t := time.NewTimer(max(backoff, e.sleep(ctx)))
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-e.wake:
		}
		t.Stop()
	}
	return nil
}

// sleep returns how long nothing is due.
func (e *Engine) sleep(ctx context.Context) time.Duration {
	d := idlePoll
	_ = e.cfg.Store.View(ctx, func(tx store.Tx) error {
		next, err := tx.NextDue(leaseKind)
		if err == nil && !next.IsZero() {
			d = min(d, max(next.Sub(tx.Now()), time.Millisecond))
		}
		return err
	})
	return d
}

// Step claims one credential that is due and does all that can be done for it
// now. It reports whether there was one.
func (e *Engine) Step(ctx context.Context) (bool, error) {
	return store.Work(ctx, e.cfg.Store, leaseKind, e.cfg.Owner, e.cfg.Lease, func(ctx context.Context, l *store.Lease) (time.Time, error) {
		id, err := key.ParseCredentialID(l.Item)
		if err != nil {
			return time.Time{}, nil
		}
		p := &pass{Engine: e, id: id, held: l}
		next, err := p.run(ctx)
		switch {
		case err == nil:
			return next, nil
		case errors.Is(err, key.ErrFenced), ctx.Err() != nil:
			return time.Time{}, err
		}
		e.cfg.Event("pass", id, err)
		return p.now.Add(max(e.cfg.Poll, time.Second)), nil
	})
}

// pass is the work on one credential under its lease.
type pass struct {
	*Engine
	id     key.CredentialID
	held   *store.Lease
	now    time.Time // of the newest facts
	intent int       // the attempt whose intent this pass wrote
}

// run does what can be done, one act after the other, each decided from fresh
// facts, and returns when to look again; zero when nothing is expected.
func (p *pass) run(ctx context.Context) (time.Time, error) {
	for range 200 { // a bound, so that one credential cannot keep the loop
		if err := ctx.Err(); err != nil {
			return time.Time{}, err
		}
		f, err := p.facts(ctx)
		if errors.Is(err, key.ErrNotFound) {
			return time.Time{}, nil // the credential was deleted
		}
		if err != nil {
			return time.Time{}, err
		}
		p.now = f.now
		p.busy(p.id, f.open != nil || len(f.retirements) > 0)
		acted, again, err := p.once(ctx, f)
		if err != nil || !acted {
			return again, err
		}
	}
	return p.now.Add(p.cfg.Poll), nil
}

// once does the first act that is due, or says when to look again.
func (p *pass) once(ctx context.Context, f *facts) (acted bool, again time.Time, err error) {
	sooner := func(t time.Time) {
		if !t.IsZero() && (again.IsZero() || t.Before(again)) {
			again = t
		}
	}
	if !f.credential.Settled(f.epoch) {
		return p.reconcile(ctx, f)
	}
	if f.open != nil {
		a, g := rotation.Next(*f.open, f.rules, f.now)
		if a.Do != rotation.Wait {
			return true, time.Time{}, p.act(ctx, f, *f.open, a)
		}
		if err := p.noteGate(ctx, f.open.Gate, g, func(tx store.Tx) error { return tx.PutGate(f.open.ID, g) }); err != nil {
			return false, time.Time{}, err
		}
		sooner(f.now.Add(p.cfg.Poll))
		sooner(g.Again)
	}
	for _, r := range f.retirements {
		a, g := rotation.NextRetire(r, f.rules, f.now)
		if a.Do != rotation.Wait {
			err := p.retire(ctx, f, r, a)
			if err == nil || errors.Is(err, key.ErrFenced) || ctx.Err() != nil {
				return true, time.Time{}, err
			}
			// It must not keep others from their end.
			p.cfg.Event("retiring "+r.Version.String(), p.id, err)
			sooner(f.now.Add(max(p.cfg.Poll, time.Second)))
			continue
		}
		if err := p.noteGate(ctx, r.Gate, g, func(tx store.Tx) error { return tx.PutRetirementGate(r.Version, g) }); err != nil {
			return false, time.Time{}, err
		}
		sooner(f.now.Add(p.cfg.Poll))
		sooner(g.Again)
	}
	for _, v := range f.strays() {
		acted, at, err := p.stray(ctx, f, v)
		if acted || err != nil {
			return acted, time.Time{}, err
		}
		sooner(at)
	}
	if f.open == nil {
		acted, at, err := p.plan(ctx, f)
		if acted || err != nil {
			return acted, time.Time{}, err
		}
		sooner(at)
	}
	return false, again, nil
}

// noteGate keeps the gate for people to see, when it has changed.
func (p *pass) noteGate(ctx context.Context, old, g rotation.Gate, put func(store.Tx) error) error {
	if old.Reason == g.Reason && old.Person == g.Person && old.Again.Equal(g.Again) && equal(old.Missing, g.Missing) {
		return nil
	}
	return p.cfg.Store.Observe(ctx, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		return put(tx)
	})
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// renew makes the lease long enough for one call to the vendor, and returns a
// context that ends before the lease does. The lease protects the store, not
// the vendor: a call that could outlast it is not made, and time counts from
// before the lease was renewed, so that a process that was stopped meanwhile
// does not take its lease for a fresh one.
func (p *pass) renew(ctx context.Context) (context.Context, context.CancelFunc, error) {
	var left time.Duration
	begun := time.Now()
	err := p.cfg.Store.Observe(ctx, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		l, err := tx.ClaimItem(p.held.Kind, p.held.Item, p.held.Owner, p.cfg.Lease)
		if err != nil {
			return err
		}
		*p.held, left = l, l.Until.Sub(tx.Now())
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithDeadline(ctx, begun.Add(min(callLimit, left*2/3)))
	return ctx, cancel, nil
}

// fence is a transport that sends nothing once the time of its request is over,
// by the monotonic clock and by the wall clock: a process that was stopped, or a
// machine that slept, may have lost its lease without noticing.
type fence struct{ http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (f fence) RoundTrip(r *http.Request) (*http.Response, error) {
	if end, ok := r.Context().Deadline(); ok {
		now := time.Now()
		if !now.Before(end) || !now.Round(0).Before(end.Round(0)) {
			// As if there had been no connection: nothing was sent, for certain.
			return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
		}
	}
	return f.RoundTripper.RoundTrip(r)
}

// remembered returns what this process probed of the credential.
func (e *Engine) remembered(id key.CredentialID) map[key.Number]rotation.Probe {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.probes[id])
}

// remember keeps a probe; a zero one forgets what was known of n.
func (e *Engine) remember(id key.CredentialID, n key.Number, p rotation.Probe) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.probes[id]
	if m == nil {
		m = map[key.Number]rotation.Probe{}
		e.probes[id] = m
	}
	if p.At.IsZero() {
		delete(m, n)
		return
	}
	m[n] = m[n].Then(p)
}

// backoff returns how long to wait before try n of a vendor call, or what the
// vendor asked for if that is longer.
func backoff(n int, err error) time.Duration {
	d := min(time.Second<<min(n, 8), 5*time.Minute)
	if e := (*provider.Error)(nil); errors.As(err, &e) {
		d = max(d, e.After)
	}
	return d
}
