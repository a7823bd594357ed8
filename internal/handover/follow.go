package handover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

var errMoved = fmt.Errorf("handing out: %w", key.ErrStale)

// Frame returns the keys that by may hold, for its process boot: what has
// changed since the revision since if this Desk sent it that one, everything
// otherwise. Each version in it is held by (by, boot), durably, before Frame
// returns. A key that does not open fails the whole frame: consumers keep what
// they have rather than lose one.
func (d *Desk) Frame(ctx context.Context, by access.Principal, boot string, since key.Revision) (link.Frame, error) {
	if err := by.Check(access.Follow, key.CredentialID{}); err != nil {
		return link.Frame{}, err
	}
	if err := checkBoot(boot); err != nil {
		return link.Frame{}, err
	}
	var f link.Frame
	err := d.latest(ctx, func(s *snapshot) (err error) {
		f, err = d.frame(ctx, s, by, process{by.Name, boot}, since)
		return err
	})
	if err != nil {
		return link.Frame{}, err
	}
	d.stats.frames.Add(1)
	return f, nil
}

func (d *Desk) frame(ctx context.Context, s *snapshot, by access.Principal, p process, since key.Revision) (link.Frame, error) {
	d.mu.Lock()
	had, known := d.sent[p]
	d.mu.Unlock()
	f := link.Frame{Revision: s.revision}
	f.Full = !known || since.IsZero() || had.revision != since || since.Epoch != s.revision.Epoch

	// What was known of holds may have been waived since that frame: then all
	// that the process still has is recorded anew, changed or not.
	anew := !f.Full && had.whole != s.whole
	var ids []key.CredentialID
	var out, held []*entry
	for _, e := range s.entries {
		if !handed(by, e.cred) {
			continue
		}
		ids = append(ids, e.cred.ID)
		if !e.cred.Settled(s.revision.Epoch) {
			f.Kept = append(f.Kept, e.cred.ID)
			continue
		}
		if anew {
			held = append(held, e)
		}
		if f.Full || e.cred.Revision.Compare(since) > 0 || !contains(had.ids, e.cred.ID) {
			out = append(out, e)
		}
	}
	if !f.Full {
		for _, id := range had.ids {
			if !contains(ids, id) {
				f.Removed = append(f.Removed, id)
			}
		}
		if slices.Equal(ids, had.ids) {
			ids = had.ids // one list for all its frames
		}
	}
	if !anew {
		held = out
	}
	if err := d.hold(ctx, s, by, p.boot, held); err != nil {
		return link.Frame{}, err
	}
	for _, e := range out {
		o, err := d.open(ctx, e)
		if err != nil {
			return link.Frame{}, err
		}
		c := link.Credential{ID: e.cred.ID, Call: e.cred.Call.Clone(), Slots: e.cred.Slots, Asks: slices.Clone(e.asks)}
		for i, v := range e.versions {
			c.Versions = append(c.Versions, link.Version{Number: v.ID.Number, Since: v.Created, Parts: secret.ExposeParts(o.parts[i])})
		}
		f.Credentials = append(f.Credentials, c)
	}
	if by.Role == access.RoleGateway {
		f.Tokens = tokensFor(s, by.Grants)
	}
	d.mu.Lock()
	if len(d.sent) >= maxSent {
		clear(d.sent)
	}
	d.sent[p] = sent{s.revision, ids, s.whole}
	d.mu.Unlock()
	return f, nil
}

// handed reports whether by is given the keys of c: those of credentials that
// it is granted, but gateways none that ride on no request.
func handed(by access.Principal, c key.Credential) bool {
	return granted(by.Grants, c.ID) && (c.Call.Place.In != key.InConnection || kindOf(by) != key.KindGateway)
}

func contains(sorted []key.CredentialID, id key.CredentialID) bool {
	_, ok := slices.BinarySearchFunc(sorted, id, key.CredentialID.Compare)
	return ok
}

// hold makes every version of out held by (by, boot), durably. It writes only
// the holds that are new.
func (d *Desk) hold(ctx context.Context, s *snapshot, by access.Principal, boot string, out []*entry) error {
	kind := kindOf(by)
	var missing []evidence.Hold
	for _, e := range out {
		for _, v := range e.versions {
			if _, ok := e.term(holder{by.Name, boot, v.ID.Number}); !ok {
				missing = append(missing, evidence.Hold{Consumer: by.Name, Kind: kind, Boot: boot, Version: v.ID, Revision: s.revision})
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var holds []evidence.Hold
	err := d.writes.observe(ctx, func(tx store.Tx) error {
		if err := still(tx, s); err != nil {
			return err
		}
		if err := alive(tx, by.Name, boot); err != nil {
			return err
		}
		holds = slices.Clone(missing)
		for i := range holds {
			holds[i].Since = tx.Now()
			if err := tx.PutHold(holds[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.stats.holds.Add(int64(len(holds)))
	for _, e := range out { // holds follow the order of out
		n := 0
		for n < len(holds) && holds[n].Version.Credential == e.cred.ID {
			n++
		}
		e.learn(holds[:n])
		holds = holds[n:]
	}
	return nil
}

// tokensFor returns the consumers that a gateway with the grants gs may serve.
func tokensFor(s *snapshot, gs []access.Grant) []link.Token {
	var out []link.Token
	for _, t := range s.names {
		if t.Role == access.RoleConsumer && meet(t.Grants, gs) {
			out = append(out, link.Token{Name: t.Name, Hash: t.Hash, Grants: slices.Clone(t.Grants), Expires: t.Expires})
		}
	}
	return out
}

// meet reports whether some credential could be covered by both a and b.
func meet(a, b []access.Grant) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Environment != "*" && y.Environment != "*" && x.Environment != y.Environment {
				continue
			}
			for _, s := range x.Services {
				if s == "*" && len(y.Services) > 0 || slices.Contains(y.Services, "*") || slices.Contains(y.Services, s) {
					return true
				}
			}
		}
	}
	return false
}

// Limits of what one consumer may send at once.
const (
	maxPinned = 10_000
	maxUses   = 200_000 // a report leaves none out: what it does not list was not used
)

// sender checks that what was sent is by's own word.
func sender(by access.Principal, consumer, boot string) error {
	if err := by.Check(access.Follow, key.CredentialID{}); err != nil {
		return err
	}
	if consumer != "" && consumer != by.Name {
		return key.WithHint(fmt.Errorf("%w: %q speaks for another consumer", key.ErrDenied, by.Name), "give each consumer a token of its own")
	}
	return checkBoot(boot)
}

// Ack takes a consumer's promise: the holds that it lets go of are removed,
// those of a process that it replaces become its own, and that process is not
// listened to any more. It fails with [key.ErrStale] for a revision that the store has not reached, and with
// [key.ErrDenied] for the word of another consumer. Taking one twice, or an
// older one after a newer one, changes nothing.
//
// A hold is let go of only if the acknowledged revision covers the last change
// of its credential: then the slots as they are now are what that frame handed
// out, and what is in none of them is not in use.
func (d *Desk) Ack(ctx context.Context, by access.Principal, a evidence.Ack) error {
	if err := sender(by, a.Consumer, a.Boot); err != nil {
		return err
	}
	if a.Replaces != "" {
		if err := checkBoot(a.Replaces); err != nil {
			return err
		}
	}
	if len(a.Pinned) > maxPinned || a.Replaces == a.Boot {
		return fmt.Errorf("%w: the acknowledgement cannot be right", key.ErrInvalid)
	}
	a.Consumer = by.Name
	s, err := d.snapshot(ctx)
	if err != nil {
		return err
	}
	var moved []key.CredentialID
	err = d.writes.observe(ctx, func(tx store.Tx) (err error) {
		moved, err = acknowledge(tx, s, by, a)
		return err
	})
	if err != nil {
		return fmt.Errorf("taking the acknowledgement of %q: %w", by.Name, err)
	}
	d.stats.acks.Add(1)
	if len(moved) > 0 {
		d.moved(moved)
	}
	return nil
}

// maxReplaced bounds how many processes of a consumer are known to be gone. It
// is far more than can have messages on the way.
const maxReplaced = 64

// replaced returns the processes of a consumer that others have taken over.
func replaced(tx store.Tx, consumer string) ([]string, error) {
	v, err := tx.Setting("handover/replaced/" + consumer)
	return strings.Fields(v), err
}

// alive fails for a process that was taken over: it is gone, so this is a late
// message of it. What it would record would never be let go of.
func alive(tx store.Tx, consumer, boot string) error {
	gone, err := replaced(tx, consumer)
	if err != nil {
		return err
	}
	if slices.Contains(gone, boot) {
		return key.WithHint(fmt.Errorf("%w: another process of %q has taken over from %s", key.ErrConflict, consumer, boot),
			"restart this one, with a cache file of its own")
	}
	return nil
}

// bury notes that the process boot is gone.
func bury(tx store.Tx, consumer, boot string) error {
	gone, err := replaced(tx, consumer)
	if err != nil || slices.Contains(gone, boot) {
		return err
	}
	gone = append(gone, boot)
	return tx.PutSetting("handover/replaced/"+consumer, strings.Join(gone[max(0, len(gone)-maxReplaced):], " "))
}

// acknowledge returns the credentials about which something is new.
func acknowledge(tx store.Tx, s *snapshot, by access.Principal, a evidence.Ack) ([]key.CredentialID, error) {
	rev, err := tx.Revision()
	if err != nil {
		return nil, err
	}
	if a.Revision.Compare(rev) > 0 {
		return nil, key.WithHint(fmt.Errorf("%w: revision %s is acknowledged, and the store is at %s", key.ErrStale, a.Revision, rev),
			"if the store was restored from a backup, restore it with keybaton restore, which begins a new epoch")
	}
	if err := alive(tx, by.Name, a.Boot); err != nil {
		return nil, err
	}
	if a.Replaces != "" {
		if err := bury(tx, by.Name, a.Replaces); err != nil {
			return nil, err
		}
	}
	boots, err := tx.Boots(by.Name)
	if err != nil {
		return nil, err
	}
	b := evidence.Boot{Consumer: by.Name, Boot: a.Boot}
	if i := slices.IndexFunc(boots, func(b evidence.Boot) bool { return b.Boot == a.Boot }); i >= 0 {
		b = boots[i]
	}
	before := b.Acked
	b.Kind = kindOf(by)
	late := a.Revision.Compare(before) < 0
	if !late {
		b = b.Acknowledge(a, tx.Now())
		b.Uses, b.Answers = nil, nil // those stay as they are
		if err := tx.PutBoot(b); err != nil {
			return nil, err
		}
	}
	holds, err := tx.HoldsOf(by.Name)
	if err != nil {
		return nil, err
	}
	own := make(map[key.VersionID]bool, len(holds))
	for _, h := range holds {
		if h.Boot == a.Boot {
			own[h.Version] = true
		}
	}
	r := releasing{tx: tx, exact: s.revision == rev, s: s, by: by, ack: a, now: rev}
	var moved []key.CredentialID
	for _, h := range holds {
		if h.Boot == "" || h.Boot != a.Boot && h.Boot != a.Replaces {
			continue
		}
		if h.Boot == a.Boot && late {
			continue
		}
		c, found, err := r.credential(h.Version.Credential)
		if err != nil {
			return nil, err
		}
		switch {
		case r.lets(h, c, found):
			err = tx.DeleteHold(h.Consumer, h.Boot, h.Version)
		case h.Boot == a.Boot:
			if !before.Reached(c.Revision) && b.Acked.Reached(c.Revision) {
				moved = append(moved, c.ID)
			}
			continue
		default:
			// That process is gone, and this one has what it left.
			mine := h
			mine.Boot = a.Boot
			if err = tx.DeleteHold(h.Consumer, h.Boot, h.Version); err == nil && !own[h.Version] {
				err = tx.PutHold(mine)
			}
		}
		if err != nil {
			return nil, err
		}
		moved = append(moved, h.Version.Credential)
	}
	if a.Replaces != "" && slices.ContainsFunc(boots, func(b evidence.Boot) bool { return b.Boot == a.Replaces }) {
		if err := tx.DeleteBoot(by.Name, a.Replaces); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(moved, key.CredentialID.Compare)
	return slices.Compact(moved), nil
}

// releasing decides which holds an acknowledgement lets go of.
type releasing struct {
	tx    store.Tx
	s     *snapshot
	exact bool // s is what tx reads
	by    access.Principal
	ack   evidence.Ack
	now   key.Revision // of tx
}

// credential returns the credential as tx reads it.
func (r *releasing) credential(id key.CredentialID) (key.Credential, bool, error) {
	if r.exact {
		e := r.s.byID[id]
		if e == nil {
			return key.Credential{ID: id}, false, nil
		}
		return e.cred, true, nil
	}
	c, err := r.tx.Credential(id)
	if errors.Is(err, key.ErrNotFound) {
		return key.Credential{ID: id}, false, nil
	}
	return c, err == nil, err
}

// lets reports whether h, of the credential c as it is now, is let go of.
func (r *releasing) lets(h evidence.Hold, c key.Credential, found bool) bool {
	if found && !c.Settled(r.now.Epoch) {
		return false // it keeps what it has
	}
	given := found && handed(r.by, c)
	if !r.ack.Covers(given, c.Revision, r.now) {
		return false
	}
	return h.Released(r.ack, func(v key.VersionID) bool {
		return given && slices.Contains(c.Slots.Served(), v.Number)
	})
}

// Report takes what a consumer saw. Taking one twice, or an older one after a
// newer one, changes nothing. Uses of credentials that are not granted are
// dropped.
func (d *Desk) Report(ctx context.Context, by access.Principal, r evidence.Report) error {
	if err := sender(by, r.Consumer, r.Boot); err != nil {
		return err
	}
	if r.Seq < 1 || r.Elapsed < 0 || len(r.Uses) > maxUses || len(r.Answers) > maxUses {
		return fmt.Errorf("%w: the report cannot be right", key.ErrInvalid)
	}
	r.Consumer = by.Name
	r.Uses = slices.DeleteFunc(slices.Clone(r.Uses), func(u evidence.Use) bool { return !granted(by.Grants, u.Version.Credential) })
	r.Answers = slices.DeleteFunc(slices.Clone(r.Answers), func(a evidence.Answers) bool { return !granted(by.Grants, a.Credential) })
	err := d.writes.observe(ctx, func(tx store.Tx) error {
		if err := alive(tx, by.Name, r.Boot); err != nil {
			return err
		}
		boots, err := tx.Boots(by.Name)
		if err != nil {
			return err
		}
		b := evidence.Boot{Consumer: by.Name, Boot: r.Boot}
		if i := slices.IndexFunc(boots, func(b evidence.Boot) bool { return b.Boot == r.Boot }); i >= 0 {
			b = boots[i]
		}
		if r.Seq <= b.Seq {
			return nil
		}
		b = b.Merge(r, tx.Now())
		b.Kind = kindOf(by)
		b.Uses, b.Answers = r.Uses, r.Answers // those it does not list stay
		return tx.PutBoot(b)
	})
	if err != nil {
		return fmt.Errorf("taking the report of %q: %w", by.Name, err)
	}
	d.stats.reports.Add(1)
	return nil
}
