package config

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// Manual is the provider of services whose keys a person issues and pastes.
const Manual = "manual"

// DefaultPolicy is the name of the policy of credentials that name none.
const DefaultPolicy = "default"

// check turns what is written into nouns and names what does not fit together.
func (d *decoder) check(y file) File {
	switch {
	case d.missing("", "version"):
		d.fail("version", place{1, 1}, "the file does not say its version; begin with version: 1")
	case y.Version != 1 && d.said("version") && !d.bad("version"):
		d.failAt("version", "this program reads version 1, not %d", y.Version)
	}
	var f File
	for _, name := range slices.Sorted(maps.Keys(y.Services)) {
		f.Services = append(f.Services, d.service(name, y.Services[name], y))
	}
	for _, name := range slices.Sorted(maps.Keys(y.Policies)) {
		f.Policies = append(f.Policies, d.policy(name, y.Policies[name]))
	}
	seen := map[key.CredentialID]int{}
	for i, c := range y.Credentials {
		field := "credentials[" + strconv.Itoa(i) + "]"
		if c := d.credential(field, c, y); !c.ID.IsZero() {
			if j, ok := seen[c.ID]; ok {
				d.failAt(field, "%s is declared before, on line %d; keep one of the two", c.ID, d.at["credentials["+strconv.Itoa(j)+"]"].line)
				continue
			}
			seen[c.ID] = i
			f.Credentials = append(f.Credentials, c)
		}
	}
	d.managers(f, seen)
	slices.SortFunc(f.Credentials, func(a, b key.Credential) int { return a.ID.Compare(b.ID) })
	return f
}

// bad reports whether a mistake was named at the field itself.
func (d *decoder) bad(field string) bool {
	return slices.ContainsFunc(d.problems, func(p Problem) bool { return p.Field == field })
}

func (d *decoder) checkName(field, what, name string) {
	if key.CheckName(name) != nil {
		d.failAt(field, "%q cannot be the name of %s; use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit", short(name), what)
	}
}

var (
	envRE   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	partRE  = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	tokenRE = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$") // RFC 9110 §5.6.2
	slotRE  = regexp.MustCompile(`\{\{([^{}]*)\}\}`)
)

func (d *decoder) service(name string, y service, all file) key.Service {
	field := "services." + name
	d.checkName(field, "a service", name)
	s := key.Service{Name: name, Provider: y.Provider, Params: y.Params, Manager: y.Manager, EnvName: y.EnvName}
	if s.Provider == "" {
		s.Provider = Manual
	}
	d.checkName(field+".provider", "a provider", s.Provider)
	if y.EnvName != "" && !envRE.MatchString(y.EnvName) {
		d.failAt(field+".env_name", "%q cannot be the name of a variable; use letters, digits and '_', such as %s", short(y.EnvName), EnvName(name))
	}
	if y.Manager != "" && all.Services != nil {
		if _, ok := all.Services[y.Manager]; !ok {
			d.failAt(field+".manager", "there is no service %q; %s", short(y.Manager), suggest(y.Manager, slices.Sorted(maps.Keys(all.Services))))
		}
	}
	c := key.Call{FallbackOn: y.FallbackOn, Parts: y.Parts, Early: time.Duration(y.Early), Insecure: y.Insecure}
	c.Upstream = d.upstream(field+".upstream", y.Upstream, y.Insecure)
	for i, p := range y.Parts {
		f := field + ".parts[" + strconv.Itoa(i) + "]"
		if !partRE.MatchString(p) {
			d.failAt(f, "%q cannot be the name of a part; use a-z, 0-9 and '_', such as user", short(p))
		} else if slices.Contains(y.Parts[:i], p) {
			d.failAt(f, "the part %q is named twice", p)
		}
	}
	for i, n := range y.FallbackOn {
		if n < 400 || n > 599 {
			d.failAt(field+".fallback_on["+strconv.Itoa(i)+"]", "%d is not a refusal; name statuses from 400 to 599, such as 401", n)
		}
	}
	parts := y.Parts
	if len(parts) == 0 && s.Provider == Manual {
		parts = key.Call{}.PartNames()
	}
	if y.Place != nil {
		c.Place = d.place(field+".place", *y.Place, parts)
	}
	if y.Probe != nil {
		c.Probe = d.probe(field+".probe", *y.Probe)
	}
	c.Rules = d.rules(field+".rules", y.Rules)
	s.Call = c
	return s
}

// EnvName returns the variable of a service that names none: billing-api has
// BILLING_API_API_KEY.
func EnvName(service string) string {
	return strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_API_KEY"
}

func (d *decoder) upstream(field, s string, insecure bool) string {
	if s == "" {
		return ""
	}
	const write = "write it like https://api.example.com"
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		d.failAt(field, "this is not a URL with a host; %s", write)
	case u.Scheme != "https" && u.Scheme != "http":
		d.failAt(field, "%q is neither https nor http; %s", short(u.Scheme), write)
	case u.User != nil:
		d.failAt(field, "a URL here holds no user or password, since it is shown; say in place how the key rides on a request")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		d.failAt(field, "a URL here ends with its path; leave out what follows ? or #")
	default:
		d.sendable(field, s, insecure)
	}
	return strings.TrimRight(s, "/")
}

// sendable checks that keys may be sent to s.
func (d *decoder) sendable(field, s string, insecure bool) {
	if h := (*key.Hint)(nil); errors.As(key.CheckUpstream(s, insecure), &h) {
		d.failAt(field, "%s; %s", strings.TrimPrefix(h.Err.Error(), key.ErrInvalid.Error()+": "), h.Next)
	}
}

// template checks the text in which parts of a key are put; parts is nil where
// the provider names them.
func (d *decoder) template(field, s string, parts []string) int {
	n := 0
	for _, m := range slotRE.FindAllStringSubmatch(s, -1) {
		n++
		if parts != nil && !slices.Contains(parts, m[1]) {
			d.failAt(field, "{{%s}} is no part of the key; %s", short(m[1]), suggest(m[1], parts))
		}
	}
	return n
}

func (d *decoder) place(field string, y placing, parts []string) key.Place {
	p := key.Place{Value: y.Value}
	var said []string
	for _, w := range []struct{ in, name string }{{key.InHeader, y.Header}, {key.InQuery, y.Query}, {key.InForm, y.Form}, {key.InJSON, y.JSON}} {
		if w.name != "" {
			said = append(said, w.in)
			p.In, p.Name = w.in, w.name
		}
	}
	if y.Basic != nil {
		said = append(said, key.InBasic)
		p = key.Place{In: key.InBasic, User: y.Basic.User, Value: y.Basic.Password}
	}
	switch {
	case len(said) == 0 && !d.badUnder(field):
		d.failAt(field, "it does not say where the key rides; write one of header, basic, query, form and json")
		return p
	case len(said) > 1:
		d.failAt(field, "a key rides in one place, not in %s; keep one", strings.Join(said, " and "))
		return p
	}
	switch p.In {
	case key.InHeader:
		if !tokenRE.MatchString(p.Name) {
			d.failAt(field+".header", "%q cannot be the name of a header; write it like Authorization", short(p.Name))
		} else if hopHeader(p.Name) {
			d.failAt(field+".header", "%s belongs to the connection, and does not reach the API; name another header", short(p.Name))
		} else if strings.HasPrefix(strings.ToLower(p.Name), "keybaton-") {
			d.failAt(field+".header", "%s is Keybaton's own, and does not reach the API; name another header", short(p.Name))
		}
	case key.InJSON:
		if !strings.HasPrefix(p.Name, "$.") {
			d.failAt(field+".json", "%q is not a path; write it like $.auth.key", short(p.Name))
		}
	case key.InBasic:
		if y.Value != "" {
			d.failAt(field+".value", "basic has user and password, and no value")
		}
		n := d.template(field+".basic.user", p.User, parts) + d.template(field+".basic.password", p.Value, parts)
		if n == 0 && !d.badUnder(field) {
			d.failAt(field+".basic", `there is no key in it; write it like {user: "{{user}}", password: "{{password}}"}`)
		}
		return p
	}
	if p.Value != "" && d.template(field+".value", p.Value, parts) == 0 {
		d.failAt(field+".value", `there is no key in it; write it like "Bearer {{key}}"`)
	}
	if p.Value == "" && len(parts) > 0 && !slices.Contains(parts, "key") && !d.badUnder(field) {
		d.failAt(field, "which part of the key rides here? write value: \"{{%s}}\"", parts[0])
	}
	return p
}

func (d *decoder) badUnder(field string) bool {
	return slices.ContainsFunc(d.problems, func(p Problem) bool {
		return p.Field == field || strings.HasPrefix(p.Field, field+".") || strings.HasPrefix(p.Field, field+"[")
	})
}

func hopHeader(name string) bool {
	switch strings.ToLower(name) {
	case "connection", "host", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "proxy-connection":
		return true
	}
	return false
}

func (d *decoder) probe(field string, y probe) *key.Probe {
	p := &key.Probe{Method: strings.ToUpper(y.Method), Path: y.Path, Header: y.Headers, Body: y.Body}
	where := field + ".path"
	switch {
	case y.Get != "" && (y.Path != "" || y.Method != ""):
		d.failAt(field+".get", "get says method and path already; keep get, or write method and path")
	case y.Get != "":
		p.Method, p.Path, where = "GET", y.Get, field+".get"
	case y.Path == "" && !d.badUnder(field):
		d.failAt(field, "it does not say what is asked; write get: /me")
	}
	if strings.HasPrefix(p.Path, "//") {
		d.failAt(where, "%q may be read as the address of another host; begin it with one /, such as /me", short(p.Path))
	} else if p.Path != "" && !strings.HasPrefix(p.Path, "/") && !strings.HasPrefix(p.Path, "https://") && !strings.HasPrefix(p.Path, "http://") {
		d.failAt(where, "%q is not a path; begin it with /, such as /me", short(p.Path))
	}
	if p.Method != "" && !tokenRE.MatchString(p.Method) {
		d.failAt(field+".method", "%q is not a method; write it like GET", short(y.Method))
	}
	for _, h := range slices.Sorted(maps.Keys(y.Headers)) {
		if !tokenRE.MatchString(h) {
			d.failAt(field+".headers."+h, "%q cannot be the name of a header", short(h))
		}
	}
	p.Rules = d.rules(field+".rules", y.Rules)
	said := map[status]string{}
	for _, w := range []struct {
		name, is string
		of       []status
	}{{"valid", key.IsValid, y.Valid}, {"invalid", key.IsInvalid, y.Invalid}, {"valid_out_of_scope", key.IsOutOfScope, y.OutOfScope}, {"throttled", key.IsThrottled, y.Throttled}} {
		for i, n := range w.of {
			if other, ok := said[n]; ok && n != 0 {
				d.failAt(field+"."+w.name+"["+strconv.Itoa(i)+"]", "%d is named under %s and cannot mean both", n, other)
			}
			said[n] = w.name
		}
		if len(w.of) > 0 {
			p.Rules = append(p.Rules, key.Rule{Status: statuses(w.of), Is: w.is})
		}
	}
	return p
}

func statuses(in []status) []int {
	var out []int
	for _, n := range in {
		out = append(out, int(n))
	}
	return out
}

func (d *decoder) re(field, s string) {
	if s == "" {
		return
	}
	if _, err := regexp.Compile(s); err != nil {
		d.failAt(field, "this is not a regular expression in RE2: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
}

func (d *decoder) rules(field string, ys []rule) []key.Rule {
	var out []key.Rule
	for i, y := range ys {
		f := field + "[" + strconv.Itoa(i) + "]"
		r := key.Rule{Status: statuses(y.Status), Header: y.Headers, Body: y.Body, Is: y.Is, Dead: y.Dead}
		d.oneOf(f, "is", y.Is, true, key.IsValid, key.IsInvalid, key.IsOutOfScope, key.IsThrottled, key.IsOther)
		if len(y.Status)+len(y.Headers)+len(y.JSON)+len(y.Methods) == 0 && y.Body == "" && !d.badUnder(f) {
			d.failAt(f, "it tests nothing, and so matches nothing; write status: [401], or a test of headers, body or json")
		}
		for _, h := range slices.Sorted(maps.Keys(y.Headers)) {
			d.re(f+".headers."+h, y.Headers[h])
		}
		d.re(f+".body", y.Body)
		for _, m := range y.Methods {
			r.Methods = append(r.Methods, strings.ToUpper(m))
		}
		for j, t := range y.JSON {
			ft := f + ".json[" + strconv.Itoa(j) + "]"
			jt := key.JSONTest{Path: t.Path, Match: t.Match, Exists: t.Exists, Filled: t.Filled}
			if t.Equals != nil {
				jt.Equals = *t.Equals
				if *t.Equals == "" {
					d.failAt(ft+".equals", "nothing equals no text here; write filled: false")
				}
			}
			switch {
			case t.Path == "" && d.missing(ft, "path"):
				d.failAt(ft, "it does not say what is tested; write path: $.error.code")
			case t.Path != "" && !strings.HasPrefix(t.Path, "$"):
				d.failAt(ft+".path", "%q is not a path; begin it with $, such as $.error.code", short(t.Path))
			}
			if t.Equals == nil && t.Match == "" && t.Exists == nil && t.Filled == nil && !d.badUnder(ft) {
				d.failAt(ft, "it tests nothing; write equals, match, exists or filled")
			}
			d.re(ft+".match", t.Match)
			r.JSON = append(r.JSON, jt)
		}
		out = append(out, r)
	}
	return out
}

func (d *decoder) oneOf(of, name, got string, required bool, known ...string) {
	switch {
	case got == "" && required && d.missing(of, name):
		d.failAt(of, "%s is missing; write one of %s", name, strings.Join(known, ", "))
	case got != "" && !slices.Contains(known, got):
		d.failAt(join(of, name), "%q is not known here; %s", short(got), suggest(got, known))
	}
}

func (d *decoder) credential(field string, y credential, all file) key.Credential {
	c := key.Credential{ID: key.CredentialID{Service: y.Service, Environment: y.Environment}, Policy: y.Policy, Params: y.Params}
	s, known := all.Services[y.Service]
	c.Upstream = d.upstream(field+".upstream", y.Upstream, s.Insecure)
	switch {
	case y.Service == "" && d.missing(field, "service"):
		d.failAt(field, "service is missing; write the name of a service")
	case y.Service != "" && !known && !d.bad("services"):
		d.failAt(field+".service", "there is no service %q in this file; %s", short(y.Service), suggest(y.Service, slices.Sorted(maps.Keys(all.Services))))
	case known && (s.Provider == "" || s.Provider == Manual) && s.Upstream == "" && c.Upstream == "" &&
		d.missing(field, "upstream") && !d.badUnder("services."+y.Service):
		d.failAt(field, "nothing says where %s is; write upstream: https://… here or under services.%s", y.Service, y.Service)
	}
	switch {
	case y.Environment == "" && d.missing(field, "environment"):
		d.failAt(field, "environment is missing; write one such as dev or prod")
	case y.Environment != "":
		d.checkName(field+".environment", "an environment", y.Environment)
	}
	if _, ok := all.Policies[y.Policy]; y.Policy != "" && !ok && !d.bad("policies") {
		d.failAt(field+".policy", "there is no policy %q in this file; %s", short(y.Policy), suggest(y.Policy, slices.Sorted(maps.Keys(all.Policies))))
	}
	if _, ok := all.Policies[DefaultPolicy]; y.Policy == "" && ok {
		c.Policy = DefaultPolicy
	}
	if y.Service == "" || y.Environment == "" {
		c.ID = key.CredentialID{}
	}
	return c
}

// managers checks that every credential whose service names a manager has the
// manager's credential beside it.
func (d *decoder) managers(f File, index map[key.CredentialID]int) {
	by := map[string]string{}
	for _, s := range f.Services {
		by[s.Name] = s.Manager
	}
	for _, c := range f.Credentials {
		m := key.CredentialID{Service: by[c.ID.Service], Environment: c.ID.Environment}
		if _, known := by[m.Service]; m.Service == "" || !known {
			continue
		}
		if _, ok := index[m]; !ok {
			d.failAt("credentials["+strconv.Itoa(index[c.ID])+"]", "the manager key of %s is that of %s, which is not declared; add {service: %s, environment: %s}",
				c.ID, m, m.Service, m.Environment)
		}
	}
}

func (d *decoder) policy(name string, y policy) rotation.Policy {
	field := "policies." + name
	d.checkName(field, "a policy", name)
	p := rotation.Policy{
		Name: name, Every: time.Duration(y.Every), Cron: y.Cron, Zone: y.Zone, Window: y.Window, Jitter: time.Duration(y.Jitter),
		Spare: y.Spare == "warm", Quiet: time.Duration(y.Quiet), Watch: time.Duration(y.Watch),
		Unverified: rotation.Unverified(y.Unverified), ProbeOK: y.ProbeOK, Deadline: time.Duration(y.Deadline),
	}
	if p.Every != 0 && p.Every < time.Minute && !d.bad(field+".every") {
		d.failAt(field+".every", "a rotation every %s would never rest; write 1m or more, such as 30d", p.Every)
	}
	if y.Every != 0 && y.Cron != "" {
		d.failAt(field+".cron", "a policy has every or cron, not both; keep one")
	}
	if y.Cron != "" {
		if strings.ContainsAny(y.Cron, "=@") {
			d.failAt(field+".cron", "write five fields, such as 0 3 1 * *; the time zone goes into zone")
		} else if _, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow).Parse(y.Cron); err != nil {
			d.failAt(field+".cron", "%s; write five fields, such as 0 3 1 * *", short(err.Error()))
		}
	}
	if y.Zone != "" {
		if _, err := time.LoadLocation(y.Zone); err != nil || y.Zone == "Local" {
			d.failAt(field+".zone", "%q is not a time zone; write it like Europe/Berlin or UTC", short(y.Zone))
		}
	}
	if y.Window != "" {
		if (rotation.Policy{Window: y.Window}).Validate() != nil {
			d.failAt(field+".window", "%q is not a window; write it like Mon-Fri 09:00-17:00, its end after its beginning", short(y.Window))
		}
	}
	d.oneOf(field, "spare", y.Spare, false, "warm", "none")
	d.oneOf(field, "unverified", y.Unverified, false, string(rotation.UnverifiedAsk), string(rotation.UnverifiedWait), string(rotation.UnverifiedProceed))
	d.count(field, "probe_ok", y.ProbeOK, 100)
	if s := y.Soak; s != nil {
		d.count(field+".soak", "requests", s.Requests, 1e9)
		d.count(field+".soak", "probes", s.Probes, 1e6)
		p.Soak = rotation.Soak{For: time.Duration(s.For), Requests: int64(s.Requests), Probes: int64(s.Probes)}
	}
	return p
}

func (d *decoder) count(of, name string, n, most int) {
	if f := join(of, name); d.said(f) && !d.bad(f) && (n < 1 || n > most) {
		d.failAt(f, "%s", fmt.Sprintf("%d is not between 1 and %d; leave it out for its default", n, most))
	}
}
