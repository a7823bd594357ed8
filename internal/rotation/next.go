package rotation

import (
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

// Fresh is how old a probe may be to count as "just now".
const Fresh = 30 * time.Second

// Facts are what a decision is made from. They belong to one credential.
type Facts struct {
	Policy      Policy // with defaults
	Can         Abilities
	Slots       key.Slots
	Versions    map[key.Number]key.Version
	Ledger      evidence.Ledger
	Probes      map[key.Number]Probe // the server's own, newest
	Intent      int                  // the attempt whose intent this very pass made durable; 0: none
	Retirements map[key.Number]Retirement
	Sights      map[key.Number]Sight // what the vendor's list says of use, newest
}

// Sight is what the vendor's list last said of the use of a version.
type Sight struct {
	Used  time.Time // as the vendor says, by its clock; zero: it does not say
	At    time.Time // when the list was read, by ours
	Since time.Time // since when it has said the same, by ours
}

// Then returns the newest sight s taken in after q.
func (q Sight) Then(s Sight) Sight {
	s.Since = s.At
	if !q.At.IsZero() && q.Used.Equal(s.Used) {
		s.Since = q.Since
	}
	return s
}

// Probe is the newest probe of a version by the server.
type Probe struct {
	Outcome evidence.Outcome
	At      time.Time
	Text    string    // "401 Unauthorized"
	Run     int       // probes in a row with this outcome
	First   time.Time // of the run
}

// Then returns the newest probe p taken in after q.
func (q Probe) Then(p Probe) Probe {
	p.Run, p.First = 1, p.At
	if q.Outcome == p.Outcome && q.Run > 0 {
		p.Run, p.First = q.Run+1, q.First
	}
	return p
}

// Act is something the engine does for a rotation or a retirement.
type Act string

// The acts. Wait does nothing until Gate.Again.
const (
	Wait       Act = "wait"
	DoIntent   Act = "write the intent"
	DoIssue    Act = "issue"
	DoLost     Act = "note the lost answer"
	DoLook     Act = "look for strays"
	DoNeedKey  Act = "ask a person for a key"
	DoSpare    Act = "take the spare"
	DoProbe    Act = "probe" // Action.Version
	DoProven   Act = "note the proof"
	DoInstall  Act = "install"
	DoStage    Act = "stage"
	DoPromote  Act = "promote"
	DoSoaked   Act = "end the soak"
	DoEmpty    Act = "empty the slot"
	DoFinish   Act = "finish"
	DoBack     Act = "roll back"
	DoSwapBack Act = "swap back"
	DoEnable   Act = "enable" // the old key, before it is swapped back
	DoDrop     Act = "drop"
	DoStop     Act = "stop"
	DoDiscard  Act = "discard the spare"
)

// Action is what to do now, and why.
type Action struct {
	Do      Act
	Version key.Number
	Why     string
	Proof   string // DoFinish
}

// Next says what r needs at now. When it is Wait, the gate says what is waited
// for; otherwise the gate is open and says why.
func Next(r Rotation, f Facts, now time.Time) (Action, Gate) {
	if r.State.Ended() {
		return Action{Do: Wait}, Gate{Reason: "it is over"}
	}
	if r.Machine > Machine {
		return closed(Gate{Reason: "a newer server began it; upgrade this one"})
	}
	if r.Paused {
		return closed(Gate{Reason: "paused", Person: true, Missing: []string{"somebody who resumes it"}})
	}
	if now.Before(r.Retry) {
		g := r.Gate
		g.Open, g.Again = false, r.Retry
		if g.Reason == "" {
			g.Reason = "tries again"
		}
		return Action{Do: Wait}, g
	}
	switch r.State {
	case Planned:
		return planned(r, f, now)
	case Issuing:
		if f.Intent == r.Attempt {
			return act(DoIssue, r.To, "the intent is durable")
		}
		return act(DoLost, r.To, "the server stopped between the intent and the answer")
	case Unknown:
		return unknown(r, f, now)
	case WaitingKey:
		return closed(Gate{Reason: "issue a key at the vendor, then paste it: keybaton set " + r.Credential.Service + " --env " + r.Credential.Environment,
			Missing: f.Can.Steps, Person: true})
	case Proving:
		return proving(r, f, now)
	case Staging:
		return staging(r, f, now)
	case Distribute:
		return distributing(r, f, now)
	case Soaking:
		return soaking(r, f, now)
	case Quieting:
		return quieting(r, f, r.From, now)
	case Retiring:
		return retiring(r, f)
	case RollingBack:
		return rollingBack(r, f, now)
	case Undoing:
		return quieting(r, f, r.To, now)
	case Stopped:
		return closed(Gate{Reason: r.Why, Person: true, Missing: []string{"keybaton rotate resume, keybaton rollback, or keybaton rotate --emergency for a new key"}})
	}
	return closed(Gate{Reason: fmt.Sprintf("[unexpected] state %q", r.State), Person: true})
}

func act(do Act, v key.Number, why string) (Action, Gate) {
	return Action{Do: do, Version: v, Why: why}, Gate{Open: true, Reason: why}
}

func closed(g Gate) (Action, Gate) { return Action{Do: Wait}, g }

func (r Rotation) id(n key.Number) key.VersionID {
	return key.VersionID{Credential: r.Credential, Number: n}
}

// approved reports whether a person has opened the gate of r's present step.
func (r Rotation) approved() bool { return r.Approved[r.State.Step()] != "" }

// living counts the versions that may be valid at the vendor.
func (f Facts) living() (n int, names []string) {
	for _, v := range f.Versions {
		if v.State == key.StateUnknown && (f.Can.List || f.Can.Overwrites()) {
			continue // looked for and not found, or overwritten by the next
		}
		if !v.State.Terminal() && v.State != key.StateIntent {
			n++
			names = append(names, v.ID.Number.String()+" ("+string(v.State)+")")
		}
	}
	slices.Sort(names)
	return n, names
}

// spare returns the warm fallback that may be promoted instead of a new key.
func (f Facts) spare(r Rotation) key.Number {
	if n := f.Slots.Fallback; n != 0 && n != r.From && n != r.Leaked && r.Kind != Spare {
		return n
	}
	return 0
}

func planned(r Rotation, f Facts, now time.Time) (Action, Gate) {
	n, names := f.living()
	room := f.Can.Max == 0 || n < f.Can.Max
	if spare := f.spare(r); spare != 0 && (r.Kind == Emergency || f.Can.Issue && (!room || r.Full)) {
		p, ok := f.fresh(spare, now)
		switch {
		case !f.Can.Probe && !room, ok && p.Outcome == evidence.OK:
			if r.Kind == Emergency {
				return act(DoSpare, spare, "emergency: the spare is there and answers ok")
			}
			return act(DoSpare, spare, "the vendor has no room and the spare is there")
		case f.Can.Probe && !ok:
			return act(DoProbe, spare, "the spare is probed before it is used")
		case ok && p.Outcome == evidence.Auth && f.Can.Issue && (!room || r.Full):
			return act(DoDiscard, spare, "the spare is dead ("+p.Text+") and takes the room of a new key")
		}
	}
	if !f.Can.Issue {
		return act(DoNeedKey, 0, "the vendor has no way to issue a key by program")
	}
	if f.Can.Overwrites() {
		return overwriting(r, f, now)
	}
	if !room {
		return closed(Gate{Reason: fmt.Sprintf("the vendor allows %d keys and has %d", f.Can.Max, n), Missing: names})
	}
	return act(DoIntent, 0, "there is room at the vendor")
}

func unknown(r Rotation, f Facts, now time.Time) (Action, Gate) {
	if f.Can.Overwrites() {
		return lostRoll(r, f, now)
	}
	if f.Can.List {
		return act(DoLook, r.To, "the vendor can list its keys")
	}
	if r.approved() {
		return act(DoLook, r.To, "looked for by "+r.Approved[StepGenerate])
	}
	label := f.Versions[r.To].Label
	return closed(Gate{Reason: "the vendor's answer was lost and it cannot list its keys", Person: true,
		Missing: []string{"look at the vendor for a key named " + label + ", delete it, then: keybaton rotate approve " +
			r.Credential.Service + " --env " + r.Credential.Environment}})
}

func proving(r Rotation, f Facts, now time.Time) (Action, Gate) {
	if !f.Can.Probe {
		return unverified(r, f, "no probe is declared, so the new key cannot be proven", func() (Action, Gate) {
			return act(DoProven, r.To, "unverified: no probe is declared")
		})
	}
	p, ok := f.Probes[r.To]
	run := 0
	if ok && p.Outcome == evidence.OK {
		run = p.Run
	}
	if run >= f.Policy.ProbeOK {
		return act(DoProven, r.To, fmt.Sprintf("answered ok %d times in a row", run))
	}
	if ok && p.At.Sub(r.Entered) > f.Can.Early && (p.Outcome == evidence.Auth || p.Outcome == evidence.Perm) {
		return act(DoBack, r.To, fmt.Sprintf("the new key %s was refused (%s) for longer than the %s that the vendor needs",
			r.To, p.Text, f.Can.Early))
	}
	if ok && now.Sub(p.At) < f.Can.Spacing {
		g := Gate{Reason: fmt.Sprintf("%d of %d probes ok", run, f.Policy.ProbeOK), Again: p.At.Add(f.Can.Spacing)}
		if p.Outcome != evidence.OK {
			g.Reason += "; the last answer was " + p.Text
		}
		return closed(g)
	}
	return act(DoProbe, r.To, fmt.Sprintf("%d of %d probes ok", run, f.Policy.ProbeOK))
}

// unverified is what happens where something cannot be seen.
func unverified(r Rotation, f Facts, what string, proceed func() (Action, Gate)) (Action, Gate) {
	switch {
	case f.Policy.Unverified == UnverifiedProceed, r.approved():
		return proceed()
	case f.Policy.Unverified == UnverifiedWait:
		return closed(Gate{Reason: "unverified: " + what})
	}
	return closed(Gate{Reason: "unverified: " + what, Person: true,
		Missing: []string{"keybaton rotate approve " + r.Credential.Service + " --env " + r.Credential.Environment}})
}

// fresh returns the newest probe of n if it was made just now.
func (f Facts) fresh(n key.Number, now time.Time) (Probe, bool) {
	p, ok := f.Probes[n]
	return p, ok && now.Sub(p.At) <= Fresh
}

func staging(r Rotation, f Facts, now time.Time) (Action, Gate) {
	if f.Slots.Primary == 0 {
		return act(DoInstall, r.To, "there was no primary")
	}
	if r.Kind == Spare {
		if f.Slots.Fallback != 0 {
			return act(DoBack, r.To, "the fallback slot was filled meanwhile")
		}
		return act(DoStage, r.To, "the fallback slot is empty")
	}
	if f.Slots.Fallback == 0 || !f.Can.Probe {
		return act(DoStage, r.To, "the fallback slot holds nothing that is needed")
	}
	p, ok := f.fresh(r.From, now)
	switch {
	case !ok:
		return act(DoProbe, r.From, "the primary is probed before the fallback is displaced")
	case p.Outcome == evidence.OK || p.Outcome == evidence.Perm:
		return act(DoStage, r.To, "the primary answers "+string(p.Outcome)+"; the spare is not needed")
	case p.Outcome == evidence.Auth:
		return act(DoInstall, r.To, "the primary is dead; the fallback is kept")
	}
	return closed(Gate{Reason: "the primary cannot be probed (" + p.Text + "), so the fallback is not displaced", Again: now.Add(max(f.Can.Spacing, time.Second))})
}

// watchers are the gateways that hold the new key: those whose evidence counts.
func watchers(r Rotation, f Facts) []evidence.Boot {
	var out []evidence.Boot
	for _, h := range f.Ledger.Holds {
		if h.Version != r.id(r.To) || h.Kind != key.KindGateway {
			continue
		}
		if b, ok := f.Ledger.Boot(h.Consumer, h.Boot); ok && !slices.ContainsFunc(out, func(o evidence.Boot) bool { return o.Consumer == b.Consumer && o.Boot == b.Boot }) {
			out = append(out, b)
		}
	}
	return out
}

// since returns what b has seen of the new key since the watch began.
func (r Rotation) since(b evidence.Boot) evidence.Use {
	u := b.Use(r.id(r.To))
	for _, m := range r.Marks {
		if m.Consumer == b.Consumer && m.Boot == b.Boot {
			u.Live, u.Probes, u.Worse = u.Live.Minus(m.Live), u.Probes.Minus(m.Probes), u.Worse-m.Worse
		}
	}
	return u
}

// began returns b's own clock when the present watch began; 0 for a process
// that came later.
func (r Rotation) began(b evidence.Boot) time.Duration {
	for _, m := range r.Marks {
		if m.Consumer == b.Consumer && m.Boot == b.Boot {
			return m.Elapsed
		}
	}
	return 0
}

// Marks returns the counters of the version to, as they stand: the beginning of
// a watch.
func Marks(to key.VersionID, l evidence.Ledger) []Mark {
	var out []Mark
	for _, b := range l.Boots {
		u := b.Use(to)
		if b.Elapsed > 0 || u.Live.Attempts()+u.Probes.Attempts()+u.Worse > 0 {
			out = append(out, Mark{Consumer: b.Consumer, Boot: b.Boot, Live: u.Live, Probes: u.Probes, Worse: u.Worse, Elapsed: b.Elapsed})
		}
	}
	return out
}

// following returns the gate that waits for every acknowledging holder of the
// credential's old or new key to acknowledge r.Revision.
func following(r Rotation, f Facts, now time.Time) (string, []string) {
	var missing []string
	all := f.Ledger.Followers([]key.VersionID{r.id(r.From), r.id(r.To)}, r.Revision, now)
	for _, s := range all {
		if s.Place != evidence.Moved {
			missing = append(missing, s.Consumer+" "+s.Why)
		}
	}
	if len(missing) > 0 {
		return fmt.Sprintf("%d of %d consumers have acknowledged", len(all)-len(missing), len(all)), missing
	}
	switch len(all) {
	case 0:
		return "no consumer holds it", nil
	case 1:
		return all[0].Consumer + " has acknowledged", nil
	}
	return fmt.Sprintf("all %d consumers have acknowledged", len(all)), nil
}

// bad reports whether some gateway saw the new key refused where the old one
// was not, and which.
func bad(r Rotation, f Facts) string {
	for _, b := range f.Ledger.Boots {
		if u := r.since(b); u.Worse > 0 {
			return fmt.Sprintf("%s saw %s refused %d times where %s was accepted", b.Consumer, r.To, u.Worse, r.From)
		}
	}
	return ""
}

func distributing(r Rotation, f Facts, now time.Time) (Action, Gate) {
	if r.Kind == Emergency {
		if f.Can.Probe {
			p, ok := f.fresh(r.To, now)
			if !ok {
				return act(DoProbe, r.To, "probed before it is promoted")
			}
			if p.Outcome != evidence.OK {
				return closed(Gate{Reason: "the new key answers " + p.Text, Again: now.Add(max(f.Can.Spacing, time.Second))})
			}
		}
		return act(DoPromote, r.To, "emergency: the new key answers ok")
	}
	reason, missing := following(r, f, now)
	if end, soon := r.lapsing(f, now); soon {
		return act(DoPromote, r.To, fmt.Sprintf("%s ends by itself at %s; waiting longer would help nobody", r.From, end.UTC().Format(time.RFC3339)))
	}
	if len(missing) > 0 {
		return closed(Gate{Reason: reason, Missing: missing})
	}
	if r.Kind == Spare {
		return Action{Do: DoFinish, Why: reason, Proof: "spare"}, Gate{Open: true, Reason: reason}
	}
	if why := bad(r, f); why != "" {
		if now.Sub(r.Entered) > f.Can.Early {
			return act(DoBack, r.To, why)
		}
		return closed(Gate{Reason: "early: " + why, Again: r.Entered.Add(f.Can.Early + 1)})
	}
	ws := watchers(r, f)
	for _, b := range ws {
		if u := r.since(b); u.Live.OK+u.Probes.OK < 1 {
			missing = append(missing, b.Consumer+" has not seen "+r.To.String()+" work yet")
			if u.LastProbe == evidence.Auth && now.Sub(r.Entered) > f.Can.Early {
				return act(DoBack, r.To, b.Consumer+" probed "+r.To.String()+" and was refused ("+u.LastAuth+")")
			}
		}
	}
	if len(missing) > 0 {
		if !f.Can.Probe {
			return unverified(r, f, "no probe is declared, so gateways cannot try the new key before it is used", func() (Action, Gate) {
				return act(DoPromote, r.To, "unverified: no probe is declared")
			})
		}
		return closed(Gate{Reason: fmt.Sprintf("%d of %d gateways have seen it work", len(ws)-len(missing), len(ws)), Missing: missing})
	}
	if len(ws) == 0 {
		return act(DoPromote, r.To, reason)
	}
	return act(DoPromote, r.To, fmt.Sprintf("%s and seen %s work", reason, r.To))
}

func soaking(r Rotation, f Facts, now time.Time) (Action, Gate) {
	_, soon := r.lapsing(f, now)
	if why := bad(r, f); why != "" && f.Slots.Fallback == r.From && r.From != 0 && !soon {
		if now.Sub(r.Entered) > f.Can.Early {
			return act(DoBack, r.To, why)
		}
		return closed(Gate{Reason: "early: " + why, Again: r.Entered.Add(f.Can.Early + 1)})
	}
	if r.From == 0 {
		return Action{Do: DoFinish, Why: "it is the first key", Proof: "nothing to retire"}, Gate{Open: true, Reason: "it is the first key"}
	}
	if r.Kind == Emergency {
		return act(DoSoaked, r.To, "emergency: no soak")
	}
	reason, missing := following(r, f, now)
	if len(missing) > 0 {
		return closed(Gate{Reason: reason, Missing: missing})
	}
	if end := r.Entered.Add(f.Policy.Soak.For); now.Before(end) {
		return closed(Gate{Reason: fmt.Sprintf("soaks for %s", f.Policy.Soak.For), Again: end})
	}
	var seen, probed int64
	ws := watchers(r, f)
	for _, b := range ws {
		u := r.since(b)
		seen, probed = seen+u.Live.OK, probed+u.Probes.OK
		if u.Live.OK+u.Probes.OK < f.Policy.Soak.Requests && u.Probes.OK < f.Policy.Soak.Probes {
			missing = append(missing, fmt.Sprintf("%s has seen %d of %d requests (or %d of %d probes) answer ok",
				b.Consumer, u.Live.OK, f.Policy.Soak.Requests, u.Probes.OK, f.Policy.Soak.Probes))
		}
	}
	if len(missing) > 0 {
		if !f.Can.Probe {
			return unverified(r, f, "too few requests to see that the new key works, and no probe is declared", func() (Action, Gate) {
				return act(DoSoaked, r.To, "unverified: too few requests, no probe")
			})
		}
		return closed(Gate{Reason: "soaks until it has been seen to work", Missing: missing})
	}
	what := fmt.Sprintf("%d requests", seen)
	if seen < f.Policy.Soak.Requests && probed > 0 {
		what = fmt.Sprintf("%d requests and %d probes", seen, probed)
	}
	return act(DoSoaked, r.To, fmt.Sprintf("%s answered ok with %s, none refused that %s would have served", what, r.To, r.From))
}

// quieting waits until old, in the fallback slot, is unused; then it leaves, if
// the primary that is left alone was just seen to work: somebody else may have
// ended it meanwhile, and consumers that ask nothing do not notice.
func quieting(r Rotation, f Facts, old key.Number, now time.Time) (Action, Gate) {
	if f.Slots.Fallback != old {
		return act(DoEmpty, old, "it is in no slot")
	}
	if r.Kind == Emergency {
		return outlived(f, now, old, DoEmpty, "emergency: no quiet window")
	}
	if end := f.Versions[old].Expires; f.Can.Roll && !end.IsZero() && !now.Before(end) {
		return act(DoEmpty, old, old.String()+" has ended by itself")
	}
	reason, missing := following(r, f, now)
	if len(missing) > 0 {
		return closed(Gate{Reason: reason, Missing: missing})
	}
	quiet, n := f.Policy.Quiet, 0
	for _, h := range f.Ledger.Holds {
		if h.Version != r.id(old) || !h.Kind.Acknowledges() {
			continue
		}
		n++
		b, _ := f.Ledger.Boot(h.Consumer, h.Boot)
		if q := b.Quiet(r.id(old), r.Revision, r.began(b)); q < quiet {
			missing = append(missing, fmt.Sprintf("%s: unused for %s of %s", h.Consumer, q.Round(100*time.Millisecond), quiet))
		}
	}
	if len(missing) > 0 {
		return closed(Gate{Reason: fmt.Sprintf("%s must be unused for %s", old, quiet), Missing: missing})
	}
	return outlived(f, now, old, DoEmpty, fmt.Sprintf("%s unused for %s at every consumer that holds it (%d)", old, quiet, n))
}

func retiring(r Rotation, f Facts) (Action, Gate) {
	v := f.Versions[r.From]
	switch v.State {
	case key.StateRevoked:
		return Action{Do: DoFinish, Why: r.From.String() + " is proven dead", Proof: "revoked_proven"}, Gate{Open: true, Reason: r.From.String() + " is proven dead"}
	case key.StateUnproven:
		return Action{Do: DoFinish, Why: r.From.String() + " was revoked, not proven dead", Proof: "revoke_unproven"}, Gate{Open: true, Reason: "revoked, not proven"}
	}
	if r.Bridge != 0 && r.Bridge == f.Slots.Primary {
		why := fmt.Sprintf("%s goes on retiring by itself; %s, which its holders held too, is replaced now", r.From, r.Bridge)
		return Action{Do: DoFinish, Why: why, Proof: "retiring"}, Gate{Open: true, Reason: why}
	}
	if ret, ok := f.Retirements[r.From]; ok {
		g := ret.Gate
		g.Open = false
		if g.Reason == "" {
			g.Reason = r.From.String() + " is " + string(ret.State)
		}
		return closed(g)
	}
	return closed(Gate{Reason: r.From.String() + " is " + string(v.State)})
}

func rollingBack(r Rotation, f Facts, now time.Time) (Action, Gate) {
	if f.Slots.Primary != r.To || r.To == 0 {
		if r.To != 0 && f.Slots.Fallback == r.To {
			return act(DoSwapBack, r.From, "it was not promoted yet")
		}
		return act(DoDrop, r.To, "it was not handed out")
	}
	old := f.Versions[r.From]
	if old.State == key.StateDisabled || old.State == key.StateDisabling {
		if ret := f.Retirements[r.From]; now.Before(ret.Retry) {
			return closed(Gate{Reason: "the old key could not be enabled: " + ret.Gate.Reason, Again: ret.Retry})
		}
		return act(DoEnable, r.From, "the old key is disabled at the vendor")
	}
	if !f.Can.Probe {
		return unverified(r, f, "no probe is declared, so the old key cannot be proven", func() (Action, Gate) {
			return act(DoSwapBack, r.From, "unverified: no probe is declared")
		})
	}
	p, ok := f.fresh(r.From, now)
	switch {
	case !ok:
		return act(DoProbe, r.From, "the old key is probed before it comes back")
	case p.Outcome == evidence.OK:
		return act(DoSwapBack, r.From, "the old key answers ok")
	case p.Outcome == evidence.Auth:
		return act(DoStop, r.From, fmt.Sprintf("the old key %s is dead (%s), so there is nothing to roll back to; both keys are kept", r.From, p.Text))
	}
	return closed(Gate{Reason: "the old key answers " + p.Text + "; it comes back when it answers ok", Again: now.Add(max(f.Can.Spacing, time.Second))})
}
