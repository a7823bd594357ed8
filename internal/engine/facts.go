package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// facts are one consistent view of a credential, and how its vendor is called.
type facts struct {
	now         time.Time
	epoch       int64 // of the store
	service     key.Service
	credential  key.Credential
	policy      rotation.Policy
	versions    []key.Version
	open        *rotation.Rotation
	retirements []rotation.Retirement // not ended
	last        *rotation.Rotation    // the newest that has ended
	rules       rotation.Facts
	driver      provider.Driver
	info        provider.Info
	params      map[string]string
}

// facts gathers the facts of p's credential.
func (p *pass) facts(ctx context.Context) (*facts, error) {
	f, err := p.factsOf(ctx, p.id)
	if err != nil {
		return nil, err
	}
	f.rules.Intent = p.intent
	return f, nil
}

func (e *Engine) factsOf(ctx context.Context, id key.CredentialID) (*facts, error) {
	f := &facts{}
	err := e.cfg.Store.View(ctx, func(tx store.Tx) error { return e.read(tx, id, f) })
	if err != nil {
		return nil, err
	}
	return f, nil
}

// read fills f from tx.
func (e *Engine) read(tx store.Tx, id key.CredentialID, f *facts) (err error) {
	*f = facts{now: tx.Now()}
	rev, err := tx.Revision()
	if err != nil {
		return err
	}
	f.epoch = rev.Epoch
	if f.credential, err = tx.Credential(id); err != nil {
		return err
	}
	// What a credential needs and is not there is not a credential that is gone.
	if f.service, err = tx.Service(id.Service); err != nil {
		return fmt.Errorf("%w: the service of %s cannot be read: %v", key.ErrConflict, id, err)
	}
	if f.policy, err = policyOf(tx, f.credential); err != nil {
		return fmt.Errorf("%w: the policy of %s cannot be read: %v", key.ErrConflict, id, err)
	}
	if f.versions, err = tx.Versions(id); err != nil {
		return err
	}
	if f.retirements, err = tx.Retirements(id); err != nil {
		return err
	}
	rs, err := tx.Rotations(id, 2)
	if err != nil {
		return err
	}
	for i := range rs {
		if !rs[i].State.Ended() {
			f.open = &rs[i]
		} else if f.last == nil {
			f.last = &rs[i]
		}
	}
	var l evidence.Ledger
	if l.Holds, err = tx.Holds(id); err != nil {
		return err
	}
	var names []string
	for _, h := range l.Holds {
		if !slices.Contains(names, h.Consumer) {
			names = append(names, h.Consumer)
		}
	}
	if len(names) > 0 {
		if l.Boots, err = tx.Boots(names...); err != nil {
			return err
		}
	}
	if f.driver, err = e.cfg.Providers.Driver(f.service.Provider); err != nil {
		return fmt.Errorf("%w: %v", key.ErrConflict, err)
	}
	f.params = paramsOf(f.service, f.credential)
	f.info = f.driver.Describe(provider.Env{Transport: e.cfg.Transport, Params: f.params, Call: f.credential.Call})
	can := f.info.Abilities
	can.Spacing = max(can.Spacing, 10*time.Millisecond)
	if f.service.Manager == "" && f.info.Manager == "required" {
		can.Issue, can.Revoke, can.List, can.Disable = false, false, false, false
	}
	f.rules = rotation.Facts{Policy: f.policy, Can: can, Slots: f.credential.Slots, Ledger: l, Versions: map[key.Number]key.Version{},
		Retirements: map[key.Number]rotation.Retirement{}, Probes: e.remembered(id), Sights: e.sighted(id)}
	for _, v := range f.versions {
		f.rules.Versions[v.ID.Number] = v
	}
	for _, r := range f.retirements {
		f.rules.Retirements[r.Version.Number] = r
	}
	return nil
}

// policyOf returns the policy of c, with defaults.
func policyOf(tx store.Tx, c key.Credential) (rotation.Policy, error) {
	name := c.Policy
	if name == "" {
		name = "default"
	}
	p, err := tx.Policy(name)
	if errors.Is(err, key.ErrNotFound) && c.Policy == "" {
		return rotation.Policy{}.WithDefaults(), nil
	}
	if err != nil {
		return p, err
	}
	return p.WithDefaults(), nil
}

func paramsOf(s key.Service, c key.Credential) map[string]string {
	m := maps.Clone(s.Params)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, c.Params)
	return m
}

// strays returns the versions of which nobody knows whether the vendor has
// them: their answers were lost, and no open rotation is looking.
func (f *facts) strays() []key.Version {
	var out []key.Version
	for _, v := range f.versions {
		if v.State != key.StateUnknown && v.State != key.StateIntent {
			continue
		}
		if f.open != nil && f.open.To == v.ID.Number {
			continue
		}
		out = append(out, v)
	}
	return out
}

// env returns where and as whom the driver acts; it opens the manager key.
func (p *pass) env(ctx context.Context, f *facts) (provider.Env, error) {
	return p.envOf(ctx, p.id, f)
}

func (e *Engine) envOf(ctx context.Context, id key.CredentialID, f *facts) (provider.Env, error) {
	env := provider.Env{Transport: e.cfg.Transport, Params: f.params, Call: f.credential.Call, Rand: e.cfg.Rand}
	if f.service.Manager == "" {
		return env, nil
	}
	m := key.CredentialID{Service: f.service.Manager, Environment: id.Environment}
	var at key.VersionID
	var sealed key.Sealed
	err := e.cfg.Store.View(ctx, func(tx store.Tx) error {
		c, err := tx.Credential(m)
		if err != nil || c.Slots.Primary == 0 {
			return key.WithHint(errors.Join(key.ErrNotFound, errors.New("there is no manager key "+m.String())),
				"set it: keybaton set "+m.Service+" --env "+m.Environment)
		}
		at = key.VersionID{Credential: m, Number: c.Slots.Primary}
		sealed, err = tx.Sealed(at)
		return err
	})
	if err != nil {
		return env, err
	}
	env.Manager, err = e.cfg.Keyring.Open(ctx, at, sealed)
	return env, err
}
