package handover_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

func TestReadPair(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 2, 1)
	o := h.read(consumer("r", key.KindReader, time.Hour, grant("prod", "a")), id)
	if o.Version() != at(id, 2) || o.EnvName() != "THE_KEY" ||
		!o.Primary()["key"].Equal(secret.FromString(plain(at(id, 2)))) || !o.Fallback()["key"].Equal(secret.FromString(plain(at(id, 1)))) {
		t.Fatalf("read %v", o.Version())
	}
	var buf bytes.Buffer
	n, err := o.WriteTo(&buf)
	if err != nil || int(n) != o.Size() {
		t.Fatal(n, err)
	}
	var got link.Read
	if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Credential != id || got.Version != 2 || got.EnvName != "THE_KEY" || !got.Parts["key"].Value().Equal(o.Primary()["key"]) || !got.Fallback["key"].Value().Equal(o.Fallback()["key"]) {
		t.Fatalf("on the wire: %+v", got)
	}
	if held := h.held("r", ""); !slices.Equal(held, []string{"a/prod@v1", "a/prod@v2"}) {
		t.Fatalf("held %v", held)
	}
	// One part alone is held alone.
	p, v, err := h.desk.Read(t.Context(), consumer("r1", key.KindReader, time.Hour, grant("prod", "a")), id)
	if err != nil || v != at(id, 2) || !p["key"].Equal(o.Primary()["key"]) {
		t.Fatal(v, err)
	}
	if held := h.held("r1", ""); !slices.Equal(held, []string{"a/prod@v2"}) {
		t.Fatalf("held %v", held)
	}
	// The next version is read at once, and reading it releases nothing.
	h.install(id, 3, 2)
	if o = h.read(consumer("r", key.KindReader, time.Hour, grant("prod", "a")), id); o.Version() != at(id, 3) {
		t.Fatalf("read %v", o.Version())
	}
	if held := h.held("r", ""); len(held) != 3 {
		t.Fatalf("held %v", held)
	}
	h.install(id, 3, 0)
	if o = h.read(consumer("r", key.KindReader, time.Hour, grant("prod", "a")), id); o.Fallback() != nil {
		t.Fatal("an empty slot has a key")
	}
}

func TestReadIsRefused(t *testing.T) {
	h := newHouse(t)
	id, empty := cred("a", "prod"), cred("empty", "prod")
	h.install(id, 1, 0)
	h.install(empty, 0, 0)
	for name, c := range map[string]struct {
		by   access.Principal
		id   key.CredentialID
		want error
	}{
		"gateway":           {gateway("g", grant("*", "*")), id, key.ErrDenied},
		"viewer":            {access.Principal{Name: "v", Role: access.RoleViewer}, id, key.ErrDenied},
		"admin":             {access.Principal{Name: "a", Role: access.RoleAdmin}, id, key.ErrDenied},
		"operator":          {access.Principal{Name: "o", Role: access.RoleOperator}, id, key.ErrDenied},
		"nobody":            {access.Principal{}, id, key.ErrDenied},
		"other service":     {consumer("r", key.KindReader, 0, grant("prod", "b")), id, key.ErrDenied},
		"other environment": {consumer("r", key.KindReader, 0, grant("dev", "a")), id, key.ErrDenied},
		"no grant":          {consumer("r", key.KindReader, 0), id, key.ErrDenied},
		"not declared":      {consumer("r", key.KindReader, 0, grant("*", "*")), cred("x", "prod"), key.ErrNotFound},
		"no key yet":        {consumer("r", key.KindReader, 0, grant("*", "*")), empty, key.ErrNotFound},
	} {
		o, err := h.desk.ReadPair(t.Context(), c.by, c.id)
		if hint, ok := errors.AsType[*key.Hint](err); !errors.Is(err, c.want) || o != nil || !ok || hint.Next == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := h.desk.Stats(); n.Reads != 0 || n.Holds != 0 {
		t.Fatalf("stats %+v", n)
	}
}

func TestReaderHoldLastsARefreshIntervalAfterTheLastRead(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 1, 0)
	const refresh = time.Hour
	by := consumer("r", key.KindReader, refresh, grant("*", "*"))
	start := h.clock.now()
	var last time.Time
	// At every moment of every read, the durable hold lasts another interval.
	for range 200 {
		h.read(by, id)
		last = h.clock.now()
		hs := h.holds("r")
		if len(hs) != 1 || hs[0].Until.Before(last.Add(refresh)) || hs[0].Until.After(last.Add(refresh+refresh/4)) ||
			hs[0].Unbound || hs[0].Boot != "" || hs[0].Kind != key.KindReader || !hs[0].Since.Equal(start) {
			t.Fatalf("read at %v: hold %+v", last, hs)
		}
		h.clock.add(3 * time.Minute)
	}
	if n := h.desk.Stats().Holds; n < 2 || n > 60 {
		t.Fatalf("%d writes for 200 reads", n)
	}
	if hs := h.holds("r"); hs[0].Ended(last.Add(refresh-time.Millisecond)) || !hs[0].Ended(last.Add(2*refresh)) {
		t.Fatalf("hold %+v after the last read at %v", hs[0], last)
	}
	// Another server's read covers its own hand-out too.
	h.clock.add(refresh / 2)
	if _, err := h.newDesk(h.store).ReadPair(t.Context(), by, id); err != nil {
		t.Fatal(err)
	}
	if hs := h.holds("r"); hs[0].Until.Before(h.clock.now().Add(refresh)) {
		t.Fatalf("hold %+v", hs[0])
	}
}

func TestReaderWithoutRefreshHoldsUntilWaived(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 1, 0)
	by := consumer("r", key.KindReader, 0, grant("*", "*"))
	for range 3 {
		h.read(by, id)
		h.clock.add(1000 * time.Hour)
	}
	hs := h.holds("r")
	if len(hs) != 1 || !hs[0].Unbound || !hs[0].Until.IsZero() || hs[0].Ended(h.clock.now()) {
		t.Fatalf("holds %+v", hs)
	}
	if n := h.desk.Stats().Holds; n != 1 {
		t.Fatalf("%d writes", n)
	}
	// Once an interval is declared, the next read has an end; a shorter one does
	// not shorten what the longer one promised.
	h.read(consumer("r", key.KindReader, 10*time.Hour, grant("*", "*")), id)
	long := h.holds("r")[0]
	if long.Unbound || long.Until.IsZero() {
		t.Fatalf("hold %+v", long)
	}
	h.clock.add(time.Minute)
	h.read(consumer("r", key.KindReader, time.Minute, grant("*", "*")), id)
	if hs := h.holds("r"); hs[0].Until.Before(long.Until) {
		t.Fatalf("hold was cut from %v to %v", long.Until, hs[0].Until)
	}
}

// A waived hold is written anew when the consumer comes back.
func TestAfterForgetTheNextReadIsHeldAnew(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 1, 0)
	r, gw := consumer("r", key.KindReader, 0, grant("*", "*")), gateway("gw", grant("*", "*"))
	forget := func() {
		h.update(func(tx store.Tx) error {
			for _, name := range []string{"r", "gw"} {
				hs, err := tx.HoldsOf(name)
				if err != nil {
					return err
				}
				for _, x := range hs {
					if err := tx.DeleteHold(x.Consumer, x.Boot, x.Version); err != nil {
						return err
					}
				}
			}
			_, err := tx.TouchAll()
			return err
		})
	}
	h.read(r, id)
	f := h.frame(gw, "b", key.Revision{})
	forget()
	if len(h.holds("r"))+len(h.holds("gw")) != 0 {
		t.Fatal("not waived")
	}
	h.read(r, id)
	f = h.frame(gw, "b", key.Revision{})
	if len(h.holds("r")) != 1 || len(h.holds("gw")) != 1 {
		t.Fatalf("handed out without a hold: %v %v", h.holds("r"), h.holds("gw"))
	}
	forget()
	if g := h.frame(gw, "b", f.Revision); g.Full || len(h.holds("gw")) != 1 {
		t.Fatalf("a process that is alive after all is not waited for: %v", h.holds("gw"))
	}
	forget()
	h.desk.Forgotten("gw")
	if g := h.frame(gw, "b", f.Revision); !g.Full {
		t.Fatal("a forgotten process got a difference")
	}
	if len(h.holds("gw")) != 1 {
		t.Fatal("handed out without a hold")
	}
}

func TestReadsFromMemory(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 1, 0)
	by := consumer("r", key.KindReader, time.Hour, grant("*", "*"))
	first := h.read(by, id)
	if again := h.read(by, id); again != first {
		t.Fatal("opened again")
	}
	h.install(cred("b", "prod"), 1, 0)
	if again := h.read(by, id); again != first {
		t.Fatal("opened again though another credential changed")
	}
	if n := testing.AllocsPerRun(100, func() { h.read(by, id) }); n > 0 {
		t.Errorf("%v allocations for a read", n)
	}
	if n := h.desk.Stats(); n.Holds != 1 || n.Reads < 100 {
		t.Errorf("stats %+v", n)
	}
}

// Each of few and of many readers is known again, and written once.
func TestManyReadersOfOneKey(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 2, 1)
	const readers = 30
	for round := range 3 {
		for i := range readers {
			h.read(consumer(fmt.Sprintf("r%d", i), key.KindReader, time.Hour, grant("*", "*")), id)
			if n, want := h.desk.Stats().Holds, int64(2*(i+1)); round == 0 && n != want {
				t.Fatalf("%d holds written for %d readers of two versions", n, i+1)
			}
		}
	}
	if n := h.desk.Stats().Holds; n != 2*readers {
		t.Fatalf("%d holds written for %d readers of two versions", n, readers)
	}
	// After a restart they are known from the store.
	d := h.newDesk(h.store)
	for i := range readers {
		if _, err := d.ReadPair(t.Context(), consumer(fmt.Sprintf("r%d", i), key.KindReader, time.Hour, grant("*", "*")), id); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.Stats().Holds; n != 0 {
		t.Fatalf("%d holds written again", n)
	}
}

func TestTokens(t *testing.T) {
	h := newHouse(t)
	put := func(name, hash string) {
		h.update(func(tx store.Tx) error {
			if err := tx.PutToken(access.Token{Name: name, Hash: hash, Role: access.RoleViewer}); err != nil {
				return err
			}
			_, err := tx.TouchAll()
			return err
		})
	}
	if _, err := h.desk.TokenByHash(t.Context(), "aa"); !errors.Is(err, key.ErrNotFound) {
		t.Fatal(err)
	}
	put("ada", "aa")
	h.update(func(tx store.Tx) error { // made without a revision of its own
		return tx.PutToken(access.Token{Name: "eve", Hash: "ee", Role: access.RoleViewer})
	})
	if tok, err := h.desk.TokenByHash(t.Context(), "ee"); err != nil || tok.Name != "eve" {
		t.Fatal(tok, err)
	}
	if tok, err := h.desk.TokenByHash(t.Context(), "aa"); err != nil || tok.Name != "ada" {
		t.Fatal(tok, err)
	}
	h.update(func(tx store.Tx) error {
		if err := tx.DeleteToken("ada"); err != nil {
			return err
		}
		_, err := tx.TouchAll()
		return err
	})
	if _, err := h.desk.TokenByHash(t.Context(), "aa"); !errors.Is(err, key.ErrNotFound) {
		t.Fatalf("a withdrawn token is taken: %v", err)
	}
}

func TestNothingShowsPlaintext(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 2, 1)
	o := h.read(consumer("r", key.KindReader, 0, grant("*", "*")), id)
	f := h.frame(gateway("gw", grant("*", "*")), "b", key.Revision{})
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "handout", o, "frame", fmt.Sprintf("%+v", f), "desk", fmt.Sprintf("%+v", h.desk))
	shown := log.String() + fmt.Sprintf("%v %+v %#v %s %q %x", o, o, o, o, o, o) + fmt.Sprintf("%v %+v %#v", f, f, f)
	if b, err := json.Marshal(o); err == nil {
		t.Errorf("encoded: %s", b)
	}
	if strings.Contains(shown, "PLAIN") || strings.Contains(shown, "504c41494e") {
		t.Fatal("plaintext is shown")
	}
	// A key that does not open says which, and nothing of it; it fails the frame.
	h.update(func(tx store.Tx) error {
		s, err := tx.Sealed(at(id, 1))
		if err != nil {
			return err
		}
		if err := tx.PutSealed(at(id, 2), s); err != nil {
			return err
		}
		_, err = tx.Touch(id)
		return err
	})
	_, err := h.desk.Frame(t.Context(), gateway("gw", grant("*", "*")), "b", f.Revision)
	if !errors.Is(err, secret.ErrOpen) || !strings.Contains(err.Error(), "a/prod@v2") || strings.Contains(err.Error(), "PLAIN") {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	h := newHouse(t)
	id := cred("a", "prod")
	h.install(id, 1, 0)
	var wg sync.WaitGroup
	for i := range 16 {
		gw := gateway(fmt.Sprintf("gw%d", i), grant("*", "*"))
		r := consumer(fmt.Sprintf("r%d", i), key.KindReader, time.Hour, grant("*", "*"))
		wg.Go(func() {
			var since key.Revision
			for n := range 20 {
				f, err := h.desk.Frame(t.Context(), gw, "b", since)
				if err != nil {
					t.Error(err)
					return
				}
				since = f.Revision
				if err := h.desk.Ack(t.Context(), gw, evidence.Ack{Boot: "b", Revision: since}); err != nil {
					t.Error(err)
				}
				if err := h.desk.Report(t.Context(), gw, evidence.Report{Boot: "b", Seq: int64(n + 1), Elapsed: time.Duration(n)}); err != nil {
					t.Error(err)
				}
				if _, err := h.desk.ReadPair(t.Context(), r, id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range key.Number(8) {
		h.install(id, n+2, n+1)
	}
	wg.Wait()
	for i := range 16 {
		name := fmt.Sprintf("gw%d", i)
		gw := gateway(name, grant("*", "*"))
		f := h.frame(gw, "b", key.Revision{})
		h.ack(gw, evidence.Ack{Boot: "b", Revision: f.Revision})
		if got := h.held(name, "b"); !slices.Equal(got, []string{"a/prod@v8", "a/prod@v9"}) {
			t.Fatalf("%s holds %v", name, got)
		}
		if b := h.boots(name); len(b) != 1 || b[0].Seq != 20 || b[0].Contiguous != 0 {
			t.Fatalf("%s: %+v", name, b)
		}
	}
}

// One write that fails does not fail those that share its transaction.
func TestAFailingWriteFailsAlone(t *testing.T) {
	h := newHouse(t)
	h.install(cred("a", "prod"), 1, 0)
	now := h.store.Revision()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			gw := gateway(fmt.Sprintf("gw%d", i), grant("*", "*"))
			a := evidence.Ack{Boot: "b", Revision: now}
			if i%4 == 0 {
				a.Revision.Number += 1000
			}
			if err := h.desk.Ack(t.Context(), gw, a); errors.Is(err, key.ErrStale) != (i%4 == 0) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i := range 40 {
		if n := len(h.boots(fmt.Sprintf("gw%d", i))); (n == 1) != (i%4 != 0) {
			t.Errorf("gw%d: %d boots", i, n)
		}
	}
}

func BenchmarkReadPair(b *testing.B) {
	h := newHouse(b)
	id := cred("a", "prod")
	h.install(id, 2, 1)
	by := consumer("r", key.KindReader, time.Hour, grant("prod", "a"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.desk.ReadPair(b.Context(), by, id); err != nil {
			b.Fatal(err)
		}
	}
}
