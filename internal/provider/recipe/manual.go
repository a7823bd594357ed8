package recipe

import (
	"github.com/keybaton/keybaton/internal/provider"
)

// Manual is the id of the provider for services whose keys a person makes and
// revokes.
const Manual = "manual"

// NewManual returns the driver of a service that no recipe describes: place,
// probe and rules are the service's own, and a person makes and revokes keys.
func NewManual() provider.Driver {
	return New(&Recipe{
		ID: Manual, Vendor: "the vendor", Shape: Human, Tested: "live",
		parts: []part{{name: "key", secret: true}},
		human: human{
			create: []string{
				"make a second key at the vendor with the same rights as the present one, and leave the present one alone",
				`give the new key to Keybaton with "keybaton set"`,
			},
			revoke: []string{"revoke the old key at the vendor"},
		},
		spacing: defaultSpacing, deadOK: 3,
	})
}
