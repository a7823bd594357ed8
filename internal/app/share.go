package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// Leases by which servers on one store share what only one may do.
const (
	serverLease = "server" // an item for each name: no two servers have the same
	notifyLease = "notify" // one item: one server looks and sends
	shareFor    = 15 * time.Second
)

// maxServerName leaves room for the names that are made of it.
const maxServerName = 48

// serverName returns the name of this server among those on its store: as
// given, or that of its host; "" where it is alone.
func (s Settings) serverName() (string, error) {
	name := s.Name
	if name == "" {
		if !s.shared() {
			return "", nil
		}
		host, err := os.Hostname()
		if err != nil {
			return "", key.WithHint(fmt.Errorf("naming this server: %w", err), "name it: --name NAME")
		}
		name, _, _ = strings.Cut(strings.ToLower(host), ".")
	}
	if err := key.CheckName(name); err != nil || len(name) > maxServerName {
		return "", key.WithHint(fmt.Errorf("%w: %q cannot be the name of a server", key.ErrInvalid, name),
			fmt.Sprintf("use at most %d small letters, digits and hyphens, a name of its own for each server: --name NAME", maxServerName))
	}
	return name, nil
}

// own returns the name that this server has for something every server has one
// of: what itself where it is alone.
func (a *App) own(what string) string {
	if a.name == "" {
		return what
	}
	return what + "-" + a.name
}

// share is a lease that is held for as long as a server lives.
type share struct {
	st    store.Store
	owner string

	mu    sync.RWMutex
	lease store.Lease
	ends  time.Time // by this process's clock, and rather too early
}

// take takes the lease or renews it; key.ErrConflict while another has it.
func (s *share) take(ctx context.Context, kind, item string) error {
	s.mu.Lock() // not while a write checks it
	defer s.mu.Unlock()
	began := time.Now()
	return s.st.Observe(ctx, func(tx store.Tx) (err error) {
		l, err := tx.ClaimItem(kind, item, s.owner, shareFor)
		if err == nil {
			s.lease, s.ends = l, began.Add(shareFor)
		}
		return err
	})
}

func (s *share) over() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return !time.Now().Before(s.ends)
}

// give gives the lease back, so that nobody has to wait for its end.
func (s *share) give() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.st.Observe(ctx, func(tx store.Tx) error { return tx.Release(s.lease, time.Time{}) }) // it ends by itself too
}

// join makes this server the only one of its name, and keeps it so until run
// ends. A server that was killed is waited for until its lease ends, unless it
// ran in the same data directory.
func (a *App) join(ctx, run context.Context) error {
	if !a.set.shared() {
		return nil
	}
	var err error
	if a.id, err = serverID(a.set.Data); err != nil {
		return err
	}
	s := &share{st: a.store, owner: a.id}
	limit := time.Now().Add(shareFor + 5*time.Second)
	for {
		err := s.take(ctx, serverLease, a.name)
		if err == nil {
			break
		}
		if !errors.Is(err, key.ErrConflict) {
			return fmt.Errorf("joining the other servers: %w", err)
		}
		if time.Now().After(limit) {
			return key.WithHint(fmt.Errorf("%w: another server named %q runs on this store", key.ErrLocked, a.name), "give each server a name of its own: --name NAME")
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	a.spawn(func() {
		defer s.give()
		for pause(run, shareFor/3) == nil {
			if err := s.take(run, serverLease, a.name); errors.Is(err, key.ErrConflict) {
				a.log.Error("another server has taken this one's name: stop one of them, and give each a name of its own", "name", a.name)
			}
		}
	})
	return nil
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// notifyInTurn runs the notifier while this server is the one that does; when
// that one ends, another takes over from what it stored.
func (a *App) notifyInTurn(run context.Context) {
	s := &share{st: a.store, owner: a.id}
	for run.Err() == nil {
		if err := s.take(run, notifyLease, notifyLease); err != nil {
			if !errors.Is(err, key.ErrConflict) && run.Err() == nil {
				a.log.Debug("taking turns at looking for signals", "error", err)
			}
			_ = pause(run, shareFor/3)
			continue
		}
		a.notifyFor(run, s)
	}
}

// notifyFor runs the notifier until the share is lost or run ends.
func (a *App) notifyFor(run context.Context, s *share) {
	turn, end := context.WithCancel(run)
	defer end()
	n, err := a.newNotifier(fenced{a.store, s})
	if err != nil {
		a.log.Error("notifier", "error", err)
		_ = pause(run, shareFor)
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Run(turn); err != nil && turn.Err() == nil {
			a.log.Error("notifier", "error", err)
		}
	})
	for pause(run, shareFor/3) == nil {
		if err := s.take(run, notifyLease, notifyLease); errors.Is(err, key.ErrConflict) || err != nil && s.over() {
			break
		}
	}
	end()
	wg.Wait()
	s.give()
}

// fenced is a store that takes writes only while a share is held.
type fenced struct {
	store.Store
	share *share
}

// Update implements [store.Store].
func (f fenced) Update(ctx context.Context, why audit.Entry, fn func(store.Tx) error) error {
	f.share.mu.RLock()
	defer f.share.mu.RUnlock()
	return f.Store.Update(ctx, why, f.checked(fn))
}

// Observe implements [store.Store].
func (f fenced) Observe(ctx context.Context, fn func(store.Tx) error) error {
	f.share.mu.RLock()
	defer f.share.mu.RUnlock()
	return f.Store.Observe(ctx, f.checked(fn))
}

func (f fenced) checked(fn func(store.Tx) error) func(store.Tx) error {
	return func(tx store.Tx) error {
		if err := tx.Fence(f.share.lease); err != nil {
			return err
		}
		return fn(tx)
	}
}
