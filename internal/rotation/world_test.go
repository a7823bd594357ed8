package rotation_test

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// world is a model of everything around the rules: a vendor, gateways that may
// be cut off, and an engine that does what the rules ask, one effect at a time.
// It stands in for the real engine so that millions of histories are cheap.
type world struct {
	now      time.Time
	policy   rotation.Policy
	can      rotation.Abilities
	slots    key.Slots
	next     key.Number
	rev      int64
	versions map[key.Number]key.Version
	rot      *rotation.Rotation
	done     []rotation.Rotation
	rets     map[key.Number]rotation.Retirement
	asks     map[key.Number]int64
	probes   map[key.Number]rotation.Probe
	intent   int

	vendor map[key.Number]vendorKey // by number: the model's vendor id is the number
	gates  []*gateway
	trace  []string
}

type vendorKey struct{ valid, disabled bool }

type gateway struct {
	boot    evidence.Boot
	slots   key.Slots
	rev     int64
	cut     bool
	holds   map[key.Number]int64 // version to the revision it was handed out at
	uses    map[key.Number]*evidence.Use
	elapsed time.Duration
	seq     int64
}

var cred = key.CredentialID{Service: "billing-api", Environment: "prod"}

func vid(n key.Number) key.VersionID { return key.VersionID{Credential: cred, Number: n} }

func newWorld(can rotation.Abilities, gateways int) *world {
	w := &world{
		now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), can: can, next: 2, rev: 1, asks: map[key.Number]int64{},
		policy:   rotation.Policy{Soak: rotation.Soak{For: 3 * time.Second, Requests: 5, Probes: 3}, Quiet: 4 * time.Second, Watch: 2 * time.Second}.WithDefaults(),
		slots:    key.Slots{Primary: 1},
		versions: map[key.Number]key.Version{1: {ID: vid(1), State: key.StatePrimary, Origin: key.OriginIssued, VendorID: "1", Fingerprint: "1"}},
		vendor:   map[key.Number]vendorKey{1: {valid: true}},
		rets:     map[key.Number]rotation.Retirement{}, probes: map[key.Number]rotation.Probe{},
	}
	for i := range gateways {
		g := &gateway{boot: evidence.Boot{Consumer: fmt.Sprintf("gw-%d", i), Kind: key.KindGateway, Boot: "b"}, holds: map[key.Number]int64{}, uses: map[key.Number]*evidence.Use{}}
		w.gates = append(w.gates, g)
		w.deliver(g)
	}
	return w
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) revision() key.Revision { return key.Revision{Epoch: 1, Number: w.rev} }

// deliver hands the present slots to g, the holds first, and takes its
// acknowledgement.
func (w *world) deliver(g *gateway) {
	if g.cut {
		return
	}
	for _, n := range w.slots.Served() {
		if _, ok := g.holds[n]; !ok {
			g.holds[n] = w.rev
		}
	}
	g.slots, g.rev = w.slots, w.rev
	ack := evidence.Ack{Consumer: g.boot.Consumer, Boot: g.boot.Boot, Revision: key.Revision{Epoch: 1, Number: g.rev}, Elapsed: g.elapsed}
	g.boot = g.boot.Acknowledge(ack, w.now)
	for n, at := range g.holds {
		h := evidence.Hold{Consumer: g.boot.Consumer, Boot: g.boot.Boot, Version: vid(n), Revision: key.Revision{Epoch: 1, Number: at}}
		if h.Released(ack, func(v key.VersionID) bool { return slices.Contains(w.slots.Served(), v.Number) }) {
			delete(g.holds, n)
		}
	}
}

// request sends one request through g; it reports whether the caller got an
// answer that was not a refusal.
func (w *world) request(g *gateway) bool {
	order := g.slots.Served()
	var refused []key.Number
	for _, n := range order {
		u := g.use(n)
		u.LastUse = g.elapsed
		k := w.vendor[n]
		if k.valid && !k.disabled {
			u.Live.Add(evidence.OK)
			for _, r := range refused {
				g.use(r).Worse++
			}
			return true
		}
		u.Live.Add(evidence.Auth)
		refused = append(refused, n)
	}
	return false
}

func (g *gateway) use(n key.Number) *evidence.Use {
	if g.uses[n] == nil {
		g.uses[n] = &evidence.Use{Version: vid(n)}
	}
	return g.uses[n]
}

// probe makes the probes that were asked for.
func (w *world) probe(g *gateway) {
	for n, want := range w.asks {
		if g.rev < w.rev || !slices.Contains(g.slots.Served(), n) {
			continue
		}
		u := g.use(n)
		if u.Live.OK+u.Probes.OK < want {
			u.Probes.Add(w.ask(n))
			u.LastProbe = w.ask(n)
		}
	}
}

func (g *gateway) report(w *world) {
	if g.cut {
		return
	}
	g.seq++
	r := evidence.Report{Consumer: g.boot.Consumer, Boot: g.boot.Boot, Seq: g.seq, Elapsed: g.elapsed}
	for _, n := range slices.Sorted(maps.Keys(g.uses)) {
		r.Uses = append(r.Uses, *g.uses[n])
	}
	g.boot = g.boot.Merge(r, w.now)
}

func (w *world) ask(n key.Number) evidence.Outcome {
	if k := w.vendor[n]; k.valid && !k.disabled {
		return evidence.OK
	}
	return evidence.Auth
}

func (w *world) facts() rotation.Facts {
	f := rotation.Facts{Policy: w.policy, Can: w.can, Slots: w.slots, Versions: w.versions, Probes: w.probes, Intent: w.intent, Retirements: map[key.Number]rotation.Retirement{}}
	for n, r := range w.rets {
		if r.Ended.IsZero() {
			f.Retirements[n] = r
		}
	}
	for _, g := range w.gates {
		f.Ledger.Boots = append(f.Ledger.Boots, g.boot)
		for n, at := range g.holds {
			f.Ledger.Holds = append(f.Ledger.Holds, evidence.Hold{Consumer: g.boot.Consumer, Kind: key.KindGateway, Boot: g.boot.Boot, Version: vid(n), Revision: key.Revision{Epoch: 1, Number: at}})
		}
	}
	return f
}

func (w *world) state(n key.Number, s key.State) {
	v := w.versions[n]
	v.ID, v.State, v.Since = vid(n), s, w.now
	w.versions[n] = v
}

func (w *world) retire(n key.Number) {
	w.state(n, key.StateRetired)
	w.rets[n] = rotation.Retirement{Version: vid(n), State: key.StateRetired, Revision: w.revision(), Entered: w.now}
}

func (w *world) apply(e rotation.Event) error {
	e.At = w.now
	r, err := rotation.Apply(*w.rot, e)
	if err != nil {
		return err
	}
	w.rot = &r
	if r.State.Ended() {
		w.done = append(w.done, r)
		w.rot = nil
	}
	return nil
}

// fault is what may go wrong at the vendor during one effect.
type fault struct{ lost, refused, dies bool }

// step does one effect: for the rotation if it has one, else for a retirement.
// It reports whether there was one.
func (w *world) step(ft fault) (bool, error) {
	if w.rot != nil {
		a, _ := rotation.Next(*w.rot, w.facts(), w.now)
		if a.Do != rotation.Wait {
			w.note("%s: %s %s (%s)", w.rot.State, a.Do, a.Version, a.Why)
			return true, w.do(a, ft)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(w.rets)) {
		r := w.rets[n]
		a, _ := rotation.NextRetire(r, w.facts(), w.now)
		if a.Do != rotation.Wait {
			w.note("%s %s: %s %s (%s)", n, r.State, a.Do, a.Version, a.Why)
			return true, w.doRetire(n, a, ft)
		}
	}
	return false, nil
}

func (w *world) probed(n key.Number) {
	w.probes[n] = w.probes[n].Then(rotation.Probe{Outcome: w.ask(n), At: w.now, Text: string(w.ask(n))})
}

func (w *world) do(a rotation.Action, ft fault) error {
	r := w.rot
	marks := rotation.Marks(vid(r.To), w.facts().Ledger)
	switch a.Do {
	case rotation.DoIntent:
		n := w.next
		w.next++
		w.state(n, key.StateIntent)
		if err := w.apply(rotation.Event{Kind: rotation.Intended, To: n}); err != nil {
			return err
		}
		w.intent = w.rot.Attempt
		if ft.dies {
			w.intent = 0
		}
		return nil
	case rotation.DoIssue:
		w.intent = 0
		if ft.refused {
			w.state(r.To, key.StateVoid)
			return w.apply(rotation.Event{Kind: rotation.Refused, Retry: w.now.Add(time.Second)})
		}
		w.vendor[r.To] = vendorKey{valid: true}
		if ft.dies {
			return nil // the process died before it recorded the answer
		}
		if ft.lost {
			w.state(r.To, key.StateUnknown)
			return w.apply(rotation.Event{Kind: rotation.Lost})
		}
		w.state(r.To, key.StateCandidate)
		v := w.versions[r.To]
		v.VendorID, v.Fingerprint, v.Origin = r.To.String(), r.To.String(), key.OriginIssued
		w.versions[r.To] = v
		w.slots.Candidate = r.To
		return w.apply(rotation.Event{Kind: rotation.Issued, To: r.To})
	case rotation.DoLost:
		w.state(r.To, key.StateUnknown)
		return w.apply(rotation.Event{Kind: rotation.Lost})
	case rotation.DoLook:
		if w.vendor[r.To].valid {
			v := w.versions[r.To]
			v.State, v.VendorID = key.StateOrphan, r.To.String()
			w.versions[r.To] = v
			w.rets[r.To] = rotation.Retirement{Version: vid(r.To), State: key.StateOrphan, Entered: w.now}
		}
		return w.apply(rotation.Event{Kind: rotation.Looked})
	case rotation.DoProbe:
		w.probed(a.Version)
		return nil
	case rotation.DoProven:
		return w.apply(rotation.Event{Kind: rotation.Proven})
	case rotation.DoInstall:
		w.rev++
		if w.slots.Primary != 0 {
			w.retire(w.slots.Primary)
		}
		w.slots.Primary, w.slots.Candidate = r.To, 0
		w.state(r.To, key.StatePrimary)
		w.asks = map[key.Number]int64{r.To: w.policy.Soak.Requests}
		return w.apply(rotation.Event{Kind: rotation.Installed, Revision: w.revision(), Marks: marks})
	case rotation.DoStage:
		w.rev++
		if w.slots.Fallback != 0 {
			w.retire(w.slots.Fallback)
		}
		w.slots.Fallback, w.slots.Candidate = r.To, 0
		w.state(r.To, key.StateFallback)
		w.asks = map[key.Number]int64{r.To: 1}
		return w.apply(rotation.Event{Kind: rotation.Staged, Revision: w.revision(), Marks: marks})
	case rotation.DoPromote:
		w.rev++
		w.swap(r.To, r.From)
		w.asks = map[key.Number]int64{r.To: 1 + w.policy.Soak.Requests}
		return w.apply(rotation.Event{Kind: rotation.Promoted, Revision: w.revision(), Marks: marks})
	case rotation.DoSoaked:
		w.rev++
		w.asks = nil
		return w.apply(rotation.Event{Kind: rotation.Soaked, Marks: marks})
	case rotation.DoEmpty:
		e := rotation.Event{Kind: rotation.Emptied}
		if w.slots.Fallback == a.Version {
			w.rev++
			w.slots.Fallback, e.Revision = 0, w.revision()
			w.retire(a.Version)
		}
		return w.apply(e)
	case rotation.DoFinish:
		return w.apply(rotation.Event{Kind: rotation.Finished, Proof: a.Proof})
	case rotation.DoBack:
		return w.apply(rotation.Event{Kind: rotation.Back, Why: a.Why})
	case rotation.DoEnable:
		k := w.vendor[a.Version]
		k.disabled = false
		w.vendor[a.Version] = k
		ret, err := rotation.ApplyRetire(w.rets[a.Version], rotation.Event{Kind: rotation.Enabled, At: w.now})
		w.rets[a.Version] = ret
		w.state(a.Version, ret.State)
		delete(w.probes, a.Version)
		return err
	case rotation.DoSwapBack:
		w.rev++
		w.asks = nil
		if w.slots.Primary == r.To {
			if w.slots.Fallback != r.From {
				ret, err := rotation.ApplyRetire(w.rets[r.From], rotation.Event{Kind: rotation.Withdrawn, At: w.now})
				if err != nil {
					return err
				}
				w.rets[r.From] = ret
			}
			w.swap(r.From, r.To)
		}
		return w.apply(rotation.Event{Kind: rotation.SwappedBack, Revision: w.revision(), Marks: rotation.Marks(vid(r.From), w.facts().Ledger)})
	case rotation.DoDrop:
		if r.To != 0 && w.slots.Candidate == r.To {
			w.slots.Candidate = 0
			w.retire(r.To)
		}
		return w.apply(rotation.Event{Kind: rotation.Dropped})
	case rotation.DoStop:
		return w.apply(rotation.Event{Kind: rotation.Stop, Why: a.Why})
	}
	return fmt.Errorf("unexpected act %q", a.Do)
}

func (w *world) swap(primary, fallback key.Number) {
	w.slots.Primary, w.slots.Fallback = primary, fallback
	w.state(primary, key.StatePrimary)
	w.state(fallback, key.StateFallback)
}

func (w *world) doRetire(n key.Number, a rotation.Action, ft fault) error {
	e := rotation.Event{At: w.now, Why: a.Why}
	k := w.vendor[n]
	switch a.Do {
	case rotation.DoProbe:
		w.probed(a.Version)
		return nil
	case rotation.DoDisabling:
		if w.rot != nil && w.rot.Back != "" && w.rot.From == n {
			return nil // the engine refuses it in the transaction
		}
		e.Kind = rotation.Disabling
	case rotation.DoDisable:
		k.disabled = true
		w.vendor[n] = k
		if ft.dies || ft.lost {
			return nil
		}
		e.Kind = rotation.Disabled
	case rotation.DoRevoking:
		if w.rot != nil && w.rot.Back != "" && w.rot.From == n {
			return nil
		}
		e.Kind = rotation.Revoking
	case rotation.DoRevoke:
		k.valid = false
		w.vendor[n] = k
		if ft.dies || ft.lost {
			return nil
		}
		e.Kind = rotation.Called
	case rotation.DoConfirm:
		e.Kind = rotation.Revoked
	case rotation.DoUnproven:
		e.Kind = rotation.Unproven
	default:
		return fmt.Errorf("unexpected act %q of a retirement", a.Do)
	}
	r, err := rotation.ApplyRetire(w.rets[n], e)
	if err != nil {
		return err
	}
	w.rets[n] = r
	w.state(n, r.State)
	delete(w.probes, n)
	return nil
}

// check reports a broken rule of the protocol.
func (w *world) check() error {
	for _, g := range w.gates {
		served := g.slots.Served()
		if !slices.ContainsFunc(served, func(n key.Number) bool { k := w.vendor[n]; return k.valid && !k.disabled }) {
			return fmt.Errorf("%s serves %v and none of them is valid: %+v", g.boot.Consumer, served, w.vendor)
		}
		for n := range g.holds {
			if s := w.versions[n].State; s == key.StateDisabling || s == key.StateRevoking || s == key.StateRevoked {
				return fmt.Errorf("%s is %s while %s holds it", n, s, g.boot.Consumer)
			}
		}
	}
	for n, k := range w.vendor {
		if _, ok := w.versions[n]; !ok && k.valid {
			return fmt.Errorf("the vendor has %s and the store does not know it", n)
		}
	}
	if s := w.versions[w.slots.Primary].State; s != key.StatePrimary {
		return fmt.Errorf("the primary %s is %s", w.slots.Primary, s)
	}
	return nil
}
