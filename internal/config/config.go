// Package config is keybaton.yaml: what is managed. How a server runs is flags
// and environment, and no part of it.
//
// [Parse] turns the text into nouns, or names every mistake at once, each with
// its place and what to write instead. [Diff] says what a file would change.
// [Schema] is the JSON Schema for editors. The package is pure: bytes and nouns
// go in, nouns and problems come out. It knows no provider: whether one exists,
// and what it asks for, is checked by whoever takes the plan.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/parser"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// MaxSize is the greatest length of a file, in bytes. The time to read one
// grows with its square at worst.
const MaxSize = 128 << 10

// maxProblems bounds how many mistakes are named.
const maxProblems = 50

// File is what a keybaton.yaml declares, in nouns, sorted by name.
type File struct {
	Services    []key.Service
	Credentials []key.Credential // ID, Policy, Upstream and Params; the rest is zero
	Policies    []rotation.Policy
}

// Problem is one mistake in a file.
type Problem struct {
	File  string `json:"file,omitempty"`
	Line  int    `json:"line"`            // from 1
	Col   int    `json:"col"`             // from 1
	Field string `json:"field,omitempty"` // such as services.billing-api.upstream
	Text  string `json:"text"`            // what is wrong, and what to write
}

// Error returns "file:line:col: field: text".
func (p Problem) Error() string {
	s := fmt.Sprintf("%s:%d:%d: ", cmp.Or(p.File, "keybaton.yaml"), p.Line, p.Col)
	if p.Field != "" {
		s += p.Field + ": "
	}
	return s + p.Text
}

// Problems are the mistakes in a file, in the order of their places. It wraps
// [key.ErrInvalid].
type Problems []Problem

// Error returns the problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns [key.ErrInvalid].
func (ps Problems) Unwrap() error { return key.ErrInvalid }

// Parse reads the text of a keybaton.yaml; name is the file's, for messages.
// Its error is [Problems]: every mistake that could be told from the rest, at
// most 50. A file with a mistake yields nothing.
func Parse(name string, src []byte) (File, error) {
	d := &decoder{file: name, at: map[string]place{}}
	if len(src) > MaxSize {
		d.fail("", place{1, 1}, fmt.Sprintf("the file has %d bytes, and at most %d are read", len(src), MaxSize))
		return File{}, d.problems
	}
	doc, err := parser.ParseBytes(src, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		at := place{1, 1}
		text := err.Error()
		if ye := yaml.Error(nil); errors.As(err, &ye) {
			if t := ye.GetToken(); t != nil && t.Position != nil {
				at = place{t.Position.Line, t.Position.Column}
			}
			text = ye.GetMessage()
		}
		d.fail("", at, "this is not YAML: "+strings.Join(strings.Fields(text), " "))
		return File{}, d.problems
	}
	var y file
	switch len(doc.Docs) {
	case 0:
		d.fail("", place{1, 1}, "the file is empty; begin with version: 1")
	case 1:
		if doc.Docs[0].Body == nil {
			d.fail("", place{1, 1}, "the file is empty; begin with version: 1")
			break
		}
		d.value("", doc.Docs[0].Body, reflect.ValueOf(&y).Elem())
	default:
		d.fail("", place{1, 1}, "the file has several documents; write one, without ---")
	}
	var f File
	if len(doc.Docs) == 1 && doc.Docs[0].Body != nil {
		f = d.check(y)
	}
	if len(d.problems) == 0 {
		return f, nil
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Field, b.Field))
	})
	ps := slices.CompactFunc(d.problems, func(a, b Problem) bool { return a == b })
	if len(ps) > maxProblems {
		ps = ps[:maxProblems]
	}
	return File{}, ps
}
