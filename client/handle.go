package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

// Handle is one credential of [Keys]. It has a value for as long as the server
// grants the credential, follows its changes, and never waits. It is safe for
// concurrent use.
type Handle struct {
	keys *Keys
	id   Credential
	cur  atomic.Pointer[served] // nil: withdrawn
}

// served are the keys of a credential as one frame has them. It is shared by
// successive frames for as long as nothing in it changes.
type served struct {
	from    link.Credential
	slots   []*slot // primary first
	web     *web    // how the key rides on HTTP requests; nil: it does not
	err     error   // why it does not
	tally   *call.Tally
	changed chan struct{} // closed when others are served
	pins    atomic.Int64  // who may use any slot
	last    key.Revision  // of the last frame it was in; guarded by Keys.mu
}

// slot is one version that is served.
type slot struct {
	number   key.Number
	parts    secret.Parts
	fallback bool
	rival    call.Rival
	key      call.Rendered // zero: it does not ride on requests
	pins     atomic.Int64  // who has chosen this one
}

// pinned returns the versions that are in use.
//
// NOTE: who has chosen pins the slot before it lets go of all of them, and here
// all of them are looked at first: it is seen in one of the two.
func (s *served) pinned() []key.Number {
	every := s.pins.Load() > 0
	var out []key.Number
	for _, sl := range s.slots {
		if every || sl.pins.Load() > 0 {
			out = append(out, sl.number)
		}
	}
	return out
}

// pin returns what is served now, and keeps all of it in use until its pins
// are taken off again; nil when there is nothing.
func (h *Handle) pin() *served {
	for {
		s := h.cur.Load()
		if s == nil {
			return nil
		}
		// Pin, then look again: either whoever installs a frame now sees the
		// pin, or this sees the frame.
		s.pins.Add(1)
		if h.cur.Load() == s {
			return s
		}
		s.pins.Add(-1)
	}
}

// Credential returns what the handle is of.
func (h *Handle) Credential() Credential { return h.id }

// Version is one key of a credential.
type Version struct {
	Number int64        // 0: there is none
	Parts  secret.Parts // must not be changed
}

// Value are the keys of a credential at one moment.
type Value struct {
	Primary  Version
	Fallback Version         // for when the vendor refuses the primary; its Number is 0 when there is none
	Changed  <-chan struct{} // closed when other keys have come
}

// Use returns the keys, and keeps them in use until done is called: the server
// waits as long before it revokes one. Call done when nothing works with them
// any more; a second call does nothing. What the vendor says of them is not
// seen; use [Handle.Do], [Handle.Open] or [Handle.Transport] where it can be.
// Of a credential that was withdrawn the value is zero.
func (h *Handle) Use() (v Value, done func()) {
	s := h.pin()
	if s == nil {
		return Value{}, func() {}
	}
	v.Changed = s.changed
	for _, sl := range s.slots {
		k := Version{Number: int64(sl.number), Parts: sl.parts}
		if sl.fallback && len(s.slots) > 1 {
			v.Fallback = k
		} else {
			v.Primary = k
		}
	}
	return v, sync.OnceFunc(func() { s.pins.Add(-1) })
}

// refusal marks an error as the vendor's refusal of the key.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// Refused marks err, which is not nil, as the vendor's refusal of the key: in
// [Handle.Do] and [Handle.Open] the fallback is tried after it. Mark only what
// a dead key is refused with (a failed login), not a right that the key lacks,
// and nothing that may have had an effect.
func Refused(err error) error { return refusal{err} }

// Do calls fn with the primary key and, if fn returns an error that is marked
// by [Refused], once more with the fallback; it returns what the last call
// returned. A primary that was refused again and again is tried second, until
// it is accepted again. Each call counts as an attempt with its version, and
// the version is in use until fn returns. Do itself never waits. An error
// before the first call is an [*Error]: the credential was withdrawn.
func (h *Handle) Do(ctx context.Context, fn func(ctx context.Context, p secret.Parts) error) error {
	sl, err := h.try(ctx, fn)
	if sl != nil {
		sl.pins.Add(-1)
	}
	return err
}

// try is Do, and returns the slot whose key fn accepted, pinned; nil with an
// error.
func (h *Handle) try(ctx context.Context, fn func(context.Context, secret.Parts) error) (*slot, error) {
	s := h.pin()
	if s == nil {
		return nil, withdrawn(h.id)
	}
	defer s.pins.Add(-1)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k := h.keys
	var order [2]*slot
	var rivals [2]call.Rival
	n := copy(order[:], s.slots)
	for i, sl := range order[:n] {
		rivals[i] = sl.rival
	}
	var t call.Trial
	if t.Arrange(rivals[:n], true, time.Now(), k.link.Elapsed()) {
		order[0], order[1] = order[1], order[0]
	}
	defer func() { t.Done(s.tally) }()
	for {
		sl := order[t.Position()]
		t.Attempt(k.link.Elapsed())
		err := fn(ctx, sl.parts.Clone())
		o := evidence.Other
		if err == nil {
			o = evidence.OK
			sl.pins.Add(1)
		} else if r := (refusal{}); errors.As(err, &r) {
			o = evidence.Auth
		}
		again := t.Saw(o, "refused by the vendor", k.breaker, time.Now(), k.link.Elapsed())
		if err == nil {
			return sl, nil
		}
		if !again || ctx.Err() != nil {
			return nil, err
		}
	}
}

// Session is a connection, or whatever else lives on with a key after it was
// accepted. Its version is in use until Close.
type Session struct {
	h       *Handle
	slot    *slot
	release func()
}

// Open is [Handle.Do] for what lives on: fn opens a connection with a key, and
// the version that it was opened with stays in use until [Session.Close]. A
// pool opens each of its connections this way, closes the sessions that are
// not [Session.Current] when they are idle, and so lets a rotation end.
func (h *Handle) Open(ctx context.Context, fn func(ctx context.Context, p secret.Parts) error) (*Session, error) {
	sl, err := h.try(ctx, fn)
	if err != nil {
		return nil, err
	}
	return &Session{h: h, slot: sl, release: sync.OnceFunc(func() { sl.pins.Add(-1) })}, nil
}

// Version returns the number of the version that the session was opened with.
func (s *Session) Version() int64 { return int64(s.slot.number) }

// Current reports whether the session's version is the primary still.
func (s *Session) Current() bool {
	now := s.h.cur.Load()
	return now != nil && now.slots[0].number == s.slot.number
}

// Close lets go of the version; the connection itself is the caller's to close,
// before. A second call does nothing.
func (s *Session) Close() { s.release() }
