package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// Rotate begins a rotation. One credential has one open rotation: only an
// emergency takes the place of another.
func (e *Engine) Rotate(ctx context.Context, by access.Principal, id key.CredentialID, o RotateOptions) (rotation.Rotation, error) {
	if err := by.Check(access.Operate, id); err != nil {
		return rotation.Rotation{}, err
	}
	f, err := e.factsOf(ctx, id)
	if err != nil {
		return rotation.Rotation{}, unknownCredential(err, id)
	}
	if refused := refusal(f, o); refused != nil {
		return rotation.Rotation{}, refused
	}
	if err := e.forsaken(ctx, id, f, o); err != nil {
		return rotation.Rotation{}, err
	}
	kind := rotation.Manual
	if o.Emergency {
		kind = rotation.Emergency
	}
	return e.begin(ctx, by, id, kind, o)
}

// refusal says why a rotation cannot begin now.
func refusal(f *facts, o RotateOptions) error {
	id := f.credential.ID
	// While the old key is only on its way out, its retirement goes on by itself.
	if where := " " + id.Service + " --env " + id.Environment; f.open != nil && !o.Emergency && f.open.State != rotation.Retiring {
		return key.WithHint(fmt.Errorf("%w: %s is being rotated already (%s, %s)", key.ErrConflict, id, f.open.ID, f.open.State),
			"watch it: keybaton status"+where+" --watch; take it back: keybaton rollback"+where+"; or replace the primary whatever it does: keybaton rotate"+where+" --emergency")
	}
	if f.service.Manager == "" && f.info.Manager == "required" {
		return key.WithHint(fmt.Errorf("%w: provider %s needs a manager key and service %s names none", key.ErrConflict, f.service.Provider, id.Service),
			"add manager: SERVICE to "+id.Service+" in keybaton.yaml and apply it")
	}
	if o.Leaked != 0 {
		v, ok := f.rules.Versions[o.Leaked]
		if !ok {
			return fmt.Errorf("%w: %s has no version %s", key.ErrNotFound, id, o.Leaked)
		}
		if v.State.Terminal() {
			return fmt.Errorf("%w: %s is %s already", key.ErrConflict, o.Leaked, v.State)
		}
		if v.State == key.StateIntent || v.State == key.StateUnknown {
			return key.WithHint(fmt.Errorf("%w: nobody knows whether %s exists at the vendor; it is looked for, and revoked when it is found", key.ErrConflict, o.Leaked),
				"name the leaked version, or leave --leaked out for the primary")
		}
	}
	return nil
}

// forsaken refuses a rotation that would give up the way back to a key that
// works, while the primary does not.
func (e *Engine) forsaken(ctx context.Context, id key.CredentialID, f *facts, o RotateOptions) error {
	if f.open == nil || f.open.State != rotation.Retiring || o.Emergency || !f.rules.Can.Probe || f.credential.Slots.Primary == 0 {
		return nil
	}
	switch f.rules.Versions[f.open.From].State {
	case key.StateRetired, key.StateDisabling, key.StateDisabled:
	default:
		return nil
	}
	parts, err := e.openAt(ctx, key.VersionID{Credential: id, Number: f.credential.Slots.Primary})
	if err != nil {
		return err
	}
	p, err := e.trial(ctx, id, f, parts)
	if err != nil || p.Outcome != evidence.Auth {
		return err
	}
	where := id.Service + " --env " + id.Environment
	return key.WithHint(fmt.Errorf("%w: the vendor refuses the primary %s (%s), and %s, which it replaced, is not ended yet", key.ErrConflict, f.credential.Slots.Primary, p.Text, f.open.From),
		"go back to it: keybaton rollback "+where+"; or replace the primary all the same: keybaton rotate "+where+" --emergency")
}

func unknownCredential(err error, id key.CredentialID) error {
	if !isNotFound(err) {
		return err
	}
	return key.WithHint(fmt.Errorf("%w: credential %s", key.ErrNotFound, id), "see what there is: keybaton list; declare it in keybaton.yaml and apply it")
}

// begin records a new rotation; an emergency supersedes an open one in the
// same transaction.
func (e *Engine) begin(ctx context.Context, by access.Principal, id key.CredentialID, kind rotation.Kind, o RotateOptions) (rotation.Rotation, error) {
	var r rotation.Rotation
	rid := hexOf(e.cfg.Rand, 8)
	err := e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: "rotation.begun", Credential: id, Rotation: rid,
		Detail: map[string]string{"kind": string(kind), "why": o.Why}}, func(tx store.Tx) error {
		open, err := tx.OpenRotation(id)
		if err != nil && !isNotFound(err) {
			return err
		}
		if err == nil && (kind == rotation.Emergency || open.State == rotation.Retiring) {
			if err := supersede(tx, id, tx.Now()); err != nil {
				return err
			}
		}
		c, err := tx.Credential(id)
		if err != nil {
			return err
		}
		if c.Slots.Primary == 0 && kind != rotation.Set {
			kind = rotation.First
		}
		r = rotation.New(rid, c, kind, by.Name, o.Why, tx.Now())
		if kind == rotation.Emergency {
			if err := e.leak(tx, &c, &r, o.Leaked); err != nil {
				return err
			}
			if r.State.Ended() {
				if err := tx.PutCredential(c); err != nil {
					return err
				}
			}
		}
		if err := tx.PutRotation(r); err != nil {
			return fmt.Errorf("beginning a rotation: %w", err)
		}
		return tx.Due(leaseKind, id.String(), tx.Now())
	})
	if err != nil {
		return r, err
	}
	e.Wake()
	return r, nil
}

// leak prepares an emergency. A leaked primary is replaced; another leaked
// version leaves its slot at once and its retirement becomes urgent, without a
// replacement.
func (e *Engine) leak(tx store.Tx, c *key.Credential, r *rotation.Rotation, n key.Number) error {
	if n == 0 {
		n = c.Slots.Primary
	}
	r.Leaked = n
	if n == c.Slots.Primary {
		return nil
	}
	pol, err := policyOf(tx, *c)
	if err != nil {
		return err
	}
	v, err := tx.Version(key.VersionID{Credential: c.ID, Number: n})
	if err != nil {
		return err
	}
	rev := c.Revision
	if c.Slots.Has(n) {
		if rev, err = tx.Touch(c.ID); err != nil {
			return err
		}
		if c.Slots.Fallback == n {
			c.Slots.Fallback = 0
		}
		if c.Slots.Candidate == n {
			c.Slots.Candidate = 0
		}
	}
	ret, err := tx.Retirement(v.ID)
	if isNotFound(err) {
		v.State, v.Since = key.StateRetired, tx.Now()
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		ret = rotation.Retirement{Version: v.ID, State: key.StateRetired, Revision: rev, Rotation: r.ID, Entered: tx.Now()}
	} else if err != nil {
		return err
	}
	ret.Emergency, ret.Deadline, ret.Retry = true, tx.Now().Add(pol.Deadline), time.Time{}
	if err := tx.PutRetirement(ret); err != nil {
		return err
	}
	r.State, r.Ended, r.Proof = rotation.Done, tx.Now(), "retiring"
	return nil
}

// supersede ends the open rotation of id, if there is one. Its new key stays
// where it is when it is in a slot, and retires otherwise.
func supersede(tx store.Tx, id key.CredentialID, now time.Time) error {
	open, err := tx.OpenRotation(id)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if open, err = rotation.Apply(open, rotation.Event{Kind: rotation.Replaced, At: now}); err != nil {
		return err
	}
	if err := tx.PutRotation(open); err != nil {
		return err
	}
	c, err := tx.Credential(id)
	if err != nil {
		return err
	}
	if n := c.Slots.Candidate; n != 0 {
		v, err := tx.Version(key.VersionID{Credential: id, Number: n})
		if err != nil {
			return err
		}
		v.State, v.Since = key.StateRetired, now
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		if err := tx.PutRetirement(rotation.Retirement{Version: v.ID, State: key.StateRetired, Revision: c.Revision, Rotation: open.ID, Entered: now}); err != nil {
			return err
		}
		c.Slots.Candidate = 0
		return tx.PutCredential(c)
	}
	return nil
}

// edit changes the open rotation of id by fn, in one transaction.
func (e *Engine) edit(ctx context.Context, by access.Principal, id key.CredentialID, action string, fn func(tx store.Tx, r rotation.Rotation) (rotation.Rotation, error)) (rotation.Rotation, error) {
	var r rotation.Rotation
	if err := by.Check(access.Operate, id); err != nil {
		return r, err
	}
	err := e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: action, Credential: id}, func(tx store.Tx) error {
		if _, err := tx.Credential(id); err != nil {
			return unknownCredential(err, id)
		}
		open, err := tx.OpenRotation(id)
		if isNotFound(err) {
			return key.WithHint(fmt.Errorf("%w: %s is not being rotated", key.ErrConflict, id), "begin a rotation: keybaton rotate "+id.Service+" --env "+id.Environment)
		}
		if err != nil {
			return err
		}
		if r, err = fn(tx, open); err != nil {
			return err
		}
		if err := tx.PutRotation(r); err != nil {
			return err
		}
		return tx.Due(leaseKind, id.String(), tx.Now())
	})
	if err == nil {
		e.Wake()
	}
	return r, err
}

// Pause keeps the open rotation where it is. What the vendor was asked for
// already is still recorded.
func (e *Engine) Pause(ctx context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error) {
	return e.edit(ctx, by, id, "rotation.paused", func(_ store.Tx, r rotation.Rotation) (rotation.Rotation, error) {
		r.Paused = true
		return r, nil
	})
}

// Resume lets a paused or stopped rotation go on.
func (e *Engine) Resume(ctx context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error) {
	return e.edit(ctx, by, id, "rotation.resumed", func(tx store.Tx, r rotation.Rotation) (rotation.Rotation, error) {
		r.Paused, r.Retry = false, time.Time{}
		if r.State != rotation.Stopped {
			r.Gate = rotation.Gate{Reason: "resumed by " + by.Name} // until it is looked at again
			return r, nil
		}
		if r.Resume == rotation.Issuing || r.Resume == rotation.Unknown {
			r.Resume = rotation.Planned
		}
		return rotation.Apply(r, rotation.Event{Kind: rotation.Resumed, At: tx.Now(), By: by.Name})
	})
}

// Approve opens the gate that waits for a person: of the open rotation, and of
// retirements that ask for one. What gates check by themselves stays checked.
func (e *Engine) Approve(ctx context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error) {
	var r rotation.Rotation
	if err := by.Check(access.Operate, id); err != nil {
		return r, err
	}
	err := e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: "rotation.approved", Credential: id}, func(tx store.Tx) error {
		if _, err := tx.Credential(id); err != nil {
			return unknownCredential(err, id)
		}
		n, err := e.vouch(tx, id)
		if err != nil {
			return err
		}
		open, err := tx.OpenRotation(id)
		if err == nil {
			r = open
			if open.Gate.Person && open.State.Step() != "" && open.State != rotation.WaitingKey && open.State != rotation.Retiring {
				if r.Approved == nil {
					r.Approved = map[rotation.Step]string{}
				}
				r.Approved[open.State.Step()] = by.Name
				r.Gate = rotation.Gate{Reason: "approved by " + by.Name} // until it is looked at again
				n++
				if err := tx.PutRotation(r); err != nil {
					return err
				}
			}
		} else if !isNotFound(err) {
			return err
		}
		rets, err := tx.Retirements(id)
		if err != nil {
			return err
		}
		for _, ret := range rets {
			if q := ret.Gate.Asks; ret.Gate.Person && q != "" && ret.Approved[q] == "" {
				ret.Approved = answered(ret.Approved, by.Name, q)
				ret.Gate = rotation.Gate{Reason: "approved by " + by.Name}
				n++
				if err := tx.PutRetirement(ret); err != nil {
					return err
				}
			}
		}
		if n == 0 {
			return key.WithHint(fmt.Errorf("%w: nothing of %s waits for an approval", key.ErrConflict, id), "see what it waits for: keybaton status "+id.Service+" --env "+id.Environment)
		}
		return tx.Due(leaseKind, id.String(), tx.Now())
	})
	if err == nil {
		e.Wake()
	}
	return r, err
}

// answered returns a with the questions answered by who.
func answered(a rotation.Answers, who string, qs ...rotation.Question) rotation.Answers {
	out := maps.Clone(a)
	if out == nil {
		out = rotation.Answers{}
	}
	for _, q := range qs {
		out[q] = who
	}
	return out
}

// Rollback takes the open rotation back to the old key, which is probed first:
// nothing is rolled back to a dead key.
func (e *Engine) Rollback(ctx context.Context, by access.Principal, id key.CredentialID, why string) (rotation.Rotation, error) {
	if err := by.Check(access.Operate, id); err != nil {
		return rotation.Rotation{}, err
	}
	f, err := e.factsOf(ctx, id)
	if err != nil {
		return rotation.Rotation{}, unknownCredential(err, id)
	}
	if f.open == nil {
		return rotation.Rotation{}, key.WithHint(fmt.Errorf("%w: %s is not being rotated, so there is nothing to take back", key.ErrConflict, id),
			"to replace the primary: keybaton rotate "+id.Service+" --env "+id.Environment)
	}
	old := f.rules.Versions[f.open.From]
	switch old.State {
	case key.StateRevoking, key.StateRevoked, key.StateUnproven:
		return rotation.Rotation{}, key.WithHint(fmt.Errorf("%w: the old key %s is %s; from there is no way back", key.ErrConflict, f.open.From, old.State),
			"replace the primary instead: keybaton rotate "+id.Service+" --env "+id.Environment)
	}
	if f.credential.Slots.Primary == f.open.To && f.open.To != 0 && f.rules.Can.Probe && old.State != key.StateDisabled && old.State != key.StateDisabling {
		parts, err := e.openAt(ctx, old.ID)
		if err != nil {
			return rotation.Rotation{}, err
		}
		p, err := e.trial(ctx, id, f, parts)
		if err != nil {
			return rotation.Rotation{}, err
		}
		if p.Outcome == evidence.Auth {
			return rotation.Rotation{}, key.WithHint(fmt.Errorf("%w: the old key %s is dead (%s), so nothing is rolled back to it", key.ErrConflict, f.open.From, p.Text),
				"let the rotation go on, or replace the primary: keybaton rotate "+id.Service+" --env "+id.Environment+" --emergency")
		}
	}
	if why == "" {
		why = "asked by " + by.Name
	}
	return e.edit(ctx, by, id, "rotation.rollback asked", func(tx store.Tx, r rotation.Rotation) (rotation.Rotation, error) {
		if r.From != 0 {
			v, err := tx.Version(key.VersionID{Credential: id, Number: r.From})
			if err != nil {
				return r, err
			}
			if v.State == key.StateRevoking || v.State.Terminal() {
				return r, fmt.Errorf("%w: the old key %s is %s; from there is no way back", key.ErrConflict, r.From, v.State)
			}
		}
		r.Paused = false
		return rotation.Apply(r, rotation.Event{Kind: rotation.Back, At: tx.Now(), By: by.Name, Why: why})
	})
}

// Revoke ends one version out of turn. A version in a slot is refused.
func (e *Engine) Revoke(ctx context.Context, by access.Principal, id key.VersionID) error {
	if err := by.Check(access.Operate, id.Credential); err != nil {
		return err
	}
	err := e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: "version.revoke asked", Credential: id.Credential, Version: id.Number}, func(tx store.Tx) error {
		c, err := tx.Credential(id.Credential)
		if err != nil {
			return unknownCredential(err, id.Credential)
		}
		v, err := tx.Version(id)
		if err != nil {
			return key.WithHint(fmt.Errorf("%w: version %s", key.ErrNotFound, id), "see its versions: keybaton status "+id.Credential.Service+" --env "+id.Credential.Environment)
		}
		next := "replace it first: keybaton rotate " + id.Credential.Service + " --env " + id.Credential.Environment
		switch {
		case c.Slots.Primary == id.Number:
			return key.WithHint(fmt.Errorf("%w: %s is the live primary; revoking it would fail every call", key.ErrConflict, id.Number), next)
		case c.Slots.Has(id.Number):
			return key.WithHint(fmt.Errorf("%w: %s is the %s and consumers hold it", key.ErrConflict, id.Number, v.State), next)
		case v.State.Terminal():
			return fmt.Errorf("%w: %s is %s already", key.ErrConflict, id.Number, v.State)
		}
		r, err := tx.Retirement(id)
		if err != nil {
			return err
		}
		r.Approved, r.Retry = answered(r.Approved, by.Name, rotation.AskReaders, rotation.AskCopies), time.Time{}
		if err := tx.PutRetirement(r); err != nil {
			return err
		}
		return tx.Due(leaseKind, id.Credential.String(), tx.Now())
	})
	if err == nil {
		e.Wake()
	}
	return err
}

// Forget waives every hold of a consumer and drops what is known of its
// processes. A person says by it that the consumer is gone: what it may still
// hold is not waited for any more. Processes of it that are heard from keep what
// they hold.
func (e *Engine) Forget(ctx context.Context, by access.Principal, consumer string) (holds int, err error) {
	if err := by.Check(access.Manage, key.CredentialID{}); err != nil {
		return 0, err
	}
	err = e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: "consumer.forgotten", Detail: map[string]string{"consumer": consumer}}, func(tx store.Tx) error {
		holds = 0
		hs, err := tx.HoldsOf(consumer)
		if err != nil {
			return err
		}
		bs, err := tx.Boots(consumer)
		if err != nil {
			return err
		}
		alive := map[string]bool{}
		var heard time.Duration
		for _, b := range bs {
			if ago := tx.Now().Sub(b.Seen); b.Kind.Acknowledges() && ago < evidence.SilentAfter {
				alive[b.Boot], heard = true, ago
			}
		}
		hs = slices.DeleteFunc(hs, func(h evidence.Hold) bool { return alive[h.Boot] })
		bs = slices.DeleteFunc(bs, func(b evidence.Boot) bool { return alive[b.Boot] })
		if len(hs)+len(bs) == 0 && len(alive) > 0 {
			return key.WithHint(fmt.Errorf("%w: %s is alive (heard from %s ago); what it holds it uses", key.ErrConflict, consumer, heard.Round(time.Second)),
				fmt.Sprintf("stop it first, then forget it after %s of silence", evidence.SilentAfter))
		}
		if len(hs)+len(bs) == 0 {
			return key.WithHint(fmt.Errorf("%w: consumer %q holds nothing", key.ErrNotFound, consumer), "see them: keybaton consumer list")
		}
		for _, h := range hs {
			if err := tx.DeleteHold(h.Consumer, h.Boot, h.Version); err != nil {
				return err
			}
			holds++
			// Should it come back after all, it is given the key anew, and the hold
			// with it.
			if _, err := tx.Touch(h.Version.Credential); err != nil && !isNotFound(err) {
				return err
			}
			if err := tx.Due(leaseKind, h.Version.Credential.String(), tx.Now()); err != nil {
				return err
			}
		}
		for _, b := range bs {
			if err := tx.DeleteBoot(b.Consumer, b.Boot); err != nil {
				return err
			}
		}
		_, err = tx.TouchAll()
		return err
	})
	if err == nil {
		e.cfg.Forgot(consumer)
		e.Wake()
	}
	return holds, err
}
