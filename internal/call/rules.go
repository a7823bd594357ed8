package call

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

// Header is what rules need of the header of an answer; http.Header has it.
type Header interface{ Get(name string) string }

// Answer is what rules see of one answer of a vendor.
type Answer struct {
	Method string // of the request
	Status int
	Header Header // nil: no header
	Body   []byte // its beginning, decoded, at most [BodyLimit] bytes; not kept
	Whole  bool   // Body is all of it
}

// Rules say what an answer means. The zero Rules are the defaults for live
// traffic.
type Rules struct {
	rules  []rule
	strict bool // what no rule names is other
	probe  bool // the defaults are those of probes
}

type rule struct {
	status  []int
	header  []headerTest
	body    *regexp.Regexp
	json    []jsonTest
	methods []string
	is      evidence.Outcome
	dead    bool
}

type headerTest struct {
	name string
	re   *regexp.Regexp
}

type jsonTest struct {
	path           Path
	equals         string
	re             *regexp.Regexp
	exists, filled *bool
}

// CompileRules compiles rules for live traffic. What none of them names is
// read by the defaults: 401 is auth and the key is dead; 403 is perm, or rate
// when the answer says when to come back; 429 is rate; 5xx and what proxies on
// the way answer is other; everything else shows that the key was accepted.
func CompileRules(rules []key.Rule) (Rules, error) {
	c, err := compileRules(rules)
	return Rules{rules: c}, err
}

// CompileProbeRules compiles the rules of a probe: its own, then the call's.
// If the probe has rules of its own, what no rule names is other; if not, 2xx
// is ok, 401 auth, 403 perm, 429 rate, and the rest other.
func CompileProbeRules(own, call []key.Rule) (Rules, error) {
	c, err := compileRules(slices.Concat(own, call))
	return Rules{rules: c, strict: len(own) > 0, probe: true}, err
}

func compileRules(rules []key.Rule) ([]rule, error) {
	var out []rule
	for i, r := range rules {
		c, err := compileRule(r)
		if err != nil {
			return nil, fmt.Errorf("%w: rule %d: %w", key.ErrInvalid, i+1, err)
		}
		if len(c.status)+len(c.header)+len(c.json) == 0 && c.body == nil {
			continue // a rule with no test matches nothing
		}
		out = append(out, c)
	}
	return out, nil
}

func compileRule(r key.Rule) (rule, error) {
	c := rule{status: slices.Clone(r.Status), dead: r.Dead}
	switch r.Is {
	case key.IsValid:
		c.is = evidence.OK
	case key.IsInvalid:
		c.is, c.dead = evidence.Auth, true
	case key.IsOutOfScope:
		c.is = evidence.Perm
	case key.IsThrottled:
		c.is = evidence.Rate
	case key.IsOther:
		c.is = evidence.Other
	default:
		return c, fmt.Errorf("is %q: use %s, %s, %s, %s or %s", r.Is, key.IsValid, key.IsInvalid, key.IsOutOfScope, key.IsThrottled, key.IsOther)
	}
	for _, s := range r.Status {
		if (s < 1 || s > 5) && (s < 100 || s > 599) {
			return c, fmt.Errorf("status %d: use 100 to 599, or 1 to 5 for a whole class", s)
		}
	}
	for _, m := range r.Methods {
		c.methods = append(c.methods, strings.ToUpper(m))
	}
	for name, re := range r.Header {
		x, err := regexp.Compile(re)
		if err != nil {
			return c, fmt.Errorf("header %s: %w", name, err)
		}
		c.header = append(c.header, headerTest{name, x})
	}
	if r.Body != "" {
		x, err := regexp.Compile(r.Body)
		if err != nil {
			return c, fmt.Errorf("body: %w", err)
		}
		c.body = x
	}
	for _, t := range r.JSON {
		p, err := ParsePath(t.Path)
		if err != nil {
			return c, err
		}
		j := jsonTest{path: p, equals: t.Equals, exists: t.Exists, filled: t.Filled}
		if t.Match != "" {
			if j.re, err = regexp.Compile(t.Match); err != nil {
				return c, fmt.Errorf("json %s: %w", t.Path, err)
			}
		}
		c.json = append(c.json, j)
	}
	return c, nil
}

// NeedsBody reports whether what an answer with status means may depend on its
// body. An answer for which it is false can be classified with Body empty.
func (r Rules) NeedsBody(status int) bool {
	for i := range r.rules {
		c := &r.rules[i]
		if len(c.status) > 0 && !hasStatus(c.status, status) {
			continue
		}
		if c.body != nil || len(c.json) > 0 {
			return true
		}
		if len(c.header) == 0 && len(c.methods) == 0 {
			return false // this one matches whatever the body says
		}
	}
	return false
}

// ReadsBodies reports whether any rule looks at bodies.
func (r Rules) ReadsBodies() bool {
	return slices.ContainsFunc(r.rules, func(c rule) bool { return c.body != nil || len(c.json) > 0 })
}

// Classify returns what the answer says of the key, and whether it says that
// the key itself was refused (dead), so that a request of any method may be
// sent again with another. The first rule that matches decides.
func (r Rules) Classify(a Answer) (o evidence.Outcome, dead bool) {
	var doc jsonDoc
	for i := range r.rules {
		if r.rules[i].match(a, &doc) {
			return r.rules[i].is, r.rules[i].dead
		}
	}
	switch {
	case r.strict:
		return evidence.Other, false
	case a.Status == 401:
		return evidence.Auth, true
	case a.Status == 403:
		if a.Header != nil && (a.Header.Get("Retry-After") != "" || a.Header.Get("X-Ratelimit-Remaining") == "0") {
			return evidence.Rate, false
		}
		return evidence.Perm, false
	case a.Status == 429:
		return evidence.Rate, false
	case a.Status >= 200 && a.Status < 300:
		return evidence.OK, false
	case r.probe:
		return evidence.Other, false
	}
	switch a.Status {
	case 407, 408, 421, 425, 431: // answered by whoever stands before the vendor's check of the key
		return evidence.Other, false
	}
	if a.Status == 101 || a.Status >= 300 && a.Status < 500 {
		return evidence.OK, false
	}
	return evidence.Other, false
}

// jsonDoc is the body of an answer, parsed when the first rule asks.
type jsonDoc struct {
	tried, ok bool
	v         any
}

func (d *jsonDoc) get(a Answer) (any, bool) {
	if !d.tried {
		d.tried = true
		if a.Whole && len(a.Body) > 0 {
			d.v, d.ok = decodeJSON(a.Body)
		}
	}
	return d.v, d.ok
}

func decodeJSON(b []byte) (any, bool) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil || dec.More() {
		return nil, false
	}
	return v, true
}

func (c *rule) match(a Answer, doc *jsonDoc) bool {
	if len(c.status) > 0 && !hasStatus(c.status, a.Status) {
		return false
	}
	if len(c.methods) > 0 && !slices.Contains(c.methods, a.Method) {
		return false
	}
	for _, t := range c.header {
		if a.Header == nil {
			return false
		}
		if v := a.Header.Get(t.name); v == "" || !t.re.MatchString(v) {
			return false
		}
	}
	if c.body != nil && !c.body.Match(a.Body[:min(len(a.Body), BodyLimit)]) {
		return false
	}
	if len(c.json) == 0 {
		return true
	}
	v, ok := doc.get(a)
	if !ok {
		return false
	}
	for _, t := range c.json {
		if !t.match(v) {
			return false
		}
	}
	return true
}

func (t jsonTest) match(root any) bool {
	v, found := t.path.Find(root)
	if t.exists != nil && *t.exists != found {
		return false
	}
	if t.filled != nil && *t.filled != (found && filled(v)) {
		return false
	}
	if t.equals != "" && (!found || Text(v) != t.equals) {
		return false
	}
	if t.re != nil && (!found || !t.re.MatchString(Text(v))) {
		return false
	}
	// A test that only names a path asks that it be there.
	return t.exists != nil || t.filled != nil || t.equals != "" || t.re != nil || found
}

// filled reports whether v is something: not null, "", [], {} or false.
func filled(v any) bool {
	switch x := v.(type) {
	case nil:
		return false
	case string:
		return x != ""
	case bool:
		return x
	case []any:
		return len(x) > 0
	case map[string]any:
		return len(x) > 0
	}
	return true
}
