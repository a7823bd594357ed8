package handover_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/handover"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/store"
)

func TestFrameHandsOutWhatIsGrantedAndHoldsIt(t *testing.T) {
	h := newHouse(t)
	billing, mail := cred("billing", "prod"), cred("mail", "prod")
	h.install(billing, 1, 0)
	h.install(mail, 3, 2)
	h.install(cred("billing", "dev"), 1, 0)
	h.update(func(tx store.Tx) error {
		for _, tok := range []access.Token{
			{Name: "shop", Hash: "aa", Role: access.RoleConsumer, Kind: key.KindReader, Grants: []access.Grant{grant("prod", "mail")}},
			{Name: "dev-shop", Hash: "bb", Role: access.RoleConsumer, Kind: key.KindReader, Grants: []access.Grant{grant("dev", "*")}},
			{Name: "boss", Hash: "cc", Role: access.RoleAdmin},
		} {
			if err := tx.PutToken(tok); err != nil {
				return err
			}
		}
		if err := tx.PutAsks(mail, []evidence.Ask{{Version: at(mail, 2), OK: 3}}); err != nil {
			return err
		}
		_, err := tx.TouchAll()
		return err
	})
	gw := gateway("gw", grant("prod", "*"))
	f := h.frame(gw, "b1", key.Revision{})
	want := map[string]string{}
	for _, v := range []key.VersionID{at(billing, 1), at(mail, 3), at(mail, 2)} {
		want[v.String()] = plain(v)
	}
	if !f.Full || f.Revision != h.store.Revision() || !maps.Equal(keys(f), want) {
		t.Fatalf("frame %v of %v, full %v", slices.Sorted(maps.Keys(keys(f))), f.Revision, f.Full)
	}
	if len(f.Tokens) != 1 || f.Tokens[0].Name != "shop" || f.Tokens[0].Hash != "aa" {
		t.Fatalf("tokens %+v", f.Tokens)
	}
	for _, c := range f.Credentials {
		if c.ID == mail && (len(c.Asks) != 1 || c.Asks[0].OK != 3 || c.Slots != key.Slots{Primary: 3, Fallback: 2}) {
			t.Fatalf("credential %+v", c)
		}
		if c.Call.Upstream != "https://api.example.com" || c.Versions[0].Since.IsZero() {
			t.Fatalf("credential %+v", c)
		}
	}
	if got := h.held("gw", "b1"); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
		t.Fatalf("held: %v", got)
	}
	for _, x := range h.holds("gw") {
		if x.Kind != key.KindGateway || x.Revision != f.Revision || x.Since.IsZero() || !x.Until.IsZero() || x.Unbound {
			t.Fatalf("hold %+v", x)
		}
	}

	// A client library gets the same, without the tokens of others.
	f = h.frame(consumer("lib", key.KindClient, 0, grant("prod", "mail")), "b2", key.Revision{})
	if len(f.Tokens) != 0 || len(keys(f)) != 2 {
		t.Fatalf("client: %d tokens, %v", len(f.Tokens), slices.Sorted(maps.Keys(keys(f))))
	}
	// The same again writes nothing.
	before := h.desk.Stats().Holds
	h.frame(gw, "b1", key.Revision{})
	if n := h.desk.Stats().Holds; n != before {
		t.Fatalf("%d holds were written again", n-before)
	}
}

func TestFrameIsRefused(t *testing.T) {
	h := newHouse(t)
	h.install(cred("a", "prod"), 1, 0)
	for name, c := range map[string]struct {
		by   access.Principal
		boot string
		want error
	}{
		"reader":     {consumer("r", key.KindReader, 0, grant("*", "*")), "b", key.ErrDenied},
		"admin":      {access.Principal{Name: "x", Role: access.RoleAdmin}, "b", key.ErrDenied},
		"viewer":     {access.Principal{Name: "x", Role: access.RoleViewer}, "b", key.ErrDenied},
		"nobody":     {access.Principal{}, "b", key.ErrDenied},
		"no boot":    {gateway("gw", grant("*", "*")), "", key.ErrInvalid},
		"long boot":  {gateway("gw", grant("*", "*")), strings.Repeat("b", 65), key.ErrInvalid},
		"other boot": {gateway("gw", grant("*", "*")), "a b", key.ErrInvalid},
	} {
		f, err := h.desk.Frame(t.Context(), c.by, c.boot, key.Revision{})
		if !errors.Is(err, c.want) || len(f.Credentials) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f := h.frame(gateway("gw"), "b", key.Revision{}); len(f.Credentials) != 0 {
		t.Error("a gateway without grants got keys")
	}
}

func TestFrameIsTheDifferenceOnlyForWhoHasTheRest(t *testing.T) {
	h := newHouse(t)
	a, b := cred("a", "prod"), cred("b", "prod")
	h.install(a, 1, 0)
	h.install(b, 1, 0)
	all, less := gateway("gw", grant("prod", "*")), gateway("gw", grant("prod", "b"))
	f := h.frame(all, "b1", key.Revision{})
	h.install(b, 2, 1)
	g := h.frame(all, "b1", f.Revision)
	if g.Full || len(g.Credentials) != 1 || g.Credentials[0].ID != b || len(g.Removed) != 0 {
		t.Fatalf("difference: %v, full %v", g.Versions(), g.Full)
	}
	if len(f.Apply(g).Versions()) != 3 {
		t.Fatalf("together: %v", f.Apply(g).Versions())
	}
	// From a revision that this desk did not send to this process: everything.
	for name, fn := range map[string]func() link.Frame{
		"another revision": func() link.Frame { return h.frame(all, "b1", f.Revision) },
		"another process":  func() link.Frame { return h.frame(all, "b9", g.Revision) },
		"another server": func() link.Frame {
			f, err := h.newDesk(h.store).Frame(t.Context(), all, "b1", g.Revision)
			if err != nil {
				t.Fatal(err)
			}
			return f
		},
		"another epoch": func() link.Frame {
			return h.frame(all, "b1", key.Revision{Epoch: g.Revision.Epoch + 1, Number: g.Revision.Number})
		},
	} {
		if f := fn(); !f.Full || len(f.Credentials) != 2 {
			t.Errorf("%s: %v, full %v", name, f.Versions(), f.Full)
		}
	}
	// What is not granted any more is taken away, and given back.
	g = h.frame(all, "b1", key.Revision{})
	g2 := h.frame(less, "b1", g.Revision)
	if g2.Full || !slices.Equal(g2.Removed, []key.CredentialID{a}) {
		t.Fatalf("removed: %v, full %v", g2.Removed, g2.Full)
	}
	g3 := h.frame(all, "b1", g2.Revision)
	if g3.Full || len(g3.Credentials) != 1 || g3.Credentials[0].ID != a {
		t.Fatalf("given back: %v", g3.Versions())
	}
}

func TestNothingLeavesWhenTheHoldCannotBeRecorded(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 2, 1)
	broken := h.newDesk(&trap{h.store, func() error { return key.ErrFull }})
	f, err := broken.Frame(t.Context(), gateway("gw", grant("*", "*")), "b", key.Revision{})
	if !errors.Is(err, key.ErrFull) || len(f.Credentials) != 0 {
		t.Fatalf("frame: %v, %v", f.Versions(), err)
	}
	reader := consumer("r", key.KindReader, time.Hour, grant("*", "*"))
	if o, err := broken.ReadPair(t.Context(), reader, id); !errors.Is(err, key.ErrFull) || o != nil {
		t.Fatalf("pair: %v", err)
	}
	if p, _, err := broken.Read(t.Context(), reader, id); !errors.Is(err, key.ErrFull) || p != nil {
		t.Fatalf("read: %v", err)
	}
	if broken.Stats() != (handover.Stats{}) || len(h.holds("gw"))+len(h.holds("r")) != 0 {
		t.Fatalf("stats %+v", broken.Stats())
	}
}

func TestAKeyThatLeavesItsSlotMeanwhileIsNotHandedOut(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 1, 0)
	once := false
	desk := h.newDesk(&trap{h.store, func() error {
		if !once {
			once = true
			h.install(id, 2, 0)
		}
		return nil
	}})
	f, err := desk.Frame(t.Context(), gateway("gw", grant("*", "*")), "b", key.Revision{})
	if err != nil || !once {
		t.Fatal(err)
	}
	if got := f.Versions(); !slices.Equal(got, []key.VersionID{at(id, 2)}) || f.Revision != h.store.Revision() {
		t.Fatalf("handed out %v at %v", got, f.Revision)
	}
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v2"}) {
		t.Fatalf("held: %v", got)
	}
	once = false
	desk = h.newDesk(&trap{h.store, func() error {
		if !once {
			once = true
			h.install(id, 3, 0)
		}
		return nil
	}})
	_, v, err := desk.Read(t.Context(), consumer("r", key.KindReader, time.Hour, grant("*", "*")), id)
	if err != nil || v != at(id, 3) || !slices.Equal(h.held("r", ""), []string{"a/prod@v3"}) {
		t.Fatalf("read %v, %v, held %v", v, err, h.held("r", ""))
	}

	// A store that never stands still is an error, not an endless loop.
	n := key.Number(10)
	desk = h.newDesk(&trap{h.store, func() error { n++; h.install(id, n, 0); return nil }})
	if _, err := desk.Frame(t.Context(), gateway("gw2", grant("*", "*")), "b", key.Revision{}); !errors.Is(err, key.ErrUnavailable) {
		t.Fatal(err)
	}
	if got := h.held("gw2", "b"); len(got) != 0 {
		t.Fatalf("held: %v", got)
	}
}

func TestAcknowledgementLetsGo(t *testing.T) {
	h := newHouse(t)
	id, other := cred("a", "prod"), cred("b", "prod")
	gw := gateway("gw", grant("prod", "*"))
	h.install(other, 1, 0)
	h.install(id, 1, 0)
	f1 := h.frame(gw, "b", key.Revision{})
	h.ack(gw, evidence.Ack{Boot: "b", Revision: f1.Revision, Elapsed: time.Second})
	both := []string{"a/prod@v1", "b/prod@v1"}
	if got := h.held("gw", "b"); !slices.Equal(got, both) {
		t.Fatalf("what is served stays held: %v", got)
	}
	h.install(id, 2, 0)
	// The old revision says nothing about the change after it.
	h.ack(gw, evidence.Ack{Boot: "b", Revision: f1.Revision, Elapsed: 2 * time.Second})
	if got := h.held("gw", "b"); !slices.Equal(got, both) {
		t.Fatalf("after an old acknowledgement: %v", got)
	}
	f2 := h.frame(gw, "b", f1.Revision)
	h.ack(gw, evidence.Ack{Boot: "b", Revision: f2.Revision, Elapsed: 3 * time.Second, Pinned: []key.VersionID{at(id, 1)}})
	if got := h.held("gw", "b"); len(got) != 3 {
		t.Fatalf("pinned, and let go: %v", got)
	}
	if b := h.boots("gw"); len(b) != 1 || b[0].Acked != f2.Revision || len(b[0].Pinned) != 1 || b[0].Kind != key.KindGateway {
		t.Fatalf("boots %+v", b)
	}
	// Late and repeated ones change nothing.
	h.ack(gw, evidence.Ack{Boot: "b", Revision: f1.Revision, Elapsed: 4 * time.Second})
	if got := h.held("gw", "b"); len(got) != 3 {
		t.Fatalf("a late acknowledgement let go: %v", got)
	}
	h.ack(gw, evidence.Ack{Boot: "b", Revision: f2.Revision, Elapsed: 5 * time.Second})
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v2", "b/prod@v1"}) {
		t.Fatalf("unpinned: %v", got)
	}
	// Nor does a late one unpin.
	r1 := h.install(id, 3, 0)
	h.install(other, 2, 1)
	f3 := h.frame(gw, "b", f2.Revision)
	h.ack(gw, evidence.Ack{Boot: "b", Revision: f3.Revision, Pinned: []key.VersionID{at(id, 2)}})
	h.ack(gw, evidence.Ack{Boot: "b", Revision: r1})
	if got := h.held("gw", "b"); !slices.Contains(got, "a/prod@v2") {
		t.Fatalf("a late acknowledgement unpinned: %v", got)
	}
}

// After a restore nothing that was acknowledged before counts: what the store
// says of that time may not be what was handed out then. Nothing is handed out
// or let go of either, until store and vendor agree.
func TestAcknowledgementOfAnotherEpochLetsNothingGo(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	gw := gateway("gw", grant("*", "*"))
	h.install(id, 1, 0)
	f := h.frame(gw, "b", key.Revision{})
	rev := h.install(id, 2, 0)
	h.reopen(true)
	h.ack(gw, evidence.Ack{Boot: "b", Revision: key.Revision{Epoch: rev.Epoch, Number: rev.Number + 10}})
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v1"}) {
		t.Fatalf("held: %v", got)
	}
	g := h.frame(gw, "b", f.Revision)
	if !g.Full || g.Revision.Epoch <= rev.Epoch || len(g.Credentials) != 0 || !slices.Equal(g.Kept, []key.CredentialID{id}) {
		t.Fatalf("frame %v, full %v, kept %v, %d credentials", g.Revision, g.Full, g.Kept, len(g.Credentials))
	}
	if kept := f.Apply(g); len(kept.Credentials) != 1 || kept.Revision != g.Revision {
		t.Fatalf("the gateway has %d credentials at %s, want what it had", len(kept.Credentials), kept.Revision)
	}
	h.ack(gw, evidence.Ack{Boot: "b", Revision: g.Revision})
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v1"}) {
		t.Fatalf("held: %v", got)
	}
	h.update(func(tx store.Tx) error {
		c, err := tx.Credential(id)
		if err != nil {
			return err
		}
		c.Epoch = g.Revision.Epoch
		if _, err := tx.Touch(id); err != nil {
			return err
		}
		return tx.PutCredential(c)
	})
	if g = h.frame(gw, "b", g.Revision); len(g.Credentials) != 1 || len(g.Kept) != 0 {
		t.Fatalf("settled: %d credentials, kept %v", len(g.Credentials), g.Kept)
	}
	h.ack(gw, evidence.Ack{Boot: "b", Revision: g.Revision})
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v2"}) {
		t.Fatalf("held: %v", got)
	}
}

// A version leaves its slot and comes back while an acknowledgement of the time
// between is on its way.
func TestLateAcknowledgementDoesNotLetGoOfAKeyThatCameBack(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	gw := gateway("gw", grant("*", "*"))
	h.install(id, 1, 0)
	h.frame(gw, "b", key.Revision{})
	h.install(id, 2, 0)
	between := h.frame(gw, "b", key.Revision{})
	h.install(id, 2, 1)
	back := h.frame(gw, "b", between.Revision)
	h.install(id, 2, 0)
	h.ack(gw, evidence.Ack{Boot: "b", Revision: between.Revision})
	if got := h.held("gw", "b"); !slices.Contains(got, "a/prod@v1") {
		t.Fatal("let go of a key that the consumer was given again")
	}
	h.ack(gw, evidence.Ack{Boot: "b", Revision: back.Revision})
	if got := h.held("gw", "b"); !slices.Contains(got, "a/prod@v1") {
		t.Fatal("let go of a key that the consumer still uses")
	}
	last := h.frame(gw, "b", back.Revision)
	h.ack(gw, evidence.Ack{Boot: "b", Revision: last.Revision})
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v2"}) {
		t.Fatalf("held: %v", got)
	}
}

// What one server knows of holds must not outlive what another server did.
func TestTwoServers(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	gw := gateway("gw", grant("*", "*"))
	one, two := h.desk, h.newDesk(h.store)
	h.install(id, 1, 0)
	f, err := one.Frame(t.Context(), gw, "b", key.Revision{})
	if err != nil {
		t.Fatal(err)
	}
	h.install(id, 2, 0)
	if f, err = two.Frame(t.Context(), gw, "b", f.Revision); err != nil {
		t.Fatal(err)
	}
	if err := two.Ack(t.Context(), gw, evidence.Ack{Boot: "b", Revision: f.Revision}); err != nil {
		t.Fatal(err)
	}
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v2"}) {
		t.Fatalf("held: %v", got)
	}
	h.install(id, 2, 1)
	if _, err = one.Frame(t.Context(), gw, "b", f.Revision); err != nil {
		t.Fatal(err)
	}
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v1", "a/prod@v2"}) {
		t.Fatalf("handed out without a hold: %v", got)
	}
}

func TestAcknowledgementIsRefused(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	gw := gateway("gw", grant("*", "*"))
	h.install(id, 1, 0)
	f := h.frame(gw, "b", key.Revision{})
	h.install(id, 2, 0)
	now := h.store.Revision()
	future := key.Revision{Epoch: now.Epoch, Number: now.Number + 1}
	for name, c := range map[string]struct {
		by   access.Principal
		a    evidence.Ack
		want error
	}{
		"another consumer": {gateway("evil", grant("*", "*")), evidence.Ack{Consumer: "gw", Boot: "b", Revision: now}, key.ErrDenied},
		"a reader":         {consumer("gw", key.KindReader, 0, grant("*", "*")), evidence.Ack{Boot: "b", Revision: now}, key.ErrDenied},
		"the future":       {gw, evidence.Ack{Boot: "b", Revision: future}, key.ErrStale},
		"a later epoch":    {gw, evidence.Ack{Boot: "b", Revision: key.Revision{Epoch: now.Epoch + 1, Number: 1}}, key.ErrStale},
		"no boot":          {gw, evidence.Ack{Revision: now}, key.ErrInvalid},
		"itself":           {gw, evidence.Ack{Boot: "b", Replaces: "b", Revision: now}, key.ErrInvalid},
	} {
		if err := h.desk.Ack(t.Context(), c.by, c.a); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Of an older epoch: heard, but nothing is let go of.
	h.ack(gw, evidence.Ack{Boot: "b", Revision: key.Revision{Epoch: now.Epoch - 1, Number: 1 << 40}})
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v1"}) {
		t.Fatalf("held: %v", got)
	}
	h.ack(gw, evidence.Ack{Boot: "b", Revision: f.Revision})
	if got := h.held("gw", "b"); !slices.Equal(got, []string{"a/prod@v1"}) {
		t.Fatalf("held: %v", got)
	}
}

func TestReplacedProcessIsGone(t *testing.T) {
	h := newHouse(t)
	id, other := cred("a", "prod"), cred("b", "prod")
	gw := gateway("gw", grant("*", "*"))
	h.install(other, 1, 0)
	h.install(id, 1, 0)
	f := h.frame(gw, "old", key.Revision{})
	h.ack(gw, evidence.Ack{Boot: "old", Revision: f.Revision, Pinned: []key.VersionID{at(id, 1)}})
	h.install(id, 2, 0)
	// The new process has what the old one left in the cache, and nothing else.
	a := evidence.Ack{Boot: "new", Replaces: "old", Revision: f.Revision}
	for range 2 {
		h.ack(gw, a)
		if got := h.held("gw", "old"); len(got) != 0 {
			t.Fatalf("the old process holds %v", got)
		}
		if got := h.held("gw", "new"); !slices.Equal(got, []string{"a/prod@v1", "b/prod@v1"}) {
			t.Fatalf("the new process holds %v", got)
		}
		if b := h.boots("gw"); len(b) != 1 || b[0].Boot != "new" {
			t.Fatalf("boots %+v", b)
		}
	}
	f = h.frame(gw, "new", f.Revision)
	if !f.Full {
		t.Fatal("a new process got a difference")
	}
	h.ack(gw, evidence.Ack{Boot: "new", Replaces: "old", Revision: f.Revision})
	// Late messages of the old one are refused: they would never be let go of.
	_, err := h.desk.Frame(t.Context(), gw, "old", key.Revision{})
	errs := []error{err, h.desk.Ack(t.Context(), gw, evidence.Ack{Boot: "old", Revision: f.Revision}),
		h.desk.Report(t.Context(), gw, evidence.Report{Boot: "old", Seq: 1})}
	for _, err := range errs {
		if !errors.Is(err, key.ErrConflict) {
			t.Fatalf("a late message was taken: %v", err)
		}
	}
	if len(h.held("gw", "old")) != 0 || len(h.boots("gw")) != 1 {
		t.Fatalf("it left %v, %+v", h.held("gw", "old"), h.boots("gw"))
	}
	if got := h.held("gw", "new"); !slices.Equal(got, []string{"a/prod@v2", "b/prod@v1"}) {
		t.Fatalf("the new process holds %v", got)
	}

	// Without that promise both stay, whoever acknowledges.
	f = h.frame(gw, "second", key.Revision{})
	h.ack(gw, evidence.Ack{Boot: "second", Revision: f.Revision})
	h.install(id, 3, 0)
	f = h.frame(gw, "second", f.Revision)
	h.ack(gw, evidence.Ack{Boot: "second", Revision: f.Revision})
	if b := h.boots("gw"); len(b) != 2 {
		t.Fatalf("boots %+v", b)
	}
	if got := h.held("gw", "new"); !slices.Equal(got, []string{"a/prod@v2", "b/prod@v1"}) {
		t.Fatalf("the first process holds %v", got)
	}
	if got := h.held("gw", "second"); !slices.Equal(got, []string{"a/prod@v3", "b/prod@v1"}) {
		t.Fatalf("the second process holds %v", got)
	}
}

func TestWithdrawnGrantIsLetGoByTheNewestRevisionAlone(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	all, none := gateway("gw", grant("*", "*")), gateway("gw", grant("dev", "*"))
	h.install(id, 1, 0)
	f := h.frame(all, "b", key.Revision{})
	h.update(func(tx store.Tx) error { _, err := tx.TouchAll(); return err }) // the grant is withdrawn
	h.ack(none, evidence.Ack{Boot: "b", Revision: f.Revision})
	if got := h.held("gw", "b"); len(got) != 1 {
		t.Fatal("let go by a frame that still had it")
	}
	g := h.frame(none, "b", f.Revision)
	if !slices.Equal(g.Removed, []key.CredentialID{id}) {
		t.Fatalf("removed %v", g.Removed)
	}
	h.ack(none, evidence.Ack{Boot: "b", Revision: g.Revision})
	if got := h.held("gw", "b"); len(got) != 0 {
		t.Fatalf("held: %v", got)
	}
	h.update(func(tx store.Tx) error { _, err := tx.TouchAll(); return err }) // and given again
	h.frame(all, "b", g.Revision)
	if got := h.held("gw", "b"); len(got) != 1 {
		t.Fatal("handed out again without a hold")
	}
}

func TestReports(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 1, 0)
	gw := gateway("gw", grant("prod", "*"))
	use := func(v key.VersionID, ok int64) evidence.Use {
		return evidence.Use{Version: v, Live: evidence.Counts{OK: ok}}
	}
	send := func(seq int64, elapsed time.Duration, uses ...evidence.Use) {
		t.Helper()
		if err := h.desk.Report(t.Context(), gw, evidence.Report{Boot: "b", Seq: seq, Elapsed: elapsed, Uses: uses,
			Answers: []evidence.Answers{{Credential: id, Requests: seq * 10}}}); err != nil {
			t.Fatal(err)
		}
	}
	send(1, time.Second, use(at(id, 1), 5), use(at(cred("a", "dev"), 1), 99))
	h.clock.add(time.Second)
	send(2, 2*time.Second, use(at(id, 2), 7))
	send(2, 2*time.Second, use(at(id, 2), 700))
	send(1, time.Second, use(at(id, 1), 500))
	bs := h.boots("gw")
	if len(bs) != 1 {
		t.Fatalf("boots %+v", bs)
	}
	b := bs[0]
	if b.Seq != 2 || b.Elapsed != 2*time.Second || b.Kind != key.KindGateway || !b.Seen.Equal(h.clock.now()) || b.Contiguous != 0 {
		t.Fatalf("boot %+v", b)
	}
	if b.Use(at(id, 1)).Live.OK != 5 || b.Use(at(id, 2)).Live.OK != 7 || len(b.Uses) != 2 {
		t.Fatalf("uses %+v", b.Uses)
	}
	if len(b.Answers) != 1 || b.Answers[0].Requests != 20 {
		t.Fatalf("answers %+v", b.Answers)
	}
	send(4, 4*time.Second)
	if b := h.boots("gw")[0]; b.Contiguous != 4*time.Second || b.Use(at(id, 1)).Live.OK != 5 {
		t.Fatalf("after a gap: %+v", b)
	}
	for name, r := range map[string]evidence.Report{
		"another consumer": {Consumer: "other", Boot: "b", Seq: 9},
		"no number":        {Boot: "b"},
		"no boot":          {Seq: 9},
		"backwards":        {Boot: "b", Seq: 9, Elapsed: -1},
	} {
		if err := h.desk.Report(t.Context(), gw, r); !errors.Is(err, key.ErrDenied) && !errors.Is(err, key.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An acknowledgement leaves what was reported alone.
	h.ack(gw, evidence.Ack{Boot: "b", Revision: h.store.Revision(), Elapsed: 5 * time.Second})
	if b := h.boots("gw")[0]; b.Seq != 4 || len(b.Uses) != 2 || b.Acked != h.store.Revision() {
		t.Fatalf("after an acknowledgement: %+v", b)
	}
}

func TestMovedTellsWhatIsNew(t *testing.T) {
	h := newHouse(t)
	a, b := cred("a", "prod"), cred("b", "prod")
	gw := gateway("gw", grant("*", "*"))
	var told [][]key.CredentialID
	h.desk = handover.New(handover.Config{Store: h.store, Keyring: h.ring, Moved: func(ids []key.CredentialID) { told = append(told, ids) }})
	h.install(a, 1, 0)
	h.install(b, 1, 0)
	f := h.frame(gw, "x", key.Revision{})
	h.ack(gw, evidence.Ack{Boot: "x", Revision: f.Revision})
	h.ack(gw, evidence.Ack{Boot: "x", Revision: f.Revision})
	h.install(b, 2, 0)
	f = h.frame(gw, "x", f.Revision)
	h.ack(gw, evidence.Ack{Boot: "x", Revision: f.Revision})
	if len(told) != 2 || !slices.Equal(told[0], []key.CredentialID{a, b}) || !slices.Equal(told[1], []key.CredentialID{b}) {
		t.Fatalf("told %v", told)
	}
}

// A key that rides on no request is no gateway's business; clients get it. What
// a gateway had of it from before is let go of.
func TestGatewaysAreNotGivenConnectionKeys(t *testing.T) {
	h := newHouse(t)
	db := cred("db", "prod")
	h.install(db, 1, 0)
	gw, lib := gateway("gw", grant("prod", "*")), consumer("lib", key.KindClient, 0, grant("prod", "db"))
	if f := h.frame(gw, "b1", key.Revision{}); len(keys(f)) != 1 {
		t.Fatalf("the gateway was given %d keys", len(keys(f)))
	}
	h.update(func(tx store.Tx) error {
		c, err := tx.Credential(db)
		if err != nil {
			return err
		}
		c.Call = key.Call{Place: key.Place{In: key.InConnection}}
		if err := tx.PutCredential(c); err != nil {
			return err
		}
		_, err = tx.Touch(db)
		return err
	})
	f := h.frame(gw, "b1", key.Revision{})
	if len(keys(f)) != 0 {
		t.Errorf("the gateway was given %d keys", len(keys(f)))
	}
	if err := h.desk.Ack(t.Context(), gw, evidence.Ack{Boot: "b1", Revision: f.Revision}); err != nil {
		t.Fatal(err)
	}
	if held := h.held("gw", "b1"); len(held) != 0 {
		t.Errorf("the gateway still holds %v", held)
	}
	if f := h.frame(lib, "b2", key.Revision{}); len(keys(f)) != 1 || len(h.held("lib", "b2")) != 1 {
		t.Errorf("the client was given %d keys and holds %v", len(keys(f)), h.held("lib", "b2"))
	}
}
