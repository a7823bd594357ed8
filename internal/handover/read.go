package handover

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

// Version returns the version that is primary in h.
func (h *Handout) Version() key.VersionID { return h.id }

// EnvName returns the variable that the service declares for its key; "" when
// it declares none.
func (h *Handout) EnvName() string { return h.read().EnvName }

// Primary returns the parts of the primary.
func (h *Handout) Primary() secret.Parts { return secret.PartsOf(h.read().Parts) }

// Fallback returns the parts of the fallback; nil when the slot is empty.
func (h *Handout) Fallback() secret.Parts {
	if f := h.read().Fallback; f != nil {
		return secret.PartsOf(f)
	}
	return nil
}

// Size returns the length of what [Handout.WriteTo] writes.
func (h *Handout) Size() int { return len(h.body()) }

// WriteTo writes h as a link.Read in JSON. The writer must not keep or change
// the bytes.
func (h *Handout) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(h.body())
	return int64(n), err
}

// Format prints "[secret]" for every verb.
func (h *Handout) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue returns "[secret]".
func (h *Handout) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalJSON always fails with [secret.ErrEncode].
func (h *Handout) MarshalJSON() ([]byte, error) { return nil, secret.ErrEncode }

// ReadPair returns the primary and the fallback of id. Who asks must have
// [access.Read]. A consumer's hold of both is durable before it returns: it
// ends a refresh interval, and some slack, after the last read; without a
// declared interval it stays until a person waives it.
//
// It blocks on the store when the revision has moved, for a consumer's first
// read, and when its hold would not outlast another refresh interval.
func (d *Desk) ReadPair(ctx context.Context, by access.Principal, id key.CredentialID) (*Handout, error) {
	o, err := d.read(ctx, by, id, true)
	if err != nil {
		return nil, err
	}
	return o.handout, nil
}

// Read returns the primary of id alone, and which version it is; otherwise it
// does what [Desk.ReadPair] does. The parts belong to the caller.
func (d *Desk) Read(ctx context.Context, by access.Principal, id key.CredentialID) (secret.Parts, key.VersionID, error) {
	o, err := d.read(ctx, by, id, false)
	if err != nil {
		return nil, key.VersionID{}, err
	}
	return o.parts[0].Clone(), o.handout.id, nil
}

func (d *Desk) read(ctx context.Context, by access.Principal, id key.CredentialID, pair bool) (*opened, error) {
	if err := by.Check(access.Read, id); err != nil {
		return nil, err
	}
	var o *opened
	err := d.latest(ctx, func(s *snapshot) error {
		e := s.byID[id]
		if err := readable(e, id, s.revision.Epoch); err != nil {
			return err
		}
		if !d.covered(e, by, pair) {
			if err := d.holdForReader(ctx, s, e, by, pair); err != nil {
				return fmt.Errorf("reading %s: %w", id, err)
			}
		}
		var err error
		o, err = d.open(ctx, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	d.stats.reads.Add(1)
	return o, nil
}

// readable reports why e has nothing for a reader.
func readable(e *entry, id key.CredentialID, epoch int64) error {
	if e == nil {
		return key.WithHint(fmt.Errorf("%s: %w", id, key.ErrNotFound), "declare it in keybaton.yaml, then keybaton apply")
	}
	if !e.cred.Settled(epoch) {
		return key.WithHint(fmt.Errorf("%w: the store was restored, and it is not known yet whether the stored key of %s still works", key.ErrUnavailable, id),
			"see what it waits for: keybaton status "+id.Service+" --env "+id.Environment)
	}
	if len(e.versions) == 0 || e.versions[0].ID.Number != e.cred.Slots.Primary {
		return key.WithHint(fmt.Errorf("%s has no key yet: %w", id, key.ErrNotFound), "set one: keybaton set "+id.Service+" --env "+id.Environment)
	}
	return nil
}

// handed returns which of e's versions a read hands out.
func (e *entry) handed(pair bool) []key.Version {
	if pair {
		return e.versions
	}
	return e.versions[:1]
}

// covered reports whether durable holds of by last for another refresh
// interval from now.
func (d *Desk) covered(e *entry, by access.Principal, pair bool) bool {
	var soon time.Time
	if by.Refresh > 0 {
		soon = d.now().Add(by.Refresh)
	}
	for _, v := range e.handed(pair) {
		t, ok := e.term(holder{by.Name, "", v.ID.Number})
		if !ok {
			return false
		}
		// The term fits what the token declares now: none, or one that has an
		// end after the next refresh.
		if by.Refresh <= 0 && !t.until.IsZero() || by.Refresh > 0 && !t.until.After(soon) {
			return false
		}
	}
	return true
}

// slack is what a hold lasts beyond the refresh interval, so that not every
// read writes, and a slow reader is still covered.
func slack(refresh time.Duration) time.Duration { return max(refresh/4, time.Minute) }

func (d *Desk) holdForReader(ctx context.Context, s *snapshot, e *entry, by access.Principal, pair bool) error {
	var holds []evidence.Hold
	err := d.writes.observe(ctx, func(tx store.Tx) error {
		holds = nil
		if err := still(tx, s); err != nil {
			return err
		}
		for _, v := range e.handed(pair) {
			h := evidence.Hold{Consumer: by.Name, Kind: key.KindReader, Version: v.ID, Revision: s.revision, Since: tx.Now()}
			if t, known := e.term(holder{by.Name, "", v.ID.Number}); known {
				h.Since = t.since
			}
			if by.Refresh > 0 {
				h.Until = tx.Now().Add(by.Refresh + slack(by.Refresh)) // later than the one that does not cover
			} else {
				h.Unbound = true
			}
			if err := tx.PutHold(h); err != nil {
				return err
			}
			holds = append(holds, h)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.stats.holds.Add(int64(len(holds)))
	e.learn(holds)
	return nil
}

// still fails with errMoved unless the store is where it was when s was
// read.
func still(tx store.Tx, s *snapshot) error {
	rev, err := tx.Revision()
	if err != nil {
		return err
	}
	if rev != s.revision {
		return errMoved
	}
	return nil
}
