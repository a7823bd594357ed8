// Package rotation is the state machine of a rotation and of the retirement of
// a version: what is done next, what it waits for, and why.
//
// A rotation replaces the primary of one credential in five steps: generate,
// stage, distribute, promote, retire. [Next] says what to do now, or which gate
// is closed and what is missing; [Apply] takes in what happened. The package is
// pure: facts and now go in, a decision and its reason come out. It does no
// I/O and reads no clock.
package rotation

import (
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

// Machine is the number of this state machine. It is stored with each rotation;
// a server leaves alone what a newer machine began.
const Machine = 2

// Kind says why a rotation runs.
type Kind string

// The kinds of rotation.
const (
	Scheduled Kind = "scheduled" // its policy's schedule came due
	Manual    Kind = "manual"    // somebody asked
	Set       Kind = "set"       // somebody pasted a key
	First     Kind = "first"     // there was no primary: the first key is issued or waited for
	Spare     Kind = "spare"     // fills the fallback slot of a warm credential; promotes nothing
	Emergency Kind = "emergency" // a version leaked: no soak, no quiet, every probe
)

// State is where a rotation is. The texts are stored and must not change.
type State string

// The states of a rotation.
const (
	Planned     State = "planned"      // generate: nothing done yet
	Issuing     State = "issuing"      // generate: the intent is durable, the vendor is being asked
	Unknown     State = "unknown"      // generate: the vendor's answer was lost
	WaitingKey  State = "waiting_key"  // generate: a person issues the key and pastes it
	Proving     State = "proving"      // generate: stored as candidate, being probed
	Staging     State = "staging"      // stage: proven, about to become the fallback
	Distribute  State = "distributing" // distribute: in the fallback slot, consumers follow
	Soaking     State = "soaking"      // promote: it is the primary, being watched
	Quieting    State = "quieting"     // retire: the old key waits to be unused
	Retiring    State = "retiring"     // retire: the old key is out of its slot and on its way out
	RollingBack State = "rolling_back" // on the way back to the old key
	Undoing     State = "undoing"      // rolled back; the new key waits to be unused
	Stopped     State = "stopped"      // waits for a person; both keys are kept
	Done        State = "done"
	RolledBack  State = "rolled_back"
	Superseded  State = "superseded" // another rotation took its place
)

// States lists the states of a rotation in the order of its life.
func States() []State {
	return []State{Planned, Issuing, Unknown, WaitingKey, Proving, Staging, Distribute, Soaking, Quieting, Retiring,
		RollingBack, Undoing, Stopped, Done, RolledBack, Superseded}
}

// Ended reports whether a rotation in s is over.
func (s State) Ended() bool { return s == Done || s == RolledBack || s == Superseded }

// Step is one of the five steps.
type Step string

// The five steps, and the way back.
const (
	StepGenerate   Step = "generate"
	StepStage      Step = "stage"
	StepDistribute Step = "distribute"
	StepPromote    Step = "promote"
	StepRetire     Step = "retire"
	StepRollback   Step = "rollback"
)

// Steps lists the five steps in order.
func Steps() []Step {
	return []Step{StepGenerate, StepStage, StepDistribute, StepPromote, StepRetire}
}

// Step returns the step that s belongs to; "" for an ended or stopped rotation.
func (s State) Step() Step {
	switch s {
	case Planned, Issuing, Unknown, WaitingKey, Proving:
		return StepGenerate
	case Staging:
		return StepStage
	case Distribute:
		return StepDistribute
	case Soaking:
		return StepPromote
	case Quieting, Retiring:
		return StepRetire
	case RollingBack, Undoing:
		return StepRollback
	}
	return ""
}

// Rotation is one replacement of a credential's primary.
type Rotation struct {
	ID         string           `json:"id"`
	Credential key.CredentialID `json:"credential"`
	Machine    int              `json:"machine"`
	Kind       Kind             `json:"kind"`
	State      State            `json:"state"`
	From       key.Number       `json:"from,omitempty"` // the primary when it began; 0 when there was none
	To         key.Number       `json:"to,omitempty"`   // the new version; 0 before an intent
	Leaked     key.Number       `json:"leaked,omitempty"`
	Displaced  key.Number       `json:"displaced,omitempty"` // the spare that staging put out of its slot
	Bridge     key.Number       `json:"bridge,omitempty"`    // emergency: the spare that took over; its holders held the leaked key too
	Consent    string           `json:"consent,omitempty"`   // who accepted that requests may fail while the vendor's one key is replaced
	Hard       bool             `json:"hard,omitempty"`      // the next key replaces the old one at once, whatever grace the vendor gives
	Attempt    int              `json:"attempt,omitempty"`   // how often a key was asked for
	Revision   key.Revision     `json:"revision"`            // of its last change of slots
	Full       bool             `json:"full,omitempty"`      // the vendor said that it has no room
	Marks      []Mark           `json:"marks,omitempty"`     // counters when the present watch began
	By         string           `json:"by"`
	Why        string           `json:"why,omitempty"`
	Started    time.Time        `json:"started"`
	Entered    time.Time        `json:"entered"` // when State was entered
	Ended      time.Time        `json:"ended,omitzero"`
	Retry      time.Time        `json:"retry,omitzero"` // not before
	Paused     bool             `json:"paused,omitempty"`
	Back       string           `json:"back,omitempty"`     // why it rolls back; "" when it does not
	Approved   map[Step]string  `json:"approved,omitempty"` // gates waived, and by whom
	Resume     State            `json:"resume,omitempty"`   // of a stopped rotation
	Gate       Gate             `json:"gate"`               // as last seen
	Steps      []StepRecord     `json:"steps,omitempty"`
	Proof      string           `json:"proof,omitempty"` // how the old key ended: "revoked_proven", "revoke_unproven", …
}

// StepRecord is how one step went.
type StepRecord struct {
	Step    Step      `json:"step"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Gate    string    `json:"gate,omitempty"` // what opened the gate out of it
}

// Mark is a use of the new version when a watch began, so that later counts
// can be told from earlier ones.
type Mark struct {
	Consumer string          `json:"consumer"`
	Boot     string          `json:"boot"`
	Live     evidence.Counts `json:"live"`
	Probes   evidence.Counts `json:"probes"`
	Worse    int64           `json:"worse"`
	Elapsed  time.Duration   `json:"elapsed"` // the sender's clock then
}

// Gate says whether a rotation may leave its step.
type Gate struct {
	Open    bool      `json:"open"`
	Reason  string    `json:"reason,omitempty"`  // for people: what opened it, or what it waits for
	Missing []string  `json:"missing,omitempty"` // who or what is waited for
	Person  bool      `json:"person,omitempty"`  // only a person can open it
	Asks    Question  `json:"asks,omitempty"`    // what an approval of a retirement would say
	Again   time.Time `json:"again,omitzero"`    // look again then at the latest
}

// Retirement is the way out of one version that is in no slot. It outlives
// rotations, is retried until it ends, and never loses the vendor's id.
type Retirement struct {
	Version   key.VersionID `json:"version"`
	State     key.State     `json:"state"`    // retired, disabling, disabled, revoking, orphan; then revoked or revoke_unproven
	Revision  key.Revision  `json:"revision"` // since which it is handed out no more
	Rotation  string        `json:"rotation,omitempty"`
	Emergency bool          `json:"emergency,omitempty"`
	Restored  bool          `json:"restored,omitempty"` // found at the vendor after a restore: consumers may use it that the store has forgotten
	Deadline  time.Time     `json:"deadline,omitzero"`  // emergency: from then on holders are named, not waited for
	Entered   time.Time     `json:"entered"`
	Retry     time.Time     `json:"retry,omitzero"`
	Attempts  int           `json:"attempts,omitempty"` // vendor calls that failed in this state
	Called    time.Time     `json:"called,omitzero"`    // when the vendor said it revoked
	Approved  Answers       `json:"approved,omitempty"` // what people have said, and who
	Person    bool          `json:"person,omitempty"`   // a person revokes it at the vendor
	Gate      Gate          `json:"gate"`
	Ended     time.Time     `json:"ended,omitzero"`
}

// Question is what a retirement asks a person. An answer to one is not an
// answer to another.
type Question string

// The questions of a retirement.
const (
	AskReaders Question = "readers" // may those who declare no refresh interval be passed over?
	AskCopies  Question = "copies"  // may copies that nobody sees be passed over?
	AskRevoked Question = "revoked" // is it revoked at the vendor?
)

// Answers are questions that people have answered with yes, and who.
type Answers map[Question]string

// Unverified says what to do where non-use cannot be proven.
type Unverified string

// What a policy can say about the unverified.
const (
	UnverifiedAsk     Unverified = "ask"     // a person approves
	UnverifiedWait    Unverified = "wait"    // until it can be seen
	UnverifiedProceed Unverified = "proceed" // as if it had been seen
)

// Policy says how a credential is rotated. The zero value of a field means its
// default; see [Policy.WithDefaults].
type Policy struct {
	Name       string        `json:"name,omitempty"`
	Every      time.Duration `json:"every,omitempty"`  // 0: not by age
	Cron       string        `json:"cron,omitempty"`   // five fields; instead of Every
	Zone       string        `json:"zone,omitempty"`   // of Cron and Window; default UTC
	Window     string        `json:"window,omitempty"` // "Mon-Fri 09:00-17:00": a rotation begins only then
	Jitter     time.Duration `json:"jitter,omitempty"` // spread of the start; default a tenth of Every, at most 1 h
	Spare      bool          `json:"spare,omitempty"`  // keep a warm fallback
	Soak       Soak          `json:"soak"`
	Quiet      time.Duration `json:"quiet,omitempty"`      // default 24 h
	Watch      time.Duration `json:"watch,omitempty"`      // disabled, before it is revoked; default 1 h
	Unverified Unverified    `json:"unverified,omitempty"` // default ask
	ProbeOK    int           `json:"probe_ok,omitempty"`   // ok in a row before staging; default 3
	Deadline   time.Duration `json:"deadline,omitempty"`   // of an emergency; default 1 h
}

// Soak says how long a new primary is watched before the old key retires.
type Soak struct {
	For      time.Duration `json:"for,omitempty"`      // default 15 m
	Requests int64         `json:"requests,omitempty"` // per gateway; default 100
	Probes   int64         `json:"probes,omitempty"`   // per gateway, instead of requests; default 20
}

// WithDefaults returns p with every unsaid field at its default.
func (p Policy) WithDefaults() Policy {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&p.Soak.For, 15*time.Minute)
	set(&p.Quiet, 24*time.Hour)
	set(&p.Watch, time.Hour)
	set(&p.Deadline, time.Hour)
	set(&p.Jitter, min(p.Every/10, time.Hour))
	if p.Soak.Requests == 0 {
		p.Soak.Requests = 100
	}
	if p.Soak.Probes == 0 {
		p.Soak.Probes = 20
	}
	if p.ProbeOK == 0 {
		p.ProbeOK = 3
	}
	if p.Unverified == "" {
		p.Unverified = UnverifiedAsk
	}
	return p
}

// Abilities are what a provider can do at its vendor.
type Abilities struct {
	Issue   bool          `json:"issue"`
	Revoke  bool          `json:"revoke"`
	List    bool          `json:"list"`
	Disable bool          `json:"disable"`
	Probe   bool          `json:"probe"`
	Max     int           `json:"max,omitempty"`   // keys that may be valid at once; 0: no known limit
	Roll    bool          `json:"roll,omitempty"`  // the vendor has one key: issuing replaces it
	Grace   time.Duration `json:"grace,omitempty"` // with Roll: how long the replaced key goes on working; 0: not at all
	Fixed   []string      `json:"fixed,omitempty"` // vendor ids of its fixed keys, such as key1 and key2: issuing overwrites one that is free
	Used    bool          `json:"used,omitempty"`  // the list says when a key was last used
	Grain   time.Duration `json:"grain,omitempty"` // of Used: its granularity plus how late it may be
	Early   time.Duration `json:"early"`           // a new key may be refused for this long
	Late    time.Duration `json:"late"`            // a revoked key may be accepted for this long
	Spacing time.Duration `json:"spacing"`         // between probes
	DeadOK  int           `json:"dead_ok"`         // invalid answers in a row that prove a revocation
	Steps   []string      `json:"steps,omitempty"` // for a person: how to issue one
	Undo    []string      `json:"undo,omitempty"`  // for a person: how to revoke one
	URL     string        `json:"url,omitempty"`
}
