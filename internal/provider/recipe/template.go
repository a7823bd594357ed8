package recipe

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
type template struct{ pieces []piece }

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
func parseTemplate(s string, ok names) (template, error) {
	var t template
	rest := s
	for {
		before, after, found := strings.Cut(rest, "{{")
		if strings.Contains(before, "}}") {
			return template{}, &errTemplate{"there is a }} without a {{ before it", "{{name}}"}
		}
		if before != "" {
			t.pieces = append(t.pieces, piece{text: before})
		}
		if !found {
			return t, nil
		}
		inner, tail, closed := strings.Cut(after, "}}")
		if !closed || strings.Contains(inner, "{{") {
			return template{}, &errTemplate{"there is a {{ without a }} after it", "{{name}}"}
		}
		p, err := parsePiece(inner, ok)
		if err != nil {
			return template{}, err
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

// uses returns the names that t uses.
func (t template) uses() []string {
	var out []string
	for _, p := range t.pieces {
		if p.name != "" {
			out = append(out, p.name)
		}
	}
	return out
}

// whole returns the only piece of a template that is nothing but one name.
func (t template) whole() (piece, bool) {
	if len(t.pieces) == 1 && t.pieces[0].name != "" {
		return t.pieces[0], true
	}
	return piece{}, false
}

// values are what names stand for in one act: string, int64, time.Time,
// secret.Value, or a decoded JSON value. A name that may be left out is absent.
type values map[string]any

// errAbsent is returned for a name that has no value in this act.
var errAbsent = errors.New("has no value")

// value returns what p stands for after its filters.
func (p piece) value(v values) (any, error) {
	x, ok := v[p.name]
	if !ok {
		return nil, fmt.Errorf("%s %w", p.name, errAbsent)
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
	s, err := asText(x)
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

// asText returns a scalar as text.
func asText(x any) (string, error) {
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

// text renders t; escape, when not nil, is applied to every value, and told
// whether the filter urlencode came last.
func (t template) text(v values, escape func(s string, encoded bool) (string, error)) (string, error) {
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
		s, err := asText(x)
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

// pathSegment escapes s as one segment of a path. What would change which
// resource is meant is refused.
func pathSegment(s string, encoded bool) (string, error) {
	if s == "" || s == "." || s == ".." {
		return "", errors.New("cannot stand in a path: it is empty or dots")
	}
	if encoded {
		return s, nil
	}
	return url.PathEscape(s), nil
}

// tree is a JSON value with templates in it.
type tree struct {
	kind   kind
	text   template // isText
	scalar any      // isInt, isBool, isNull, isFloat: as encoding/json takes it
	fields []treeField
	items  []tree
}

type treeField struct {
	name  string
	value tree
}

// tree compiles n; bad is called for each template that is wrong.
func (r *reader) tree(n *node, path string, ok names) tree {
	t := tree{kind: n.kind}
	switch n.kind {
	case isMap:
		for _, f := range n.fields {
			t.fields = append(t.fields, treeField{f.name, r.tree(f.value, join(path, f.name), ok)})
		}
	case isList:
		for i, it := range n.items {
			t.items = append(t.items, r.tree(it, fmt.Sprintf("%s[%d]", path, i), ok))
		}
	case isText:
		t.text = r.template(n, path, n.text, ok)
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

// template compiles the text s of n, with a problem when it is wrong.
func (r *reader) template(n *node, path, s string, ok names) template {
	t, err := parseTemplate(s, ok)
	if e := (*errTemplate)(nil); errors.As(err, &e) {
		r.add(n, path, e.write, "%s", e.text)
	}
	return t
}

// value renders t as a value for encoding/json. Values keep their type: what
// is nothing but one name becomes the value itself. A field or item whose only
// name has no value is left out.
func (t tree) value(v values) (any, error) {
	switch t.kind {
	case isMap:
		out := make(map[string]any, len(t.fields))
		for _, f := range t.fields {
			x, err := f.value.value(v)
			if errors.Is(err, errAbsent) {
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
			x, err := it.value(v)
			if errors.Is(err, errAbsent) {
				continue
			}
			if err != nil {
				return nil, err
			}
			out = append(out, x)
		}
		return out, nil
	case isText:
		if p, ok := t.text.whole(); ok {
			return p.value(v)
		}
		return t.text.text(v, nil)
	}
	return t.scalar, nil
}
