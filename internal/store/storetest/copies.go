package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
)

// Copied is a store that can be dumped.
type Copied interface {
	store.Store
	Dump(context.Context, io.Writer) (dump.Manifest, error)
}

// Place is somewhere a store can be: a file, a database.
type Place interface {
	// Open opens the store there, made if needed.
	Open(now func() time.Time) (Copied, error)
	// Load fills the store there, which must be empty; see sqlstore.Load.
	Load(r io.Reader, newEpoch bool, then func(store.Tx, dump.Manifest) error) (Copied, dump.Manifest, error)
}

// RunCopies proves dumps and loads on places that are new and empty.
func RunCopies(t *testing.T, place func(*testing.T) Place, seal Seal) {
	for _, p := range []struct {
		name string
		fn   func(*testing.T, *copies)
	}{
		{"copy", testCopy},
		{"claims", testCopiedClaims},
		{"epoch", testCopiedEpoch},
		{"snapshot", testCopiedSnapshot},
		{"damage", testCopiedDamage},
		{"not empty", testCopyNotEmpty},
		{"newer", testCopyNewer},
	} {
		t.Run(p.name, func(t *testing.T) {
			p.fn(t, &copies{place: place, seal: seal, clock: &clock{t: time.Date(2030, 1, 2, 3, 4, 5, 678_901_234, time.UTC)}})
		})
	}
}

type copies struct {
	*clock
	place func(*testing.T) Place
	seal  Seal
}

// full returns a store at a new place with rows in every table.
func (c *copies) full(t *testing.T) *fixture {
	t.Helper()
	s, err := c.place(t).Open(c.Now)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Store: s, clock: c.clock, seal: c.seal}
	t.Cleanup(func() { _ = s.Close() })
	f.fill(t)
	return f
}

// fill writes rows to every table.
func (f *fixture) fill(t *testing.T) {
	t.Helper()
	f.seed(t, key.StatePrimary, key.StateFallback, key.StateRetired)
	now, v1, v3 := f.Tx(), version(alpha(), 1), version(alpha(), 3)
	a := alert.Alert{ID: "a1", State: alert.Firing, Started: now}
	f.update(t, func(tx store.Tx) error {
		_, err := tx.Touch(alpha())
		return errors.Join(err,
			tx.PutService(key.Service{Name: "alpha", Provider: "manual", Params: map[string]string{"a": "<&>\u2028 ü"}}),
			tx.PutPolicy(rotation.Policy{Name: "careful"}),
			tx.PutDataKey("env/prod/1", []byte{0, 255, '\n', 1}),
			tx.PutSealed(v1, f.seal("env/prod/1", []byte("\x00\xff box"))),
			tx.PutCredential(key.Credential{ID: credential("beta", "old"), Next: 4}),
			tx.DeleteCredential(credential("beta", "old")),
			tx.PutRotation(rotation.Rotation{ID: "r1", Credential: alpha(), Machine: 1, Kind: rotation.Manual, State: rotation.Soaking, From: 2, To: 1, Started: now}),
			tx.PutRetirement(rotation.Retirement{Version: v3, State: key.StateRetired}),
			tx.PutToken(access.Token{Name: "app", Hash: "abc", Role: access.RoleConsumer}),
			tx.PutHold(evidence.Hold{Consumer: "gw", Kind: key.KindGateway, Boot: "b1", Version: v1, Revision: key.Revision{Epoch: 1, Number: 1}, Since: now}),
			tx.PutBoot(evidence.Boot{Consumer: "gw", Kind: key.KindGateway, Boot: "b1", Seq: 7, Acked: key.Revision{Epoch: 1, Number: 1},
				Uses: []evidence.Use{{Version: v1, Live: evidence.Counts{OK: 5}}}, Answers: []evidence.Answers{{Credential: alpha(), Requests: 5}}}),
			tx.PutAsks(alpha(), []evidence.Ask{{Version: v1, OK: 3}}),
			tx.PutAlert(a), tx.PutDelivery(alert.Delivery{ID: "d1", Channel: "webhook", Alert: a, Created: now, Next: now}),
			tx.PutSetting("a", "line\nline \"quoted\" \\ ü 日本 \U0001F511"), tx.PutSetting("B", "é"), tx.PutSetting("é", ""),
			tx.Due("rotation", "free", now.Add(time.Minute)),
			tx.Audit(audit.Entry{Actor: "alice", Action: "test", Detail: map[string]string{"z": "1", "a": "<ü>"}}))
	})
	f.observe(t, func(tx store.Tx) error {
		_, err := tx.ClaimItem("rotation", "held", "server-1", time.Hour)
		return err
	})
}

func (f *fixture) dumped(t *testing.T) ([]byte, dump.Manifest) {
	t.Helper()
	var b bytes.Buffer
	m, err := f.Store.(Copied).Dump(context.Background(), &b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), m
}

// load loads a dump at p and returns the store.
func (c *copies) load(t *testing.T, p Place, text []byte, newEpoch bool, then func(store.Tx, dump.Manifest) error) *fixture {
	t.Helper()
	s, _, err := p.Load(bytes.NewReader(text), newEpoch, then)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &fixture{Store: s, clock: c.clock, seal: c.seal}
}

func testCopy(t *testing.T, c *copies) {
	f := c.full(t)
	text, m := f.dumped(t)
	for _, tab := range m.Tables {
		if tab.Rows == 0 {
			t.Errorf("this suite writes nothing to %s: a copy of it is not proven", tab.Name)
		}
	}
	again, err := dump.Verify(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "manifest that is read", again, m)
	g := c.load(t, c.place(t), text, false, nil)
	_, n := g.dumped(t)
	same(t, "sums of the copy", n.Sums, m.Sums)
	same(t, "revision", g.Revision(), f.Revision())
	everything := func(f *fixture) (all []any) {
		f.view(t, func(tx store.Tx) error {
			keep := func(v any, err error) {
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, v)
			}

			keep(any1(tx.Services()))
			keep(any1(tx.Credentials()))
			keep(any1(tx.AllVersions()))
			keep(any1(tx.AllSealed()))
			keep(any1(tx.DataKeys()))
			keep(any1(tx.Rotations(key.CredentialID{}, 0)))
			keep(any1(tx.Retirements(key.CredentialID{})))
			keep(any1(tx.Tokens()))
			keep(any1(tx.Holds(key.CredentialID{})))
			keep(any1(tx.Boots()))
			keep(any1(tx.Asks(key.CredentialID{})))
			keep(any1(tx.Alerts("", 0)))
			keep(any1(tx.Deliveries(f.Tx().Add(time.Hour))))
			keep(any1(tx.Entries(1, 0)))
			keep(any1(tx.Setting("a")))
			return nil
		})
		return all
	}
	same(t, "what the copy shows", everything(g), everything(f))
	entries := read(t, g, func(tx store.Tx) ([]audit.Entry, error) { return tx.Entries(1, 0) })
	if err := audit.Verify(entries, nil); err != nil {
		t.Errorf("the audit chain of the copy: %v", err)
	}
	g.update(t, func(tx store.Tx) error { return tx.PutSetting("new", "1") }) // it works on, and its chain too
	if err := audit.Verify(read(t, g, func(tx store.Tx) ([]audit.Entry, error) { return tx.Entries(1, 0) }), nil); err != nil {
		t.Errorf("the audit chain after a change of the copy: %v", err)
	}
	h := c.load(t, c.place(t), text, false, nil)
	same(t, "numbers that were used before", read(t, h, func(tx store.Tx) (key.Revision, error) { return tx.Revision() }), f.Revision())
	h.update(t, func(tx store.Tx) error {
		return tx.PutCredential(key.Credential{ID: credential("beta", "old"), Next: 1})
	})
	same(t, "next number of a credential that was deleted before", read(t, h, func(tx store.Tx) (key.Credential, error) { return tx.Credential(credential("beta", "old")) }).Next, 4)
}

func any1[T any](v T, err error) (any, error) { return v, err }

// A claim is worth nothing without the process that made it.
func testCopiedClaims(t *testing.T, c *copies) {
	f := c.full(t)
	held := read(t, f, func(tx store.Tx) (time.Time, error) { return tx.NextDue("rotation") })
	text, _ := f.dumped(t)
	g := c.load(t, c.place(t), text, false, nil)
	same(t, "when work is due", read(t, g, func(tx store.Tx) (time.Time, error) { return tx.NextDue("rotation") }), held)
	f.refused(t, key.ErrConflict, func(tx store.Tx) error {
		_, err := tx.ClaimItem("rotation", "held", "server-2", time.Minute)
		return err
	})
	g.observe(t, func(tx store.Tx) error {
		l, err := tx.ClaimItem("rotation", "held", "server-2", time.Minute)
		if err == nil && l.Term < 2 {
			t.Errorf("the term is %d: it began anew", l.Term)
		}
		return err
	})
}

// After a restore, what was acknowledged before counts for nothing.
func testCopiedEpoch(t *testing.T, c *copies) {
	f := c.full(t)
	text, m := f.dumped(t)
	var at key.Revision
	g := c.load(t, c.place(t), text, true, func(tx store.Tx, in dump.Manifest) (err error) {
		same(t, "manifest", in.Sums, m.Sums)
		if at, err = tx.Revision(); err != nil {
			return err
		}
		return errors.Join(tx.PutSetting("restored", at.String()), tx.Audit(audit.Entry{Actor: "test", Action: "restored"}))
	})
	rev := g.Revision()
	same(t, "revision that the load made", rev, at)
	if rev.Epoch <= f.Revision().Epoch || rev.Number <= f.Revision().Number {
		t.Errorf("the revision is %s after %s", rev, f.Revision())
	}
	same(t, "marker", read(t, g, func(tx store.Tx) (string, error) { return tx.Setting("restored") }), rev.String())
	if err := g.View(context.Background(), func(tx store.Tx) error {
		_, err := tx.ChangedSince(f.Revision())
		return err
	}); !errors.Is(err, key.ErrStale) {
		t.Errorf("changes since the epoch before: got error %v, want %v", err, key.ErrStale)
	}
	boots := read(t, g, func(tx store.Tx) ([]evidence.Boot, error) { return tx.Boots("gw") })
	if len(boots) != 1 || boots[0].Acked.Reached(key.Revision{Epoch: rev.Epoch}) {
		t.Errorf("an acknowledgement counts after a restore: %+v", boots)
	}
	if holds := read(t, g, func(tx store.Tx) ([]evidence.Hold, error) { return tx.HoldsOf("gw") }); len(holds) != 1 {
		t.Errorf("holds were forgotten: %+v", holds)
	}
	entries := read(t, g, func(tx store.Tx) ([]audit.Entry, error) { return tx.Entries(1, 0) })
	if err := audit.Verify(entries, nil); err != nil || entries[len(entries)-1].Action != "restored" {
		t.Errorf("the audit chain: %v, %v", err, entries[len(entries)-1])
	}
}

// A dump is of one moment, whatever is written meanwhile.
func testCopiedSnapshot(t *testing.T, c *copies) {
	f := c.full(t)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := "x"; ; n += "x" {
			err := f.Update(context.Background(), why(), func(tx store.Tx) error {
				return errors.Join(tx.PutSetting("one", n), tx.PutSetting("two", n), tx.PutService(key.Service{Name: "s-" + n[:min(len(n), 40)]}))
			})
			select {
			case <-stop:
				ended <- err
				return
			default:
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	for range 5 {
		text, _ := f.dumped(t)
		g := c.load(t, c.place(t), text, false, nil)
		one := read(t, g, func(tx store.Tx) (string, error) { return tx.Setting("one") })
		two := read(t, g, func(tx store.Tx) (string, error) { return tx.Setting("two") })
		same(t, "two settings of one transaction", one, two)
		same(t, "copy's revision", g.Revision(), read(t, g, store.Tx.Revision))
		if err := audit.Verify(read(t, g, func(tx store.Tx) ([]audit.Entry, error) { return tx.Entries(1, 0) }), nil); err != nil {
			t.Errorf("the audit chain of the copy: %v", err)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// refuses loads text at p, which must fail with want and leave p empty.
func (c *copies) refuses(t *testing.T, p Place, text []byte, want error, then func(store.Tx, dump.Manifest) error) {
	t.Helper()
	s, _, err := p.Load(bytes.NewReader(text), true, then)
	if err == nil {
		_ = s.Close()
		t.Fatal("it was loaded")
	}
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func testCopiedDamage(t *testing.T, c *copies) {
	text, m := c.full(t).dumped(t)
	p := c.place(t)
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines = lines[:len(lines)-1]
	c.refuses(t, p, text[:len(text)/2], key.ErrInvalid, nil)
	c.refuses(t, p, bytes.Join(lines[:len(lines)-1], nil), key.ErrInvalid, nil)
	c.refuses(t, p, bytes.Replace(text, []byte(`"manual"`), []byte(`"nanual"`), 1), key.ErrInvalid, nil)
	c.refuses(t, p, append(slices.Clip(text), '\n'), key.ErrInvalid, nil)

	// A dump that is whole but not of this schema; rows that the schema refuses.
	without := func(drop string) []byte {
		return rewrite(t, text, func(h dump.Header) dump.Header {
			h.Tables = slices.DeleteFunc(h.Tables, func(t dump.Table) bool { return t.Name == drop })
			return h
		}, nil)
	}
	c.refuses(t, p, without("hold"), key.ErrInvalid, nil)
	c.refuses(t, p, rewrite(t, text, nil, func(table string, row []any) {
		if table == "version" {
			row[3] = "primary" // two in one slot
		}
	}), key.ErrInvalid, nil)
	stop := errors.New("stop")
	c.refuses(t, p, text, stop, func(tx store.Tx, _ dump.Manifest) error { return errors.Join(tx.PutSetting("x", "y"), stop) })

	// After all that the place is as empty as it was.
	_, n := c.load(t, p, text, false, nil).dumped(t)
	same(t, "sums of the copy", n.Sums, m.Sums)
}

// rewrite returns a whole dump with another header and other rows.
func rewrite(t *testing.T, text []byte, head func(dump.Header) dump.Header, change func(string, []any)) []byte {
	t.Helper()
	r, err := dump.NewReader(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	h := r.Header()
	from := h.Tables
	h.Tables = slices.Clone(h.Tables)
	if head != nil {
		h = head(h)
	}
	rows := map[string][][]any{}
	for {
		i, row, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(from[i].Name, row)
		}
		rows[from[i].Name] = append(rows[from[i].Name], row)
	}
	var out bytes.Buffer
	w, err := dump.NewWriter(&out, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, tab := range h.Tables {
		if err := w.Table(); err != nil {
			t.Fatal(err)
		}
		for _, row := range rows[tab.Name] {
			if err := w.Row(row); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func testCopyNotEmpty(t *testing.T, c *copies) {
	text, _ := c.full(t).dumped(t)
	p := c.place(t)
	s, err := p.Open(c.Now)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Store: s, clock: c.clock}
	f.observe(t, func(tx store.Tx) error { return tx.PutSetting("mine", "1") })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.refuses(t, p, text, key.ErrConflict, nil)
	if s, err = p.Open(c.Now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	f.Store = s
	same(t, "what was there", read(t, f, func(tx store.Tx) (string, error) { return tx.Setting("mine") }), "1")
	if cs := read(t, f, store.Tx.Credentials); len(cs) > 0 {
		t.Errorf("something was written: %v", cs)
	}
}

func testCopyNewer(t *testing.T, c *copies) {
	text, _ := c.full(t).dumped(t)
	p := c.place(t)
	c.refuses(t, p, rewrite(t, text, func(h dump.Header) dump.Header { h.Schema = 9999; return h }, nil), key.ErrNewer, nil)
	c.refuses(t, p, []byte(strings.Replace(string(text), `"format":1`, `"format":2`, 1)), key.ErrNewer, nil)
	c.load(t, p, text, true, nil)
}
