package rotation

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// EventKind names something that happened to a rotation.
type EventKind string

// What can happen to a rotation.
const (
	Intended    EventKind = "intended"    // the intent is durable
	Issued      EventKind = "issued"      // the vendor gave a key; it is stored
	Rolled      EventKind = "rolled"      // the vendor replaced its one key; the new one is the primary
	Refused     EventKind = "refused"     // the vendor did nothing, for certain
	Lost        EventKind = "answer lost" // the vendor may have done it
	Looked      EventKind = "looked"      // strays under the label are marked
	NeedKey     EventKind = "needs a person"
	Pasted      EventKind = "pasted"
	SpareTaken  EventKind = "spare taken" // the warm fallback is the new key
	Proven      EventKind = "proven"
	Installed   EventKind = "installed" // there was no primary, or it was dead
	Staged      EventKind = "staged"
	Promoted    EventKind = "promoted"
	Soaked      EventKind = "soaked"
	Emptied     EventKind = "emptied" // the old key is out of its slot
	Finished    EventKind = "finished"
	Back        EventKind = "rollback asked"
	SwappedBack EventKind = "swapped back"
	Dropped     EventKind = "dropped" // the new key is out of its slot
	Onward      EventKind = "nothing to go back to"
	Stop        EventKind = "stopped"
	Resumed     EventKind = "resumed"
	Replaced    EventKind = "superseded"
)

// Event is something that happened to a rotation. At is when.
type Event struct {
	Kind      EventKind
	At        time.Time
	To        key.Number   // Intended, Issued, Pasted, SpareTaken
	Revision  key.Revision // events that changed slots
	Displaced key.Number   // Staged
	Marks     []Mark       // events that begin a watch
	By        string
	Why       string
	Proof     string    // Finished
	Retry     time.Time // Refused, Looked
	Full      bool      // Refused: the vendor has no room
	Hard      bool      // Looked: what was lost may have replaced the old key already
}

// transition is one row of the table: in any of From, Kind leads to To. An
// empty To stays.
type transition struct {
	Kind EventKind
	From []State
	To   State
}

// transitions is the whole state machine. The diagram in docs/rotation.md is
// generated from it.
func transitions() []transition {
	beforeRevoke := []State{Planned, Issuing, Unknown, WaitingKey, Proving, Staging, Distribute, Soaking, Quieting, Retiring, Stopped}
	return []transition{
		{Intended, []State{Planned}, Issuing},
		{Issued, []State{Issuing}, Proving},
		{Rolled, []State{Issuing}, Soaking},
		{Refused, []State{Issuing}, Planned},
		{Lost, []State{Issuing}, Unknown},
		{Looked, []State{Unknown}, Planned},
		{NeedKey, []State{Planned}, WaitingKey},
		{Pasted, []State{WaitingKey}, Proving},
		{SpareTaken, []State{Planned}, Distribute},
		{Proven, []State{Proving}, Staging},
		{Installed, []State{Staging}, Soaking},
		{Staged, []State{Staging}, Distribute},
		{Promoted, []State{Distribute}, Soaking},
		{Soaked, []State{Soaking}, Quieting},
		{Emptied, []State{Quieting}, Retiring},
		{Emptied, []State{Undoing}, RolledBack},
		{Finished, []State{Distribute, Soaking, Quieting, Retiring}, Done},
		{Back, beforeRevoke, RollingBack},
		{SwappedBack, []State{RollingBack}, Undoing},
		{Dropped, []State{RollingBack}, RolledBack},
		{Onward, []State{RollingBack}, Retiring},
		{Stop, append(slices.Clone(beforeRevoke[:len(beforeRevoke)-1]), RollingBack, Undoing), Stopped},
		{Resumed, []State{Stopped}, ""},
		{Replaced, append(slices.Clone(beforeRevoke), RollingBack, Undoing), Superseded},
	}
}

// Apply returns r after e, or key.ErrConflict when e cannot follow r.State.
// r is not changed.
func Apply(r Rotation, e Event) (Rotation, error) {
	to, ok := State(""), false
	for _, t := range transitions() {
		if t.Kind == e.Kind && slices.Contains(t.From, r.State) {
			to, ok = t.To, true
			break
		}
	}
	if !ok {
		return r, fmt.Errorf("%w: rotation %s is %s and cannot be %s", key.ErrConflict, r.ID, r.State, e.Kind)
	}
	r.Steps, r.Approved = slices.Clone(r.Steps), maps.Clone(r.Approved)
	switch e.Kind {
	case Intended:
		r.To, r.Attempt, r.Retry = e.To, r.Attempt+1, time.Time{}
		if who := r.Approved[StepGenerate]; who != "" {
			r.Consent = who
		}
	case Issued, Pasted:
		r.To = e.To
	case Refused, Looked:
		r.To, r.Retry, r.Full = 0, e.Retry, e.Full
		r.Hard = r.Hard || e.Hard
	case SpareTaken:
		r.To, r.Revision, r.Marks = e.To, e.Revision, e.Marks
		if r.Kind == Emergency {
			r.Bridge = e.To
		}
	case Staged:
		r.Revision, r.Displaced, r.Marks = e.Revision, e.Displaced, e.Marks
	case Rolled, Installed, Promoted:
		r.Revision, r.Marks = e.Revision, e.Marks
	case Emptied:
		if !e.Revision.IsZero() {
			r.Revision = e.Revision
		}
	case SwappedBack:
		r.Revision, r.Marks = e.Revision, e.Marks
	case Soaked:
		r.Marks = e.Marks
	case Finished:
		r.Proof = e.Proof
	case Back:
		r.Back = e.Why
	case Onward:
		r.Back = ""
	case Stop:
		r.Resume, r.Why = r.State, e.Why
	case Resumed:
		to, r.Resume, r.Retry = r.Resume, "", time.Time{}
	}
	if to == "" || to == r.State {
		return r, nil
	}
	r.enter(to, e)
	if e.Kind == Refused {
		r.Gate = Gate{Reason: "no key was issued: " + e.Why}
	}
	return r, nil
}

// enter moves r to the state to, keeping the record of its steps.
func (r *Rotation) enter(to State, e Event) {
	if now, next := r.State.Step(), to.Step(); now != next && to != Stopped && r.State != Stopped {
		if n := len(r.Steps); n > 0 && r.Steps[n-1].Ended.IsZero() {
			r.Steps[n-1].Ended, r.Steps[n-1].Gate = e.At, e.Why
		}
		if next != "" {
			r.Steps = append(r.Steps, StepRecord{Step: next, Started: e.At})
		}
	}
	r.State, r.Entered, r.Gate = to, e.At, Gate{}
	r.Approved = nil // an approval is for the gate at which it was given
	if e.Kind != Refused && e.Kind != Looked {
		r.Retry = time.Time{}
	}
	if to.Ended() {
		r.Ended = e.At
		if n := len(r.Steps); n > 0 && r.Steps[n-1].Ended.IsZero() {
			r.Steps[n-1].Ended = e.At
		}
	}
}

// New returns a rotation that begins now in the state its kind calls for.
func New(id string, c key.Credential, k Kind, by, why string, now time.Time) Rotation {
	return Rotation{ID: id, Credential: c.ID, Machine: Machine, Kind: k, State: Planned, From: c.Slots.Primary, By: by, Why: why,
		Started: now, Entered: now, Steps: []StepRecord{{Step: StepGenerate, Started: now}}}
}

// Clear returns a rotation that is at its last step from the start: the fallback
// of c retires, and the primary stays.
func Clear(id string, c key.Credential, by, why string, now time.Time) Rotation {
	r := New(id, c, Manual, by, why, now)
	r.State, r.From, r.To = Quieting, c.Slots.Fallback, c.Slots.Primary
	r.Steps = []StepRecord{{Step: StepRetire, Started: now}}
	return r
}

// Diagram returns the state machine as a Mermaid state diagram, made from the
// table that [Apply] follows.
func Diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n    [*] --> planned\n")
	skip := map[EventKind]bool{Stop: true, Replaced: true, Back: true}
	for _, t := range transitions() {
		if skip[t.Kind] {
			continue
		}
		for _, f := range t.From {
			to := t.To
			if to == "" {
				to = f
				if t.Kind == Resumed {
					continue
				}
			}
			fmt.Fprintf(&b, "    %s --> %s: %s\n", f, to, t.Kind)
		}
	}
	b.WriteString("    note right of rolling_back: from every state until the old key is being revoked (rollback asked)\n")
	b.WriteString("    note right of stopped: from every open state; resumed, it goes on where it stopped\n")
	b.WriteString("    note right of superseded: from every open state, by set or an emergency\n")
	for _, s := range States() {
		if s.Ended() {
			fmt.Fprintf(&b, "    %s --> [*]\n", s)
		}
	}
	return b.String()
}
