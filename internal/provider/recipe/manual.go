package recipe

import (
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/spec"
)

// Manual is the id of the provider for services whose keys a person makes and
// revokes.
const Manual = "manual"

// NewManual returns the driver of a service that no recipe describes: place,
// probe and rules are the service's own, and a person makes and revokes keys.
func NewManual() provider.Driver {
	return New(&spec.Recipe{
		ID: Manual, Vendor: "the vendor", Shape: spec.Human, Tested: "live",
		Parts: []spec.Part{{Name: "key", Secret: true}},
		Human: spec.ByHand{
			Create: []string{
				"make a second key at the vendor with the same rights as the present one, and leave the present one alone",
				`give the new key to Keybaton with "keybaton set"`,
			},
			Revoke: []string{"revoke the old key at the vendor"},
		},
		Spacing: spec.DefaultSpacing, DeadOK: 3,
	})
}
