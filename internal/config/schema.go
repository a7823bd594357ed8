package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"
)

// Schema returns the JSON Schema (2020-12) of keybaton.yaml, indented, for
// editors. What it cannot say, such as that a policy exists, [Parse] checks.
func Schema() ([]byte, error) {
	r := &jsonschema.Reflector{
		Anonymous:                  true,
		ExpandedStruct:             true,
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true,
		Namer: func(t reflect.Type) string {
			if t == reflect.TypeFor[placing]() {
				return "place"
			}
			return t.Name()
		},
		LookupComment: func(t reflect.Type, field string) string {
			if t.Kind() != reflect.Struct {
				return ""
			}
			f, _ := t.FieldByName(field)
			return f.Tag.Get("doc")
		},
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[duration]():
				return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]{1,4}d)?([0-9.]+(h|m|s|ms))*$`, Examples: []any{"30d", "12h", "15m", "2s", "500ms"}}
			case reflect.TypeFor[status]():
				return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
					{Type: "integer", Minimum: json.Number("100"), Maximum: json.Number("599")},
					{Type: "string", Pattern: "^[1-5]xx$"},
				}}
			}
			return nil
		},
	}
	s := r.Reflect(file{})
	s.Title = "keybaton.yaml"
	s.Description = "What Keybaton manages."
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the schema: %w", err)
	}
	return append([]byte(strings.TrimSpace(string(b))), '\n'), nil
}
