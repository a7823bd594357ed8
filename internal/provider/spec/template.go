package spec

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keybaton/keybaton/secret"
)

// A template is text with {{name}} or {{name | filter}} in it. A name is what
// its place in the recipe offers; a filter changes the value on its way.
type Template struct{ pieces []piece }

// piece is literal text, or a name with its filters.
type piece struct {
	text    string
	name    string // "" for literal text
	filters []string
}

// sort is what kind of value a name stands for.
type sort int

const (
	plain  sort = iota // text
	typed              // any JSON value
	moment             // a time
	hidden             // plaintext of a key: never in a URL
)

// names are what a template may use.
type names map[string]sort

// with returns a copy of n with more names.
func (n names) with(more names) names {
	out := maps.Clone(n)
	maps.Copy(out, more)
	return out
}

// filters take a text or, where it says so, a time.
var textFilters = []string{"b64", "b64url", "hex", "sha256", "urlencode", "json"}
var timeFilters = []string{"rfc3339", "date", "unix", "unix_ms"}

// errTemplate is what is wrong with a template, with what to write.
type errTemplate struct{ text, write string }

func (e *errTemplate) Error() string { return e.text }

// parseTemplate compiles s; ok names what it may use.
func parseTemplate(s string, ok names) (Template, error) {
	var t Template
	rest := s
	for {
		before, after, found := strings.Cut(rest, "{{")
		if strings.Contains(before, "}}") {
			return Template{}, &errTemplate{"there is a }} without a {{ before it", "{{name}}"}
		}
		if before != "" {
			t.pieces = append(t.pieces, piece{text: before})
		}
		if !found {
			return t, nil
		}
		inner, tail, closed := strings.Cut(after, "}}")
		if !closed || strings.Contains(inner, "{{") {
			return Template{}, &errTemplate{"there is a {{ without a }} after it", "{{name}}"}
		}
		p, err := parsePiece(inner, ok)
		if err != nil {
			return Template{}, err
		}
		t.pieces = append(t.pieces, p)
		rest = tail
	}
}

func parsePiece(inner string, ok names) (piece, error) {
	words := strings.Split(inner, "|")
	p := piece{name: strings.TrimSpace(words[0])}
	kind, known := ok[p.name]
	if !known {
		return piece{}, unknownName(p.name, ok)
	}
	isTime := kind == moment
	for _, f := range words[1:] {
		f = strings.TrimSpace(f)
		switch {
		case slices.Contains(timeFilters, f):
			if !isTime {
				return piece{}, &errTemplate{fmt.Sprintf("filter %s is for times, and %s is none", f, p.name), "it without " + f}
			}
			isTime = false
		case slices.Contains(textFilters, f):
			if isTime {
				return piece{}, &errTemplate{p.name + " is a time", "{{" + p.name + " | rfc3339}}"}
			}
		default:
			write := "one of " + strings.Join(slices.Concat(textFilters, timeFilters), ", ")
			return piece{}, &errTemplate{fmt.Sprintf("there is no filter %q", f), write}
		}
		p.filters = append(p.filters, f)
	}
	if isTime {
		return piece{}, &errTemplate{p.name + " is a time and needs a filter", "{{" + p.name + " | rfc3339}}"}
	}
	return p, nil
}

func unknownName(name string, ok names) error {
	have := slices.Sorted(maps.Keys(ok))
	if near := nearest(name, have); near != "" {
		return &errTemplate{fmt.Sprintf("there is no %q here", name), "{{" + near + "}}"}
	}
	write := "plain text, as nothing can be used here"
	if len(have) > 0 {
		write = "one of " + strings.Join(have, ", ")
	}
	return &errTemplate{fmt.Sprintf("there is no %q here", name), write}
}

// Uses returns the names that t uses.
func (t Template) Uses() []string {
	var out []string
	for _, p := range t.pieces {
		if p.name != "" {
			out = append(out, p.name)
		}
	}
	return out
}

// Whole returns the only piece of a template that is nothing but one name.
func (t Template) Whole() (piece, bool) {
	if len(t.pieces) == 1 && t.pieces[0].name != "" {
		return t.pieces[0], true
	}
	return piece{}, false
}

// Values are what names stand for in one act: string, int64, time.Time,
// secret.Value, or a decoded JSON value. A name that may be left out is absent.
type Values map[string]any

// ErrAbsent is returned for a name that has no value in this act.
var ErrAbsent = errors.New("has no value")

// value returns what p stands for after its filters.
func (p piece) value(v Values) (any, error) {
	x, ok := v[p.name]
	if !ok {
		return nil, fmt.Errorf("%s %w", p.name, ErrAbsent)
	}
	if s, isSecret := x.(secret.Value); isSecret {
		x = string(s.Reveal())
	}
	for _, f := range p.filters {
		var err error
		if x, err = filter(f, x); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return x, nil
}

func filter(name string, x any) (any, error) {
	if t, ok := x.(time.Time); ok {
		switch name {
		case "rfc3339":
			return t.UTC().Format(time.RFC3339), nil
		case "date":
			return t.UTC().Format(time.DateOnly), nil
		case "unix":
			return t.Unix(), nil
		case "unix_ms":
			return t.UnixMilli(), nil
		}
	}
	if name == "json" {
		b, err := json.Marshal(x)
		if err != nil {
			return nil, errors.New("cannot be written as JSON")
		}
		return string(b), nil
	}
	s, err := AsText(x)
	if err != nil {
		return nil, err
	}
	switch name {
	case "b64":
		return base64.StdEncoding.EncodeToString([]byte(s)), nil
	case "b64url":
		return base64.RawURLEncoding.EncodeToString([]byte(s)), nil
	case "hex":
		return hex.EncodeToString([]byte(s)), nil
	case "sha256":
		h := sha256.Sum256([]byte(s))
		return hex.EncodeToString(h[:]), nil
	case "urlencode":
		return url.QueryEscape(s), nil
	}
	return nil, fmt.Errorf("filter %s does not fit the value", name)
}

// AsText returns a scalar as text.
func AsText(x any) (string, error) {
	switch v := x.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case bool:
		return strconv.FormatBool(v), nil
	case nil:
		return "", nil
	}
	return "", errors.New("is a list or an object, not text")
}

// Text renders t; escape, when not nil, is applied to every value, and told
// whether the filter urlencode came last.
func (t Template) Text(v Values, escape func(s string, encoded bool) (string, error)) (string, error) {
	var b strings.Builder
	for _, p := range t.pieces {
		if p.name == "" {
			b.WriteString(p.text)
			continue
		}
		x, err := p.value(v)
		if err != nil {
			return "", err
		}
		s, err := AsText(x)
		if err != nil {
			return "", fmt.Errorf("%s %w", p.name, err)
		}
		if escape != nil {
			encoded := len(p.filters) > 0 && p.filters[len(p.filters)-1] == "urlencode"
			if s, err = escape(s, encoded); err != nil {
				return "", fmt.Errorf("%s %w", p.name, err)
			}
		}
		b.WriteString(s)
	}
	return b.String(), nil
}

// PathSegment escapes s as one segment of a path. What would change which
// resource is meant is refused.
func PathSegment(s string, encoded bool) (string, error) {
	if s == "" || s == "." || s == ".." {
		return "", errors.New("cannot stand in a path: it is empty or dots")
	}
	if encoded {
		return s, nil
	}
	return url.PathEscape(s), nil
}

// Tree is a JSON value with templates in it.
type Tree struct {
	Kind   kind
	Text   Template // isText
	scalar any      // isInt, isBool, isNull, isFloat: as encoding/json takes it
	fields []treeField
	items  []Tree
}

type treeField struct {
	name  string
	value Tree
}

// Tree compiles n; bad is called for each template that is wrong.
func (r *reader) tree(n *node, path string, ok names) Tree {
	t := Tree{Kind: n.kind}
	switch n.kind {
	case isMap:
		for _, f := range n.fields {
			t.fields = append(t.fields, treeField{f.name, r.tree(f.value, join(path, f.name), ok)})
		}
	case isList:
		for i, it := range n.items {
			t.items = append(t.items, r.tree(it, fmt.Sprintf("%s[%d]", path, i), ok))
		}
	case IsText:
		t.Text = r.template(n, path, n.text, ok)
	case isInt:
		t.scalar = n.number
	case isFloat:
		f, err := strconv.ParseFloat(n.text, 64)
		if err != nil {
			r.add(n, path, "a number such as 1.5", "%q is no number", n.text)
		}
		t.scalar = f
	case isBool:
		t.scalar = n.yes
	}
	return t
}

// Template compiles the text s of n, with a problem when it is wrong.
func (r *reader) template(n *node, path, s string, ok names) Template {
	t, err := parseTemplate(s, ok)
	if e := (*errTemplate)(nil); errors.As(err, &e) {
		r.add(n, path, e.write, "%s", e.text)
	}
	return t
}

// Value renders t as a value for encoding/json. Values keep their type: what
// is nothing but one name becomes the value itself. A field or item whose only
// name has no value is left out.
func (t Tree) Value(v Values) (any, error) {
	switch t.Kind {
	case isMap:
		out := make(map[string]any, len(t.fields))
		for _, f := range t.fields {
			x, err := f.value.Value(v)
			if errors.Is(err, ErrAbsent) {
				continue
			}
			if err != nil {
				return nil, err
			}
			out[f.name] = x
		}
		return out, nil
	case isList:
		out := make([]any, 0, len(t.items))
		for _, it := range t.items {
			x, err := it.Value(v)
			if errors.Is(err, ErrAbsent) {
				continue
			}
			if err != nil {
				return nil, err
			}
			out = append(out, x)
		}
		return out, nil
	case IsText:
		if p, ok := t.Text.Whole(); ok {
			return p.value(v)
		}
		return t.Text.Text(v, nil)
	}
	return t.scalar, nil
}

// Preview renders a path with what is not known in braces.
func (t Template) Preview(v Values) string {
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

// UsesAny reports whether a template of q uses one of names.
func (q Request) UsesAny(names ...string) bool {
	has := func(t Template) bool {
		return slices.ContainsFunc(t.Uses(), func(u string) bool { return slices.Contains(names, u) })
	}
	for _, l := range [][]Named{q.Query, q.Header, q.Form} {
		if slices.ContainsFunc(l, func(f Named) bool { return has(f.Value) }) {
			return true
		}
	}
	return has(q.Path) || q.JSON != nil && q.JSON.any(has)
}

func (t Tree) any(has func(Template) bool) bool {
	return t.Kind == IsText && has(t.Text) ||
		slices.ContainsFunc(t.fields, func(f treeField) bool { return f.value.any(has) }) ||
		slices.ContainsFunc(t.items, func(i Tree) bool { return i.any(has) })
}
