package recipe

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
)

// xmlText returns the text of the first element at path: local names from the
// root's children on, whatever their namespace.
func xmlText(body []byte, path []string) (string, bool) {
	d := xml.NewDecoder(bytes.NewReader(body))
	var at []string
	var text strings.Builder
	for {
		t, err := d.Token()
		if err != nil {
			return "", false
		}
		switch e := t.(type) {
		case xml.StartElement:
			at = append(at, e.Name.Local)
		case xml.CharData:
			if len(at) > 0 && slices.Equal(at[1:], path) {
				text.Write(e)
			}
		case xml.EndElement:
			if len(at) > 0 && slices.Equal(at[1:], path) {
				return strings.TrimSpace(text.String()), true
			}
			at = at[:max(0, len(at)-1)]
		}
	}
}

// xmlRows returns every element at path as an object of the texts of its
// children. ok is false when the body is not whole, or has no element that
// could hold them: a list that is not there is not an empty one.
func xmlRows(body []byte, path []string) (rows []any, ok bool) {
	d := xml.NewDecoder(bytes.NewReader(body))
	holder := path[:len(path)-1]
	var at []string
	var row map[string]any
	var text strings.Builder
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) && len(at) == 0 {
			return rows, ok
		}
		if err != nil {
			return nil, false
		}
		switch e := t.(type) {
		case xml.StartElement:
			at = append(at, e.Name.Local)
			switch {
			case slices.Equal(at[1:], holder):
				ok = true
			case slices.Equal(at[1:], path):
				row = map[string]any{}
			}
			text.Reset()
		case xml.CharData:
			text.Write(e)
		case xml.EndElement:
			switch inner := at[1:]; {
			case row != nil && len(inner) == len(path)+1:
				row[e.Name.Local] = strings.TrimSpace(text.String())
			case row != nil && slices.Equal(inner, path):
				rows, row = append(rows, row), nil
			}
			at = at[:len(at)-1]
		}
	}
}
