package engine

import (
	"context"
	"fmt"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// stage puts the proven candidate into the fallback slot. Whatever it
// displaces retires by its own job.
func (p *pass) stage(ctx context.Context, r rotation.Rotation, a rotation.Action) error {
	return p.commitWith(ctx, r.ID, rotation.Event{Kind: rotation.Staged, Why: a.Why}, func(c *change, e *rotation.Event) error {
		s := &c.cred.Slots
		if s.Candidate != r.To {
			return fmt.Errorf("%w: the candidate is %s, not %s", key.ErrConflict, s.Candidate, r.To)
		}
		rev, err := c.touch()
		if err != nil {
			return err
		}
		if s.Fallback != 0 {
			e.Displaced = s.Fallback
			if err := c.retireVersion(s.Fallback, rev, false); err != nil {
				return err
			}
		}
		s.Candidate, s.Fallback, c.put = 0, r.To, true
		if err := c.move(r.To, key.StateFallback); err != nil {
			return err
		}
		if r.Kind == rotation.Spare {
			return nil
		}
		return c.tx.PutAsks(p.id, []evidence.Ask{{Version: p.version(r.To), OK: 1}})
	})
}

// install makes the candidate the primary where there is none, or where the
// primary is dead. The fallback stays.
func (p *pass) install(ctx context.Context, f *facts, r rotation.Rotation, a rotation.Action) error {
	return p.commitWith(ctx, r.ID, rotation.Event{Kind: rotation.Installed, Why: a.Why, Marks: rotation.Marks(p.version(r.To), f.rules.Ledger)}, func(c *change, _ *rotation.Event) error {
		s := &c.cred.Slots
		if s.Candidate != r.To || s.Primary != r.From {
			return fmt.Errorf("%w: the slots have changed", key.ErrConflict)
		}
		rev, err := c.touch()
		if err != nil {
			return err
		}
		if s.Primary != 0 {
			if err := c.retireVersion(s.Primary, rev, r.Kind == rotation.Emergency); err != nil {
				return err
			}
		}
		s.Candidate, s.Primary, c.put = 0, r.To, true
		c.cred.Rotated, c.cred.Epoch = c.tx.Now(), f.epoch
		if err := c.move(r.To, key.StatePrimary); err != nil {
			return err
		}
		return p.askSoak(c, f, r.To)
	})
}

// askSoak asks the gateways to try the new key as often as the soak wants,
// where requests do not.
func (p *pass) askSoak(c *change, f *facts, to key.Number) error {
	return c.tx.PutAsks(p.id, []evidence.Ask{{Version: p.version(to), OK: seen(f, p.version(to)) + f.policy.Soak.Requests}})
}

// askOnce asks the gateways to see once that n works, in traffic or by a probe:
// one that has seen no key work keeps the last that did.
func (c *change) askOnce(n key.Number) error {
	return c.tx.PutAsks(c.p.id, []evidence.Ask{{Version: c.p.version(n), OK: 1}})
}

// promote swaps the slots: by version, never by position.
func (p *pass) promote(ctx context.Context, f *facts, r rotation.Rotation, a rotation.Action) error {
	return p.commitWith(ctx, r.ID, rotation.Event{Kind: rotation.Promoted, Why: a.Why, Marks: rotation.Marks(p.version(r.To), f.rules.Ledger)}, func(c *change, _ *rotation.Event) error {
		if err := c.swap(r.From, r.To); err != nil {
			return err
		}
		return p.askSoak(c, f, r.To)
	})
}

// swap makes to, the fallback, the primary, and from, the primary, the
// fallback.
func (c *change) swap(from, to key.Number) error {
	s := &c.cred.Slots
	if s.Primary != from || s.Fallback != to {
		return fmt.Errorf("%w: the slots are primary %s, fallback %s, not %s and %s", key.ErrConflict, s.Primary, s.Fallback, from, to)
	}
	if _, err := c.touch(); err != nil {
		return err
	}
	s.Primary, s.Fallback, c.put = to, from, true
	c.cred.Rotated = c.tx.Now()
	// The unique primary leaves its state before the next one enters it.
	if err := c.move(from, key.StateRetired); err != nil {
		return err
	}
	if err := c.move(to, key.StatePrimary); err != nil {
		return err
	}
	return c.move(from, key.StateFallback)
}

// empty takes the demoted key out of the fallback slot; its retirement begins.
func (p *pass) empty(ctx context.Context, r rotation.Rotation, a rotation.Action) error {
	return p.commitWith(ctx, r.ID, rotation.Event{Kind: rotation.Emptied, Why: a.Why}, func(c *change, _ *rotation.Event) error {
		s := &c.cred.Slots
		if s.Fallback != a.Version {
			return nil // it left before
		}
		if s.Primary == 0 || s.Primary == a.Version {
			return fmt.Errorf("%w: no other key would be left", key.ErrConflict)
		}
		rev, err := c.touch()
		if err != nil {
			return err
		}
		s.Fallback, c.put = 0, true
		if err := c.askOnce(s.Primary); err != nil {
			return err
		}
		return c.retireVersion(a.Version, rev, r.Kind == rotation.Emergency)
	})
}

// swapBack returns to the old key, which was probed just now. The new one
// stays as the fallback until it is unused.
func (p *pass) swapBack(ctx context.Context, f *facts, r rotation.Rotation, a rotation.Action) error {
	return p.commitWith(ctx, r.ID, rotation.Event{Kind: rotation.SwappedBack, Why: a.Why, Marks: rotation.Marks(p.version(r.From), f.rules.Ledger)}, func(c *change, _ *rotation.Event) error {
		s := &c.cred.Slots
		rev, err := c.touch()
		if err != nil {
			return err
		}
		if err := c.askOnce(r.From); err != nil {
			return err
		}
		if s.Primary != r.To {
			return nil // it was staged, never promoted
		}
		if s.Fallback == r.From {
			return c.swap(r.To, r.From)
		}
		// The old key had left its slot: it comes back from its retirement.
		ret, err := c.tx.Retirement(p.version(r.From))
		if err != nil {
			return err
		}
		if ret, err = rotation.ApplyRetire(ret, rotation.Event{Kind: rotation.Withdrawn, At: c.tx.Now()}); err != nil {
			return err
		}
		if err := c.tx.PutRetirement(ret); err != nil {
			return err
		}
		if s.Fallback != 0 {
			if err := c.retireVersion(s.Fallback, rev, false); err != nil {
				return err
			}
		}
		s.Primary, s.Fallback, c.put = r.From, r.To, true
		c.cred.Rotated = c.tx.Now()
		if err := c.move(r.To, key.StateFallback); err != nil {
			return err
		}
		return c.move(r.From, key.StatePrimary)
	})
}

// drop lets go of a new key that was never handed out.
func (p *pass) drop(ctx context.Context, r rotation.Rotation, a rotation.Action) error {
	return p.commitWith(ctx, r.ID, rotation.Event{Kind: rotation.Dropped, Why: a.Why}, func(c *change, _ *rotation.Event) error {
		if r.To == 0 {
			return nil
		}
		if c.cred.Slots.Candidate == r.To {
			c.cred.Slots.Candidate, c.put = 0, true
		}
		v, err := c.tx.Version(p.version(r.To))
		if err != nil {
			return err
		}
		if v.State != key.StateCandidate {
			return nil // an intent or a lost answer is looked for by itself
		}
		return c.retireVersion(r.To, c.cred.Revision, false)
	})
}

// discard empties the fallback slot of a spare that the vendor refuses. Nobody
// loses a key that works.
func (p *pass) discard(ctx context.Context, r rotation.Rotation, a rotation.Action) error {
	return p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "spare.discarded", Credential: p.id, Version: a.Version, Rotation: r.ID, Detail: map[string]string{"why": a.Why}}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c := &change{p: p, tx: tx, rot: r}
		var err error
		if c.cred, err = tx.Credential(p.id); err != nil {
			return err
		}
		if c.cred.Slots.Fallback != a.Version {
			return nil
		}
		rev, err := c.touch()
		if err != nil {
			return err
		}
		c.cred.Slots.Fallback = 0
		if err := c.retireVersion(a.Version, rev, false); err != nil {
			return err
		}
		return tx.PutCredential(c.cred)
	})
}

// commit applies e to the rotation id as it stands now, with whatever else fn
// changes, in one transaction under the lease. fn may be nil.
func (p *pass) commit(ctx context.Context, id string, e rotation.Event, fn func(c *change) error) error {
	return p.commitWith(ctx, id, e, func(c *change, _ *rotation.Event) error {
		if fn == nil {
			return nil
		}
		return fn(c)
	})
}

// commitWith is commit with an event that fn completes. The credential is
// written when fn set c.put; a revision that fn made becomes that of e. A
// pause does not undo what has happened: it is recorded all the same.
func (p *pass) commitWith(ctx context.Context, id string, e rotation.Event, fn func(c *change, e *rotation.Event) error) error {
	detail := map[string]string{}
	if e.Why != "" {
		detail["why"] = e.Why
	}
	if e.Proof != "" {
		detail["proof"] = e.Proof
	}
	why := audit.Entry{Actor: access.System.Name, Action: "rotation." + string(e.Kind), Credential: p.id, Rotation: id, Version: e.To, Detail: detail}
	return p.cfg.Store.Update(ctx, why, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c := &change{p: p, tx: tx}
		var err error
		if c.rot, err = tx.Rotation(id); err != nil {
			return err
		}
		if c.cred, err = tx.Credential(p.id); err != nil {
			return err
		}
		ev := e
		ev.At = tx.Now()
		if err := fn(c, &ev); err != nil {
			return err
		}
		if ev.Revision.IsZero() {
			ev.Revision = c.rev
		}
		next, err := rotation.Apply(c.rot, ev)
		if err != nil {
			return err
		}
		if err := tx.PutRotation(next); err != nil {
			return err
		}
		if c.put {
			return tx.PutCredential(c.cred)
		}
		return nil
	})
}
