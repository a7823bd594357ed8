package recipe

import (
	"fmt"
	"maps"
	"regexp"
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
	for _, s := range p.rec.manager.parts {
		n["manager."+s] = hidden
	}
	return n
}

// request reads a request whose templates may use ok.
func (p *parsing) request(n *node, at string, ok names) request {
	var q request
	o := p.object(n, at)
	if o == nil {
		return q
	}
	q.method = o.choice("method", "GET", "GET", "POST", "PUT", "PATCH", "DELETE")
	s, pn := o.text("path")
	if pn == nil {
		p.add(n, join(at, "path"), "path: /keys", "this field is missing")
	} else {
		q.path = p.path(pn, join(at, "path"), s, ok)
	}
	q.query = p.named(o.object("query"), ok)
	for _, f := range q.query {
		p.noSecret(o.get("query"), join(o.at("query"), f.name), f.value, ok)
	}
	q.header = p.named(o.object("header"), ok)
	if j := o.get("json"); j != nil {
		t := p.tree(j, join(at, "json"), ok)
		q.json = &t
	}
	if f := o.get("form"); f != nil {
		q.form = p.named(o.object("form"), ok)
		if q.json != nil {
			p.add(f, join(at, "form"), "json or form", "a request has one body")
		}
	}
	o.done()
	return q
}

// path compiles a path: it begins with a slash, and no secret rides in it.
func (p *parsing) path(n *node, at, s string, ok names) template {
	if !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || strings.ContainsAny(s, "?#\\ \t\r\n") {
		p.add(n, at, "/path/{{id}}, and what follows a ? under query:", "%q is no path", s)
	}
	t := p.template(n, at, s, ok)
	p.noSecret(n, at, t, ok)
	return t
}

func (p *parsing) noSecret(n *node, at string, t template, ok names) {
	for _, u := range t.uses() {
		if ok[u] == hidden {
			p.add(n, at, "it in json, form or header", "%s is secret, and a secret may not ride in a URL", u)
		}
	}
}

func (p *parsing) named(o *object, ok names) []named {
	if o == nil {
		return nil
	}
	var out []named
	for _, f := range o.n.fields {
		at := o.at(f.name)
		out = append(out, named{f.name, p.template(f.value, at, p.text(f.value, at), ok)})
	}
	return out
}

// act reads the fields request, expect and gone of o.
func (p *parsing) act(o *object, ok names) act {
	var a act
	if o == nil {
		return a
	}
	if n := o.need("request", "request: {method: …, path: …}"); n != nil {
		a.request = p.request(n, o.at("request"), ok)
	}
	a.expect = p.expect(o)
	if n := o.get("gone"); n != nil {
		a.gone = p.condition(n, o.at("gone"))
	}
	return a
}

func (p *parsing) expect(o *object) condition {
	if n := o.get("expect"); n != nil {
		if c := p.condition(n, o.at("expect")); c != nil {
			return *c
		}
	}
	return mustCondition(2, "2xx")
}

// mustCondition returns the condition that the status is status.
func mustCondition(status int, text string) condition {
	rules, err := call.CompileProbeRules([]key.Rule{{Status: []int{status}, Is: key.IsValid}}, nil)
	if err != nil {
		panic("recipe: a rule over a status does not compile: " + err.Error())
	}
	return condition{rules: rules, text: text}
}

// condition reads {status, header, body, json}.
func (p *parsing) condition(n *node, at string) *condition {
	o := p.object(n, at)
	if o == nil {
		return nil
	}
	before := len(p.problems)
	k, text := p.tests(o)
	o.done()
	k.Is = key.IsValid
	if len(p.problems) > before {
		return nil
	}
	if len(k.Status)+len(k.Header)+len(k.JSON) == 0 && k.Body == "" {
		p.add(n, at, "status: 200, or a test of header, body or json", "this tests nothing")
		return nil
	}
	rules, err := call.CompileProbeRules([]key.Rule{k}, nil)
	if err != nil {
		p.add(n, at, "", "%s", plainText(err))
		return nil
	}
	return &condition{rules: rules, text: text}
}

// tests reads what a rule asks of an answer.
func (p *parsing) tests(o *object) (key.Rule, string) {
	var k key.Rule
	var text []string
	if n := o.get("status"); n != nil {
		items := []*node{n}
		if n.kind == isList {
			items = n.items
		}
		for _, it := range items {
			s := p.text(it, o.at("status"))
			text = append(text, s)
			if d, ok := strings.CutSuffix(s, "xx"); ok && len(d) == 1 && d >= "1" && d <= "5" {
				k.Status = append(k.Status, int(d[0]-'0'))
				continue
			}
			if it.kind != isInt || it.number < 100 || it.number > 599 {
				p.add(it, o.at("status"), "a status such as 401, or 4xx", "%q is no status", s)
				continue
			}
			k.Status = append(k.Status, int(it.number))
		}
	}
	if h := o.object("header"); h != nil {
		k.Header = map[string]string{}
		for _, f := range h.n.fields {
			k.Header[f.name] = p.regexp(f.value, h.at(f.name))
			text = append(text, "header "+f.name)
		}
	}
	if n := o.get("body"); n != nil {
		k.Body = p.regexp(n, o.at("body"))
		text = append(text, "body")
	}
	if j := o.object("json"); j != nil {
		for _, f := range j.n.fields {
			k.JSON = append(k.JSON, p.jsonTest(f, j.at(f.name)))
			text = append(text, f.name)
		}
	}
	return k, strings.Join(text, " ")
}

func (p *parsing) regexp(n *node, at string) string {
	s := p.text(n, at)
	if _, err := regexp.Compile(s); err != nil {
		p.add(n, at, "an RE2 regular expression", "%q does not compile", s)
	}
	return s
}

func (p *parsing) jsonTest(f field, at string) key.JSONTest {
	t := key.JSONTest{Path: f.name}
	if _, err := call.ParsePath(f.name); err != nil || !strings.HasPrefix(f.name, "$") {
		if err == nil {
			err = fmt.Errorf("%q does not begin with $", f.name)
		}
		p.add(&node{line: f.line, col: f.col}, at, "a path such as $.error.code", "%s", plainText(err))
	}
	if f.value.kind != isMap {
		t.Equals = p.text(f.value, at)
		if t.Equals == "" {
			p.add(f.value, at, "{filled: false} for what is empty", "there is nothing to compare with")
		}
		return t
	}
	o := p.object(f.value, at)
	t.Equals, _ = o.text("equals")
	if n := o.get("match"); n != nil {
		t.Match = p.regexp(n, o.at("match"))
	}
	if o.get("exists") != nil {
		b := o.flag("exists", false)
		t.Exists = &b
	}
	if o.get("filled") != nil {
		b := o.flag("filled", false)
		t.Filled = &b
	}
	o.done()
	if t.Equals == "" && t.Match == "" && t.Exists == nil && t.Filled == nil {
		p.add(f.value, at, "one of equals, match, exists, filled", "this tests nothing")
	}
	return t
}

// rules reads a list of classify rules.
func (p *parsing) rules(items []*node, at string) []key.Rule {
	var out []key.Rule
	for i, it := range items {
		here := fmt.Sprintf("%s[%d]", at, i)
		o := p.object(it, here)
		if o == nil {
			continue
		}
		before := len(p.problems)
		k, _ := p.tests(o)
		k.Methods = o.texts("methods")
		k.Dead = o.flag("dead", false)
		if o.need("is", "is: valid, invalid, valid_out_of_scope, throttled or other") != nil {
			k.Is = o.choice("is", "", key.IsValid, key.IsInvalid, key.IsOutOfScope, key.IsThrottled, key.IsOther)
		}
		o.done()
		if len(p.problems) > before {
			continue
		}
		if len(k.Status)+len(k.Header)+len(k.JSON) == 0 && k.Body == "" {
			p.add(it, here, "status: 401, or a test of header, body or json", "a rule that tests nothing never matches")
			continue
		}
		if _, err := call.CompileRules([]key.Rule{k}); err != nil {
			p.add(it, here, "", "%s", plainText(err))
			continue
		}
		out = append(out, k)
	}
	return out
}

// extract reads one value to take from an answer: a JSON path as text, or one
// of {json, header, xml, value} with match.
func (p *parsing) extract(f field, at string, ok names) extract {
	x := extract{name: f.name, source: f.value.text}
	n := f.value
	if n.kind != isMap {
		x.path, x.pathT = p.livePath(n, at, ok)
		return x
	}
	o := p.object(n, at)
	ways := 0
	if j := o.get("json"); j != nil {
		x.path, x.pathT = p.livePath(j, o.at("json"), ok)
		x.source = j.text
		ways++
	}
	if s, h := o.text("header"); h != nil {
		x.header, x.source = s, "header "+s
		ways++
	}
	if s, xn := o.text("xml"); xn != nil {
		x.xml, x.source = strings.Split(s, "/"), s
		if slices.Contains(x.xml, "") {
			p.add(xn, o.at("xml"), "the names of elements, such as Result/AccessKey/Id", "%q is no path", s)
		}
		ways++
	}
	if s, v := o.text("value"); v != nil {
		t := p.template(v, o.at("value"), s, ok)
		x.value, x.source = &t, "the recipe"
		ways++
	}
	if m := o.get("match"); m != nil {
		s := p.regexp(m, o.at("match"))
		if re, err := regexp.Compile(s); err == nil {
			x.match = re
			if re.NumSubexp() > 1 {
				p.add(m, o.at("match"), "one group in parentheses; (?:…) for the rest", "%q has %d groups", s, re.NumSubexp())
			}
		}
	}
	o.done()
	if ways != 1 {
		p.add(n, at, "one of json, header, xml, value", "there are %d places to take the value from", ways)
	}
	return x
}

// livePath compiles a path that may have names in it, such as
// $[?(@.id=='{{old.id}}')].scopes.
func (p *parsing) livePath(n *node, at string, ok names) (call.Path, *template) {
	if n.kind != isText || !strings.Contains(n.text, "{{") {
		return p.jsonPath(n, at), nil
	}
	t := p.template(n, at, n.text, ok)
	p.noSecret(n, at, t, ok)
	var b strings.Builder
	for _, pc := range t.pieces {
		if b.WriteString(pc.text); pc.name != "" {
			b.WriteString("x")
		}
	}
	return p.jsonPath(&node{kind: isText, text: b.String(), line: n.line, col: n.col}, at), &t
}

func (p *parsing) jsonPath(n *node, at string) call.Path {
	s := p.text(n, at)
	path, err := call.ParsePath(s)
	if err == nil && !strings.HasPrefix(s, "$") {
		err = fmt.Errorf("%q does not begin with $", s)
	}
	if err != nil {
		p.add(n, at, "a path such as $.data.id", "%s", plainText(err))
	}
	return path
}

// steps reads a list of calls; each may use what those before it extracted
// under prefix.
func (p *parsing) steps(items []*node, at, fields, prefix string, ok names, kindOf func(string) sort) ([]step, names) {
	ok = ok.with(nil)
	var out []step
	for i, it := range items {
		o := p.object(it, fmt.Sprintf("%s[%d]", at, i))
		if o == nil {
			continue
		}
		s := step{act: p.act(o, ok)}
		ex := o.object(fields)
		if ex != nil {
			found := names{}
			for _, f := range ex.n.fields {
				if !wordRE.MatchString(f.name) {
					p.add(&node{line: f.line, col: f.col}, ex.at(f.name), "a-z, 0-9 and '_' only", "this is no name")
					continue
				}
				s.extract = append(s.extract, p.extract(f, ex.at(f.name), ok))
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
	d := &describe{defaults: map[string]tree{}}
	ok := p.base.with(namesOld).with(p.managerNames())
	var have names
	d.steps, have = p.steps(o.list("steps"), o.at("steps"), "copy", "copied.", ok, func(string) sort { return typed })
	if len(d.steps) == 0 && o.get("steps") == nil {
		p.add(o.n, o.at("steps"), "steps: [{request: …, copy: {scopes: $.scopes}}]", "this field is missing")
	}
	d.allow = o.choice("if_unreadable", "refuse", "refuse", "allow") == "allow"
	if c := o.object("default"); c != nil {
		for _, f := range c.n.fields {
			if _, known := have["copied."+f.name]; !known {
				p.add(&node{line: f.line, col: f.col}, c.at(f.name), "only what a step copies", "nothing is copied as %q", f.name)
			}
			d.defaults[f.name] = p.tree(f.value, c.at(f.name), p.base)
		}
	}
	o.done()
	p.rec.describe = d
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
	for g := range rec.generate {
		ok["gen."+g] = hidden
	}
	if rec.describe != nil {
		for _, s := range rec.describe.steps {
			for _, x := range s.extract {
				ok["copied."+x.name] = typed
			}
		}
	}
	kindOf := func(name string) sort {
		for _, pt := range rec.parts {
			if pt.name == name && !pt.secret {
				return plain
			}
		}
		if name == "id" {
			return plain
		}
		return hidden
	}
	var have names
	rec.steps, have = p.steps(o.list("steps"), o.at("steps"), "extract", "new.", ok, kindOf)
	o.choice("lost_answer", "list_by_name", "list_by_name", "ask") // for people: the engine looks through the list, else asks
	o.done()
	if len(rec.steps) == 0 {
		p.add(o.n, o.at("steps"), "steps: [{request: …, extract: {id: $.id, key: $.key}}]", "there is no step")
		return
	}
	if _, found := have["new.id"]; !found {
		p.add(o.n, o.at("steps"), "extract: {id: $.id}", "no step extracts the vendor's id")
	}
	for _, pt := range rec.parts {
		_, got := have["new."+pt.name]
		if _, gen := rec.generate[pt.name]; !got && !gen {
			p.add(o.n, o.at("steps"), "extract: {"+pt.name+": $.…}", "no step extracts the part %q, and it is not generated", pt.name)
		}
	}
}

func (p *parsing) list(o *object) {
	if o == nil {
		return
	}
	ok := p.base.with(p.managerNames())
	l := &list{act: p.act(o, ok), complete: o.flag("complete", true)}
	if n := o.need("items", "items: $.keys"); n != nil {
		l.items = p.jsonPath(n, o.at("items"))
	}
	m := o.object("map")
	if m == nil {
		p.add(o.n, o.at("map"), "map: {id: $.id, name: $.name}", "this field is missing")
	} else {
		if n := m.need("id", "id: $.id"); n != nil {
			l.id = p.jsonPath(n, m.at("id"))
		}
		for name, to := range map[string]**call.Path{"name": &l.name, "created": &l.created, "last_used": &l.lastUsed} {
			if n := m.get(name); n != nil {
				path := p.jsonPath(n, m.at(name))
				*to = &path
			}
		}
		if n := m.get("disabled"); n != nil {
			l.disabled = p.flagRule(n, m.at("disabled"))
		}
		m.done()
	}
	p.page(o.object("page"), l)
	o.done()
	p.rec.list = l
}

func (p *parsing) flagRule(n *node, at string) *flagRule {
	if n.kind != isMap {
		return &flagRule{path: p.jsonPath(n, at)}
	}
	o := p.object(n, at)
	f := &flagRule{}
	if j := o.need("json", "json: $.status"); j != nil {
		f.path = p.jsonPath(j, o.at("json"))
	}
	if s, e := o.text("equals"); e != nil {
		f.equals = &s
	}
	if s, e := o.text("not"); e != nil {
		if f.equals != nil {
			p.add(e, o.at("not"), "equals or not", "there are both")
		}
		f.equals, f.not = &s, true
	}
	o.done()
	return f
}

func (p *parsing) page(o *object, l *list) {
	l.page = page{kind: "none", most: 1000}
	if o == nil {
		return
	}
	g := &l.page
	g.kind = o.choice("kind", "none", "none", "cursor", "page", "offset", "link_header", "next_url")
	next := o.get("next")
	if next != nil {
		g.next = p.jsonPath(next, o.at("next"))
	}
	g.param, _ = o.text("param")
	g.sizeP, _ = o.text("size_param")
	g.size = o.number("size", 1, 100_000)
	g.first = o.number("first", 0, 1)
	if o.get("first") == nil && g.kind == "page" {
		g.first = 1
	}
	if o.get("most") != nil {
		g.most = o.number("most", 1, 100_000)
	}
	missing := func(cond bool, name, write string) {
		if cond {
			p.add(o.n, o.at(name), write, "pages of kind %s need this field", g.kind)
		}
	}
	missing((g.kind == "cursor" || g.kind == "next_url") && next == nil, "next", "next: $.next_cursor")
	missing((g.kind == "cursor" || g.kind == "page" || g.kind == "offset") && g.param == "", "param", "param: cursor")
	missing((g.kind == "offset" || g.sizeP != "") && g.size == 0, "size", "size: 100")
	o.done()
}

func (p *parsing) probe(o *object) {
	if o == nil {
		return
	}
	pr := &probe{}
	if n := o.need("request", "request: {path: /me}"); n != nil {
		q := p.request(n, o.at("request"), p.base)
		pr.method, pr.path, pr.query, pr.header, pr.json = q.method, q.path, q.query, q.header, q.json
		if q.form != nil {
			p.add(n, o.at("request"), "method, path, query, header and json only", "a probe has no form")
		}
	}
	pr.rules = p.rules(o.list("classify"), o.at("classify"))
	o.flag("pollutes_last_used", true) // for people
	o.done()
	all := slices.Concat(pr.rules, p.rec.rules)
	for _, is := range []string{key.IsValid, key.IsInvalid} {
		if !slices.ContainsFunc(all, func(k key.Rule) bool { return k.Is == is }) {
			p.add(o.n, o.at("classify"), "- {status: …, is: "+is+"}", "no rule says when a key is %s", is)
		}
	}
	p.rec.probe = pr
}

func (p *parsing) times(top *object) {
	rec := p.rec
	rec.spacing = defaultSpacing
	if o := top.object("propagation"); o != nil {
		rec.early, rec.late = o.duration("create"), o.duration("revoke")
		if o.get("spacing") != nil {
			rec.spacing = o.duration("spacing")
		}
		o.done()
	}
	if o := top.object("usage"); o != nil {
		rec.usageFrom = o.choice("from", "none", "list", "none") == "list"
		rec.granular = o.duration("granularity") + o.duration("lag")
		if rec.usageFrom && rec.granular == 0 {
			p.add(o.n, o.at("granularity"), "granularity: 1s, or how coarse the vendor's last-used is", "this field is missing")
		}
		if rec.usageFrom && (rec.list == nil || rec.list.lastUsed == nil) {
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
			s := step{act: p.act(rd, ok)}
			if sv := rd.object("save"); sv != nil {
				for _, f := range sv.n.fields {
					s.extract = append(s.extract, p.extract(f, sv.at(f.name), ok))
					saved["saved."+f.name] = typed
				}
			}
			t.must = rd.texts("must")
			for _, m := range t.must {
				if _, known := saved["saved."+m]; !known {
					p.add(rd.get("must"), rd.at("must"), "names under save", "nothing is saved as %q", m)
				}
			}
			rd.done()
			t.read = &s
		}
		t.act = p.act(off, ok.with(saved))
		off.done()
		p.rec.disable = t
	}
	if on != nil {
		p.rec.enable = &toggle{act: p.act(on, ok.with(saved))}
		on.done()
	}
	o.done()
}

func (p *parsing) revoke(o, top *object) {
	rec := p.rec
	if o == nil {
		if rec.Shape == Human {
			if len(rec.human.revoke) == 0 && len(rec.human.create) > 0 {
				p.add(top.n, "human.revoke", "human.revoke: and the steps, each behind a dash", "neither a request nor a person revokes")
			}
			rec.deadOK = 3
			return
		}
		if !slices.ContainsFunc(top.n.fields, func(f field) bool { return f.name == "revoke" }) {
			p.add(top.n, "revoke", "revoke: {request: …, prove: {probe_is: invalid}}", "this field is missing")
		}
		return
	}
	a := p.act(o, p.base.with(namesID).with(p.managerNames()))
	if a.gone == nil {
		c := mustCondition(404, "404")
		a.gone = &c
	}
	rec.deadOK = 3
	pv := o.object("prove")
	if pv == nil {
		if o.get("prove") == nil {
			p.add(o.n, o.at("prove"), "prove: {probe_is: invalid}", "a vendor that says it revoked may have done nothing: the recipe must say how that is proven")
		}
	} else {
		by := pv.choice("by", "probe", "probe", "list")
		pv.choice("probe_is", "invalid", "invalid")
		if pv.get("in_a_row") != nil {
			rec.deadOK = pv.number("in_a_row", 1, 100)
		}
		switch {
		case by == "probe" && rec.probe == nil:
			p.add(pv.n, pv.path, "probe:, or by: list", "there is no probe to prove it with")
		case by == "list" && (rec.list == nil || !rec.list.complete):
			p.add(pv.n, pv.path, "a complete list:, or a probe:", "there is no complete list to prove it with")
		}
		pv.done()
	}
	o.done()
	rec.revoke = &a
}

// needsManager refuses calls to the key API without a manager key.
func (p *parsing) needsManager(top *object) {
	rec := p.rec
	if rec.manager.wanted == "" && (len(rec.steps) > 0 || rec.list != nil || rec.revoke != nil || rec.disable != nil) &&
		!slices.ContainsFunc(top.n.fields, func(f field) bool { return f.name == "manager" }) {
		p.add(top.n, "manager", "manager: {parts: [key], place: …}", "calls of the key API need a manager key")
	}
}
