package audit_test

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
)

// The hash of these entries is on disks: it must never change.
func TestChainIsFrozen(t *testing.T) {
	first := audit.Chain(audit.Head{}, audit.Entry{
		At:         time.Date(2026, 3, 4, 5, 6, 7, 891_999_999, time.FixedZone("", 3600)),
		Actor:      "alice",
		Action:     "rotation.promoted",
		Credential: key.CredentialID{Service: "billing-api", Environment: "prod"},
		Version:    3,
		Rotation:   "r1",
		Detail:     map[string]string{"from": "v2", "gate": "2 of 2 – acknowledged"},
	})
	if want := "a2343dcac6df453e372c36ad881aa06001e6f594397b60dc04fe573902c4b692"; first.Hash != want {
		t.Errorf("the hash of the first entry is %s, not %s", first.Hash, want)
	}
	second := audit.Chain(first.Head(), audit.Entry{At: time.UnixMilli(1_800_000_000_000), Actor: "keybaton", Action: "noop"})
	if want := "086a9fe1e2fb098eacf7e4d78e653e02c51cd46ee2844aeec2c915bb123cd4ba"; second.Hash != want {
		t.Errorf("the hash of the second entry is %s, not %s", second.Hash, want)
	}
	if got := first.At; !got.Equal(time.Date(2026, 3, 4, 4, 6, 7, 891_000_000, time.UTC)) || got.Location() != time.UTC {
		t.Errorf("the time was not brought to whole milliseconds UTC: %v", got)
	}
	if first.Seq != 1 || first.Prev != "" || second.Seq != 2 || second.Prev != first.Hash {
		t.Errorf("not chained: %+v, %+v", first, second)
	}
}

func TestChainCopiesAndCleans(t *testing.T) {
	in := map[string]string{"bad": "a\xffb\x00"}
	e := audit.Chain(audit.Head{}, audit.Entry{Actor: "\xff", Action: "x", Detail: in})
	in["bad"] = "changed"
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back audit.Entry
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if err := audit.Verify([]audit.Entry{back}, nil); err != nil {
		t.Errorf("what was read back from JSON is %v", err)
	}
	if audit.Hash(audit.Entry{Detail: map[string]string{}}) != audit.Hash(audit.Entry{}) {
		t.Error("an empty detail and none hash differently")
	}
}

// Fields must not run into each other.
func TestHashSeparatesFields(t *testing.T) {
	es := []audit.Entry{
		{Actor: "ab"}, {Actor: "a", Action: "b"}, {Action: "ab"},
		{Credential: key.CredentialID{Service: "ab"}}, {Credential: key.CredentialID{Environment: "ab"}},
		{Credential: key.CredentialID{Service: "a", Environment: "b"}}, {Rotation: "ab"}, {Prev: "ab"},
		{Detail: map[string]string{"ab": ""}}, {Detail: map[string]string{"a": "b"}}, {Detail: map[string]string{"": "ab"}},
		{Detail: map[string]string{"a": "", "b": ""}}, {Seq: 1}, {Version: 1}, {At: time.UnixMilli(1)},
	}
	seen := map[string]int{}
	for i, e := range es {
		if j, ok := seen[audit.Hash(e)]; ok {
			t.Errorf("entries %d and %d hash the same", i, j)
		}
		seen[audit.Hash(e)] = i
	}
}

func chain(t *rapid.T) []audit.Entry {
	text := rapid.StringMatching(`[a-z.0-9]{0,6}`)
	n := rapid.IntRange(2, 12).Draw(t, "n")
	var head audit.Head
	var out []audit.Entry
	for range n {
		e := audit.Chain(head, audit.Entry{
			At:         time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "at")),
			Actor:      text.Draw(t, "actor"),
			Action:     text.Draw(t, "action"),
			Credential: key.CredentialID{Service: text.Draw(t, "service"), Environment: text.Draw(t, "env")},
			Version:    key.Number(rapid.Int64Range(0, 9).Draw(t, "version")),
			Rotation:   text.Draw(t, "rotation"),
			Detail:     rapid.MapOfN(text, text, 0, 3).Draw(t, "detail"),
		})
		out, head = append(out, e), e.Head()
	}
	return out
}

// edit returns e with one field changed and everything else left alone.
func edit(t *rapid.T, e audit.Entry) audit.Entry {
	more := func(s string) string { return s + "x" }
	switch rapid.IntRange(0, 9).Draw(t, "field") {
	case 0:
		e.At = e.At.Add(time.Duration(rapid.IntRange(1, 1e6).Draw(t, "by")) * time.Millisecond)
	case 1:
		e.Actor = more(e.Actor)
	case 2:
		e.Action = more(e.Action)
	case 3:
		e.Credential.Service = more(e.Credential.Service)
	case 4:
		e.Credential.Environment = more(e.Credential.Environment)
	case 5:
		e.Version++
	case 6:
		e.Rotation = more(e.Rotation)
	case 7:
		e.Prev = more(e.Prev)
	case 8:
		e.Hash = more(e.Hash)
	case 9:
		d := maps.Clone(e.Detail)
		if d == nil {
			d = map[string]string{}
		}
		d["new"] = "1"
		e.Detail = d
	}
	return e
}

func TestVerifyNamesTheFirstDamage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		es := chain(t)
		last := es[len(es)-1]
		head := last.Head()
		if err := audit.Verify(es, nil); err != nil {
			t.Fatalf("a good chain is %v", err)
		}
		some := es[rapid.IntRange(0, len(es)-1).Draw(t, "kept")].Head()
		if err := audit.Verify(es, &some); err != nil {
			t.Fatalf("a good chain against an older head is %v", err)
		}

		bad := slices.Clone(es)
		i := rapid.IntRange(0, len(es)-1).Draw(t, "i")
		seq, kept := int64(i+1), &head
		var damage []audit.Damage
		switch rapid.SampledFrom([]string{"edit", "edit and rehash", "remove", "swap", "cut", "rewrite", "duplicate"}).Draw(t, "what") {
		case "edit":
			bad[i] = edit(t, bad[i])
			kept, damage = nil, []audit.Damage{audit.Edited}
		case "edit and rehash":
			bad[i].Actor += "x"
			bad[i].Hash = audit.Hash(bad[i])
			damage = []audit.Damage{audit.Replaced, audit.Rewritten}
			if i+1 < len(es) {
				kept = nil
			}
		case "remove":
			bad = slices.Delete(bad, i, i+1)
			damage = []audit.Damage{audit.Removed, audit.Cut}
			if i+1 < len(es) {
				kept = nil
			}
		case "swap":
			j := (i + rapid.IntRange(1, len(es)-1).Draw(t, "away")) % len(es)
			bad[i], bad[j] = bad[j], bad[i]
			damage = []audit.Damage{audit.Removed, audit.Reordered}
			if rapid.Bool().Draw(t, "renumber") {
				bad[i].Seq, bad[j].Seq = bad[j].Seq, bad[i].Seq
				damage = []audit.Damage{audit.Edited}
			}
			seq, kept = int64(min(i, j)+1), nil
		case "cut":
			bad = bad[:i]
			damage = []audit.Damage{audit.Cut}
		case "rewrite":
			var h audit.Head
			if i > 0 {
				h = bad[i-1].Head()
			}
			bad[i].Actor += "x"
			for k := i; k < len(bad); k++ {
				bad[k] = audit.Chain(h, bad[k])
				h = bad[k].Head()
			}
			seq, damage = int64(len(es)), []audit.Damage{audit.Rewritten}
		case "duplicate":
			bad = slices.Insert(bad, i+1, bad[i])
			seq, kept, damage = int64(i+2), nil, []audit.Damage{audit.Reordered}
		}
		err := audit.Verify(bad, kept)
		var b *audit.Broken
		if !errors.As(err, &b) {
			t.Fatalf("the damage was not found: %v", err)
		}
		if b.Seq != seq || !slices.Contains(damage, b.Damage) || b.Text == "" {
			t.Errorf("found %s at %d (%s), not one of %s at %d", b.Damage, b.Seq, b.Text, damage, seq)
		}
	})
}

func TestVerifierStopsAtTheFirstDamage(t *testing.T) {
	a := audit.Chain(audit.Head{}, audit.Entry{Action: "a"})
	b := audit.Chain(a.Head(), audit.Entry{Action: "b"})
	v := audit.NewVerifier(audit.Head{})
	if err := v.Add(b); err == nil {
		t.Fatal("a missing first entry was not found")
	}
	if err := v.Add(a); err == nil {
		t.Error("the damage was forgotten")
	}
	if _, err := v.End(); err == nil {
		t.Error("the damage was forgotten at the end")
	}
	v = audit.NewVerifier()
	if h, err := v.End(); err != nil || h != (audit.Head{}) {
		t.Errorf("an empty chain is %v, %v", h, err)
	}
	if _, err := audit.NewVerifier(a.Head(), audit.Head{Seq: 1, Hash: "00"}).End(); err == nil {
		t.Error("two heads that contradict each other were taken")
	}
}
