package engine

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

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
		if !f.Declared && f.Provider == "" && values[i].Len() < minKey {
			continue // DEBUG=true is no key
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

// minKey is the least length of a value that is taken for a key though neither
// its name nor its shape is known.
const minKey = 12

// recognise says what the value under name seems to be.
func (e *Engine) recognise(ctx context.Context, environment, name string, v secret.Value, services []key.Service, creds []key.Credential) (Found, error) {
	f := Found{Name: name, Outcome: "unverified", Rotation: "pasted", Service: serviceName(name)}
	var svc key.Service
	for _, s := range services {
		if s.EnvName == name || s.EnvName == "" && !f.Declared && slices.Contains(serviceNames(name), s.Name) {
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

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// suffixes of variables that hold keys.
var suffixes = []string{"_api_key", "_apikey", "_secret_key", "_access_token", "_token", "_key", "_secret"}

// serviceName proposes the name of a service for a variable: SENDGRID_API_KEY
// is sendgrid.
func serviceName(variable string) string {
	s := strings.ToLower(variable)
	for _, suffix := range suffixes {
		if t, ok := strings.CutSuffix(s, suffix); ok && t != "" {
			s = t
			break
		}
	}
	return dashed(s)
}

// serviceNames returns every name that a service of the variable may have:
// BILLING_API_KEY may be of billing and of billing-api.
func serviceNames(variable string) []string {
	s := strings.ToLower(variable)
	out := []string{dashed(s)}
	for _, suffix := range suffixes {
		if t, ok := strings.CutSuffix(s, suffix); ok && t != "" {
			out = append(out, dashed(t))
		}
	}
	return out
}

func dashed(s string) string { return strings.Trim(notName.ReplaceAllString(s, "-"), "-") }
