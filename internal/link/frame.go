// Package link is the line between a server and whatever holds keys: frames
// go out, acknowledgements and reports come back, and the last frame is kept
// sealed on disk, so that a consumer starts and serves with every server down.
package link

import (
	"reflect"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// Frame is the state of the keys that one consumer may hold, at a revision.
// A full frame replaces everything; another one replaces the credentials it
// lists and drops the removed ones. Tokens are always complete. Credentials that
// are kept stay as they are, in either.
type Frame struct {
	Revision    key.Revision       `json:"revision"`
	Full        bool               `json:"full,omitempty"`
	Credentials []Credential       `json:"credentials,omitempty"`
	Removed     []key.CredentialID `json:"removed,omitempty"`
	Kept        []key.CredentialID `json:"kept,omitempty"` // the server was restored and does not know yet whether what it has still works: keep what there is
	Tokens      []Token            `json:"tokens,omitempty"`
}

// Credential is one credential with the keys of its slots.
type Credential struct {
	ID       key.CredentialID `json:"id"`
	Call     key.Call         `json:"call"`
	Slots    key.Slots        `json:"slots"`
	Versions []Version        `json:"versions"` // those of the slots that are served
	Asks     []evidence.Ask   `json:"asks,omitempty"`
}

// Same reports whether d says the same of its credential as c: what was made of
// one serves for the other. What is asked for does not count.
func (c Credential) Same(d Credential) bool {
	if c.ID != d.ID || c.Slots != d.Slots || len(c.Versions) != len(d.Versions) || !reflect.DeepEqual(c.Call, d.Call) {
		return false
	}
	for i, v := range c.Versions {
		w := d.Versions[i]
		if v.Number != w.Number || !v.Since.Equal(w.Since) || !secret.PartsOf(v.Parts).Equal(secret.PartsOf(w.Parts)) {
			return false
		}
	}
	return true
}

// Version is one key in a frame.
type Version struct {
	Number key.Number                `json:"number"`
	Since  time.Time                 `json:"since"` // when it was issued or set, for telling early from bad
	Parts  map[string]secret.Exposed `json:"parts"`
}

// Token is a consumer that a gateway may serve: the hash of its token and what
// it may call.
type Token struct {
	Name    string         `json:"name"`
	Hash    string         `json:"hash"` // hex SHA-256
	Grants  []access.Grant `json:"grants"`
	Expires time.Time      `json:"expires,omitzero"`
}

// Versions returns the ids of every version that f hands out.
func (f Frame) Versions() []key.VersionID {
	var out []key.VersionID
	for _, c := range f.Credentials {
		for _, v := range c.Versions {
			out = append(out, key.VersionID{Credential: c.ID, Number: v.Number})
		}
	}
	return out
}

// Apply returns f after g came in on top of it. Neither is changed.
func (f Frame) Apply(g Frame) Frame {
	if g.Full {
		out := g
		out.Kept, out.Credentials = nil, slices.Clone(g.Credentials)
		for _, c := range f.Credentials {
			if slices.Contains(g.Kept, c.ID) {
				out.Credentials = append(out.Credentials, c)
			}
		}
		return out
	}
	out := Frame{Revision: g.Revision, Full: true, Tokens: g.Tokens}
	gone := map[key.CredentialID]bool{}
	for _, id := range g.Removed {
		gone[id] = true
	}
	for _, c := range g.Credentials {
		gone[c.ID] = true
	}
	for _, c := range f.Credentials {
		if !gone[c.ID] {
			out.Credentials = append(out.Credentials, c)
		}
	}
	out.Credentials = append(out.Credentials, g.Credentials...)
	return out
}

// The paths of the line. Watch answers server-sent events: one event "frame"
// for each new revision, with its id as the event id; comments keep it alive.
const (
	WatchPath  = "/api/v1/consumer/watch"  // GET ?boot=…&since=EPOCH.NUMBER
	AckPath    = "/api/v1/consumer/ack"    // POST evidence.Ack
	ReportPath = "/api/v1/consumer/report" // POST evidence.Report
	ReadPath   = "/api/v1/consumer/key"    // GET ?service=…&environment=… → Read
)

// Read is the answer to a reader.
type Read struct {
	Credential key.CredentialID          `json:"credential"`
	Version    key.Number                `json:"version"`
	Parts      map[string]secret.Exposed `json:"parts"`
	Fallback   map[string]secret.Exposed `json:"fallback,omitempty"`
	EnvName    string                    `json:"env_name,omitempty"`
}
