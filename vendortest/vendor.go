// Package vendortest is a simulated vendor of an HTTP API: it issues keys,
// serves requests that carry them, and misbehaves on demand.
//
// A [Vendor] is an http.Handler with a key API for a manager and a data API
// for the holders of keys:
//
//	POST   /keys                 {"name", "scopes", "expires_in"} -> 201 {"id", "name", "key", "created"}
//	GET    /keys?cursor=C        -> 200 {"keys": [{"id", "name", "scopes", "created", "last_used", "disabled"}], "next": C}
//	GET    /keys/{id}            -> 200 one of these, or 404
//	POST   /keys/{id}/disable    -> 200, and /enable; 404 for a key that is gone
//	DELETE /keys/{id}            -> 204, and 404 when it is gone
//	any    /v1/...               -> 200 {"method", "path", "request_id", "body_sha256", "key_id"}
//	GET    /v1/me                -> 200 for every key that works, whatever its scopes
//
// The key API wants the manager's token, the data API a key, both as
// "Authorization: Bearer ...". A key that does not work answers 401; a key with
// no scope for the method (read for GET and HEAD, write for the rest) answers
// 403. The data API also takes the key as a basic-auth password, in X-Api-Key
// or in the query parameter api_key.
//
// All methods may be called at any time from any goroutine, also under load.
// Nothing here sleeps: what takes time is decided by the clock in [Config].
// The vendor keeps everything in memory and starts no goroutine.
package vendortest

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultManager is the manager token of a vendor whose Config names none.
const DefaultManager = "simmgr_0123456789abcdefghijklmnopqrstuv"

// Config says what a vendor is like. The zero Config is a vendor of one node
// that behaves well.
type Config struct {
	Manager    string           // token of the key API; "" means DefaultManager
	Now        func() time.Time // nil means time.Now
	Nodes      int              // nodes that answer in turn; default 1
	PageSize   int              // keys in one page of the list; default 100
	MaxActive  int              // keys that may exist at once; 0 means no limit
	UniqueName bool             // a second key of the same name is refused with 409
	Grace      time.Duration    // how long a key that was replaced under /roll works on
	Slots      []string         // names of the fixed keys under /slots; default key1 and key2
}

// Key is what a vendor knows of one key, without the key itself.
type Key struct {
	ID       string
	Name     string
	Scopes   []string
	Created  time.Time
	Expires  time.Time // zero: never
	LastUsed time.Time // of the data API, by whoever; zero: never
	Disabled bool
	Revoked  bool
}

// Uses counts the requests of one key to the data API.
type Uses struct {
	OK      int64 // answered 200
	Refused int64 // answered 401: not yet, not any more, disabled or expired
	Denied  int64 // answered 403: out of scope
	Other   int64 // 429, 5xx or dropped
	Probes  int64 // of all these, requests to /v1/me
}

// entry is one key. What requests read is immutable or atomic.
type entry struct {
	id, name, secret string
	scopes           []string
	read, write      bool
	created          time.Time
	expires          int64   // Unix nanoseconds; 0: never
	from             []int64 // per node: when it becomes valid
	listed           int64   // when it appears in the list

	off     atomic.Int64 // when it stops being valid because it was revoked; 0: not
	offList atomic.Bool  // revoked: gone from the list
	dis     atomic.Int64 // when it stops being valid because it was disabled; 0: not
	disList atomic.Bool
	draft   atomic.Bool // made, and not given out yet
	slot    string      // of fixed keys and of the one key; set before it is given out

	lastUsed                           atomic.Int64
	ok, refused, denied, other, probes atomic.Int64
}

// Vendor is a simulated vendor. Make one with [New].
type Vendor struct {
	now      func() time.Time
	pageSize int
	unique   bool
	node     atomic.Uint64
	nodes    int
	manager  atomic.Pointer[string]

	making   sync.Mutex // one creation at a time
	mu       sync.RWMutex
	bySecret map[string]*entry // the newest holder of a secret
	byID     map[string]*entry
	order    []*entry

	faults
	shapes
	requests, keyRequests, unknown atomic.Int64
	effects                        effects
	serial                         atomic.Int64
}

// New returns a vendor with no keys.
func New(c Config) *Vendor {
	if c.Manager == "" {
		c.Manager = DefaultManager
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	v := &Vendor{
		now: c.Now, pageSize: c.PageSize, unique: c.UniqueName, nodes: max(1, c.Nodes),
		bySecret: map[string]*entry{}, byID: map[string]*entry{},
	}
	if v.pageSize <= 0 {
		v.pageSize = 100
	}
	v.shapes = shapes{grace: c.Grace, slotNames: c.Slots}
	if len(c.Slots) == 0 {
		v.slotNames = []string{"key1", "key2"}
	}
	v.manager.Store(&c.Manager)
	v.SetMaxActive(c.MaxActive)
	v.deadStatus.Store(401)
	return v
}

// SetManager replaces the manager's token.
func (v *Vendor) SetManager(token string) { v.manager.Store(&token) }

// base62 is the alphabet of keys.
const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// newSecret returns a key such as "sim_" and 32 characters of base62.
func newSecret() string {
	out := make([]byte, 0, 36)
	out = append(out, "sim_"...)
	var b [48]byte
	for len(out) < 36 {
		_, _ = rand.Read(b[:]) // never fails
		for _, c := range b {
			if c < 248 && len(out) < 36 { // 4 * 62: no bias
				out = append(out, base62[c%62])
			}
		}
	}
	return string(out)
}

// Issue makes a key as the vendor's own console would, in no fault's way, valid
// at once on every node. Scopes default to read and write.
func (v *Vendor) Issue(name string, scopes ...string) (id, key string) {
	e := v.add(name, scopes, 0, newSecret(), nil, 0)
	return e.id, e.secret
}

// add stores a new key; delay is per node and may be nil.
func (v *Vendor) add(name string, scopes []string, life time.Duration, sec string, delay []time.Duration, listDelay time.Duration) *entry {
	now := v.now()
	if len(scopes) == 0 {
		scopes = []string{"read", "write"}
	}
	e := &entry{
		id: v.newID(), name: name, secret: sec, scopes: slices.Clone(scopes),
		read: slices.Contains(scopes, "read"), write: slices.Contains(scopes, "write"),
		created: now, from: make([]int64, v.nodes), listed: now.Add(listDelay).UnixNano(),
	}
	if life > 0 {
		e.expires = now.Add(life).UnixNano()
	}
	for i := range e.from {
		var d time.Duration
		if len(delay) > 0 {
			d = delay[min(i, len(delay)-1)]
		}
		e.from[i] = now.Add(d).UnixNano()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.bySecret[sec], v.byID[e.id] = e, e
	v.order = append(v.order, e)
	return e
}

// newID returns an id that was not given before.
func (v *Vendor) newID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return "key-" + strconv.FormatInt(v.serial.Add(1), 10) + "-" + strconv.FormatUint(uint64(binary.BigEndian.Uint32(b[:])), 36)
}

// RevokeKey ends the key id at once and on every node, as somebody at the
// vendor's console would. It reports whether there was such a key.
func (v *Vendor) RevokeKey(id string) bool {
	e := v.find(id)
	if e == nil || e.offList.Swap(true) {
		return false
	}
	e.off.Store(v.now().UnixNano())
	return true
}

// DisableKey switches the key id off at once, or on again. It reports whether
// there was such a key.
func (v *Vendor) DisableKey(id string, off bool) bool {
	e := v.find(id)
	if e == nil || e.offList.Load() {
		return false
	}
	e.disable(off, v.now())
	return true
}

func (e *entry) disable(off bool, at time.Time) {
	if !off {
		e.disList.Store(false)
		e.dis.Store(0)
		return
	}
	e.disList.Store(true)
	e.dis.Store(at.UnixNano())
}

// find returns the key id, also a revoked one, or nil.
func (v *Vendor) find(id string) *entry {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.byID[id]
}

// valid reports whether e works on node at now.
func (e *entry) valid(node int, now int64) bool {
	if e.draft.Load() || now < e.from[node] || (e.expires != 0 && now >= e.expires) {
		return false
	}
	if t := e.off.Load(); t != 0 && now >= t {
		return false
	}
	t := e.dis.Load()
	return t == 0 || now < t
}

// Valid reports whether key works now on every node.
func (v *Vendor) Valid(key string) bool {
	v.mu.RLock()
	e := v.bySecret[key]
	v.mu.RUnlock()
	if e == nil {
		return false
	}
	now := v.now().UnixNano()
	for n := range v.nodes {
		if !e.valid(n, now) {
			return false
		}
	}
	return true
}

// Keys returns every key that was ever issued, in order, revoked ones too.
func (v *Vendor) Keys() []Key {
	v.mu.RLock()
	defer v.mu.RUnlock()
	out := make([]Key, len(v.order))
	for i, e := range v.order {
		out[i] = e.public()
	}
	return out
}

// Active returns how many keys are not revoked.
func (v *Vendor) Active() int {
	n := 0
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, e := range v.order {
		if !e.offList.Load() {
			n++
		}
	}
	return n
}

func (e *entry) public() Key {
	k := Key{ID: e.id, Name: e.name, Scopes: slices.Clone(e.scopes), Created: e.created,
		Disabled: e.disList.Load(), Revoked: e.offList.Load()}
	if e.expires != 0 {
		k.Expires = time.Unix(0, e.expires)
	}
	if t := e.lastUsed.Load(); t != 0 {
		k.LastUsed = time.Unix(0, t)
	}
	return k
}

// Uses returns how often the key id was used; zero for an unknown one.
func (v *Vendor) Uses(id string) Uses {
	e := v.find(id)
	if e == nil {
		return Uses{}
	}
	return Uses{OK: e.ok.Load(), Refused: e.refused.Load(), Denied: e.denied.Load(), Other: e.other.Load(), Probes: e.probes.Load()}
}

// IDOf returns the id of key, or "".
func (v *Vendor) IDOf(key string) string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if e := v.bySecret[key]; e != nil {
		return e.id
	}
	return ""
}

// Requests returns how many requests came to the data API.
func (v *Vendor) Requests() int64 { return v.requests.Load() }

// KeyRequests returns how many requests came to the key API.
func (v *Vendor) KeyRequests() int64 { return v.keyRequests.Load() }

// Unknown returns how many requests came to the data API with no key, or with
// something that was never a key here.
func (v *Vendor) Unknown() int64 { return v.unknown.Load() }

// Effects returns how many requests with a side effect (neither GET nor HEAD)
// were carried out, each request id counted once, and how many of them were
// carried out more than once. The request id is the header Idempotency-Key, or
// X-Request-Id; a request without one counts as one of its own.
func (v *Vendor) Effects() (done, repeated int64) {
	return v.effects.done.Load(), v.effects.repeated.Load()
}

// effects counts side effects by request id.
type effects struct {
	done, repeated atomic.Int64
	shards         [64]struct {
		mu   sync.Mutex
		seen map[string]bool // true once it was counted as repeated
	}
}

func (f *effects) add(id string) {
	if id == "" {
		f.done.Add(1)
		return
	}
	h := uint32(2166136261)
	for i := range len(id) {
		h = (h ^ uint32(id[i])) * 16777619
	}
	s := &f.shards[h%64]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	again, seen := s.seen[id]
	s.seen[id] = seen
	switch {
	case !seen:
		f.done.Add(1)
	case !again:
		f.repeated.Add(1)
	}
}
