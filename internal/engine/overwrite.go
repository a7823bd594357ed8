package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// again stops the rotation when the vendor handed out a key that is known
// already. Where issuing overwrites a key its id stays the same; the key does
// not.
func (p *pass) again(ctx context.Context, f *facts, r rotation.Rotation, v key.Version, got provider.Issued, print string) (bool, error) {
	for _, o := range f.versions {
		sameID := o.VendorID != "" && o.VendorID == got.VendorID && !f.rules.Can.Overwrites()
		if o.ID == v.ID || o.Fingerprint != print && !sameID || o.State == key.StateVoid {
			continue
		}
		why := fmt.Sprintf("the vendor handed out the key of %s again; a key that is in use is not revoked, so look at the vendor before resuming", o.ID.Number)
		return true, p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Stop, Why: why}, func(c *change) error { return c.void(r.To, why) })
	}
	return false, nil
}

// rolled stores the key with which the vendor has replaced its only one: it is
// the primary from this commit on, whatever became of the rotation meanwhile,
// as no other key is left. What was the primary is dead, to be proven.
func (p *pass) rolled(ctx context.Context, f *facts, r rotation.Rotation, v key.Version, got provider.Issued, sealed key.Sealed, print string) error {
	if again, err := p.again(ctx, f, r, v, got, print); again || err != nil {
		return err
	}
	install := func(c *change) error {
		rev, err := c.touch()
		if err != nil {
			return err
		}
		for _, old := range c.cred.Slots.Served() {
			if err := c.replaced(old, rev); err != nil {
				return err
			}
		}
		if n := c.cred.Slots.Candidate; n != 0 {
			if err := c.replaced(n, rev); err != nil {
				return err
			}
		}
		if err := c.record(v, got, sealed, print, key.StatePrimary); err != nil {
			return err
		}
		c.cred.Slots, c.cred.Rotated, c.put = key.Slots{Primary: v.ID.Number}, c.tx.Now(), true
		c.cred.Epoch = f.epoch
		return p.askSoak(c, f, v.ID.Number)
	}
	e := rotation.Event{Kind: rotation.Rolled, To: r.To, Why: "the vendor has replaced its one key", Marks: rotation.Marks(v.ID, f.rules.Ledger)}
	err := p.commit(ctx, r.ID, e, install)
	if !errors.Is(err, key.ErrConflict) {
		return err
	}
	// The rotation was rolled back or superseded while the vendor replaced its
	// key: there is nothing left to go back to.
	return p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "version.rolled late", Credential: p.id, Version: r.To, Rotation: r.ID}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c := &change{p: p, tx: tx, rot: r}
		var err error
		if c.cred, err = tx.Credential(p.id); err != nil {
			return err
		}
		if err := install(c); err != nil {
			return err
		}
		if err := tx.PutCredential(c.cred); err != nil {
			return err
		}
		cur, err := tx.Rotation(r.ID)
		if err != nil || cur.State.Ended() {
			return err
		}
		if cur, err = rotation.Apply(cur, rotation.Event{Kind: rotation.Replaced, At: tx.Now(), Why: "the vendor had replaced its one key already"}); err != nil {
			return err
		}
		return tx.PutRotation(cur)
	})
}

// replaced begins the proof that version n is dead: the vendor ended it when it
// issued another.
func (c *change) replaced(n key.Number, rev key.Revision) error {
	v, err := c.tx.Version(c.p.version(n))
	if err != nil {
		return err
	}
	c.p.remember(c.p.id, n, rotation.Probe{})
	v.State, v.Since = key.StateRevoking, c.tx.Now()
	if err := c.tx.PutVersion(v); err != nil {
		return err
	}
	return c.tx.PutRetirement(rotation.Retirement{Version: v.ID, State: key.StateRevoking, Revision: rev, Rotation: c.rot.ID, Entered: c.tx.Now(), Called: c.tx.Now()})
}

// lapses notes when the old key ends by itself, where the vendor lets it work
// on for a while after it was replaced.
func (c *change) lapses(f *facts, r rotation.Rotation) error {
	if !f.rules.Can.Roll || r.From == 0 {
		return nil
	}
	old, err := c.tx.Version(c.p.version(r.From))
	if err != nil {
		return err
	}
	if end := c.tx.Now().Add(f.rules.Can.Grace); old.Expires.IsZero() || end.Before(old.Expires) {
		old.Expires = end
	}
	return c.tx.PutVersion(old)
}

// overlook gives up what a lost answer may have issued at a vendor that
// overwrites it with the next key.
func (p *pass) overlook(ctx context.Context, f *facts, r rotation.Rotation) error {
	return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Looked, Why: "the next key overwrites what was lost", Hard: f.rules.Can.Roll}, func(c *change) error {
		return c.void(r.To, "its answer was lost; the next key overwrites it")
	})
}

// sight looks into the vendor's list for when versions were used last.
func (p *pass) sight(ctx context.Context, f *facts, r rotation.Retirement) error {
	l, ok := f.driver.(provider.Lister)
	if !ok {
		return p.failed(ctx, r, "looking for its last use", fmt.Errorf("provider %s cannot list keys", f.service.Provider))
	}
	env, err := p.env(ctx, f)
	if err != nil {
		return p.failed(ctx, r, "opening the manager key", err)
	}
	call, cancel, err := p.renew(ctx)
	if err != nil {
		return err
	}
	keys, err := l.List(call, env)
	cancel()
	if err != nil {
		return p.failed(ctx, r, "looking for its last use", err)
	}
	now, err := p.time(ctx)
	if err != nil {
		return err
	}
	id := f.rules.Versions[r.Version.Number].VendorID
	s := rotation.Sight{At: now}
	for _, k := range keys {
		if k.VendorID == id {
			s.Used = k.LastUsed
		}
	}
	p.see(p.id, r.Version.Number, s)
	return nil
}

// time returns the store's time.
func (e *Engine) time(ctx context.Context) (t time.Time, err error) {
	err = e.cfg.Store.View(ctx, func(tx store.Tx) error { t = tx.Now(); return nil })
	return t, err
}

// sighted returns what this process saw of the credential in vendors' lists.
func (e *Engine) sighted(id key.CredentialID) map[key.Number]rotation.Sight {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.sights[id])
}

func (e *Engine) see(id key.CredentialID, n key.Number, s rotation.Sight) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.sights[id]
	if m == nil {
		m = map[key.Number]rotation.Sight{}
		e.sights[id] = m
	}
	m[n] = m[n].Then(s)
}
