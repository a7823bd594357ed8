// Package detect turns what consumers observed into signals: which key the
// vendor refuses, and what that means.
//
// It works by rules that hold on the first failure, not by rates: on one
// request the primary was refused and the fallback was not, so the primary is
// bad. Where one refusal can have another reason, it waits for a second one or
// wishes for a probe. [Step] compares the cumulative counters of all consumers
// with those it saw before, so that a report that comes twice, or a server that
// was down meanwhile, changes nothing. The package is pure: facts and now go
// in, signals come out.
package detect

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// Defaults of Facts.
const (
	DefaultHold  = time.Minute
	DefaultGrace = 3 * time.Second
)

const (
	run       = 5               // refusals in a row, without an ok between, that make a key dead
	few       = 3               // refusals that make a key intermittent
	unused    = 24 * time.Hour  // an undead or unproven version is forgotten after this long
	together  = 5 * time.Second // two processes of one consumer that report for longer are no restart
	tries     = 5               // attempts to end a key that fail before people are told
	probeRuns = 2               // refused probes in a row that make a key dead
)

// Facts are what [Step] looks at: everything that is known now.
type Facts struct {
	Credentials []Credential
	Boots       []evidence.Boot
	Hold        time.Duration // a primary that answers ok again is well after this long; 0: [DefaultHold]
	Grace       time.Duration // how long a probe is waited for before a refusal alone decides; 0: [DefaultGrace]
}

// Credential is one credential and what is under way for it.
type Credential struct {
	key.Credential
	Versions    []key.Version
	Open        *rotation.Rotation    // nil: none
	Retirements []rotation.Retirement // not ended
}

func (c Credential) version(n key.Number) key.Version {
	i := slices.IndexFunc(c.Versions, func(v key.Version) bool { return v.ID.Number == n })
	if i < 0 {
		return key.Version{ID: key.VersionID{Credential: c.ID, Number: n}}
	}
	return c.Versions[i]
}

// State is what [Step] remembers. The zero State is a detector that has seen
// nothing: what was counted before its first step is not news. It is small, and
// JSON keeps it whole.
type State struct {
	At        time.Time  `json:"at,omitzero"`     // of the step that made it
	Boots     []Boot     `json:"boots,omitempty"` // sorted by consumer and boot
	Incidents []Incident `json:"incidents,omitempty"`
	Undead    []Undead   `json:"undead,omitempty"`
}

// Boot is how far the counters of one process had come.
type Boot struct {
	Consumer string    `json:"consumer"`
	Boot     string    `json:"boot"`
	First    time.Time `json:"first"` // when it was first seen here
	Marks    []Mark    `json:"marks,omitempty"`
}

// Mark is how far the counters of one version had come.
type Mark struct {
	Version key.VersionID `json:"version"`
	Count
}

// Count is what counts of the attempts on one version.
type Count struct {
	OK      int64 `json:"ok,omitempty"`
	Auth    int64 `json:"auth,omitempty"` // refusals of live requests
	ProbeOK int64 `json:"probe_ok,omitempty"`
	Probe   int64 `json:"probe,omitempty"` // refusals of probes
	Worse   int64 `json:"worse,omitempty"` // refused where another version answered ok
}

func (c Count) plus(o Count) Count {
	return Count{c.OK + o.OK, c.Auth + o.Auth, c.ProbeOK + o.ProbeOK, c.Probe + o.Probe, c.Worse + o.Worse}
}

func (c Count) minus(o Count) Count {
	return Count{max(0, c.OK-o.OK), max(0, c.Auth-o.Auth), max(0, c.ProbeOK-o.ProbeOK), max(0, c.Probe-o.Probe), max(0, c.Worse-o.Worse)}
}

func (c Count) refused() int64 { return max(c.Auth+c.Probe, c.Worse) }
func (c Count) ok() int64      { return c.OK + c.ProbeOK }

// Incident is a primary that was refused, from its first refusal until it is
// well again or no longer the primary.
type Incident struct {
	Version  key.VersionID `json:"version"`
	Began    time.Time     `json:"began"`
	Well     time.Time     `json:"well,omitzero"`     // since when the primary answers ok and is not refused
	Primary  Count         `json:"primary"`           // since it began, but for the OKs of the first step
	Mixed    bool          `json:"mixed,omitempty"`   // in the first step it answered ok too
	Run      int64         `json:"run,omitempty"`     // refusals since a step with an ok
	ProbeRun int64         `json:"probes,omitempty"`  // refusals of probes since a probe that answered ok
	Fallback key.Number    `json:"fallback,omitzero"` // whose counts follow
	Spare    Count         `json:"spare"`
	SpareRun int64         `json:"spare_run,omitempty"` // refusals of the fallback since a step with an ok
	Text     string        `json:"text,omitempty"`      // such as "401 Unauthorized"
	Spike    bool          `json:"spike,omitempty"`     // it was called a spike, and stays one
	Sporadic bool          `json:"sporadic,omitempty"`  // it was called intermittent, and stays so or becomes a spike
}

// Undead is a version that answered ok after it was proven revoked.
type Undead struct {
	Version key.VersionID `json:"version"`
	Began   time.Time     `json:"began"`
	Last    time.Time     `json:"last"` // ok
	Refused time.Time     `json:"refused,omitzero"`
}

// Step takes in the facts at now. It returns what to remember, every signal
// that is there now, sorted by credential, and the probes that would tell more;
// s is not changed. Steps that come seldom see the same in sum.
func Step(s State, f Facts, now time.Time) (State, []alert.Signal, []evidence.Ask) {
	f.Hold, f.Grace = cmp.Or(f.Hold, DefaultHold), cmp.Or(f.Grace, DefaultGrace)
	news, out := s.count(f, now)
	var signals []alert.Signal
	var asks []evidence.Ask
	for _, c := range f.Credentials {
		if in, ok := s.incident(c, f, news, now); ok {
			sig, fire, ask := in.judge(c, f, now)
			if fire {
				signals = append(signals, sig)
			}
			asks = append(asks, ask...)
			out.Incidents = append(out.Incidents, in)
		}
		undead := s.undead(c, f, news, now)
		out.Undead = append(out.Undead, undead...)
		if len(undead) > 0 {
			signals = append(signals, undeadSignal(c, undead[0]))
		}
		signals = append(signals, work(c, now)...)
	}
	signals = append(signals, twoBoots(out, f, now)...)
	return out, signals, asks
}

// count returns what came since s was made, per version, and the marks of now.
func (s State) count(f Facts, now time.Time) (map[key.VersionID]Count, State) {
	news := map[key.VersionID]Count{}
	out := State{At: now}
	for _, b := range f.Boots {
		i, known := slices.BinarySearchFunc(s.Boots, b, func(m Boot, b evidence.Boot) int {
			return cmp.Or(cmp.Compare(m.Consumer, b.Consumer), cmp.Compare(m.Boot, b.Boot))
		})
		nb := Boot{Consumer: b.Consumer, Boot: b.Boot, First: now}
		marks := map[key.VersionID]Count{}
		// A process that is new counts from zero. One that ran before the last
		// step and was not known then is taken as it is.
		history := s.At.IsZero() || !known && b.Elapsed > now.Sub(s.At)+together
		if known {
			nb.First = s.Boots[i].First
			for _, m := range s.Boots[i].Marks {
				marks[m.Version] = m.Count
			}
		}
		for _, u := range b.Uses {
			m := Mark{u.Version, Count{OK: u.Live.OK, Auth: u.Live.Auth, ProbeOK: u.Probes.OK, Probe: u.Probes.Auth, Worse: u.Worse}}
			nb.Marks = append(nb.Marks, m)
			if !history {
				news[u.Version] = news[u.Version].plus(m.minus(marks[u.Version]))
			}
		}
		out.Boots = append(out.Boots, nb)
	}
	slices.SortFunc(out.Boots, func(a, b Boot) int {
		return cmp.Or(cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.Boot, b.Boot))
	})
	return news, out
}

// early reports whether v may still be unknown to a part of the vendor, so
// that a refusal says nothing.
func early(c Credential, v key.Version, now time.Time) bool {
	return c.Call.Early > 0 && !v.Created.IsZero() && now.Before(v.Created.Add(c.Call.Early))
}

// incident returns the incident of c's primary, begun, gone on with, or ended.
func (s State) incident(c Credential, f Facts, news map[key.VersionID]Count, now time.Time) (Incident, bool) {
	p := c.version(c.Slots.Primary)
	if p.ID.Number == 0 {
		return Incident{}, false
	}
	n := news[p.ID]
	i := slices.IndexFunc(s.Incidents, func(in Incident) bool { return in.Version == p.ID })
	var in Incident
	switch {
	case i >= 0:
		in = s.Incidents[i]
		in.Primary = in.Primary.plus(n)
	case n.refused() == 0 || early(c, p, now):
		return Incident{}, false
	default:
		in = Incident{Version: p.ID, Began: now, Mixed: n.ok() > 0, Primary: n}
		in.Primary.OK, in.Primary.ProbeOK = 0, 0
	}
	if n.refused() > 0 {
		in.Text = cmp.Or(text(f, p.ID), in.Text)
		in.Run += n.refused()
	}
	switch {
	case n.refused() > 0:
		in.Well = time.Time{}
	case n.ok() > 0 && in.Well.IsZero():
		in.Well = now
	}
	if n.ok() > 0 {
		in.Run = 0
	}
	if in.ProbeRun += n.Probe; n.ProbeOK > 0 {
		in.ProbeRun = 0
	}
	if in.Fallback != c.Slots.Fallback {
		in.Fallback, in.Spare, in.SpareRun = c.Slots.Fallback, Count{}, 0
	}
	if b := c.version(c.Slots.Fallback); b.ID.Number != 0 {
		nb := news[b.ID]
		if early(c, b, now) {
			nb.Auth, nb.Probe, nb.Worse = 0, 0, 0
		}
		in.Spare = in.Spare.plus(nb)
		if in.SpareRun += nb.refused(); nb.ok() > 0 {
			in.SpareRun = 0
		}
	}
	if !in.Well.IsZero() && now.Sub(in.Well) >= f.Hold {
		return Incident{}, false
	}
	return in, true
}

// text returns what the vendor said last when it refused v.
func text(f Facts, v key.VersionID) string {
	var t string
	var seen time.Time
	for _, b := range f.Boots {
		if u := b.Use(v); u.LastAuth != "" && (t == "" || b.Seen.After(seen)) {
			t, seen = u.LastAuth, b.Seen
		}
	}
	return t
}

// dead reports whether the refusals cannot be the requests' own.
func (in Incident) dead() bool {
	return in.Run > 0 && !in.Mixed && in.Primary.ok() == 0 || in.Run >= run || in.ProbeRun >= probeRuns
}

// judge says what an incident is: a signal, or what would have to be probed
// before it can be told.
func (in *Incident) judge(c Credential, f Facts, now time.Time) (alert.Signal, bool, []evidence.Ask) {
	p := c.version(in.Version.Number)
	spareOK := in.Spare.ok() > 0 && in.SpareRun < run
	spareBad := in.Fallback != 0 && !spareOK && in.SpareRun > 0
	canAsk := c.Call.Probe != nil && c.Open == nil && len(c.Retirements) == 0 && answering(f, now)
	waited := !canAsk || now.Sub(in.Began) >= f.Grace

	s := alert.Signal{Credential: c.ID, Version: in.Version.Number, Kind: alert.Spike, Severity: alert.Critical,
		Error: cmp.Or(in.Text, "refused"), Fix: c.replace()}
	dead := in.Spike || in.Primary.Worse > 0 || in.dead()
	switch refused := "the primary " + p.ID.Number.String() + " is refused" + code(in.Text); {
	case dead && spareOK || in.Primary.Worse > 0 && !spareBad:
		s.Cause = fmt.Sprintf("%s and the fallback %s carries on: %s", refused, in.Fallback, why(p, now))
		if in.Fallback == 0 {
			s.Cause = refused + " where another key was accepted: " + why(p, now)
		}
	case dead && spareBad:
		s.Cause = fmt.Sprintf("%s and so is the fallback %s: no key of %s works, and its callers get the refusal", refused, in.Fallback, c.ID)
		if s.Fix == command("rotate", c.ID) {
			s.Fix += " --emergency"
		}
	case dead && in.Fallback == 0 && (waited || in.Run >= 2 || in.ProbeRun > 0):
		s.Cause = fmt.Sprintf("%s and there is no fallback: %s", refused, why(p, now))
	case dead && in.Fallback != 0 && (waited || in.Spike):
		s.Cause = fmt.Sprintf("%s and the fallback %s was not tried: %s", refused, in.Fallback, why(p, now))
	case in.Sporadic || !dead && in.Primary.refused() >= few && in.Primary.ok() > 0:
		in.Sporadic = true
		s.Kind, s.Severity = alert.Intermittent, alert.Warning
		s.Cause = fmt.Sprintf("%s now and then, and accepted between: some requests may need other rights, or a part of the vendor does not know it", refused)
		s.Evidence = in.evidence()
		return s, true, in.asks(f, canAsk)
	default:
		return alert.Signal{}, false, in.asks(f, canAsk)
	}
	in.Spike = true
	s.Evidence = in.evidence()
	return s, true, nil
}

func (in Incident) evidence() string {
	e := fmt.Sprintf("%s refused %s", in.Version.Number, times(in.Primary.refused()))
	if in.Primary.ok() > 0 {
		e += fmt.Sprintf(", ok %s", times(in.Primary.ok()))
	}
	if in.Fallback != 0 && in.Spare.ok()+in.Spare.refused() > 0 {
		e += fmt.Sprintf("; %s ok %s, refused %s", in.Fallback, times(in.Spare.ok()), times(in.Spare.refused()))
	}
	return e + "; since " + in.Began.UTC().Format(time.RFC3339)
}

func times(n int64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// asks wishes that the versions in question are probed once more than anybody
// has seen them answer ok.
func (in Incident) asks(f Facts, can bool) []evidence.Ask {
	if !can {
		return nil
	}
	var out []evidence.Ask
	for _, n := range []key.Number{in.Version.Number, in.Fallback} {
		if n == 0 {
			continue
		}
		a := evidence.Ask{Version: key.VersionID{Credential: in.Version.Credential, Number: n}, OK: 1}
		for _, b := range f.Boots {
			u := b.Use(a.Version)
			a.OK = max(a.OK, u.Live.OK+u.Probes.OK+1)
		}
		out = append(out, a)
	}
	return out
}

// answering reports whether anybody is there to make a probe.
func answering(f Facts, now time.Time) bool {
	return slices.ContainsFunc(f.Boots, func(b evidence.Boot) bool {
		return b.Kind == key.KindGateway && now.Sub(b.Seen) <= evidence.SilentAfter
	})
}

// code returns " (401)" of "401 Unauthorized".
func code(text string) string {
	if n, _, _ := strings.Cut(text, " "); len(n) == 3 && strings.Trim(n, "0123456789") == "" {
		return " (" + n + ")"
	}
	return ""
}

func why(v key.Version, now time.Time) string {
	if !v.Expires.IsZero() && !now.Before(v.Expires) {
		return "it expired " + v.Expires.UTC().Format(time.RFC3339)
	}
	return "it was probably revoked or has expired at the vendor"
}

func command(verb string, id key.CredentialID) string {
	return "keybaton " + verb + " " + id.Service + " --env " + id.Environment
}

// undead returns the versions of c that answer ok after they were proven
// revoked, lowest first.
func (s State) undead(c Credential, f Facts, news map[key.VersionID]Count, now time.Time) []Undead {
	var out []Undead
	for _, v := range c.Versions {
		if v.State != key.StateRevoked {
			continue
		}
		n := news[v.ID]
		i := slices.IndexFunc(s.Undead, func(u Undead) bool { return u.Version == v.ID })
		u := Undead{Version: v.ID, Began: now}
		if i >= 0 {
			u = s.Undead[i]
		} else if n.ok() == 0 {
			continue
		}
		if n.ok() > 0 {
			u.Last = now
		} else if n.refused() > 0 {
			u.Refused = now
		}
		if u.Refused.After(u.Last) && now.Sub(u.Last) >= f.Hold || now.Sub(u.Last) >= unused {
			continue
		}
		out = append(out, u)
	}
	return out
}

func undeadSignal(c Credential, u Undead) alert.Signal {
	v := c.version(u.Version.Number)
	return alert.Signal{
		Credential: c.ID, Version: u.Version.Number, Kind: alert.Undead, Severity: alert.Critical,
		Error:    "a revoked key was accepted",
		Cause:    fmt.Sprintf("the vendor accepts %s, which was proven revoked %s: the revocation is not effective, or was undone", u.Version.Number, v.Since.UTC().Format(time.RFC3339)),
		Fix:      "revoke it at the vendor" + vendorID(v) + ", then look at " + command("status", c.ID),
		Evidence: "first accepted " + u.Began.UTC().Format(time.RFC3339),
	}
}

func vendorID(v key.Version) string {
	if v.VendorID == "" {
		return ""
	}
	return ", where it is " + v.VendorID
}

// replace returns the command that gets rid of a dead primary: back to the key
// that an open rotation has not ended yet, else on to another one.
func (c Credential) replace() string {
	if r := c.Open; r != nil && r.From != 0 && r.To == c.Slots.Primary && r.Back == "" {
		switch c.version(r.From).State {
		case key.StateFallback, key.StateRetired, key.StateDisabling, key.StateDisabled:
			return command("rollback", c.ID)
		}
	}
	return command("rotate", c.ID)
}

// work returns the signals about what Keybaton itself is doing for c.
func work(c Credential, now time.Time) []alert.Signal {
	var out []alert.Signal
	// A rotation that retires waits for what its retirement waits for.
	if r := c.Open; r != nil && (r.State == rotation.Stopped || r.Gate.Person && !r.Paused && r.State != rotation.Retiring) {
		s := alert.Signal{Credential: c.ID, Version: r.To, Kind: alert.Rotation, Severity: alert.Warning,
			Error: "the rotation waits for a person", Cause: cmp.Or(r.Gate.Reason, r.Back, "it needs a decision"), Fix: command("rotate approve", c.ID), Evidence: "rotation " + r.ID}
		switch r.State {
		case rotation.Stopped:
			s.Error, s.Severity, s.Fix = "the rotation has stopped", alert.Critical, command("rotate resume", c.ID)
		case rotation.WaitingKey:
			s.Fix = command("set", c.ID)
		}
		out = append(out, s)
	}
	for _, t := range c.Retirements {
		if t.Gate.Person {
			fix := command("rotate approve", c.ID)
			if t.Gate.Asks == "" {
				fix = cmp.Or(strings.Join(t.Gate.Missing, "; "), t.Gate.Reason, command("status", c.ID)) // nothing to approve: it is done elsewhere
			}
			out = append(out, alert.Signal{Credential: c.ID, Version: t.Version.Number, Kind: alert.Retirement, Severity: alert.Warning,
				Error: "the retirement of " + t.Version.Number.String() + " waits for a person",
				Cause: cmp.Or(t.Gate.Reason, "it needs a decision"), Fix: fix})
		} else if t.Attempts >= tries {
			out = append(out, alert.Signal{Credential: c.ID, Version: t.Version.Number, Kind: alert.Retirement, Severity: alert.Warning,
				Error: fmt.Sprintf("%s cannot be ended: %d attempts failed", t.Version.Number, t.Attempts),
				Cause: cmp.Or(t.Gate.Reason, "the vendor does not do it"), Fix: "look at the vendor" + vendorID(c.version(t.Version.Number)) + ", then: " + command("status", c.ID)})
		}
	}
	for _, v := range slices.Backward(c.Versions) {
		if v.State == key.StateUnproven && now.Sub(v.Since) < unused {
			out = append(out, alert.Signal{Credential: c.ID, Version: v.ID.Number, Kind: alert.RevokeUnproven, Severity: alert.Warning,
				Error: "the revocation of " + v.ID.Number.String() + " could not be proven",
				Cause: cmp.Or(v.Note, "no probe has shown that the vendor refuses it"),
				Fix:   "look at the vendor whether it is gone" + vendorID(v)})
			break
		}
	}
	return out
}

// twoBoots returns a signal for every consumer with two processes that both
// report: one that still does a while after the other began.
func twoBoots(s State, f Facts, now time.Time) []alert.Signal {
	var out []alert.Signal
	for i, a := range s.Boots {
		for _, b := range s.Boots[i+1:] {
			if a.Consumer != b.Consumer {
				break
			}
			began := a.First
			if b.First.After(began) {
				began = b.First
			}
			alive := func(m Boot) bool {
				j := slices.IndexFunc(f.Boots, func(x evidence.Boot) bool { return x.Consumer == m.Consumer && x.Boot == m.Boot })
				return j >= 0 && f.Boots[j].Kind.Acknowledges() && f.Boots[j].Seen.Sub(began) >= together && now.Sub(f.Boots[j].Seen) <= evidence.SilentAfter
			}
			if alive(a) && alive(b) && !slices.ContainsFunc(out, func(s alert.Signal) bool { return s.Consumer == a.Consumer }) {
				out = append(out, alert.Signal{
					Consumer: a.Consumer, Kind: alert.TwoBoots, Severity: alert.Warning,
					Error: "two processes are " + a.Consumer,
					Cause: "two processes use the token of the consumer " + a.Consumer + " at once, or it was copied: each is waited for alone",
					Fix:   "give each a token of its own: keybaton token create NAME",
				})
			}
		}
	}
	return out
}
