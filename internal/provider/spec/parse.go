package spec

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
)

// Parse reads the recipe src; name is the file in problems. The error is a
// [*ParseError] with everything that is wrong, in the order of the file.
func Parse(name string, src []byte) (*Recipe, error) {
	r := &reader{}
	top := r.read(src)
	if top == nil {
		return nil, r.err(name)
	}
	p := &parsing{reader: r, rec: &Recipe{urlParam: map[string]bool{}, Generate: map[string]generate{}}}
	p.all(r.object(top, ""))
	if err := r.err(name); err != nil {
		return nil, err
	}
	return p.rec, nil
}

// parsing is one Parse at work; base are the names of params.
type parsing struct {
	*reader
	rec  *Recipe
	base names
}

var idRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
var wordRE = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

func (p *parsing) all(o *object) {
	if o == nil {
		return
	}
	rec := p.rec
	if n := o.need("recipe", "recipe: 1"); n != nil && (n.kind != isInt || n.number != 1) {
		p.add(n, "recipe", "recipe: 1", "only version 1 is known")
	}
	if s, n := o.text("id"); n == nil {
		p.add(o.n, "id", "id: vendor-name", "this field is missing")
	} else if !idRE.MatchString(s) {
		p.add(n, "id", "a-z, 0-9 and '-' only", "%q is no id", s)
	} else {
		rec.ID = s
	}
	p.vendor(o.object("vendor"), o)
	if o.need("tested", "tested: doc, loopback or live") != nil {
		rec.Tested = o.choice("tested", "", "doc", "loopback", "live")
	}
	rec.Shape = o.choice("shape", MultiKey, MultiKey, DualIdentity, TwoSlot, RollGrace, RollHard, Human)
	rec.Hazards = o.texts("hazards")
	p.params(o.object("params"))
	p.credential(o)
	p.upstream(o)
	p.manager(o.object("manager"))
	p.overwrites(o)
	p.limits(o.object("limits"))
	p.generate(o.object("generate"))
	p.life(o.object("expiry"))
	p.describe(o.object("describe"))
	p.create(o)
	p.list(o.object("list"))
	rec.Rules = p.rules(o.list("classify"), "classify")
	for i, n := range o.list("fallback_on") {
		if n.kind != isInt || n.number < 400 || n.number > 599 {
			p.add(n, fmt.Sprintf("fallback_on[%d]", i), "a status from 400 to 599", "%q does not fit", n.text)
		}
		rec.Fallback = append(rec.Fallback, int(n.number))
	}
	p.probe(o.object("probe"))
	p.times(o)
	p.soft(o.object("soft"))
	p.human(o.object("human"), o)
	p.revoke(o.object("revoke"), o)
	o.done()
	p.needsManager(o)
}

func (p *parsing) vendor(o, top *object) {
	if o == nil {
		if top.n != nil && !slices.ContainsFunc(top.n.fields, func(f field) bool { return f.name == "vendor" }) {
			p.add(top.n, "vendor", "vendor: {name: …}", "this field is missing")
		}
		return
	}
	s, n := o.text("name")
	if n == nil || s == "" {
		p.add(o.n, o.at("name"), "name: and the vendor's name", "this field is missing")
	}
	p.rec.Vendor = s
	p.rec.Docs = o.texts("docs")
	p.rec.Source, _ = o.text("source")
	o.done()
}

func (p *parsing) params(o *object) {
	p.base = names{}
	if o == nil {
		return
	}
	for _, f := range o.n.fields {
		at := o.at(f.name)
		if !wordRE.MatchString(f.name) {
			p.add(&node{line: f.line, col: f.col}, at, "a-z, 0-9 and '_' only", "this is no name of a param")
			continue
		}
		p.base["param."+f.name] = plain
		c := p.object(f.value, at)
		if c == nil {
			continue
		}
		prm := provider.Param{Name: f.name, Required: c.flag("required", false)}
		p.rec.urlParam[f.name] = c.choice("type", "text", "text", "url") == "url"
		prm.Default, _ = c.text("default")
		prm.Help, _ = c.text("help")
		c.done()
		if d := c.get("default"); d != nil && prm.Required {
			p.add(d, at, "only one of default and required", "a param with a default is never missing")
		}
		if d := c.get("default"); d != nil && p.rec.urlParam[f.name] && !isBase(prm.Default) {
			p.add(d, join(at, "default"), "a URL such as https://api.example.com", "%q is no URL of a host", prm.Default)
		}
		p.rec.Params = append(p.rec.Params, prm)
	}
}

func (p *parsing) credential(top *object) {
	rec := p.rec
	o := top.object("credential")
	if o == nil {
		if !slices.ContainsFunc(top.n.fields, func(f field) bool { return f.name == "credential" }) {
			p.add(top.n, "credential", "credential: {parts: [{name: key, secret: true}], place: …}", "this field is missing")
		}
		rec.Parts = []Part{{Name: "key", Secret: true}}
		return
	}
	secrets := 0
	for i, it := range o.list("parts") {
		at := fmt.Sprintf("%s[%d]", o.at("parts"), i)
		c := p.object(it, at)
		if c == nil {
			continue
		}
		pt := Part{Secret: c.flag("secret", true)}
		s, n := c.text("name")
		switch {
		case n == nil || !wordRE.MatchString(s) || s == "id" && pt.Secret:
			p.add(it, join(at, "name"), "a name of a-z, 0-9 and '_' such as key", "%q is no name of a part", s)
		case slices.ContainsFunc(rec.Parts, func(x Part) bool { return x.Name == s }):
			p.add(n, join(at, "name"), "each part once", "%q is there twice", s)
		}
		pt.Name = s
		if pat, pn := c.text("pattern"); pn != nil {
			if _, err := regexp.Compile(pat); err != nil {
				p.add(pn, join(at, "pattern"), "an RE2 regular expression", "%q does not compile", pat)
			}
			pt.Pattern = pat
		}
		pt.MinLen = c.number("min_len", 1, 4096)
		c.done()
		if pt.Secret {
			secrets++
		}
		rec.Parts = append(rec.Parts, pt)
	}
	if len(rec.Parts) == 0 { // none were said, or none could be read
		rec.Parts = []Part{{Name: "key", Secret: true}}
	} else if secrets == 0 {
		p.add(o.n, o.at("parts"), "secret: true on the part that is secret", "no part is secret")
	}
	if s, n := o.text("id"); n != nil {
		i := slices.IndexFunc(rec.Parts, func(x Part) bool { return x.Name == s })
		switch {
		case i < 0:
			p.add(n, o.at("id"), "the name of a part, or leave it out", "there is no part %q", s)
		case rec.Parts[i].Secret:
			p.add(n, o.at("id"), "a part with secret: false", "part %q is secret, and ids are not", s)
		}
		rec.IDPart = s
	}
	rec.Place, _ = p.place(o, rec.PartNames())
	o.done()
}

// PartNames returns the names of the parts of a key.
func (r *Recipe) PartNames() []string {
	out := make([]string, len(r.Parts))
	for i, pt := range r.Parts {
		out[i] = pt.Name
	}
	return out
}

// Place reads the field place of o: where a key of parts rides.
func (p *parsing) place(o *object, parts []string) (key.Place, call.Place) {
	n := o.need("place", `place: {in: header, name: Authorization, value: "Bearer {{`+parts[0]+`}}"}`)
	if n == nil {
		return key.Place{}, call.Place{}
	}
	at := o.at("place")
	c := p.object(n, at)
	if c == nil {
		return key.Place{}, call.Place{}
	}
	var k key.Place
	k.In = c.choice("in", "", key.InHeader, key.InBasic, key.InQuery, key.InForm, key.InJSON, key.InSigV4)
	if c.get("in") == nil {
		p.add(n, join(at, "in"), "in: header, basic, query, form, json or sigv4", "this field is missing")
	}
	k.Name, _ = c.text("name")
	k.Value, _ = c.text("value")
	k.User, _ = c.text("user")
	c.done()
	if k.In == "" {
		return k, call.Place{}
	}
	compiled, err := call.CompilePlace(k, parts)
	if err != nil {
		p.add(n, at, "templates of {{"+strings.Join(parts, "}} and {{")+"}}", "%s", plainText(err))
	}
	return k, compiled
}

// plainText is the text of err without the sentinel at its head.
func plainText(err error) string {
	return strings.TrimPrefix(err.Error(), key.ErrInvalid.Error()+": ")
}

func (p *parsing) upstream(o *object) {
	s, n := o.text("upstream")
	if n == nil {
		p.add(o.n, "upstream", "upstream: https://api.example.com", "this field is missing")
		return
	}
	p.rec.Upstream = p.baseURL(n, "upstream", s)
}

// baseURL compiles the address of a host with params in it.
func (p *parsing) baseURL(n *node, path, s string) Template {
	before := len(p.problems)
	t := p.template(n, path, s, p.base)
	if len(p.problems) > before {
		return t
	}
	if _, only := t.Whole(); only {
		if name := strings.TrimPrefix(t.pieces[0].name, "param."); !p.rec.urlParam[name] {
			p.add(n, path, "type: url at the param "+name, "the param is the whole address, and is no URL")
		}
		return t
	}
	probe, err := t.Text(p.example(), nil)
	if err != nil || !isBase(probe) {
		p.add(n, path, "https://host or https://host/prefix", "%q is no URL of a host", s)
	}
	return t
}

// isBase reports whether s is the address of a host, perhaps with a prefix.
func isBase(s string) bool {
	_, err := call.ParseUpstream(s)
	return err == nil
}

// example gives every param a harmless value.
func (p *parsing) example() Values {
	v := Values{}
	for n := range p.base {
		v[n] = "x"
		if p.rec.urlParam[strings.TrimPrefix(n, "param.")] {
			v[n] = "https://example.com"
		}
	}
	return v
}

func (p *parsing) manager(o *object) {
	m := &p.rec.Manager
	m.Base = p.rec.Upstream
	if o == nil {
		return
	}
	m.Wanted = o.choice("wanted", "required", "required", "self")
	m.Parts = o.texts("parts")
	if len(m.Parts) == 0 {
		m.Parts = []string{"key"}
	}
	for i, s := range m.Parts {
		if !wordRE.MatchString(s) {
			p.add(o.get("parts"), fmt.Sprintf("%s[%d]", o.at("parts"), i), "a name such as key", "%q is no name of a part", s)
		}
	}
	_, m.Place = p.place(o, m.Parts)
	if s, n := o.text("base"); n != nil {
		m.Base = p.baseURL(n, o.at("base"), s)
	}
	o.texts("scopes") // for people who make the manager key
	o.done()
}

func (p *parsing) limits(o *object) {
	if o == nil {
		return
	}
	l := &p.rec.Limits
	l.Max = o.number("max_active", 1, 1_000_000)
	l.NameMax = o.number("name_max", 16, 4096)
	o.flag("name_unique", false) // labels are unique anyway; for people
	if s, n := o.text("name_charset"); n != nil {
		re, err := regexp.Compile("[^" + s + "]")
		if err != nil || strings.ContainsAny(s, "[]^") || re.MatchString("a") || re.MatchString("0") {
			p.add(n, o.at("name_charset"), "the inside of a character class with a-z and 0-9 in it, such as a-z0-9_-", "%q does not fit", s)
		} else {
			l.Charset = re
		}
	}
	if n := o.get("full"); n != nil {
		l.Full = p.condition(n, o.at("full"))
	}
	o.done()
}

// alphabets of generated secrets.
var alphabets = map[string]string{
	"lower":  "abcdefghijklmnopqrstuvwxyz",
	"upper":  "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
	"digit":  "0123456789",
	"symbol": "!#%+:=?@_~-",
}

func (p *parsing) generate(o *object) {
	if o == nil {
		return
	}
	for _, f := range o.n.fields {
		at := o.at(f.name)
		if !slices.ContainsFunc(p.rec.Parts, func(x Part) bool { return x.Name == f.name && x.Secret }) {
			p.add(&node{line: f.line, col: f.col}, at, "the name of a secret part", "there is no secret part %q", f.name)
			continue
		}
		c := p.object(f.value, at)
		if c == nil {
			continue
		}
		g := generate{length: c.number("len", 16, 1024)}
		if c.get("len") == nil {
			g.length = 32
		}
		for i, n := range c.list("classes") {
			s := p.text(n, fmt.Sprintf("%s.classes[%d]", at, i))
			if _, ok := alphabets[s]; !ok || slices.Contains(g.classes, s) {
				p.add(n, fmt.Sprintf("%s.classes[%d]", at, i), "each once of "+strings.Join(slices.Sorted(maps.Keys(alphabets)), ", "), "%q does not fit", s)
				continue
			}
			g.classes = append(g.classes, s)
		}
		if len(g.classes) == 0 {
			g.classes = []string{"lower", "upper", "digit"}
		}
		c.done()
		p.rec.Generate[f.name] = g
	}
}

func (p *parsing) life(o *object) {
	if o == nil {
		return
	}
	p.rec.Life = o.duration("default")
	o.done()
}

func (p *parsing) human(o, top *object) {
	if o == nil {
		if p.rec.Shape == Human {
			p.add(top.n, "human", "human: {url: …, create: [steps], revoke: [steps]}", "a vendor of shape human needs this field")
		}
		return
	}
	h := &p.rec.Human
	h.Create, h.Revoke = o.texts("create"), o.texts("revoke")
	if s, n := o.text("url"); n != nil {
		if u, err := url.Parse(s); err != nil || u.Scheme != "https" || u.Host == "" {
			p.add(n, o.at("url"), "a URL that begins with https://", "%q is no URL", s)
		}
		h.URL = s
	}
	if p.rec.Shape == Human && len(h.Create) == 0 {
		p.add(o.n, o.at("create"), "create: and the steps, each behind a dash", "this field is missing")
	}
	o.done()
}
