// Package audit is the hash chain of everything that changed. An entry is
// written in the same transaction as the change it tells of, so that neither
// exists alone. The chain finds edits, removals and reordering by itself; a cut
// tail, or a chain that was rewritten whole, is found against a head that was
// kept elsewhere. Entries never hold plaintext. The package is pure.
package audit

import (
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// Entry is one change. Seq, At, Prev and Hash are given by [Chain] when it is
// appended.
type Entry struct {
	Seq        int64             `json:"seq"` // 1, 2, 3 …
	At         time.Time         `json:"at"`  // UTC, whole milliseconds
	Actor      string            `json:"actor"`
	Action     string            `json:"action"` // such as "rotation.promoted"
	Credential key.CredentialID  `json:"credential,omitzero"`
	Version    key.Number        `json:"version,omitempty"`
	Rotation   string            `json:"rotation,omitempty"`
	Detail     map[string]string `json:"detail,omitempty"`
	Prev       string            `json:"prev"` // hex hash of the entry before; "" for the first
	Hash       string            `json:"hash"` // hex SHA-256 over everything above
}

// Head names the last entry of a chain: kept elsewhere, it proves later that
// nothing was cut or rewritten.
type Head struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"`
}
