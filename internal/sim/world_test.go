// Package sim_test drives the real store, engine, desk and recipe engine
// against a simulated vendor, with a clock of its own and a process that dies
// where the test says.
package sim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/handover"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/postgres"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

// TestMain ends the PostgreSQL that tests have started.
func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

var (
	cred    = key.CredentialID{Service: "billing-api", Environment: "prod"}
	manager = key.CredentialID{Service: "billing-admin", Environment: "prod"}
	admin   = access.Principal{Name: "test", Role: access.RoleAdmin}
)

// died is what a process that dies panics with.
type died struct{ effect string }

// plan says at which effect the process dies, and on which side of it.
type plan struct {
	mu      sync.Mutex
	armed   bool
	at      int
	after   bool
	between func() // what others do before an effect; nil: nothing
	lost    bool   // nothing dies: the answer to the call at this effect is lost instead
	n       int
	fired   string
}

// lose counts one call to the vendor, and reports whether its answer is lost.
func (p *plan) lose(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.lost || !p.armed || p.fired != "" {
		return false
	}
	hit := p.n == p.at
	p.n++
	if hit {
		p.fired = name
	}
	return hit
}

// effect counts one effect around fn and dies where the plan says.
func (p *plan) effect(name string, fn func() error) error {
	p.mu.Lock()
	if do := p.between; do != nil {
		p.between = nil // others are not interrupted by others
		p.mu.Unlock()
		do()
		p.mu.Lock()
		p.between = do
	}
	hit := false
	if p.armed && p.fired == "" && !p.lost {
		hit = p.n == p.at
		p.n++
	}
	if hit {
		p.fired = name
	}
	p.mu.Unlock()
	if hit && !p.after {
		panic(died{name})
	}
	err := fn()
	if hit {
		panic(died{name})
	}
	return err
}

// mortal is a store whose commits are effects.
type mortal struct {
	store.Store
	plan *plan
}

func (m mortal) Update(ctx context.Context, why audit.Entry, fn func(store.Tx) error) error {
	return m.plan.effect("update "+why.Action, func() error { return m.Store.Update(ctx, why, fn) })
}

func (m mortal) Observe(ctx context.Context, fn func(store.Tx) error) error {
	return m.plan.effect("observe", func() error { return m.Store.Observe(ctx, fn) })
}

// wire is a transport whose calls to the vendor are effects.
type wire struct {
	http.RoundTripper
	plan *plan
}

func (w wire) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	e := w.plan.effect(r.Method+" "+r.URL.Path, func() error {
		resp, err = w.RoundTripper.RoundTrip(r)
		return err
	})
	if e == nil && w.plan.lose(r.Method+" "+r.URL.Path) {
		return nil, io.ErrUnexpectedEOF
	}
	return resp, e
}

// direct is a transport straight into a handler. An answer that the handler
// aborts is one that was lost on the way.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				panic(p)
			}
			resp, err = nil, io.ErrUnexpectedEOF
		}
	}()
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.RequestURI, in.RemoteAddr = r.URL.RequestURI(), "192.0.2.1:1234"
	w := httptest.NewRecorder()
	d.ServeHTTP(w, in)
	resp = w.Result()
	resp.Request = r
	return resp, nil
}

// world is one server that may die, its vendor, and its gateways.
type world struct {
	t      *testing.T
	dir    string
	clock  time.Time
	plan   *plan
	vendor *vendortest.Vendor
	url    string
	policy rotation.Policy
	shape  string // the recipe: "simulated", or one of testdata

	store    store.Store
	config   engine.Config
	engine   *engine.Engine
	other    *engine.Engine
	desk     *handover.Desk
	process  int
	gates    []*gateway
	database string // URL of PostgreSQL; "": a file
	epoch    bool   // the store was restored: begin the next epoch
	outage   bool   // requests may fail: the vendor has one key and replaces it at once
	asked    int64  // requests of callers
	failed   int64
}

func newWorld(t *testing.T, p *plan, c vendortest.Config, gateways int) *world {
	return newWorldAt(t, "", p, c, gateways)
}

// newWorldAt is newWorld with its store in a database of PostgreSQL, or in a
// file for "".
func newWorldAt(t *testing.T, database string, p *plan, c vendortest.Config, gateways int) *world {
	w := &world{t: t, shape: "simulated", database: database, dir: memoryDir(t), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), plan: p,
		policy: rotation.Policy{Name: "quick", Soak: rotation.Soak{For: 2 * time.Second, Requests: 5, Probes: 3}, Quiet: 2 * time.Second, Watch: time.Second}}
	c.Now = w.now
	w.vendor = vendortest.New(c)
	w.url = "http://127.0.0.1:9" // nobody listens there: the transport goes straight into the vendor
	w.start()
	t.Cleanup(func() { _ = w.store.Close() })
	for i := range gateways {
		w.gates = append(w.gates, &gateway{name: fmt.Sprintf("gw-%d", i), boot: "boot", uses: map[key.VersionID]*evidence.Use{}})
	}
	return w
}

// memoryDir returns a directory for the test, in memory where the system has a
// place for that: the tests wait for thousands of commits.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "keybaton-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (w *world) now() time.Time { return w.clock }

type keySource struct{ store store.Store }

func (k keySource) DataKeys(ctx context.Context) (m map[string][]byte, err error) {
	err = k.store.View(ctx, func(tx store.Tx) error { m, err = tx.DataKeys(); return err })
	return m, err
}

func (k keySource) PutDataKey(ctx context.Context, name string, wrapped []byte) error {
	return k.store.Update(ctx, audit.Entry{Actor: "test", Action: "datakey.created"}, func(tx store.Tx) error { return tx.PutDataKey(name, wrapped) })
}

// open opens the store: the file, or the database.
func (w *world) open() store.Store {
	w.t.Helper()
	if w.database != "" {
		st, err := postgres.Open(w.t.Context(), w.database, postgres.Options{Now: w.now, NewEpoch: w.epoch, Poll: time.Hour})
		w.must(err)
		return st
	}
	st, err := sqlite.Open(w.t.Context(), filepath.Join(w.dir, "keybaton.db"), sqlite.Options{Now: w.now, NewEpoch: w.epoch})
	w.must(err)
	return st
}

// start begins a new process on the same files.
func (w *world) start() {
	w.t.Helper()
	st := w.open()
	w.store = st
	m, err := seal.LoadOrCreateMaster(filepath.Join(w.dir, "config", "master.key"))
	w.must(err)
	ring := seal.New(m, keySource{st})
	w.must(ring.Check(w.t.Context()))
	drivers, err := recipe.Drivers()
	w.must(err)
	for name, r := range shapes(w.t) {
		drivers[name] = r
	}
	w.process++
	w.config = engine.Config{Store: mortal{st, w.plan}, Keyring: ring, Providers: drivers, Owner: fmt.Sprintf("process-%d", w.process), Lease: 10 * time.Second,
		Poll: 100 * time.Millisecond, Transport: wire{direct{w.vendor}, w.plan}, Event: func(what string, id key.CredentialID, err error) {
			if !errors.Is(err, key.ErrConflict) {
				w.t.Logf("%s %s: %v", what, id, err)
			}
		}}
	w.engine = engine.New(w.config)
	// What people ask comes through another server on the same store.
	w.other = engine.New(engine.Config{Store: st, Keyring: ring, Providers: drivers, Owner: fmt.Sprintf("other-%d", w.process), Lease: 10 * time.Second,
		Poll: 100 * time.Millisecond, Transport: direct{w.vendor}})
	w.desk = handover.New(handover.Config{Store: st, Keyring: ring, Now: w.now})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// setUp manages the vendor's credential and waits for its first key.
func (w *world) setUp() {
	w.t.Helper()
	w.configure()
	_, err := w.engine.Rotate(w.t.Context(), admin, cred, engine.RotateOptions{})
	w.must(err)
	w.settle(200)
}

// configure declares what is managed, and the manager key.
func (w *world) configure() {
	w.t.Helper()
	ctx := w.t.Context()
	w.must(w.engine.Configure(ctx, admin, engine.Configuration{
		Policies: []rotation.Policy{w.policy},
		Services: []key.Service{
			{Name: cred.Service, Provider: w.shape, Params: map[string]string{"base_url": w.url}, Manager: manager.Service},
			{Name: manager.Service, Provider: "manual", Call: key.Call{Upstream: w.url}},
		},
		Credentials: []key.Credential{{ID: cred, Policy: "quick"}, {ID: manager, Policy: "quick"}},
	}))
	_, err := w.engine.Set(ctx, admin, manager, secret.Parts{"key": secret.FromString(vendortest.DefaultManager)}, key.OriginSet, "")
	if !errors.Is(err, key.ErrExists) {
		w.must(err)
	}
}

// adopt says which of the vendor's keys version n is.
func (w *world) adopt(n key.Number, vendorID string) {
	w.t.Helper()
	_, err := w.engine.Adopt(w.t.Context(), admin, cred, engine.AdoptOptions{Version: n, VendorID: vendorID})
	w.must(err)
}

// useElsewhere uses a key where no consumer is known.
func (w *world) useElsewhere(k string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.url+"/v1/elsewhere", nil)
	w.must(err)
	req.Header.Set("Authorization", "Bearer "+k)
	resp, err := direct{w.vendor}.RoundTrip(req)
	w.must(err)
	if resp.StatusCode != http.StatusOK {
		w.t.Fatalf("a copy elsewhere was refused: %s", resp.Status)
	}
}

// step lets the engine do what is due. A process that dies is followed by
// another one.
func (w *world) step() {
	w.survive(func() {
		for {
			worked, err := w.engine.Step(w.t.Context())
			if err != nil && !errors.Is(err, key.ErrFenced) {
				w.t.Fatalf("step: %v", err)
			}
			if !worked {
				return
			}
			w.check()
		}
	})
}

// survive runs fn in the present process; when that dies, the next one starts,
// and survive reports it.
func (w *world) survive(fn func()) (dead bool) {
	defer func() {
		if r := recover(); r != nil {
			d, ok := r.(died)
			if !ok {
				panic(r)
			}
			w.t.Logf("died at %s", d.effect)
			dead = true
			w.must(w.store.Close())
			w.clock = w.clock.Add(11 * time.Second) // the dead one's lease ends
			w.start()
		}
	}()
	fn()
	return false
}

// tick lets time pass, and consumers work.
func (w *world) tick(d time.Duration) {
	w.clock = w.clock.Add(d)
	for _, g := range w.gates {
		g.elapsed += d
		g.follow(w)
		for range 2 {
			g.request(w)
		}
		g.probe(w)
		g.report(w)
	}
	w.check()
}

// settle goes on until nothing is left to do.
func (w *world) settle(limit int) {
	w.t.Helper()
	for range limit {
		w.step()
		w.tick(300 * time.Millisecond)
		if w.idle() {
			return
		}
	}
	w.t.Fatalf("it does not settle: %s", w.describe())
}

func (w *world) idle() bool {
	idle := false
	w.view(func(tx store.Tx) {
		_, err := tx.OpenRotation(cred)
		rets, _ := tx.Retirements(cred)
		c, _ := tx.Credential(cred)
		idle = errors.Is(err, key.ErrNotFound) && len(rets) == 0 && c.Slots.Primary != 0 && (!w.policy.Spare || c.Slots.Fallback != 0)
	})
	return idle
}

func (w *world) view(fn func(store.Tx)) {
	w.t.Helper()
	w.must(w.store.View(w.t.Context(), func(tx store.Tx) error { fn(tx); return nil }))
}

func (w *world) describe() string {
	s := ""
	w.view(func(tx store.Tx) {
		c, _ := tx.Credential(cred)
		s = fmt.Sprintf("slots %+v", c.Slots)
		if r, err := tx.OpenRotation(cred); err == nil {
			s += fmt.Sprintf("; rotation %s %s: %s %v", r.Kind, r.State, r.Gate.Reason, r.Gate.Missing)
		}
		rets, _ := tx.Retirements(cred)
		for _, r := range rets {
			s += fmt.Sprintf("; %s %s: %s %v", r.Version.Number, r.State, r.Gate.Reason, r.Gate.Missing)
		}
		vs, _ := tx.Versions(cred)
		for _, v := range vs {
			s += fmt.Sprintf("; %s is %s", v.ID.Number, v.State)
		}
	})
	return s
}

// check proves the rules that must hold at every moment.
func (w *world) check() {
	w.t.Helper()
	if w.failed > 0 && !w.outage {
		w.t.Fatalf("%d of %d requests failed: %s", w.failed, w.asked, w.describe())
	}
	w.view(func(tx store.Tx) {
		holds, err := tx.Holds(cred)
		w.must(err)
		for _, h := range holds {
			v, err := tx.Version(h.Version)
			w.must(err)
			switch v.State {
			case key.StateDisabling, key.StateDisabled, key.StateRevoking, key.StateRevoked, key.StateUnproven:
				if w.outage {
					continue // the vendor ended it
				}
				w.t.Fatalf("%s is %s while %s holds it", v.ID, v.State, h.Consumer)
			}
		}
	})
}

// finish checks what must be true when all is over: the vendor's own list and
// the store agree, and the audit chain is whole.
func (w *world) finish() {
	w.t.Helper()
	w.view(func(tx store.Tx) {
		c, err := tx.Credential(cred)
		w.must(err)
		vs, err := tx.Versions(cred)
		w.must(err)
		byID := map[string]key.Version{}
		for _, v := range vs {
			if v.VendorID != "" {
				byID[v.VendorID] = v
			}
		}
		for _, k := range w.vendor.Keys() {
			v, known := byID[k.ID]
			switch {
			case k.Revoked && known && c.Slots.Has(v.ID.Number):
				w.t.Errorf("the vendor revoked %s, which is in a slot", v.ID)
			case !k.Revoked && !known:
				w.t.Errorf("the vendor has %s (%s), which the store does not know", k.ID, k.Name)
			case !k.Revoked && !c.Slots.Has(v.ID.Number):
				w.t.Errorf("%s (%s) lives on at the vendor", v.ID, v.State)
			}
		}
		var entries []audit.Entry
		for from := int64(1); ; {
			es, err := tx.Entries(from, 500)
			w.must(err)
			if len(es) == 0 {
				break
			}
			entries = append(entries, es...)
			from = es[len(es)-1].Seq + 1
		}
		w.must(audit.Verify(entries, nil))
	})
}

// gateway is a consumer that follows the server through the real desk: it
// serves from its frame, falls back, probes what it is asked to, acknowledges
// and reports.
type gateway struct {
	name, boot string
	frame      link.Frame
	elapsed    time.Duration
	seq        int64
	uses       map[key.VersionID]*evidence.Use
	cut        bool
}

func (g *gateway) principal() access.Principal {
	return access.Principal{Name: g.name, Role: access.RoleGateway, Kind: key.KindGateway, Grants: []access.Grant{{Environment: "prod", Services: []string{cred.Service}}}}
}

func (g *gateway) follow(w *world) {
	if g.cut || w.store.Revision() == g.frame.Revision {
		return
	}
	f, err := w.desk.Frame(w.t.Context(), g.principal(), g.boot, g.frame.Revision)
	w.must(err)
	g.frame = g.frame.Apply(f)
	w.must(w.desk.Ack(w.t.Context(), g.principal(), evidence.Ack{Consumer: g.name, Boot: g.boot, Revision: g.frame.Revision, Elapsed: g.elapsed}))
}

func (g *gateway) credential() (link.Credential, bool) {
	i := slices.IndexFunc(g.frame.Credentials, func(c link.Credential) bool { return c.ID == cred })
	if i < 0 {
		return link.Credential{}, false
	}
	return g.frame.Credentials[i], true
}

func (g *gateway) use(n key.Number) *evidence.Use {
	id := key.VersionID{Credential: cred, Number: n}
	if g.uses[id] == nil {
		g.uses[id] = &evidence.Use{Version: id}
	}
	return g.uses[id]
}

// send asks the vendor with one version.
func (g *gateway) send(w *world, c link.Credential, n key.Number) evidence.Outcome {
	i := slices.IndexFunc(c.Versions, func(v link.Version) bool { return v.Number == n })
	p, err := call.CompileProbe(c.Call)
	w.must(err)
	res, err := p.Do(w.t.Context(), direct{w.vendor}, secret.PartsOf(c.Versions[i].Parts))
	w.must(err)
	return res.Outcome
}

// request is one caller's request, with fallback.
func (g *gateway) request(w *world) {
	c, ok := g.credential()
	if !ok || c.Slots.Primary == 0 {
		return
	}
	w.asked++
	var refused []key.Number
	for _, n := range c.Slots.Served() {
		u := g.use(n)
		u.LastUse = g.elapsed
		o := g.send(w, c, n)
		u.Live.Add(o)
		if o == evidence.OK {
			for _, r := range refused {
				g.use(r).Worse++
			}
			return
		}
		refused = append(refused, n)
	}
	w.failed++
}

func (g *gateway) probe(w *world) {
	c, ok := g.credential()
	if !ok {
		return
	}
	for _, a := range c.Asks {
		u := g.use(a.Version.Number)
		if u.Live.OK+u.Probes.OK < a.OK && slices.Contains(c.Slots.Served(), a.Version.Number) {
			u.LastProbe = g.send(w, c, a.Version.Number)
			u.Probes.Add(u.LastProbe)
		}
	}
}

func (g *gateway) report(w *world) {
	if g.cut {
		return
	}
	g.seq++
	r := evidence.Report{Consumer: g.name, Boot: g.boot, Seq: g.seq, Elapsed: g.elapsed}
	for _, u := range g.uses {
		r.Uses = append(r.Uses, *u)
	}
	slices.SortFunc(r.Uses, func(a, b evidence.Use) int { return int(a.Version.Number - b.Version.Number) })
	w.must(w.desk.Report(w.t.Context(), g.principal(), r))
}
