package gateway

import (
	"encoding/json"

	"github.com/keybaton/keybaton/internal/key"
)

// The names of the headers by which callers tell Keybaton's answers from the
// vendor's, and by which they may present a token.
const (
	HeaderError    = "Keybaton-Error"    // code of an answer that Keybaton made itself
	HeaderVersion  = "Keybaton-Version"  // version that a relayed answer came from
	HeaderFallback = "Keybaton-Fallback" // 1: it was not the primary
	HeaderToken    = "Keybaton-Token"
)

// Fault is an answer that Keybaton makes itself.
type Fault struct {
	Status int    // HTTP status
	Code   string // value of Keybaton-Error; stable
	Detail string // for people: what is wrong, and what to do; never a key
	Err    error  // the sentinel it stands for; may be nil
}

// Error returns the detail.
func (f *Fault) Error() string { return f.Detail }

// Unwrap returns the sentinel.
func (f *Fault) Unwrap() error { return f.Err }

// Body returns the answer's body, application/problem+json (RFC 9457).
func (f *Fault) Body() []byte {
	b, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Code   string `json:"code"`
	}{"about:blank", "Keybaton did not relay this request", f.Status, f.Detail, f.Code})
	if err != nil {
		return []byte("{}")
	}
	return b
}

const tokenHelp = "put your Keybaton token where the vendor's key would be, or in the header Keybaton-Token; create one with: keybaton token create"

func noSnapshot() *Fault {
	return &Fault{503, "no_snapshot", "this gateway has no keys yet; check that it reaches its server, and try again", key.ErrUnavailable}
}

func noToken() *Fault {
	return &Fault{401, "no_token", "the request carries no Keybaton token; " + tokenHelp, key.ErrNoToken}
}

func badToken() *Fault {
	return &Fault{401, "bad_token", "the Keybaton token is not known to this gateway; " + tokenHelp, key.ErrNoToken}
}

func expiredToken(name string) *Fault {
	return &Fault{401, "expired_token", "the Keybaton token " + name + " has expired; create a new one with: keybaton token create", key.ErrNoToken}
}

func twoTokens(name string) *Fault {
	return &Fault{400, "two_tokens", "the request carries another Keybaton token beside that of " + name + "; send one alone", key.ErrInvalid}
}

func notGranted(name string, id key.CredentialID) *Fault {
	return &Fault{403, "not_granted", "the token " + name + " may not call " + id.String() + "; create one that may: keybaton token create NAME --service " + id.Service + " --env " + id.Environment, key.ErrDenied}
}

func noService(service string) *Fault {
	return &Fault{404, "unknown_service", "there is no service " + quote(service) + " here; the first segment of the path names it, as in /billing-api/v1/me; list them with: keybaton list", key.ErrNotFound}
}

func noCredential(service, env string) *Fault {
	return &Fault{404, "unknown_environment", "service " + service + " has no credential in environment " + quote(env) + "; list them with: keybaton list", key.ErrNotFound}
}

func ambiguous(service string) *Fault {
	return &Fault{400, "ambiguous_environment", "the token is granted " + service + " in several environments; say which: /ENVIRONMENT/" + service + "/… or /" + service + "@ENVIRONMENT/…", key.ErrInvalid}
}

func disabled(cr *credential) *Fault {
	return &Fault{503, "credential_disabled", "credential " + cr.id.String() + " cannot be used: " + cr.err.Error(), key.ErrUnavailable}
}

func noKey(id key.CredentialID) *Fault {
	return &Fault{503, "no_key", "credential " + id.String() + " has no key yet; set one with: keybaton set " + id.Service + " --env " + id.Environment, key.ErrUnavailable}
}

func badRequest(code, detail string) *Fault {
	return &Fault{400, code, detail, key.ErrInvalid}
}

// quote returns s for a person, short and free of control characters.
func quote(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	b, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(b)
}
