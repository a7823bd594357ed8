// Package key holds the nouns of Keybaton: services, credentials, versions,
// slots, and how a key rides on a request. It does no I/O, reads no clock, and
// never holds plaintext: what a store keeps of a key is [Sealed].
package key

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CredentialID names a credential: a service in an environment.
type CredentialID struct {
	Service     string `json:"service"`
	Environment string `json:"environment"`
}

// String returns "service/environment".
func (id CredentialID) String() string { return id.Service + "/" + id.Environment }

// IsZero reports whether id names nothing.
func (id CredentialID) IsZero() bool { return id == CredentialID{} }

// Compare orders ids by service, then environment.
func (id CredentialID) Compare(o CredentialID) int {
	return cmp.Or(cmp.Compare(id.Service, o.Service), cmp.Compare(id.Environment, o.Environment))
}

// ParseCredentialID parses what [CredentialID.String] returns.
func ParseCredentialID(s string) (CredentialID, error) {
	svc, env, ok := strings.Cut(s, "/")
	id := CredentialID{svc, env}
	if !ok || CheckName(svc) != nil || CheckName(env) != nil {
		return CredentialID{}, fmt.Errorf("%w: %q is not SERVICE/ENVIRONMENT", ErrInvalid, s)
	}
	return id, nil
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName reports what is wrong with the name of a service, environment or
// consumer. Names are DNS labels (RFC 1123): they become host names at the
// gateway, path segments and variable names.
func CheckName(s string) error {
	if !nameRE.MatchString(s) {
		return fmt.Errorf("%w: name %q: use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit", ErrInvalid, s)
	}
	return nil
}

// Number is the number of a version within its credential. Numbers begin at 1
// and are never reused; 0 means none.
type Number int64

// String returns "v7", or "none".
func (n Number) String() string {
	if n == 0 {
		return "none"
	}
	return "v" + strconv.FormatInt(int64(n), 10)
}

// ParseNumber parses "v7" or "7".
func ParseNumber(s string) (Number, error) {
	n, err := strconv.ParseInt(strings.TrimPrefix(s, "v"), 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%w: %q is not a version; write it like v7", ErrInvalid, s)
	}
	return Number(n), nil
}

// VersionID names one version of one credential.
type VersionID struct {
	Credential CredentialID `json:"credential"`
	Number     Number       `json:"number"`
}

// String returns "service/environment@v7".
func (id VersionID) String() string { return id.Credential.String() + "@" + id.Number.String() }

// State is where a version is in its life. The texts are stored and must not
// change.
type State string

// The life of a version, in order.
const (
	StateIntent     State = "intent"          // noted before the vendor is called
	StateVoid       State = "void"            // the vendor refused: the intent came to nothing
	StateUnknown    State = "unknown"         // the vendor's answer was lost; it may exist
	StateOrphan     State = "orphan"          // a stray found at the vendor, marked by its vendor id
	StateCandidate  State = "candidate"       // issued and stored, not yet served
	StateFallback   State = "fallback"        // in the fallback slot
	StatePrimary    State = "primary"         // in the primary slot
	StateRetired    State = "retired"         // out of every slot, still valid at the vendor
	StateDisabling  State = "disabling"       // committed before the vendor is asked to disable it
	StateDisabled   State = "disabled"        // reversibly off at the vendor
	StateRevoking   State = "revoking"        // committed before the vendor is asked to revoke it; no way back
	StateRevoked    State = "revoked"         // proven dead
	StateUnproven   State = "revoke_unproven" // revoked as far as the vendor says, not proven
	StateSuperseded State = "superseded"      // never valid: pasted or imported and found dead
)

// States lists every state of a version, in the order of its life.
func States() []State {
	return []State{StateIntent, StateVoid, StateUnknown, StateOrphan, StateCandidate, StateFallback,
		StatePrimary, StateRetired, StateDisabling, StateDisabled, StateRevoking, StateRevoked, StateUnproven, StateSuperseded}
}

// Terminal reports whether nothing more happens to a version in s.
func (s State) Terminal() bool {
	return s == StateVoid || s == StateRevoked || s == StateUnproven || s == StateSuperseded
}

// InSlot reports whether a version in s sits in a slot.
func (s State) InSlot() bool {
	return s == StateCandidate || s == StateFallback || s == StatePrimary
}

// Retiring reports whether a version in s is on its way out: it has a
// retirement of its own.
func (s State) Retiring() bool {
	switch s {
	case StateOrphan, StateRetired, StateDisabling, StateDisabled, StateRevoking:
		return true
	}
	return false
}

// Origin says how a version came to be. A version that was not issued by
// Keybaton may also live where Keybaton cannot see.
type Origin string

// The origins of a version.
const (
	OriginIssued   Origin = "issued"   // by the provider, under an intent
	OriginSet      Origin = "set"      // pasted by a person
	OriginImported Origin = "imported" // read from a file
	OriginAdopted  Origin = "adopted"  // found at the vendor
)

// Version is one key the vendor issued for a credential, without its
// plaintext.
type Version struct {
	ID          VersionID `json:"id"`
	State       State     `json:"state"`
	Origin      Origin    `json:"origin"`
	VendorID    string    `json:"vendor_id,omitempty"`   // the vendor's name for it; never a secret
	Label       string    `json:"label,omitempty"`       // the name under which it was issued
	Fingerprint string    `json:"fingerprint,omitempty"` // keyed hash of the parts; "" before there are any
	ReadOut     bool      `json:"read_out,omitempty"`    // a person or reader has seen the plaintext
	Created     time.Time `json:"created"`
	Since       time.Time `json:"since"`              // when State was entered
	Expires     time.Time `json:"expires,omitzero"`   // zero: no known expiry
	Proven      time.Time `json:"proven,omitzero"`    // when the server's own probes last proved that it works; zero: never
	Saved       string    `json:"saved,omitempty"`    // what the provider needs to enable it again; never a secret
	Note        string    `json:"note,omitempty"`     // for people; never a secret
	Rotation    string    `json:"rotation,omitempty"` // the rotation that made it
}

// UnknownCopies reports whether v may also live where no holder is recorded:
// it came from outside, or its plaintext was read out.
func (v Version) UnknownCopies() bool { return v.Origin != OriginIssued || v.ReadOut }

// Kind says what a consumer is, and so what can be expected of it.
type Kind string

// The kinds of consumer. Gateways and clients follow revisions and
// acknowledge; readers only read.
const (
	KindGateway Kind = "gateway"
	KindClient  Kind = "client"
	KindReader  Kind = "reader"
)

// Acknowledges reports whether a consumer of kind k follows revisions.
func (k Kind) Acknowledges() bool { return k == KindGateway || k == KindClient }

// Slots are the places of a credential; a zero number is an empty slot. Slots
// name versions and nothing else: what is swapped is always a version.
type Slots struct {
	Primary   Number `json:"primary,omitempty"`   // in use
	Fallback  Number `json:"fallback,omitempty"`  // tried when the primary is refused
	Candidate Number `json:"candidate,omitempty"` // issued, not yet served
}

// Has reports whether n sits in one of the slots.
func (s Slots) Has(n Number) bool {
	return n != 0 && (n == s.Primary || n == s.Fallback || n == s.Candidate)
}

// Served returns the versions that consumers are given: primary first.
func (s Slots) Served() []Number {
	var out []Number
	for _, n := range []Number{s.Primary, s.Fallback} {
		if n != 0 && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// Revision is the state of a store: every change of any credential makes it
// grow. An epoch begins when a store was restored; revisions of an older
// epoch count for nothing.
type Revision struct {
	Epoch  int64 `json:"epoch"`
	Number int64 `json:"number"`
}

// Compare orders revisions.
func (r Revision) Compare(o Revision) int {
	return cmp.Or(cmp.Compare(r.Epoch, o.Epoch), cmp.Compare(r.Number, o.Number))
}

// Reached reports whether r is of the same epoch as o and at least as new: an
// acknowledgement of r covers o.
func (r Revision) Reached(o Revision) bool { return r.Epoch == o.Epoch && r.Number >= o.Number }

// IsZero reports whether r is no revision.
func (r Revision) IsZero() bool { return r == Revision{} }

// String returns "epoch.number".
func (r Revision) String() string {
	return strconv.FormatInt(r.Epoch, 10) + "." + strconv.FormatInt(r.Number, 10)
}

// ParseRevision parses what [Revision.String] returns.
func ParseRevision(s string) (Revision, error) {
	e, n, ok := strings.Cut(s, ".")
	en, err1 := strconv.ParseInt(e, 10, 64)
	nn, err2 := strconv.ParseInt(n, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Revision{}, fmt.Errorf("%w: %q is not a revision", ErrInvalid, s)
	}
	return Revision{en, nn}, nil
}

// Service is an external API that is called with a key, as keybaton.yaml
// declares it.
type Service struct {
	Name     string            `json:"name"`
	Provider string            `json:"provider"`          // "manual" or the id of a recipe or coded provider
	Params   map[string]string `json:"params,omitempty"`  // what the provider asks for, such as base_url
	Manager  string            `json:"manager,omitempty"` // the service whose primary, in the same environment, is the manager key
	EnvName  string            `json:"env_name,omitempty"`
	Call     Call              `json:"call"` // what the file says; empty fields come from the provider
}

// Credential is a service in an environment, with its slots.
type Credential struct {
	ID       CredentialID      `json:"id"`
	Slots    Slots             `json:"slots"`
	Next     Number            `json:"next"`               // the number the next version gets
	Policy   string            `json:"policy,omitempty"`   // the name of its policy; "" is the default policy
	Upstream string            `json:"upstream,omitempty"` // overrides the service's
	Params   map[string]string `json:"params,omitempty"`   // override the service's
	Call     Call              `json:"call"`               // resolved from provider, service and overrides
	Revision Revision          `json:"revision"`           // of its last change
	Epoch    int64             `json:"epoch,omitempty"`    // in which store and vendor were found to agree; 0 means 1. See Settled
	Created  time.Time         `json:"created"`
	Rotated  time.Time         `json:"rotated,omitzero"` // when its primary last changed
}

// Settled reports whether store and vendor were found to agree since the epoch
// of the store began. After a restore they may not: the stored primary may have
// been revoked since the backup, and consumers may hold a newer one. Until it is
// settled, nothing of the credential is handed out and nothing is ended.
func (c Credential) Settled(epoch int64) bool { return max(c.Epoch, 1) == max(epoch, 1) }

// Sealed is an encrypted key as a store keeps it: the data key it was sealed
// with, and the box. Only seal and the store's SQL make one.
type Sealed struct {
	dataKey string
	box     []byte
}

// SealedFrom returns a Sealed of box under the data key named dataKey; box is
// not copied.
func SealedFrom(dataKey string, box []byte) Sealed { return Sealed{dataKey: dataKey, box: box} }

// DataKey returns the name of the data key.
func (s Sealed) DataKey() string { return s.dataKey }

// Box returns the ciphertext; the caller must not change it.
func (s Sealed) Box() []byte { return s.box }

// IsZero reports whether s holds nothing.
func (s Sealed) IsZero() bool { return len(s.box) == 0 }
