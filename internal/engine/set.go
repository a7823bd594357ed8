package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

// Set takes a pasted key: never by overwriting a key in use.
func (e *Engine) Set(ctx context.Context, by access.Principal, id key.CredentialID, parts secret.Parts, origin key.Origin, why string) (SetResult, error) {
	if err := by.Check(access.Operate, id); err != nil {
		return SetResult{}, err
	}
	f, err := e.factsOf(ctx, id)
	if err != nil {
		return SetResult{}, unknownCredential(err, id)
	}
	if err := checkParts(f.credential.Call, parts); err != nil {
		return SetResult{}, err
	}
	if err := rides(f.credential.Call, parts); err != nil {
		return SetResult{}, err
	}
	probe, err := e.trial(ctx, id, f, parts)
	if err != nil {
		return SetResult{}, err
	}
	waiting := f.open != nil && f.open.State == rotation.WaitingKey
	if f.open != nil && f.open.Kind == rotation.Emergency && !waiting {
		return SetResult{}, key.WithHint(fmt.Errorf("%w: an emergency is under way (%s), and a pasted key would end its urgency", key.ErrConflict, f.open.State),
			"wait until it is over: keybaton status "+id.Service+" --env "+id.Environment+" --watch")
	}
	switch {
	case probe.Outcome == evidence.Auth && f.rules.Can.Early == 0, probe.Outcome == evidence.Auth && f.credential.Slots.Primary == 0:
		return SetResult{}, key.WithHint(fmt.Errorf("%w: the vendor refuses this key (%s); nothing was changed", key.ErrInvalid, probe.Text),
			"copy the key again, or check the probe of "+id.Service+" in keybaton.yaml")
	case probe.Outcome == evidence.Other && f.rules.Can.Probe:
		return SetResult{}, key.WithHint(fmt.Errorf("%w: the vendor could not be asked about this key (%s); nothing was changed", key.ErrUnavailable, probe.Text),
			"check the upstream of "+id.Service+", then set it again")
	}
	res := SetResult{Outcome: "unverified"}
	if f.rules.Can.Probe {
		res.Outcome = string(probe.Outcome)
	}
	vendorID := e.identify(ctx, id, f, parts)
	for range 5 { // the number may be taken meanwhile; the key is sealed to it
		err = e.store(ctx, by, id, parts, origin, why, vendorID, waiting, &res)
		if !errors.Is(err, key.ErrStale) {
			break
		}
	}
	if err != nil {
		return SetResult{}, err
	}
	e.Wake()
	return res, nil
}

// checkParts reports which parts are missing or not known.
func checkParts(c key.Call, parts secret.Parts) error {
	want := slices.Sorted(slices.Values(c.PartNames()))
	if got := parts.Names(); !slices.Equal(got, want) {
		return key.WithHint(fmt.Errorf("%w: a key of this service has the parts %v, not %v", key.ErrInvalid, want, got), "set every part and no other")
	}
	for n, v := range parts {
		if v.IsZero() {
			return fmt.Errorf("%w: part %q is empty", key.ErrInvalid, n)
		}
	}
	return nil
}

// rides reports why a key cannot be put on a request. One that logs in to
// connections need not.
func rides(c key.Call, parts secret.Parts) error {
	if c.Place.In == key.InConnection {
		return nil
	}
	p, err := call.CompilePlace(c.Place, c.PartNames())
	if err == nil {
		_, err = p.Render(parts)
	}
	if err != nil {
		return key.WithHint(fmt.Errorf("%w: this key cannot ride on a request: %v; nothing was changed", key.ErrInvalid, err), "copy the key again, all of it and nothing else")
	}
	return nil
}

// identify returns the vendor's id of a key from outside, where the parts or
// the vendor tell it; "" otherwise.
func (e *Engine) identify(ctx context.Context, id key.CredentialID, f *facts, parts secret.Parts) string {
	env, err := e.envOf(ctx, id, f)
	if err != nil {
		env.Manager = nil
	}
	switch d := f.driver.(type) {
	case provider.Identifier:
		vendorID, _ := d.Identify(env, parts)
		return vendorID
	case provider.Locator:
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		vendorID, err := d.Locate(ctx, env, parts)
		if err != nil {
			return "" // adopt names it later
		}
		return vendorID
	}
	return ""
}

// trial probes parts that are not stored.
func (e *Engine) trial(ctx context.Context, id key.CredentialID, f *facts, parts secret.Parts) (rotation.Probe, error) {
	if !f.rules.Can.Probe {
		return rotation.Probe{Outcome: evidence.Other, Text: "no probe is declared"}, nil
	}
	env, err := e.envOf(ctx, id, f)
	if err != nil {
		env.Manager = nil
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return e.outcome(ctx, f.driver, env, parts), ctx.Err()
}

// store writes a pasted key as a new version: installed, pasted into the
// waiting rotation, or as the candidate of a rotation of its own.
func (e *Engine) store(ctx context.Context, by access.Principal, id key.CredentialID, parts secret.Parts, origin key.Origin, why, vendorID string, waiting bool, res *SetResult) error {
	var n key.Number
	if err := e.cfg.Store.View(ctx, func(tx store.Tx) error {
		c, err := tx.Credential(id)
		n = c.Next
		return err
	}); err != nil {
		return err
	}
	at := key.VersionID{Credential: id, Number: n}
	sealed, print, err := e.cfg.Keyring.Seal(ctx, at, parts)
	if err != nil {
		return err
	}
	rid := hexOf(e.cfg.Rand, 8)
	return e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: "version.set", Credential: id, Version: n, Detail: map[string]string{"origin": string(origin), "why": why}}, func(tx store.Tx) error {
		c, err := tx.Credential(id)
		if err != nil {
			return err
		}
		if c.Next != n {
			return key.ErrStale
		}
		vs, err := tx.Versions(id)
		if err != nil {
			return err
		}
		for _, v := range vs {
			if v.Fingerprint == print && v.State == key.StateRetired {
				return e.revive(tx, by, id, c, v, rid, why, res)
			}
			if v.Fingerprint == print && v.State != key.StateVoid {
				return key.WithHint(fmt.Errorf("%w: this key is %s already (%s)", key.ErrExists, v.ID.Number, v.State), "issue a new key at the vendor and set that one")
			}
		}
		v := key.Version{ID: at, State: key.StateCandidate, Origin: origin, VendorID: vendorID, Fingerprint: print, Created: tx.Now(), Since: tx.Now()}
		if res.Outcome == string(evidence.OK) {
			v.Proven = tx.Now()
		}
		c.Next++
		res.Version = n
		r, err := tx.OpenRotation(id)
		switch {
		case c.Slots.Primary == 0 && isNotFound(err):
			v.State, c.Slots.Primary, c.Rotated, res.Installed = key.StatePrimary, n, tx.Now(), true
			if _, err := tx.Touch(id); err != nil {
				return err
			}
		case err == nil && r.State == rotation.WaitingKey && waiting:
			if r, err = rotation.Apply(r, rotation.Event{Kind: rotation.Pasted, At: tx.Now(), To: n, Why: "pasted by " + by.Name}); err != nil {
				return err
			}
			v.Rotation, res.Rotation, c.Slots.Candidate = r.ID, r.ID, n
			if err := tx.PutRotation(r); err != nil {
				return err
			}
		case err == nil || isNotFound(err):
			if err := supersede(tx, id, tx.Now()); err != nil {
				return err
			}
			if c, err = tx.Credential(id); err != nil {
				return err
			}
			c.Next = n + 1
			r = rotation.New(rid, c, rotation.Set, by.Name, why, tx.Now())
			r.State, r.To = rotation.Proving, n
			v.Rotation, res.Rotation, c.Slots.Candidate = rid, rid, n
			if err := tx.PutRotation(r); err != nil {
				return err
			}
		default:
			return err
		}
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		if err := tx.PutSealed(at, sealed); err != nil {
			return err
		}
		if err := tx.PutCredential(c); err != nil {
			return err
		}
		return tx.Due(leaseKind, id.String(), tx.Now())
	})
}

// revive takes a key back that is on its way out and was pasted again: its
// retirement is withdrawn, and a rotation brings it in like any other.
func (e *Engine) revive(tx store.Tx, by access.Principal, id key.CredentialID, c key.Credential, v key.Version, rid, why string, res *SetResult) error {
	ret, err := tx.Retirement(v.ID)
	if err != nil {
		return err
	}
	if ret, err = rotation.ApplyRetire(ret, rotation.Event{Kind: rotation.Withdrawn, At: tx.Now()}); err != nil {
		return err
	}
	if err := tx.PutRetirement(ret); err != nil {
		return err
	}
	if err := supersede(tx, id, tx.Now()); err != nil {
		return err
	}
	if c, err = tx.Credential(id); err != nil {
		return err
	}
	if c.Slots.Primary == 0 {
		return fmt.Errorf("%w: there is no primary that %s could follow", key.ErrConflict, v.ID.Number)
	}
	r := rotation.New(rid, c, rotation.Set, by.Name, why, tx.Now())
	r.State, r.To = rotation.Proving, v.ID.Number
	c.Slots.Candidate = v.ID.Number
	v.State, v.Since, v.Rotation = key.StateCandidate, tx.Now(), rid
	res.Version, res.Rotation = v.ID.Number, rid
	if err := tx.PutRotation(r); err != nil {
		return err
	}
	if err := tx.PutVersion(v); err != nil {
		return err
	}
	if err := tx.PutCredential(c); err != nil {
		return err
	}
	return tx.Due(leaseKind, id.String(), tx.Now())
}
