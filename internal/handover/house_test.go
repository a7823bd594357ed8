package handover_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/handover"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/secret"
)

// clock is a wall clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// dataKeys is a seal.KeySource on a store.
type dataKeys struct{ store.Store }

func (s dataKeys) DataKeys(ctx context.Context) (m map[string][]byte, err error) {
	err = s.View(ctx, func(tx store.Tx) (err error) { m, err = tx.DataKeys(); return err })
	return m, err
}

func (s dataKeys) PutDataKey(ctx context.Context, name string, wrapped []byte) error {
	return s.Update(ctx, audit.Entry{Actor: "test", Action: "datakey.made"}, func(tx store.Tx) error { return tx.PutDataKey(name, wrapped) })
}

// house is a store with a keyring and a desk on it.
type house struct {
	t     testing.TB
	store store.Store
	ring  *seal.Keyring
	desk  *handover.Desk
	clock *clock
	path  string

	reopen func(newEpoch bool) // as after a restart, or after a restore
}

func newHouse(t testing.TB) *house {
	t.Helper()
	dir := t.TempDir()
	c := &clock{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	path := filepath.Join(dir, "master.key")
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{5}, 32))), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := seal.LoadMaster(path)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, clock: c, path: filepath.Join(dir, "data", "keybaton.db")}
	t.Cleanup(func() { _ = h.store.Close() })
	h.open(m, false)
	h.reopen = func(newEpoch bool) {
		_ = h.store.Close()
		h.open(m, newEpoch)
	}
	return h
}

// open opens the store, with a keyring and a desk that know nothing yet.
func (h *house) open(m *seal.Master, newEpoch bool) {
	h.t.Helper()
	s, err := sqlite.Open(h.t.Context(), h.path, sqlite.Options{Now: h.clock.now, NewEpoch: newEpoch})
	if err != nil {
		h.t.Fatal(err)
	}
	h.store, h.ring = s, seal.New(m, dataKeys{s})
	h.desk = h.newDesk(s)
}

// newDesk returns another server's desk.
func (h *house) newDesk(s store.Store) *handover.Desk {
	return handover.New(handover.Config{Store: s, Keyring: h.ring, Now: h.clock.now})
}

func cred(service, env string) key.CredentialID {
	return key.CredentialID{Service: service, Environment: env}
}

func at(id key.CredentialID, n key.Number) key.VersionID {
	return key.VersionID{Credential: id, Number: n}
}

// plain is the key of a version in these tests.
func plain(v key.VersionID) string { return "PLAIN-" + v.String() }

func (h *house) update(fn func(store.Tx) error) {
	h.t.Helper()
	if err := h.store.Update(h.t.Context(), audit.Entry{Actor: "test", Action: "test"}, fn); err != nil {
		h.t.Fatal(err)
	}
}

// install puts versions in the slots of id, making what is missing, in one
// change. A version that leaves its slot is retired.
func (h *house) install(id key.CredentialID, primary, fallback key.Number) key.Revision {
	h.t.Helper()
	sealed, prints := map[key.Number]key.Sealed{}, map[key.Number]string{}
	for _, n := range []key.Number{primary, fallback} {
		if n == 0 {
			continue
		}
		s, fp, err := h.ring.Seal(h.t.Context(), at(id, n), secret.Parts{"key": secret.FromString(plain(at(id, n)))})
		if err != nil {
			h.t.Fatal(err)
		}
		sealed[n], prints[n] = s, fp
	}
	var rev key.Revision
	h.update(func(tx store.Tx) error {
		if _, err := tx.Service(id.Service); err != nil {
			if err := tx.PutService(key.Service{Name: id.Service, Provider: "manual", EnvName: "THE_KEY"}); err != nil {
				return err
			}
		}
		c, err := tx.Credential(id)
		if err != nil {
			c = key.Credential{ID: id, Next: 100, Created: tx.Now(), Call: key.Call{Upstream: "https://api.example.com"}}
		}
		old := c.Slots
		c.Slots = key.Slots{Primary: primary, Fallback: fallback}
		if err := tx.PutCredential(c); err != nil {
			return err
		}
		for _, n := range old.Served() {
			if !c.Slots.Has(n) {
				v, err := tx.Version(at(id, n))
				if err != nil {
					return err
				}
				v.State = key.StateRetired
				if err := tx.PutVersion(v); err != nil {
					return err
				}
			}
		}
		for n, s := range sealed {
			v, err := tx.Version(at(id, n))
			if err != nil {
				v = key.Version{ID: at(id, n), Origin: key.OriginIssued, Created: tx.Now(), Since: tx.Now(), Fingerprint: prints[n]}
			}
			v.State = key.StatePrimary
			if n == fallback {
				v.State = key.StateFallback
			}
			if err := tx.PutVersion(v); err != nil {
				return err
			}
			if err := tx.PutSealed(v.ID, s); err != nil {
				return err
			}
		}
		rev, err = tx.Touch(id)
		return err
	})
	return rev
}

func (h *house) holds(consumer string) []evidence.Hold {
	h.t.Helper()
	var hs []evidence.Hold
	err := h.store.View(h.t.Context(), func(tx store.Tx) (err error) { hs, err = tx.HoldsOf(consumer); return err })
	if err != nil {
		h.t.Fatal(err)
	}
	return hs
}

// held returns the versions that the process holds, as text, sorted.
func (h *house) held(consumer, boot string) []string {
	h.t.Helper()
	out := []string{}
	for _, x := range h.holds(consumer) {
		if x.Boot == boot {
			out = append(out, x.Version.String())
		}
	}
	slices.Sort(out)
	return out
}

func (h *house) boots(consumer string) []evidence.Boot {
	h.t.Helper()
	var bs []evidence.Boot
	err := h.store.View(h.t.Context(), func(tx store.Tx) (err error) { bs, err = tx.Boots(consumer); return err })
	if err != nil {
		h.t.Fatal(err)
	}
	return bs
}

func (h *house) frame(by access.Principal, boot string, since key.Revision) link.Frame {
	h.t.Helper()
	f, err := h.desk.Frame(h.t.Context(), by, boot, since)
	if err != nil {
		h.t.Fatal(err)
	}
	return f
}

func (h *house) ack(by access.Principal, a evidence.Ack) {
	h.t.Helper()
	if err := h.desk.Ack(h.t.Context(), by, a); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) read(by access.Principal, id key.CredentialID) *handover.Handout {
	h.t.Helper()
	o, err := h.desk.ReadPair(h.t.Context(), by, id)
	if err != nil {
		h.t.Fatal(err)
	}
	return o
}

func gateway(name string, grants ...access.Grant) access.Principal {
	return access.Principal{Name: name, Role: access.RoleGateway, Kind: key.KindGateway, Grants: grants}
}

func consumer(name string, kind key.Kind, refresh time.Duration, grants ...access.Grant) access.Principal {
	return access.Principal{Name: name, Role: access.RoleConsumer, Kind: kind, Grants: grants, Refresh: refresh}
}

func grant(env string, services ...string) access.Grant {
	return access.Grant{Environment: env, Services: services}
}

// keys returns what f hands out: version to plaintext.
func keys(f link.Frame) map[string]string {
	out := map[string]string{}
	for _, c := range f.Credentials {
		for _, v := range c.Versions {
			b, _ := v.Parts["key"].MarshalText()
			out[at(c.ID, v.Number).String()] = string(b)
		}
	}
	return out
}

// trap is a store whose Observe does something first.
type trap struct {
	store.Store
	before func() error
}

func (t *trap) Observe(ctx context.Context, fn func(store.Tx) error) error {
	if err := t.before(); err != nil {
		return err
	}
	return t.Store.Observe(ctx, fn)
}
