// Package access says who may do what: tokens, roles and grants. It is pure:
// it compares, it never looks anything up.
package access

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// Role is what a person or program may do. Each person's role includes the
// ones before it; RoleConsumer and RoleGateway are for programs and include
// nothing else.
type Role string

// The roles.
const (
	RoleViewer   Role = "viewer"   // reads everything but keys
	RoleOperator Role = "operator" // and sets, rotates, rolls back, approves
	RoleAdmin    Role = "admin"    // and changes configuration, tokens, consumers
	RoleConsumer Role = "consumer" // calls services through a gateway, reads the keys it is granted
	RoleGateway  Role = "gateway"  // gets the keys it is granted, to serve consumers
)

// Roles lists the roles, least first.
func Roles() []Role {
	return []Role{RoleViewer, RoleOperator, RoleAdmin, RoleConsumer, RoleGateway}
}

// Verb is something that can be allowed.
type Verb string

// The verbs.
const (
	See     Verb = "see"     // status, lists, audit
	Operate Verb = "operate" // set, rotate, roll back, pause, approve
	Manage  Verb = "manage"  // apply, tokens, consumers
	Call    Verb = "call"    // send requests through a gateway
	Read    Verb = "read"    // get the plaintext of a key
	Follow  Verb = "follow"  // watch, acknowledge, report
)

// Grant names the credentials that a token is for. "*" as the environment or
// as a service means every one.
type Grant struct {
	Environment string   `json:"environment"`
	Services    []string `json:"services"`
}

// Covers reports whether g covers id.
func (g Grant) Covers(id key.CredentialID) bool {
	return (g.Environment == "*" || g.Environment == id.Environment) &&
		(slices.Contains(g.Services, "*") || slices.Contains(g.Services, id.Service))
}

// Token is an API token as it is stored: its hash, never itself.
type Token struct {
	Name    string        `json:"name"` // unique; the consumer's identity
	Hash    string        `json:"hash"` // hex SHA-256 of the token
	Role    Role          `json:"role"`
	Kind    key.Kind      `json:"kind,omitempty"` // of a consumer
	Grants  []Grant       `json:"grants,omitempty"`
	Refresh time.Duration `json:"refresh,omitempty"` // a reader's declared refresh interval; 0 is undeclared
	Created time.Time     `json:"created"`
	By      string        `json:"by"`
	Expires time.Time     `json:"expires,omitzero"`
}

// Principal is who is asking.
type Principal struct {
	Name    string
	Role    Role
	Kind    key.Kind
	Grants  []Grant
	Refresh time.Duration
}

// System is the principal under which the engine itself acts.
var System = Principal{Name: "keybaton", Role: RoleAdmin}

// Principal returns who asks with t at now, or [key.ErrNoToken] when it has
// expired.
func (t Token) Principal(now time.Time) (Principal, error) {
	if !t.Expires.IsZero() && !now.Before(t.Expires) {
		return Principal{}, fmt.Errorf("%w: token %q expired at %s", key.ErrNoToken, t.Name, t.Expires.UTC().Format(time.RFC3339))
	}
	return Principal{Name: t.Name, Role: t.Role, Kind: t.Kind, Grants: t.Grants, Refresh: t.Refresh}, nil
}

// Check returns nil if p may do v to the credential id (zero: to the server as
// a whole), or [key.ErrDenied] with the reason and what to do.
func (p Principal) Check(v Verb, id key.CredentialID) error {
	if !p.roleAllows(v) {
		return key.WithHint(fmt.Errorf("%w: %q has role %s, which may not %s", key.ErrDenied, p.Name, p.Role, v),
			"use a token with the role "+string(leastRole(v)))
	}
	if id.IsZero() || len(p.Grants) == 0 && (p.Role == RoleViewer || p.Role == RoleOperator || p.Role == RoleAdmin) {
		return nil
	}
	for _, g := range p.Grants {
		if g.Covers(id) {
			return nil
		}
	}
	return key.WithHint(fmt.Errorf("%w: %q is not granted %s", key.ErrDenied, p.Name, id),
		"create a token for it: keybaton token create NAME --service "+id.Service+" --env "+id.Environment)
}

func (p Principal) roleAllows(v Verb) bool {
	switch p.Role {
	case RoleAdmin:
		return v == See || v == Operate || v == Manage // keys go in and never come out
	case RoleOperator:
		return v == See || v == Operate
	case RoleViewer:
		return v == See
	case RoleConsumer:
		return v == Call || v == Read || v == Follow && p.Kind.Acknowledges()
	case RoleGateway:
		return v == Follow
	}
	return false
}

func leastRole(v Verb) Role {
	switch v {
	case See:
		return RoleViewer
	case Operate:
		return RoleOperator
	case Call, Read:
		return RoleConsumer
	case Follow:
		return RoleGateway
	}
	return RoleAdmin
}

// TokenPrefix begins every token, so that scanners can find one.
const TokenPrefix = "kbt_"

// ParseRole returns the role named s.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(Roles(), r) {
		return r, nil
	}
	var names []string
	for _, r := range Roles() {
		names = append(names, string(r))
	}
	return "", fmt.Errorf("%w: role %q: use one of %s", key.ErrInvalid, s, strings.Join(names, ", "))
}
