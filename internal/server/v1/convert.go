package v1

import (
	"reflect"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// list returns a list that is never null.
func list[T any](items []T) api.List[T] {
	if items == nil {
		items = []T{}
	}
	return api.List[T]{Items: items}
}

// filled returns s, or an empty slice for nil: the API has no null lists.
func filled[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func toRevision(r key.Revision) api.Revision { return api.Revision{Epoch: r.Epoch, Number: r.Number} }

func toSlots(s key.Slots) api.Slots {
	return api.Slots{Primary: int64(s.Primary), Fallback: int64(s.Fallback), Candidate: int64(s.Candidate)}
}

func toVersion(v key.Version, s key.Slots, u api.Uses) api.Version {
	slot := ""
	switch v.ID.Number {
	case s.Primary:
		slot = "primary"
	case s.Fallback:
		slot = "fallback"
	case s.Candidate:
		slot = "candidate"
	}
	return api.Version{Number: int64(v.ID.Number), State: string(v.State), Slot: slot, Origin: string(v.Origin), VendorID: v.VendorID,
		Label: v.Label, Fingerprint: v.Fingerprint, ReadOut: v.ReadOut, Created: v.Created, Since: v.Since, Expires: v.Expires,
		Rotation: v.Rotation, Note: v.Note, Uses: u}
}

func toUses(u evidence.Use) api.Uses {
	return api.Uses{Version: int64(u.Version.Number), Requests: u.Live.Attempts(), OK: u.Live.OK, Auth: u.Live.Auth, Perm: u.Live.Perm,
		Rate: u.Live.Rate, Other: u.Live.Other, Probes: u.Probes.Attempts(), ProbesOK: u.Probes.OK, Fallbacks: u.Fallbacks, LastAuth: u.LastAuth}
}

func toPolicy(p rotation.Policy) api.Policy {
	p = p.WithDefaults()
	return api.Policy{Name: p.Name, EverySeconds: seconds(p.Every), Cron: p.Cron, Zone: p.Zone, Window: p.Window, Spare: p.Spare,
		SoakSeconds: seconds(p.Soak.For), SoakRequests: p.Soak.Requests, SoakProbes: p.Soak.Probes, QuietSeconds: seconds(p.Quiet),
		WatchSeconds: seconds(p.Watch), Unverified: string(p.Unverified), DeadlineSeconds: seconds(p.Deadline)}
}

func toGate(g rotation.Gate) api.Gate {
	return api.Gate{Open: g.Open, Reason: g.Reason, Missing: g.Missing, Person: g.Person, Again: g.Again}
}

func toRetirement(r rotation.Retirement) api.Retirement {
	return api.Retirement{Service: r.Version.Credential.Service, Environment: r.Version.Credential.Environment, Version: int64(r.Version.Number),
		State: string(r.State), Gate: toGate(r.Gate), Emergency: r.Emergency, Person: r.Person, Attempts: r.Attempts, Rotation: r.Rotation,
		Entered: r.Entered, Ended: r.Ended}
}

func toHolder(s evidence.Standing) api.Holder {
	return api.Holder{Consumer: s.Consumer, Kind: string(s.Kind), Boot: s.Boot, Standing: string(s.Place), Acked: toRevision(s.Acked),
		Seen: s.Seen, Why: s.Why}
}

// steps returns the five steps of r, and rollback where there was one, each
// with its state.
func steps(r rotation.Rotation) []api.Step {
	current := r.State.Step()
	if r.State == rotation.Stopped {
		current = r.Resume.Step()
	}
	names := rotation.Steps()
	if r.Back != "" || current == rotation.StepRollback {
		names = append(names, rotation.StepRollback)
	}
	var out []api.Step
	for _, n := range names {
		s := api.Step{Name: string(n), State: api.StepPending}
		for _, rec := range r.Steps {
			if rec.Step != n {
				continue
			}
			if s.Started.IsZero() {
				s.Started = rec.Started
			}
			s.Ended, s.Gate, s.State = rec.Ended, rec.Gate, api.StepDone
		}
		switch {
		case n == current && !r.State.Ended():
			s.State, s.Ended, s.Gate = api.StepCurrent, time.Time{}, r.Gate.Reason
		case s.State == api.StepPending && (r.State.Ended() || r.Back != "" && n != rotation.StepRollback):
			s.State = api.StepSkipped
		}
		out = append(out, s)
	}
	return out
}

func toRotation(r rotation.Rotation) api.Rotation {
	step := r.State.Step()
	if r.State == rotation.Stopped {
		step = r.Resume.Step()
	}
	o := api.Rotation{ID: r.ID, Service: r.Credential.Service, Environment: r.Credential.Environment, Kind: string(r.Kind), State: string(r.State),
		Step: string(step), Steps: steps(r), Gate: toGate(r.Gate), Over: r.State.Ended(), From: int64(r.From), To: int64(r.To),
		Leaked: int64(r.Leaked), Paused: r.Paused, Back: r.Back, By: r.By, Why: r.Why, Proof: r.Proof, Started: r.Started, Entered: r.Entered,
		Ended: r.Ended, Evidence: []api.Uses{}, Holders: []api.Holder{}}
	for step, who := range r.Approved {
		if o.Approved == nil {
			o.Approved = map[string]string{}
		}
		o.Approved[string(step)] = who
	}
	return o
}

func toPlan(p engine.Plan) api.Plan {
	o := api.Plan{Service: p.Credential.Service, Environment: p.Credential.Environment, Provider: p.Provider, Refused: p.Refused,
		Warnings: filled(p.Warnings), Steps: []api.PlanStep{}}
	for _, s := range p.Steps {
		o.Steps = append(o.Steps, api.PlanStep{Step: string(s.Step), Does: s.Does, Requests: filled(s.Requests), Gate: s.Gate})
	}
	return o
}

func toFound(f engine.Found, environment string) api.Found {
	env := f.ID.Environment
	if env == "" {
		env = environment
	}
	return api.Found{Name: f.Name, Service: f.Service, Environment: env, Declared: f.Declared, Provider: f.Provider, Vendor: f.Vendor,
		Outcome: f.Outcome, Rotation: f.Rotation, Missing: filled(f.Missing), Installed: f.Installed}
}

func toGrants(gs []access.Grant) []api.Grant {
	out := []api.Grant{}
	for _, g := range gs {
		out = append(out, api.Grant{Environment: g.Environment, Services: filled(g.Services)})
	}
	return out
}

func fromGrants(gs []api.Grant) []access.Grant {
	var out []access.Grant
	for _, g := range gs {
		out = append(out, access.Grant{Environment: g.Environment, Services: g.Services})
	}
	return out
}

func toToken(t access.Token, now time.Time) api.Token {
	return api.Token{Name: t.Name, Role: string(t.Role), Kind: string(t.Kind), Grants: toGrants(t.Grants), RefreshSeconds: seconds(t.Refresh),
		Created: t.Created, By: t.By, Expires: t.Expires, Expired: !t.Expires.IsZero() && !now.Before(t.Expires)}
}

func toEntry(e audit.Entry) api.AuditEntry {
	return api.AuditEntry{Seq: e.Seq, At: e.At, Actor: e.Actor, Action: e.Action, Service: e.Credential.Service,
		Environment: e.Credential.Environment, Version: int64(e.Version), Rotation: e.Rotation, Detail: e.Detail, Prev: e.Prev, Hash: e.Hash}
}

func toAlert(a alert.Alert) api.Alert {
	s := a.Signal
	return api.Alert{ID: a.ID, Service: s.Credential.Service, Environment: s.Credential.Environment, Version: int64(s.Version), Kind: s.Kind,
		Severity: string(s.Severity), State: string(a.State), Error: s.Error, Cause: s.Cause, Fix: s.Fix, Evidence: s.Evidence,
		Started: a.Started, LastSeen: a.LastSeen, Ended: a.Ended}
}
