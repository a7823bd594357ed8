// Package lint proves the tables of ARCHITECTURE.md against the source: which
// room may import which, who may reveal a secret, and the rules that follow.
// It parses files and runs no tool. Nothing imports it; its test is its use.
package lint

import (
	"fmt"
	"slices"
	"strings"
)

// Row is one line of a table: a name, its marks, and what it allows.
type Row struct {
	Name  string
	Marks []string // pure, sql
	Allow []string
}

// Tables are the tables of ARCHITECTURE.md, in their order.
type Tables struct {
	Imports []Row // room, rooms it may import
	Calls   []Row // call, rooms that may make it
	Modules []Row // module of others, rooms that may import it
}

// ParseTables reads the tables out of the text of ARCHITECTURE.md.
func ParseTables(doc string) (Tables, error) {
	var t Tables
	for _, b := range []struct {
		name string
		rows *[]Row
	}{{"imports", &t.Imports}, {"calls", &t.Calls}, {"modules", &t.Modules}} {
		_, rest, ok := strings.Cut(doc, "\n```"+b.name+"\n")
		body, _, closed := strings.Cut(rest, "\n```")
		if !ok || !closed {
			return Tables{}, fmt.Errorf("there is no block ```%s", b.name)
		}
		for line := range strings.Lines(body) {
			head, allow, ok := strings.Cut(line, ":")
			names := strings.Fields(head)
			if !ok || len(names) == 0 {
				return Tables{}, fmt.Errorf("the line %q of %s is no row", strings.TrimSpace(line), b.name)
			}
			r := Row{Name: names[0], Marks: names[1:], Allow: strings.Fields(allow)}
			if slices.ContainsFunc(*b.rows, func(o Row) bool { return o.Name == r.Name }) {
				return Tables{}, fmt.Errorf("%s has two rows in %s", r.Name, b.name)
			}
			*b.rows = append(*b.rows, r)
		}
	}
	return t, nil
}

// Room returns the row of a room: its own, or that of x/*.
func (t Tables) Room(room string) (Row, bool) {
	for _, r := range t.Imports {
		if r.Name == room {
			return r, true
		}
	}
	if i := strings.LastIndex(room, "/"); i > 0 {
		for _, r := range t.Imports {
			if r.Name == room[:i]+"/*" {
				return r, true
			}
		}
	}
	return Row{}, false
}

// covers reports whether a list of rooms names room, by itself, by x/* or by
// "...".
func covers(list []string, room string) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		if p, ok := strings.CutSuffix(s, "/*"); ok {
			rest, under := strings.CutPrefix(room, p+"/")
			return under && rest != "" && !strings.Contains(rest, "/")
		}
		return s == room || s == "..."
	})
}

// chain returns a permitted chain of imports from room to any of to, or nil.
func (t Tables) chain(room string, to ...string) []string {
	seen := map[string]bool{}
	var walk func(string) []string
	walk = func(at string) []string {
		if slices.Contains(to, at) {
			return []string{at}
		}
		if seen[at] {
			return nil
		}
		seen[at] = true
		r, _ := t.Room(at)
		for _, next := range r.Allow {
			if next == "..." {
				return []string{at, next}
			}
			if c := walk(next); c != nil {
				return append([]string{at}, c...)
			}
		}
		return nil
	}
	if c := walk(room); len(c) > 1 {
		return c
	}
	return nil
}

// adapter reports whether a row is one of x/*, and of which x.
func adapter(name string) (string, bool) {
	return strings.CutSuffix(name, "/*")
}

// CheckTables returns what the tables themselves permit and must not.
func CheckTables(t Tables) []string {
	var bad []string
	failf := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }

	above := map[string]bool{} // rows read so far
	for _, r := range t.Imports {
		for _, a := range r.Allow {
			if a != "..." && !above[a] {
				failf("imports: %s may import %s, which has no row above it: imports go down only", r.Name, a)
			}
		}
		above[r.Name] = true
		if x, ok := adapter(r.Name); ok {
			for _, a := range r.Allow {
				if strings.HasPrefix(a, x+"/") || a == "..." {
					failf("imports: %s may import %s: adapters do not import each other", r.Name, a)
				}
			}
		}
		for _, m := range r.Marks {
			if m != "pure" && m != "sql" {
				failf("imports: %s is marked %s, which means nothing", r.Name, m)
			}
		}
	}
	known := func(table, row, room string) {
		if x, ok := adapter(room); ok {
			room = x
		}
		if !above[room] && room != "..." {
			failf("%s: %s names %s, which has no row in imports", table, row, room)
		}
	}
	for _, r := range t.Calls {
		for _, a := range r.Allow {
			known("calls", r.Name, a)
		}
	}
	for _, r := range t.Modules {
		for _, a := range r.Allow {
			if _, ok := t.Room(a); !ok {
				known("modules", r.Name, a)
			}
		}
	}

	// no plaintext can be stored, logged or audited
	blind := []string{"key", "access", "audit", "evidence", "alert", "rotation", "detect", "config", "store", "server/web"}
	for _, r := range t.Imports {
		if strings.HasPrefix(r.Name, "store/") {
			blind = append(blind, r.Name)
		}
	}
	for _, room := range blind {
		if c := t.chain(room, "secret"); c != nil {
			failf("imports: %s permits a way from %s to secret", strings.Join(c, " > "), room)
		}
	}
	// the gateway runs while the rest is down
	for _, r := range t.Imports {
		if r.Name == "gateway" || strings.HasPrefix(r.Name, "gateway/") {
			if c := t.chain(r.Name, "store", "engine", "provider"); c != nil {
				failf("imports: %s: a gateway reaches no store, engine or provider", strings.Join(c, " > "))
			}
		}
		if covers(r.Allow, "seal") && !slices.Contains([]string{"engine", "handover", "app", "bench"}, r.Name) {
			failf("imports: %s may import seal; only engine, handover and app do", r.Name)
		}
		if r.Name == "server/v1" {
			for _, no := range []string{"secret", "seal", "handover"} {
				if covers(r.Allow, no) {
					failf("imports: server/v1 may import %s: people put keys in and cannot get them out", no)
				}
			}
		}
	}
	return bad
}
