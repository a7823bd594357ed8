package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// retire does what the rules ask of the retirement r.
func (p *pass) retire(ctx context.Context, f *facts, r rotation.Retirement, a rotation.Action) error {
	switch a.Do {
	case rotation.DoProbe:
		if a.Version == r.Version.Number && r.Anew(f.rules.Probes[a.Version]) {
			p.remember(p.id, a.Version, rotation.Probe{})
		}
		_, err := p.probe(ctx, f, a.Version)
		return err
	case rotation.DoDisabling:
		return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Disabling, Why: a.Why}, p.mayTouch)
	case rotation.DoDisable:
		return p.disable(ctx, f, r)
	case rotation.DoRevoking:
		return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Revoking, Why: a.Why}, p.mayTouch)
	case rotation.DoRevoke:
		return p.revoke(ctx, f, r)
	case rotation.DoConfirm:
		return p.confirm(ctx, f, r, a)
	case rotation.DoSight:
		return p.sight(ctx, f, r)
	case rotation.DoUnproven:
		return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Unproven, Why: a.Why}, nil)
	}
	return fmt.Errorf("[unexpected] act %q of a retirement", a.Do)
}

// mayTouch refuses to disable or revoke a version that a slot or a rollback
// still needs, as things stand in this transaction.
func (p *pass) mayTouch(tx store.Tx, r rotation.Retirement, _ *key.Version) error {
	c, err := tx.Credential(p.id)
	if err != nil {
		return err
	}
	open, err := tx.OpenRotation(p.id)
	if err != nil && !isNotFound(err) {
		return err
	}
	return rotation.MayTouch(r.Version.Number, c.Slots, open)
}

// commitRetire applies e to the retirement and gives the version the same
// state, in one transaction under the lease.
func (p *pass) commitRetire(ctx context.Context, r rotation.Retirement, e rotation.Event, fn func(store.Tx, rotation.Retirement, *key.Version) error) error {
	detail := map[string]string{}
	if e.Why != "" {
		detail["why"] = e.Why
	}
	why := audit.Entry{Actor: access.System.Name, Action: "version." + string(e.Kind), Credential: p.id, Version: r.Version.Number, Rotation: r.Rotation, Detail: detail}
	err := p.cfg.Store.Update(ctx, why, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		cur, err := tx.Retirement(r.Version)
		if err != nil {
			return err
		}
		v, err := tx.Version(r.Version)
		if err != nil {
			return err
		}
		if fn != nil {
			if err := fn(tx, cur, &v); err != nil {
				return err
			}
		}
		e.At = tx.Now()
		next, err := rotation.ApplyRetire(cur, e)
		if err != nil {
			return err
		}
		if v.State != next.State {
			v.State, v.Since = next.State, tx.Now()
		}
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		return tx.PutRetirement(next)
	})
	if err == nil && e.Kind != rotation.Failed {
		p.remember(p.id, r.Version.Number, rotation.Probe{}) // what was probed before says nothing about now
	}
	return err
}

// failed records a vendor call that did not do what was asked; it is tried
// again, later and later, and never given up.
func (p *pass) failed(ctx context.Context, r rotation.Retirement, what string, cause error) error {
	return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Failed, Why: what + ": " + cause.Error(), Retry: p.now.Add(backoff(r.Attempts, cause))}, nil)
}

func (p *pass) disable(ctx context.Context, f *facts, r rotation.Retirement) error {
	d, ok := f.driver.(provider.Disabler)
	if !ok {
		return p.failed(ctx, r, "disabling", fmt.Errorf("provider %s cannot disable a key", f.service.Provider))
	}
	env, err := p.env(ctx, f)
	if err != nil {
		return p.failed(ctx, r, "opening the manager key", err)
	}
	call, cancel, err := p.renew(ctx)
	if err != nil {
		return err
	}
	saved, err := d.Disable(call, env, f.rules.Versions[r.Version.Number].VendorID)
	cancel()
	keep := func(_ store.Tx, _ rotation.Retirement, v *key.Version) error {
		if saved != "" {
			v.Saved = saved
		}
		return nil
	}
	if err != nil {
		return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Failed, Why: "disabling: " + err.Error(), Retry: p.now.Add(backoff(r.Attempts, err))}, keep)
	}
	return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Disabled}, keep)
}

// enable takes a disabled key back into use, for a rollback.
func (p *pass) enable(ctx context.Context, f *facts, r rotation.Retirement) error {
	d, ok := f.driver.(provider.Disabler)
	if !ok {
		return p.failed(ctx, r, "enabling", fmt.Errorf("provider %s cannot enable a key", f.service.Provider))
	}
	env, err := p.env(ctx, f)
	if err != nil {
		return p.failed(ctx, r, "opening the manager key", err)
	}
	v := f.rules.Versions[r.Version.Number]
	call, cancel, err := p.renew(ctx)
	if err != nil {
		return err
	}
	err = d.Enable(call, env, v.VendorID, v.Saved)
	cancel()
	if provider.KindOf(err) == provider.Denied && f.open != nil && f.open.State == rotation.RollingBack {
		// The vendor will not have it back: what was taken back goes on instead.
		return p.commit(ctx, f.open.ID, rotation.Event{Kind: rotation.Onward, Why: fmt.Sprintf("%s cannot be enabled again: %v", r.Version.Number, err)}, nil)
	}
	if err != nil {
		return p.failed(ctx, r, "enabling", err)
	}
	return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Enabled, Why: "it comes back"}, nil)
}

func (p *pass) revoke(ctx context.Context, f *facts, r rotation.Retirement) error {
	env, err := p.env(ctx, f)
	if err != nil {
		return p.failed(ctx, r, "opening the manager key", err)
	}
	call, cancel, err := p.renew(ctx)
	if err != nil {
		return err
	}
	err = f.driver.Revoke(call, env, f.rules.Versions[r.Version.Number].VendorID)
	cancel()
	if err != nil {
		return p.failed(ctx, r, "revoking", err)
	}
	return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Called}, nil)
}

// confirm notes how a revocation ended: proven when the key is absent from the
// vendor's complete list and the survivor works from the same place.
func (p *pass) confirm(ctx context.Context, f *facts, r rotation.Retirement, a rotation.Action) error {
	why := a.Why
	if f.rules.Can.Probe && f.credential.Slots.Primary != 0 {
		s, err := p.probe(ctx, f, f.credential.Slots.Primary)
		if err != nil {
			return err
		}
		if s.Outcome != evidence.OK {
			// What refuses every key proves nothing of one: begin again.
			p.remember(p.id, r.Version.Number, rotation.Probe{})
			return p.failed(ctx, r, "confirming", fmt.Errorf("the survivor %s answers %s from the same place, so the refusals prove nothing yet", f.credential.Slots.Primary, s.Text))
		}
		if f.rules.Versions[r.Version.Number].Fingerprint != "" {
			again, err := p.probe(ctx, f, r.Version.Number)
			if err != nil {
				return err
			}
			if again.Outcome != evidence.Auth {
				return p.failed(ctx, r, "confirming", fmt.Errorf("%s answers %s after all", r.Version.Number, again.Text))
			}
		}
		why += fmt.Sprintf("; the survivor %s answers %s", f.credential.Slots.Primary, s.Outcome)
	}
	l, lists := f.driver.(provider.Lister)
	if !lists || !f.info.ListsAll || !f.rules.Can.List {
		if f.rules.Can.Probe && f.rules.Versions[r.Version.Number].Fingerprint != "" {
			return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Revoked, Why: why}, nil)
		}
		return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Unproven, Why: why + "; the vendor has no complete list"}, nil)
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
		return p.failed(ctx, r, "listing the vendor's keys", err)
	}
	id := f.rules.Versions[r.Version.Number].VendorID
	if slices.ContainsFunc(keys, func(k provider.Listed) bool { return k.VendorID == id }) {
		if p.now.Sub(r.Called) < f.rules.Can.Late+time.Minute || r.State != key.StateRevoking {
			return p.failed(ctx, r, "confirming", fmt.Errorf("the vendor still lists %s", r.Version.Number))
		}
		return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Unproven, Why: why + "; the vendor still lists it"}, nil)
	}
	return p.commitRetire(ctx, r, rotation.Event{Kind: rotation.Revoked, Why: why + "; the vendor does not list it"}, nil)
}

// look searches the vendor's list for what a lost answer may have made. A key
// that is found is marked as an orphan by its vendor id before anything is
// done to it; it can never be recorded as issued.
func (p *pass) look(ctx context.Context, f *facts, r rotation.Rotation) error {
	if !f.rules.Can.List {
		return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Looked, Why: "a person looked"}, func(c *change) error {
			return c.void(r.To, "a person looked at the vendor and found nothing to keep")
		})
	}
	found, err := p.byLabel(ctx, f, f.rules.Versions[r.To])
	if err != nil {
		return p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "rotation.look failed", Credential: p.id, Rotation: r.ID, Detail: map[string]string{"why": err.Error()}}, func(tx store.Tx) error {
			if err := tx.Fence(*p.held); err != nil {
				return err
			}
			cur, err2 := tx.Rotation(r.ID)
			if err2 != nil {
				return err2
			}
			cur.Gate = rotation.Gate{Reason: "the vendor's answer was lost, and looking for the key is not possible: " + err.Error()}
			cur.Retry = tx.Now().Add(backoff(3, err))
			return tx.PutRotation(cur)
		})
	}
	return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Looked, Why: fmt.Sprintf("%d strays found", len(found)), Retry: p.now.Add(f.rules.Can.Spacing)}, func(c *change) error {
		return c.orphans(r.To, found)
	})
}

// byLabel returns the keys at the vendor that carry v's label.
func (p *pass) byLabel(ctx context.Context, f *facts, v key.Version) ([]provider.Listed, error) {
	l, ok := f.driver.(provider.Lister)
	if !ok {
		return nil, fmt.Errorf("provider %s cannot list keys", f.service.Provider)
	}
	env, err := p.env(ctx, f)
	if err != nil {
		return nil, err
	}
	call, cancel, err := p.renew(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	keys, err := l.List(call, env)
	if err != nil {
		return nil, err
	}
	label := provider.LabelAt(f.driver, env, v.Label)
	return slices.DeleteFunc(keys, func(k provider.Listed) bool {
		if k.Label != label && k.VendorID != label {
			return true
		}
		return slices.ContainsFunc(f.versions, func(o key.Version) bool { return o.VendorID == k.VendorID && o.VendorID != "" })
	}), nil
}

// orphans marks the stray keys by vendor id: the first as version n itself,
// further ones under numbers of their own.
func (c *change) orphans(n key.Number, found []provider.Listed) error {
	for i, k := range found {
		v, err := c.tx.Version(c.p.version(n))
		if err != nil {
			return err
		}
		if i > 0 {
			v.ID.Number, c.put = c.cred.Next, true
			c.cred.Next++
		}
		v.State, v.Since, v.VendorID, v.Note = key.StateOrphan, c.tx.Now(), k.VendorID, "a stray of a lost answer"
		if err := c.tx.PutVersion(v); err != nil {
			return err
		}
		err = c.tx.PutRetirement(rotation.Retirement{Version: v.ID, State: key.StateOrphan, Revision: c.cred.Revision, Rotation: v.Rotation, Entered: c.tx.Now()})
		if err != nil {
			return err
		}
	}
	return nil
}

// stray looks again for what a lost answer may have made: a late create can
// appear after it was not found.
func (p *pass) stray(ctx context.Context, f *facts, v key.Version) (acted bool, again time.Time, err error) {
	since := v.Since
	if v.State == key.StateUnknown {
		if !f.rules.Can.List {
			return false, time.Time{}, nil // a person looks; nothing else can
		}
		age := f.now.Sub(since)
		if at := p.lookedAt(v).Add(min(max(age/4, 2*time.Second), time.Hour)); f.now.Before(at) {
			return false, at, nil
		}
		p.remember(p.id, -v.ID.Number, rotation.Probe{At: f.now})
	}
	var found []provider.Listed
	if f.rules.Can.List {
		if found, err = p.byLabel(ctx, f, v); err != nil {
			return false, f.now.Add(10 * time.Second), nil // the vendor is not to be asked now
		}
	}
	old := v.State == key.StateUnknown && f.now.Sub(since) > strayAge
	if len(found) == 0 && v.State == key.StateUnknown && !old {
		return true, time.Time{}, nil
	}
	err = p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "version.reconciled", Credential: p.id, Version: v.ID.Number,
		Detail: map[string]string{"found": fmt.Sprint(len(found))}}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c := &change{p: p, tx: tx}
		var err error
		if c.cred, err = tx.Credential(p.id); err != nil {
			return err
		}
		switch {
		case len(found) > 0:
			err = c.orphans(v.ID.Number, found)
		case old:
			err = c.void(v.ID.Number, "looked for it for "+strayAge.String()+" and did not find it")
		default:
			err = c.move(v.ID.Number, key.StateUnknown)
		}
		if err == nil && c.put {
			err = tx.PutCredential(c.cred)
		}
		return err
	})
	return true, time.Time{}, err
}

// lookedAt returns when this process last looked for the stray v.
func (p *pass) lookedAt(v key.Version) time.Time {
	return p.remembered(p.id)[-v.ID.Number].At
}
