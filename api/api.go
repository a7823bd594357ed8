// Package api holds the wire types of Keybaton's HTTP API at /api/v1: what a
// person, a dashboard or a program sends and gets as JSON. It has no logic.
//
// No type here carries a key out of a server. Keys go in, as [Set] and
// [Import], the only two types with secret.Exposed fields. Times are RFC 3339
// in UTC; a zero time is left out. Durations are whole seconds, in fields that
// end with _seconds. Version numbers are plain integers; 0 or absent is none.
// New fields may appear at any time: readers ignore what they do not know.
package api

import "time"

// Base is the path under which the API lives.
const Base = "/api/v1"

// The paths of the API. Names in braces are path parameters, to be escaped
// with url.PathEscape.
const (
	PathOpenAPI     = Base + "/openapi.json"
	PathStatus      = Base + "/status"
	PathServices    = Base + "/services"
	PathCredentials = Base + "/credentials"
	PathCredential  = Base + "/credentials/{service}/{environment}"
	PathSet         = PathCredential + "/set"
	PathRotate      = PathCredential + "/rotate"
	PathPlan        = PathCredential + "/plan"
	PathRollback    = PathCredential + "/rollback"
	PathPause       = PathCredential + "/pause"
	PathResume      = PathCredential + "/resume"
	PathApprove     = PathCredential + "/approve"
	PathRevoke      = PathCredential + "/versions/{number}/revoke"
	PathDiscover    = PathCredential + "/discover"
	PathAdopt       = PathCredential + "/adopt"
	PathRotations   = Base + "/rotations"
	PathRotation    = Base + "/rotations/{id}"
	PathEvents      = Base + "/events"
	PathImport      = Base + "/import"
	PathApply       = Base + "/apply"
	PathConsumers   = Base + "/consumers"
	PathForget      = Base + "/consumers/{name}/forget"
	PathTokens      = Base + "/tokens"
	PathToken       = Base + "/tokens/{name}"
	PathAudit       = Base + "/audit"
	PathVerify      = Base + "/audit/verify"
	PathAlerts      = Base + "/alerts"
	PathRecipes     = Base + "/recipes"
)

// List is the answer of every route that lists.
type List[T any] struct {
	Items []T `json:"items" nullable:"false" doc:"in the order the route names; empty, never null"`
}

// Problem is every error of the API (RFC 9457, application/problem+json). It
// never holds a value that was sent.
type Problem struct {
	Type      string `json:"type" doc:"always about:blank"`
	Title     string `json:"title" doc:"the words of the HTTP status"`
	Status    int    `json:"status" doc:"the HTTP status"`
	Detail    string `json:"detail" doc:"what went wrong, in a sentence"`
	Code      string `json:"code" doc:"for programs: invalid, not_found, exists, conflict, stale, denied, no_token, unavailable, newer, locked, full, cross_origin, internal"`
	Next      string `json:"next,omitempty" doc:"the next step for the person who reads this: a sentence or a command"`
	RequestID string `json:"request_id,omitempty" doc:"under which the server's log knows this request"`
}

// The codes of a [Problem].
const (
	CodeInvalid     = "invalid"      // 422, 400, 413 or 415: the input is wrong; nothing was done
	CodeNotFound    = "not_found"    // 404
	CodeExists      = "exists"       // 409
	CodeConflict    = "conflict"     // 409: refused in the present state
	CodeStale       = "stale"        // 409: read again, then try again
	CodeDenied      = "denied"       // 403
	CodeNoToken     = "no_token"     // 401
	CodeCrossOrigin = "cross_origin" // 403: a page of another origin asked
	CodeUncertain   = "uncertain"    // 504: the answer of the database was lost; look whether it was done
	CodeUnavailable = "unavailable"  // 503: try again; nothing was done
	CodeNewer       = "newer"        // 503: the data were made by a newer version
	CodeLocked      = "locked"       // 503: in use by another process
	CodeFull        = "full"         // 507: the disk is full; nothing was done
	CodeInternal    = "internal"     // 500: only the server's log says more
)

// Revision is the state of a store: an epoch and a number that grows with
// every change.
type Revision struct {
	Epoch  int64 `json:"epoch"`
	Number int64 `json:"number"`
}

// Status is the state of the server as a whole, as far as the asking token may
// see it.
type Status struct {
	Version  string    `json:"version" doc:"of the server program"`
	Now      time.Time `json:"now" doc:"the server's clock"`
	Revision Revision  `json:"revision"`
	You      You       `json:"you"`
	Counts   Counts    `json:"counts"`
}

// You is who is asking.
type You struct {
	Name   string  `json:"name"`
	Role   string  `json:"role"`
	Grants []Grant `json:"grants,omitempty" nullable:"false"`
}

// Counts are the numbers of a [Status].
type Counts struct {
	Services    int `json:"services"`
	Credentials int `json:"credentials"`
	OK          int `json:"ok" doc:"credentials whose primary has been seen to work"`
	Failing     int `json:"failing"`
	Unverified  int `json:"unverified" doc:"credentials whose primary nobody has seen working yet"`
	Empty       int `json:"empty"`
	Rotations   int `json:"rotations" doc:"open ones"`
	Waiting     int `json:"waiting" doc:"open rotations and retirements that wait for a person"`
	Retirements int `json:"retirements" doc:"versions on their way out"`
	Consumers   int `json:"consumers"`
	Alerts      int `json:"alerts" doc:"firing ones"`
}

// Service is an external API that is called with a key.
type Service struct {
	Name         string   `json:"name"`
	Provider     string   `json:"provider"`
	Manager      string   `json:"manager,omitempty" doc:"the service whose primary is the manager key"`
	EnvName      string   `json:"env_name,omitempty"`
	Upstream     string   `json:"upstream,omitempty"`
	Environments []string `json:"environments" nullable:"false" doc:"those it has a credential in"`
}

// What the health of a [Credential] can be.
const (
	HealthOK         = "ok"         // the primary has been seen to work
	HealthFailing    = "failing"    // the vendor refuses the primary, or an alert says so
	HealthUnverified = "unverified" // nobody has seen the primary work yet
	HealthEmpty      = "empty"      // there is no primary
)

// Slots are the places of a credential, by version number.
type Slots struct {
	Primary   int64 `json:"primary,omitempty" doc:"in use"`
	Fallback  int64 `json:"fallback,omitempty" doc:"tried when the primary is refused"`
	Candidate int64 `json:"candidate,omitempty" doc:"issued, not yet served"`
}

// Credential is a service in an environment.
type Credential struct {
	Service     string       `json:"service"`
	Environment string       `json:"environment"`
	Provider    string       `json:"provider"`
	Policy      Policy       `json:"policy"`
	Upstream    string       `json:"upstream,omitempty"`
	EnvName     string       `json:"env_name,omitempty"`
	Parts       []string     `json:"parts" nullable:"false" doc:"names of the parts of a key"`
	Health      string       `json:"health" enum:"ok,failing,unverified,empty"`
	HealthWhy   string       `json:"health_why" doc:"why it is called so"`
	Slots       Slots        `json:"slots"`
	Versions    []Version    `json:"versions" nullable:"false" doc:"newest first; in a list only those that live"`
	Rotation    *Rotation    `json:"rotation,omitempty" doc:"the open one"`
	Retirements []Retirement `json:"retirements" nullable:"false" doc:"versions on their way out"`
	Holders     HolderCounts `json:"holders"`
	Answers     Answers      `json:"answers" doc:"requests as callers saw them, as far as the consumers of today count them"`
	Revision    Revision     `json:"revision" doc:"of its last change"`
	Created     time.Time    `json:"created"`
	Rotated     time.Time    `json:"rotated,omitzero" doc:"when its primary last changed"`
	Due         time.Time    `json:"due,omitzero" doc:"when its policy begins the next rotation"`
}

// Policy says how a credential is rotated, with every default filled in.
type Policy struct {
	Name            string `json:"name,omitempty" doc:"empty: the default policy"`
	EverySeconds    int64  `json:"every_seconds,omitempty" doc:"0: not by age"`
	Cron            string `json:"cron,omitempty"`
	Zone            string `json:"zone,omitempty"`
	Window          string `json:"window,omitempty"`
	Spare           bool   `json:"spare,omitempty"`
	SoakSeconds     int64  `json:"soak_seconds"`
	SoakRequests    int64  `json:"soak_requests"`
	SoakProbes      int64  `json:"soak_probes"`
	QuietSeconds    int64  `json:"quiet_seconds"`
	WatchSeconds    int64  `json:"watch_seconds"`
	Unverified      string `json:"unverified"`
	DeadlineSeconds int64  `json:"deadline_seconds" doc:"of an emergency"`
}

// Version is one key the vendor issued, without the key.
type Version struct {
	Number      int64     `json:"number"`
	State       string    `json:"state"`
	Slot        string    `json:"slot,omitempty" doc:"primary, fallback or candidate"`
	Origin      string    `json:"origin" doc:"issued, set, imported or adopted"`
	VendorID    string    `json:"vendor_id,omitempty"`
	Label       string    `json:"label,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty" doc:"keyed hash of the key"`
	ReadOut     bool      `json:"read_out,omitempty" doc:"somebody has seen the plaintext"`
	Created     time.Time `json:"created"`
	Since       time.Time `json:"since" doc:"when the state was entered"`
	Expires     time.Time `json:"expires,omitzero"`
	Rotation    string    `json:"rotation,omitempty" doc:"the rotation that made it"`
	Note        string    `json:"note,omitempty"`
	Uses        Uses      `json:"uses"`
}

// Uses are what consumers have seen of one version. They are sums over the
// processes that are known today and grow, except when one is forgotten.
type Uses struct {
	Version   int64  `json:"version"`
	Requests  int64  `json:"requests" doc:"attempts on behalf of callers"`
	OK        int64  `json:"ok"`
	Auth      int64  `json:"auth" doc:"the vendor refused the key"`
	Perm      int64  `json:"perm" doc:"the key was accepted, the act was not allowed"`
	Rate      int64  `json:"rate"`
	Other     int64  `json:"other" doc:"says nothing about the key"`
	Probes    int64  `json:"probes"`
	ProbesOK  int64  `json:"probes_ok"`
	Fallbacks int64  `json:"fallbacks" doc:"answers that this version gave after another was refused"`
	LastAuth  string `json:"last_auth,omitempty" doc:"the last refusal, such as 401 Unauthorized"`
}

// Answers are requests as callers saw them.
type Answers struct {
	Requests int64 `json:"requests"`
	Refused  int64 `json:"refused" doc:"callers who got the vendor's refusal of every version tried"`
	Failed   int64 `json:"failed" doc:"callers who got an error that Keybaton made"`
}

// HolderCounts say how many may hold a served version of a credential.
type HolderCounts struct {
	Holding int `json:"holding"`
	Silent  int `json:"silent" doc:"of these, not heard from"`
}

// What the state of a [Step] can be.
const (
	StepDone    = "done"
	StepCurrent = "current"
	StepPending = "pending"
	StepSkipped = "skipped" // the rotation ended without it
)

// Rotation is one replacement of a credential's primary.
type Rotation struct {
	ID          string            `json:"id"`
	Service     string            `json:"service"`
	Environment string            `json:"environment"`
	Kind        string            `json:"kind" doc:"scheduled, manual, set, first, spare or emergency"`
	State       string            `json:"state"`
	Step        string            `json:"step,omitempty" doc:"the current one: generate, stage, distribute, promote, retire or rollback"`
	Steps       []Step            `json:"steps" nullable:"false" doc:"all five in order, and rollback where there was one"`
	Gate        Gate              `json:"gate" doc:"out of the current step"`
	Over        bool              `json:"over" doc:"done, rolled_back or superseded"`
	From        int64             `json:"from,omitempty" doc:"the primary when it began"`
	To          int64             `json:"to,omitempty" doc:"the new version"`
	Leaked      int64             `json:"leaked,omitempty"`
	Paused      bool              `json:"paused,omitempty"`
	Back        string            `json:"back,omitempty" doc:"why it rolls back"`
	Approved    map[string]string `json:"approved,omitempty" doc:"gates that a person opened: step and who"`
	By          string            `json:"by"`
	Why         string            `json:"why,omitempty"`
	Proof       string            `json:"proof,omitempty" doc:"how the old key ended"`
	Started     time.Time         `json:"started"`
	Entered     time.Time         `json:"entered" doc:"when the state was entered"`
	Ended       time.Time         `json:"ended,omitzero"`
	Evidence    []Uses            `json:"evidence" nullable:"false" doc:"of the old and the new version, in this order"`
	Answers     Answers           `json:"answers"`
	Holders     []Holder          `json:"holders" nullable:"false" doc:"who may hold the old or the new version, and where they stand"`
}

// Step is one step of a rotation.
type Step struct {
	Name    string    `json:"name"`
	State   string    `json:"state" enum:"done,current,pending,skipped"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	Gate    string    `json:"gate,omitempty" doc:"what opened the gate out of it, or what it waits for"`
}

// Gate says whether a rotation may leave its step.
type Gate struct {
	Open    bool      `json:"open"`
	Reason  string    `json:"reason,omitempty"`
	Missing []string  `json:"missing,omitempty" nullable:"false" doc:"who or what is waited for"`
	Person  bool      `json:"person,omitempty" doc:"only a person can open it"`
	Again   time.Time `json:"again,omitzero" doc:"it is looked at again then at the latest"`
}

// Holder is how one who may hold a version stands towards a rotation.
type Holder struct {
	Consumer     string    `json:"consumer"`
	Kind         string    `json:"kind"`
	Boot         string    `json:"boot,omitempty"`
	Standing     string    `json:"standing" doc:"moved, holds or silent"`
	Acked        Revision  `json:"acked"`
	Seen         time.Time `json:"seen,omitzero"`
	QuietSeconds int64     `json:"quiet_seconds" doc:"while the old version is to be unused: proven for this long"`
	Why          string    `json:"why,omitempty"`
}

// Retirement is the way out of one version.
type Retirement struct {
	Service     string    `json:"service"`
	Environment string    `json:"environment"`
	Version     int64     `json:"version"`
	State       string    `json:"state"`
	Gate        Gate      `json:"gate"`
	Emergency   bool      `json:"emergency,omitempty"`
	Person      bool      `json:"person,omitempty" doc:"a person revokes it at the vendor"`
	Attempts    int       `json:"attempts,omitempty" doc:"vendor calls that failed in this state"`
	Rotation    string    `json:"rotation,omitempty"`
	Entered     time.Time `json:"entered"`
	Ended       time.Time `json:"ended,omitzero"`
}
