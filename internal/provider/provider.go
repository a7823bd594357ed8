// Package provider is the contract of what can issue, list, probe, disable and
// revoke keys at a vendor. A driver gets an HTTP transport and values, and
// returns values or a classified error; it writes no log, keeps no state
// between calls, and never repeats a call by itself.
package provider

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/secret"
)

// Env is where and as whom a driver acts. Transport is never nil.
type Env struct {
	Transport http.RoundTripper
	Params    map[string]string // the service's and credential's params over the provider's defaults
	Manager   secret.Parts      // the manager key; nil when the service names none
	Call      key.Call          // how the service is called: probes use its place, probe and rules

	// Dial opens connections for drivers of vendors that do not speak HTTP; nil
	// means [Dial].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Rand func([]byte) // random bytes for keys that the client supplies; nil means crypto/rand
}

// Request asks for one new key.
type Request struct {
	Label string        // unique; by it a lost answer is found again
	Old   key.Version   // whose rights are copied; zero number: none
	Parts secret.Parts  // of Old, for vendors that ask for them; may be nil
	Life  time.Duration // wished; 0: the vendor's default
	Taken []string      // vendor ids of all versions that may be alive: an issue that overwrites a key leaves these alone
	Place string        // of a vendor with fixed keys: the one to make anew; "" for others
}

// Issued is a new key.
type Issued struct {
	VendorID string
	Parts    secret.Parts
	Expires  time.Time
	Warnings []string // for people, such as rights that could not be read
}

// Driver is a provider at work. Probe and Revoke may be repeated; an Issue
// whose outcome is unknown must not be: the engine first looks for the label
// through [Lister], and asks a person where the vendor cannot list. Every
// method honours ctx, and returns errors as [*Error].
type Driver interface {
	// Describe says what the driver can do in env; it does no I/O.
	Describe(env Env) Info
	// Issue asks the vendor for one key under the request's label.
	Issue(ctx context.Context, env Env, r Request) (Issued, error)
	// Probe tells what the vendor says of the parts. An error is a probe that
	// could not be made; the answer of an unreachable vendor is Other.
	Probe(ctx context.Context, env Env, p secret.Parts) (evidence.Outcome, error)
	// Revoke ends the key vendorID for good. A key that is gone already is a
	// success.
	Revoke(ctx context.Context, env Env, vendorID string) error
}

// Lister is a driver whose vendor can list keys. Where the list has no labels,
// Abilities.List is false all the same: nothing is found by it.
type Lister interface {
	// List returns every key at the vendor that env's manager can see.
	List(ctx context.Context, env Env) ([]Listed, error)
}

// Disabler is a driver whose vendor can switch a key off and on again.
type Disabler interface {
	// Disable switches vendorID off; saved is what Enable needs, without
	// plaintext. It is to be kept even with an error when it is not empty: the
	// vendor may have lost it by then. An empty one without an error changes
	// nothing: the key was off already, and what was saved before stays good.
	Disable(ctx context.Context, env Env, vendorID string) (saved string, err error)
	// Enable switches it on again.
	Enable(ctx context.Context, env Env, vendorID, saved string) error
}

// Identifier is a driver that can tell the vendor's id from the parts of a key,
// such as the user name of a user-per-key vendor.
type Identifier interface {
	Identify(env Env, p secret.Parts) (vendorID string, ok bool)
}

// Matcher is a driver that recognises its keys by their shape.
type Matcher interface {
	// Match returns how specific the match is (the length of the pattern), and
	// 0 when v does not look like a key of this vendor.
	Match(v secret.Value) int
}

// Locator is a driver whose vendor can tell which of its keys has the parts p.
type Locator interface {
	// Locate returns the vendor's id of the key, or key.ErrNotFound.
	Locate(ctx context.Context, env Env, p secret.Parts) (vendorID string, err error)
}

// Previewer is a driver that can tell which requests it would make.
type Previewer interface {
	// Preview returns the requests of one act ("issue", "probe", "list",
	// "disable", "enable", "revoke") as "METHOD URL", with no secret in them.
	Preview(env Env, act string) []string
}

// Sessioner is a driver whose vendor lets sessions that were opened with a key
// go on after the key itself was revoked, so that a key without use may still
// be in use.
type Sessioner interface {
	// Sessions returns the open sessions that may have been opened with the key
	// vendorID. before is when the last process that could open one has let go
	// of the key: where the vendor does not tell by which key a session was
	// opened, those of the same identity that began before count.
	Sessions(ctx context.Context, env Env, vendorID string, before time.Time) (Sessions, error)
}

// Sessions are what a vendor tells of open sessions.
type Sessions struct {
	Open   int
	Exact  bool          // they were opened with this key; not only by its identity, before the time that was asked for
	Oldest time.Duration // how long ago the first of them was opened; 0 when that is not told
}

// Labeler is a driver whose vendor does not take every label. A key issued
// under a label is listed under Label(env, label).
type Labeler interface {
	Label(env Env, label string) string
}

// LabelAt returns the name that a key issued by d under label has at the
// vendor, as [Lister] lists it.
func LabelAt(d Driver, env Env, label string) string {
	if l, ok := d.(Labeler); ok {
		return l.Label(env, label)
	}
	return label
}

// Listed is one key as the vendor lists it.
type Listed struct {
	VendorID string
	Label    string
	Created  time.Time
	LastUsed time.Time
	Disabled bool
}

// Info is what a driver can do, and how the service is called.
type Info struct {
	ID           string // "sendgrid"
	Vendor       string // "SendGrid"
	Abilities    rotation.Abilities
	Call         key.Call          // defaults that a service may override
	Params       []Param           // what the provider asks for
	Patterns     map[string]string // part name to RE2 that recognises it by shape
	ListsAll     bool              // the list is complete: absence from it is evidence
	Granular     time.Duration     // of LastUsed; 0: not reported
	Manager      string            // how a manager key is wanted: "", "required", "self"
	ManagerParts []string          // its part names
	Tested       string            // "doc", "loopback" or "live"

	// Connection says that the key logs in to connections that are not HTTP: the
	// call has no upstream and no place, and gateways are not given the key.
	Connection bool
}

// Param is one thing that a provider asks for.
type Param struct {
	Name     string
	Default  string
	Required bool
	Help     string
}

// Kind is what kind of failure an error is.
type Kind string

// The kinds of failure.
const (
	Transient Kind = "transient" // certainly nothing was done; try again later
	Denied    Kind = "denied"    // certainly nothing was done; trying again will not help
	Ambiguous Kind = "ambiguous" // it may have been done: look before doing it again
	Full      Kind = "full"      // certainly nothing was done; the vendor has no room for another key
)

// Error is a classified failure of a driver. Text is for people and holds
// neither secrets nor bodies.
type Error struct {
	Kind  Kind
	Text  string
	After time.Duration // the vendor asked to wait this long; 0: not said
	Err   error         // cause; may be nil
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an error of kind k.
func Errorf(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Text: err.Error(), Err: errors.Unwrap(err)}
}

// KindOf returns the kind of err; what no driver classified is ambiguous.
func KindOf(err error) Kind {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Kind
	}
	return Ambiguous
}

// Registry finds a driver by id. It is filled once, then only read.
type Registry map[string]Driver

// Driver returns the driver id, or key.ErrNotFound with what there is.
func (r Registry) Driver(id string) (Driver, error) {
	if d, ok := r[id]; ok {
		return d, nil
	}
	return nil, key.WithHint(fmt.Errorf("%w: provider %q", key.ErrNotFound, id), "list the providers: keybaton recipe list")
}
