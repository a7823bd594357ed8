package recipe

import (
	"regexp"

	"github.com/keybaton/keybaton/secret"
)

// Match returns how specific the recipe's pattern is when v has the shape of
// its keys: the length of the pattern, and 0 otherwise. A key of several parts
// has no shape of its own.
func (c *core) Match(v secret.Value) int {
	if len(c.Parts) != 1 || c.Parts[0].Pattern == "" {
		return 0
	}
	re, err := regexp.Compile(c.Parts[0].Pattern)
	if err != nil {
		return 0 // the parser has compiled it before
	}
	b := v.Reveal()
	defer clear(b)
	if !re.Match(b) {
		return 0
	}
	return len(c.Parts[0].Pattern)
}
