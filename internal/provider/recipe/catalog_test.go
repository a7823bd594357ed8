package recipe_test

import (
	"testing"

	"github.com/keybaton/keybaton/internal/provider/recipe"
)

func TestCatalogParses(t *testing.T) {
	if _, err := recipe.Catalog(); err != nil {
		t.Fatal(err)
	}
}
