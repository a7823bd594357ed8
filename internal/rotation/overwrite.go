package rotation

import (
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// Overwrites reports whether issuing a key ends another one: the vendor has one
// key and replaces it, or has fixed keys and makes one of them anew. What a lost
// answer may have issued is overwritten by the next one, and is looked for by
// nobody.
func (c Abilities) Overwrites() bool { return c.Roll || len(c.Fixed) > 0 }

// Taken returns the vendor ids that an issue must leave alone: those of every
// version that may be alive.
func (f Facts) Taken() []string {
	var out []string
	for _, v := range f.Versions {
		if !v.State.Terminal() && v.VendorID != "" && !slices.Contains(out, v.VendorID) {
			out = append(out, v.VendorID)
		}
	}
	slices.Sort(out)
	return out
}

// Free returns the fixed key that the next issue overwrites, and whether it was
// a version before: it belongs to nobody else then. Empty when all are taken.
func (f Facts) Free() (id string, ours bool) {
	taken := f.Taken()
	for _, p := range f.Can.Fixed {
		if slices.Contains(taken, p) {
			continue
		}
		mine := false
		for _, v := range f.Versions {
			mine = mine || v.VendorID == p
		}
		if mine {
			return p, true
		}
		if id == "" {
			id = p
		}
	}
	return id, false
}

// overwriting is planned for a vendor where issuing a key ends another.
func overwriting(r Rotation, f Facts, now time.Time) (Action, Gate) {
	if len(f.Can.Fixed) > 0 {
		return refilling(r, f)
	}
	lasting := f.Can.Grace > 0 && r.From != 0 && !r.Hard
	switch {
	case lasting:
		return act(DoIntent, 0, fmt.Sprintf("the vendor replaces its one key and lets %s work for another %s", r.From, f.Can.Grace))
	case r.Kind == Emergency:
		return act(DoIntent, 0, "emergency: the vendor replaces its one key at once")
	case r.Hard:
		return act(DoIntent, 0, "an answer was lost, and only another key is known to work")
	case r.Consent != "":
		return act(DoIntent, 0, "the vendor replaces its one key at once, as "+r.Consent+" has accepted")
	case r.approved():
		return act(DoIntent, 0, "the vendor replaces its one key at once, as "+r.Approved[StepGenerate]+" accepts")
	}
	reason := "the vendor has one key and replaces it in place: whoever uses the present one is refused from then on"
	var missing []string
	if r.From != 0 {
		reason = fmt.Sprintf("the vendor has one key and replaces it in place: requests with %s are refused from then until its holders have the new one", r.From)
		for _, s := range f.Ledger.Standings(r.id(r.From), key.Revision{}, now) {
			missing = append(missing, s.Consumer+" holds "+r.From.String())
		}
	}
	return closed(Gate{Reason: reason, Person: true, Missing: append(missing, consent(r))})
}

// refilling makes one of the vendor's fixed keys anew: one that no living
// version is, and that belongs to nobody else.
func refilling(r Rotation, f Facts) (Action, Gate) {
	for _, v := range f.Versions {
		if !v.State.Terminal() && v.State != key.StateIntent && v.State != key.StateUnknown && v.VendorID == "" {
			return closed(Gate{Reason: fmt.Sprintf("it is not known which of %v at the vendor %s is, and the wrong one must not be made anew", f.Can.Fixed, v.ID.Number), Person: true,
				Missing: []string{fmt.Sprintf("say it: keybaton adopt %s --env %s --version %s --vendor-id %s", r.Credential.Service, r.Credential.Environment, v.ID.Number, f.Can.Fixed[0])}})
		}
	}
	id, ours := f.Free()
	switch {
	case id == "":
		_, names := f.living()
		return closed(Gate{Reason: fmt.Sprintf("the vendor's %d keys are all in use", len(f.Can.Fixed)), Missing: names})
	case ours, r.Consent != "", r.approved(), r.Kind == Emergency && r.From != 0:
		return act(DoIntent, 0, id+" at the vendor is free")
	}
	return closed(Gate{Reason: id + " at the vendor was not made by Keybaton: whoever uses it is refused once it is made anew", Person: true, Missing: []string{consent(r)}})
}

func consent(r Rotation) string {
	return "keybaton rotate approve " + r.Credential.Service + " --env " + r.Credential.Environment
}

// lostRoll is unknown for a vendor that replaces its one key: the old key may
// have ended, or ends with its grace. Rolling again is the only way to a key
// that is known; where the old one may still work, that is for a person to say
// until most of its grace is over.
func lostRoll(r Rotation, f Facts, now time.Time) (Action, Gate) {
	if !f.Can.Roll || f.Can.Grace == 0 || r.approved() || r.Kind == Emergency {
		return act(DoLook, r.To, "the next one overwrites it")
	}
	end := r.Entered.Add(f.Can.Grace / 4 * 3)
	if !now.Before(end) {
		return act(DoLook, r.To, "most of the grace is over; the next one overwrites it")
	}
	return closed(Gate{Reason: fmt.Sprintf("the vendor's answer was lost: %s may end at %s, and rolling again may end it at once", r.From, end.UTC().Format(time.RFC3339)),
		Person: true, Missing: []string{consent(r)}, Again: end})
}

// lapsing reports whether the old key ends by itself so soon that waiting for
// anybody helps nobody, and when it ends.
func (r Rotation) lapsing(f Facts, now time.Time) (end time.Time, soon bool) {
	end = f.Versions[r.From].Expires
	if !f.Can.Roll || f.Can.Grace == 0 || end.IsZero() {
		return end, false
	}
	return end, !now.Before(end.Add(-f.Can.Grace / 4))
}
