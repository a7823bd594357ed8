package recipe

import (
	"embed"
	"fmt"
	"path"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/spec"
)

//go:embed catalog/*.yaml
var files embed.FS

// Catalog parses the recipes that the program comes with, by id. It does so
// anew each time; the caller owns the map.
func Catalog() (map[string]*spec.Recipe, error) {
	entries, err := files.ReadDir("catalog")
	if err != nil {
		return nil, fmt.Errorf("reading the catalog of recipes: %w", err)
	}
	out := make(map[string]*spec.Recipe, len(entries))
	for _, e := range entries {
		src, err := files.ReadFile("catalog/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("reading the catalog of recipes: %w", err)
		}
		r, err := spec.Parse(path.Join("catalog", e.Name()), src)
		if err != nil {
			return nil, err
		}
		if r.ID != strings.TrimSuffix(e.Name(), ".yaml") {
			return nil, fmt.Errorf("%w: the recipe catalog/%s has the id %s", key.ErrInvalid, e.Name(), r.ID)
		}
		out[r.ID] = r
	}
	return out, nil
}

// Drivers returns the drivers of the catalog and "manual".
func Drivers() (provider.Registry, error) {
	recipes, err := Catalog()
	if err != nil {
		return nil, err
	}
	out := provider.Registry{Manual: NewManual()}
	for id, r := range recipes {
		out[id] = New(r)
	}
	return out, nil
}
