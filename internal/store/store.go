// Package store is the contract of Keybaton's memory: what every database
// behind it must do, and the leases by which servers share work. It holds no
// SQL; store/sqlstore does. Everything a key is stored as is sealed.
package store

import (
	"context"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// Store keeps everything. It is safe for concurrent use. Errors wrap the
// sentinels of key: ErrNotFound, ErrExists, ErrConflict, ErrFenced, ErrStale,
// ErrNewer, ErrLocked, ErrFull, ErrUnavailable, and ErrUncertain where the
// answer to a commit was lost: then it may have been done or not. A function that runs in a
// transaction begins no Update or Observe: it would wait for itself.
type Store interface {
	// View runs fn on a consistent snapshot; fn's writes fail with ErrWrongTx.
	View(ctx context.Context, fn func(Tx) error) error

	// Update runs fn and commits its changes together with the audit entry
	// why, or does nothing. fn may return other entries through Tx.Audit, and
	// may be run again after a serialization failure: it has no effects
	// outside the transaction. When fn called Tx.Touch, the commit is a new
	// revision. An Update whose why.Action is "" is refused. Where its entries
	// name credentials, it changes those and no other: by the audit log one can
	// tell what to read again.
	Update(ctx context.Context, why audit.Entry, fn func(Tx) error) error

	// Observe runs fn and commits its changes durably, without an audit entry
	// and without a new revision: holds, acknowledgements, reports, asks,
	// leases, alerts, deliveries and settings. Writes of credentials, versions,
	// sealed keys, data keys, rotations, retirements, services, policies and
	// tokens, touches and audit entries fail in it with ErrWrongTx.
	Observe(ctx context.Context, fn func(Tx) error) error

	// Revision returns the newest committed revision; it does not block on the
	// database.
	Revision() key.Revision

	// Wait blocks until the revision is not after any more, or ctx ends, or the
	// store is closed (ErrUnavailable).
	Wait(ctx context.Context, after key.Revision) error

	// Close waits for the transactions that are running and releases the
	// database; a second call does nothing. No transaction may call it.
	Close() error
}

// Tx is one transaction, for one goroutine, while its function runs. Every
// method fails with key.ErrNotFound where a named thing does not exist; a list
// of what a credential has is such a method. A limit of 0 is none. Times are
// kept to the millisecond at least. Returned values belong to the caller. After
// an error of the database itself (as opposed to a refusal listed here) nothing
// is committed, whatever the function returns.
type Tx interface {
	// Now is the time of the transaction, the same for all of it, UTC in whole
	// milliseconds.
	Now() time.Time
	// Revision is the revision of what the transaction reads; after a Touch,
	// the one that its commit makes.
	Revision() (key.Revision, error)

	// Touch marks the credential as changed: its Revision becomes that of this
	// commit, which Touch returns. All touches of one transaction share it.
	Touch(id key.CredentialID) (key.Revision, error)
	// TouchAll makes this commit a new revision without a credential of its
	// own: tokens changed.
	TouchAll() (key.Revision, error)

	Services() ([]key.Service, error) // by name
	Service(name string) (key.Service, error)
	PutService(key.Service) error
	DeleteService(name string) error // ErrConflict while it has credentials

	Policies() ([]rotation.Policy, error)
	Policy(name string) (rotation.Policy, error)
	PutPolicy(rotation.Policy) error
	DeletePolicy(name string) error

	Credentials() ([]key.Credential, error) // by id
	Credential(id key.CredentialID) (key.Credential, error)
	// ChangedSince returns the credentials touched after r, by id. r must be of
	// this store's past and epoch; otherwise key.ErrStale: start from all.
	ChangedSince(r key.Revision) ([]key.Credential, error)
	// PutCredential writes c, but for its Revision, which only Touch changes.
	// Next never goes down, even over a deletion, as numbers are never reused.
	PutCredential(c key.Credential) error
	DeleteCredential(id key.CredentialID) error // ErrConflict while a version is not terminal

	Versions(id key.CredentialID) ([]key.Version, error) // by number
	// AllVersions returns the versions of every credential that are in one of
	// states (none named: in any), by id: one pass for who needs them all.
	AllVersions(states ...key.State) ([]key.Version, error)
	Version(id key.VersionID) (key.Version, error)
	// PutVersion writes v. A fingerprint occurs once per credential
	// (ErrExists). At most one version of a credential is primary, one
	// fallback, one candidate: that is checked when the transaction commits
	// (ErrConflict), so that a swap can be written in either order.
	PutVersion(v key.Version) error
	Sealed(id key.VersionID) (key.Sealed, error)
	// AllSealed returns the sealed keys of the versions that are in one of
	// states (none named: in any); versions without one are left out.
	AllSealed(states ...key.State) (map[key.VersionID]key.Sealed, error)
	// PutSealed writes the sealed key of a version; its data key must have been
	// put before (ErrNotFound).
	PutSealed(id key.VersionID, s key.Sealed) error

	// Data keys, wrapped by the master key, by name.
	DataKeys() (map[string][]byte, error)
	PutDataKey(name string, wrapped []byte) error // ErrExists

	// Rotations: at most one that has not ended per credential (ErrConflict).
	Rotation(id string) (rotation.Rotation, error)
	OpenRotation(id key.CredentialID) (rotation.Rotation, error)
	OpenRotations() ([]rotation.Rotation, error)                           // of every credential, by its id
	Rotations(id key.CredentialID, limit int) ([]rotation.Rotation, error) // newest first; a zero id is all
	PutRotation(rotation.Rotation) error
	// PutGate notes what an open rotation waits for; allowed in Observe.
	// ErrConflict once it has ended.
	PutGate(rotation string, g rotation.Gate) error

	Retirement(id key.VersionID) (rotation.Retirement, error)
	Retirements(id key.CredentialID) ([]rotation.Retirement, error) // those not ended; a zero id is all
	PutRetirement(rotation.Retirement) error
	// PutRetirementGate notes what a retirement waits for; allowed in Observe.
	// ErrConflict once it has ended.
	PutRetirementGate(id key.VersionID, g rotation.Gate) error

	Tokens() ([]access.Token, error) // by name
	TokenByHash(hash string) (access.Token, error)
	PutToken(access.Token) error // ErrExists for another hash under the same name
	DeleteToken(name string) error

	Holds(id key.CredentialID) ([]evidence.Hold, error) // a zero id is all
	HoldsOf(consumer string) ([]evidence.Hold, error)
	PutHold(evidence.Hold) error // one per consumer, boot and version
	DeleteHold(consumer, boot string, v key.VersionID) error

	Boots(consumers ...string) ([]evidence.Boot, error) // none named: all
	// PutBoot writes b and the uses and answers it lists; uses it does not
	// list stay.
	PutBoot(evidence.Boot) error
	DeleteBoot(consumer, boot string) error

	Asks(id key.CredentialID) ([]evidence.Ask, error)       // a zero id is all
	PutAsks(id key.CredentialID, asks []evidence.Ask) error // replaces

	Alerts(state alert.State, limit int) ([]alert.Alert, error) // newest first; "" is any state
	PutAlert(alert.Alert) error
	Deliveries(due time.Time) ([]alert.Delivery, error) // unsent, due, oldest first
	PutDelivery(alert.Delivery) error

	// Audit appends e to the chain; Update does it for its own entry.
	Audit(e audit.Entry) error
	Entries(from int64, limit int) ([]audit.Entry, error) // by seq
	Head() (audit.Head, error)

	// Setting is a small durable value by name; "" when unset.
	Setting(name string) (string, error)
	PutSetting(name, value string) error

	// Claim takes the due lease of kind that was waiting longest, for ttl, or
	// returns key.ErrNotFound when none is due. Its term grows with each claim.
	Claim(kind, owner string, ttl time.Duration) (Lease, error)
	// ClaimItem takes that one lease, due or not, creating it if needed;
	// key.ErrConflict while another owner holds it. The same owner may take it
	// anew, which ends its earlier claim: that is how a lease is renewed.
	ClaimItem(kind, item, owner string, ttl time.Duration) (Lease, error)
	// Fence fails with key.ErrFenced unless l is still held: owner, term, and
	// time left. Every write that follows from a claim calls it first.
	Fence(l Lease) error
	// Release ends the claim; the item is due at next (zero: not by itself), or
	// earlier if that was asked for and had not come when it was claimed. A claim
	// that nobody releases is due again when its time ends. key.ErrFenced once
	// somebody else has claimed it.
	Release(l Lease, next time.Time) error
	// Due makes the item due at the latest at at, creating it if needed. While
	// it is held, that holds for the time after the release.
	Due(kind, item string, at time.Time) error
	// NextDue returns when the next lease of kind is due or a held one ends;
	// zero when there is none.
	NextDue(kind string) (time.Time, error)
}

// Lease is a claim on one item of work. It protects the store, not the vendor:
// a vendor is called only if more time is left than the call may take.
type Lease struct {
	Kind  string
	Item  string
	Owner string
	Term  int64
	Until time.Time
}

// Work claims one due item of kind and runs fn on it, which may renew the lease
// in place by claiming the item again; then it releases it until the time fn
// returns. It reports whether there was one. When fn fails, the item stays
// claimed until its lease ends, unless fn says otherwise by a non-zero next.
func Work(ctx context.Context, s Store, kind, owner string, ttl time.Duration, fn func(context.Context, *Lease) (next time.Time, err error)) (bool, error) {
	var l Lease
	err := s.Observe(ctx, func(tx Tx) (err error) {
		l, err = tx.Claim(kind, owner, ttl)
		return err
	})
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	next, err := fn(ctx, &l)
	if err != nil && next.IsZero() {
		return true, err
	}
	if rerr := s.Observe(ctx, func(tx Tx) error { return tx.Release(l, next) }); err == nil && !isFenced(rerr) {
		err = rerr
	}
	return true, err
}
