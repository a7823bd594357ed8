// Package handover is the one place where a stored key becomes plaintext for a
// consumer. It authorizes, it records who is about to have the key, and only
// then does it open it.
//
// What it guarantees:
//
//   - No key leaves before a hold of it by that consumer is durable, and a hold
//     is only recorded while the store is still at the revision that was read:
//     a version that has just left its slot is not handed out.
//   - A hold ends only by what its holder promised: an acknowledgement, or the
//     end of a reader's own refresh interval. Nothing here times out.
//   - Reads are answered from memory, with no query, while nothing has changed
//     and the reader's hold covers its next refresh.
//
// It leaves to the caller: knowing who asks, and the wire.
package handover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/store"
)

// Config is what a Desk works with. Store and Keyring are required.
type Config struct {
	Store   store.Store
	Keyring *seal.Keyring
	Now     func() time.Time // nil means time.Now; it should be the clock of the store

	// Moved is told, after the commit, of the credentials that an
	// acknowledgement says something new about, so that waiting work can look
	// again at once; nil is told nothing. It must not block.
	Moved func([]key.CredentialID)
}

// Desk hands keys to consumers. It is safe for concurrent use. What it opened
// stays in memory while it is served.
type Desk struct {
	store   store.Store
	keyring *seal.Keyring
	now     func() time.Time
	moved   func([]key.CredentialID)
	writes  writer

	snap     atomic.Pointer[snapshot]
	building sync.Mutex // one reader of the store at a time

	mu   sync.Mutex
	sent map[process]sent // what each process was sent last

	stats struct{ reads, frames, acks, reports, holds atomic.Int64 }
}

// process is one start of a consumer.
type process struct{ consumer, boot string }

// sent is what a process was sent last: the next frame is the difference.
type sent struct {
	revision key.Revision
	ids      []key.CredentialID // sorted; shared, never changed
	whole    key.Revision       // of the snapshot that it was made from
}

// maxSent bounds how many processes are remembered. One that is forgotten gets
// a full frame.
const maxSent = 8192

// attempts is how often a hand-out is begun again because a key changed
// meanwhile.
const attempts = 20

// New returns a Desk. It does nothing by itself.
func New(c Config) *Desk {
	d := &Desk{store: c.Store, keyring: c.Keyring, now: c.Now, moved: c.Moved, sent: map[process]sent{}}
	d.writes = writer{store: c.Store, turn: make(chan struct{}, 1)}
	if d.now == nil {
		d.now = time.Now
	}
	if d.moved == nil {
		d.moved = func([]key.CredentialID) {}
	}
	return d
}

// Wait blocks until the store has a revision after after, or ctx ends.
func (d *Desk) Wait(ctx context.Context, after key.Revision) error {
	for {
		r := d.store.Revision()
		if r.Compare(after) > 0 {
			return nil
		}
		if err := d.store.Wait(ctx, r); err != nil {
			return err
		}
	}
}

// Revision returns the newest revision that this server knows of.
func (d *Desk) Revision() key.Revision { return d.store.Revision() }

// TokenByHash returns the token with that hash, from memory while nothing has
// changed, or an error that wraps [key.ErrNotFound]. Only one that memory does
// not know is looked up in the store.
func (d *Desk) TokenByHash(ctx context.Context, hash string) (access.Token, error) {
	s, err := d.snapshot(ctx)
	if err != nil {
		return access.Token{}, err
	}
	if t, ok := s.tokens[hash]; ok {
		return t, nil
	}
	var t access.Token
	err = d.store.View(ctx, func(tx store.Tx) error {
		t, err = tx.TokenByHash(hash)
		return err
	})
	return t, err
}

// Forgotten drops what is remembered of holds: a person has said that the
// consumer is gone, and if it comes back it is recorded anew. Other servers
// notice by the revision that the waiver made.
func (d *Desk) Forgotten(consumer string) {
	d.snap.Store(nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	for p := range d.sent {
		if p.consumer == consumer {
			delete(d.sent, p)
		}
	}
}

// Stats are counts since the Desk was made.
type Stats struct {
	Reads   int64 // answers to readers
	Frames  int64 // made for gateways and clients
	Acks    int64 // acknowledgements taken
	Reports int64 // reports taken
	Holds   int64 // holds written
}

// Stats returns the counts.
func (d *Desk) Stats() Stats {
	return Stats{d.stats.reads.Load(), d.stats.frames.Load(), d.stats.acks.Load(), d.stats.reports.Load(), d.stats.holds.Load()}
}

// latest runs fn on the newest snapshot, and again on a newer one while fn
// finds, in the transaction that records the hand-out, that the store has moved.
func (d *Desk) latest(ctx context.Context, fn func(*snapshot) error) error {
	s, err := d.snapshot(ctx)
	for range attempts {
		if err != nil {
			return err
		}
		if err = fn(s); !errors.Is(err, errMoved) {
			return err
		}
		s, err = d.after(ctx, s)
	}
	if err != nil {
		return err
	}
	return key.WithHint(fmt.Errorf("%w: the keys change faster than they can be handed out", key.ErrUnavailable), "try again")
}

// maxName bounds the ids that consumers make up.
const maxName = 64

func checkBoot(boot string) error {
	if boot == "" || len(boot) > maxName {
		return fmt.Errorf("%w: a boot id has 1 to %d characters", key.ErrInvalid, maxName)
	}
	for _, c := range []byte(boot) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("%w: a boot id is printable ASCII without spaces", key.ErrInvalid)
		}
	}
	return nil
}

// kindOf returns what by is as a consumer.
func kindOf(by access.Principal) key.Kind {
	if by.Kind == "" && by.Role == access.RoleGateway {
		return key.KindGateway
	}
	return by.Kind
}

// granted reports whether one of gs covers id. Unlike access.Principal.Check it
// makes no error, as it is asked of every credential.
func granted(gs []access.Grant, id key.CredentialID) bool {
	for i := range gs {
		if gs[i].Covers(id) {
			return true
		}
	}
	return false
}
