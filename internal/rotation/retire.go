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
	DoSight     Act = "look when the vendor saw it used last"
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
		return disabled(r, f, now)
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

// MayTouch refuses, with key.ErrConflict, to begin to disable or revoke n while
// a slot, or the rollback of the open rotation, still needs it. It is asked in
// the transaction that commits to it: what [NextRetire] saw may have changed.
// open is zero when no rotation is open.
func MayTouch(n key.Number, slots key.Slots, open Rotation) error {
	if slots.Has(n) {
		return fmt.Errorf("%w: %s is in a slot", key.ErrConflict, n)
	}
	if open.Back != "" && open.From == n {
		return fmt.Errorf("%w: %s is being rolled back to", key.ErrConflict, n)
	}
	return nil
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
	if v.UnknownCopies() && !r.Emergency && r.Approved[AskCopies] == "" {
		a, g, more := unseen(r, f, now)
		if a.Do != Wait || !g.Open {
			return a, g
		}
		why += more
	}
	if f.Can.Disable {
		return outlived(f, now, n, DoDisabling, why)
	}
	return outlived(f, now, n, DoRevoking, why)
}

// unseen decides whether copies of r's version may live where no holder is
// recorded: it came from outside, or was read out. The gate is open when the
// vendor has not seen it used, when it can be disabled and watched first, or
// when the policy proceeds; more is then what to add to the reason.
func unseen(r Retirement, f Facts, now time.Time) (a Action, g Gate, more string) {
	n := r.Version.Number
	g = Gate{Reason: fmt.Sprintf("unverified: %s came from outside or was read out, and may live where nobody is seen", n)}
	if r.Restored {
		g.Reason = fmt.Sprintf("unverified: %s was issued after the backup that was restored, and may be in use by whoever has not been heard from since", n)
	}
	if f.Can.Used && f.Can.List {
		s, ok := f.Sights[n]
		window := f.Policy.Quiet + f.Can.Grain
		every := min(max(window/10, f.Can.Spacing, time.Second), time.Hour)
		switch {
		case !ok || now.Sub(s.At) >= every:
			a, g = act(DoSight, n, "to see whether the vendor saw it used")
			return a, g, ""
		case s.Used.IsZero():
			g.Reason += "; the vendor does not say when it was used last"
		case now.Sub(s.Since) >= window:
			return Action{Do: Wait}, Gate{Open: true}, fmt.Sprintf("; the vendor saw it used last at %s, and not since for %s", s.Used.UTC().Format(time.RFC3339), window)
		default:
			g = Gate{Reason: fmt.Sprintf("the vendor saw %s used last at %s; it must not be seen used for %s", n, s.Used.UTC().Format(time.RFC3339), window), Again: s.At.Add(every)}
			if f.Policy.Unverified == UnverifiedAsk {
				g.Person, g.Asks, g.Missing = true, AskCopies, []string{"not to wait: " + approve(r)}
			}
			return Action{Do: Wait}, g, ""
		}
	}
	switch {
	case r.Restored:
		g.Person, g.Asks, g.Missing = true, AskCopies, []string{approve(r)}
	case f.Can.Disable:
		return Action{Do: Wait}, Gate{Open: true}, ""
	case f.Policy.Unverified == UnverifiedProceed:
		return Action{Do: Wait}, Gate{Open: true}, "; unverified: it may live where nobody is seen"
	case f.Policy.Unverified == UnverifiedAsk:
		g.Person, g.Asks, g.Missing = true, AskCopies, []string{approve(r)}
	}
	return Action{Do: Wait}, g, ""
}

// disabled watches a version that is off at the vendor: first that it is off
// indeed, then that nobody misses it.
func disabled(r Retirement, f Facts, now time.Time) (Action, Gate) {
	n := r.Version.Number
	v := f.Versions[n]
	if !r.Emergency && f.Can.Probe && v.Fingerprint != "" {
		p, ok := f.Probes[n]
		ok = ok && !p.At.Before(r.Entered)
		switch {
		case ok && p.Outcome == evidence.Auth:
		case ok && p.At.After(r.Entered.Add(patience(f.Can))) && (p.Outcome == evidence.OK || p.Outcome == evidence.Perm):
			why := fmt.Sprintf("the vendor says that %s is disabled and still accepts it, so nothing is learned by watching", n)
			if v.UnknownCopies() && r.Approved[AskCopies] == "" && f.Policy.Unverified != UnverifiedProceed {
				g := Gate{Reason: "unverified: " + why}
				if f.Policy.Unverified == UnverifiedAsk {
					g.Person, g.Asks, g.Missing = true, AskCopies, []string{approve(r)}
				}
				return closed(g)
			}
			return outlived(f, now, n, DoRevoking, why)
		case ok && now.Sub(p.At) < max(f.Can.Spacing, time.Second):
			return closed(Gate{Reason: fmt.Sprintf("%s is disabled and still answers %s", n, p.Text), Again: p.At.Add(max(f.Can.Spacing, time.Second))})
		default:
			return act(DoProbe, n, "to see whether it is off indeed")
		}
	}
	watch := f.Policy.Watch
	if r.Emergency {
		watch = 0
	}
	if end := r.Entered.Add(watch); now.Before(end) {
		return closed(Gate{Reason: fmt.Sprintf("%s is disabled and watched for %s", n, watch), Again: end})
	}
	return outlived(f, now, n, DoRevoking, "disabled and not missed for "+watch.String())
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
	end := f.Versions[n].Expires
	lapses := f.Can.Roll && !end.IsZero()
	if lapses && now.Before(end) {
		return closed(Gate{Reason: n.String() + " ends by itself; a probe notices when it is dead", Again: end})
	}
	every := f.Can.Spacing
	if !lapses && f.dead(n, r.Entered) == 0 {
		// Nobody is asked to end a key that no other one outlives. It may take days:
		// the vendor is asked less often then.
		every = max(every, min(max(15*time.Second, now.Sub(r.Entered)/20), 5*time.Minute))
		if a, g, ok := survives(r, f, now, every); !ok {
			return a, g
		}
	}
	dead := f.dead(n, r.Entered)
	if dead >= max(1, f.Can.DeadOK) {
		return act(DoConfirm, n, fmt.Sprintf("answered invalid %d times in a row", dead))
	}
	if p, ok := f.Probes[n]; ok && now.Sub(p.At) < every {
		g := Gate{Reason: "revoke " + which(f.Versions[n]) + " at the vendor; a probe notices when it is dead", Person: true, Missing: slices.Clone(f.Can.Undo), Again: p.At.Add(every)}
		if lapses {
			g.Reason, g.Person, g.Missing = n.String()+" should have ended by itself; a probe notices when it is dead", false, nil
		}
		if dead > 0 {
			g.Reason, g.Person, g.Missing = fmt.Sprintf("%s was refused %d of %d times", n, dead, f.Can.DeadOK), false, nil
		}
		return closed(g)
	}
	return act(DoProbe, n, "to see whether it was revoked")
}

// survives reports whether another key was seen to work lately, so that a
// person may end this one.
func survives(r Retirement, f Facts, now time.Time, lately time.Duration) (Action, Gate, bool) {
	n, s := r.Version.Number, f.Slots.Primary
	where := r.Version.Credential.Service + " --env " + r.Version.Credential.Environment
	if s == 0 || s == n {
		return Action{Do: Wait}, Gate{Reason: "do not revoke " + n.String() + ": no other key would survive it", Person: true,
			Missing: []string{"another primary: keybaton set " + where}}, false
	}
	p, ok := f.Probes[s]
	switch {
	case !ok || now.Sub(p.At) > max(Fresh, lately):
		a, g := act(DoProbe, s, "the survivor is probed before anybody is asked to revoke "+n.String())
		return a, g, false
	case p.Outcome == evidence.OK || p.Outcome == evidence.Perm || p.Outcome == evidence.Rate:
		return Action{}, Gate{}, true
	case p.Outcome == evidence.Auth:
		return Action{Do: Wait}, Gate{Reason: fmt.Sprintf("do not revoke %s: the primary %s is refused (%s), and %s may be the last key that works", n, s, p.Text, n), Person: true,
			Missing: []string{"go back to " + n.String() + ": keybaton rollback " + where, "or give it another key: keybaton set " + where}, Again: p.At.Add(max(Fresh, lately))}, false
	}
	return Action{Do: Wait}, Gate{Reason: fmt.Sprintf("the survivor %s answers %s, so %s is kept", s, p.Text, n), Again: p.At.Add(max(Fresh, lately))}, false
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

// Anew reports whether the next probe of r's version begins a run of its own: p,
// what this server remembers of it, began before the present state of r, or
// before the vendor said that it revoked, which may be another server's doing.
// Nothing that was seen then proves an end, nor may it hide the answers since.
func (r Retirement) Anew(p Probe) bool {
	return p.First.Before(r.Entered) || p.First.Before(r.Called)
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
