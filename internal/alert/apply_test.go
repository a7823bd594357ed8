package alert_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/key"
)

var (
	start  = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	signal = alert.Signal{
		Credential: key.CredentialID{Service: "billing-api", Environment: "prod"}, Version: 2, Kind: alert.Spike, Severity: alert.Critical,
		Error: "401 Unauthorized", Cause: "refused", Fix: "keybaton rotate billing-api --env prod", Evidence: "once",
	}
	channels = []string{"terminal", "webhook"}
)

func ids(ds []alert.Delivery) []string {
	var out []string
	for _, d := range ds {
		out = append(out, fmt.Sprintf("%s %s %d", d.Channel, d.Alert.State, d.Alert.Change))
	}
	return out
}

func TestApply(t *testing.T) {
	open, ds := alert.Apply(nil, []alert.Signal{signal}, channels, start)
	if len(open) != 1 || !reflect.DeepEqual(ids(ds), []string{"terminal firing 1", "webhook firing 1"}) {
		t.Fatalf("fires as %+v, %q", open, ids(ds))
	}
	a := open[0]
	if a.Signal != signal || a.State != alert.Firing || !a.Started.Equal(start) || a.ID == "" {
		t.Errorf("fires as %+v", a)
	}
	if ds[0].ID == ds[1].ID || ds[0].Alert != a || !ds[0].Created.Equal(start) || !ds[0].Next.Equal(start) {
		t.Errorf("delivers %+v", ds)
	}

	// More of the same is no news.
	more := signal
	more.Evidence = "12 times"
	open, ds = alert.Apply(open, []alert.Signal{more, more}, channels, start.Add(time.Second))
	if len(open) != 1 || len(ds) != 0 || open[0].Signal.Evidence != "12 times" || !open[0].LastSeen.Equal(start.Add(time.Second)) || open[0].ID != a.ID {
		t.Errorf("goes on as %+v, %q", open, ids(ds))
	}

	// Another cause is.
	worse := signal
	worse.Cause = "both refused"
	open, ds = alert.Apply(open, []alert.Signal{worse}, channels[:1], start.Add(2*time.Second))
	if !reflect.DeepEqual(ids(ds), []string{"terminal firing 2"}) || open[0].ID != a.ID || !open[0].Started.Equal(start) {
		t.Errorf("changes as %+v, %q", open, ids(ds))
	}

	all, ds := alert.Apply(open, nil, channels, start.Add(3*time.Second))
	if len(all) != 1 || all[0].State != alert.Resolved || !all[0].Ended.Equal(start.Add(3*time.Second)) || !reflect.DeepEqual(ids(ds), []string{"terminal resolved 3", "webhook resolved 3"}) {
		t.Errorf("resolves as %+v, %q", all, ids(ds))
	}
	if open[0].State != alert.Firing {
		t.Error("what was passed in was changed")
	}

	// Firing anew is another alert about the same.
	again, _ := alert.Apply(nil, []alert.Signal{signal}, channels, start.Add(4*time.Second))
	if again[0].ID == a.ID || alert.Message(again[0]).DedupKey != alert.Message(a).DedupKey {
		t.Errorf("fires anew as %+v", again)
	}
}

func TestDedup(t *testing.T) {
	ss := []alert.Signal{
		{}, {Kind: "a"}, {Consumer: "a"},
		{Credential: key.CredentialID{Service: "a"}}, {Credential: key.CredentialID{Environment: "a"}},
		{Credential: key.CredentialID{Service: "a", Environment: "b"}}, {Credential: key.CredentialID{Service: "ab"}},
	}
	seen := map[string]int{}
	for i, s := range ss {
		if j, ok := seen[s.Dedup()]; ok {
			t.Errorf("signals %d and %d are the same", i, j)
		}
		seen[s.Dedup()] = i
	}
	v := signal
	v.Version, v.Severity, v.Cause = 9, alert.Info, "other"
	if v.Dedup() != signal.Dedup() {
		t.Error("the same trouble with another version or cause is another alert")
	}
}

// After every step there is one firing alert per signal, each channel has heard
// of each transition once and in order, and nothing resolves twice.
func TestApplyKeepsCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var open []alert.Alert
		seen := map[string]bool{}
		last := map[string]int{} // alert and channel to change
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			now := start.Add(time.Duration(i) * time.Second)
			var signals []alert.Signal
			for _, k := range rapid.SliceOf(rapid.SampledFrom([]string{"a", "b", "c"})).Draw(t, "signals") {
				s := signal
				s.Kind, s.Cause = k, rapid.SampledFrom([]string{"x", "y"}).Draw(t, "cause")
				signals = append(signals, s)
			}
			all, ds := alert.Apply(open, signals, channels, now)
			for _, d := range ds {
				if seen[d.ID] {
					t.Fatalf("the id %s comes twice", d.ID)
				}
				seen[d.ID] = true
				k := d.Alert.ID + d.Channel
				if d.Alert.Change != last[k]+1 {
					t.Fatalf("%s goes from change %d to %d", k, last[k], d.Alert.Change)
				}
				last[k] = d.Alert.Change
			}
			if !slices.IsSortedFunc(ds, func(a, b alert.Delivery) int {
				if a.Alert.ID != b.Alert.ID {
					return 0
				}
				return a.Alert.Change - b.Alert.Change
			}) {
				t.Fatal("the deliveries of an alert are not in order")
			}
			firing := map[string]int{}
			open = nil
			for _, a := range all {
				if a.State == alert.Firing {
					firing[a.Signal.Kind]++
					open = append(open, a)
				} else if a.Ended != now {
					t.Fatalf("it resolved at %s, and is told at %s", a.Ended, now)
				}
			}
			for _, k := range []string{"a", "b", "c"} {
				want := 0
				if slices.ContainsFunc(signals, func(s alert.Signal) bool { return s.Kind == k }) {
					want = 1
				}
				if firing[k] != want {
					t.Fatalf("%d alerts fire for %s, want %d", firing[k], k, want)
				}
			}
		}
	})
}

// The names of these fields are on the wire.
func TestMessage(t *testing.T) {
	a := alert.Alert{ID: "al_1", Signal: signal, State: alert.Firing, Started: start, LastSeen: start.Add(time.Second), Change: 2}
	b, err := json.Marshal(alert.Message(a))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"service":"billing-api","error":"401 Unauthorized","timestamp":"2026-11-22T10:00:01Z","environment":"prod",` +
		`"id":"al_1","dedup_key":"` + signal.Dedup() + `","state":"firing","change":2,"severity":"critical","kind":"spike","version":2,` +
		`"cause":"refused","fix":"keybaton rotate billing-api --env prod","evidence":"once","started":"2026-11-22T10:00:00Z"}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	a.State, a.Ended = alert.Resolved, start.Add(time.Minute)
	if m := alert.Message(a); !m.Timestamp.Equal(a.Ended) || !m.Ended.Equal(a.Ended) || m.State != alert.Resolved {
		t.Errorf("resolved, it is %+v", m)
	}
}
