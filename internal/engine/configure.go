package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// Configure changes what is managed, whole or not at all. Everything is checked
// before anything is written.
func (e *Engine) Configure(ctx context.Context, by access.Principal, cfg Configuration) error {
	if err := by.Check(access.Manage, key.CredentialID{}); err != nil {
		return err
	}
	for _, p := range cfg.Policies {
		if err := p.Validate(); err != nil {
			return err
		}
	}
	err := e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: "configuration.applied", Detail: map[string]string{
		"services": fmt.Sprint(len(cfg.Services)), "credentials": fmt.Sprint(len(cfg.Credentials)), "policies": fmt.Sprint(len(cfg.Policies)),
		"deleted": fmt.Sprint(len(cfg.DeleteServices) + len(cfg.DeleteCredentials) + len(cfg.DeletePolicies))}}, func(tx store.Tx) error {
		for _, p := range cfg.Policies {
			if err := tx.PutPolicy(p); err != nil {
				return err
			}
		}
		for _, s := range cfg.Services {
			if _, err := e.cfg.Providers.Driver(s.Provider); err != nil {
				return fmt.Errorf("service %s: %w", s.Name, err)
			}
			if err := tx.PutService(s); err != nil {
				return err
			}
		}
		for _, c := range cfg.Credentials {
			if err := e.declare(tx, c); err != nil {
				return err
			}
		}
		for _, id := range cfg.DeleteCredentials {
			if err := tx.DeleteCredential(id); err != nil {
				if errors.Is(err, key.ErrConflict) {
					return key.WithHint(fmt.Errorf("deleting %s: %w", id, err), "its keys still live at the vendor; rotate or revoke them first")
				}
				return err
			}
			if _, err := tx.TouchAll(); err != nil {
				return err
			}
		}
		for _, n := range cfg.DeleteServices {
			if err := tx.DeleteService(n); err != nil {
				return fmt.Errorf("deleting service %s: %w", n, err)
			}
		}
		for _, n := range cfg.DeletePolicies {
			if err := tx.DeletePolicy(n); err != nil {
				return fmt.Errorf("deleting policy %s: %w", n, err)
			}
		}
		// A service may have changed under credentials that were not listed.
		all, err := tx.Credentials()
		if err != nil {
			return err
		}
		written, listed := map[string]bool{}, map[key.CredentialID]bool{}
		for _, s := range cfg.Services {
			written[s.Name] = true
		}
		for _, c := range cfg.Credentials {
			listed[c.ID] = true
		}
		for _, c := range all {
			if c.Policy != "" {
				if _, err := tx.Policy(c.Policy); err != nil {
					return key.WithHint(fmt.Errorf("%w: credential %s follows the policy %q, which would be gone", key.ErrConflict, c.ID, c.Policy), "keep the policy, or give the credential another one")
				}
			}
			if written[c.ID.Service] && !listed[c.ID] {
				if err := e.declare(tx, c); err != nil {
					return err
				}
			}
		}
		if cfg.DryRun {
			return errDryRun // nothing is committed
		}
		return nil
	})
	if cfg.DryRun && errors.Is(err, errDryRun) {
		return nil
	}
	if err == nil {
		e.Wake()
	}
	return err
}

var errDryRun = errors.New("nothing is changed")

// declare writes what is said of the credential c, and keeps its slots.
func (e *Engine) declare(tx store.Tx, c key.Credential) error {
	s, err := tx.Service(c.ID.Service)
	if err != nil {
		return fmt.Errorf("credential %s: %w", c.ID, err)
	}
	if c.Policy != "" {
		if _, err := tx.Policy(c.Policy); err != nil {
			return fmt.Errorf("credential %s: policy %q: %w", c.ID, c.Policy, err)
		}
	}
	have, err := tx.Credential(c.ID)
	switch {
	case isNotFound(err):
		rev, err := tx.Revision()
		if err != nil {
			return err
		}
		have = key.Credential{ID: c.ID, Next: 1, Created: tx.Now(), Epoch: rev.Epoch}
	case err != nil:
		return err
	}
	have.Policy, have.Upstream, have.Params = c.Policy, c.Upstream, maps.Clone(c.Params)
	if have.Call, err = e.resolve(s, have); err != nil {
		return fmt.Errorf("credential %s: %w", c.ID, err)
	}
	if err := tx.PutCredential(have); err != nil {
		return err
	}
	if _, err := tx.Touch(c.ID); err != nil {
		return err
	}
	return tx.Due(leaseKind, c.ID.String(), tx.Now())
}

// resolve returns how the credential is called: the provider's way, under what
// the service and the credential say.
func (e *Engine) resolve(s key.Service, c key.Credential) (key.Call, error) {
	d, err := e.cfg.Providers.Driver(s.Provider)
	if err != nil {
		return key.Call{}, err
	}
	info := d.Describe(provider.Env{Transport: e.cfg.Transport, Params: paramsOf(s, c), Call: s.Call})
	for _, p := range info.Params {
		if p.Required && p.Default == "" && paramsOf(s, c)[p.Name] == "" {
			return key.Call{}, key.WithHint(fmt.Errorf("%w: provider %s needs the param %q", key.ErrInvalid, s.Provider, p.Name), "add it under params: "+p.Help)
		}
	}
	call := info.Call.Over(s.Call)
	if c.Upstream != "" {
		call.Upstream = c.Upstream
	}
	if info.Connection {
		return key.Call{Place: key.Place{In: key.InConnection}, Parts: call.Parts, Early: max(call.Early, info.Abilities.Early)}, nil
	}
	for name, v := range paramsOf(s, c) { // the vendor's key API may be elsewhere
		if err := key.CheckUpstream(v, call.Insecure); err != nil {
			return key.Call{}, fmt.Errorf("param %s: %w", name, err)
		}
	}
	if call.Upstream == "" {
		return key.Call{}, key.WithHint(fmt.Errorf("%w: there is no upstream", key.ErrInvalid), "add upstream: https://… to the service")
	}
	if err := key.CheckUpstream(call.Upstream, call.Insecure); err != nil {
		return key.Call{}, err
	}
	if call.Place.In == "" {
		call.Place = key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}
	}
	call.Early = max(call.Early, info.Abilities.Early)
	return call, nil
}

// plan begins what is due by itself: a rotation by schedule, or a spare.
func (p *pass) plan(ctx context.Context, f *facts) (acted bool, again time.Time, err error) {
	c := f.credential
	if c.Slots.Primary == 0 {
		return false, time.Time{}, nil
	}
	if bridged(f, f.last) {
		return true, time.Time{}, p.unbridge(ctx, f.last)
	}
	if c.Slots.Fallback != 0 && !f.policy.Spare {
		return true, time.Time{}, p.clear(ctx, f)
	}
	if at := f.policy.Due(c.ID, c.Rotated); !at.IsZero() {
		if f.last != nil && f.last.State != rotation.Done && f.last.Kind != rotation.Spare && f.last.Ended.After(c.Rotated) {
			// It was tried and taken back: not again at once.
			pause := 24 * time.Hour
			if f.policy.Every > 0 {
				pause = min(pause, f.policy.Every)
			}
			if t := f.last.Ended.Add(pause); t.After(at) {
				at = t
			}
		}
		if !f.now.Before(at) {
			at = f.policy.Fit(f.now) // it may be late, and the window closed
		}
		if !f.now.Before(at) {
			_, err := p.begin(ctx, access.System, c.ID, rotation.Scheduled, RotateOptions{Why: "due by policy " + policyName(c)})
			return true, time.Time{}, err
		}
		again = at
	}
	if !f.policy.Spare || c.Slots.Fallback != 0 || !f.rules.Can.Issue || !f.rules.Can.Revoke || len(f.retirements) > 0 && f.rules.Can.Max > 0 {
		return false, again, nil
	}
	if f.last != nil && f.last.Kind == rotation.Spare && f.last.State != rotation.Done && f.now.Sub(f.last.Ended) < time.Hour {
		return false, f.last.Ended.Add(time.Hour), nil // it did not work just now
	}
	if n := living(f); f.rules.Can.Max > 0 && n >= f.rules.Can.Max {
		return false, again, nil
	}
	_, err = p.begin(ctx, access.System, c.ID, rotation.Spare, RotateOptions{Why: "the policy keeps a warm spare"})
	return true, time.Time{}, err
}

// bridged reports whether the primary is a spare that took over in the emergency
// r. Whoever held the leaked key held it too: it is a bridge, and is replaced.
func bridged(f *facts, r *rotation.Rotation) bool {
	return r != nil && r.Kind == rotation.Emergency && r.Bridge != 0 && r.Bridge == f.credential.Slots.Primary && r.State == rotation.Done
}

// unbridge begins the emergency that replaces the bridge of r.
func (p *pass) unbridge(ctx context.Context, r *rotation.Rotation) error {
	_, err := p.begin(ctx, access.System, p.id, rotation.Emergency, RotateOptions{Emergency: true, Leaked: r.Bridge,
		Why: fmt.Sprintf("%s took over for the leaked %s and was handed to the same consumers", r.Bridge, r.Leaked)})
	return err
}

// clear begins the way out of a fallback that nobody wants any more: the
// rotation that left it there was superseded or taken back, or the policy keeps
// no spare now. It waits to be unused like any old key.
func (p *pass) clear(ctx context.Context, f *facts) error {
	why := fmt.Sprintf("%s was left in the fallback slot, and the policy keeps no spare", f.credential.Slots.Fallback)
	rid := hexOf(p.cfg.Rand, 8)
	return p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "rotation.begun", Credential: p.id, Rotation: rid, Detail: map[string]string{"why": why}}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c, err := tx.Credential(p.id)
		if err != nil || c.Slots != f.credential.Slots {
			return err // somebody was faster
		}
		r := rotation.Clear(rid, c, access.System.Name, why, tx.Now())
		if r.Revision, err = tx.Touch(p.id); err != nil {
			return err
		}
		r.Marks = rotation.Marks(p.version(r.To), f.rules.Ledger)
		return tx.PutRotation(r)
	})
}

func policyName(c key.Credential) string {
	if c.Policy == "" {
		return "default"
	}
	return c.Policy
}

func living(f *facts) (n int) {
	for _, v := range f.versions {
		if !v.State.Terminal() {
			n++
		}
	}
	return n
}

// Refresh resolves every credential anew, after an upgrade may have changed the
// recipes; only those that differ are written. It begins the work that is due.
func (e *Engine) Refresh(ctx context.Context) error {
	var changed []key.Credential
	var due []key.CredentialID // those that a restore has put in doubt
	read := func(tx store.Tx) error {
		changed, due = nil, nil
		rev, err := tx.Revision()
		if err != nil {
			return err
		}
		services, err := tx.Services()
		if err != nil {
			return err
		}
		byName := map[string]key.Service{}
		for _, s := range services {
			byName[s.Name] = s
		}
		all, err := tx.Credentials()
		if err != nil {
			return err
		}
		for _, c := range all {
			if !c.Settled(rev.Epoch) {
				due = append(due, c.ID)
			}
			call, err := e.resolve(byName[c.ID.Service], c)
			if err != nil {
				e.cfg.Event("resolving", c.ID, err)
				continue
			}
			if !reflect.DeepEqual(call, c.Call) {
				c.Call = call
				changed = append(changed, c)
			}
		}
		return nil
	}
	err := e.cfg.Store.View(ctx, read)
	if err == nil && len(due) > 0 {
		err = e.cfg.Store.Observe(ctx, func(tx store.Tx) error {
			for _, id := range due {
				if err := tx.Due(leaseKind, id.String(), tx.Now()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil || len(changed) == 0 {
		return err
	}
	why := audit.Entry{Actor: access.System.Name, Action: "configuration.resolved", Detail: map[string]string{"credentials": fmt.Sprint(len(changed))}}
	return e.cfg.Store.Update(ctx, why, func(tx store.Tx) error {
		if err := read(tx); err != nil { // anew: another server may have applied a file meanwhile
			return err
		}
		for _, c := range changed {
			if err := tx.PutCredential(c); err != nil {
				return err
			}
			if _, err := tx.Touch(c.ID); err != nil {
				return err
			}
		}
		return nil
	})
}
