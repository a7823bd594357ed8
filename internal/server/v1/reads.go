package v1

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

func (a *API) registerReads(h huma.API) {
	see := func(path, id, tag, summary string) op {
		return op{Method: http.MethodGet, Path: path, ID: id, Tag: tag, Summary: summary, Verb: access.See}
	}
	register(a, h, see(api.PathStatus, "status", "server", "The state of the server, and who is asking"), overall[none], a.status)
	register(a, h, see(api.PathServices, "services", "credentials", "The services, by name"), overall[none], a.services)
	register(a, h, see(api.PathCredentials, "credentials", "credentials", "The credentials, by service and environment"), overall[Filter], a.credentials)
	register(a, h, see(api.PathCredential, "credential", "credentials", "One credential with all its versions"), (*OfCredential).aim, a.credential)
	register(a, h, see(api.PathPlan, "plan", "rotations", "What a rotation would do, without doing it"), (*planInput).aim, a.plan)
	register(a, h, see(api.PathRotations, "rotations", "rotations", "The rotations, newest first"), overall[rotationsInput], a.rotations)
	register(a, h, see(api.PathRotation, "rotation", "rotations", "One rotation"), overall[rotationInput], a.rotation)
	register(a, h, see(api.PathAlerts, "alerts", "alerts", "The alerts, newest first"), overall[alertsInput], a.alerts)
	register(a, h, see(api.PathConsumers, "consumers", "consumers", "Who gets keys, what they hold and what they acknowledged"), overall[none], a.consumers)
	register(a, h, see(api.PathRecipes, "recipes", "server", "The providers that a service can name"), overall[none],
		func(context.Context, access.Principal, *none) (api.List[api.Recipe], error) {
			return list(a.recipes()), nil
		})
}

// aim returns the credential that the request is about.
func (c *OfCredential) aim() key.CredentialID { return c.id() }

func (a *API) status(ctx context.Context, p access.Principal, _ *none) (api.Status, error) {
	s := api.Status{Version: a.version, You: api.You{Name: p.Name, Role: string(p.Role), Grants: toGrants(p.Grants)}}
	err := a.store.View(ctx, func(tx store.Tx) error {
		v, err := look(tx)
		if err != nil {
			return err
		}
		s.Now, s.Revision, s.Counts = v.now, toRevision(v.revision), api.Counts{}
		n := &s.Counts
		cs, err := v.credentials(p, Filter{})
		if err != nil {
			return err
		}
		services, waiting := map[string]bool{}, 0
		for _, c := range cs {
			x, err := v.credential(c, false)
			if err != nil {
				return err
			}
			services[c.ID.Service] = true
			n.Credentials++
			switch x.Health {
			case api.HealthOK:
				n.OK++
			case api.HealthFailing:
				n.Failing++
			case api.HealthUnverified:
				n.Unverified++
			case api.HealthEmpty:
				n.Empty++
			}
			n.Retirements += len(x.Retirements)
			n.Alerts += len(v.alerts[c.ID])
			if x.Rotation != nil {
				n.Rotations++
				if x.Rotation.Gate.Person && !x.Rotation.Gate.Open {
					waiting++
				}
			}
			for _, r := range v.retirements[c.ID] {
				if waits(r.Gate) {
					waiting++
				}
			}
		}
		if n.Services = len(services); len(p.Grants) == 0 {
			n.Services = len(v.services)
		}
		n.Waiting = waiting
		consumers, err := v.consumers(p)
		n.Consumers = len(consumers)
		return err
	})
	return s, err
}

func (a *API) services(ctx context.Context, p access.Principal, _ *none) (api.List[api.Service], error) {
	items := []api.Service{}
	err := a.store.View(ctx, func(tx store.Tx) error {
		items = items[:0]
		v, err := look(tx)
		if err != nil {
			return err
		}
		cs, err := v.credentials(p, Filter{})
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(v.services)) {
			s := v.services[name]
			x := api.Service{Name: s.Name, Provider: s.Provider, Manager: s.Manager, EnvName: s.EnvName, Upstream: s.Call.Upstream, Environments: []string{}}
			for _, c := range cs {
				if c.ID.Service == name {
					x.Environments = append(x.Environments, c.ID.Environment)
				}
			}
			if len(x.Environments) > 0 || len(p.Grants) == 0 {
				items = append(items, x)
			}
		}
		return nil
	})
	return list(items), err
}

func (a *API) credentials(ctx context.Context, p access.Principal, f *Filter) (api.List[api.Credential], error) {
	items := []api.Credential{}
	err := a.store.View(ctx, func(tx store.Tx) error {
		v, err := look(tx)
		if err != nil {
			return err
		}
		cs, err := v.credentials(p, *f)
		if err != nil {
			return err
		}
		items = items[:0]
		for _, c := range cs {
			x, err := v.credential(c, false)
			if err != nil {
				return err
			}
			items = append(items, x)
		}
		return nil
	})
	return list(items), err
}

// unknown gives a missing credential its next step.
func unknown(err error, id key.CredentialID) error {
	if !errors.Is(err, key.ErrNotFound) {
		return err
	}
	return key.WithHint(fmt.Errorf("%w: credential %s", key.ErrNotFound, id), "keybaton list shows what there is; declare it in keybaton.yaml and run keybaton apply")
}

func (a *API) credential(ctx context.Context, _ access.Principal, in *OfCredential) (api.Credential, error) {
	var o api.Credential
	err := a.store.View(ctx, func(tx store.Tx) error {
		c, err := tx.Credential(in.id())
		if err != nil {
			return unknown(err, in.id())
		}
		v, err := look(tx)
		if err != nil {
			return err
		}
		o, err = v.credential(c, true)
		return err
	})
	return o, err
}

// planInput asks for the plan of a rotation.
type planInput struct {
	OfCredential
	Emergency bool  `query:"emergency" doc:"as if a version had leaked"`
	Leaked    int64 `query:"leaked" minimum:"0" doc:"which one; 0 is the primary"`
}

func (a *API) plan(ctx context.Context, _ access.Principal, in *planInput) (api.Plan, error) {
	p, err := a.engine.Plan(ctx, in.id(), engine.RotateOptions{Emergency: in.Emergency, Leaked: key.Number(in.Leaked)})
	if err != nil {
		return api.Plan{}, err
	}
	return toPlan(p), nil
}

// rotationsInput narrows a list of rotations.
type rotationsInput struct {
	Filter
	Open  bool `query:"open" doc:"only those that are not over"`
	Limit int  `query:"limit" minimum:"1" maximum:"1000" default:"50"`
}

func (a *API) rotations(ctx context.Context, p access.Principal, in *rotationsInput) (api.List[api.Rotation], error) {
	items := []api.Rotation{}
	err := a.store.View(ctx, func(tx store.Tx) error {
		v, err := look(tx)
		if err != nil {
			return err
		}
		items = items[:0]
		rs, err := v.rotations(p, in.Filter, in.Open, in.Limit)
		for _, r := range rs {
			items = append(items, v.rotation(r))
		}
		return err
	})
	return list(items), err
}

// rotations returns the newest rotations that p may see.
func (v *view) rotations(p access.Principal, f Filter, open bool, limit int) ([]rotation.Rotation, error) {
	cs, err := v.credentials(p, f)
	if err != nil {
		return nil, err
	}
	var rs []rotation.Rotation
	for _, c := range cs {
		of, err := v.tx.Rotations(c.ID, limit)
		if err != nil {
			return nil, fmt.Errorf("reading the rotations of %s: %w", c.ID, err)
		}
		rs = append(rs, of...)
	}
	rs = slices.DeleteFunc(rs, func(r rotation.Rotation) bool { return open && r.State.Ended() })
	slices.SortStableFunc(rs, func(a, b rotation.Rotation) int { return b.Started.Compare(a.Started) })
	return rs[:min(len(rs), limit)], nil
}

// rotationInput names a rotation.
type rotationInput struct {
	ID string `path:"id" maxLength:"64"`
}

func (a *API) rotation(ctx context.Context, p access.Principal, in *rotationInput) (api.Rotation, error) {
	var o api.Rotation
	err := a.store.View(ctx, func(tx store.Tx) error {
		r, err := tx.Rotation(in.ID)
		if err != nil {
			return key.WithHint(fmt.Errorf("rotation: %w", err), "keybaton status SERVICE names the open one")
		}
		if err := p.Check(access.See, r.Credential); err != nil {
			return err
		}
		v, err := look(tx)
		if err != nil {
			return err
		}
		o = v.rotation(r)
		return nil
	})
	return o, err
}

// alertsInput narrows a list of alerts.
type alertsInput struct {
	Filter
	State string `query:"state" enum:"firing,resolved" doc:"absent: any"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

func (a *API) alerts(ctx context.Context, p access.Principal, in *alertsInput) (api.List[api.Alert], error) {
	items := []api.Alert{}
	err := a.store.View(ctx, func(tx store.Tx) error {
		items = items[:0]
		all, err := tx.Alerts(alert.State(in.State), in.Limit)
		if err != nil {
			return fmt.Errorf("reading alerts: %w", err)
		}
		for _, x := range all {
			if in.takes(x.Signal.Credential) && p.Check(access.See, x.Signal.Credential) == nil {
				items = append(items, toAlert(x))
			}
		}
		return nil
	})
	return list(items), err
}

func (a *API) consumers(ctx context.Context, p access.Principal, _ *none) (api.List[api.Consumer], error) {
	var items []api.Consumer
	err := a.store.View(ctx, func(tx store.Tx) error {
		v, err := look(tx)
		if err != nil {
			return err
		}
		items, err = v.consumers(p)
		return err
	})
	return list(items), err
}

// consumers returns everyone with a consumer's token, a process or a hold, as
// far as it concerns credentials that p may see.
func (v *view) consumers(p access.Principal) ([]api.Consumer, error) {
	revisions := map[key.CredentialID]key.Revision{}
	cs, err := v.credentials(p, Filter{})
	if err != nil {
		return nil, err
	}
	for _, c := range cs {
		revisions[c.ID] = c.Revision
	}
	tokens, err := v.tx.Tokens()
	if err != nil {
		return nil, fmt.Errorf("reading tokens: %w", err)
	}
	byName := map[string]*api.Consumer{}
	named := func(name string, kind key.Kind) *api.Consumer {
		if byName[name] == nil {
			byName[name] = &api.Consumer{Name: name, Kind: string(kind), Grants: []api.Grant{}, Boots: []api.Boot{}, Holds: []api.Hold{}}
		}
		return byName[name]
	}
	for _, t := range tokens {
		sees := slices.ContainsFunc(cs, func(c key.Credential) bool {
			return slices.ContainsFunc(t.Grants, func(g access.Grant) bool { return g.Covers(c.ID) })
		})
		if (t.Role == access.RoleConsumer || t.Role == access.RoleGateway) && (sees || len(p.Grants) == 0) {
			c := named(t.Name, t.Kind)
			c.Token, c.Grants, c.RefreshSeconds = true, toGrants(t.Grants), seconds(t.Refresh)
		}
	}
	behind := map[[2]string]bool{}
	for _, h := range v.ledger.Holds {
		rev, seen := revisions[h.Version.Credential]
		if !seen {
			continue
		}
		c := named(h.Consumer, h.Kind)
		c.Holds = append(c.Holds, api.Hold{Service: h.Version.Credential.Service, Environment: h.Version.Credential.Environment,
			Version: int64(h.Version.Number), Boot: h.Boot, Since: h.Since, Until: h.Until, Unbound: h.Unbound})
		if b, ok := v.ledger.Boot(h.Consumer, h.Boot); ok && !b.Acked.Reached(rev) {
			behind[[2]string{h.Consumer, h.Boot}] = true
		}
	}
	for _, b := range v.ledger.Boots {
		if byName[b.Consumer] == nil && len(p.Grants) > 0 {
			continue
		}
		c := named(b.Consumer, b.Kind)
		x := api.Boot{Boot: b.Boot, Acked: toRevision(b.Acked), Behind: behind[[2]string{b.Consumer, b.Boot}], Seen: b.Seen,
			Silent: v.now.Sub(b.Seen) > evidence.SilentAfter, Pinned: []string{}}
		for _, id := range b.Pinned {
			x.Pinned = append(x.Pinned, id.String())
		}
		c.Boots = append(c.Boots, x)
	}
	out := make([]api.Consumer, 0, len(byName))
	for _, c := range byName {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b api.Consumer) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
