package notify_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/notify"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlite"
)

var id = key.CredentialID{Service: "billing-api", Environment: "prod"}

func version(n key.Number) key.VersionID { return key.VersionID{Credential: id, Number: n} }

// memory is a store that keeps what a notifier reads and writes. Calls of any
// other method panic.
type memory struct {
	store.Store
	mu         sync.Mutex
	cred       key.Credential
	versions   []key.Version
	open       *rotation.Rotation
	boots      []evidence.Boot
	alerts     map[string]alert.Alert
	deliveries map[string]alert.Delivery
	settings   map[string]string
	asks       []evidence.Ask
	touched    int
	heads      int64
	entries    []audit.Entry
	broken     error // of every write
}

func newMemory() *memory {
	m := &memory{cred: key.Credential{ID: id, Slots: key.Slots{Primary: 2, Fallback: 3}},
		alerts: map[string]alert.Alert{}, deliveries: map[string]alert.Delivery{}, settings: map[string]string{},
		boots: []evidence.Boot{{Consumer: "gw", Kind: key.KindGateway, Boot: "b1", Seen: time.Now()}}}
	for n, s := range map[key.Number]key.State{2: key.StatePrimary, 3: key.StateFallback} {
		m.versions = append(m.versions, key.Version{ID: version(n), State: s})
	}
	return m
}

func (m *memory) View(_ context.Context, fn func(store.Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fn(&tx{m: m})
}

func (m *memory) Observe(_ context.Context, fn func(store.Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commit(&tx{m: m}, fn)
}

func (m *memory) Update(_ context.Context, why audit.Entry, fn func(store.Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commit(&tx{m: m, entries: []audit.Entry{why}, update: true}, fn)
}

func (m *memory) commit(t *tx, fn func(store.Tx) error) error {
	if m.broken != nil {
		return m.broken
	}
	if err := fn(t); err != nil {
		return err
	}
	for _, w := range t.writes {
		w()
	}
	m.entries = append(m.entries, t.entries...)
	return nil
}

type tx struct {
	store.Tx
	m       *memory
	update  bool
	entries []audit.Entry
	writes  []func()
}

func (t *tx) write(fn func()) error { t.writes = append(t.writes, fn); return nil }

func (t *tx) Credentials() ([]key.Credential, error)              { return []key.Credential{t.m.cred}, nil }
func (t *tx) Credential(key.CredentialID) (key.Credential, error) { return t.m.cred, nil }
func (t *tx) Versions(key.CredentialID) ([]key.Version, error) {
	return slices.Clone(t.m.versions), nil
}
func (t *tx) AllVersions(...key.State) ([]key.Version, error)                   { return nil, nil }
func (t *tx) Boots(...string) ([]evidence.Boot, error)                          { return slices.Clone(t.m.boots), nil }
func (t *tx) Asks(key.CredentialID) ([]evidence.Ask, error)                     { return t.m.asks, nil }
func (t *tx) Setting(name string) (string, error)                               { return t.m.settings[name], nil }
func (t *tx) Retirements(key.CredentialID) (r []rotation.Retirement, err error) { return nil, nil }

// Everything is always new to whoever asks what has changed.
func (t *tx) Head() (audit.Head, error)       { t.m.heads++; return audit.Head{Seq: t.m.heads}, nil }
func (t *tx) Revision() (key.Revision, error) { return key.Revision{Epoch: 1}, nil }
func (t *tx) Entries(from int64, limit int) ([]audit.Entry, error) {
	return []audit.Entry{{Seq: from, Action: "test.changed"}}, nil
}

func (t *tx) OpenRotation(key.CredentialID) (rotation.Rotation, error) {
	if t.m.open == nil {
		return rotation.Rotation{}, key.ErrNotFound
	}
	return *t.m.open, nil
}

func (t *tx) OpenRotations() ([]rotation.Rotation, error) {
	if t.m.open == nil {
		return nil, nil
	}
	return []rotation.Rotation{*t.m.open}, nil
}

func (t *tx) Alerts(s alert.State, _ int) ([]alert.Alert, error) {
	var out []alert.Alert
	for _, id := range slices.Sorted(maps.Keys(t.m.alerts)) {
		if a := t.m.alerts[id]; s == "" || a.State == s {
			out = append(out, a)
		}
	}
	return out, nil
}

func (t *tx) Deliveries(due time.Time) ([]alert.Delivery, error) {
	var out []alert.Delivery
	for _, id := range slices.Sorted(maps.Keys(t.m.deliveries)) {
		if d := t.m.deliveries[id]; d.Sent.IsZero() && !d.Next.After(due) {
			out = append(out, d)
		}
	}
	slices.SortStableFunc(out, func(a, b alert.Delivery) int { return a.Created.Compare(b.Created) })
	return out, nil
}

func (t *tx) PutAlert(a alert.Alert) error       { return t.write(func() { t.m.alerts[a.ID] = a }) }
func (t *tx) PutDelivery(d alert.Delivery) error { return t.write(func() { t.m.deliveries[d.ID] = d }) }
func (t *tx) PutSetting(n, v string) error       { return t.write(func() { t.m.settings[n] = v }) }
func (t *tx) PutAsks(_ key.CredentialID, a []evidence.Ask) error {
	return t.write(func() { t.m.asks = a })
}
func (t *tx) Audit(e audit.Entry) error {
	t.entries = append(t.entries, e)
	return nil
}
func (t *tx) Touch(key.CredentialID) (key.Revision, error) {
	if !t.update {
		return key.Revision{}, store.ErrWrongTx
	}
	return key.Revision{}, t.write(func() { t.m.touched++ })
}

// use changes what the gateway has counted for one version.
func (m *memory) use(n key.Number, change func(*evidence.Use)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boots[0]
	u := b.Use(version(n))
	change(&u)
	m.boots[0] = b.Merge(evidence.Report{Consumer: b.Consumer, Boot: b.Boot, Seq: b.Seq + 1, Uses: []evidence.Use{u}}, time.Now())
}

// carry is a request that the primary was refused for and the fallback
// answered.
func (m *memory) carry() {
	m.use(2, func(u *evidence.Use) { u.Live.Auth++; u.Worse++; u.LastAuth = "401 Unauthorized" })
	m.use(3, func(u *evidence.Use) { u.Live.OK++; u.Better++ })
}

func (m *memory) swap() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cred.Slots = key.Slots{Primary: 3, Fallback: 2}
}

func (m *memory) actions() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, e := range m.entries {
		out = append(out, e.Action)
	}
	return out
}

// asked returns what is asked for, and how often the credential was touched.
func (m *memory) asked() ([]evidence.Ask, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.asks), m.touched
}

// channel takes what it is sent, or answers with fail.
type channel struct {
	mu   sync.Mutex
	got  []string // "+1s firing 1"
	fail func(d alert.Delivery) error
	busy bool
	t    *testing.T
}

func (c *channel) Send(ctx context.Context, d alert.Delivery) error {
	c.mu.Lock()
	if c.busy {
		c.t.Error("two deliveries at the same time")
	}
	c.busy = true
	fail := c.fail
	c.mu.Unlock()
	var err error
	if fail != nil {
		err = fail(d)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = false
	c.got = append(c.got, fmt.Sprintf("%s %d %v", d.Alert.State, d.Alert.Change, err == nil))
	return err
}

func (c *channel) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

func (c *channel) refuse(fail func(alert.Delivery) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = fail
}

func start(t *testing.T, m *memory, channels map[string]notify.Sender) (stop func()) {
	t.Helper()
	n, err := notify.New(notify.Config{Store: m, Channels: channels})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	}
}

func wait(d time.Duration) { time.Sleep(d); synctest.Wait() } // inside a bubble: no time passes

func TestFiresAndResolves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(), &channel{t: t}
		stop := start(t, m, map[string]notify.Sender{"c": c})
		wait(1500 * time.Millisecond)
		m.carry()
		wait(time.Second)
		if got := c.seen(); !slices.Equal(got, []string{"firing 1 true"}) {
			t.Errorf("after the first failure it has got %q", got)
		}
		wait(time.Minute)
		m.swap()
		wait(time.Second)
		if got := c.seen(); !slices.Equal(got, []string{"firing 1 true", "resolved 2 true"}) {
			t.Errorf("after the swap it has got %q", got)
		}
		if got := m.actions(); !slices.Equal(got, []string{"alert.fired", "alert.resolved"}) {
			t.Errorf("the audit log has %q", got)
		}
		e := m.entries[0]
		if e.Credential != id || e.Version != 2 || e.Actor != "keybaton" || e.Detail["cause"] == "" || e.Detail["kind"] != "spike" {
			t.Errorf("the entry is %+v", e)
		}
		stop()
		if len(m.alerts) != 1 || len(m.deliveries) != 2 {
			t.Errorf("there are %d alerts, %d deliveries", len(m.alerts), len(m.deliveries))
		}
	})
}

// A restart in the middle fires nothing anew, loses nothing, and resolves
// nothing by itself.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(), &channel{t: t}
		m.use(2, func(u *evidence.Use) { u.Live.Auth = 9; u.Worse = 9 }) // history
		all := map[string]notify.Sender{"c": c}
		stop := start(t, m, all)
		wait(3 * time.Second)
		stop()
		m.carry() // while nobody looks
		stop = start(t, m, all)
		wait(time.Second)
		stop()
		for range 3 {
			stop = start(t, m, all)
			wait(90 * time.Second)
			stop()
		}
		if got := c.seen(); !slices.Equal(got, []string{"firing 1 true"}) {
			t.Errorf("it has got %q", got)
		}
		stop = start(t, m, all)
		m.swap()
		wait(time.Second)
		stop()
		if got := c.seen(); !slices.Equal(got, []string{"firing 1 true", "resolved 2 true"}) {
			t.Errorf("it has got %q", got)
		}
	})
}

// A channel that is down gets everything later, in order; it holds up no other,
// and is called less and less often.
func TestBackoffKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, down, up := newMemory(), &channel{t: t}, &channel{t: t}
		down.refuse(func(alert.Delivery) error { return errors.New("connection refused") })
		all := map[string]notify.Sender{"down": down, "up": up}
		stop := start(t, m, all)
		wait(time.Second)
		m.carry()
		wait(2 * time.Second)
		m.swap()
		wait(time.Minute)
		if got := up.seen(); !slices.Equal(got, []string{"firing 1 true", "resolved 2 true"}) {
			t.Errorf("the other channel has got %q", got)
		}
		got := down.seen()
		if len(got) < 4 || len(got) > 8 || slices.ContainsFunc(got, func(s string) bool { return s != "firing 1 false" }) {
			t.Errorf("in a minute it was tried as %q", got)
		}
		stop()
		stop = start(t, m, all) // also by the next process
		wait(time.Hour)
		down.refuse(nil)
		wait(7 * time.Minute)
		stop()
		got = down.seen()
		if i := slices.Index(got, "firing 1 true"); i < 0 || !slices.Equal(got[i:], []string{"firing 1 true", "resolved 2 true"}) {
			t.Errorf("when it was up again it got %q", got)
		}
		for _, d := range m.deliveries {
			if d.Sent.IsZero() || d.Error != "" || d.Attempts == 0 {
				t.Errorf("a delivery ended as %+v", d)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(), &channel{t: t}
		c.refuse(func(alert.Delivery) error {
			return fmt.Errorf("sending: %w", &notify.Later{After: 30 * time.Second, Err: errors.New("answered 429")})
		})
		stop := start(t, m, map[string]notify.Sender{"c": c})
		defer stop()
		wait(time.Second)
		m.carry()
		wait(2 * time.Second)
		c.refuse(nil)
		wait(25 * time.Second)
		if got := c.seen(); !slices.Equal(got, []string{"firing 1 false"}) {
			t.Errorf("before the time it has got %q", got)
		}
		wait(10 * time.Second)
		if got := c.seen(); !slices.Equal(got, []string{"firing 1 false", "firing 1 true"}) {
			t.Errorf("after the time it has got %q", got)
		}
	})
}

// A channel that hangs is cut off, and its delivery is tried again.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		calls := make(chan time.Duration, 10)
		begin := time.Now()
		stop := start(t, m, map[string]notify.Sender{"c": senderFunc(func(ctx context.Context, _ alert.Delivery) error {
			calls <- time.Since(begin)
			<-ctx.Done()
			return ctx.Err()
		})})
		wait(time.Second)
		m.carry()
		wait(13 * time.Second)
		stop()
		if len(calls) != 2 {
			t.Errorf("called %d times", len(calls))
		}
	})
}

type senderFunc func(context.Context, alert.Delivery) error

func (f senderFunc) Send(ctx context.Context, d alert.Delivery) error { return f(ctx, d) }

// What could not be stored is seen again.
func TestStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(), &channel{t: t}
		stop := start(t, m, map[string]notify.Sender{"c": c})
		defer stop()
		wait(time.Second)
		m.mu.Lock()
		m.broken = key.ErrFull
		m.mu.Unlock()
		m.carry()
		wait(5 * time.Second)
		if got := c.seen(); len(got) != 0 {
			t.Errorf("what was not stored was sent: %q", got)
		}
		m.mu.Lock()
		m.broken = nil
		m.mu.Unlock()
		wait(time.Second)
		if got := c.seen(); !slices.Equal(got, []string{"firing 1 true"}) {
			t.Errorf("it has got %q", got)
		}
	})
}

// Deliveries to a channel that was taken away end.
func TestChannelTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(), &channel{t: t}
		c.refuse(func(alert.Delivery) error { return errors.New("no") })
		stop := start(t, m, map[string]notify.Sender{"c": c})
		wait(time.Second)
		m.carry()
		wait(time.Second)
		stop()
		stop = start(t, m, nil)
		wait(time.Second)
		stop()
		for _, d := range m.deliveries {
			if d.Sent.IsZero() || d.Error == "" {
				t.Errorf("it is still waiting: %+v", d)
			}
		}
	})
}

// Probes are asked for while a refusal is undecided, once, and taken back; what
// a rotation asks stays.
func TestAsks(t *testing.T) {
	setup := func() *memory {
		m := newMemory()
		m.cred.Slots.Fallback = 0
		m.cred.Call.Probe = &key.Probe{Path: "/me"}
		return m
	}
	refuse := func(m *memory) {
		m.use(2, func(u *evidence.Use) { u.Live.OK += 5; u.Live.Auth++; u.LastAuth = "401 Unauthorized" })
	}
	t.Run("asked and taken back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := setup()
			stop := start(t, m, nil)
			wait(1500 * time.Millisecond)
			refuse(m)
			wait(time.Second)
			if got, n := m.asked(); !slices.Equal(got, []evidence.Ask{{Version: version(2), OK: 6}}) || n != 1 {
				t.Errorf("asks for %+v (touched %d)", got, n)
			}
			stop()
			stop = start(t, m, nil)
			for range 20 { // traffic goes on, and is no other question
				m.use(2, func(u *evidence.Use) { u.Live.OK++ })
				wait(time.Second)
			}
			if _, n := m.asked(); n != 1 {
				t.Errorf("touched %d times", n)
			}
			wait(time.Minute)
			stop()
			if got, n := m.asked(); len(got) != 0 || n != 2 || !slices.Equal(m.actions(), []string{"detect.asked", "detect.asked"}) {
				t.Errorf("afterwards it asks for %+v (touched %d), with %q", got, n, m.actions())
			}
		})
	})
	t.Run("others' asks stay", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := setup()
			theirs := []evidence.Ask{{Version: version(9), OK: 1}}
			m.asks = theirs
			stop := start(t, m, nil)
			wait(1500 * time.Millisecond)
			refuse(m)
			wait(2 * time.Minute)
			stop()
			if got, n := m.asked(); !slices.Equal(got, theirs) || n != 0 {
				t.Errorf("asks for %+v (touched %d)", got, n)
			}
		})
	})
}

func TestNew(t *testing.T) {
	if _, err := notify.New(notify.Config{}); !errors.Is(err, key.ErrInvalid) {
		t.Errorf("without a store: %v", err)
	}
	if _, err := notify.New(notify.Config{Store: newMemory(), Channels: map[string]notify.Sender{"x": nil}}); !errors.Is(err, key.ErrInvalid) {
		t.Errorf("without a sender: %v", err)
	}
}

// The same on the real store.
func TestOnSQLite(t *testing.T) {
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "keybaton.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	report := func(seq, auth int64) {
		t.Helper()
		err := s.Observe(t.Context(), func(tx store.Tx) error {
			return tx.PutBoot(evidence.Boot{Consumer: "gw", Kind: key.KindGateway, Boot: "b1", Seq: seq, Seen: tx.Now(), Uses: []evidence.Use{
				{Version: version(1), Live: evidence.Counts{OK: 10, Auth: auth}, Worse: auth, LastAuth: "401 Unauthorized"},
				{Version: version(2), Live: evidence.Counts{OK: auth}, Better: auth},
			}})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err = s.Update(t.Context(), audit.Entry{Actor: "test", Action: "test.seeded"}, func(tx store.Tx) error {
		return errors.Join(
			tx.PutService(key.Service{Name: id.Service, Provider: "manual"}),
			tx.PutCredential(key.Credential{ID: id, Slots: key.Slots{Primary: 1, Fallback: 2}, Next: 3, Created: tx.Now()}),
			tx.PutVersion(key.Version{ID: version(1), State: key.StatePrimary, Origin: key.OriginSet, Fingerprint: "a", Created: tx.Now(), Since: tx.Now()}),
			tx.PutVersion(key.Version{ID: version(2), State: key.StateFallback, Origin: key.OriginSet, Fingerprint: "b", Created: tx.Now(), Since: tx.Now()}),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	report(1, 0)

	got := make(chan alert.Delivery, 10)
	ctx, cancel := context.WithCancel(t.Context())
	n, err := notify.New(notify.Config{Store: s, Every: 5 * time.Millisecond, Channels: map[string]notify.Sender{
		"c": senderFunc(func(_ context.Context, d alert.Delivery) error { got <- d; return nil })}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	next := func() alert.Delivery {
		t.Helper()
		select {
		case d := <-got:
			return d
		case <-time.After(20 * time.Second):
			t.Fatal("nothing was sent")
			return alert.Delivery{}
		}
	}
	// The first look is the baseline; it is stored.
	for deadline := time.Now().Add(20 * time.Second); ; {
		var text string
		if err := s.View(t.Context(), func(tx store.Tx) (err error) { text, err = tx.Setting("detect/state"); return err }); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, `"consumer":"gw"`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the detector has not looked")
		}
	}
	report(2, 1)
	d := next()
	if d.Alert.State != alert.Firing || d.Alert.Signal.Kind != alert.Spike || d.Alert.Signal.Credential != id {
		t.Errorf("got %+v", d)
	}
	err = s.Update(t.Context(), audit.Entry{Actor: "test", Action: "test.swapped"}, func(tx store.Tx) error {
		c, err := tx.Credential(id)
		if err != nil {
			return err
		}
		c.Slots = key.Slots{Primary: 2, Fallback: 1}
		vs, err := tx.Versions(id)
		if err != nil {
			return err
		}
		vs[0].State, vs[1].State = key.StateFallback, key.StatePrimary
		return errors.Join(tx.PutCredential(c), tx.PutVersion(vs[0]), tx.PutVersion(vs[1]))
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := next(); d.Alert.State != alert.Resolved {
		t.Errorf("got %+v", d)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	err = s.View(t.Context(), func(tx store.Tx) error {
		es, err := tx.Entries(1, 0)
		if err != nil {
			return err
		}
		head, err := tx.Head()
		if err != nil {
			return err
		}
		var actions []string
		for _, e := range es {
			actions = append(actions, e.Action)
		}
		if !slices.Equal(actions, []string{"test.seeded", "alert.fired", "test.swapped", "alert.resolved"}) {
			t.Errorf("the audit log has %q", actions)
		}
		return audit.Verify(es, &head)
	})
	if err != nil {
		t.Error(err)
	}
}

// A look reads only what has changed; what changes is seen all the same, however
// it is written.
func TestSeesEveryKindOfChange(t *testing.T) {
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "keybaton.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	update := func(e audit.Entry, fn func(store.Tx) error) {
		t.Helper()
		if e.Actor, e.Action = "test", "test.changed"; e.Detail == nil {
			e.Detail = map[string]string{}
		}
		if err := s.Update(t.Context(), e, fn); err != nil {
			t.Fatal(err)
		}
	}
	of := audit.Entry{Credential: id}
	v := func(n key.Number, st key.State, now time.Time) key.Version {
		return key.Version{ID: version(n), State: st, Origin: key.OriginSet, Fingerprint: n.String(), Created: now, Since: now}
	}
	update(audit.Entry{}, func(tx store.Tx) error {
		return errors.Join(tx.PutService(key.Service{Name: id.Service, Provider: "manual"}),
			tx.PutCredential(key.Credential{ID: id, Slots: key.Slots{Primary: 1, Fallback: 2}, Next: 3, Created: tx.Now()}),
			tx.PutVersion(v(1, key.StatePrimary, tx.Now())), tx.PutVersion(v(2, key.StateFallback, tx.Now())))
	})
	got := make(chan alert.Delivery, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n, err := notify.New(notify.Config{Store: s, Every: 2 * time.Millisecond, Channels: map[string]notify.Sender{
		"c": senderFunc(func(_ context.Context, d alert.Delivery) error { got <- d; return nil })}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	want := func(what string, st alert.State, kind string, ver key.Number) {
		t.Helper()
		select {
		case d := <-got:
			if a := d.Alert; a.State != st || a.Signal.Kind != kind || a.Signal.Version != ver || a.Signal.Credential != id {
				t.Fatalf("%s: got %s %s of %s: %s", what, a.State, a.Signal.Kind, a.Signal.Version, a.Signal.Error)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: nothing was sent", what)
		}
	}
	// The first look is the baseline.
	for deadline := time.Now().Add(20 * time.Second); ; {
		var text string
		if err := s.View(t.Context(), func(tx store.Tx) (err error) { text, err = tx.Setting("detect/state"); return err }); err != nil {
			t.Fatal(err)
		}
		if text != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the detector has not looked")
		}
	}

	// A gate is noted without an audit entry and without a revision.
	r := rotation.Rotation{ID: "r1", Machine: rotation.Machine, Credential: id, Kind: rotation.Manual, State: rotation.WaitingKey, From: 1, To: 3}
	update(of, func(tx store.Tx) error { r.Started = tx.Now(); return tx.PutRotation(r) })
	gate := func(g rotation.Gate) {
		t.Helper()
		if err := s.Observe(t.Context(), func(tx store.Tx) error { return tx.PutGate("r1", g) }); err != nil {
			t.Fatal(err)
		}
	}
	gate(rotation.Gate{Reason: "a key is missing", Person: true})
	want("a gate waits for a person", alert.Firing, alert.Rotation, 3)
	gate(rotation.Gate{Open: true})
	want("it does no more", alert.Resolved, alert.Rotation, 3)

	// A version ends, under an entry that names the credential and without a
	// revision.
	update(of, func(tx store.Tx) error {
		r.State, r.Ended = rotation.Superseded, tx.Now()
		return errors.Join(tx.PutRotation(r), tx.PutVersion(v(2, key.StateUnproven, tx.Now())))
	})
	want("an end was not proven", alert.Firing, alert.RevokeUnproven, 2)
	update(of, func(tx store.Tx) error { return tx.PutVersion(v(2, key.StateRevoked, tx.Now())) })
	want("now it is", alert.Resolved, alert.RevokeUnproven, 2)

	// A primary is refused; another one comes in under such an entry.
	report := func(seq, auth int64) {
		t.Helper()
		if err := s.Observe(t.Context(), func(tx store.Tx) error {
			return tx.PutBoot(evidence.Boot{Consumer: "gw", Kind: key.KindGateway, Boot: "b1", Seq: seq, Seen: tx.Now(), Uses: []evidence.Use{
				{Version: version(1), Live: evidence.Counts{OK: 1, Auth: auth}, Worse: auth, LastAuth: "401 Unauthorized"}}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	report(1, 1)
	want("the primary is refused", alert.Firing, alert.Spike, 1)
	update(of, func(tx store.Tx) error {
		return errors.Join(tx.PutVersion(v(1, key.StateRetired, tx.Now())), tx.PutVersion(v(4, key.StatePrimary, tx.Now())),
			tx.PutCredential(key.Credential{ID: id, Slots: key.Slots{Primary: 4}, Next: 5, Created: tx.Now()}))
	})
	want("it is the primary no more", alert.Resolved, alert.Spike, 1)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
