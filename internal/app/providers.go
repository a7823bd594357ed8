package app

import (
	"cmp"
	"maps"
	"slices"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/postgres"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/internal/provider/redis"
)

type driver = provider.Driver

// providers returns the catalog's drivers, the coded ones, and the given ones.
func providers(more provider.Registry) (provider.Registry, error) {
	reg, err := recipe.Drivers()
	if err != nil {
		return nil, err
	}
	reg[redis.ID] = redis.New()
	reg[postgres.ID] = postgres.New()
	maps.Copy(reg, more)
	return reg, nil
}

// recipesOf describes every provider for people.
func recipesOf(reg provider.Registry) func() []api.Recipe {
	return func() []api.Recipe {
		var out []api.Recipe
		for _, id := range slices.Sorted(maps.Keys(reg)) {
			out = append(out, describe(id, reg[id]))
		}
		return out
	}
}

func describe(id string, d provider.Driver) api.Recipe {
	i := d.Describe(provider.Env{})
	can := i.Abilities
	r := api.Recipe{ID: id, Vendor: cmp.Or(i.Vendor, id), Issue: can.Issue, Revoke: can.Revoke, List: can.List, Disable: can.Disable, Probe: can.Probe,
		Max: can.Max, Manager: i.Manager, Parts: i.Call.PartNames(), Upstream: i.Call.Upstream, Tested: i.Tested, URL: can.URL,
		Steps: append([]string{}, can.Steps...), Undo: append([]string{}, can.Undo...), Params: []api.RecipeParam{}}
	for _, p := range i.Params {
		r.Params = append(r.Params, api.RecipeParam{Name: p.Name, Default: p.Default, Required: p.Required, Help: p.Help})
	}
	return r
}
