package recipe_test

import (
	"testing"

	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/secret"
)

func TestKeysAreRecognisedByShape(t *testing.T) {
	reg, err := recipe.Drivers()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, key, want string }{
		{"the simulated vendor", "sim_0123456789abcdefghijklmnopqrstuv", "simulated"},
		{"SendGrid", "SG.aaaaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "sendgrid"},
		{"nobody", "hello", ""},
	} {
		got, best := "", 0
		for id, d := range reg {
			m, ok := d.(provider.Matcher)
			if !ok {
				continue
			}
			if n := m.Match(secret.FromString(c.key)); n > best {
				got, best = id, n
			}
		}
		if got != c.want {
			t.Errorf("a key of %s: got %q, want %q", c.name, got, c.want)
		}
	}
}
