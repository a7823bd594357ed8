package rotation_test

import (
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

var update = flag.Bool("update", false, "rewrite the generated docs")

func abilities() rotation.Abilities {
	return rotation.Abilities{Issue: true, Revoke: true, List: true, Disable: true, Probe: true, Early: 2 * time.Second, Late: time.Second, Spacing: time.Second, DeadOK: 2}
}

// run lets the world go on, with no faults, until nothing is left to do.
func (w *world) run(t interface{ Fatalf(string, ...any) }, limit int) {
	for range limit {
		for i := range 200 {
			acted, err := w.step(fault{})
			if err != nil {
				t.Fatalf("step: %v\n%s", err, strings.Join(w.trace, "\n"))
			}
			if err := w.check(); err != nil {
				t.Fatalf("%v\n%s", err, strings.Join(w.trace, "\n"))
			}
			if !acted {
				break
			}
			if i == 199 {
				t.Fatalf("acts without end:\n%s", strings.Join(w.trace[len(w.trace)-20:], "\n"))
			}
		}
		w.tick(time.Second)
		open := slices.ContainsFunc(slices.Collect(valuesOf(w.rets)), func(r rotation.Retirement) bool { return r.Ended.IsZero() })
		if w.rot == nil && !open {
			return
		}
	}
}

func valuesOf(m map[key.Number]rotation.Retirement) func(func(rotation.Retirement) bool) {
	return func(yield func(rotation.Retirement) bool) {
		for _, r := range m {
			if !yield(r) {
				return
			}
		}
	}
}

// tick lets time pass: gateways serve, probe, follow and report.
func (w *world) tick(d time.Duration) {
	w.now = w.now.Add(d)
	for _, g := range w.gates {
		g.elapsed += d
		w.deliver(g)
		w.request(g)
		w.probe(g)
		g.report(w)
	}
}

func (w *world) begin(k rotation.Kind) {
	r := rotation.New("r", key.Credential{ID: cred, Slots: w.slots}, k, "test", "", w.now)
	w.rot = &r
}

func TestARotationGoesThroughFiveSteps(t *testing.T) {
	w := newWorld(abilities(), 2)
	w.begin(rotation.Manual)
	w.run(t, 100)
	if len(w.done) != 1 || w.done[0].State != rotation.Done {
		t.Fatalf("got %+v, want one rotation done\n%s", w.done, strings.Join(w.trace, "\n"))
	}
	r := w.done[0]
	var steps []rotation.Step
	for _, s := range r.Steps {
		steps = append(steps, s.Step)
		if s.Ended.IsZero() {
			t.Errorf("step %s has no end", s.Step)
		}
	}
	if !slices.Equal(steps, rotation.Steps()) {
		t.Errorf("steps: got %v, want %v", steps, rotation.Steps())
	}
	if r.Proof != "revoked_proven" || w.slots.Primary != 2 || w.slots.Fallback != 0 || w.vendor[1].valid {
		t.Errorf("got proof %q, slots %+v, vendor %+v", r.Proof, w.slots, w.vendor)
	}
}

func TestACutOffGatewayIsWaitedForAndNamed(t *testing.T) {
	w := newWorld(abilities(), 2)
	w.gates[1].cut = true
	w.begin(rotation.Manual)
	w.run(t, 600)
	if w.rot == nil || w.rot.State != rotation.Distribute {
		t.Fatalf("got %+v, want it to wait in distribute", w.rot)
	}
	_, g := rotation.Next(*w.rot, w.facts(), w.now)
	if g.Open || len(g.Missing) != 1 || !strings.HasPrefix(g.Missing[0], "gw-1 ") {
		t.Errorf("got gate %+v, want it closed for gw-1", g)
	}
	w.gates[1].cut = false
	w.run(t, 100)
	if len(w.done) != 1 || w.done[0].State != rotation.Done {
		t.Errorf("got %+v, want it done once gw-1 is back", w.rot)
	}
}

func TestANewKeyThatStaysRefusedRollsBack(t *testing.T) {
	w := newWorld(abilities(), 1)
	w.begin(rotation.Manual)
	for w.rot != nil && w.rot.State != rotation.Proving {
		if _, err := w.step(fault{}); err != nil {
			t.Fatal(err)
		}
	}
	w.vendor[2] = vendorKey{}
	w.run(t, 60)
	if len(w.done) != 1 || w.done[0].State != rotation.RolledBack {
		t.Fatalf("got %+v, want it rolled back\n%s", w.rot, strings.Join(w.trace, "\n"))
	}
	if w.slots.Primary != 1 || !w.vendor[1].valid {
		t.Errorf("got slots %+v, want v1 to stay the primary", w.slots)
	}
}

func TestNothingIsRolledBackToADeadKey(t *testing.T) {
	w := newWorld(abilities(), 1)
	w.begin(rotation.Manual)
	for range 100 {
		if acted, err := w.step(fault{}); err != nil {
			t.Fatal(err)
		} else if !acted {
			w.tick(time.Second)
		}
		if w.rot.State == rotation.Soaking {
			break
		}
	}
	w.vendor[1] = vendorKey{}
	if err := w.apply(rotation.Event{Kind: rotation.Back, Why: "asked"}); err != nil {
		t.Fatal(err)
	}
	w.run(t, 5)
	if w.rot == nil || w.rot.State != rotation.Stopped || w.slots.Primary != 2 {
		t.Errorf("got %+v with slots %+v, want it stopped with v2 in place", w.rot, w.slots)
	}
}

// Somebody else ends the new primary while its gateways are idle: nobody sees
// it refused, the old key counts as unused, and is all that works.
func TestAFallbackIsNotEmptiedBesideADeadPrimary(t *testing.T) {
	for _, r := range []rotation.Rotation{
		{State: rotation.Quieting, Kind: rotation.Manual, From: 1, To: 2},
		{State: rotation.Quieting, Kind: rotation.Emergency, From: 1, To: 2},
		{State: rotation.Undoing, Kind: rotation.Manual, From: 2, To: 1, Back: "asked"},
	} {
		w := newWorld(abilities(), 0)
		w.slots = key.Slots{Primary: 2, Fallback: 1}
		r.Credential, r.Machine = cred, rotation.Machine
		if a, _ := rotation.Next(r, w.facts(), w.now); a.Do != rotation.DoProbe || a.Version != 2 {
			t.Errorf("%s, not probed: got %s %s, want the primary to be probed", r.State, a.Do, a.Version)
		}
		w.vendor[1], w.vendor[2] = vendorKey{valid: true}, vendorKey{}
		w.probed(2)
		if a, g := rotation.Next(r, w.facts(), w.now); a.Do != rotation.Wait || !strings.Contains(g.Reason, "survivor v2") || g.Again.IsZero() {
			t.Errorf("%s, dead: got %s and gate %+v, want it to wait", r.State, a.Do, g)
		}
		w.vendor[2] = vendorKey{valid: true}
		w.probed(2)
		if a, _ := rotation.Next(r, w.facts(), w.now); a.Do != rotation.DoEmpty || a.Version != 1 {
			t.Errorf("%s, alive: got %s %s, want v1 to leave its slot", r.State, a.Do, a.Version)
		}
	}
}

// One server saw a key refused, another one revoked it.
func TestProbesFromBeforeARevocationProveNothing(t *testing.T) {
	w := newWorld(abilities(), 0)
	w.versions[2] = key.Version{ID: vid(2), State: key.StateRevoking, VendorID: "2", Fingerprint: "2"}
	w.probed(2)
	w.now = w.now.Add(time.Minute)
	r := rotation.Retirement{Version: vid(2), State: key.StateRevoking, Entered: w.now, Called: w.now}
	w.now = w.now.Add(time.Minute)
	for i := range w.can.DeadOK {
		a, _ := rotation.NextRetire(r, w.facts(), w.now)
		if a.Do != rotation.DoProbe {
			t.Fatalf("after %d probes: got %s, want another", i, a.Do)
		}
		if anew := r.Anew(w.probes[2]); anew != (i == 0) {
			t.Errorf("after %d probes: a new run %v", i, anew)
		} else if anew {
			delete(w.probes, 2)
		}
		w.probed(2)
		w.now = w.now.Add(w.can.Spacing)
	}
	if a, _ := rotation.NextRetire(r, w.facts(), w.now); a.Do != rotation.DoConfirm {
		t.Errorf("got %s, want the end to be confirmed", a.Do)
	}
}

func TestEventsThatCannotFollowAreRefused(t *testing.T) {
	w := newWorld(abilities(), 0)
	w.begin(rotation.Manual)
	for _, k := range []rotation.EventKind{rotation.Promoted, rotation.Emptied, rotation.Finished, rotation.Issued} {
		if _, err := rotation.Apply(*w.rot, rotation.Event{Kind: k, At: w.now}); !errors.Is(err, key.ErrConflict) {
			t.Errorf("%s after planned: got %v, want a conflict", k, err)
		}
	}
	for _, s := range []key.State{key.StateRevoking, key.StateRevoked, key.StateUnproven} {
		if _, err := rotation.ApplyRetire(rotation.Retirement{Version: vid(1), State: s}, rotation.Event{Kind: rotation.Enabled}); !errors.Is(err, key.ErrConflict) {
			t.Errorf("enabled after %s: got %v, want a conflict: there is no way back", s, err)
		}
	}
}

// TestRandomHistories drives the rules through random histories of crashes,
// lost answers, cut-off gateways, rollbacks and delays, and checks the rules of
// the protocol after every effect; at the end, with the faults gone, every
// rotation ends and the vendor has no key that is not in a slot.
func TestRandomHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		can := abilities()
		can.Disable = rapid.Bool().Draw(t, "disable")
		if rapid.Bool().Draw(t, "limited") {
			can.Max = 2
		}
		w := newWorld(can, rapid.IntRange(0, 3).Draw(t, "gateways"))
		for range rapid.IntRange(20, 150).Draw(t, "length") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1, 2, 3:
				ft := fault{lost: rapid.IntRange(0, 5).Draw(t, "lost") == 0, refused: rapid.IntRange(0, 9).Draw(t, "refused") == 0, dies: rapid.IntRange(0, 9).Draw(t, "dies") == 0}
				if ft.dies {
					clear(w.probes)
				}
				if _, err := w.step(ft); err != nil {
					t.Fatalf("step: %v\n%s", err, strings.Join(w.trace, "\n"))
				}
			case 4, 5:
				w.tick(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			case 6:
				if w.rot == nil {
					w.begin(rotation.Manual)
				}
			case 7:
				if w.rot != nil && w.rot.From != 0 {
					if s := w.versions[w.rot.From].State; s != key.StateRevoking && !s.Terminal() {
						_ = w.apply(rotation.Event{Kind: rotation.Back, Why: "asked"})
					}
				}
			case 8:
				if len(w.gates) > 0 {
					g := w.gates[rapid.IntRange(0, len(w.gates)-1).Draw(t, "gateway")]
					g.cut = !g.cut
				}
			case 9:
				clear(w.probes)
				w.intent = 0
			}
			if err := w.check(); err != nil {
				t.Fatalf("%v\n%s", err, strings.Join(w.trace, "\n"))
			}
		}
		for _, g := range w.gates {
			g.cut = false
		}
		w.run(t, 400)
		if w.rot != nil {
			_, g := rotation.Next(*w.rot, w.facts(), w.now)
			t.Fatalf("still %s: %+v\n%s", w.rot.State, g, strings.Join(w.trace, "\n"))
		}
		for n, k := range w.vendor {
			if k.valid && !w.slots.Has(n) && w.versions[n].State != key.StateUnknown && w.versions[n].State != key.StateIntent {
				t.Fatalf("%s (%s) is left at the vendor\n%s", n, w.versions[n].State, strings.Join(w.trace, "\n"))
			}
		}
	})
}

func TestTheDiagramIsThatOfTheTable(t *testing.T) {
	const path = "../../docs/rotation.md"
	want := "# The life of a rotation\n\nGenerated from the transition table of `internal/rotation`; `go test ./internal/rotation -update` writes it anew.\n\n```mermaid\n" + rotation.Diagram() + "```\n"
	if *update {
		if err := os.MkdirAll("../../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s is not that of the table; run go test ./internal/rotation -update (%v)", path, err)
	}
}

func TestSchedule(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse("2006-01-02 15:04 -0700", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	rotated := at("2026-03-27 12:00 +0000") // a Friday, two days before clocks change in Berlin
	for _, c := range []struct {
		name string
		p    rotation.Policy
		want string
	}{
		{"never", rotation.Policy{}, ""},
		{"by age", rotation.Policy{Every: 48 * time.Hour, Jitter: 1}, "2026-03-29 12:00 +0000"},
		{"cron in a zone", rotation.Policy{Cron: "0 3 * * 1", Zone: "Europe/Berlin", Jitter: 1}, "2026-03-30 03:00 +0200"},
		{"moved into the window", rotation.Policy{Every: 48 * time.Hour, Jitter: 1, Window: "Mon-Fri 09:00-17:00", Zone: "Europe/Berlin"}, "2026-03-30 09:00 +0200"},
		{"inside the window", rotation.Policy{Every: 72 * time.Hour, Jitter: 1, Window: "Mon-Fri 09:00-17:00", Zone: "Europe/Berlin"}, "2026-03-30 14:00 +0200"},
		{"whole days", rotation.Policy{Every: 24 * time.Hour, Jitter: 1, Window: "Sun"}, "2026-03-29 00:00 +0000"},
	} {
		if err := c.p.Validate(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got := c.p.Due(cred, rotated)
		if c.want == "" && !got.IsZero() || c.want != "" && !got.Equal(at(c.want)) {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
	spread := rotation.Policy{Every: 30 * 24 * time.Hour}
	a, b := spread.Due(cred, rotated), spread.Due(key.CredentialID{Service: "crm", Environment: "prod"}, rotated)
	if a.Equal(b) || a.Sub(rotated.Add(spread.Every)) > time.Hour || !a.Equal(spread.Due(cred, rotated)) {
		t.Errorf("jitter: got %s and %s, want two times within an hour, always the same", a, b)
	}
	for _, w := range []string{"Mon", "Mon-", "9-17", "17:00-09:00", "Mon 09:00", "Someday 09:00-10:00"} {
		err := rotation.Policy{Window: w}.Validate()
		if bad := w != "Mon"; bad != errors.Is(err, key.ErrInvalid) {
			t.Errorf("window %q: got %v", w, err)
		}
	}
}
