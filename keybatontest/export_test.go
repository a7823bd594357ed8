package keybatontest

import "github.com/keybaton/keybaton/internal/provider"

// With returns c with the drivers of reg over those of the program.
func (c Config) With(reg provider.Registry) Config {
	c.providers = reg
	return c
}
