package config

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// place is where in a file something stands, from 1.
type place struct{ line, col int }

// decoder fills the types of file.go from a syntax tree, collects every
// mistake, and remembers where each field stands.
type decoder struct {
	file     string
	problems Problems
	at       map[string]place
}

func (d *decoder) fail(field string, at place, text string) {
	d.problems = append(d.problems, Problem{File: d.file, Line: at.line, Col: at.col, Field: field, Text: text})
}

// failAt names a mistake at the place of a field, or of the nearest field
// around it that is there.
func (d *decoder) failAt(field, format string, args ...any) {
	at, ok := d.at[field]
	for f := field; !ok; {
		i := strings.LastIndexAny(f, ".[")
		if i < 0 {
			at = place{1, 1}
			break
		}
		f = f[:i]
		at, ok = d.at[f]
	}
	d.fail(field, at, fmt.Sprintf(format, args...))
}

func placeOf(n ast.Node) place {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return place{max(1, t.Position.Line), max(1, t.Position.Column)}
	}
	return place{1, 1}
}

// said reports whether a field is written, well or badly.
func (d *decoder) said(field string) bool {
	_, ok := d.at[field]
	return ok
}

// missing reports whether a field of a mapping is to be asked for: it is not
// written, and nothing in the mapping is written wrongly, which it may be.
func (d *decoder) missing(of, name string) bool {
	return !d.said(join(of, name)) && !slices.ContainsFunc(d.problems, func(p Problem) bool {
		return p.Field == of || strings.HasPrefix(p.Field, join(of, ""))
	})
}

func (d *decoder) value(field string, n ast.Node, v reflect.Value) {
	if n == nil {
		return
	}
	if _, scalar := n.(ast.ScalarNode); scalar || !d.said(field) {
		d.at[field] = placeOf(n)
	}
	switch n := n.(type) {
	case *ast.NullNode:
		delete(d.at, field) // as if it were not written
		return
	case *ast.AnchorNode, *ast.AliasNode:
		d.fail(field, placeOf(n), "anchors and aliases are not read; write the value out")
		return
	case *ast.TagNode:
		d.fail(field, placeOf(n), "tags are not read; write the value alone, in quotes if it is text")
		return
	}
	switch v.Interface().(type) {
	case duration:
		s, ok := d.scalar(field, n)
		if !ok {
			return
		}
		t, err := parseDuration(s)
		if err != "" {
			d.fail(field, placeOf(n), err)
			return
		}
		v.SetInt(int64(t))
		return
	case status:
		s, ok := d.scalar(field, n)
		if !ok {
			return
		}
		i, err := strconv.Atoi(strings.TrimSuffix(s, "xx"))
		class := strings.HasSuffix(s, "xx")
		if err != nil || class && (i < 1 || i > 5) || !class && (i < 100 || i > 599) {
			d.fail(field, placeOf(n), fmt.Sprintf("%q is not a status; write 401, or 4xx for every one that begins with 4", short(s)))
			return
		}
		v.SetInt(int64(i))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		e := reflect.New(v.Type().Elem())
		d.value(field, n, e.Elem())
		v.Set(e)
	case reflect.Struct:
		d.fields(field, n, v)
	case reflect.Map:
		d.mapping(field, n, v)
	case reflect.Slice:
		d.list(field, n, v)
	case reflect.String:
		if s, ok := d.scalar(field, n); ok {
			v.SetString(s)
		}
	case reflect.Int:
		s, ok := d.scalar(field, n)
		if !ok {
			return
		}
		i, err := strconv.ParseInt(s, 10, 32)
		if err != nil {
			d.fail(field, placeOf(n), fmt.Sprintf("%q is not a whole number", short(s)))
			return
		}
		v.SetInt(i)
	case reflect.Bool:
		s, ok := d.scalar(field, n)
		if !ok {
			return
		}
		if s != "true" && s != "false" {
			d.fail(field, placeOf(n), fmt.Sprintf("%q is neither true nor false", short(s)))
			return
		}
		v.SetBool(s == "true")
	}
}

// scalar returns the text of n as it is written: 010 stays 010, true stays
// true.
func (d *decoder) scalar(field string, n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		if n.Value != nil {
			return n.Value.Value, true
		}
		return "", true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	d.fail(field, placeOf(n), "one value is wanted here, not a list or a mapping")
	return "", false
}

func (d *decoder) pairs(field string, n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	d.fail(field, placeOf(n), "a mapping is wanted here, such as {name: value}")
	return nil, false
}

// name returns the key of a pair, unless it was there before.
func (d *decoder) name(field string, p *ast.MappingValueNode, seen map[string]place) (string, bool) {
	if p.Key == nil || p.Key.IsMergeKey() {
		at := placeOf(p)
		if p.Key != nil {
			at = placeOf(p.Key)
		}
		d.fail(field, at, "merge keys are not read; write the fields out")
		return "", false
	}
	var name string
	switch k := p.Key.(type) {
	case *ast.StringNode:
		name = k.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		name = k.GetToken().Value
	default:
		d.fail(field, placeOf(p.Key), "a name is wanted here")
		return "", false
	}
	at := placeOf(p.Key)
	if first, ok := seen[name]; ok {
		d.fail(join(field, name), at, fmt.Sprintf("this is said before, on line %d; keep one of the two", first.line))
		return "", false
	}
	seen[name] = at
	d.at[join(field, name)] = at
	return name, true
}

func (d *decoder) fields(field string, n ast.Node, v reflect.Value) {
	ps, ok := d.pairs(field, n)
	if !ok {
		return
	}
	index := map[string]int{}
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); tag != "" {
			index[tag] = i
		}
	}
	seen := map[string]place{}
	for _, p := range ps {
		name, ok := d.name(field, p, seen)
		if !ok {
			continue
		}
		i, known := index[name]
		if !known {
			d.fail(join(field, name), seen[name], "there is no such field; "+suggest(name, slices.Sorted(maps.Keys(index))))
			continue
		}
		d.value(join(field, name), p.Value, v.Field(i))
	}
}

func (d *decoder) mapping(field string, n ast.Node, v reflect.Value) {
	ps, ok := d.pairs(field, n)
	if !ok {
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	seen := map[string]place{}
	for _, p := range ps {
		name, ok := d.name(field, p, seen)
		if !ok {
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(join(field, name), p.Value, e)
		v.SetMapIndex(reflect.ValueOf(name), e)
	}
}

func (d *decoder) list(field string, n ast.Node, v reflect.Value) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(field, placeOf(n), "a list is wanted here, such as [one, two]")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values))
	for i, e := range s.Values {
		f := field + "[" + strconv.Itoa(i) + "]"
		if e == nil || e.Type() == ast.NullType {
			d.fail(f, d.at[field], "an entry of the list is empty; write it or leave it out")
			continue
		}
		d.value(f, e, out.Index(i))
	}
	v.Set(out)
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

// short keeps messages short, whatever was written.
func short(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "…"
	}
	return s
}

// suggest names the known name that is nearest to what was written, or all.
func suggest(name string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		dist := distance(strings.ToLower(name), k)
		if len(name) > 3 && (strings.HasPrefix(k, name) || strings.HasPrefix(name, k)) {
			dist = min(dist, 2)
		}
		if dist < least && dist < len(k) {
			best, least = k, dist
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(known) == 0:
		return "there is none"
	case len(known) > 20:
		return "there is " + strings.Join(known[:20], ", ") + " and others"
	}
	return "there is " + strings.Join(known, ", ")
}

// distance is the number of letters to insert, delete, replace or swap to make
// b of a.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range b {
		rows[0][j+1] = j + 1
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

var daysRE = regexp.MustCompile(`^([0-9]{1,4})d(.*)$`)

// maxDuration is ten years: more is a slip of the pen.
const maxDuration = 3650 * 24 * time.Hour

// parseDuration parses 30d, 1d12h, 12h, 15m, 2s or 500ms. The text is what is
// wrong, or "".
func parseDuration(s string) (time.Duration, string) {
	const write = "write it like 30d, 12h, 15m, 2s or 500ms"
	var days time.Duration
	rest := s
	if m := daysRE.FindStringSubmatch(s); m != nil {
		n, _ := strconv.Atoi(m[1])
		days, rest = time.Duration(n)*24*time.Hour, m[2]
	}
	var t time.Duration
	if rest != "" {
		var err error
		if t, err = time.ParseDuration(rest); err != nil || strings.ContainsAny(rest, "+-nuµμ") {
			return 0, fmt.Sprintf("%q is not a duration; %s", short(s), write)
		}
	} else if days == 0 && s == "" {
		return 0, "the duration is empty; " + write
	}
	switch t += days; {
	case t <= 0:
		return 0, "a duration of zero means nothing here; leave the field out for its default, or " + write
	case t > maxDuration:
		return 0, fmt.Sprintf("%s is longer than 3650d; %s", short(s), write)
	}
	return t, ""
}
