// Package engine is the one writer of keys: it runs rotations and retirements,
// takes pasted keys, and reconciles with vendors. What it does next is decided
// by the rotation room; the engine gathers the facts, acts, and records.
//
// Every act follows the same order: the intent is durable, then the vendor is
// called outside any transaction, then the result is recorded in one
// transaction with its audit entry. No exported function returns plaintext.
package engine

import (
	"context"
	"net/http"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

// Config is what an Engine works with. Store, Keyring and Providers are
// required.
type Config struct {
	Store     store.Store
	Keyring   *seal.Keyring
	Providers provider.Registry
	Transport http.RoundTripper // to vendors; nil means a tuned http.Transport
	Owner     string            // of leases, unique per process; "" is random
	Lease     time.Duration     // default 30 s; vendor calls get less
	Poll      time.Duration     // how often a waiting gate is looked at again; default 1 s
	Rand      func([]byte)      // nil means crypto/rand

	// Forgot is told of a consumer whose holds were waived, so that whoever
	// remembers what it was given forgets that too; nil is told nothing.
	Forgot func(consumer string)

	// Event is told of what went wrong while working; it must not block. The
	// error holds no plaintext.
	Event func(what string, id key.CredentialID, err error)
}

// SetResult says what became of a pasted key.
type SetResult struct {
	Version   key.Number `json:"version"`
	Rotation  string     `json:"rotation,omitempty"` // the rotation that brings it in; "" when it was installed at once
	Installed bool       `json:"installed"`          // it is the primary now: there was none
	Outcome   string     `json:"outcome"`            // of its probe: "ok", or "unverified" where there is no probe
}

// RotateOptions say how a rotation runs.
type RotateOptions struct {
	Why       string
	Emergency bool
	Leaked    key.Number // with Emergency; 0 means the primary
}

// Plan is what a rotation would do, without any of it being done.
type Plan struct {
	Credential key.CredentialID `json:"credential"`
	Provider   string           `json:"provider"`
	Steps      []PlanStep       `json:"steps"`
	Refused    string           `json:"refused,omitempty"`  // why it could not begin now
	Warnings   []string         `json:"warnings,omitempty"` // what cannot be promised or proven
}

// PlanStep is one step of a plan.
type PlanStep struct {
	Step     rotation.Step `json:"step"`
	Does     string        `json:"does"`
	Requests []string      `json:"requests,omitempty"` // "PUT https://…", with no secret in them
	Gate     string        `json:"gate"`               // what must be seen before the step is left
}

// Configuration is a change of what is managed, done whole or not at all.
type Configuration struct {
	Services          []key.Service
	Credentials       []key.Credential // ID, Policy, Upstream and Params count; the rest is kept
	Policies          []rotation.Policy
	DeleteServices    []string
	DeleteCredentials []key.CredentialID
	DeletePolicies    []string
	DryRun            bool // check everything, change nothing
}

// Found is what can be said of a key from its shape and a probe.
type Found struct {
	Name      string           `json:"name"`               // the variable it came under
	Service   string           `json:"service"`            // proposed, or the declared service it belongs to
	Declared  bool             `json:"declared"`           // the service is in the configuration
	Provider  string           `json:"provider,omitempty"` // "" when the shape is unknown
	Vendor    string           `json:"vendor,omitempty"`
	Outcome   string           `json:"outcome"`           // "valid", "invalid", "unverified"
	Rotation  string           `json:"rotation"`          // "automatic" or "pasted"
	Missing   []string         `json:"missing,omitempty"` // what is needed before it can be managed, each with what to do
	Installed bool             `json:"installed"`         // it was imported (never on a dry run)
	ID        key.CredentialID `json:"credential,omitzero"`
}

// API is what the faces call; *Engine is the only implementation.
type API interface {
	// Configure changes what is managed, in one transaction.
	Configure(ctx context.Context, by access.Principal, c Configuration) error
	// Set takes a pasted key. On an empty credential it is probed and
	// installed; on a waiting rotation it is the key waited for; on a live
	// credential it begins a rotation at stage. It never overwrites.
	Set(ctx context.Context, by access.Principal, id key.CredentialID, p secret.Parts, origin key.Origin, why string) (SetResult, error)
	// Import recognises keys by shape and probes them; dry does nothing else.
	Import(ctx context.Context, by access.Principal, environment string, names []string, values []secret.Value, dry bool) ([]Found, error)
	Rotate(ctx context.Context, by access.Principal, id key.CredentialID, o RotateOptions) (rotation.Rotation, error)
	Plan(ctx context.Context, id key.CredentialID, o RotateOptions) (Plan, error)
	Rollback(ctx context.Context, by access.Principal, id key.CredentialID, why string) (rotation.Rotation, error)
	Pause(ctx context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error)
	Resume(ctx context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error)
	// Approve opens the gate that the open rotation (or a retirement) waits at
	// for a person.
	Approve(ctx context.Context, by access.Principal, id key.CredentialID) (rotation.Rotation, error)
	// Revoke ends one version out of turn; refused for a version in a slot.
	Revoke(ctx context.Context, by access.Principal, id key.VersionID) error
	// Discover compares the vendor's list with the store.
	Discover(ctx context.Context, by access.Principal, id key.CredentialID) ([]Discovered, error)
	// Adopt says which of the vendor's keys a version is, or takes one in to end it.
	Adopt(ctx context.Context, by access.Principal, id key.CredentialID, o AdoptOptions) (key.Version, error)
	// Forget waives every hold of a consumer: a person says that it is gone.
	Forget(ctx context.Context, by access.Principal, consumer string) (holds int, err error)
}
