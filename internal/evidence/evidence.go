// Package evidence keeps what consumers observed: outcomes per version,
// acknowledged revisions, last use; and from it says who has moved on.
//
// Possession opens a gate, counters can only close it: whoever may hold a
// version is waited for until it has released it, its own term has ended, or a
// person has waived it. Silence is not evidence, and nothing here times out.
// The package is pure: reports and now go in, standings come out.
package evidence

import (
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// Outcome is the class of one vendor answer, of a probe as of live traffic.
type Outcome string

// The outcomes. Only OK, Auth, Perm and Rate say something about the key.
const (
	OK    Outcome = "ok"    // the vendor accepted the key
	Auth  Outcome = "auth"  // the vendor refused the key
	Perm  Outcome = "perm"  // the key was accepted, the act was not allowed
	Rate  Outcome = "rate"  // too many requests
	Other Outcome = "other" // 5xx, time-outs, what no rule names: says nothing
)

// Counts are cumulative numbers of attempts by outcome.
type Counts struct {
	OK    int64 `json:"ok,omitempty"`
	Auth  int64 `json:"auth,omitempty"`
	Perm  int64 `json:"perm,omitempty"`
	Rate  int64 `json:"rate,omitempty"`
	Other int64 `json:"other,omitempty"`
}

// Add counts one attempt with outcome o.
func (c *Counts) Add(o Outcome) {
	switch o {
	case OK:
		c.OK++
	case Auth:
		c.Auth++
	case Perm:
		c.Perm++
	case Rate:
		c.Rate++
	default:
		c.Other++
	}
}

// Attempts returns the number of attempts.
func (c Counts) Attempts() int64 { return c.OK + c.Auth + c.Perm + c.Rate + c.Other }

// Plus returns the sum of c and o.
func (c Counts) Plus(o Counts) Counts {
	return Counts{c.OK + o.OK, c.Auth + o.Auth, c.Perm + o.Perm, c.Rate + o.Rate, c.Other + o.Other}
}

// Minus returns c less o: what came since o.
func (c Counts) Minus(o Counts) Counts {
	return Counts{c.OK - o.OK, c.Auth - o.Auth, c.Perm - o.Perm, c.Rate - o.Rate, c.Other - o.Other}
}

// Use is what one boot of a consumer has seen of one version since it booted.
// All numbers are cumulative, so that a repeated report changes nothing.
type Use struct {
	Version   key.VersionID `json:"version"`
	Live      Counts        `json:"live"`                 // attempts of callers' requests, counted when written
	Probes    Counts        `json:"probes"`               // the consumer's own probes
	Worse     int64         `json:"worse,omitempty"`      // requests where this version was refused (auth, perm) and another answered ok
	Better    int64         `json:"better,omitempty"`     // requests where another version was refused and this one answered ok
	Fallbacks int64         `json:"fallbacks,omitempty"`  // callers' answers that this version gave after another was refused
	LastUse   time.Duration `json:"last_use,omitempty"`   // sender's monotonic clock at the last live attempt
	LastAuth  string        `json:"last_auth,omitempty"`  // short text of the last refusal, such as "401 Unauthorized"; never a body
	LastProbe Outcome       `json:"last_probe,omitempty"` // outcome of the last probe
}

// Answers are requests as callers saw them, per credential, since boot.
type Answers struct {
	Credential key.CredentialID `json:"credential"`
	Requests   int64            `json:"requests"`         // answered, or given up
	Refused    int64            `json:"refused"`          // callers who got the vendor's refusal of every version tried
	Failed     int64            `json:"failed,omitempty"` // callers who got an error that Keybaton made
}

// Report is what a consumer sends each second: uses that changed, cumulative
// per boot, with a sequence number.
type Report struct {
	Consumer string        `json:"consumer"`
	Boot     string        `json:"boot"`    // random, one per process start
	Seq      int64         `json:"seq"`     // 1, 2, 3 … per boot
	Elapsed  time.Duration `json:"elapsed"` // sender's monotonic clock since boot, when the counters were read
	Uses     []Use         `json:"uses,omitempty"`
	Answers  []Answers     `json:"answers,omitempty"`
}

// Ack is a consumer's promise about a revision: its sealed cache is at or past
// it on disk, nothing new is pinned below it, and what running requests still
// pin is listed in Pinned and stays held until a later Ack omits it.
type Ack struct {
	Consumer string          `json:"consumer"`
	Boot     string          `json:"boot"`
	Replaces string          `json:"replaces,omitempty"` // boot whose cache this one took over under an exclusive lock: that process is gone
	Revision key.Revision    `json:"revision"`
	Elapsed  time.Duration   `json:"elapsed"`
	Pinned   []key.VersionID `json:"pinned,omitempty"`
}

// Hold says that a consumer may have a version in memory or on disk. It is
// recorded before the version is handed out.
type Hold struct {
	Consumer string        `json:"consumer"`
	Kind     key.Kind      `json:"kind"`
	Boot     string        `json:"boot,omitempty"` // "" for readers
	Version  key.VersionID `json:"version"`
	Revision key.Revision  `json:"revision"` // at which it was handed out
	Since    time.Time     `json:"since"`
	Until    time.Time     `json:"until,omitzero"`    // end of the term that the holder itself enforces; zero: until released
	Unbound  bool          `json:"unbound,omitempty"` // a reader that declared no refresh interval: when it lets go cannot be seen
}

// Ask is a probe that a gate or a detector wishes a consumer to make. It rides
// in frames; the answer comes back in the uses of a report.
type Ask struct {
	Version key.VersionID `json:"version"`
	OK      int64         `json:"ok"` // until this many probes (or live attempts) of this boot answered ok
}

// Boot is what is known of one process of a consumer.
type Boot struct {
	Consumer   string          `json:"consumer"`
	Kind       key.Kind        `json:"kind"`
	Boot       string          `json:"boot"`
	Seq        int64           `json:"seq"`
	Elapsed    time.Duration   `json:"elapsed"`    // of the newest report or acknowledgement
	Contiguous time.Duration   `json:"contiguous"` // sender's clock since when no report is missing
	Seen       time.Time       `json:"seen"`       // server's clock at the newest report; for people, not for gates
	Acked      key.Revision    `json:"acked"`
	Pinned     []key.VersionID `json:"pinned,omitempty"`
	Uses       []Use           `json:"uses,omitempty"` // sorted by version
	Answers    []Answers       `json:"answers,omitempty"`
}
