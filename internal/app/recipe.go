package app

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/secret"
)

// Recipes describes the providers that this program has.
func Recipes() ([]api.Recipe, error) {
	reg, err := providers(nil)
	if err != nil {
		return nil, err
	}
	return recipesOf(reg)(), nil
}

// LoadRecipe reads a recipe from a file, or the catalog's by its id. Its errors
// name line and field.
func LoadRecipe(name string) (*recipe.Recipe, error) {
	b, err := os.ReadFile(name)
	if err == nil {
		return recipe.Parse(name, b)
	}
	all, cerr := recipe.Catalog()
	if cerr != nil {
		return nil, cerr
	}
	if r, ok := all[name]; ok {
		return r, nil
	}
	return nil, key.WithHint(fmt.Errorf("%w: recipe %s: %w", key.ErrNotFound, name, err), "name a file, or one of: keybaton recipe list")
}

// DescribeRecipe says what a recipe can do.
func DescribeRecipe(r *recipe.Recipe) (api.Recipe, []string) {
	d := recipe.New(r)
	return describe(r.ID, d), d.Describe(provider.Env{}).ManagerParts
}

// TryRecipe runs a recipe against the live vendor that params name: issue,
// probe, list, disable, revoke, prove. It cleans up after itself. report gets
// one line for each step.
func TryRecipe(ctx context.Context, r *recipe.Recipe, params map[string]string, manager secret.Parts, report func(string)) error {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	defer t.CloseIdleConnections()
	env := provider.Env{Transport: t, Params: params, Manager: manager}
	env.Call = recipe.New(r).Describe(env).Call
	rep, err := recipe.Try(ctx, func(s recipe.TryStep) { report(s.String()) }, r, env)
	if rep.Stray != "" {
		report("left behind at the vendor: " + rep.Stray + "; delete it there")
	}
	return err
}
