// Package alert is what people get when a key stops working: one object that
// fires, changes cause and resolves, derived from signals. [Apply] makes alerts
// and deliveries of the signals of the moment; [Message] is what a channel
// sends. The package is pure.
package alert

import (
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// Signal is a pattern of auth failures that a detector sees right now.
type Signal struct {
	Credential key.CredentialID `json:"credential"`
	Version    key.Number       `json:"version,omitempty"`
	Consumer   string           `json:"consumer,omitempty"` // of a signal about a consumer and no credential
	Kind       string           `json:"kind"`               // one of the kinds
	Severity   Severity         `json:"severity"`           // what a person should feel
	Error      string           `json:"error"`              // "401 Unauthorized"
	Cause      string           `json:"cause"`              // in words
	Fix        string           `json:"fix"`                // the one command
	Evidence   string           `json:"evidence,omitempty"`
}

// The kinds of signal. The texts are stored and sent, and must not change.
const (
	Spike          = "spike"           // the primary is refused
	Intermittent   = "intermittent"    // the primary is refused now and then
	Gradual        = "gradual"         // the primary is refused more and more
	Undead         = "undead"          // a version that was proven revoked answers ok
	Rotation       = "rotation"        // a rotation has stopped, or waits for a person
	Retirement     = "retirement"      // the way out of a version waits for a person
	RevokeUnproven = "revoke_unproven" // a version was revoked, and it could not be proven
	TwoBoots       = "two_boots"       // two processes go by one consumer's name
)

// Severity is how urgent a signal is.
type Severity string

// The severities.
const (
	Info     Severity = "info"
	Warning  Severity = "warning"
	Critical Severity = "critical"
)

// State is where an alert is in its life.
type State string

// The states of an alert.
const (
	Firing   State = "firing"
	Resolved State = "resolved"
)

// Alert is one thing that people should know.
type Alert struct {
	ID       string    `json:"id"` // stable while it fires: of what it is about, its kind, and when it began
	Signal   Signal    `json:"signal"`
	State    State     `json:"state"`
	Started  time.Time `json:"started"`
	LastSeen time.Time `json:"last_seen"`
	Ended    time.Time `json:"ended,omitzero"`
	Change   int       `json:"change"` // counts transitions: fired, changed, resolved
}

// Delivery is one message about an alert to one channel. It is durable before
// it is sent and is retried until it is taken.
type Delivery struct {
	ID       string    `json:"id"`
	Channel  string    `json:"channel"`
	Alert    Alert     `json:"alert"` // as it was at this transition
	Created  time.Time `json:"created"`
	Attempts int       `json:"attempts,omitempty"`
	Next     time.Time `json:"next"`
	Sent     time.Time `json:"sent,omitzero"`
	Error    string    `json:"error,omitempty"` // of the last attempt; never a secret
}
