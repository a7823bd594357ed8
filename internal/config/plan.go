package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// State is what is managed at present.
type State struct {
	Services    []key.Service
	Credentials []key.Credential
	Policies    []rotation.Policy
}

// Verb says what becomes of something.
type Verb string

// The verbs of a plan.
const (
	Add    Verb = "add"
	Change Verb = "change"
	Delete Verb = "delete"
	Keep   Verb = "keep" // it is not in the file, and is left alone
)

// Step is what becomes of one service, credential or policy.
type Step struct {
	Verb   Verb    `json:"verb"`
	Kind   string  `json:"kind"` // service, credential or policy
	Name   string  `json:"name"`
	Fields []Field `json:"fields,omitempty"` // what changes, sorted by name
	Note   string  `json:"note,omitempty"`
	Moves  []Move  `json:"moves,omitempty"` // the live keys that it would send elsewhere, by credential
}

// Move is a credential that has keys, and would send them to another host.
type Move struct {
	Credential key.CredentialID
	From       string // scheme and host; "" where it is not known
	To         string // "" where the file leaves it to the provider
}

// String says it for people.
func (m Move) String() string {
	from, to := m.From, m.To
	if from == "" {
		from = "where they went"
	}
	if to == "" {
		to = "where the provider says"
	}
	return "LIVE KEYS of " + m.Credential.String() + " go to " + to + " instead of " + from
}

// Field is one field that changes; "" is unsaid.
type Field struct {
	Name string `json:"name"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Plan is what a file would change. The lists are what has to be written and
// deleted; Steps tell people. What a file says already is in neither.
type Plan struct {
	Steps             []Step // services, then policies, then credentials, by name
	Services          []key.Service
	Credentials       []key.Credential
	Policies          []rotation.Policy
	DeleteServices    []string
	DeleteCredentials []key.CredentialID
	DeletePolicies    []string
}

// Empty reports whether there is nothing to write and nothing to delete.
func (p Plan) Empty() bool {
	return !slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Verb != Keep })
}

// Diff returns what f would change in current. Without prune nothing is
// deleted: what is not in the file is listed as kept.
func Diff(current State, f File, prune bool) Plan {
	var p Plan
	f.Credentials = defaulted(current, f, prune)
	each(&p, prune, "service", current.Services, f.Services, func(s key.Service) string { return s.Name }, func(s key.Service) any { return s },
		func(s key.Service) { p.Services = append(p.Services, s) },
		func(s key.Service) { p.DeleteServices = append(p.DeleteServices, s.Name) })
	each(&p, prune, "policy", current.Policies, f.Policies, func(r rotation.Policy) string { return r.Name }, func(r rotation.Policy) any { return r },
		func(r rotation.Policy) { p.Policies = append(p.Policies, r) },
		func(r rotation.Policy) { p.DeletePolicies = append(p.DeletePolicies, r.Name) })
	each(&p, prune, "credential", current.Credentials, f.Credentials, func(c key.Credential) string { return c.ID.String() },
		func(c key.Credential) any {
			return struct {
				Policy   string            `json:"policy"`
				Upstream string            `json:"upstream"`
				Params   map[string]string `json:"params"`
			}{c.Policy, c.Upstream, c.Params}
		},
		func(c key.Credential) { p.Credentials = append(p.Credentials, c) },
		func(c key.Credential) { p.DeleteCredentials = append(p.DeleteCredentials, c.ID) })
	p.moves(current, f)
	return p
}

// moves notes at the steps which live keys they would send to another host: at
// the credential's own step, or its service's.
func (p *Plan) moves(current State, f File) {
	was, is := byName(current.Services), byName(f.Services)
	wanted := map[key.CredentialID]key.Credential{}
	for _, c := range f.Credentials {
		wanted[c.ID] = c
	}
	live := map[key.CredentialID]bool{}
	for _, c := range current.Credentials {
		live[c.ID] = c.Slots != key.Slots{}
	}
	for _, c := range current.Credentials {
		if slices.Contains(p.DeleteCredentials, c.ID) {
			continue
		}
		before, ok := was[c.ID.Service]
		if !ok || !live[c.ID] && !live[key.CredentialID{Service: before.Manager, Environment: c.ID.Environment}] {
			continue
		}
		after, next := before, c
		if s, ok := is[c.ID.Service]; ok {
			after = s
		}
		if w, ok := wanted[c.ID]; ok {
			next = w
		}
		m, moved := move(before, after, c, next)
		if !moved {
			continue
		}
		at := func(kind, name string) int {
			return slices.IndexFunc(p.Steps, func(s Step) bool { return s.Verb == Change && s.Kind == kind && s.Name == name })
		}
		i := at("credential", c.ID.String())
		if i < 0 {
			i = at("service", c.ID.Service)
		}
		if i >= 0 {
			p.Steps[i].Moves = append(p.Steps[i].Moves, m)
		}
	}
}

func byName(ss []key.Service) map[string]key.Service {
	m := make(map[string]key.Service, len(ss))
	for _, s := range ss {
		m[s.Name] = s
	}
	return m
}

// move compares where a credential sends its keys before and after. What only
// the provider knows counts as another place when what it is told changes.
func move(before, after key.Service, c, next key.Credential) (Move, bool) {
	m := Move{Credential: c.ID}
	said, says := cmp.Or(c.Upstream, before.Call.Upstream), cmp.Or(next.Upstream, after.Call.Upstream)
	m.From = origin(cmp.Or(said, c.Call.Upstream))
	if says != "" {
		m.To = origin(says)
		if m.From != m.To {
			return m, true
		}
	}
	old, params := maps.Clone(before.Params), maps.Clone(after.Params)
	old, params = over(old, c.Params), over(params, next.Params)
	for _, f := range fields(old, params) {
		from, to := origin(f.From), origin(f.To)
		if from != to {
			return Move{c.ID, cmp.Or(from, m.From), to}, true
		}
	}
	return m, says == "" && (said != "" || before.Provider != after.Provider)
}

func over(m, more map[string]string) map[string]string {
	if m == nil {
		return more
	}
	maps.Copy(m, more)
	return m
}

// origin returns scheme and host of a URL; "" for what is none.
func origin(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return ""
	}
	return strings.ToLower(u.Scheme + "://" + u.Host)
}

// defaulted returns the credentials of f; those that name no policy get the
// default one also where it stays from before, not from this file.
func defaulted(current State, f File, prune bool) []key.Credential {
	is := func(p rotation.Policy) bool { return p.Name == DefaultPolicy }
	if prune || !slices.ContainsFunc(current.Policies, is) {
		return f.Credentials
	}
	out := slices.Clone(f.Credentials)
	for i := range out {
		if out[i].Policy == "" {
			out[i].Policy = DefaultPolicy
		}
	}
	return out
}

func each[T any](p *Plan, prune bool, kind string, current, wanted []T, name func(T) string, said func(T) any, put, del func(T)) {
	now := map[string]T{}
	for _, t := range current {
		now[name(t)] = t
	}
	in := map[string]bool{}
	var steps []Step
	for _, t := range wanted {
		in[name(t)] = true
		was, ok := now[name(t)]
		if !ok {
			steps = append(steps, Step{Verb: Add, Kind: kind, Name: name(t)})
			put(t)
			continue
		}
		if fs := fields(flat(said(was)), flat(said(t))); len(fs) > 0 {
			steps = append(steps, Step{Verb: Change, Kind: kind, Name: name(t), Fields: fs})
			put(t)
		}
	}
	for _, t := range current {
		switch {
		case in[name(t)]:
		case prune:
			steps = append(steps, Step{Verb: Delete, Kind: kind, Name: name(t)})
			del(t)
		default:
			steps = append(steps, Step{Verb: Keep, Kind: kind, Name: name(t), Note: "kept: not in the file (use --prune)"})
		}
	}
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(a.Name, b.Name) })
	p.Steps = append(p.Steps, steps...)
}

func fields(from, to map[string]string) []Field {
	names := map[string]bool{}
	for n := range from {
		names[n] = true
	}
	for n := range to {
		names[n] = true
	}
	var out []Field
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if from[n] != to[n] {
			out = append(out, Field{n, from[n], to[n]})
		}
	}
	return out
}

// flat returns the fields of a struct as texts, by their JSON names joined with
// dots; what is zero or empty is left out.
func flat(v any) map[string]string {
	out := map[string]string{}
	flatten(out, "", reflect.ValueOf(v))
	return out
}

func flatten(out map[string]string, name string, v reflect.Value) {
	if !v.IsValid() || v.IsZero() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0 {
		return
	}
	if d, ok := v.Interface().(time.Duration); ok {
		out[name] = writeDuration(d)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		flatten(out, name, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			flatten(out, join(name, tag), v.Field(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			out[join(name, k.String())] = fmt.Sprint(v.MapIndex(k).Interface())
		}
	case reflect.Slice:
		b, err := json.Marshal(v.Interface())
		if err != nil {
			b = fmt.Append(nil, v.Interface())
		}
		out[name] = string(b)
	default:
		out[name] = fmt.Sprint(v.Interface())
	}
}

// writeDuration writes d as parseDuration reads it.
func writeDuration(d time.Duration) string {
	var s string
	if days := d / (24 * time.Hour); days > 0 {
		s, d = fmt.Sprintf("%dd", days), d%(24*time.Hour)
	}
	if d == 0 && s != "" {
		return s
	}
	t := d.String()
	if strings.HasSuffix(t, "m0s") {
		t = strings.TrimSuffix(t, "0s")
	}
	if strings.HasSuffix(t, "h0m") {
		t = strings.TrimSuffix(t, "0m")
	}
	return s + t
}
