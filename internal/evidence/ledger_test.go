package evidence_test

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

var (
	cred = key.CredentialID{Service: "billing-api", Environment: "prod"}
	day  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func vid(n key.Number) key.VersionID { return key.VersionID{Credential: cred, Number: n} }

func rev(n int64) key.Revision { return key.Revision{Epoch: 1, Number: n} }

// sender is a consumer as it really is: what it used and when.
type sender struct {
	elapsed time.Duration
	seq     int64
	uses    map[key.Number]*evidence.Use
	when    map[key.Number][]time.Duration
}

func (s *sender) use(n key.Number, o evidence.Outcome) {
	if s.uses[n] == nil {
		s.uses[n] = &evidence.Use{Version: vid(n)}
	}
	s.uses[n].Live.Add(o)
	s.uses[n].LastUse = s.elapsed
	s.when[n] = append(s.when[n], s.elapsed)
}

func (s *sender) report() evidence.Report {
	s.seq++
	r := evidence.Report{Consumer: "gw", Boot: "b", Seq: s.seq, Elapsed: s.elapsed}
	for _, n := range []key.Number{1, 2} {
		if u := s.uses[n]; u != nil {
			r.Uses = append(r.Uses, *u)
		}
	}
	return r
}

// TestReportsOverABadLine sends reports over a line that loses, repeats and
// reorders them. What is known is never more than what happened: counts do not
// exceed the truth, a repeated report changes nothing, and a version is never
// thought to be unused for longer than it really was.
func TestReportsOverABadLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &sender{uses: map[key.Number]*evidence.Use{}, when: map[key.Number][]time.Duration{}}
		var l evidence.Ledger
		var flight []evidence.Report
		began := time.Duration(0)
		for range rapid.IntRange(5, 80).Draw(t, "length") {
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0, 1:
				s.elapsed += time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond
			case 2:
				s.use(key.Number(rapid.IntRange(1, 2).Draw(t, "version")), rapid.SampledFrom([]evidence.Outcome{evidence.OK, evidence.Auth, evidence.Other}).Draw(t, "outcome"))
			case 3:
				flight = append(flight, s.report())
			case 4: // arrives, perhaps out of order
				if len(flight) > 0 {
					i := rapid.IntRange(0, len(flight)-1).Draw(t, "which")
					r := flight[i]
					if rapid.Bool().Draw(t, "once") {
						flight = slices.Delete(slices.Clone(flight), i, i+1)
					}
					l = l.Merge(r, day)
					if again := l.Merge(r, day.Add(time.Hour)); !reflect.DeepEqual(l, again) {
						t.Fatalf("merging report %d again changed %+v to %+v", r.Seq, l, again)
					}
				}
			case 5: // lost
				if len(flight) > 0 {
					flight = flight[1:]
				}
			case 6:
				b, _ := l.Boot("gw", "b")
				b.Consumer, b.Boot = "gw", "b"
				b = b.Acknowledge(evidence.Ack{Consumer: "gw", Boot: "b", Revision: rev(int64(rapid.IntRange(1, 5).Draw(t, "revision"))), Elapsed: s.elapsed}, day)
				l.Boots = []evidence.Boot{b}
			}
			b, ok := l.Boot("gw", "b")
			if !ok {
				continue
			}
			for n, u := range s.uses {
				if got := b.Use(vid(n)).Live; got.Attempts() > u.Live.Attempts() || got.OK > u.Live.OK || got.Auth > u.Live.Auth {
					t.Fatalf("%s: the ledger has %+v, the truth is %+v", n, got, u.Live)
				}
			}
			for _, n := range []key.Number{1, 2} {
				for r := int64(1); r <= 5; r++ {
					q := b.Quiet(vid(n), rev(r), began)
					for _, at := range s.when[n] {
						if at > b.Elapsed-q && at < b.Elapsed {
							t.Fatalf("%s is thought to be unused from %s to %s, and was used at %s", n, b.Elapsed-q, b.Elapsed, at)
						}
					}
					if q > 0 && !b.Acked.Reached(rev(r)) {
						t.Fatalf("quiet at revision %d, which was not acknowledged (%s)", r, b.Acked)
					}
				}
			}
		}
	})
}

func TestAMissingReportBeginsQuietAgain(t *testing.T) {
	b := evidence.Boot{Consumer: "gw", Boot: "b"}
	b = b.Acknowledge(evidence.Ack{Revision: rev(1)}, day)
	for i := range 10 {
		b = b.Merge(evidence.Report{Seq: int64(i + 1), Elapsed: time.Duration(i+1) * time.Second}, day)
	}
	if q := b.Quiet(vid(1), rev(1), 0); q != 10*time.Second {
		t.Errorf("ten reports in a row: quiet is %s, want 10s", q)
	}
	gap := b.Merge(evidence.Report{Seq: 12, Elapsed: 12 * time.Second}, day)
	if q := gap.Quiet(vid(1), rev(1), 0); q != 0 {
		t.Errorf("after a missing report: quiet is %s, want 0", q)
	}
	if q := b.Quiet(vid(1), rev(1), 7*time.Second); q != 3*time.Second {
		t.Errorf("a watch that began at 7s: quiet is %s, want 3s", q)
	}
}

// TestHolds: a hold ends by an acknowledgement that covers it, omits the
// version and pins it no more, or by the end of the holder's own term, and by
// nothing else.
func TestHolds(t *testing.T) {
	h := evidence.Hold{Consumer: "gw", Kind: key.KindGateway, Boot: "b", Version: vid(1), Revision: rev(5)}
	none := func(key.VersionID) bool { return false }
	for _, c := range []struct {
		name   string
		ack    evidence.Ack
		served func(key.VersionID) bool
		want   bool
	}{
		{"covered and omitted", evidence.Ack{Consumer: "gw", Boot: "b", Revision: rev(6)}, none, true},
		{"older than the hand-out", evidence.Ack{Consumer: "gw", Boot: "b", Revision: rev(4)}, none, false},
		{"still served", evidence.Ack{Consumer: "gw", Boot: "b", Revision: rev(6)}, func(v key.VersionID) bool { return v == vid(1) }, false},
		{"still pinned", evidence.Ack{Consumer: "gw", Boot: "b", Revision: rev(6), Pinned: []key.VersionID{vid(1)}}, none, false},
		{"another consumer", evidence.Ack{Consumer: "other", Boot: "b", Revision: rev(6)}, none, false},
		{"another process", evidence.Ack{Consumer: "gw", Boot: "c", Revision: rev(6)}, none, false},
		{"the process that took over its cache", evidence.Ack{Consumer: "gw", Boot: "c", Replaces: "b", Revision: rev(6)}, none, true},
		{"of an older epoch", evidence.Ack{Consumer: "gw", Boot: "b", Revision: key.Revision{Epoch: 0, Number: 99}}, none, false},
		{"of a newer epoch", evidence.Ack{Consumer: "gw", Boot: "b", Revision: key.Revision{Epoch: 2, Number: 1}}, none, true},
	} {
		if got := h.Released(c.ack, c.served); got != c.want {
			t.Errorf("%s: released is %v, want %v", c.name, got, c.want)
		}
	}
}

func TestSilenceIsNotEvidence(t *testing.T) {
	l := evidence.Ledger{
		Boots: []evidence.Boot{{Consumer: "gw", Kind: key.KindGateway, Boot: "b", Seen: day, Acked: rev(9)}},
		Holds: []evidence.Hold{
			{Consumer: "gw", Kind: key.KindGateway, Boot: "b", Version: vid(1), Revision: rev(1)},
			{Consumer: "cron", Kind: key.KindReader, Version: vid(1), Since: day, Until: day.Add(time.Hour)},
			{Consumer: "script", Kind: key.KindReader, Version: vid(1), Since: day, Unbound: true},
		},
	}
	place := func(now time.Time) map[string]evidence.Place {
		m := map[string]evidence.Place{}
		for _, s := range l.Standings(vid(1), rev(5), now) {
			m[s.Consumer] = s.Place
		}
		return m
	}
	want := map[string]evidence.Place{"gw": evidence.Holds, "cron": evidence.Holds, "script": evidence.Holds}
	if got := place(day.Add(time.Second)); !reflect.DeepEqual(got, want) {
		t.Errorf("at once: got %v, want %v", got, want)
	}
	want = map[string]evidence.Place{"gw": evidence.Silent, "cron": evidence.Moved, "script": evidence.Holds}
	if got := place(day.Add(1000 * time.Hour)); !reflect.DeepEqual(got, want) {
		t.Errorf("weeks later: got %v, want %v; only a term that the holder enforces itself ends a hold", got, want)
	}
	if got := l.Standings(vid(2), rev(5), day); len(got) != 0 {
		t.Errorf("a version that nobody holds: got %v", got)
	}
}

// A restore begins an epoch while a rotation is open. What it waits for was
// changed before; who acknowledges the new epoch has that too.
func TestAcknowledgementsAcrossARestore(t *testing.T) {
	v, before, after := vid(1), rev(5), key.Revision{Epoch: 2, Number: 6}
	l := evidence.Ledger{Holds: []evidence.Hold{{Consumer: "gw", Kind: key.KindGateway, Boot: "b", Version: v, Revision: rev(1)}}}
	for _, c := range []struct {
		acked, at key.Revision
		want      evidence.Place
	}{
		{rev(4), before, evidence.Holds},
		{rev(5), before, evidence.Moved},
		{after, before, evidence.Moved},
		{rev(9), after, evidence.Holds},
		{after, after, evidence.Moved},
	} {
		l.Boots = []evidence.Boot{{Consumer: "gw", Kind: key.KindGateway, Boot: "b", Acked: c.acked, Seen: day, Elapsed: time.Hour}}
		if got := l.Followers([]key.VersionID{v}, c.at, day); len(got) != 1 || got[0].Place != c.want {
			t.Errorf("acknowledged %s, asked of %s: got %+v, want %s", c.acked, c.at, got, c.want)
		}
		if quiet := l.Boots[0].Quiet(v, c.at, 0) > 0; quiet != (c.want == evidence.Moved) {
			t.Errorf("acknowledged %s, asked of %s: quiet %v", c.acked, c.at, quiet)
		}
	}
}
