package recipe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/spec"
	"github.com/keybaton/keybaton/secret"
)

// New returns the driver of a recipe. It satisfies provider.Previewer,
// provider.Matcher and provider.Labeler always, and provider.Lister,
// provider.Disabler, provider.Identifier and provider.Locator only where the recipe describes them. It is safe for
// concurrent use.
func New(r *spec.Recipe) provider.Driver {
	c := &core{r}
	if r.Slots != nil && r.Slots.Read != nil {
		return struct {
			*core
			locator
		}{c, locator{c}}
	}
	has := [3]bool{r.List != nil, r.Disable != nil, r.IDPart != ""}
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
type core struct{ *spec.Recipe }

type lister struct{ c *core }
type disabler struct{ c *core }
type identifier struct{ c *core }

// params returns the values of env's params over the defaults.
func (c *core) values(env provider.Env) (spec.Values, error) {
	v := spec.Values{}
	for _, p := range c.Params {
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
func (c *core) address(t spec.Template, v spec.Values) (string, error) {
	if _, whole := t.Whole(); !whole {
		for _, name := range t.Uses() {
			if s, _ := v[name].(string); !hostRE.MatchString(s) {
				return "", denied(fmt.Errorf("the param %s does not fit into an address", strings.TrimPrefix(name, "param.")), "use letters, digits, '.', '_' and '-'")
			}
		}
	}
	s, err := t.Text(v, nil)
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
		ID: c.ID, Vendor: c.Vendor, Params: slices.Clone(c.Params), Patterns: map[string]string{},
		ListsAll: c.Recipe.List != nil && c.Recipe.List.Complete, Manager: c.Manager.Wanted,
		ManagerParts: slices.Clone(c.Manager.Parts), Tested: c.Tested,
	}
	if c.UsageFrom {
		info.Granular = c.Granular
	}
	for _, p := range c.Parts {
		if p.Pattern != "" {
			info.Patterns[p.Name] = p.Pattern
		}
	}
	a := &info.Abilities
	a.Issue, a.Revoke, a.List = len(c.Steps) > 0, c.Recipe.Revoke != nil, c.Recipe.List != nil
	if a.List && c.Recipe.List.Name == nil {
		// A stray of a lost answer cannot be told from somebody else's key: a
		// person is asked, as where there is no list.
		a.List = false
	}
	a.Disable, a.Max = c.Recipe.Disable != nil, c.Limits.Max
	a.Roll, a.Grace = c.Rolls(), c.Grace
	if c.Slots != nil {
		a.Fixed, a.Max = slices.Clone(c.Slots.Names), len(c.Slots.Names)
	}
	a.Used, a.Grain = c.UsageFrom, c.Granular
	a.Early, a.Late, a.Spacing, a.DeadOK = c.Early, c.Late, c.Spacing, c.DeadOK
	a.Steps, a.Undo, a.URL = slices.Clone(c.Human.Create), slices.Clone(c.Human.Revoke), c.Human.URL
	info.Call = key.Call{Place: c.Place, Rules: slices.Clone(c.Rules), FallbackOn: slices.Clone(c.Fallback), Parts: c.PartNames(), Early: c.Early}
	v, err := c.values(env)
	if err != nil {
		a.Probe = c.Recipe.Probe != nil || env.Call.Probe != nil
		return info
	}
	if s, err := c.address(c.Upstream, v); err == nil {
		info.Call.Upstream = s
	}
	if c.Recipe.Probe != nil {
		if p, err := probeData(c.Recipe.Probe, v); err == nil {
			info.Call.Probe = p
		}
	}
	a.Probe = info.Call.Probe != nil || env.Call.Probe != nil
	return info
}

// probeData renders the probe as plain data.
func probeData(p *spec.Probe, v spec.Values) (*key.Probe, error) {
	path, err := p.Path.Text(v, spec.PathSegment)
	if err != nil {
		return nil, err
	}
	query, err := form(p.Query, v)
	if err != nil {
		return nil, err
	}
	if query != "" {
		path += "?" + query
	}
	out := &key.Probe{Method: p.Method, Path: path, Rules: slices.Clone(p.Rules)}
	for _, h := range p.Header {
		if out.Header == nil {
			out.Header = map[string]string{}
		}
		if out.Header[h.Name], err = h.Value.Text(v, nil); err != nil {
			return nil, err
		}
	}
	body, ctype, err := bodyOf(spec.Request{JSON: p.JSON, Form: p.Form}, v)
	if err != nil {
		return nil, err
	}
	if ctype != "" {
		out.Body = string(body)
		if out.Header == nil {
			out.Header = map[string]string{}
		}
		out.Header["Content-Type"] = ctype
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
	if bad := c.Limits.Charset; bad != nil {
		for _, r := range []string{"-", "_", "0"} { // a digit is always permitted
			if !bad.MatchString(r) {
				s = bad.ReplaceAllString(s, r)
				break
			}
		}
	}
	if s == label && (c.Limits.NameMax == 0 || len(s) <= c.Limits.NameMax) {
		return s
	}
	// What was changed or cut no longer tells two labels apart; a hash does.
	h := sha256.Sum256([]byte(label))
	tail := hex.EncodeToString(h[:4])
	if c.Limits.NameMax > 0 && len(s)+len(tail) > c.Limits.NameMax {
		s = strings.ToValidUTF8(s[:max(0, c.Limits.NameMax-len(tail))], "")
	}
	return s + tail
}

// Issue makes one key: it reads the old key's rights where the recipe says so,
// then makes the calls of the creation in order.
func (c *core) Issue(ctx context.Context, env provider.Env, r provider.Request) (provider.Issued, error) {
	if len(c.Steps) == 0 {
		return provider.Issued{}, c.byPerson("issue", c.Human.Create)
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
	if c.Slots != nil {
		if r.Place == "" || slices.Contains(r.Taken, r.Place) || !slices.Contains(c.Slots.Names, r.Place) {
			return provider.Issued{}, &provider.Error{Kind: provider.Full, Text: c.Vendor + " has no free key to make anew"}
		}
		v["slot"] = r.Place
	}
	if life := max(r.Life, 0); life > 0 || c.Life > 0 {
		if life == 0 {
			life = c.Life
		}
		v["expires"], v["life"] = time.Now().Add(life), int64(life/time.Second)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Recipe.Generate)) {
		v["gen."+name] = c.Recipe.Generate[name].Make(env.Rand)
	}
	for i, s := range c.Steps {
		if err := c.step(ctx, send, s, "new.", v, onCreate); err != nil {
			if i > 0 {
				err = wrapped(provider.Ambiguous, err, fmt.Sprintf("the first %d of %d calls were made, then: ", i, len(c.Steps)))
			}
			return provider.Issued{}, err
		}
	}
	return c.issued(r, v, out)
}

// issued gathers a new key from what the steps extracted.
func (c *core) issued(r provider.Request, v spec.Values, out provider.Issued) (provider.Issued, error) {
	out.Parts = secret.Parts{}
	for _, p := range c.Parts {
		x, ok := v["new."+p.Name]
		if !ok {
			x = v["gen."+p.Name]
		}
		s := asSecret(x)
		if s.IsZero() || s.Len() < p.MinLen {
			return provider.Issued{}, &provider.Error{Kind: provider.Ambiguous, Text: fmt.Sprintf("%s answered with a part %s that is too short to be one", c.Vendor, p.Name)}
		}
		out.Parts[p.Name] = s
	}
	id, err := spec.AsText(v["new.id"])
	if err != nil || id == "" {
		return provider.Issued{}, &provider.Error{Kind: provider.Ambiguous, Text: c.Vendor + " answered without an id of the new key"}
	}
	out.VendorID = id
	if t, ok := asTime(v["new.expires"]); ok {
		out.Expires = t
	} else if t, ok := v["expires"].(time.Time); ok && c.usesExpiry() {
		out.Expires = t.Truncate(time.Second)
	}
	for _, p := range c.Parts {
		if old, ok := r.Parts[p.Name]; ok && p.Secret && old.Equal(out.Parts[p.Name]) {
			return provider.Issued{}, denied(fmt.Errorf("%s answered with the %s that the present key has", c.Vendor, p.Name),
				"look at the vendor before anything is revoked: the key named "+c.name(v)+" may be the present one")
		}
	}
	if r.Old.VendorID != "" && r.Old.VendorID == id && !c.Rolls() {
		return provider.Issued{}, denied(fmt.Errorf("%s answered with the id of the present key", c.Vendor),
			"look at the vendor before anything is revoked: nothing new was recorded")
	}
	return out, nil
}

func (c *core) name(v spec.Values) string {
	s, _ := v["name"].(string)
	return s
}

// usesExpiry reports whether a creation asks for an expiry.
func (c *core) usesExpiry() bool {
	return slices.ContainsFunc(c.Steps, func(s spec.Step) bool { return s.Request.UsesAny("expires", "life") })
}

// copyRights fills copied.* from the old key, or from the defaults.
func (c *core) copyRights(ctx context.Context, env provider.Env, r provider.Request, v spec.Values, send sender) ([]string, error) {
	d := c.Recipe.Describe
	if d == nil {
		return nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(d.Defaults)) {
		x, err := d.Defaults[name].Value(v)
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
		for _, s := range d.Steps {
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
	if d.Allow && provider.KindOf(err) == provider.Denied {
		return []string{err.Error() + "; the new key has the recipe's default rights"}, nil
	}
	return nil, err
}

// step makes one call and puts what it extracts into v under prefix.
func (c *core) step(ctx context.Context, send sender, s spec.Step, prefix string, v spec.Values, kind actKind) error {
	a, err := send(ctx, s.Act, v, kind)
	if err != nil {
		return err
	}
	for _, x := range s.Extract {
		got, err := take(x, a, v)
		if err != nil {
			k := provider.Denied
			if kind == onCreate {
				k = provider.Ambiguous
			}
			return &provider.Error{Kind: k, Text: fmt.Sprintf("%s answered %s without %s", c.Vendor, call.StatusText(a.status), x.Source)}
		}
		if prefix == "new." {
			got = c.hide(x.Name, got)
		}
		v[prefix+x.Name] = got
	}
	return nil
}

// hide wraps what may be plaintext; ids, times and parts that are not secret
// stay as they are.
func (c *core) hide(name string, x any) any {
	if name == "id" || name == "expires" {
		return x
	}
	for _, p := range c.Parts {
		if p.Name == name && !p.Secret {
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
	s, err := spec.AsText(x)
	if err != nil {
		return secret.Value{}
	}
	return secret.FromString(s)
}

// byPerson is the answer to what only a person can do.
func (c *core) byPerson(what string, steps []string) *provider.Error {
	text := fmt.Sprintf("%s has no way to %s a key by API; a person does it", c.Vendor, what)
	if len(steps) > 0 {
		text += ": " + strings.Join(steps, "; ")
	}
	if c.Human.URL != "" {
		text += " (" + c.Human.URL + ")"
	}
	return &provider.Error{Kind: provider.Denied, Text: text}
}

// Revoke ends the key; one that is gone already is a success.
func (c *core) Revoke(ctx context.Context, env provider.Env, vendorID string) error {
	if c.Recipe.Revoke == nil {
		return c.byPerson("revoke", c.Human.Revoke)
	}
	v, send, err := c.beginOn(env, vendorID)
	if err != nil {
		return err
	}
	_, err = send(ctx, *c.Recipe.Revoke, v, onIdempotent)
	return err
}

// beginOn is begin for an act on one key.
func (c *core) beginOn(env provider.Env, id string) (spec.Values, sender, error) {
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
	v, ok := p[i.c.IDPart]
	if i.c.IDPart == "" || !ok || v.IsZero() {
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
	base, err := c.address(c.Manager.Base, v)
	if err != nil {
		base = "{" + "address" + "}"
	}
	var out []string
	add := func(qs ...spec.Request) {
		for _, q := range qs {
			out = append(out, q.Method+" "+base+q.Path.Preview(v))
		}
	}
	switch what {
	case "issue":
		if c.Recipe.Describe != nil && len(c.Steps) > 0 {
			for _, s := range c.Recipe.Describe.Steps {
				add(s.Request)
			}
		}
		for _, s := range c.Steps {
			add(s.Request)
		}
	case "list":
		if c.Recipe.List != nil {
			add(c.Recipe.List.Request)
		}
	case "disable":
		if c.Recipe.Disable != nil {
			if c.Recipe.Disable.Read != nil {
				add(c.Recipe.Disable.Read.Request)
			}
			add(c.Recipe.Disable.Request)
		}
	case "enable":
		if c.Recipe.Enable != nil {
			add(c.Recipe.Enable.Request)
		}
	case "revoke":
		if c.Recipe.Revoke != nil {
			add(c.Recipe.Revoke.Request)
		}
	case "probe":
		if p, err := call.CompileProbe(c.Describe(env).Call.Over(env.Call)); err == nil {
			out = append(out, p.String())
		}
	}
	return out
}
