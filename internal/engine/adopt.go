package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

// AdoptOptions say which key at the vendor is taken in.
type AdoptOptions struct {
	VendorID string     // as the vendor lists it; "" where the key itself tells it
	Version  key.Number // the version that it is; 0: the only one whose vendor id is not known
	Retire   bool       // it is no version yet, and nobody needs it: it is taken in to be ended
	Why      string
}

// Discovered is a key as the vendor lists it, beside what the store knows of it.
type Discovered struct {
	VendorID string     `json:"vendor_id,omitempty"`
	Label    string     `json:"label,omitempty"`
	Created  time.Time  `json:"created,omitzero"`
	LastUsed time.Time  `json:"last_used,omitzero"`
	Disabled bool       `json:"disabled,omitempty"`
	Version  key.Number `json:"version,omitempty"` // 0: the store does not know it
	State    key.State  `json:"state,omitempty"`
	Relation Relation   `json:"relation"`
}

// Relation says how the store and the vendor's list stand to each other
// about one key.
type Relation string

// How a key can stand.
const (
	Known        Relation = "known"        // both have it
	Stray        Relation = "stray"        // the vendor has it under a label of ours, the store does not know it
	Foreign      Relation = "foreign"      // the vendor has it, made by somebody else; never touched
	Missing      Relation = "missing"      // the store takes it for alive, the vendor does not list it
	Unidentified Relation = "unidentified" // the store has it and does not know its vendor id
)

// labelPrefix begins the label of every key that is issued for id.
func labelPrefix(id key.CredentialID) string {
	return "keybaton-" + id.Service + "-" + id.Environment + "-"
}

// Discover compares the vendor's list with the store and changes nothing: first
// what the vendor lists, in its order, then what it does not.
func (e *Engine) Discover(ctx context.Context, by access.Principal, id key.CredentialID) ([]Discovered, error) {
	if err := by.Check(access.Operate, id); err != nil {
		return nil, err
	}
	f, err := e.factsOf(ctx, id)
	if err != nil {
		return nil, unknownCredential(err, id)
	}
	env, listed, err := e.list(ctx, id, f)
	if err != nil {
		return nil, err
	}
	var out []Discovered
	found := map[key.Number]bool{}
	for _, k := range listed {
		d := Discovered{VendorID: k.VendorID, Label: k.Label, Created: k.Created, LastUsed: k.LastUsed, Disabled: k.Disabled, Relation: Foreign}
		if v, ok := f.byVendorID(k.VendorID); ok {
			d.Version, d.State, d.Relation = v.ID.Number, v.State, Known
			found[v.ID.Number] = true
		} else if ours(f.driver, env, id, k) {
			d.Relation = Stray
		}
		out = append(out, d)
	}
	for _, v := range f.versions {
		if found[v.ID.Number] || v.State.Terminal() || v.State == key.StateIntent || v.State == key.StateUnknown {
			continue
		}
		d := Discovered{VendorID: v.VendorID, Label: v.Label, Version: v.ID.Number, State: v.State, Relation: Missing}
		if v.VendorID == "" {
			d.Relation = Unidentified
		}
		if d.Relation == Missing && !f.info.ListsAll {
			continue // absence from a list that is not complete says nothing
		}
		out = append(out, d)
	}
	return out, nil
}

// list returns the vendor's keys.
func (e *Engine) list(ctx context.Context, id key.CredentialID, f *facts) (provider.Env, []provider.Listed, error) {
	l, ok := f.driver.(provider.Lister)
	if !ok || !f.rules.Can.List {
		why, next := "the vendor cannot list its keys", "look at the vendor's own page"
		if f.service.Manager == "" && f.info.Manager == "required" {
			why, next = "its keys can only be listed with a manager key", "add manager: SERVICE to "+id.Service+" in keybaton.yaml and apply it"
		}
		return provider.Env{}, nil, key.WithHint(fmt.Errorf("%w: %s: %s", key.ErrConflict, id, why), next)
	}
	env, err := e.envOf(ctx, id, f)
	if err != nil {
		return env, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	keys, err := l.List(ctx, env)
	if err != nil {
		return env, nil, fmt.Errorf("%w: listing the keys of %s: %w", key.ErrUnavailable, id, err)
	}
	return env, keys, nil
}

// byVendorID returns the version that the vendor calls vendorID: the living one
// where a vendor uses an id again.
func (f *facts) byVendorID(vendorID string) (v key.Version, ok bool) {
	for _, o := range f.versions {
		if o.VendorID == vendorID && vendorID != "" && (!ok || !o.State.Terminal()) {
			v, ok = o, true
		}
	}
	return v, ok
}

// ours reports whether the label of k is one that Keybaton gives to keys of id.
// What the vendor cuts or changes in labels is taken into account.
func ours(d provider.Driver, env provider.Env, id key.CredentialID, k provider.Listed) bool {
	if strings.HasPrefix(k.Label, labelPrefix(id)) {
		return true
	}
	p := labelPrefix(id)
	shaped := provider.LabelAt(d, env, p+"v1-00000000") // what is not permitted is replaced, letter by letter
	return len(shaped) >= len(p) && strings.HasPrefix(k.Label, shaped[:len(p)])
}

// Adopt takes in a key at the vendor: it says which version it is, so that
// Keybaton can disable and revoke it, or takes it in to end it. Nothing is asked
// of the vendor but its list. What is not adopted and was not issued by Keybaton
// is never touched.
func (e *Engine) Adopt(ctx context.Context, by access.Principal, id key.CredentialID, o AdoptOptions) (key.Version, error) {
	if err := by.Check(access.Operate, id); err != nil {
		return key.Version{}, err
	}
	f, err := e.factsOf(ctx, id)
	if err != nil {
		return key.Version{}, unknownCredential(err, id)
	}
	if o.Retire {
		return e.takeIn(ctx, by, id, f, o)
	}
	v, err := f.unidentified(id, o.Version)
	if err != nil {
		return key.Version{}, err
	}
	if o.VendorID == "" {
		parts, err := e.openAt(ctx, v.ID)
		if err != nil {
			return key.Version{}, err
		}
		if o.VendorID = e.identify(ctx, id, f, parts); o.VendorID == "" {
			return key.Version{}, key.WithHint(fmt.Errorf("%w: the key %s does not tell its vendor id", key.ErrInvalid, v.ID.Number),
				"name it: --vendor-id ID; see what the vendor lists: keybaton discover "+id.Service+" --env "+id.Environment)
		}
	}
	if err := e.checkVendorID(ctx, id, f, o.VendorID, v.ID.Number); err != nil {
		return key.Version{}, err
	}
	err = e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: "version.adopted", Credential: id, Version: v.ID.Number,
		Detail: map[string]string{"vendor_id": o.VendorID, "why": o.Why}}, func(tx store.Tx) error {
		var err error
		if v, err = tx.Version(v.ID); err != nil {
			return err
		}
		if v.State.Terminal() || v.State == key.StateRevoking || v.State == key.StateDisabling {
			return fmt.Errorf("%w: %s is %s", key.ErrConflict, v.ID.Number, v.State)
		}
		v.VendorID = o.VendorID
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		return tx.Due(leaseKind, id.String(), tx.Now())
	})
	if err == nil {
		e.Wake()
	}
	return v, err
}

// unidentified returns version n, or the only one in use whose vendor id is not
// known.
func (f *facts) unidentified(id key.CredentialID, n key.Number) (key.Version, error) {
	if n != 0 {
		v, ok := f.rules.Versions[n]
		if !ok {
			return v, key.WithHint(fmt.Errorf("%w: %s has no version %s", key.ErrNotFound, id, n), "see its versions: keybaton status "+id.Service+" --env "+id.Environment)
		}
		if v.State.Terminal() {
			return v, fmt.Errorf("%w: %s is %s", key.ErrConflict, n, v.State)
		}
		return v, nil
	}
	var open []key.Version
	for _, v := range f.versions {
		if v.VendorID == "" && !v.State.Terminal() && v.State != key.StateIntent && v.State != key.StateUnknown {
			open = append(open, v)
		}
	}
	switch len(open) {
	case 0:
		return key.Version{}, key.WithHint(fmt.Errorf("%w: the vendor id of every version of %s is known", key.ErrConflict, id), "to end a key that is no version: --retire; to correct an id: --version v1")
	case 1:
		return open[0], nil
	}
	return key.Version{}, key.WithHint(fmt.Errorf("%w: %d versions of %s have no vendor id", key.ErrInvalid, len(open), id), fmt.Sprintf("name one: --version %s", open[0].ID.Number))
}

// checkVendorID refuses an id that the vendor does not list, or that another
// living version has.
func (e *Engine) checkVendorID(ctx context.Context, id key.CredentialID, f *facts, vendorID string, n key.Number) error {
	if o, ok := f.byVendorID(vendorID); ok && o.ID.Number != n && (!o.State.Terminal() || !f.rules.Can.Overwrites()) {
		return fmt.Errorf("%w: %s at the vendor is %s (%s) already", key.ErrConflict, vendorID, o.ID.Number, o.State)
	}
	if len(f.rules.Can.Fixed) > 0 {
		if !slices.Contains(f.rules.Can.Fixed, vendorID) {
			return key.WithHint(fmt.Errorf("%w: the vendor has the keys %v", key.ErrInvalid, f.rules.Can.Fixed), "name one of them: --vendor-id "+f.rules.Can.Fixed[0])
		}
		return nil
	}
	if !f.rules.Can.List {
		return nil // it is taken at its word
	}
	_, listed, err := e.list(ctx, id, f)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(listed, func(k provider.Listed) bool { return k.VendorID == vendorID }) {
		return key.WithHint(fmt.Errorf("%w: the vendor lists no key %s", key.ErrNotFound, vendorID), "see what it lists: keybaton discover "+id.Service+" --env "+id.Environment)
	}
	return nil
}

// takeIn makes a key that is no version one on its way out.
func (e *Engine) takeIn(ctx context.Context, by access.Principal, id key.CredentialID, f *facts, o AdoptOptions) (key.Version, error) {
	switch {
	case o.VendorID == "":
		return key.Version{}, key.WithHint(fmt.Errorf("%w: which key is to be retired?", key.ErrInvalid), "name it: --vendor-id ID; see what the vendor lists: keybaton discover "+id.Service+" --env "+id.Environment)
	case o.Version != 0:
		return key.Version{}, fmt.Errorf("%w: a key that is taken in to be retired gets a number of its own; leave --version out", key.ErrInvalid)
	case !f.rules.Can.Revoke || f.rules.Can.Overwrites():
		return key.Version{}, key.WithHint(fmt.Errorf("%w: %s has no way to revoke one key by program", key.ErrConflict, f.info.Vendor), "revoke it on the vendor's own page")
	case f.credential.Slots.Primary == 0:
		return key.Version{}, key.WithHint(fmt.Errorf("%w: %s has no primary that would survive it", key.ErrConflict, id), "give it a key first: keybaton set or keybaton rotate")
	}
	if p := f.rules.Versions[f.credential.Slots.Primary]; p.VendorID == "" {
		return key.Version{}, key.WithHint(fmt.Errorf("%w: the vendor id of the primary %s is not known, so %s may be the primary itself", key.ErrConflict, p.ID.Number, o.VendorID),
			"say first which one it is: keybaton adopt "+id.Service+" --env "+id.Environment+" --vendor-id ID")
	}
	if err := e.checkVendorID(ctx, id, f, o.VendorID, 0); err != nil {
		return key.Version{}, err
	}
	var v key.Version
	err := e.cfg.Store.Update(ctx, audit.Entry{Actor: by.Name, Action: "version.adopted to be retired", Credential: id, Detail: map[string]string{"vendor_id": o.VendorID, "why": o.Why}}, func(tx store.Tx) error {
		c, err := tx.Credential(id)
		if err != nil {
			return err
		}
		vs, err := tx.Versions(id)
		if err != nil {
			return err
		}
		for _, x := range vs {
			if x.VendorID == o.VendorID {
				return fmt.Errorf("%w: %s at the vendor is %s (%s) already", key.ErrConflict, o.VendorID, x.ID.Number, x.State)
			}
		}
		v = key.Version{ID: key.VersionID{Credential: id, Number: c.Next}, State: key.StateRetired, Origin: key.OriginAdopted, VendorID: o.VendorID,
			Created: tx.Now(), Since: tx.Now(), Note: o.Why}
		c.Next++
		return errors.Join(tx.PutCredential(c), tx.PutVersion(v),
			tx.PutRetirement(rotation.Retirement{Version: v.ID, State: key.StateRetired, Revision: c.Revision, Entered: tx.Now()}),
			tx.Due(leaseKind, id.String(), tx.Now()))
	})
	if err == nil {
		e.Wake()
	}
	return v, err
}
