package call

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
)

// Path finds values in decoded JSON: the part of JSONPath (RFC 9535) that
// recipes need. It knows $.name, $['name'], [0], [-1], [*] and .* for every
// element, and filters [?(@.name=='text')], [?(@.name!='text')] and
// [?(@.name)]; values are compared as text. The zero Path is $.
type Path struct {
	text  string
	steps []step
}

type step struct {
	name   string
	index  int
	kind   byte // 'n' name, 'i' index, '*' every element, '?' filter
	filter *filter
}

type filter struct {
	path Path
	op   string // "==", "!=", or "" for: is there
	want string
}

// ParsePath parses a path; "" is $. Errors wrap key.ErrInvalid.
func ParsePath(s string) (Path, error) {
	p := Path{text: s}
	rest := strings.TrimPrefix(s, "$")
	for rest != "" {
		var st step
		var err error
		switch {
		case rest[0] == '[':
			st, rest, err = parseBracket(rest)
		case rest[0] == '.' || len(p.steps) == 0 && !strings.HasPrefix(s, "$"):
			rest = strings.TrimPrefix(rest, ".")
			n := strings.IndexAny(rest, ".[")
			if n < 0 {
				n = len(rest)
			}
			st, rest = step{kind: 'n', name: rest[:n]}, rest[n:]
			if st.name == "*" {
				st = step{kind: '*'}
			}
			if st.kind == 'n' && (st.name == "" || strings.ContainsAny(st.name, " ]'\"()?@")) {
				err = fmt.Errorf("empty or odd name")
			}
		default:
			err = fmt.Errorf("after $ comes . or [")
		}
		if err != nil {
			return Path{}, fmt.Errorf("%w: path %q: %w", key.ErrInvalid, s, err)
		}
		p.steps = append(p.steps, st)
	}
	return p, nil
}

func parseBracket(s string) (step, string, error) {
	end := closing(s)
	if end < 0 {
		return step{}, "", fmt.Errorf("[ without ]")
	}
	in, rest := strings.TrimSpace(s[1:end]), s[end+1:]
	switch {
	case in == "*":
		return step{kind: '*'}, rest, nil
	case len(in) >= 2 && (in[0] == '\'' || in[0] == '"') && in[len(in)-1] == in[0]:
		return step{kind: 'n', name: in[1 : len(in)-1]}, rest, nil
	case strings.HasPrefix(in, "?"):
		f, err := parseFilter(strings.TrimSpace(in[1:]))
		return step{kind: '?', filter: f}, rest, err
	}
	n, err := strconv.Atoi(in)
	if err != nil {
		return step{}, "", fmt.Errorf("%q is neither an index, a quoted name, * nor a filter", in)
	}
	return step{kind: 'i', index: n}, rest, nil
}

// closing returns the index of the bracket that closes s[0], outside quotes.
func closing(s string) int {
	depth, quote := 0, byte(0)
	for i := range len(s) {
		c := s[i]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '[':
			depth++
		case c == ']':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

func parseFilter(s string) (*filter, error) {
	if strings.HasPrefix(s, "(") && strings.HasSuffix(s, ")") {
		s = strings.TrimSpace(s[1 : len(s)-1])
	}
	if !strings.HasPrefix(s, "@") {
		return nil, fmt.Errorf("a filter begins with @")
	}
	f := &filter{}
	left := s
	for _, op := range []string{"==", "!="} {
		if l, r, ok := strings.Cut(s, op); ok && (f.op == "" || len(l) < len(left)) {
			f.op, left, f.want = op, l, strings.TrimSpace(r)
		}
	}
	if f.op != "" {
		switch n := len(f.want); {
		case n >= 2 && (f.want[0] == '\'' || f.want[0] == '"') && f.want[n-1] == f.want[0]:
			f.want = f.want[1 : n-1]
		case n == 0 || strings.ContainsAny(f.want, "'\"@&|() "):
			return nil, fmt.Errorf("a filter compares with one quoted text, number, true, false or null")
		}
	}
	var err error
	f.path, err = ParsePath("$" + strings.TrimPrefix(strings.TrimSpace(left), "@"))
	return f, err
}

// String returns the path as it was written.
func (p Path) String() string { return p.text }

// Find returns the first value at p in root, and whether there is one. root is
// what encoding/json decodes into an any.
func (p Path) Find(root any) (any, bool) {
	all := p.All(root)
	if len(all) == 0 {
		return nil, false
	}
	return all[0], true
}

// All returns every value at p in root; elements of an object come in the
// order of their names.
func (p Path) All(root any) []any {
	cur := []any{root}
	for _, st := range p.steps {
		var next []any
		for _, v := range cur {
			next = st.apply(next, v)
		}
		if cur = next; len(cur) == 0 {
			return nil
		}
	}
	return cur
}

func (st step) apply(out []any, v any) []any {
	switch st.kind {
	case 'n':
		if m, ok := v.(map[string]any); ok {
			if x, ok := m[st.name]; ok {
				out = append(out, x)
			}
		}
	case 'i':
		if a, ok := v.([]any); ok {
			i := st.index
			if i < 0 {
				i += len(a)
			}
			if i >= 0 && i < len(a) {
				out = append(out, a[i])
			}
		}
	default:
		for _, x := range elements(v) {
			if st.kind == '*' || st.filter.holds(x) {
				out = append(out, x)
			}
		}
	}
	return out
}

func elements(v any) []any {
	switch x := v.(type) {
	case []any:
		return x
	case map[string]any:
		var out []any
		names := make([]string, 0, len(x))
		for n := range x {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			out = append(out, x[n])
		}
		return out
	}
	return nil
}

func (f *filter) holds(v any) bool {
	x, found := f.path.Find(v)
	switch f.op {
	case "==":
		return found && Text(x) == f.want
	case "!=":
		return !found || Text(x) != f.want
	}
	return found
}

// fields returns the names of p when it is made of names alone.
func (p Path) fields() ([]string, bool) {
	var out []string
	for _, st := range p.steps {
		if st.kind != 'n' {
			return nil, false
		}
		out = append(out, st.name)
	}
	return out, len(out) > 0
}

// Text returns a decoded JSON value as text: strings as they are, everything
// else as compact JSON.
func Text(v any) string {
	switch x := v.(type) {
	case string:
		return x
	case json.Number:
		return x.String()
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}
