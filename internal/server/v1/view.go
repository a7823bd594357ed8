package v1

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// maxAlerts bounds how many alerts one view looks at.
const maxAlerts = 1000

// view is one consistent look at the store, from which answers are made.
type view struct {
	tx          store.Tx
	now         time.Time
	ledger      evidence.Ledger
	holds       map[key.CredentialID][]evidence.Hold // of the ledger
	alerts      map[key.CredentialID][]alert.Alert   // firing
	retirements map[key.CredentialID][]rotation.Retirement
	policies    map[string]rotation.Policy
	services    map[string]key.Service
	revision    key.Revision
}

// look reads what every answer needs.
func look(tx store.Tx) (*view, error) {
	v := &view{tx: tx, now: tx.Now(), holds: map[key.CredentialID][]evidence.Hold{}, alerts: map[key.CredentialID][]alert.Alert{}, retirements: map[key.CredentialID][]rotation.Retirement{},
		policies: map[string]rotation.Policy{}, services: map[string]key.Service{}}
	var err error
	if v.revision, err = tx.Revision(); err != nil {
		return nil, fmt.Errorf("reading the revision: %w", err)
	}
	if v.ledger.Boots, err = tx.Boots(); err != nil {
		return nil, fmt.Errorf("reading consumers: %w", err)
	}
	if v.ledger.Holds, err = tx.Holds(key.CredentialID{}); err != nil {
		return nil, fmt.Errorf("reading holds: %w", err)
	}
	for _, h := range v.ledger.Holds {
		v.holds[h.Version.Credential] = append(v.holds[h.Version.Credential], h)
	}
	alerts, err := tx.Alerts(alert.Firing, maxAlerts)
	if err != nil {
		return nil, fmt.Errorf("reading alerts: %w", err)
	}
	for _, a := range alerts {
		v.alerts[a.Signal.Credential] = append(v.alerts[a.Signal.Credential], a)
	}
	retirements, err := tx.Retirements(key.CredentialID{})
	if err != nil {
		return nil, fmt.Errorf("reading retirements: %w", err)
	}
	for _, r := range retirements {
		v.retirements[r.Version.Credential] = append(v.retirements[r.Version.Credential], r)
	}
	policies, err := tx.Policies()
	if err != nil {
		return nil, fmt.Errorf("reading policies: %w", err)
	}
	for _, p := range policies {
		v.policies[p.Name] = p
	}
	services, err := tx.Services()
	if err != nil {
		return nil, fmt.Errorf("reading services: %w", err)
	}
	for _, s := range services {
		v.services[s.Name] = s
	}
	return v, nil
}

// credentials returns those that p may see and that match the filter; an empty
// filter is all.
func (v *view) credentials(p access.Principal, f Filter) ([]key.Credential, error) {
	all, err := v.tx.Credentials()
	if err != nil {
		return nil, fmt.Errorf("reading credentials: %w", err)
	}
	return slices.DeleteFunc(all, func(c key.Credential) bool { return !f.takes(c.ID) || p.Check(access.See, c.ID) != nil }), nil
}

// Filter narrows a list; empty fields are every one.
type Filter struct {
	Service     string `query:"service" doc:"only of this service"`
	Environment string `query:"environment" doc:"only of this environment"`
}

func (f Filter) takes(id key.CredentialID) bool {
	return (f.Service == "" || f.Service == id.Service) && (f.Environment == "" || f.Environment == id.Environment)
}

// credential returns c as the API shows it; all says whether versions at the
// end of their life are shown as well.
func (v *view) credential(c key.Credential, all bool) (api.Credential, error) {
	svc := v.services[c.ID.Service]
	versions, err := v.tx.Versions(c.ID)
	if err != nil {
		return api.Credential{}, fmt.Errorf("reading the versions of %s: %w", c.ID, err)
	}
	o := api.Credential{Service: c.ID.Service, Environment: c.ID.Environment, Provider: svc.Provider, EnvName: svc.EnvName,
		Upstream: cmp.Or(c.Call.Upstream, c.Upstream, svc.Call.Upstream), Parts: c.Call.PartNames(), Slots: toSlots(c.Slots),
		Versions: []api.Version{}, Retirements: []api.Retirement{}, Answers: v.answers(c.ID), Holders: v.holders(c),
		Revision: toRevision(c.Revision), Created: c.Created, Rotated: c.Rotated}
	policy := v.policies[c.Policy]
	o.Policy = toPolicy(policy)
	if c.Slots.Primary != 0 {
		o.Due = policy.Due(c.ID, cmp.Or(c.Rotated, c.Created))
	}
	var primary key.Version
	for _, x := range slices.Backward(versions) {
		if x.ID.Number == c.Slots.Primary {
			primary = x
		}
		if all || !x.State.Terminal() {
			o.Versions = append(o.Versions, toVersion(x, c.Slots, toUses(v.ledger.Total(x.ID))))
		}
	}
	for _, r := range v.retirements[c.ID] {
		o.Retirements = append(o.Retirements, toRetirement(r))
	}
	r, err := v.tx.OpenRotation(c.ID)
	switch {
	case err == nil:
		x := v.rotation(r)
		o.Rotation = &x
	case !errors.Is(err, key.ErrNotFound):
		return api.Credential{}, fmt.Errorf("reading the rotation of %s: %w", c.ID, err)
	}
	o.Health, o.HealthWhy, err = v.health(c, primary)
	return o, err
}

// health says how the primary of c does, from what has been seen, and why it
// is called so. Silence is not evidence: what nobody has seen is unverified.
func (v *view) health(c key.Credential, primary key.Version) (health, why string, err error) {
	if c.Slots.Primary == 0 {
		return api.HealthEmpty, "there is no key yet", nil
	}
	if !c.Settled(v.revision.Epoch) {
		why := "the store was restored; consumers keep the keys they have until the vendor has accepted the stored " + c.Slots.Primary.String()
		if c.Call.Probe == nil {
			why += ", and no probe is declared: if it is the right one, keybaton rotate approve " + c.ID.Service + " --env " + c.ID.Environment
		}
		return api.HealthUnverified, why, nil
	}
	for _, a := range v.alerts[c.ID] {
		ofKey := a.Signal.Kind == "spike" || a.Signal.Kind == "intermittent" || a.Signal.Kind == "gradual"
		if ofKey && a.Signal.Severity != alert.Info && (a.Signal.Version == 0 || a.Signal.Version == c.Slots.Primary) {
			return api.HealthFailing, a.Signal.Cause, nil
		}
	}
	if !primary.Expires.IsZero() && !v.now.Before(primary.Expires) {
		return api.HealthFailing, primary.ID.Number.String() + " expired " + primary.Expires.UTC().Format(time.RFC3339), nil
	}
	seen := ""
	for _, b := range v.ledger.Boots {
		u := b.Use(primary.ID)
		if u.LastProbe == evidence.Auth {
			return api.HealthFailing, "the vendor refused " + primary.ID.Number.String() + " when " + b.Consumer + " last probed it", nil
		}
		if u.Live.OK > 0 || u.LastProbe == evidence.OK {
			seen = primary.ID.Number.String() + " was accepted by the vendor, seen by " + b.Consumer
		}
	}
	if u := v.ledger.Total(primary.ID); u.Live.OK == 0 && u.Live.Auth > 0 {
		return api.HealthFailing, fmt.Sprintf("the vendor refused all %d requests with %s", u.Live.Auth, primary.ID.Number), nil
	}
	if seen != "" {
		return api.HealthOK, seen, nil
	}
	if !primary.Proven.IsZero() {
		return api.HealthOK, primary.ID.Number.String() + " answered ok to every probe when it came in", nil
	}
	return api.HealthUnverified, "nobody has seen " + primary.ID.Number.String() + " work yet", nil
}

// answers sums what callers of the credential saw.
func (v *view) answers(id key.CredentialID) api.Answers {
	var o api.Answers
	for _, b := range v.ledger.Boots {
		for _, a := range b.Answers {
			if a.Credential == id {
				o.Requests, o.Refused, o.Failed = o.Requests+a.Requests, o.Refused+a.Refused, o.Failed+a.Failed
			}
		}
	}
	return o
}

// holders counts who may hold a served version of c.
func (v *view) holders(c key.Credential) api.HolderCounts {
	var o api.HolderCounts
	seen := map[[2]string]bool{}
	for _, h := range v.holds[c.ID] {
		who := [2]string{h.Consumer, h.Boot}
		if !slices.Contains(c.Slots.Served(), h.Version.Number) || h.Ended(v.now) || seen[who] {
			continue
		}
		seen[who] = true
		o.Holding++
		b, known := v.ledger.Boot(h.Consumer, h.Boot)
		if h.Kind.Acknowledges() && (!known || v.now.Sub(b.Seen) > evidence.SilentAfter) {
			o.Silent++
		}
	}
	return o
}

// rotation returns r as the API shows it, with the evidence of now.
func (v *view) rotation(r rotation.Rotation) api.Rotation {
	o := toRotation(r)
	var ids []key.VersionID
	for _, n := range []key.Number{r.From, r.To} {
		if n == 0 {
			continue
		}
		id := key.VersionID{Credential: r.Credential, Number: n}
		ids = append(ids, id)
		o.Evidence = append(o.Evidence, toUses(v.ledger.Total(id)))
	}
	o.Answers = v.answers(r.Credential)
	if r.State.Ended() || len(ids) == 0 {
		return o
	}
	standings := v.ledger.Followers(ids, r.Revision, v.now)
	if r.State == rotation.Retiring && r.From != 0 {
		standings = v.ledger.Standings(ids[0], r.Revision, v.now)
	}
	for _, s := range standings {
		h := toHolder(s)
		if r.Revision.IsZero() {
			h.Why = "" // nothing was handed out yet that could be acknowledged
		}
		if b, ok := v.ledger.Boot(s.Consumer, s.Boot); ok && r.State == rotation.Quieting {
			began := time.Duration(0) // of a process that came later
			for _, m := range r.Marks {
				if m.Consumer == b.Consumer && m.Boot == b.Boot {
					began = m.Elapsed
				}
			}
			h.QuietSeconds = seconds(b.Quiet(ids[0], r.Revision, began))
		}
		o.Holders = append(o.Holders, h)
	}
	return o
}

// waits reports whether a person is waited for.
func waits(g rotation.Gate) bool { return g.Person && !g.Open }
