package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

func testTokens(t *testing.T, f *fixture) {
	b := access.Token{Name: "b", Hash: "h2", Role: access.RoleConsumer, Kind: key.KindReader, Refresh: time.Hour, Created: f.Tx(), By: "ann",
		Expires: f.Tx().Add(time.Hour), Grants: []access.Grant{{Environment: "prod", Services: []string{"alpha"}}}}
	a := access.Token{Name: "a", Hash: "h1", Role: access.RoleAdmin, Created: f.Tx()}
	f.update(t, func(tx store.Tx) error { return errors.Join(tx.PutToken(b), tx.PutToken(a)) })
	same(t, "tokens by name", read(t, f, store.Tx.Tokens), []access.Token{a, b})
	same(t, "token by hash", read(t, f, func(tx store.Tx) (access.Token, error) { return tx.TokenByHash("h2") }), b)
	f.missing(t, "token", func(tx store.Tx) error { _, err := tx.TokenByHash("h3"); return err })

	f.refused(t, key.ErrExists, func(tx store.Tx) error { return tx.PutToken(access.Token{Name: "a", Hash: "h3"}) })
	f.refused(t, key.ErrExists, func(tx store.Tx) error { return tx.PutToken(access.Token{Name: "c", Hash: "h1"}) })
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutToken(access.Token{Name: "c"}) })
	a.Role = access.RoleViewer
	f.update(t, func(tx store.Tx) error { return errors.Join(tx.PutToken(a), tx.DeleteToken("b")) })
	same(t, "tokens that are left", read(t, f, store.Tx.Tokens), []access.Token{a})
	f.refused(t, key.ErrNotFound, func(tx store.Tx) error { return tx.DeleteToken("b") })
	f.update(t, func(tx store.Tx) error { // a new token under an old name
		return errors.Join(tx.DeleteToken("a"), tx.PutToken(access.Token{Name: "a", Hash: "h3"}))
	})
	f.missing(t, "the old token", func(tx store.Tx) error { _, err := tx.TokenByHash("h1"); return err })
}

func testAlerts(t *testing.T, f *fixture) {
	mk := func(id string, s alert.State, after time.Duration) alert.Alert {
		return alert.Alert{ID: id, State: s, Started: f.Tx().Add(after), LastSeen: f.Tx(), Change: 1,
			Signal: alert.Signal{Credential: alpha(), Version: 2, Kind: "spike", Severity: alert.Critical, Error: "401 Unauthorized", Cause: "c", Fix: "f"}}
	}
	a, b, c := mk("a", alert.Firing, 0), mk("b", alert.Resolved, time.Second), mk("c", alert.Firing, 2*time.Second)
	f.observe(t, func(tx store.Tx) error { return errors.Join(tx.PutAlert(b), tx.PutAlert(a), tx.PutAlert(c)) })
	list := func(s alert.State, limit int) []alert.Alert {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]alert.Alert, error) { return tx.Alerts(s, limit) })
	}
	same(t, "all, newest first", list("", 0), []alert.Alert{c, b, a})
	same(t, "the newest two", list("", 2), []alert.Alert{c, b})
	same(t, "firing", list(alert.Firing, 0), []alert.Alert{c, a})
	same(t, "the newest that fires", list(alert.Firing, 1), []alert.Alert{c})
	a.State, a.Ended, a.Change = alert.Resolved, f.Tx(), 2
	f.observe(t, func(tx store.Tx) error { return tx.PutAlert(a) })
	same(t, "resolved", list(alert.Resolved, 0), []alert.Alert{b, a})
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.PutAlert(alert.Alert{ID: "x", State: "odd"}) })
}

func testDeliveries(t *testing.T, f *fixture) {
	now := f.Tx()
	mk := func(id string, created, next time.Duration) alert.Delivery {
		return alert.Delivery{ID: id, Channel: "slack", Created: now.Add(created), Next: now.Add(next), Attempts: 1, Error: "503",
			Alert: alert.Alert{ID: "a", State: alert.Firing, Started: now, LastSeen: now}}
	}
	a, b, c := mk("a", 2*time.Second, 0), mk("b", time.Second, time.Minute), mk("c", 0, -time.Minute)
	f.observe(t, func(tx store.Tx) error { return errors.Join(tx.PutDelivery(a), tx.PutDelivery(b), tx.PutDelivery(c)) })
	due := func(at time.Time) []alert.Delivery {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]alert.Delivery, error) { return tx.Deliveries(at) })
	}
	same(t, "due now, oldest first", due(now), []alert.Delivery{c, a})
	same(t, "due later", due(now.Add(time.Minute)), []alert.Delivery{c, b, a})
	same(t, "due long ago", len(due(now.Add(-time.Hour))), 0)
	c.Sent = now
	f.observe(t, func(tx store.Tx) error { return tx.PutDelivery(c) })
	same(t, "due after one was sent", due(now), []alert.Delivery{a})
}

func testSettings(t *testing.T, f *fixture) {
	get := func() string {
		t.Helper()
		return read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("s") })
	}
	same(t, "unset", get(), "")
	f.observe(t, func(tx store.Tx) error { return tx.PutSetting("s", "a\nb 'c' ü") })
	same(t, "set", get(), "a\nb 'c' ü")
	f.update(t, func(tx store.Tx) error { return tx.PutSetting("s", "") })
	same(t, "set to nothing", get(), "")
}

// checkChain fails the test unless es is a whole chain from its beginning.
func checkChain(t *testing.T, es []audit.Entry) {
	t.Helper()
	prev := audit.Head{}
	for _, e := range es {
		if want := audit.Chain(prev, e); want.Seq != e.Seq || want.Prev != e.Prev || want.Hash != e.Hash {
			t.Fatalf("entry %d is not the one that follows %d:\n got %+v\nwant %+v", e.Seq, prev.Seq, e, want)
		}
		prev = audit.Head{Seq: e.Seq, Hash: e.Hash}
	}
}

func testAudit(t *testing.T, f *fixture) {
	e := func(action string) audit.Entry {
		return audit.Entry{Actor: "ann", Action: action, Credential: alpha(), Version: 3, Rotation: "r", Detail: map[string]string{"b": "2", "a": "1 ü\n"}}
	}
	odd := audit.Entry{Seq: 99, At: time.Unix(1, 0), Prev: "x", Hash: "y", Actor: "bad \xff\x00", Action: "c", Detail: map[string]string{}}
	if err := f.Update(context.Background(), e("b"), func(tx store.Tx) error {
		return errors.Join(tx.Audit(e("a")), tx.PutSetting("s", "1"))
	}); err != nil {
		t.Fatal(err)
	}
	f.Move(time.Minute)
	if err := f.Update(context.Background(), odd, func(tx store.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	es := read(t, f, entries)
	checkChain(t, es)
	got := ""
	for _, e := range es {
		got += fmt.Sprintf("%d %s %s,", e.Seq, e.Action, e.At.Format(time.RFC3339Nano))
	}
	first, second := f.Tx().Add(-time.Minute).Format(time.RFC3339Nano), f.Tx().Format(time.RFC3339Nano)
	same(t, "entries: fn's own, then that of the update", got, "1 a "+first+",2 b "+first+",3 c "+second+",")
	want := audit.Chain(audit.Head{}, e("a"))
	same(t, "detail", es[0].Detail, want.Detail)
	same(t, "the rest", []any{es[0].Actor, es[0].Credential, es[0].Version, es[0].Rotation, es[0].Prev},
		[]any{"ann", alpha(), key.Number(3), "r", ""})
	same(t, "head", read(t, f, store.Tx.Head), audit.Head{Seq: 3, Hash: es[2].Hash})

	page := func(from int64, limit int) []audit.Entry {
		t.Helper()
		return read(t, f, func(tx store.Tx) ([]audit.Entry, error) { return tx.Entries(from, limit) })
	}
	same(t, "from 2", page(2, 0), es[1:])
	same(t, "one from 2", page(2, 1), es[1:2])
	same(t, "past the end", len(page(4, 0)), 0)
	f.refused(t, key.ErrInvalid, func(tx store.Tx) error { return tx.Audit(audit.Entry{Actor: "ann"}) })
	same(t, "entries after a refusal", len(page(0, 0)), 3)
}
