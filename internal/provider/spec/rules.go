package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
)

func (p *parsing) expect(o *object) Condition {
	if n := o.get("expect"); n != nil {
		if c := p.condition(n, o.at("expect")); c != nil {
			return *c
		}
	}
	return mustCondition(2, "2xx")
}

// mustCondition returns the condition that the status is status.
func mustCondition(status int, text string) Condition {
	rules, err := call.CompileProbeRules([]key.Rule{{Status: []int{status}, Is: key.IsValid}}, nil)
	if err != nil {
		panic("recipe: a rule over a status does not compile: " + err.Error())
	}
	return Condition{Rules: rules, Text: text}
}

// Condition reads {status, header, body, json}.
func (p *parsing) condition(n *node, at string) *Condition {
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
	return &Condition{Rules: rules, Text: text}
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

// Extract reads one value to take from an answer: a JSON path as text, or one
// of {json, header, xml, value} with match.
func (p *parsing) extract(f field, at string, ok names) Extract {
	x := Extract{Name: f.name, Source: f.value.text}
	n := f.value
	if n.kind != isMap {
		x.Path, x.LivePath = p.livePath(n, at, ok)
		return x
	}
	o := p.object(n, at)
	ways := 0
	if j := o.get("json"); j != nil {
		x.Path, x.LivePath = p.livePath(j, o.at("json"), ok)
		x.Source = j.text
		ways++
	}
	if s, h := o.text("header"); h != nil {
		x.Header, x.Source = s, "header "+s
		ways++
	}
	if s, xn := o.text("xml"); xn != nil {
		x.XML, x.Source = strings.Split(s, "/"), s
		if slices.Contains(x.XML, "") {
			p.add(xn, o.at("xml"), "the names of elements, such as Result/AccessKey/Id", "%q is no path", s)
		}
		ways++
	}
	if s, v := o.text("value"); v != nil {
		t := p.template(v, o.at("value"), s, ok)
		x.Value, x.Source = &t, "the recipe"
		ways++
	}
	if m := o.get("match"); m != nil {
		s := p.regexp(m, o.at("match"))
		if re, err := regexp.Compile(s); err == nil {
			x.Match = re
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
func (p *parsing) livePath(n *node, at string, ok names) (call.Path, *Template) {
	if n.kind != IsText || !strings.Contains(n.text, "{{") {
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
	return p.jsonPath(&node{kind: IsText, text: b.String(), line: n.line, col: n.col}, at), &t
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
