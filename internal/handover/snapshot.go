package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

// snapshot is all that is handed out, at one revision. It is read once for
// every consumer of this server, and never changes, but for what entries learn
// of holds.
type snapshot struct {
	revision key.Revision
	whole    key.Revision // at which everything was read, not only what had changed
	entries  []*entry     // by id
	byID     map[key.CredentialID]*entry
	tokens   map[string]access.Token // by hash
	names    []access.Token          // by name
}

// entry is one credential at one revision of its own. It is shared by every
// snapshot in which the credential is unchanged.
//
// What it knows of holds is right while it is in the newest snapshot: holds of
// a served version only go by an acknowledgement of a revision in which it is
// not served, which makes a new entry; by a person's waiver, or after a change
// of grants, both of which make a revision that is of no credential, and so
// make every entry anew.
type entry struct {
	cred     key.Credential
	envName  string
	versions []key.Version // served: primary first
	sealed   []key.Sealed  // of versions
	asks     []evidence.Ask

	mu    sync.RWMutex
	holds terms

	opened atomic.Pointer[opened]
}

// holder is who holds which version of an entry's credential; boot is "" for
// readers.
type holder struct {
	consumer, boot string
	number         key.Number
}

// term is how long a hold lasts by itself; a zero until has no end.
type term struct{ since, until time.Time }

// terms are the holds of one entry. Most have one or two, of very many entries:
// a map is made for those with more.
type terms struct {
	few  []held
	many map[holder]term
}

type held struct {
	by holder
	term
}

const fewTerms = 8

func (t *terms) get(h holder) (term, bool) {
	for i := range t.few {
		if t.few[i].by == h {
			return t.few[i].term, true
		}
	}
	v, ok := t.many[h]
	return v, ok
}

func (t *terms) put(h holder, v term) {
	for i := range t.few {
		if t.few[i].by == h {
			t.few[i].term = v
			return
		}
	}
	if t.many == nil && len(t.few) < fewTerms {
		t.few = append(t.few, held{h, v})
		return
	}
	if t.many == nil {
		t.many = make(map[holder]term, 2*fewTerms)
		for _, f := range t.few {
			t.many[f.by] = f.term
		}
		t.few = nil
	}
	t.many[h] = v
}

// opened are the keys of an entry in plaintext, by the order of its versions.
type opened struct {
	parts   []secret.Parts
	handout *Handout // nil without a primary
}

// snapshot returns the newest snapshot. It blocks on the store only when its
// revision has moved since the last one.
func (d *Desk) snapshot(ctx context.Context) (*snapshot, error) {
	if s := d.snap.Load(); s != nil && s.revision.Compare(d.store.Revision()) >= 0 {
		return s, nil
	}
	return d.renew(ctx, func(s *snapshot) bool { return s.revision.Compare(d.store.Revision()) >= 0 })
}

// after returns a snapshot that was read after s was found to be old.
func (d *Desk) after(ctx context.Context, s *snapshot) (*snapshot, error) {
	return d.renew(ctx, func(n *snapshot) bool { return n != s })
}

// renew reads a new snapshot, unless another caller has just read one that is
// good enough.
func (d *Desk) renew(ctx context.Context, good func(*snapshot) bool) (*snapshot, error) {
	d.building.Lock()
	defer d.building.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		old := d.snap.Load()
		if old != nil && good(old) {
			return old, nil
		}
		var s *snapshot
		err := d.store.View(ctx, func(tx store.Tx) (err error) {
			s, err = build(tx, old)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading what is handed out: %w", err)
		}
		// What Forgotten has dropped meanwhile is not brought back.
		if d.snap.CompareAndSwap(old, s) {
			return s, nil
		}
	}
}

func build(tx store.Tx, old *snapshot) (*snapshot, error) {
	rev, err := tx.Revision()
	if err != nil {
		return nil, err
	}
	creds, err := tx.Credentials()
	if err != nil {
		return nil, err
	}
	services, err := tx.Services()
	if err != nil {
		return nil, err
	}
	tokens, err := tx.Tokens()
	if err != nil {
		return nil, err
	}
	s := &snapshot{revision: rev, whole: rev, entries: make([]*entry, 0, len(creds)), byID: make(map[key.CredentialID]*entry, len(creds)),
		tokens: make(map[string]access.Token, len(tokens)), names: tokens}
	for _, t := range tokens {
		s.tokens[t.Hash] = t
	}
	envNames := make(map[string]string, len(services))
	for _, v := range services {
		envNames[v.Name] = v.EnvName
	}
	r := reader{tx: tx, old: old}
	if old != nil && !explained(old.revision, rev, creds) {
		r.old = nil
	}
	if r.old != nil {
		s.whole = old.whole
	}
	if r.old == nil {
		if err := r.readAll(); err != nil {
			return nil, err
		}
	}
	for _, c := range creds {
		e, err := r.entry(c, envNames[c.ID.Service])
		if err != nil {
			return nil, err
		}
		s.entries = append(s.entries, e)
		s.byID[c.ID] = e
	}
	return s, nil
}

// explained reports whether every revision after from up to to is one in which
// some credential last changed. One that is not may have been a waiver or a
// change of tokens: then nothing that is remembered of holds counts.
func explained(from, to key.Revision, creds []key.Credential) bool {
	if from.Epoch != to.Epoch {
		return false
	}
	numbers := map[int64]bool{}
	for _, c := range creds {
		if c.Revision.Epoch == to.Epoch && c.Revision.Number > from.Number {
			numbers[c.Revision.Number] = true
		}
	}
	return int64(len(numbers)) == to.Number-from.Number
}

// reader reads entries in one transaction: all at once, or those that changed.
type reader struct {
	tx       store.Tx
	old      *snapshot // nil: read all
	versions map[key.CredentialID][]key.Version
	sealed   map[key.VersionID]key.Sealed
	holds    map[key.CredentialID][]evidence.Hold
	asks     map[key.CredentialID][]evidence.Ask
}

func (r *reader) readAll() error {
	vs, err := r.tx.AllVersions(key.StatePrimary, key.StateFallback)
	if err != nil {
		return err
	}
	if r.sealed, err = r.tx.AllSealed(key.StatePrimary, key.StateFallback); err != nil {
		return err
	}
	hs, err := r.tx.Holds(key.CredentialID{})
	if err != nil {
		return err
	}
	as, err := r.tx.Asks(key.CredentialID{})
	if err != nil {
		return err
	}
	r.versions, r.holds = make(map[key.CredentialID][]key.Version, len(vs)), map[key.CredentialID][]evidence.Hold{}
	r.asks = map[key.CredentialID][]evidence.Ask{}
	for _, a := range as {
		r.asks[a.Version.Credential] = append(r.asks[a.Version.Credential], a)
	}
	for _, v := range vs {
		r.versions[v.ID.Credential] = append(r.versions[v.ID.Credential], v)
	}
	for _, h := range hs {
		r.holds[h.Version.Credential] = append(r.holds[h.Version.Credential], h)
	}
	return nil
}

func (r *reader) entry(c key.Credential, envName string) (*entry, error) {
	if r.old != nil {
		if e := r.old.byID[c.ID]; e != nil && e.cred.Revision == c.Revision && e.envName == envName {
			return e, nil
		}
	}
	e := &entry{cred: c, envName: envName}
	for _, n := range c.Slots.Served() {
		id := key.VersionID{Credential: c.ID, Number: n}
		v, s, err := r.version(id)
		if errors.Is(err, key.ErrNotFound) {
			continue // a slot without a key has nothing to hand out
		}
		if err != nil {
			return nil, err
		}
		e.versions, e.sealed = append(e.versions, v), append(e.sealed, s)
	}
	hs := r.holds[c.ID]
	e.asks = r.asks[c.ID]
	if r.old != nil {
		var err error
		if e.asks, err = r.tx.Asks(c.ID); err != nil {
			return nil, err
		}
		if hs, err = r.tx.Holds(c.ID); err != nil {
			return nil, err
		}
	}
	for _, h := range hs {
		e.holds.put(holder{h.Consumer, h.Boot, h.Version.Number}, term{h.Since, h.Until})
	}
	return e, nil
}

func (r *reader) version(id key.VersionID) (key.Version, key.Sealed, error) {
	if r.old == nil {
		i := slices.IndexFunc(r.versions[id.Credential], func(v key.Version) bool { return v.ID == id })
		s, ok := r.sealed[id]
		if i < 0 || !ok {
			return key.Version{}, key.Sealed{}, key.ErrNotFound
		}
		return r.versions[id.Credential][i], s, nil
	}
	v, err := r.tx.Version(id)
	if err != nil {
		return key.Version{}, key.Sealed{}, err
	}
	s, err := r.tx.Sealed(id)
	if err == nil && s.IsZero() {
		err = key.ErrNotFound
	}
	return v, s, err
}

// term returns how long the hold lasts that is known of h.
func (e *entry) term(h holder) (term, bool) {
	e.mu.RLock()
	t, ok := e.holds.get(h)
	e.mu.RUnlock()
	return t, ok
}

// learn notes holds that are durable now.
func (e *entry) learn(hs []evidence.Hold) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range hs {
		if h.Version.Credential == e.cred.ID {
			e.holds.put(holder{h.Consumer, h.Boot, h.Version.Number}, term{h.Since, h.Until})
		}
	}
}

// open returns e's keys in plaintext. It is called only once the holds of who
// gets them are durable.
func (d *Desk) open(ctx context.Context, e *entry) (*opened, error) {
	if o := e.opened.Load(); o != nil {
		return o, nil
	}
	o := &opened{}
	var read link.Read
	for i, v := range e.versions {
		p, err := d.keyring.Open(ctx, v.ID, e.sealed[i])
		if err != nil {
			return nil, err
		}
		o.parts = append(o.parts, p)
		switch v.ID.Number {
		case e.cred.Slots.Primary:
			read.Version, read.Parts = v.ID.Number, secret.ExposeParts(p)
		case e.cred.Slots.Fallback:
			read.Fallback = secret.ExposeParts(p)
		}
	}
	if read.Parts != nil {
		read.Credential, read.EnvName = e.cred.ID, e.envName
		h, err := newHandout(read)
		if err != nil {
			return nil, err
		}
		o.handout = h
	}
	e.opened.Store(o)
	return o, nil
}

// Handout is the answer to a reader. It is shared by all who read the same key
// and cannot be printed or encoded but by [Handout.WriteTo].
type Handout struct {
	id   key.VersionID
	read func() link.Read
	body func() []byte
}

func newHandout(r link.Read) (*Handout, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding the answer for %s: %w", r.Credential, err)
	}
	b = append(b, '\n')
	return &Handout{id: key.VersionID{Credential: r.Credential, Number: r.Version},
		read: func() link.Read { return r }, body: func() []byte { return b }}, nil
}
