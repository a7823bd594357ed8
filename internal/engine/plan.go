package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
)

// Plan tells what a rotation would do, request by request, and does none of
// it. It opens no key and calls no vendor.
func (e *Engine) Plan(ctx context.Context, id key.CredentialID, o RotateOptions) (Plan, error) {
	f, err := e.factsOf(ctx, id)
	if err != nil {
		return Plan{}, unknownCredential(err, id)
	}
	p := Plan{Credential: id, Provider: f.service.Provider}
	if err := refusal(f, o); err != nil {
		p.Refused = err.Error()
	}
	env := provider.Env{Transport: e.cfg.Transport, Params: f.params, Call: f.credential.Call}
	show := func(acts ...string) (out []string) {
		v, ok := f.driver.(provider.Previewer)
		if !ok {
			return nil
		}
		for _, a := range acts {
			out = append(out, v.Preview(env, a)...)
		}
		return out
	}
	can, pol := f.rules.Can, f.policy
	next, old := f.credential.Next, f.credential.Slots.Primary
	holders, readers := map[string]bool{}, map[string]bool{}
	for _, h := range f.rules.Ledger.Holds {
		if h.Kind.Acknowledges() {
			holders[h.Consumer] = true
		} else {
			readers[h.Consumer] = true
		}
	}
	gen := PlanStep{Step: rotation.StepGenerate, Does: fmt.Sprintf("writes the intent for %s, then asks %s for a key and stores it sealed as the candidate", next, f.info.Vendor), Requests: show("issue", "probe"),
		Gate: fmt.Sprintf("%s answers ok %d times in a row, within %s", next, pol.ProbeOK, max(can.Early, can.Spacing))}
	if !can.Issue {
		gen.Does = "waits for a person to issue a key and paste it: keybaton set " + id.Service + " --env " + id.Environment
		gen.Requests = show("probe")
		for _, s := range can.Steps {
			gen.Does += "; " + s
		}
	}
	spare := f.credential.Slots.Fallback
	if o.Emergency && spare != 0 && (o.Leaked == 0 || o.Leaked == old) {
		gen.Does = fmt.Sprintf("takes the spare %s as the new key, without asking the vendor for one", spare)
		gen.Requests, gen.Gate = show("probe"), spare.String()+" was just probed ok"
		next = spare
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s was handed to the same consumers as %s: it is a bridge, and is replaced by another emergency at once", spare, old))
	}
	p.overwrites(f, &gen, old)
	if !can.Probe {
		gen.Gate = "unverified: no probe is declared, so the policy says " + string(pol.Unverified)
		p.Warnings = append(p.Warnings, "no probe is declared for "+id.Service+": whether a key works can only be seen in traffic; add probe: to keybaton.yaml")
	}
	stage := PlanStep{Step: rotation.StepStage, Does: fmt.Sprintf("puts %s into the fallback slot; %s stays the primary", next, old), Gate: "the revision is committed"}
	if s := f.credential.Slots.Fallback; s != 0 && s == next {
		stage.Does, stage.Gate = fmt.Sprintf("%s is in the fallback slot already", s), "nothing"
	} else if s != 0 {
		stage.Does += fmt.Sprintf("; the spare %s leaves it and retires", s)
		stage.Gate = fmt.Sprintf("%s was just probed ok; the revision is committed", old)
	}
	dist := PlanStep{Step: rotation.StepDistribute, Does: fmt.Sprintf("hands %s to %s, and asks the gateways to try it", next, things(len(holders), "consumer")), Requests: show("probe"),
		Gate: fmt.Sprintf("every consumer has acknowledged, and each gateway has seen %s answer ok", next)}
	prom := PlanStep{Step: rotation.StepPromote, Does: fmt.Sprintf("swaps: %s becomes the primary, %s the fallback", next, old),
		Gate: fmt.Sprintf("every consumer has acknowledged; %s and %d requests (or %d probes) per gateway without one that %s refused and %s served", pol.Soak.For, pol.Soak.Requests, pol.Soak.Probes, next, old)}
	ret := PlanStep{Step: rotation.StepRetire, Does: fmt.Sprintf("takes %s out of its slot once unused for %s; then revokes it", old, pol.Quiet), Requests: show("disable", "revoke", "probe", "list"),
		Gate: fmt.Sprintf("nobody holds %s; %s was just probed ok; then %d refusals in a row prove it dead", old, next, max(1, can.DeadOK))}
	if can.Disable {
		ret.Does = fmt.Sprintf("takes %s out of its slot once unused for %s; disables it, watches for %s, then revokes it", old, pol.Quiet, pol.Watch)
	}
	if !can.Revoke {
		ret.Does = fmt.Sprintf("takes %s out of its slot once unused for %s; then waits for a person to revoke it at the vendor", old, pol.Quiet)
		for _, s := range can.Undo {
			ret.Does += "; " + s
		}
	}
	if o.Emergency {
		prom.Gate, ret.Gate = "the new key was just probed ok; no soak", ret.Gate+fmt.Sprintf(", or %s have passed", pol.Deadline)
		ret.Does = strings.Replace(ret.Does, fmt.Sprintf(" once unused for %s", pol.Quiet), " at once", 1)
		ret.Does = strings.Replace(ret.Does, fmt.Sprintf("disables it, watches for %s, then", pol.Watch), "disables it, then", 1)
	}
	if can.Roll && (can.Grace == 0 || old == 0) {
		stage.Does, stage.Gate = fmt.Sprintf("%s is the primary at once; no other key works", next), "the revision is committed"
		dist.Does, dist.Requests = fmt.Sprintf("hands %s to %s", next, things(len(holders), "consumer")), nil
		prom.Does = fmt.Sprintf("watches %s", next)
		ret.Does, ret.Requests, ret.Gate = fmt.Sprintf("proves that %s is dead: the vendor ended it", old), show("probe"), fmt.Sprintf("%d refusals in a row, while %s answers ok", max(1, can.DeadOK), next)
	} else if can.Roll {
		ret.Does, ret.Requests = fmt.Sprintf("takes %s out of its slot once unused for %s, or once it has ended by itself", old, pol.Quiet), show("probe")
	}
	if old == 0 {
		stage = PlanStep{Step: rotation.StepStage, Does: fmt.Sprintf("makes %s the primary: there is none yet", next), Gate: "the revision is committed"}
		p.Steps = []PlanStep{gen, stage}
		return p, nil
	}
	if v := f.rules.Versions[old]; v.UnknownCopies() && can.Used && can.Revoke {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s was %s or read out, so it may live where nobody is seen; it is revoked once the vendor has not seen it used for %s", old, v.Origin, pol.Quiet+can.Grain))
	} else if v.UnknownCopies() && !can.Disable && can.Revoke {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s was %s or read out, so it may live where nobody is seen; before it is revoked the policy says: %s", old, v.Origin, pol.Unverified))
	}
	if len(readers) > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s may hold %s and will be waited for: keybaton consumer list", things(len(readers), "reader"), old))
	}
	p.Steps = []PlanStep{gen, stage, dist, prom, ret}
	return p, nil
}

// overwrites says what a vendor does to the old key when it issues another.
func (p *Plan) overwrites(f *facts, gen *PlanStep, old key.Number) {
	can := f.rules.Can
	switch {
	case can.Roll && can.Grace > 0 && old != 0:
		gen.Does += fmt.Sprintf("; the vendor replaces its one key and lets %s work for another %s", old, can.Grace)
		p.Warnings = append(p.Warnings, fmt.Sprintf("from the moment that the vendor answers, %s ends by itself within %s: after that there is no rollback", old, can.Grace))
		if need := f.policy.Soak.For + f.policy.Quiet; need > can.Grace {
			p.Warnings = append(p.Warnings, fmt.Sprintf("soak and quiet window take %s, longer than %s lives: shorten them for this credential", need, old))
		}
	case can.Roll:
		gen.Does += "; the vendor replaces its one key at once, so a person is asked first"
		p.Warnings = append(p.Warnings, "zero failed requests cannot be promised: the vendor has one key, and requests are refused from the moment that it is replaced until each holder has the new one")
		for _, h := range f.rules.Ledger.Holds {
			if !h.Kind.Acknowledges() && h.Version.Number == old {
				p.Warnings = append(p.Warnings, h.Consumer+" reads its key and is refused until it reads again")
			}
		}
	case len(can.Fixed) > 0:
		id, ours := f.rules.Free()
		switch {
		case id == "":
			gen.Does = fmt.Sprintf("waits: the vendor's keys %v are all in use", can.Fixed)
		case !ours:
			gen.Does += "; " + id + " at the vendor is made anew"
			p.Warnings = append(p.Warnings, id+" at the vendor was not made by Keybaton: a person is asked before it is made anew, as whoever uses it is refused from then on")
		default:
			gen.Does += "; " + id + " at the vendor is made anew"
		}
	}
}

// things returns "1 consumer" or "2 consumers".
func things(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
