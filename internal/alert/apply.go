package alert

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// Dedup returns what tells an alert on s from every other: the hex hash of
// environment, service, consumer and kind. It is the same each time the alert
// fires anew, and for every version.
func (s Signal) Dedup() string {
	h := sha256.New()
	for _, f := range []string{s.Credential.Environment, s.Credential.Service, s.Consumer, s.Kind} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(f), f)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// differs reports whether people should hear of s after they heard of old.
// What grows by itself, such as the numbers in its evidence, is no news.
func (s Signal) differs(old Signal) bool {
	return s.Version != old.Version || s.Severity != old.Severity || s.Error != old.Error || s.Cause != old.Cause || s.Fix != old.Fix
}

// Apply takes in the signals that are seen at now, all of them. It returns the
// alerts of open and the new ones: one fires for a signal that none of open is
// about, changes when its signal says something else, and resolves when its
// signal is gone; and one delivery per such transition and channel, those of
// one alert in their order. Of several signals with one [Signal.Dedup] the
// first counts. open holds alerts that fire; it is not changed.
func Apply(open []Alert, signals []Signal, channels []string, now time.Time) ([]Alert, []Delivery) {
	seen := map[string]Signal{}
	var order []string
	for _, s := range signals {
		d := s.Dedup()
		if _, ok := seen[d]; !ok {
			seen[d] = s
			order = append(order, d)
		}
	}
	out := slices.Clone(open)
	var deliveries []Delivery
	tell := func(a Alert) {
		for _, c := range channels {
			deliveries = append(deliveries, Delivery{
				// The number is padded so that the ids of one alert sort as they came.
				ID:      fmt.Sprintf("%s.%06d.%s", a.ID, a.Change, c),
				Channel: c, Alert: a, Created: now, Next: now,
			})
		}
	}
	known := map[string]bool{}
	for i := range out {
		a := &out[i]
		if a.State != Firing {
			continue
		}
		d := a.Signal.Dedup()
		s, still := seen[d]
		switch {
		case known[d] || !still:
			a.State, a.Ended = Resolved, now
			a.Change++
			tell(*a)
		default:
			news := s.differs(a.Signal)
			a.Signal, a.LastSeen = s, now
			if news {
				a.Change++
				tell(*a)
			}
		}
		known[d] = true
	}
	for _, d := range order {
		if known[d] {
			continue
		}
		a := Alert{
			ID:     fmt.Sprintf("al_%s_%d", d[:16], now.UnixMilli()),
			Signal: seen[d], State: Firing, Started: now, LastSeen: now, Change: 1,
		}
		out = append(out, a)
		tell(a)
	}
	return out, deliveries
}

// Payload is what a channel sends of an alert. Service, Error, Timestamp and
// Environment are always there; everything is plain text and never a secret.
type Payload struct {
	Service     string    `json:"service"`
	Error       string    `json:"error"`
	Timestamp   time.Time `json:"timestamp"` // when it fired, changed or resolved
	Environment string    `json:"environment"`

	ID       string     `json:"id"`        // of the alert, from firing to resolved
	DedupKey string     `json:"dedup_key"` // the same each time it fires anew
	State    State      `json:"state"`
	Change   int        `json:"change"` // 1, 2, 3 … per alert: a receiver can drop what it has seen
	Severity Severity   `json:"severity"`
	Kind     string     `json:"kind"`
	Version  key.Number `json:"version,omitempty"`
	Consumer string     `json:"consumer,omitempty"`
	Cause    string     `json:"cause"`
	Fix      string     `json:"fix,omitempty"`
	Evidence string     `json:"evidence,omitempty"`
	Started  time.Time  `json:"started"`
	Ended    time.Time  `json:"ended,omitzero"`
}

// Message returns what a channel sends of a.
func Message(a Alert) Payload {
	at := a.LastSeen
	if a.State == Resolved {
		at = a.Ended
	}
	s := a.Signal
	return Payload{
		Service: s.Credential.Service, Error: s.Error, Timestamp: at.UTC(), Environment: s.Credential.Environment,
		ID: a.ID, DedupKey: s.Dedup(), State: a.State, Change: a.Change, Severity: s.Severity, Kind: s.Kind,
		Version: s.Version, Consumer: s.Consumer, Cause: s.Cause, Fix: s.Fix, Evidence: s.Evidence,
		Started: a.Started.UTC(), Ended: a.Ended,
	}
}
