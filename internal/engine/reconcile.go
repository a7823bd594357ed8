package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// reconcile brings a credential and its vendor to agree after a restore. Until
// they do, consumers keep what they have, as it may be newer than what is stored,
// and nothing is ended:
//
//   - keys that the vendor lists under a label of ours, and that the store does not
//     know, were issued after the backup: they are taken in and end only when a
//     person, or the vendor's last use, says that nobody needs them;
//   - a stored primary that the vendor accepts is handed out again;
//   - one that it refuses gives way to a fallback that it accepts, or else to a new
//     key, and only that is handed out.
func (p *pass) reconcile(ctx context.Context, f *facts) (acted bool, again time.Time, err error) {
	later := f.now.Add(max(f.rules.Can.Spacing, time.Second))
	if !p.compared(f.epoch) {
		if err := p.recover(ctx, f); err != nil {
			if errors.Is(err, key.ErrFenced) || ctx.Err() != nil {
				return false, time.Time{}, err
			}
			p.cfg.Event("reconciling after a restore", p.id, err)
			return false, later, nil
		}
		p.mu.Lock()
		p.listed[p.id] = f.epoch
		p.mu.Unlock()
		return true, time.Time{}, nil
	}
	if f.open != nil && beforeServed(f.open.State) && f.credential.Slots.Primary != 0 {
		if known, dead, at := p.verdict(f, f.credential.Slots.Primary); known && dead || f.open.Paused {
			return p.bring(ctx, f)
		} else if !known {
			return p.ask(ctx, f, f.credential.Slots.Primary, at)
		}
	}
	if f.credential.Slots.Primary == 0 {
		return true, time.Time{}, p.settle(ctx, f, 0, "there is no key to hand out")
	}
	if !f.rules.Can.Probe {
		if f.policy.Unverified == rotation.UnverifiedProceed {
			return true, time.Time{}, p.settle(ctx, f, 0, "unverified: no probe is declared")
		}
		return false, later, nil // approve opens it
	}
	for _, n := range f.credential.Slots.Served() {
		known, dead, at := p.verdict(f, n)
		switch {
		case !known:
			return p.ask(ctx, f, n, at)
		case !dead && n == f.credential.Slots.Primary:
			return true, time.Time{}, p.settle(ctx, f, 0, n.String()+" answers "+f.rules.Probes[n].Text)
		case !dead:
			return true, time.Time{}, p.settle(ctx, f, n, fmt.Sprintf("%s is dead and %s answers %s", f.credential.Slots.Primary, n, f.rules.Probes[n].Text))
		}
	}
	if f.open != nil && !beforeServed(f.open.State) {
		// What it was doing is out of date.
		err := p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "rotation.superseded", Credential: p.id, Rotation: f.open.ID, Detail: map[string]string{"why": "the store was restored and its keys are dead"}}, func(tx store.Tx) error {
			if err := tx.Fence(*p.held); err != nil {
				return err
			}
			return supersede(tx, p.id, tx.Now())
		})
		return true, time.Time{}, err
	}
	_, err = p.begin(ctx, access.System, p.id, rotation.Manual, RotateOptions{Why: "the store was restored, and the vendor refuses every key in it"})
	return true, time.Time{}, err
}

// compared reports whether this process has compared the vendor's list with the
// store since the epoch began.
func (p *pass) compared(epoch int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listed[p.id] == epoch
}

// beforeServed reports whether a rotation in s has handed out nothing yet.
func beforeServed(s rotation.State) bool {
	return s.Step() == rotation.StepGenerate || s == rotation.Staging
}

// verdict returns what the newest probe says of n, and when to probe it again
// if it says nothing.
func (p *pass) verdict(f *facts, n key.Number) (known, dead bool, again time.Time) {
	pr, ok := f.rules.Probes[n]
	if !ok || f.now.Sub(pr.At) > rotation.Fresh {
		return false, false, f.now
	}
	switch pr.Outcome {
	case evidence.OK, evidence.Perm, evidence.Rate:
		return true, false, time.Time{}
	case evidence.Auth:
		if pr.Run >= max(1, f.rules.Can.DeadOK) {
			return true, true, time.Time{}
		}
	}
	return false, false, pr.At.Add(max(f.rules.Can.Spacing, time.Second))
}

// ask probes n, unless it is too early.
func (p *pass) ask(ctx context.Context, f *facts, n key.Number, at time.Time) (bool, time.Time, error) {
	if f.now.Before(at) {
		return false, at, nil
	}
	_, err := p.probe(ctx, f, n)
	return true, time.Time{}, err
}

// bring lets the rotation go on that brings in a key which works.
func (p *pass) bring(ctx context.Context, f *facts) (bool, time.Time, error) {
	a, g := rotation.Next(*f.open, f.rules, f.now)
	if a.Do != rotation.Wait {
		return true, time.Time{}, p.act(ctx, f, *f.open, a)
	}
	if err := p.noteGate(ctx, f.open.Gate, g, func(tx store.Tx) error { return tx.PutGate(f.open.ID, g) }); err != nil {
		return false, time.Time{}, err
	}
	again := f.now.Add(p.cfg.Poll)
	if !g.Again.IsZero() && g.Again.Before(again) {
		again = g.Again
	}
	return false, again, nil
}

// settle says that the credential and its vendor agree; with swap, that version
// becomes the primary first, and the dead one retires.
func (p *pass) settle(ctx context.Context, f *facts, swap key.Number, why string) error {
	return p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "credential.reconciled", Credential: p.id, Version: swap, Detail: map[string]string{"why": why}}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c := &change{p: p, tx: tx}
		var err error
		if swap != 0 {
			if err := supersede(tx, p.id, tx.Now()); err != nil {
				return err
			}
		}
		if c.cred, err = tx.Credential(p.id); err != nil {
			return err
		}
		rev, err := c.touch()
		if err != nil {
			return err
		}
		if swap != 0 {
			dead := c.cred.Slots.Primary
			c.cred.Slots, c.cred.Rotated = key.Slots{Primary: swap}, tx.Now()
			if err := c.retireVersion(dead, rev, false); err != nil {
				return err
			}
			if err := c.move(swap, key.StatePrimary); err != nil {
				return err
			}
		} else if open, err := tx.OpenRotation(p.id); err == nil && !open.Revision.IsZero() {
			open.Revision = rev // what was acknowledged in an older epoch counts for nothing
			if err := tx.PutRotation(open); err != nil {
				return err
			}
		} else if err != nil && !isNotFound(err) {
			return err
		}
		c.cred.Epoch = f.epoch
		return tx.PutCredential(c.cred)
	})
}

// vouch settles a credential without a probe, because a person says so; it
// returns how many it settled.
func (e *Engine) vouch(tx store.Tx, id key.CredentialID) (int, error) {
	c, err := tx.Credential(id)
	if err != nil {
		return 0, err
	}
	rev, err := tx.Revision()
	if err != nil || c.Settled(rev.Epoch) || c.Slots.Primary == 0 {
		return 0, err
	}
	var f facts
	if err := e.read(tx, id, &f); err != nil || f.rules.Can.Probe {
		return 0, err
	}
	if rev, err = tx.Touch(id); err != nil {
		return 0, err
	}
	c.Epoch = rev.Epoch
	return 1, tx.PutCredential(c)
}

// recover takes in the keys that the vendor lists under a label of ours and
// that the store does not know.
func (p *pass) recover(ctx context.Context, f *facts) error {
	l, ok := f.driver.(provider.Lister)
	if !ok || !f.rules.Can.List {
		return nil
	}
	env, err := p.env(ctx, f)
	if err != nil {
		return err
	}
	call, cancel, err := p.renew(ctx)
	if err != nil {
		return err
	}
	listed, err := l.List(call, env)
	cancel()
	if err != nil {
		return err
	}
	var found []provider.Listed
	for _, k := range listed {
		if _, known := f.byVendorID(k.VendorID); !known && ours(f.driver, env, p.id, k) && !f.awaited(f.driver, env, k) {
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "versions.recovered", Credential: p.id, Detail: map[string]string{"found": strconv.Itoa(len(found)), "why": "the store was restored"}}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c, err := tx.Credential(p.id)
		if err != nil {
			return err
		}
		vs, err := tx.Versions(p.id)
		if err != nil {
			return err
		}
		for _, k := range found {
			if slices.ContainsFunc(vs, func(v key.Version) bool { return v.VendorID == k.VendorID }) {
				continue
			}
			v := key.Version{ID: p.version(c.Next), State: key.StateRetired, Origin: key.OriginAdopted, VendorID: k.VendorID, Label: k.Label,
				Created: tx.Now(), Since: tx.Now(), Note: "issued after the backup that was restored" + was(k.Label, p.id)}
			c.Next++
			if err := tx.PutVersion(v); err != nil {
				return err
			}
			if err := tx.PutRetirement(rotation.Retirement{Version: v.ID, State: key.StateRetired, Revision: c.Revision, Entered: tx.Now(), Restored: true}); err != nil {
				return err
			}
		}
		return tx.PutCredential(c)
	})
}

// awaited reports whether k may be what a lost answer has made: that is looked
// for by itself.
func (f *facts) awaited(d provider.Driver, env provider.Env, k provider.Listed) bool {
	return slices.ContainsFunc(f.versions, func(v key.Version) bool {
		return (v.State == key.StateIntent || v.State == key.StateUnknown) && provider.LabelAt(d, env, v.Label) == k.Label
	})
}

// was returns which version the label of a key names.
func was(label string, id key.CredentialID) string {
	rest, ok := strings.CutPrefix(label, labelPrefix(id))
	n, _, _ := strings.Cut(rest, "-")
	if _, err := key.ParseNumber(n); !ok || err != nil {
		return ""
	}
	return ", as " + n
}
