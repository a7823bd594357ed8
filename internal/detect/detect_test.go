package detect_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/detect"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

var (
	start = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	id    = key.CredentialID{Service: "billing-api", Environment: "prod"}
)

// bench is one credential (v2 primary, v3 fallback), one gateway, and a clock.
type bench struct {
	t     *testing.T
	now   time.Time
	facts detect.Facts
	state detect.State
	asks  []evidence.Ask
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, now: start}
	c := detect.Credential{Credential: key.Credential{ID: id, Slots: key.Slots{Primary: 2, Fallback: 3}}}
	for n, s := range map[key.Number]key.State{1: key.StateRevoked, 2: key.StatePrimary, 3: key.StateFallback} {
		c.Versions = append(c.Versions, key.Version{ID: version(n), State: s, Created: start.Add(-time.Hour), Since: start.Add(-time.Hour)})
	}
	b.facts = detect.Facts{Credentials: []detect.Credential{c}, Boots: []evidence.Boot{{Consumer: "gw", Kind: key.KindGateway, Boot: "b1"}}}
	b.use(0, 2, func(u *evidence.Use) { u.Live.OK, u.Live.Auth = 1000, 7 }) // history
	if got := b.step(); len(got) != 0 {
		t.Fatalf("what was counted before is news: %+v", got)
	}
	return b
}

func version(n key.Number) key.VersionID { return key.VersionID{Credential: id, Number: n} }

func (b *bench) credential() *detect.Credential { return &b.facts.Credentials[0] }

// use changes the counters of one process for one version.
func (b *bench) use(boot int, n key.Number, change func(*evidence.Use)) {
	bt := b.facts.Boots[boot]
	u := bt.Use(version(n))
	change(&u)
	b.facts.Boots[boot] = bt.Merge(evidence.Report{Consumer: bt.Consumer, Boot: bt.Boot, Seq: bt.Seq + 1, Elapsed: b.now.Sub(start), Uses: []evidence.Use{u}}, b.now)
}

func (b *bench) refused(n key.Number, times int64) {
	b.use(0, n, func(u *evidence.Use) { u.Live.Auth += times; u.LastAuth = "401 Unauthorized" })
}

func (b *bench) ok(n key.Number, times int64) {
	b.use(0, n, func(u *evidence.Use) { u.Live.OK += times })
}

// step lets a second pass, with a report of every process, then looks.
func (b *bench) step() []alert.Signal {
	b.now = b.now.Add(time.Second)
	for i := range b.facts.Boots {
		b.use(i, 99, func(*evidence.Use) {})
	}
	var out []alert.Signal
	// What is remembered survives a restart.
	j, err := json.Marshal(b.state)
	if err != nil {
		b.t.Fatal(err)
	}
	b.state = detect.State{}
	if err := json.Unmarshal(j, &b.state); err != nil {
		b.t.Fatal(err)
	}
	b.state, out, b.asks = detect.Step(b.state, b.facts, b.now)
	return out
}

func (b *bench) quiet(seconds int) {
	b.t.Helper()
	for range seconds {
		if got := b.step(); len(got) != 0 {
			b.t.Fatalf("at %s: %+v", b.now.Sub(start), got)
		}
	}
}

func (b *bench) one(kind string, s alert.Severity, cause ...string) alert.Signal {
	b.t.Helper()
	got := b.step()
	if len(got) != 1 {
		b.t.Fatalf("got %+v, want one %s", got, kind)
	}
	if got[0].Kind != kind || got[0].Severity != s {
		b.t.Errorf("got %s %s (%s), want %s %s", got[0].Severity, got[0].Kind, got[0].Cause, s, kind)
	}
	for _, c := range cause {
		if !strings.Contains(got[0].Cause, c) {
			b.t.Errorf("the cause is %q, without %q", got[0].Cause, c)
		}
	}
	return got[0]
}

// carry is one request that the primary was refused for and the fallback
// answered.
func (b *bench) carry() {
	b.use(0, 2, func(u *evidence.Use) { u.Live.Auth++; u.Worse++; u.LastAuth = "401 Unauthorized" })
	b.use(0, 3, func(u *evidence.Use) { u.Live.OK++; u.Better++; u.Fallbacks++ })
}

func TestFirstFailureIsASpike(t *testing.T) {
	b := newBench(t)
	b.ok(2, 50) // the same second saw it work
	b.carry()
	s := b.one(alert.Spike, alert.Critical)
	want := alert.Signal{
		Credential: id, Version: 2, Kind: "spike", Severity: alert.Critical, Error: "401 Unauthorized",
		Cause:    "the primary v2 is refused (401) and the fallback v3 carries on: it was probably revoked or has expired at the vendor",
		Fix:      "keybaton rotate billing-api --env prod",
		Evidence: "v2 refused once; v3 ok once, refused 0 times; since " + b.now.Format(time.RFC3339),
	}
	if s != want {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	if len(b.asks) != 0 {
		t.Errorf("nothing is in question, and %+v is asked", b.asks)
	}
	// Silence, however long, is not evidence that it is well.
	for range 1000 {
		b.one(alert.Spike, alert.Critical)
	}
	b.ok(2, 1)
	for i := range 5 {
		if i == 2 {
			b.carry()
			b.one(alert.Spike, alert.Critical)
			continue
		}
		b.one(alert.Spike, alert.Critical)
	}
	b.ok(2, 1)
	for range 60 {
		b.one(alert.Spike, alert.Critical)
	}
	b.quiet(3)
}

func TestSpikeEndsWithTheVersion(t *testing.T) {
	b := newBench(t)
	b.carry()
	b.one(alert.Spike, alert.Critical)
	c := b.credential()
	c.Slots = key.Slots{Primary: 3, Fallback: 2}
	b.refused(2, 5)
	b.ok(3, 5)
	b.quiet(2)
}

func TestExpiredIsSaid(t *testing.T) {
	b := newBench(t)
	for i := range b.credential().Versions {
		b.credential().Versions[i].Expires = start
	}
	b.carry()
	b.one(alert.Spike, alert.Critical, "it expired 2026-11-22T10:00:00Z")
}

func TestBothRefused(t *testing.T) {
	b := newBench(t)
	b.refused(2, 1)
	b.refused(3, 1)
	s := b.one(alert.Spike, alert.Critical, "the primary v2 is refused (401) and so is the fallback v3: no key of billing-api/prod works")
	if s.Fix != "keybaton rotate billing-api --env prod --emergency" {
		t.Errorf("the fix is %q", s.Fix)
	}
	b.ok(3, 1)
	b.one(alert.Spike, alert.Critical, "the fallback v3 carries on")
	for range 5 {
		b.refused(3, 1)
		b.step()
	}
	b.one(alert.Spike, alert.Critical, "and so is the fallback v3")
}

func TestNoFallback(t *testing.T) {
	b := newBench(t)
	b.credential().Slots.Fallback = 0
	b.refused(2, 1)
	b.one(alert.Spike, alert.Critical, "the primary v2 is refused (401) and there is no fallback")
}

// Where a probe can tell a bad key from a bad request, a lone refusal waits for
// it, but not for ever.
func TestAProbeDecides(t *testing.T) {
	probed := func(t *testing.T) *bench {
		b := newBench(t)
		b.credential().Slots.Fallback = 0
		b.credential().Call.Probe = &key.Probe{Path: "/me"}
		b.refused(2, 1)
		b.quiet(1)
		if want := []evidence.Ask{{Version: version(2), OK: 1001}}; !reflect.DeepEqual(b.asks, want) {
			t.Fatalf("asked for %+v, want %+v", b.asks, want)
		}
		return b
	}
	t.Run("ok", func(t *testing.T) {
		b := probed(t)
		b.use(0, 2, func(u *evidence.Use) { u.Probes.OK++ })
		b.quiet(100)
		if len(b.asks) != 0 {
			t.Errorf("still asks for %+v", b.asks)
		}
	})
	t.Run("refused", func(t *testing.T) {
		b := probed(t)
		b.use(0, 2, func(u *evidence.Use) { u.Probes.Auth++ })
		b.one(alert.Spike, alert.Critical, "there is no fallback")
		if len(b.asks) != 0 {
			t.Errorf("still asks for %+v", b.asks)
		}
	})
	t.Run("silent", func(t *testing.T) {
		b := probed(t)
		b.quiet(2)
		b.one(alert.Spike, alert.Critical, "there is no fallback")
	})
	t.Run("rotating", func(t *testing.T) { // the rotation's own asks are left alone
		b := newBench(t)
		b.credential().Slots.Fallback = 0
		b.credential().Call.Probe = &key.Probe{Path: "/me"}
		b.credential().Open = &rotation.Rotation{ID: "r"}
		b.refused(2, 1)
		b.one(alert.Spike, alert.Critical)
		if len(b.asks) != 0 {
			t.Errorf("asks for %+v", b.asks)
		}
	})
}

func TestUntriedFallback(t *testing.T) {
	b := newBench(t)
	b.credential().Call.Probe = &key.Probe{Path: "/me"}
	b.refused(2, 1)
	b.quiet(3)
	if len(b.asks) != 2 || b.asks[1] != (evidence.Ask{Version: version(3), OK: 1}) {
		t.Errorf("asks for %+v", b.asks)
	}
	b.one(alert.Spike, alert.Critical, "the fallback v3 was not tried")
	b.use(0, 3, func(u *evidence.Use) { u.Probes.OK++ })
	b.one(alert.Spike, alert.Critical, "the fallback v3 carries on")
}

func TestIntermittent(t *testing.T) {
	b := newBench(t)
	b.credential().Slots.Fallback = 0
	for range 2 {
		b.ok(2, 10)
		b.refused(2, 1)
		b.quiet(1)
	}
	b.ok(2, 10)
	b.refused(2, 1)
	b.one(alert.Intermittent, alert.Warning, "the primary v2 is refused (401) now and then")
	b.ok(2, 10)
	b.one(alert.Intermittent, alert.Warning)
	b.refused(2, 5) // in a row: dead
	b.one(alert.Spike, alert.Critical, "there is no fallback")
	b.ok(2, 1) // and does not fall back to a lesser kind while it lasts
	b.one(alert.Spike, alert.Critical)
}

func TestEarlyIsNotBad(t *testing.T) {
	b := newBench(t)
	c := b.credential()
	c.Call.Early = 10 * time.Second
	for i := range c.Versions {
		c.Versions[i].Created = start
	}
	for range 8 {
		b.carry()
		b.quiet(1)
	}
	b.quiet(3)
	b.carry()
	b.one(alert.Spike, alert.Critical)
}

// A version on its way out is refused, and that is how it should be.
func TestRetiringIsNotBad(t *testing.T) {
	b := newBench(t)
	for _, s := range []key.State{key.StateRetired, key.StateDisabled, key.StateRevoking, key.StateRevoked} {
		b.credential().Versions[0].State = s
		b.use(0, b.credential().Versions[0].ID.Number, func(u *evidence.Use) {
			if u.Version.Number == 2 || u.Version.Number == 3 {
				return
			}
			u.Live.Auth++
			u.Probes.Auth++
			u.Worse++
		})
		b.quiet(1)
	}
}

func TestUndead(t *testing.T) {
	b := newBench(t)
	b.use(0, 1, func(u *evidence.Use) { u.Live.Auth = 3 })
	b.quiet(2)
	b.use(0, 1, func(u *evidence.Use) { u.Probes.OK++ })
	s := b.one(alert.Undead, alert.Critical, "the vendor accepts v1, which was proven revoked")
	if s.Version != 1 {
		t.Errorf("about %s", s.Version)
	}
	b.use(0, 1, func(u *evidence.Use) { u.Probes.Auth++ })
	for range 59 {
		b.one(alert.Undead, alert.Critical)
	}
	b.quiet(2)
	b.use(0, 1, func(u *evidence.Use) { u.Live.OK++ })
	b.one(alert.Undead, alert.Critical)
	b.now = b.now.Add(24 * time.Hour)
	b.quiet(1)
}

func TestWork(t *testing.T) {
	b := newBench(t)
	c := b.credential()
	c.Open = &rotation.Rotation{ID: "r1", To: 4, State: rotation.Distribute, Gate: rotation.Gate{Reason: "waits for gw"}}
	b.quiet(1)
	tests := []struct {
		r    rotation.Rotation
		s    alert.Severity
		fix  string
		none bool
	}{
		{r: rotation.Rotation{State: rotation.Stopped}, s: alert.Critical, fix: "keybaton rotate resume billing-api --env prod"},
		{r: rotation.Rotation{State: rotation.WaitingKey, Gate: rotation.Gate{Person: true, Reason: "a person issues the key"}}, s: alert.Warning, fix: "keybaton set billing-api --env prod"},
		{r: rotation.Rotation{State: rotation.Quieting, Gate: rotation.Gate{Person: true, Reason: "unknown copies"}}, s: alert.Warning, fix: "keybaton rotate approve billing-api --env prod"},
		{r: rotation.Rotation{State: rotation.Quieting, Paused: true, Gate: rotation.Gate{Person: true}}, none: true},
	}
	for _, tt := range tests {
		c.Open = &tt.r
		if tt.none {
			b.quiet(1)
			continue
		}
		if s := b.one(alert.Rotation, tt.s, tt.r.Gate.Reason); s.Fix != tt.fix || s.Cause == "" {
			t.Errorf("%s: the fix is %q, the cause %q", tt.r.State, s.Fix, s.Cause)
		}
	}
	c.Open = nil
	c.Retirements = []rotation.Retirement{{Version: version(1), State: key.StateRetired, Gate: rotation.Gate{Reason: "waits for gw"}}}
	b.quiet(1)
	c.Retirements[0].Gate = rotation.Gate{Person: true, Reason: "it was read out"}
	b.one(alert.Retirement, alert.Warning, "it was read out")
	c.Retirements = nil
	c.Versions = append(c.Versions, key.Version{ID: version(4), State: key.StateUnproven, Since: b.now, VendorID: "K4"})
	if s := b.one(alert.RevokeUnproven, alert.Warning); !strings.Contains(s.Fix, "K4") {
		t.Errorf("the fix is %q", s.Fix)
	}
	b.now = b.now.Add(24 * time.Hour)
	b.quiet(1)
}

func TestTwoBoots(t *testing.T) {
	b := newBench(t)
	// A restart: the old process is heard a little while, then no more.
	b.facts.Boots = append(b.facts.Boots, evidence.Boot{Consumer: "gw", Kind: key.KindGateway, Boot: "b2"})
	b.quiet(4)
	old := b.facts.Boots[0]
	b.facts.Boots = b.facts.Boots[1:]
	b.quiet(30)
	// Two at once.
	b.facts.Boots = append(b.facts.Boots, old)
	b.quiet(5)
	s := b.one(alert.TwoBoots, alert.Warning, "the consumer gw")
	if s.Consumer != "gw" || !s.Credential.IsZero() {
		t.Errorf("got %+v", s)
	}
	// A reader has no processes, another consumer is another.
	b.facts.Boots[1].Consumer = "gw2"
	b.quiet(10)
}

// A fresh detector takes what was counted before as history, and the first
// refusal after that as news.
func TestLostState(t *testing.T) {
	b := newBench(t)
	b.carry()
	b.one(alert.Spike, alert.Critical)
	b.state = detect.State{}
	b.quiet(3)
	b.carry()
	b.one(alert.Spike, alert.Critical)
}

// A new process counts from zero, a process that is forgotten takes nothing
// back.
func TestBootsComeAndGo(t *testing.T) {
	b := newBench(t)
	b.facts.Boots = append(b.facts.Boots, evidence.Boot{Consumer: "gw2", Kind: key.KindGateway, Boot: "x"})
	b.use(1, 2, func(u *evidence.Use) { u.Live.OK = 500 })
	b.quiet(2)
	b.facts.Boots = b.facts.Boots[1:]
	b.quiet(2)
	b.carry()
	b.one(alert.Spike, alert.Critical)
}

// Whatever is counted that is no refusal of a living key says nothing; and a
// step without news changes nothing.
func TestNoRefusalNoSignal(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t)
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			n := key.Number(rapid.IntRange(2, 5).Draw(rt, "version"))
			b.use(0, n, func(u *evidence.Use) {
				u.Live.OK += rapid.Int64Range(0, 3).Draw(rt, "ok")
				u.Live.Other += rapid.Int64Range(0, 3).Draw(rt, "other")
				u.Live.Rate += rapid.Int64Range(0, 3).Draw(rt, "rate")
				u.Live.Perm += rapid.Int64Range(0, 3).Draw(rt, "perm")
				u.Probes.OK += rapid.Int64Range(0, 3).Draw(rt, "probes")
				u.Better += rapid.Int64Range(0, 3).Draw(rt, "better")
				if n > 3 { // in no slot
					u.Live.Auth += rapid.Int64Range(0, 3).Draw(rt, "auth")
					u.Worse += rapid.Int64Range(0, 3).Draw(rt, "worse")
				}
			})
			if got := b.step(); len(got) != 0 {
				rt.Fatalf("got %+v", got)
			}
		}
		first, s1, _ := detect.Step(b.state, b.facts, b.now)
		second, s2, _ := detect.Step(first, b.facts, b.now)
		if !reflect.DeepEqual(first, second) || !reflect.DeepEqual(s1, s2) {
			rt.Fatalf("a step without news changed something")
		}
	})
}

// A dead key is told within the grace, whatever the traffic looked like before,
// once it has been refused a few times in a row.
func TestADeadKeyIsAlwaysFound(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t)
		if rapid.Bool().Draw(rt, "alone") {
			b.credential().Slots.Fallback = 0
		}
		if rapid.Bool().Draw(rt, "probe") {
			b.credential().Call.Probe = &key.Probe{Path: "/me"}
		}
		for range rapid.IntRange(0, 20).Draw(rt, "before") {
			b.ok(2, rapid.Int64Range(0, 5).Draw(rt, "ok"))
			b.refused(2, rapid.Int64Range(0, 1).Draw(rt, "refused"))
			b.step()
		}
		var got []alert.Signal
		for range 6 {
			b.refused(2, rapid.Int64Range(1, 5).Draw(rt, "dead"))
			got = b.step()
		}
		if len(got) != 1 || got[0].Kind != alert.Spike {
			rt.Fatalf("got %+v of %s", got, fmt.Sprint(b.state.Incidents))
		}
	})
}
