package client

import (
	"context"
	"net/http"

	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

// Key is a key in plaintext, as a reader gets it.
type Key struct {
	Service     string
	Environment string
	Version     int64
	Parts       secret.Parts
	Fallback    secret.Parts // of the fallback slot; nil when it is empty
	EnvName     string       // the variable that the service declares; may be ""
}

// Read gets the plaintext of a key. The token must be a consumer's that is
// granted the credential. The server records that this consumer holds the
// version before it hands it out, and a rotation waits until the consumer's
// declared refresh interval has passed: read again within it.
func (c *Client) Read(ctx context.Context, id Credential) (Key, error) {
	r, err := ask[link.Read](ctx, c, http.MethodGet, link.ReadPath, query("service", id.Service, "environment", id.Environment), nil)
	if err != nil {
		return Key{}, err
	}
	k := Key{Service: r.Credential.Service, Environment: r.Credential.Environment, Version: int64(r.Version), Parts: secret.PartsOf(r.Parts), EnvName: r.EnvName}
	if len(r.Fallback) > 0 {
		k.Fallback = secret.PartsOf(r.Fallback)
	}
	return k, nil
}
