package recipe

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/secret"
)

// New returns the driver of a recipe. It satisfies provider.Previewer and
// provider.Labeler always, and provider.Lister, provider.Disabler and
// provider.Identifier only where the recipe describes them. It is safe for
// concurrent use.
func New(r *Recipe) provider.Driver {
	c := &core{r}
	has := [3]bool{r.list != nil, r.disable != nil, r.idPart != ""}
	l, d, i := lister{c}, disabler{c}, identifier{c}
	switch has {
	case [3]bool{true, true, true}:
		return struct {
			*core
			lister
			disabler
			identifier
		}{c, l, d, i}
	case [3]bool{true, true, false}:
		return struct {
			*core
			lister
			disabler
		}{c, l, d}
	case [3]bool{true, false, true}:
		return struct {
			*core
			lister
			identifier
		}{c, l, i}
	case [3]bool{false, true, true}:
		return struct {
			*core
			disabler
			identifier
		}{c, d, i}
	case [3]bool{true, false, false}:
		return struct {
			*core
			lister
		}{c, l}
	case [3]bool{false, true, false}:
		return struct {
			*core
			disabler
		}{c, d}
	case [3]bool{false, false, true}:
		return struct {
			*core
			identifier
		}{c, i}
	}
	return c
}

// core is what every recipe's driver can do.
type core struct{ *Recipe }

type lister struct{ c *core }
type disabler struct{ c *core }
type identifier struct{ c *core }

// params returns the values of env's params over the defaults.
func (c *core) values(env provider.Env) (values, error) {
	v := values{}
	for _, p := range c.params {
		s, ok := env.Params[p.Name]
		if !ok || s == "" {
			s = p.Default
		}
		if s == "" && p.Required {
			return nil, denied(fmt.Errorf("%s needs the param %s", c.ID, p.Name), "set params: {"+p.Name+": …} on the service or credential")
		}
		v["param."+p.Name] = s
	}
	return v, nil
}

// denied returns an error of kind Denied with the next step in its text.
func denied(err error, next string) *provider.Error {
	return &provider.Error{Kind: provider.Denied, Text: key.WithHint(err, next).Error(), Err: key.ErrInvalid}
}

var hostRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// address renders the address of a host.
func (c *core) address(t template, v values) (string, error) {
	if _, whole := t.whole(); !whole {
		for _, name := range t.uses() {
			if s, _ := v[name].(string); !hostRE.MatchString(s) {
				return "", denied(fmt.Errorf("the param %s does not fit into an address", strings.TrimPrefix(name, "param.")), "use letters, digits, '.', '_' and '-'")
			}
		}
	}
	s, err := t.text(v, nil)
	if err != nil {
		return "", err
	}
	u, err := call.ParseUpstream(s)
	if err != nil {
		return "", denied(fmt.Errorf("the address of %s is not one", c.Vendor), "write the param like https://api.example.com")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// Describe says what the recipe can do; an address whose param is missing or
// wrong stays empty.
func (c *core) Describe(env provider.Env) provider.Info {
	info := provider.Info{
		ID: c.ID, Vendor: c.Vendor, Params: slices.Clone(c.params), Patterns: map[string]string{},
		ListsAll: c.list != nil && c.list.complete, Manager: c.manager.wanted,
		ManagerParts: slices.Clone(c.manager.parts), Tested: c.Tested,
	}
	if c.usageFrom {
		info.Granular = c.granular
	}
	for _, p := range c.parts {
		if p.pattern != "" {
			info.Patterns[p.name] = p.pattern
		}
	}
	a := &info.Abilities
	a.Issue, a.Revoke, a.List = len(c.steps) > 0, c.revoke != nil, c.list != nil
	a.Disable, a.Max = c.disable != nil, c.limits.max
	a.Early, a.Late, a.Spacing, a.DeadOK = c.early, c.late, c.spacing, c.deadOK
	a.Steps, a.Undo, a.URL = slices.Clone(c.human.create), slices.Clone(c.human.revoke), c.human.url
	info.Call = key.Call{Place: c.place, Rules: slices.Clone(c.rules), FallbackOn: slices.Clone(c.fallback), Parts: c.partNames(), Early: c.early}
	v, err := c.values(env)
	if err != nil {
		a.Probe = c.probe != nil || env.Call.Probe != nil
		return info
	}
	if s, err := c.address(c.upstream, v); err == nil {
		info.Call.Upstream = s
	}
	if c.probe != nil {
		if p, err := c.probe.data(v); err == nil {
			info.Call.Probe = p
		}
	}
	a.Probe = info.Call.Probe != nil || env.Call.Probe != nil
	return info
}

// data renders the probe as plain data.
func (p *probe) data(v values) (*key.Probe, error) {
	path, err := p.path.text(v, pathSegment)
	if err != nil {
		return nil, err
	}
	query, err := form(p.query, v)
	if err != nil {
		return nil, err
	}
	if query != "" {
		path += "?" + query
	}
	out := &key.Probe{Method: p.method, Path: path, Rules: slices.Clone(p.rules)}
	for _, h := range p.header {
		if out.Header == nil {
			out.Header = map[string]string{}
		}
		if out.Header[h.name], err = h.value.text(v, nil); err != nil {
			return nil, err
		}
	}
	if p.json != nil {
		b, err := encode(p.json, v)
		if err != nil {
			return nil, err
		}
		out.Body = string(b)
		if out.Header == nil {
			out.Header = map[string]string{}
		}
		out.Header["Content-Type"] = "application/json"
	}
	return out, nil
}

// Probe tells what the vendor says of the parts: through env.Call, which may
// override the recipe's place, probe and rules.
func (c *core) Probe(ctx context.Context, env provider.Env, p secret.Parts) (evidence.Outcome, error) {
	pr, err := call.CompileProbe(c.Describe(env).Call.Over(env.Call))
	if err != nil {
		return evidence.Other, probeError(err)
	}
	res, err := pr.Do(ctx, env.Transport, p)
	if err != nil {
		return evidence.Other, probeError(err)
	}
	return res.Outcome, nil
}

// probeError classifies what a probe could not do: its errors hold no key.
func probeError(err error) *provider.Error {
	k := provider.Denied
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		k = provider.Transient
	}
	return &provider.Error{Kind: k, Text: err.Error(), Err: err}
}

// Label returns the name that a key under label gets at the vendor: shaped to
// what the vendor permits, and the same for the same label.
func (c *core) Label(_ provider.Env, label string) string {
	s := label
	if bad := c.limits.charset; bad != nil {
		for _, r := range []string{"-", "_", "0"} { // a digit is always permitted
			if !bad.MatchString(r) {
				s = bad.ReplaceAllString(s, r)
				break
			}
		}
	}
	if s == label && (c.limits.nameMax == 0 || len(s) <= c.limits.nameMax) {
		return s
	}
	// What was changed or cut no longer tells two labels apart; a hash does.
	h := sha256.Sum256([]byte(label))
	tail := hex.EncodeToString(h[:4])
	if c.limits.nameMax > 0 && len(s)+len(tail) > c.limits.nameMax {
		s = strings.ToValidUTF8(s[:max(0, c.limits.nameMax-len(tail))], "")
	}
	return s + tail
}

// Issue makes one key: it reads the old key's rights where the recipe says so,
// then makes the calls of the creation in order.
func (c *core) Issue(ctx context.Context, env provider.Env, r provider.Request) (provider.Issued, error) {
	if len(c.steps) == 0 {
		return provider.Issued{}, c.byPerson("issue", c.human.create)
	}
	v, send, err := c.begin(env)
	if err != nil {
		return provider.Issued{}, err
	}
	var out provider.Issued
	if out.Warnings, err = c.copyRights(ctx, env, r, v, send); err != nil {
		return provider.Issued{}, err
	}
	v["name"] = c.Label(env, r.Label)
	if life := max(r.Life, 0); life > 0 || c.life > 0 {
		if life == 0 {
			life = c.life
		}
		v["expires"], v["life"] = time.Now().Add(life), int64(life/time.Second)
	}
	for _, name := range slices.Sorted(maps.Keys(c.generate)) {
		v["gen."+name] = c.generate[name].make(env.Rand)
	}
	for i, s := range c.steps {
		if err := c.step(ctx, send, s, "new.", v, onCreate); err != nil {
			if i > 0 {
				err = wrapped(provider.Ambiguous, err, fmt.Sprintf("the first %d of %d calls were made, then: ", i, len(c.steps)))
			}
			return provider.Issued{}, err
		}
	}
	return c.issued(r, v, out)
}

// issued gathers a new key from what the steps extracted.
func (c *core) issued(r provider.Request, v values, out provider.Issued) (provider.Issued, error) {
	out.Parts = secret.Parts{}
	for _, p := range c.parts {
		x, ok := v["new."+p.name]
		if !ok {
			x = v["gen."+p.name]
		}
		s := asSecret(x)
		if s.IsZero() || s.Len() < p.minLen {
			return provider.Issued{}, &provider.Error{Kind: provider.Ambiguous, Text: fmt.Sprintf("%s answered with a part %s that is too short to be one", c.Vendor, p.name)}
		}
		out.Parts[p.name] = s
	}
	id, err := asText(v["new.id"])
	if err != nil || id == "" {
		return provider.Issued{}, &provider.Error{Kind: provider.Ambiguous, Text: c.Vendor + " answered without an id of the new key"}
	}
	out.VendorID = id
	if t, ok := asTime(v["new.expires"]); ok {
		out.Expires = t
	} else if t, ok := v["expires"].(time.Time); ok && c.usesExpiry() {
		out.Expires = t.Truncate(time.Second)
	}
	for _, p := range c.parts {
		if old, ok := r.Parts[p.name]; ok && p.secret && old.Equal(out.Parts[p.name]) {
			return provider.Issued{}, denied(fmt.Errorf("%s answered with the %s that the present key has", c.Vendor, p.name),
				"look at the vendor before anything is revoked: the key named "+c.name(v)+" may be the present one")
		}
	}
	if r.Old.VendorID != "" && r.Old.VendorID == id {
		return provider.Issued{}, denied(fmt.Errorf("%s answered with the id of the present key", c.Vendor),
			"look at the vendor before anything is revoked: nothing new was recorded")
	}
	return out, nil
}

func (c *core) name(v values) string {
	s, _ := v["name"].(string)
	return s
}

// usesExpiry reports whether a creation asks for an expiry.
func (c *core) usesExpiry() bool {
	return slices.ContainsFunc(c.steps, func(s step) bool { return s.request.usesAny("expires", "life") })
}

// copyRights fills copied.* from the old key, or from the defaults.
func (c *core) copyRights(ctx context.Context, env provider.Env, r provider.Request, v values, send sender) ([]string, error) {
	d := c.describe
	if d == nil {
		return nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(d.defaults)) {
		x, err := d.defaults[name].value(v)
		if err != nil {
			return nil, denied(err, "look at describe.default in the recipe "+c.ID)
		}
		v["copied."+name] = x
	}
	if r.Old.ID.Number == 0 {
		return nil, nil
	}
	id := r.Old.VendorID
	if id == "" {
		id, _ = identifier{c}.Identify(env, r.Parts)
	}
	var err error
	if id == "" {
		err = &provider.Error{Kind: provider.Denied, Text: "the rights of the present key cannot be read: its id at the vendor is not known; adopt it: keybaton adopt SERVICE --env E"}
	} else {
		got := maps.Clone(v)
		got["old.id"] = id
		for _, s := range d.steps {
			if err = c.step(ctx, send, s, "copied.", got, onRead); err != nil {
				err = wrapped(provider.KindOf(err), err, "reading the rights of the present key: ")
				break
			}
		}
		if err == nil {
			delete(got, "old.id")
			maps.Copy(v, got)
			return nil, nil
		}
	}
	if d.allow && provider.KindOf(err) == provider.Denied {
		return []string{err.Error() + "; the new key has the recipe's default rights"}, nil
	}
	return nil, err
}

// step makes one call and puts what it extracts into v under prefix.
func (c *core) step(ctx context.Context, send sender, s step, prefix string, v values, kind actKind) error {
	a, err := send(ctx, s.act, v, kind)
	if err != nil {
		return err
	}
	for _, x := range s.extract {
		got, err := x.from(a, v)
		if err != nil {
			k := provider.Denied
			if kind == onCreate {
				k = provider.Ambiguous
			}
			return &provider.Error{Kind: k, Text: fmt.Sprintf("%s answered %s without %s", c.Vendor, call.StatusText(a.status), x.source)}
		}
		if prefix == "new." {
			got = c.hide(x.name, got)
		}
		v[prefix+x.name] = got
	}
	return nil
}

// hide wraps what may be plaintext; ids, times and parts that are not secret
// stay as they are.
func (c *core) hide(name string, x any) any {
	if name == "id" || name == "expires" {
		return x
	}
	for _, p := range c.parts {
		if p.name == name && !p.secret {
			return x
		}
	}
	return asSecret(x)
}

// asSecret returns a scalar as a secret value; zero for anything else.
func asSecret(x any) secret.Value {
	if s, ok := x.(secret.Value); ok {
		return s
	}
	s, err := asText(x)
	if err != nil {
		return secret.Value{}
	}
	return secret.FromString(s)
}

// make returns a new secret with at least one character of each class.
func (g generate) make(random func([]byte)) secret.Value {
	if random == nil {
		random = systemRandom
	}
	all := ""
	for _, c := range g.classes {
		all += alphabets[c]
	}
	pick := func(from string) byte { return from[below(random, len(from))] }
	out := make([]byte, g.length)
	for {
		for i := range out {
			out[i] = pick(all)
		}
		// Drawing again until every class is there keeps all such secrets
		// equally likely; with 16 characters and more it is rarely needed.
		if !slices.ContainsFunc(g.classes, func(c string) bool { return !strings.ContainsAny(string(out), alphabets[c]) }) {
			return secret.New(out)
		}
	}
}

// systemRandom fills b; it never fails: crypto/rand ends the program instead.
func systemRandom(b []byte) { _, _ = rand.Read(b) }

// below returns an unbiased random number in [0, n), n ≤ 256.
func below(random func([]byte), n int) int {
	var b [1]byte
	for {
		random(b[:])
		if int(b[0]) < 256-256%n {
			return int(b[0]) % n
		}
	}
}

// byPerson is the answer to what only a person can do.
func (c *core) byPerson(what string, steps []string) *provider.Error {
	text := fmt.Sprintf("%s has no way to %s a key by API; a person does it", c.Vendor, what)
	if len(steps) > 0 {
		text += ": " + strings.Join(steps, "; ")
	}
	if c.human.url != "" {
		text += " (" + c.human.url + ")"
	}
	return &provider.Error{Kind: provider.Denied, Text: text}
}

// Revoke ends the key; one that is gone already is a success.
func (c *core) Revoke(ctx context.Context, env provider.Env, vendorID string) error {
	if c.revoke == nil {
		return c.byPerson("revoke", c.human.revoke)
	}
	v, send, err := c.beginOn(env, vendorID)
	if err != nil {
		return err
	}
	_, err = send(ctx, *c.revoke, v, onIdempotent)
	return err
}

// beginOn is begin for an act on one key.
func (c *core) beginOn(env provider.Env, id string) (values, sender, error) {
	if id == "" {
		return nil, nil, &provider.Error{Kind: provider.Denied, Text: "the vendor's id of the key is not known"}
	}
	v, send, err := c.begin(env)
	if err == nil {
		v["id"] = id
	}
	return v, send, err
}

// Identify returns the part that is the vendor's id.
func (i identifier) Identify(_ provider.Env, p secret.Parts) (string, bool) {
	v, ok := p[i.c.idPart]
	if i.c.idPart == "" || !ok || v.IsZero() {
		return "", false
	}
	return string(v.Reveal()), true
}

// Preview returns the requests of one act; what is only known when it is done
// stands in braces.
func (c *core) Preview(env provider.Env, what string) []string {
	v, err := c.values(env)
	if err != nil {
		return nil
	}
	base, err := c.address(c.manager.base, v)
	if err != nil {
		base = "{" + "address" + "}"
	}
	var out []string
	add := func(qs ...request) {
		for _, q := range qs {
			out = append(out, q.method+" "+base+q.path.preview(v))
		}
	}
	switch what {
	case "issue":
		if c.describe != nil && len(c.steps) > 0 {
			for _, s := range c.describe.steps {
				add(s.request)
			}
		}
		for _, s := range c.steps {
			add(s.request)
		}
	case "list":
		if c.list != nil {
			add(c.list.request)
		}
	case "disable":
		if c.disable != nil {
			if c.disable.read != nil {
				add(c.disable.read.request)
			}
			add(c.disable.request)
		}
	case "enable":
		if c.enable != nil {
			add(c.enable.request)
		}
	case "revoke":
		if c.revoke != nil {
			add(c.revoke.request)
		}
	case "probe":
		if p, err := call.CompileProbe(c.Describe(env).Call.Over(env.Call)); err == nil {
			out = append(out, p.String())
		}
	}
	return out
}

// preview renders a path with what is not known in braces.
func (t template) preview(v values) string {
	var b strings.Builder
	for _, p := range t.pieces {
		s, known := v[p.name].(string)
		switch {
		case p.name == "":
			b.WriteString(p.text)
		case known && s != "":
			b.WriteString(url.PathEscape(s))
		default:
			b.WriteString("{" + p.name + "}")
		}
	}
	return b.String()
}
