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
	if !can.Probe {
		gen.Gate = "unverified: no probe is declared, so the policy says " + string(pol.Unverified)
		p.Warnings = append(p.Warnings, "no probe is declared for "+id.Service+": whether a key works can only be seen in traffic; add probe: to keybaton.yaml")
	}
	stage := PlanStep{Step: rotation.StepStage, Does: fmt.Sprintf("puts %s into the fallback slot; %s stays the primary", next, old), Gate: "the revision is committed"}
	if s := f.credential.Slots.Fallback; s != 0 {
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
	if old == 0 {
		stage = PlanStep{Step: rotation.StepStage, Does: fmt.Sprintf("makes %s the primary: there is none yet", next), Gate: "the revision is committed"}
		p.Steps = []PlanStep{gen, stage}
		return p, nil
	}
	if v := f.rules.Versions[old]; v.UnknownCopies() && !can.Disable && can.Revoke {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s was %s or read out, so it may live where nobody is seen; before it is revoked the policy says: %s", old, v.Origin, pol.Unverified))
	}
	if len(readers) > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s may hold %s and will be waited for: keybaton consumer list", things(len(readers), "reader"), old))
	}
	p.Steps = []PlanStep{gen, stage, dist, prom, ret}
	return p, nil
}

// things returns "1 consumer" or "2 consumers".
func things(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
