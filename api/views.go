package api

import "time"

// Consumer is whoever gets a key from Keybaton.
type Consumer struct {
	Name           string  `json:"name"`
	Kind           string  `json:"kind" doc:"gateway, client or reader"`
	Token          bool    `json:"token" doc:"it has a token; without one it can only hold what it already has"`
	Grants         []Grant `json:"grants" nullable:"false"`
	RefreshSeconds int64   `json:"refresh_seconds,omitempty"`
	Boots          []Boot  `json:"boots" nullable:"false" doc:"its processes"`
	Holds          []Hold  `json:"holds" nullable:"false" doc:"versions that it may have in memory or on disk"`
}

// Boot is one process of a consumer.
type Boot struct {
	Boot   string    `json:"boot"`
	Acked  Revision  `json:"acked" doc:"the revision that it has acknowledged"`
	Behind bool      `json:"behind,omitempty" doc:"a served credential changed after that revision"`
	Seen   time.Time `json:"seen,omitzero" doc:"its last report"`
	Silent bool      `json:"silent,omitempty" doc:"it is not heard from; it is waited for all the same"`
	Pinned []string  `json:"pinned" nullable:"false" doc:"versions that running requests still use"`
}

// Hold says that a consumer may have a version.
type Hold struct {
	Service     string    `json:"service"`
	Environment string    `json:"environment"`
	Version     int64     `json:"version"`
	Boot        string    `json:"boot,omitempty"`
	Since       time.Time `json:"since"`
	Until       time.Time `json:"until,omitzero" doc:"end of the term that the holder itself enforces"`
	Unbound     bool      `json:"unbound,omitempty" doc:"it declares no refresh interval"`
}

// Forgotten is the answer to a forget.
type Forgotten struct {
	Holds int `json:"holds" doc:"how many were waived"`
}

// AuditEntry is one change in the chain.
type AuditEntry struct {
	Seq         int64             `json:"seq"`
	At          time.Time         `json:"at"`
	Actor       string            `json:"actor"`
	Action      string            `json:"action"`
	Service     string            `json:"service,omitempty"`
	Environment string            `json:"environment,omitempty"`
	Version     int64             `json:"version,omitempty"`
	Rotation    string            `json:"rotation,omitempty"`
	Detail      map[string]string `json:"detail,omitempty"`
	Prev        string            `json:"prev" doc:"hash of the entry before"`
	Hash        string            `json:"hash"`
}

// AuditHead names the last entry: kept elsewhere, it later proves that nothing
// was cut or rewritten.
type AuditHead struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"`
}

// Verified is the result of a verification of the chain.
type Verified struct {
	OK      bool      `json:"ok"`
	Entries int64     `json:"entries" doc:"how many were checked"`
	Head    AuditHead `json:"head"`
	Problem string    `json:"problem,omitempty" doc:"what is wrong, and where"`
}

// Alert is one thing that people should know.
type Alert struct {
	ID          string    `json:"id"`
	Service     string    `json:"service"`
	Environment string    `json:"environment"`
	Version     int64     `json:"version,omitempty"`
	Kind        string    `json:"kind"`
	Severity    string    `json:"severity" doc:"info, warning or critical"`
	State       string    `json:"state" doc:"firing or resolved"`
	Error       string    `json:"error" doc:"what callers get, such as 401 Unauthorized"`
	Cause       string    `json:"cause"`
	Fix         string    `json:"fix" doc:"the one command"`
	Evidence    string    `json:"evidence,omitempty"`
	Started     time.Time `json:"started"`
	LastSeen    time.Time `json:"last_seen"`
	Ended       time.Time `json:"ended,omitzero"`
}

// Recipe is what a provider can do.
type Recipe struct {
	ID       string        `json:"id"`
	Vendor   string        `json:"vendor"`
	Issue    bool          `json:"issue"`
	Revoke   bool          `json:"revoke"`
	List     bool          `json:"list"`
	Disable  bool          `json:"disable"`
	Probe    bool          `json:"probe"`
	Max      int           `json:"max,omitempty" doc:"keys that may be valid at once; 0: no known limit"`
	Manager  string        `json:"manager,omitempty" doc:"how a manager key is wanted: empty, required or self"`
	Parts    []string      `json:"parts" nullable:"false"`
	Params   []RecipeParam `json:"params" nullable:"false"`
	Upstream string        `json:"upstream,omitempty"`
	Tested   string        `json:"tested,omitempty" doc:"doc, loopback or live"`
	Steps    []string      `json:"steps" nullable:"false" doc:"for a person: how to issue a key"`
	Undo     []string      `json:"undo" nullable:"false" doc:"for a person: how to revoke one"`
	URL      string        `json:"url,omitempty"`
}

// RecipeParam is one thing that a provider asks for.
type RecipeParam struct {
	Name     string `json:"name"`
	Default  string `json:"default,omitempty"`
	Required bool   `json:"required,omitempty"`
	Help     string `json:"help,omitempty"`
}

// The kinds of [Event].
const (
	EventRotation   = "rotation"   // Rotation is set: a rotation as it is now
	EventCredential = "credential" // Credential is set: a credential as it is now
	EventRemoved    = "removed"    // Service and Environment are set: the credential is gone
	EventAlert      = "alert"      // Alert is set: it fired, changed or resolved
	EventReady      = "ready"      // everything as it was at the start has been sent
)

// Event is one server-sent event of the event stream, as the JSON of its data
// line. The stream begins with the present state, then [EventReady], then what
// changes. A reader that reconnects gets the present state again.
type Event struct {
	Kind        string      `json:"kind" enum:"rotation,credential,removed,alert,ready"`
	Revision    Revision    `json:"revision" doc:"of the store when it was read"`
	At          time.Time   `json:"at"`
	Service     string      `json:"service,omitempty"`
	Environment string      `json:"environment,omitempty"`
	Rotation    *Rotation   `json:"rotation,omitempty"`
	Credential  *Credential `json:"credential,omitempty"`
	Alert       *Alert      `json:"alert,omitempty"`
}
