package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

func testHolds(t *testing.T, f *fixture) {
	f.seed(t, key.StatePrimary, key.StateFallback)
	beta := f.version(1, key.StatePrimary)
	beta.ID.Credential = credential("beta", "prod")
	f.update(t, func(tx store.Tx) error { return tx.PutVersion(beta) })
	v1, v2 := version(alpha(), 1), version(alpha(), 2)
	h := evidence.Hold{Consumer: "gw", Kind: key.KindGateway, Boot: "b1", Version: v1, Revision: key.Revision{Epoch: 1, Number: 4},
		Since: f.Tx(), Until: f.Tx().Add(time.Hour)}
	h2, h3, h4 := h, h, h
	h2.Version = v2
	h3.Boot, h3.Until = "b2", time.Time{}
	h4.Consumer, h4.Kind, h4.Boot, h4.Version, h4.Unbound = "ci", key.KindReader, "", beta.ID, true
	f.observe(t, func(tx store.Tx) error {
		return errors.Join(tx.PutHold(h), tx.PutHold(h2), tx.PutHold(h3), tx.PutHold(h4), tx.PutHold(h))
	})
	list := func(id key.CredentialID) []evidence.Hold {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]evidence.Hold, error) { return tx.Holds(id) })
	}
	same(t, "holds of alpha", list(alpha()), []evidence.Hold{h, h2, h3})
	same(t, "all holds", list(key.CredentialID{}), []evidence.Hold{h4, h, h2, h3})
	of := func(consumer string) []evidence.Hold {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]evidence.Hold, error) { return tx.HoldsOf(consumer) })
	}
	same(t, "holds of a consumer", of("gw"), []evidence.Hold{h, h2, h3})
	same(t, "holds of nobody", len(of("no")), 0)

	h.Revision.Number, h.Until = 9, f.Tx().Add(2*time.Hour)
	f.observe(t, func(tx store.Tx) error { return errors.Join(tx.PutHold(h), tx.DeleteHold("gw", "b1", v2)) })
	same(t, "holds of alpha", list(alpha()), []evidence.Hold{h, h3})
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.DeleteHold("gw", "b1", v2) })
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error {
		return tx.PutHold(evidence.Hold{Consumer: "gw", Version: version(alpha(), 9)})
	})
}

func testBoots(t *testing.T, f *fixture) {
	f.seed(t)
	v1, v2, v3 := version(alpha(), 1), version(alpha(), 2), version(credential("beta", "prod"), 1)
	use := func(v key.VersionID, ok int64) evidence.Use {
		return evidence.Use{Version: v, Live: evidence.Counts{OK: ok, Auth: 1, Perm: 2, Rate: 3, Other: 4},
			Probes: evidence.Counts{OK: 5, Auth: 6, Perm: 7, Rate: 8, Other: 9}, Worse: 10, Better: 11, Fallbacks: 12,
			LastUse: 13 * time.Second, LastAuth: "401 Unauthorized", LastProbe: evidence.OK}
	}
	b := evidence.Boot{Consumer: "gw", Kind: key.KindGateway, Boot: "b1", Seq: 3, Elapsed: 5*time.Second + 1, Contiguous: time.Second, Seen: f.Tx(),
		Acked: key.Revision{Epoch: 1, Number: 2}, Pinned: []key.VersionID{v1},
		Uses:    []evidence.Use{use(v1, 1), use(v2, 2), use(v3, 3)},
		Answers: []evidence.Answers{{Credential: alpha(), Requests: 10, Refused: 1}, {Credential: credential("beta", "prod"), Requests: 3, Failed: 2}}}
	b2 := evidence.Boot{Consumer: "gw", Kind: key.KindGateway, Boot: "b2", Seen: f.Tx()}
	b3 := evidence.Boot{Consumer: "app", Kind: key.KindClient, Boot: "b1", Seen: f.Tx(), Uses: []evidence.Use{use(v1, 7)}}
	f.observe(t, func(tx store.Tx) error { return errors.Join(tx.PutBoot(b2), tx.PutBoot(b), tx.PutBoot(b3)) })
	list := func(consumers ...string) []evidence.Boot {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]evidence.Boot, error) { return tx.Boots(consumers...) })
	}
	same(t, "all boots", list(), []evidence.Boot{b3, b, b2})
	same(t, "boots of one", list("gw"), []evidence.Boot{b, b2})
	same(t, "boots of two and nobody", list("gw", "no", "app", "gw"), []evidence.Boot{b3, b, b2})
	same(t, "boots of nobody", len(list("no")), 0)

	// A report brings what changed; the rest stays.
	b.Seq, b.Elapsed, b.Pinned = 4, 6*time.Second, nil
	part := b
	part.Uses, part.Answers = []evidence.Use{use(v2, 20)}, []evidence.Answers{{Credential: alpha(), Requests: 11}}
	b.Uses[1], b.Answers[0] = part.Uses[0], part.Answers[0]
	f.observe(t, func(tx store.Tx) error { return tx.PutBoot(part) })
	same(t, "boots after a report", list("gw"), []evidence.Boot{b, b2})
	part.Seq, b.Seq, part.Uses, part.Answers = 5, 5, nil, nil
	f.observe(t, func(tx store.Tx) error { return tx.PutBoot(part) })
	same(t, "boots after an empty report", list("gw"), []evidence.Boot{b, b2})

	f.observe(t, func(tx store.Tx) error { return tx.DeleteBoot("gw", "b1") })
	same(t, "boots after one is gone", list(), []evidence.Boot{b3, b2})
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.DeleteBoot("gw", "b1") })
	part.Uses = []evidence.Use{use(v3, 1)}
	f.observe(t, func(tx store.Tx) error { return tx.PutBoot(part) })
	same(t, "boots when it is back", list("gw"), []evidence.Boot{part, b2})
}

func testAsks(t *testing.T, f *fixture) {
	f.seed(t)
	a, b := evidence.Ask{Version: version(alpha(), 1), OK: 3}, evidence.Ask{Version: version(alpha(), 2), OK: 20}
	asks := func() []evidence.Ask {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]evidence.Ask, error) { return tx.Asks(alpha()) })
	}
	same(t, "no asks", len(asks()), 0)
	f.observe(t, func(tx store.Tx) error { return tx.PutAsks(alpha(), []evidence.Ask{b, a}) })
	same(t, "asks", asks(), []evidence.Ask{a, b})
	same(t, "all asks", read(t, f, func(tx store.Tx) ([]evidence.Ask, error) { return tx.Asks(key.CredentialID{}) }), asks())
	f.observe(t, func(tx store.Tx) error { return tx.PutAsks(alpha(), []evidence.Ask{b}) })
	same(t, "asks that replaced others", asks(), []evidence.Ask{b})
	err := f.Observe(context.Background(), func(tx store.Tx) error {
		return tx.PutAsks(alpha(), []evidence.Ask{{Version: version(credential("beta", "prod"), 1)}})
	})
	if !errors.Is(err, key.ErrInvalid) {
		t.Fatalf("an ask of another credential: got error %v, want %v", err, key.ErrInvalid)
	}
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.PutAsks(credential("no", "no"), nil) })
	f.observe(t, func(tx store.Tx) error { return tx.PutAsks(alpha(), nil) })
	same(t, "no asks any more", len(asks()), 0)
}
