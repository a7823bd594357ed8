package spec

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/keybaton/keybaton/internal/key"
)

// maxSource is the most that a recipe file may have, in bytes.
const maxSource = 256 << 10

// maxDepth is how deep a recipe may nest.
const maxDepth = 20

// Problem is one thing that is wrong with a recipe.
type Problem struct {
	Line, Col int    // from 1; 0 when the place is not known
	Field     string // "create.steps[0].request.path"; "" for the whole file
	Text      string // what is wrong
	Write     string // what to write instead; may be ""
}

// ParseError is everything that is wrong with one recipe. It wraps
// [key.ErrInvalid].
type ParseError struct {
	Name     string // the file
	Problems []Problem
}

// Error returns one line per problem: "file:line:col: field: what; write …".
func (e *ParseError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		var b strings.Builder
		fmt.Fprintf(&b, "%s:%d:%d: ", e.Name, p.Line, p.Col)
		if p.Field != "" {
			b.WriteString(p.Field + ": ")
		}
		b.WriteString(p.Text)
		if p.Write != "" {
			b.WriteString("; write " + p.Write)
		}
		lines[i] = b.String()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns [key.ErrInvalid].
func (e *ParseError) Unwrap() error { return key.ErrInvalid }

// kind is what a node of a recipe file is.
type kind string

const (
	isMap    kind = "a mapping"
	isList   kind = "a list"
	IsText   kind = "text"
	isInt    kind = "a whole number"
	isFloat  kind = "a number"
	isBool   kind = "true or false"
	isNull   kind = "nothing"
	isBroken kind = "unreadable"
)

// node is one value of the file with its place.
type node struct {
	kind      kind
	line, col int
	text      string // of a scalar, as written
	number    int64
	yes       bool
	fields    []field
	items     []*node
}

type field struct {
	name      string
	line, col int
	value     *node
}

// reader turns a file into nodes and collects what is wrong.
type reader struct{ problems []Problem }

func (r *reader) add(n *node, path, write, text string, args ...any) {
	p := Problem{Field: path, Text: fmt.Sprintf(text, args...), Write: write}
	if n != nil {
		p.Line, p.Col = n.line, n.col
	}
	r.problems = append(r.problems, p)
}

// err returns the problems in the order of the file, or nil.
func (r *reader) err(name string) error {
	if len(r.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	return &ParseError{Name: name, Problems: slices.Compact(r.problems)}
}

// read parses src into one node, or nil with a problem.
func (r *reader) read(src []byte) *node {
	if len(src) > maxSource {
		r.add(nil, "", "a shorter one", "the file has more than %d bytes", maxSource)
		return nil
	}
	f, err := parser.ParseBytes(src, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		p := Problem{Text: "this is not YAML"}
		if e := yaml.Error(nil); errors.As(err, &e) {
			p.Text += ": " + e.GetMessage()
			if t := e.GetToken(); t != nil && t.Position != nil {
				p.Line, p.Col = t.Position.Line, t.Position.Column
			}
		}
		r.problems = append(r.problems, p)
		return nil
	}
	var body ast.Node
	for _, d := range f.Docs {
		if d.Body == nil {
			continue
		}
		if body != nil {
			r.add(place(d.Body), "", "one recipe per file", "there is a second document")
			return nil
		}
		body = d.Body
	}
	if body == nil {
		r.add(nil, "", `"recipe: 1" and what follows`, "the file is empty")
		return nil
	}
	return r.node(body, "", 0)
}

// place returns a node that has only the position of a.
func place(a ast.Node) *node {
	n := &node{kind: isBroken}
	if a == nil {
		return n
	}
	if t := a.GetToken(); t != nil && t.Position != nil {
		n.line, n.col = t.Position.Line, t.Position.Column
	}
	return n
}

// node converts a; path names it in problems.
func (r *reader) node(a ast.Node, path string, depth int) *node {
	n := place(a)
	if depth > maxDepth {
		r.add(n, path, "", "nests deeper than %d", maxDepth)
		return n
	}
	switch v := a.(type) {
	case *ast.MappingNode:
		r.fields(n, v.Values, path, depth)
	case *ast.MappingValueNode:
		r.fields(n, []*ast.MappingValueNode{v}, path, depth)
	case *ast.SequenceNode:
		n.kind = isList
		for i, it := range v.Values {
			n.items = append(n.items, r.node(it, fmt.Sprintf("%s[%d]", path, i), depth+1))
		}
	case *ast.StringNode:
		n.kind, n.text = IsText, v.Value
	case *ast.LiteralNode:
		n.kind = IsText
		if v.Value != nil {
			n.text = v.Value.Value
		}
	case *ast.IntegerNode:
		n.kind, n.text = isInt, tokenText(v.Token)
		switch i := v.Value.(type) {
		case int64:
			n.number = i
		case uint64:
			if i > 1<<62 {
				r.add(n, path, "a smaller number", "the number is too large")
			}
			n.number = int64(i) //nolint:gosec // checked above
		}
	case *ast.FloatNode:
		n.kind, n.text = isFloat, tokenText(v.Token)
	case *ast.BoolNode:
		n.kind, n.yes, n.text = isBool, v.Value, tokenText(v.Token)
	case *ast.NullNode:
		n.kind = isNull
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		r.add(n, path, "the value itself", "anchors and aliases are not read")
	case *ast.TagNode:
		r.add(n, path, "the value without the tag", "tags are not read")
	default:
		r.add(n, path, "", "this is not understood")
	}
	return n
}

func tokenText(t *token.Token) string {
	if t == nil {
		return ""
	}
	return t.Value
}

func (r *reader) fields(n *node, vs []*ast.MappingValueNode, path string, depth int) {
	n.kind = isMap
	if len(vs) > 0 {
		// The token of a mapping is its colon or brace; its first key reads better.
		if p := place(vs[0].Key); p.line > 0 {
			n.line, n.col = p.line, p.col
		}
	}
	for _, v := range vs {
		k := place(v.Key)
		var name string
		switch s := v.Key.(type) {
		case *ast.StringNode:
			name = s.Value
		case *ast.IntegerNode, *ast.BoolNode, *ast.NullNode, *ast.FloatNode:
			name = tokenText(v.Key.GetToken())
		default:
			r.add(k, path, "a plain name", "this name of a field is not understood")
			continue
		}
		if slices.ContainsFunc(n.fields, func(f field) bool { return f.name == name }) {
			r.add(k, join(path, name), "it once", "the field is there twice")
			continue
		}
		c := r.node(v.Value, join(path, name), depth+1)
		if c.line == 0 || c.kind == isNull {
			c.line, c.col = k.line, k.col
		}
		n.fields = append(n.fields, field{name: name, line: k.line, col: k.col, value: c})
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// object reads the fields of a mapping one by one and knows which it was asked
// for, so that [object.done] can refuse the rest.
type object struct {
	r     *reader
	n     *node
	path  string
	asked []string
}

// object returns n as a mapping; nil with a problem when it is none.
func (r *reader) object(n *node, path string) *object {
	if n == nil {
		return nil
	}
	if n.kind != isMap {
		if n.kind != isBroken {
			r.add(n, path, "its fields as a mapping", "this is %s", n.kind)
		}
		return nil
	}
	return &object{r: r, n: n, path: path}
}

// get returns the field name, or nil. A nil object has no fields.
func (o *object) get(name string) *node {
	if o == nil {
		return nil
	}
	o.asked = append(o.asked, name)
	for _, f := range o.n.fields {
		if f.name == name {
			return f.value
		}
	}
	return nil
}

func (o *object) at(name string) string { return join(o.path, name) }

// need returns the field name, with a problem when it is not there.
func (o *object) need(name, write string) *node {
	n := o.get(name)
	if n == nil && o != nil {
		o.r.add(o.n, o.at(name), write, "this field is missing")
	}
	return n
}

// done refuses every field that was not asked for.
func (o *object) done() {
	if o == nil {
		return
	}
	for _, f := range o.n.fields {
		if !slices.Contains(o.asked, f.name) {
			write := "one of " + strings.Join(o.asked, ", ")
			if near := nearest(f.name, o.asked); near != "" {
				write = near
			}
			o.r.add(&node{line: f.line, col: f.col}, o.at(f.name), write, "there is no such field")
		}
	}
}

// object, text, … return a field as what it must be, with a problem when it is
// something else and a zero value when it is not there.

func (o *object) object(name string) *object {
	n := o.get(name)
	if n == nil {
		return nil
	}
	return o.r.object(n, o.at(name))
}

func (o *object) text(name string) (string, *node) {
	n := o.get(name)
	if n == nil {
		return "", nil
	}
	return o.r.text(n, o.at(name)), n
}

func (r *reader) text(n *node, path string) string {
	switch n.kind {
	case IsText, isInt, isFloat, isBool:
		return n.text
	case isBroken:
	default:
		r.add(n, path, "text", "this is %s", n.kind)
	}
	return ""
}

func (o *object) number(name string, least, most int64) int {
	n := o.get(name)
	if n == nil {
		return 0
	}
	if n.kind != isInt || n.number < least || n.number > most {
		o.r.add(n, o.at(name), fmt.Sprintf("a whole number from %d to %d", least, most), "%q does not fit", n.text)
		return 0
	}
	return int(n.number)
}

func (o *object) flag(name string, otherwise bool) bool {
	n := o.get(name)
	if n == nil {
		return otherwise
	}
	if n.kind != isBool {
		o.r.add(n, o.at(name), "true or false", "this is %s", n.kind)
		return otherwise
	}
	return n.yes
}

func (o *object) list(name string) []*node {
	n := o.get(name)
	if n == nil {
		return nil
	}
	if n.kind != isList {
		if n.kind != isBroken {
			o.r.add(n, o.at(name), "a list, each item behind a dash", "this is %s", n.kind)
		}
		return nil
	}
	return n.items
}

func (o *object) texts(name string) []string {
	var out []string
	for i, n := range o.list(name) {
		out = append(out, o.r.text(n, fmt.Sprintf("%s[%d]", o.at(name), i)))
	}
	return out
}

func (o *object) choice(name, otherwise string, of ...string) string {
	s, n := o.text(name)
	if n == nil {
		return otherwise
	}
	if !slices.Contains(of, s) {
		o.r.add(n, o.at(name), "one of "+strings.Join(of, ", "), "%q is not known", s)
		return otherwise
	}
	return s
}

func (o *object) duration(name string) time.Duration {
	s, n := o.text(name)
	if n == nil {
		return 0
	}
	d, err := parseDuration(s)
	if err != nil || d < 0 {
		o.r.add(n, o.at(name), "a duration such as 2s, 10m, 12h or 30d", "%q is no duration", s)
		return 0
	}
	return d
}

// parseDuration parses what time.ParseDuration does, and days.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 32)
		if err != nil || n < 0 || n > 36500 {
			return 0, errors.New("not a number of days")
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	return time.ParseDuration(s)
}

// nearest returns the one of names that s was probably meant to be, or "".
func nearest(s string, names []string) string {
	best, least := "", 3
	for _, n := range names {
		if d := distance(s, n); d < least && d < len(n) {
			best, least = n, d
		}
	}
	return best
}

// distance is the number of edits from a to b; long words are far apart.
func distance(a, b string) int {
	if len(a) > 40 || len(b) > 40 {
		return 40
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			c := prev
			if a[i] != b[j] {
				c = 1 + min(prev, row[j], row[j+1])
			}
			prev, row[j+1] = row[j+1], c
		}
	}
	return row[len(b)]
}
