package rotation

import (
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

// The acts of a retirement, beside Wait, DoProbe and DoEnable.
const (
	DoDisabling Act = "commit to disable"
	DoDisable   Act = "disable"
	DoRevoking  Act = "commit to revoke"
	DoRevoke    Act = "revoke"
	DoConfirm   Act = "confirm" // probe the survivor, look at the vendor's list, then note how it ended
	DoUnproven  Act = "note that it is unproven"
)

// The events of a retirement.
const (
	Disabling EventKind = "disabling"
	Disabled  EventKind = "disabled"
	Enabled   EventKind = "enabled" // on the way back
	Revoking  EventKind = "revoking"
	Called    EventKind = "called" // the vendor says it is revoked
	Failed    EventKind = "failed" // a vendor call did not do it; Retry says when again
	Revoked   EventKind = "revoked"
	Unproven  EventKind = "unproven"
	Withdrawn EventKind = "withdrawn" // it went back into a slot
)

// NextRetire says what the retirement r needs at now. The survivor is the
// primary: nothing is disabled or revoked that is not outlived by a key that
// was just seen to work.
func NextRetire(r Retirement, f Facts, now time.Time) (Action, Gate) {
	if r.State.Terminal() || !r.Ended.IsZero() {
		return closed(Gate{Reason: "it is over"})
	}
	if now.Before(r.Retry) {
		g := r.Gate
		g.Open, g.Again = false, r.Retry
		return closed(g)
	}
	n := r.Version.Number
	switch r.State {
	case key.StateOrphan:
		return act(DoRevoking, n, "it is a stray of a lost answer; nobody was given it")
	case key.StateRetired:
		return retired(r, f, now)
	case key.StateDisabling:
		return act(DoDisable, n, "committed")
	case key.StateDisabled:
		watch := f.Policy.Watch
		if r.Emergency {
			watch = 0
		}
		if end := r.Entered.Add(watch); now.Before(end) {
			return closed(Gate{Reason: fmt.Sprintf("%s is disabled and watched for %s", n, watch), Again: end})
		}
		return outlived(f, now, n, DoRevoking, "disabled and not missed for "+watch.String())
	case key.StateRevoking:
		if r.Called.IsZero() {
			return act(DoRevoke, n, "committed")
		}
		return proof(r, f, now)
	}
	return closed(Gate{Reason: fmt.Sprintf("[unexpected] state %q", r.State), Person: true})
}

// outlived lets do happen to n when the survivor was just seen to work.
func outlived(f Facts, now time.Time, n key.Number, do Act, why string) (Action, Gate) {
	s := f.Slots.Primary
	if s == 0 || s == n {
		return closed(Gate{Reason: "no other key would survive it", Person: true, Missing: []string{"another primary: keybaton set or keybaton rotate"}})
	}
	if !f.Can.Probe {
		return act(do, n, why+"; the survivor cannot be probed")
	}
	p, ok := f.fresh(s, now)
	switch {
	case !ok:
		return act(DoProbe, s, "the survivor is probed before "+n.String()+" is touched")
	case p.Outcome == evidence.OK:
		return act(do, n, why+"; the survivor "+s.String()+" answers ok")
	}
	return closed(Gate{Reason: fmt.Sprintf("the survivor %s answers %s, so %s is kept", s, p.Text, n), Again: now.Add(max(f.Can.Spacing, 2*time.Second))})
}

func retired(r Retirement, f Facts, now time.Time) (Action, Gate) {
	n := r.Version.Number
	v := f.Versions[n]
	var missing []string
	unbound := false
	for _, s := range f.Ledger.Standings(r.Version, r.Revision, now) {
		if s.Place == evidence.Moved {
			continue
		}
		if s.Unbound {
			unbound = true
		}
		missing = append(missing, s.Consumer+" "+s.Why)
	}
	why := "nobody holds it"
	if len(missing) > 0 {
		over := r.Emergency && !r.Deadline.IsZero() && !now.Before(r.Deadline)
		switch {
		case over:
			why = fmt.Sprintf("the deadline of the emergency has passed; not waited for: %v", missing)
		case onlyUnbound(r, f, now) && (r.Approved[AskReaders] != "" || f.Policy.Unverified == UnverifiedProceed):
			why = "unverified: readers that declare no refresh interval"
		default:
			g := Gate{Reason: fmt.Sprintf("%d may still hold %s", len(missing), n), Missing: missing, Again: r.Deadline}
			if unbound && onlyUnbound(r, f, now) && f.Policy.Unverified == UnverifiedAsk {
				g.Person, g.Asks = true, AskReaders
				g.Missing = append(g.Missing, approve(r))
			}
			return closed(g)
		}
	}
	if !f.Can.Revoke || v.VendorID == "" {
		return person(r, f, now)
	}
	if v.UnknownCopies() && !f.Can.Disable && !r.Emergency && r.Approved[AskCopies] == "" {
		switch f.Policy.Unverified {
		case UnverifiedProceed:
			why += "; unverified: it may live where nobody is seen"
		case UnverifiedWait:
			return closed(Gate{Reason: fmt.Sprintf("unverified: %s came from outside or was read out, and may live where nobody is seen", n)})
		default:
			return closed(Gate{Reason: fmt.Sprintf("unverified: %s came from outside or was read out, and may live where nobody is seen", n),
				Person: true, Asks: AskCopies, Missing: []string{approve(r)}})
		}
	}
	if f.Can.Disable {
		return outlived(f, now, n, DoDisabling, why)
	}
	return outlived(f, now, n, DoRevoking, why)
}

func approve(r Retirement) string {
	return "keybaton rotate approve " + r.Version.Credential.Service + " --env " + r.Version.Credential.Environment
}

func onlyUnbound(r Retirement, f Facts, now time.Time) bool {
	return !slices.ContainsFunc(f.Ledger.Standings(r.Version, r.Revision, now), func(s evidence.Standing) bool {
		return s.Place != evidence.Moved && !s.Unbound
	})
}

// which says which key a version is, for somebody who sees only the vendor's
// list.
func which(v key.Version) string {
	s := v.ID.Number.String()
	switch {
	case v.VendorID != "":
		s += " (" + v.VendorID + ")"
	case !v.Created.IsZero():
		s += " (the key that was " + string(v.Origin) + " here on " + v.Created.UTC().Format("2006-01-02 15:04 UTC") + ")"
	}
	return s
}

// person waits for somebody to revoke the key at the vendor; a probe proves it.
func person(r Retirement, f Facts, now time.Time) (Action, Gate) {
	n := r.Version.Number
	if !f.Can.Probe {
		if who := r.Approved[AskRevoked]; who != "" {
			return act(DoUnproven, n, who+" says that it is revoked at the vendor; no probe is declared")
		}
		return closed(Gate{Reason: "revoke " + which(f.Versions[n]) + " at the vendor, then say so", Person: true, Asks: AskRevoked, Missing: append(slices.Clone(f.Can.Undo), approve(r))})
	}
	dead := f.dead(n, r.Entered)
	if dead >= max(1, f.Can.DeadOK) {
		return act(DoConfirm, n, fmt.Sprintf("answered invalid %d times in a row", dead))
	}
	every := f.Can.Spacing
	if dead == 0 {
		every = max(every, 15*time.Second)
	}
	if p, ok := f.Probes[n]; ok && now.Sub(p.At) < every {
		g := Gate{Reason: "revoke " + which(f.Versions[n]) + " at the vendor; a probe notices when it is dead", Person: true, Missing: slices.Clone(f.Can.Undo), Again: p.At.Add(every)}
		if dead > 0 {
			g.Reason, g.Person, g.Missing = fmt.Sprintf("%s was refused %d of %d times", n, dead, f.Can.DeadOK), false, nil
		}
		return closed(g)
	}
	return act(DoProbe, n, "to see whether it was revoked")
}

// proof collects invalid answers beyond the vendor's propagation window.
func proof(r Retirement, f Facts, now time.Time) (Action, Gate) {
	n := r.Version.Number
	hasParts := f.Versions[n].Fingerprint != ""
	if !f.Can.Probe || !hasParts {
		if f.Can.List {
			if at := r.Called.Add(f.Can.Late); now.Before(at) {
				return closed(Gate{Reason: "waits for the vendor's propagation window", Again: at})
			}
			return act(DoConfirm, n, "the vendor's list tells")
		}
		return act(DoUnproven, n, "no probe is declared and the vendor cannot list its keys")
	}
	need := max(1, f.Can.DeadOK)
	from := r.Called.Add(f.Can.Late)
	dead := f.dead(n, from)
	if dead >= need {
		return act(DoConfirm, n, fmt.Sprintf("answered invalid %d times in a row", dead))
	}
	if now.Before(from) {
		return closed(Gate{Reason: fmt.Sprintf("waits for the vendor's propagation window of %s", f.Can.Late), Again: from})
	}
	// Only an answer gives up: a server that was away, or a vendor that cannot be
	// asked, proves nothing either way.
	if p := f.Probes[n]; p.At.After(from.Add(patience(f.Can))) && (p.Outcome == evidence.OK || p.Outcome == evidence.Perm || p.Outcome == evidence.Rate) {
		return act(DoUnproven, n, "it still answered "+f.Probes[n].Text+" after the vendor said that it was revoked")
	}
	if p, ok := f.Probes[n]; ok && !p.At.Before(from) && now.Sub(p.At) < f.Can.Spacing {
		return closed(Gate{Reason: fmt.Sprintf("%s answered invalid %d of %d times", n, dead, need), Again: p.At.Add(f.Can.Spacing)})
	}
	return act(DoProbe, n, fmt.Sprintf("answered invalid %d of %d times", dead, need))
}

// dead returns how many probes of n in a row were refused, all since from.
func (f Facts) dead(n key.Number, from time.Time) int {
	p := f.Probes[n]
	if p.Outcome != evidence.Auth || p.First.Before(from) {
		return 0
	}
	return p.Run
}

// patience is how long past the vendor's own window a revoked key is probed
// before it counts as unproven.
func patience(c Abilities) time.Duration {
	return max(c.Late, time.Duration(max(1, c.DeadOK)+3)*max(c.Spacing, time.Second))
}

// ApplyRetire returns r after e, or key.ErrConflict when e cannot follow.
func ApplyRetire(r Retirement, e Event) (Retirement, error) {
	from := map[EventKind][]key.State{
		Disabling: {key.StateRetired},
		Disabled:  {key.StateDisabling},
		Enabled:   {key.StateDisabling, key.StateDisabled},
		Revoking:  {key.StateRetired, key.StateDisabled, key.StateOrphan},
		Called:    {key.StateRevoking},
		Failed:    {key.StateRetired, key.StateDisabling, key.StateRevoking, key.StateDisabled},
		Revoked:   {key.StateRevoking, key.StateRetired},
		Unproven:  {key.StateRevoking, key.StateRetired},
		Withdrawn: {key.StateRetired},
	}
	if !slices.Contains(from[e.Kind], r.State) || !r.Ended.IsZero() {
		return r, fmt.Errorf("%w: %s is %s and cannot be %s", key.ErrConflict, r.Version, r.State, e.Kind)
	}
	to := r.State
	switch e.Kind {
	case Disabling:
		to = key.StateDisabling
	case Disabled:
		to = key.StateDisabled
	case Enabled:
		to = key.StateRetired
	case Revoking:
		to = key.StateRevoking
	case Called:
		r.Called, r.Attempts = e.At, 0
	case Failed:
		r.Attempts++
		r.Retry = e.Retry
		r.Gate = Gate{Reason: e.Why}
		return r, nil
	case Revoked:
		to = key.StateRevoked
	case Unproven:
		to = key.StateUnproven
	case Withdrawn:
		r.Ended = e.At
		return r, nil
	}
	r.Retry = time.Time{}
	if to != r.State {
		r.State, r.Entered, r.Attempts, r.Gate = to, e.At, 0, Gate{}
	}
	if to.Terminal() {
		r.Ended = e.At
	}
	return r, nil
}
