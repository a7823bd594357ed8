package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
)

// What a template may use, besides params, in each act.
var (
	namesOld    = names{"old.id": plain}
	namesID     = names{"id": plain}
	namesCreate = names{"name": plain, "expires": moment, "life": typed}
)

func (p *parsing) managerNames() names {
	n := names{}
	for _, s := range p.rec.Manager.Parts {
		n["manager."+s] = hidden
	}
	return n
}

// Request reads a request whose templates may use ok.
func (p *parsing) request(n *node, at string, ok names) Request {
	var q Request
	o := p.object(n, at)
	if o == nil {
		return q
	}
	q.Method = o.choice("method", "GET", "GET", "POST", "PUT", "PATCH", "DELETE")
	s, pn := o.text("path")
	if pn == nil {
		p.add(n, join(at, "path"), "path: /keys", "this field is missing")
	} else {
		q.Path = p.path(pn, join(at, "path"), s, ok)
	}
	q.Query = p.named(o.object("query"), ok)
	for _, f := range q.Query {
		p.noSecret(o.get("query"), join(o.at("query"), f.Name), f.Value, ok)
	}
	q.Header = p.named(o.object("header"), ok)
	if j := o.get("json"); j != nil {
		t := p.tree(j, join(at, "json"), ok)
		q.JSON = &t
	}
	if f := o.get("form"); f != nil {
		q.Form = p.named(o.object("form"), ok)
		if q.JSON != nil {
			p.add(f, join(at, "form"), "json or form", "a request has one body")
		}
	}
	o.done()
	return q
}

// path compiles a path: it begins with a slash, and no secret rides in it.
func (p *parsing) path(n *node, at, s string, ok names) Template {
	if !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || strings.ContainsAny(s, "?#\\ \t\r\n") {
		p.add(n, at, "/path/{{id}}, and what follows a ? under query:", "%q is no path", s)
	}
	t := p.template(n, at, s, ok)
	p.noSecret(n, at, t, ok)
	return t
}

func (p *parsing) noSecret(n *node, at string, t Template, ok names) {
	for _, u := range t.Uses() {
		if ok[u] == hidden {
			p.add(n, at, "it in json, form or header", "%s is secret, and a secret may not ride in a URL", u)
		}
	}
}

func (p *parsing) named(o *object, ok names) []Named {
	if o == nil {
		return nil
	}
	var out []Named
	for _, f := range o.n.fields {
		at := o.at(f.name)
		out = append(out, Named{f.name, p.template(f.value, at, p.text(f.value, at), ok)})
	}
	return out
}

// Act reads the fields request, expect and gone of o.
func (p *parsing) act(o *object, ok names) Act {
	var a Act
	if o == nil {
		return a
	}
	if n := o.need("request", "request: {method: …, path: …}"); n != nil {
		a.Request = p.request(n, o.at("request"), ok)
	}
	a.Expect = p.expect(o)
	if n := o.get("gone"); n != nil {
		a.Gone = p.condition(n, o.at("gone"))
	}
	return a
}

// steps reads a list of calls; each may use what those before it extracted
// under prefix.
func (p *parsing) steps(items []*node, at, fields, prefix string, ok names, kindOf func(string) sort) ([]Step, names) {
	ok = ok.with(nil)
	var out []Step
	for i, it := range items {
		o := p.object(it, fmt.Sprintf("%s[%d]", at, i))
		if o == nil {
			continue
		}
		s := Step{Act: p.act(o, ok)}
		ex := o.object(fields)
		if ex != nil {
			found := names{}
			for _, f := range ex.n.fields {
				if !wordRE.MatchString(f.name) {
					p.add(&node{line: f.line, col: f.col}, ex.at(f.name), "a-z, 0-9 and '_' only", "this is no name")
					continue
				}
				s.Extract = append(s.Extract, p.extract(f, ex.at(f.name), ok))
				found[prefix+f.name] = kindOf(f.name)
			}
			maps.Copy(ok, found)
		}
		o.done()
		out = append(out, s)
	}
	return out, ok
}

func (p *parsing) describe(o *object) {
	if o == nil {
		return
	}
	d := &describe{Defaults: map[string]Tree{}}
	ok := p.base.with(namesOld).with(p.managerNames())
	var have names
	d.Steps, have = p.steps(o.list("steps"), o.at("steps"), "copy", "copied.", ok, func(string) sort { return typed })
	if len(d.Steps) == 0 && o.get("steps") == nil {
		p.add(o.n, o.at("steps"), "steps: [{request: …, copy: {scopes: $.scopes}}]", "this field is missing")
	}
	d.Allow = o.choice("if_unreadable", "refuse", "refuse", "allow") == "allow"
	if c := o.object("default"); c != nil {
		for _, f := range c.n.fields {
			if _, known := have["copied."+f.name]; !known {
				p.add(&node{line: f.line, col: f.col}, c.at(f.name), "only what a step copies", "nothing is copied as %q", f.name)
			}
			d.Defaults[f.name] = p.tree(f.value, c.at(f.name), p.base)
		}
	}
	o.done()
	p.rec.Describe = d
}

func (p *parsing) create(top *object) {
	o := top.object("create")
	rec := p.rec
	if o == nil {
		if rec.Shape != Human && !slices.ContainsFunc(top.n.fields, func(f field) bool { return f.name == "create" }) {
			p.add(top.n, "create", "create: {steps: …}, or shape: human", "this field is missing")
		}
		return
	}
	if rec.Shape == Human {
		p.add(o.n, "create", "another shape, or leave create out", "a vendor of shape human has no creation")
	}
	ok := p.base.with(namesCreate).with(p.managerNames())
	if rec.Shape == TwoSlot {
		ok["slot"] = plain
	}
	for g := range rec.Generate {
		ok["gen."+g] = hidden
	}
	if rec.Describe != nil {
		for _, s := range rec.Describe.Steps {
			for _, x := range s.Extract {
				ok["copied."+x.Name] = typed
			}
		}
	}
	kindOf := func(name string) sort {
		for _, pt := range rec.Parts {
			if pt.Name == name && !pt.Secret {
				return plain
			}
		}
		if name == "id" {
			return plain
		}
		return hidden
	}
	var have names
	rec.Steps, have = p.steps(o.list("steps"), o.at("steps"), "extract", "new.", ok, kindOf)
	o.choice("lost_answer", "list_by_name", "list_by_name", "ask") // for people: the engine looks through the list, else asks
	o.done()
	if len(rec.Steps) == 0 {
		p.add(o.n, o.at("steps"), "steps: [{request: …, extract: {id: $.id, key: $.key}}]", "there is no step")
		return
	}
	if _, found := have["new.id"]; !found {
		p.add(o.n, o.at("steps"), "extract: {id: $.id}", "no step extracts the vendor's id")
	}
	for _, pt := range rec.Parts {
		_, got := have["new."+pt.Name]
		if _, gen := rec.Generate[pt.Name]; !got && !gen {
			p.add(o.n, o.at("steps"), "extract: {"+pt.Name+": $.…}", "no step extracts the part %q, and it is not generated", pt.Name)
		}
	}
}

func (p *parsing) list(o *object) {
	if o == nil {
		return
	}
	ok := p.base.with(p.managerNames())
	l := &list{Act: p.act(o, ok), Complete: o.flag("complete", true)}
	if n := o.need("items", "items: $.keys"); n != nil && n.kind == isMap {
		x := p.object(n, o.at("items"))
		s, xn := x.text("xml")
		if l.XML = strings.Split(s, "/"); xn == nil || len(l.XML) < 2 || slices.Contains(l.XML, "") {
			p.add(n, o.at("items"), "items: {xml: Result/Keys/member}, with the element that holds them", "%q is no path of items", s)
		}
		x.done()
	} else if n != nil {
		l.Items = p.jsonPath(n, o.at("items"))
	}
	m := o.object("map")
	if m == nil {
		p.add(o.n, o.at("map"), "map: {id: $.id, name: $.name}", "this field is missing")
	} else {
		if n := m.need("id", "id: $.id"); n != nil {
			l.ID = p.jsonPath(n, m.at("id"))
		}
		for name, to := range map[string]**call.Path{"name": &l.Name, "created": &l.Created, "last_used": &l.LastUsed} {
			if n := m.get(name); n != nil {
				path := p.jsonPath(n, m.at(name))
				*to = &path
			}
		}
		if n := m.get("disabled"); n != nil {
			l.Disabled = p.flagRule(n, m.at("disabled"))
		}
		m.done()
	}
	p.page(o.object("page"), l)
	o.done()
	p.rec.List = l
}

func (p *parsing) flagRule(n *node, at string) *FlagRule {
	if n.kind != isMap {
		return &FlagRule{Path: p.jsonPath(n, at)}
	}
	o := p.object(n, at)
	f := &FlagRule{}
	if j := o.need("json", "json: $.status"); j != nil {
		f.Path = p.jsonPath(j, o.at("json"))
	}
	if s, e := o.text("equals"); e != nil {
		f.Equals = &s
	}
	if s, e := o.text("not"); e != nil {
		if f.Equals != nil {
			p.add(e, o.at("not"), "equals or not", "there are both")
		}
		f.Equals, f.Not = &s, true
	}
	o.done()
	return f
}

func (p *parsing) page(o *object, l *list) {
	l.Page = Page{Kind: "none", Most: 1000}
	if o == nil {
		return
	}
	g := &l.Page
	g.Kind = o.choice("kind", "none", "none", "cursor", "page", "offset", "link_header", "next_url")
	next := o.get("next")
	if next != nil {
		g.Next = p.jsonPath(next, o.at("next"))
	}
	g.Param, _ = o.text("param")
	g.SizeParam, _ = o.text("size_param")
	g.Size = o.number("size", 1, 100_000)
	g.First = o.number("first", 0, 1)
	if o.get("first") == nil && g.Kind == "page" {
		g.First = 1
	}
	if o.get("most") != nil {
		g.Most = o.number("most", 1, 100_000)
	}
	missing := func(cond bool, name, write string) {
		if cond {
			p.add(o.n, o.at(name), write, "pages of kind %s need this field", g.Kind)
		}
	}
	missing((g.Kind == "cursor" || g.Kind == "next_url") && next == nil, "next", "next: $.next_cursor")
	missing((g.Kind == "cursor" || g.Kind == "page" || g.Kind == "offset") && g.Param == "", "param", "param: cursor")
	missing((g.Kind == "offset" || g.SizeParam != "") && g.Size == 0, "size", "size: 100")
	o.done()
}

func (p *parsing) probe(o *object) {
	if o == nil {
		return
	}
	pr := &Probe{}
	if n := o.need("request", "request: {path: /me}"); n != nil {
		q := p.request(n, o.at("request"), p.base)
		pr.Method, pr.Path, pr.Query, pr.Header, pr.JSON, pr.Form = q.Method, q.Path, q.Query, q.Header, q.JSON, q.Form
	}
	pr.Rules = p.rules(o.list("classify"), o.at("classify"))
	o.flag("pollutes_last_used", true) // for people
	o.done()
	all := slices.Concat(pr.Rules, p.rec.Rules)
	for _, is := range []string{key.IsValid, key.IsInvalid} {
		if !slices.ContainsFunc(all, func(k key.Rule) bool { return k.Is == is }) {
			p.add(o.n, o.at("classify"), "- {status: …, is: "+is+"}", "no rule says when a key is %s", is)
		}
	}
	p.rec.Probe = pr
}

func (p *parsing) times(top *object) {
	rec := p.rec
	rec.Spacing = DefaultSpacing
	if o := top.object("propagation"); o != nil {
		rec.Early, rec.Late = o.duration("create"), o.duration("revoke")
		if o.get("spacing") != nil {
			rec.Spacing = o.duration("spacing")
		}
		o.done()
	}
	if o := top.object("usage"); o != nil {
		rec.UsageFrom = o.choice("from", "none", "list", "none") == "list"
		rec.Granular = o.duration("granularity") + o.duration("lag")
		if rec.UsageFrom && rec.Granular == 0 {
			p.add(o.n, o.at("granularity"), "granularity: 1s, or how coarse the vendor's last-used is", "this field is missing")
		}
		if rec.UsageFrom && (rec.List == nil || rec.List.LastUsed == nil) {
			p.add(o.n, o.at("from"), "list.map.last_used, or from: none", "the list maps no last_used")
		}
		o.done()
	}
}

func (p *parsing) soft(o *object) {
	if o == nil {
		return
	}
	ok := p.base.with(namesID).with(p.managerNames())
	off, on := o.object("disable"), o.object("enable")
	if (off == nil) != (on == nil) {
		p.add(o.n, o.path, "both disable and enable, or neither", "one of disable and enable is missing")
	}
	saved := names{}
	if off != nil {
		t := &toggle{}
		if rd := off.object("read"); rd != nil {
			s := Step{Act: p.act(rd, ok)}
			if sv := rd.object("save"); sv != nil {
				for _, f := range sv.n.fields {
					s.Extract = append(s.Extract, p.extract(f, sv.at(f.name), ok))
					saved["saved."+f.name] = typed
				}
			}
			t.Must = rd.texts("must")
			for _, m := range t.Must {
				if _, known := saved["saved."+m]; !known {
					p.add(rd.get("must"), rd.at("must"), "names under save", "nothing is saved as %q", m)
				}
			}
			rd.done()
			if s.Gone == nil {
				c := mustCondition(404, "404")
				s.Gone = &c
			}
			t.Read = &s
		}
		t.Act = p.act(off, ok.with(saved))
		if t.Gone == nil { // what is gone is off; the revocation proves it
			c := mustCondition(404, "404")
			t.Gone = &c
		}
		off.done()
		p.rec.Disable = t
	}
	if on != nil {
		p.rec.Enable = &toggle{Act: p.act(on, ok.with(saved))}
		on.done()
	}
	o.done()
}

func (p *parsing) revoke(o, top *object) {
	rec := p.rec
	if o == nil {
		if rec.Rolls() { // the next key ends it
			rec.DeadOK = 3
			if rec.Probe == nil {
				p.add(top.n, "probe", "probe: and what tells a working key from a dead one", "that a replaced key is dead can only be proven by a probe")
			}
			return
		}
		if rec.Shape == Human {
			if len(rec.Human.Revoke) == 0 && len(rec.Human.Create) > 0 {
				p.add(top.n, "human.revoke", "human.revoke: and the steps, each behind a dash", "neither a request nor a person revokes")
			}
			rec.DeadOK = 3
			return
		}
		if !slices.ContainsFunc(top.n.fields, func(f field) bool { return f.name == "revoke" }) {
			p.add(top.n, "revoke", "revoke: {request: …, prove: {probe_is: invalid}}", "this field is missing")
		}
		return
	}
	a := p.act(o, p.base.with(namesID).with(p.managerNames()))
	if a.Gone == nil {
		c := mustCondition(404, "404")
		a.Gone = &c
	}
	rec.DeadOK = 3
	pv := o.object("prove")
	if pv == nil {
		if o.get("prove") == nil {
			p.add(o.n, o.at("prove"), "prove: {probe_is: invalid}", "a vendor that says it revoked may have done nothing: the recipe must say how that is proven")
		}
	} else {
		by := pv.choice("by", "probe", "probe", "list")
		pv.choice("probe_is", "invalid", "invalid")
		if pv.get("in_a_row") != nil {
			rec.DeadOK = pv.number("in_a_row", 1, 100)
		}
		switch {
		case by == "probe" && rec.Probe == nil:
			p.add(pv.n, pv.path, "probe:, or by: list", "there is no probe to prove it with")
		case by == "list" && (rec.List == nil || !rec.List.Complete):
			p.add(pv.n, pv.path, "a complete list:, or a probe:", "there is no complete list to prove it with")
		}
		pv.done()
	}
	o.done()
	rec.Revoke = &a
}

// needsManager refuses calls to the key API without a manager key.
func (p *parsing) needsManager(top *object) {
	rec := p.rec
	if rec.Manager.Wanted == "" && (len(rec.Steps) > 0 || rec.List != nil || rec.Revoke != nil || rec.Disable != nil) &&
		!slices.ContainsFunc(top.n.fields, func(f field) bool { return f.name == "manager" }) {
		p.add(top.n, "manager", "manager: {parts: [key], place: …}", "calls of the key API need a manager key")
	}
}
