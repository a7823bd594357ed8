package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/detect"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

const (
	setting = "detect/state"
	// askedAction is of entries that change nothing but what is asked of
	// gateways, of several credentials at once.
	askedAction = "detect.asked"

	saveEvery = 10 * time.Second
	forget    = time.Hour // a process that has not been heard from for this long is left out
)

// memory is what survives a restart in the store.
type memory struct {
	loaded bool
	saved  time.Time // when the store last got it
	was    remembered
}

// remembered is how the memory is stored.
type remembered struct {
	State detect.State `json:"state"`
	Asked []asked      `json:"asked,omitempty"` // probes that were asked for here, and not by a rotation
}

type asked struct {
	Credential key.CredentialID `json:"credential"`
	Asks       []evidence.Ask   `json:"asks"`
}

func (r remembered) put(tx store.Tx) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding the detector's state: %w", err)
	}
	return tx.PutSetting(setting, string(b))
}

func (n *Notifier) save(ctx context.Context) error {
	if !n.loaded {
		return nil
	}
	return n.cfg.Store.Observe(ctx, n.was.put)
}

// seen is one consistent view of everything that a look needs.
type seen struct {
	facts detect.Facts
	open  []alert.Alert
	gone  []alert.Delivery // unsent, to channels that there are no more
}

func (n *Notifier) see(ctx context.Context) (v seen, err error) {
	err = n.cfg.Store.View(ctx, func(tx store.Tx) error {
		v = seen{facts: detect.Facts{Hold: n.cfg.Hold}}
		if !n.loaded {
			if err := n.load(tx); err != nil {
				return err
			}
			unsent, err := tx.Deliveries(n.cfg.Now().AddDate(100, 0, 0))
			if err != nil {
				return err
			}
			for _, d := range unsent {
				if n.cfg.Channels[d.Channel] == nil {
					v.gone = append(v.gone, d)
				}
			}
		}
		if v.facts.Boots, err = tx.Boots(); err != nil {
			return err
		}
		now := n.cfg.Now()
		v.facts.Boots = slices.DeleteFunc(v.facts.Boots, func(b evidence.Boot) bool { return now.Sub(b.Seen) > forget })
		if v.facts.Credentials, err = n.known.credentials(tx, n.was.State, v.facts.Boots); err != nil {
			return err
		}
		v.open, err = tx.Alerts(alert.Firing, 0)
		return err
	})
	return v, err
}

// load reads what an earlier process remembered. What cannot be read is as if
// it were not there: the detector begins anew.
func (n *Notifier) load(tx store.Tx) error {
	text, err := tx.Setting(setting)
	if err != nil || text == "" {
		return err
	}
	var r remembered
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		n.cfg.Log.Warn("the detector's state cannot be read; it begins anew", "error", err)
		return nil
	}
	n.was = r
	return nil
}

// look runs the detector once and stores what follows, whole or not at all: when
// it fails, the next look sees the same news again.
func (n *Notifier) look(ctx context.Context) error {
	v, err := n.see(ctx)
	if err != nil {
		return err
	}
	now := n.cfg.Now().UTC().Truncate(time.Millisecond)
	next := remembered{Asked: n.was.Asked}
	var signals []alert.Signal
	var wishes []evidence.Ask
	next.State, signals, wishes = detect.Step(n.was.State, v.facts, now)
	alerts, deliveries := alert.Apply(v.open, signals, n.names, now)

	var entries []audit.Entry
	var put []alert.Alert
	for _, a := range alerts {
		i := slices.IndexFunc(v.open, func(o alert.Alert) bool { return o.ID == a.ID })
		switch {
		case i < 0 || v.open[i].Change != a.Change:
			put = append(put, a)
			entries = append(entries, entry(a))
		case a.LastSeen.Sub(v.open[i].LastSeen) >= time.Second && v.open[i].Signal != a.Signal:
			put = append(put, a) // its evidence has grown
		case now.Sub(n.saved) >= saveEvery:
			put = append(put, a)
		}
	}
	asks, drop := n.questions(next.Asked, wishes)
	changes := len(entries) > 0 || len(asks)+len(drop) > 0
	write := func(tx store.Tx) error {
		for _, a := range put {
			if err := tx.PutAlert(a); err != nil {
				return err
			}
		}
		for _, d := range deliveries {
			if err := tx.PutDelivery(d); err != nil {
				return err
			}
		}
		for _, d := range v.gone {
			d.Sent, d.Error = now, "not sent: the channel is not configured any more"
			if err := tx.PutDelivery(d); err != nil {
				return err
			}
		}
		return next.put(tx)
	}
	switch {
	case changes:
		why := audit.Entry{Actor: access.System.Name, Action: askedAction}
		if len(entries) > 0 {
			why, entries = entries[0], entries[1:]
		}
		err = n.cfg.Store.Update(ctx, why, func(tx store.Tx) error {
			for _, e := range entries {
				if err := tx.Audit(e); err != nil {
					return err
				}
			}
			var err error
			if next.Asked, err = ask(tx, n.was.Asked, asks, drop); err != nil {
				return err
			}
			return write(tx)
		})
	case len(put) > 0 || len(v.gone) > 0 || len(next.State.Incidents) > 0 || len(next.State.Undead) > 0 || now.Sub(n.saved) >= saveEvery:
		err = n.cfg.Store.Observe(ctx, write)
	default:
		n.was, n.loaded = next, true
		return nil
	}
	if err != nil {
		return err
	}
	n.was, n.saved, n.loaded = next, now, true
	for _, d := range deliveries {
		select {
		case n.wake[d.Channel] <- struct{}{}:
		default:
		}
	}
	return nil
}

// entry is the audit entry of an alert's transition.
func entry(a alert.Alert) audit.Entry {
	s := a.Signal
	e := audit.Entry{
		Actor: access.System.Name, Action: "alert.changed", Credential: s.Credential, Version: s.Version,
		Detail: map[string]string{"alert": a.ID, "kind": s.Kind, "severity": string(s.Severity), "error": s.Error, "cause": s.Cause},
	}
	if s.Consumer != "" {
		e.Detail["consumer"] = s.Consumer
	}
	switch {
	case a.State == alert.Resolved:
		e.Action = "alert.resolved"
	case a.Change == 1:
		e.Action = "alert.fired"
	}
	return e
}

// questions compares the probes that are wished for with those that were asked
// for: which are new, and for which credentials there is nothing to ask any
// more. How many ok are waited for is no difference.
func (n *Notifier) questions(before []asked, wishes []evidence.Ask) (asks []asked, drop []key.CredentialID) {
	want := map[key.CredentialID]int{}
	for _, w := range wishes {
		id := w.Version.Credential
		if slices.ContainsFunc(before, func(a asked) bool { return a.Credential == id }) {
			want[id] = -1
			continue
		}
		i, ok := want[id]
		if !ok {
			i, want[id] = len(asks), len(asks)
			asks = append(asks, asked{Credential: id})
		}
		asks[i].Asks = append(asks[i].Asks, w)
	}
	for _, a := range before {
		if _, ok := want[a.Credential]; !ok {
			drop = append(drop, a.Credential)
		}
	}
	return asks, drop
}

// ask puts the new questions where frames take them from, and takes the old
// ones back. What a rotation or a retirement asks is never touched.
func ask(tx store.Tx, before, asks []asked, drop []key.CredentialID) ([]asked, error) {
	after := slices.DeleteFunc(slices.Clone(before), func(a asked) bool { return slices.Contains(drop, a.Credential) })
	replace := func(id key.CredentialID, old, now []evidence.Ask) (bool, error) {
		there, err := tx.Asks(id)
		if errors.Is(err, key.ErrNotFound) {
			return false, nil
		}
		if err != nil || !slices.Equal(there, old) {
			return false, err
		}
		r, err := open(tx, id)
		if err != nil || r != nil {
			return false, err
		}
		if _, err := tx.Touch(id); err != nil {
			return false, err
		}
		return true, tx.PutAsks(id, now)
	}
	for _, a := range before {
		if slices.Contains(drop, a.Credential) {
			if _, err := replace(a.Credential, a.Asks, nil); err != nil {
				return nil, err
			}
		}
	}
	for _, a := range asks {
		done, err := replace(a.Credential, nil, a.Asks)
		if err != nil {
			return nil, err
		}
		if done {
			after = append(after, a)
		}
	}
	return after, nil
}
