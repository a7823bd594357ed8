package engine

import (
	"context"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

func sameCall(a, b key.Call) bool { return reflect.DeepEqual(a, b) }

// Plan tells what a rotation would do, request by request, and does none of
// it. It opens no key and calls no vendor.
func (e *Engine) Plan(ctx context.Context, id key.CredentialID, o RotateOptions) (Plan, error) {
	f, err := e.factsOf(ctx, id)
	if err != nil {
		return Plan{}, unknownCredential(err, id)
	}
	p := Plan{Credential: id, Provider: f.service.Provider}
	if err := refusal(f, o); err != nil {
		p.Refused = err.Error()
	}
	env := provider.Env{Transport: e.cfg.Transport, Params: f.params, Call: f.credential.Call}
	show := func(acts ...string) (out []string) {
		v, ok := f.driver.(provider.Previewer)
		if !ok {
			return nil
		}
		for _, a := range acts {
			out = append(out, v.Preview(env, a)...)
		}
		return out
	}
	can, pol := f.rules.Can, f.policy
	next, old := f.credential.Next, f.credential.Slots.Primary
	holders, readers := map[string]bool{}, map[string]bool{}
	for _, h := range f.rules.Ledger.Holds {
		if h.Kind.Acknowledges() {
			holders[h.Consumer] = true
		} else {
			readers[h.Consumer] = true
		}
	}
	gen := PlanStep{Step: rotation.StepGenerate, Does: fmt.Sprintf("writes the intent for %s, then asks %s for a key and stores it sealed as the candidate", next, f.info.Vendor), Requests: show("issue", "probe"),
		Gate: fmt.Sprintf("%s answers ok %d times in a row, within %s", next, pol.ProbeOK, max(can.Early, can.Spacing))}
	if !can.Issue {
		gen.Does = "waits for a person to issue a key and paste it: keybaton set " + id.Service + " --env " + id.Environment
		gen.Requests = show("probe")
		for _, s := range can.Steps {
			gen.Does += "; " + s
		}
	}
	if !can.Probe {
		gen.Gate = "unverified: no probe is declared, so the policy says " + string(pol.Unverified)
		p.Warnings = append(p.Warnings, "no probe is declared for "+id.Service+": whether a key works can only be seen in traffic; add probe: to keybaton.yaml")
	}
	stage := PlanStep{Step: rotation.StepStage, Does: fmt.Sprintf("puts %s into the fallback slot; %s stays the primary", next, old), Gate: "the revision is committed"}
	if s := f.credential.Slots.Fallback; s != 0 {
		stage.Does += fmt.Sprintf("; the spare %s leaves it and retires", s)
		stage.Gate = fmt.Sprintf("%s was just probed ok; the revision is committed", old)
	}
	dist := PlanStep{Step: rotation.StepDistribute, Does: fmt.Sprintf("hands %s to %s, and asks the gateways to try it", next, things(len(holders), "consumer")), Requests: show("probe"),
		Gate: fmt.Sprintf("every consumer has acknowledged, and each gateway has seen %s answer ok", next)}
	prom := PlanStep{Step: rotation.StepPromote, Does: fmt.Sprintf("swaps: %s becomes the primary, %s the fallback", next, old),
		Gate: fmt.Sprintf("every consumer has acknowledged; %s and %d requests (or %d probes) per gateway without one that %s refused and %s served", pol.Soak.For, pol.Soak.Requests, pol.Soak.Probes, next, old)}
	ret := PlanStep{Step: rotation.StepRetire, Does: fmt.Sprintf("takes %s out of its slot once unused for %s; then revokes it", old, pol.Quiet), Requests: show("disable", "revoke", "probe", "list"),
		Gate: fmt.Sprintf("nobody holds %s; %s was just probed ok; then %d refusals in a row prove it dead", old, next, max(1, can.DeadOK))}
	if can.Disable {
		ret.Does = fmt.Sprintf("takes %s out of its slot once unused for %s; disables it, watches for %s, then revokes it", old, pol.Quiet, pol.Watch)
	}
	if !can.Revoke {
		ret.Does = fmt.Sprintf("takes %s out of its slot once unused for %s; then waits for a person to revoke it at the vendor", old, pol.Quiet)
		for _, s := range can.Undo {
			ret.Does += "; " + s
		}
	}
	if o.Emergency {
		prom.Gate, ret.Gate = "the new key was just probed ok; no soak", ret.Gate+fmt.Sprintf(", or %s have passed", pol.Deadline)
		ret.Does = strings.Replace(ret.Does, fmt.Sprintf(" once unused for %s", pol.Quiet), " at once", 1)
		ret.Does = strings.Replace(ret.Does, fmt.Sprintf("disables it, watches for %s, then", pol.Watch), "disables it, then", 1)
	}
	if old == 0 {
		stage = PlanStep{Step: rotation.StepStage, Does: fmt.Sprintf("makes %s the primary: there is none yet", next), Gate: "the revision is committed"}
		p.Steps = []PlanStep{gen, stage}
		return p, nil
	}
	if v := f.rules.Versions[old]; v.UnknownCopies() && !can.Disable && can.Revoke {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s was %s or read out, so it may live where nobody is seen; before it is revoked the policy says: %s", old, v.Origin, pol.Unverified))
	}
	if len(readers) > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s may hold %s and will be waited for: keybaton consumer list", things(len(readers), "reader"), old))
	}
	p.Steps = []PlanStep{gen, stage, dist, prom, ret}
	return p, nil
}

// Import recognises keys by their shape, asks the vendor about each, and, when
// not dry, sets those that can be managed as they are.
func (e *Engine) Import(ctx context.Context, by access.Principal, environment string, names []string, values []secret.Value, dry bool) ([]Found, error) {
	if err := by.Check(access.Operate, key.CredentialID{}); err != nil {
		return nil, err
	}
	if err := key.CheckName(environment); err != nil {
		return nil, key.WithHint(err, "name the environment: --env prod")
	}
	if len(names) != len(values) {
		return nil, fmt.Errorf("%w: %d names for %d values", key.ErrInvalid, len(names), len(values))
	}
	var services []key.Service
	var creds []key.Credential
	err := e.cfg.Store.View(ctx, func(tx store.Tx) (err error) {
		if services, err = tx.Services(); err != nil {
			return err
		}
		creds, err = tx.Credentials()
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []Found
	for i, name := range names {
		f, err := e.recognise(ctx, environment, name, values[i], services, creds)
		if err != nil {
			return nil, err
		}
		if !dry && len(f.Missing) == 0 && f.Outcome != "invalid" {
			parts := secret.Parts{"key": values[i]}
			res, err := e.Set(ctx, by, f.ID, parts, key.OriginImported, "imported from "+name)
			if err != nil {
				f.Missing = append(f.Missing, err.Error())
			} else {
				f.Installed = res.Installed || res.Rotation != ""
			}
		}
		out = append(out, f)
	}
	return out, nil
}

// recognise says what the value under name seems to be.
func (e *Engine) recognise(ctx context.Context, environment, name string, v secret.Value, services []key.Service, creds []key.Credential) (Found, error) {
	f := Found{Name: name, Outcome: "unverified", Rotation: "pasted", Service: serviceName(name)}
	var svc key.Service
	for _, s := range services {
		if s.EnvName == name || s.EnvName == "" && s.Name == f.Service {
			f.Service, f.Declared, svc = s.Name, true, s
		}
	}
	id := key.CredentialID{Service: f.Service, Environment: environment}
	d, providerID := e.byShape(v)
	if f.Declared {
		f.Provider, f.ID = svc.Provider, id
		var err error
		if d, err = e.cfg.Providers.Driver(svc.Provider); err != nil {
			return f, err
		}
	} else {
		f.Provider = providerID
	}
	if d == nil {
		f.Missing = append(f.Missing, "the shape is not known: declare the service in keybaton.yaml with its upstream, place and probe (provider: manual)")
		return f, nil
	}
	env := provider.Env{Transport: e.cfg.Transport, Params: map[string]string{}, Call: svc.Call}
	i := slices.IndexFunc(creds, func(c key.Credential) bool { return f.Declared && c.ID == id })
	if i >= 0 {
		env.Params, env.Call = paramsOf(svc, creds[i]), creds[i].Call
	}
	info := d.Describe(env)
	f.Vendor = info.Vendor
	if info.Abilities.Issue && info.Abilities.Revoke {
		f.Rotation = "automatic"
	}
	if !f.Declared {
		env.Call = info.Call
		f.Missing = append(f.Missing, fmt.Sprintf("declare it in keybaton.yaml: services: {%s: {provider: %s, env_name: %s}} and credentials: [{service: %s, environment: %s}]", f.Service, f.Provider, name, f.Service, environment))
	} else if i < 0 {
		f.Missing = append(f.Missing, fmt.Sprintf("declare the credential in keybaton.yaml: credentials: [{service: %s, environment: %s}]", f.Service, environment))
	}
	if f.Rotation == "automatic" && info.Manager == "required" && svc.Manager == "" {
		f.Missing = append(f.Missing, "name a manager key for automatic rotation: manager: SERVICE")
	}
	parts := env.Call.PartNames()
	if len(parts) != 1 {
		f.Missing = append(f.Missing, fmt.Sprintf("a key of it has the parts %v: keybaton set %s --env %s", parts, f.Service, environment))
		return f, nil
	}
	if info.Abilities.Probe && env.Call.Upstream != "" {
		call, cancel := context.WithTimeout(ctx, callLimit)
		p := e.outcome(call, d, env, secret.Parts{parts[0]: v})
		cancel()
		switch p.Outcome {
		case evidence.OK, evidence.Perm, evidence.Rate:
			f.Outcome = "valid"
		case evidence.Auth:
			f.Outcome = "invalid"
			f.Missing = append(f.Missing, "the vendor refuses it ("+p.Text+"): issue a new key")
		}
	}
	return f, ctx.Err()
}

// byShape returns the provider whose pattern recognises v; the longest pattern
// wins, as it says most.
func (e *Engine) byShape(v secret.Value) (d provider.Driver, id string) {
	best := 0
	for _, name := range slices.Sorted(mapKeys(e.cfg.Providers)) {
		drv := e.cfg.Providers[name]
		m, ok := drv.(provider.Matcher)
		if !ok {
			continue
		}
		if n := m.Match(v); n > best {
			best, d, id = n, drv, name
		}
	}
	return d, id
}

func mapKeys(r provider.Registry) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range r {
			if !yield(k) {
				return
			}
		}
	}
}

// things returns "1 consumer" or "2 consumers".
func things(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// serviceName proposes the name of a service for a variable: SENDGRID_API_KEY
// is sendgrid.
func serviceName(variable string) string {
	s := strings.ToLower(variable)
	for _, suffix := range []string{"_api_key", "_apikey", "_secret_key", "_access_token", "_token", "_key", "_secret"} {
		if t, ok := strings.CutSuffix(s, suffix); ok && t != "" {
			s = t
			break
		}
	}
	return strings.Trim(notName.ReplaceAllString(s, "-"), "-")
}
