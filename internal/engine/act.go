package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

// act does what the rules ask of the rotation r.
func (p *pass) act(ctx context.Context, f *facts, r rotation.Rotation, a rotation.Action) error {
	switch a.Do {
	case rotation.DoIntent:
		return p.writeIntent(ctx, r)
	case rotation.DoIssue:
		return p.issue(ctx, f, r)
	case rotation.DoLost:
		return p.lost(ctx, r, errors.New(a.Why))
	case rotation.DoLook:
		if f.rules.Can.Overwrites() {
			return p.overlook(ctx, f, r)
		}
		return p.look(ctx, f, r)
	case rotation.DoNeedKey:
		return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.NeedKey, Why: a.Why}, nil)
	case rotation.DoSpare:
		return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.SpareTaken, To: a.Version, Why: a.Why,
			Marks: rotation.Marks(p.version(a.Version), f.rules.Ledger)}, func(c *change) error {
			if c.cred.Slots.Fallback != a.Version {
				return fmt.Errorf("%w: the spare is gone", key.ErrConflict)
			}
			if _, err := c.touch(); err != nil {
				return err
			}
			return c.tx.PutAsks(p.id, []evidence.Ask{{Version: p.version(a.Version), OK: 1 + seen(f, p.version(a.Version))}})
		})
	case rotation.DoProbe:
		_, err := p.probe(ctx, f, a.Version)
		return err
	case rotation.DoProven:
		return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Proven, Why: a.Why}, func(c *change) error {
			if !f.rules.Can.Probe {
				return nil
			}
			v, err := c.tx.Version(p.version(r.To))
			if err != nil {
				return err
			}
			v.Proven = c.tx.Now()
			return c.tx.PutVersion(v)
		})
	case rotation.DoStage:
		return p.stage(ctx, r, a)
	case rotation.DoInstall:
		return p.install(ctx, f, r, a)
	case rotation.DoPromote:
		return p.promote(ctx, f, r, a)
	case rotation.DoSoaked:
		return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Soaked, Why: a.Why, Marks: rotation.Marks(p.version(r.To), f.rules.Ledger)},
			func(c *change) error {
				if _, err := c.touch(); err != nil {
					return err
				}
				return c.askOnce(r.To)
			})
	case rotation.DoEmpty:
		return p.empty(ctx, r, a)
	case rotation.DoFinish:
		return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Finished, Why: a.Why, Proof: a.Proof}, func(c *change) error {
			asks, err := c.tx.Asks(p.id)
			if err != nil || len(asks) == 0 {
				return err
			}
			if _, err := c.touch(); err != nil {
				return err
			}
			return c.tx.PutAsks(p.id, nil)
		})
	case rotation.DoBack:
		return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Back, Why: a.Why, By: access.System.Name}, nil)
	case rotation.DoSwapBack:
		return p.swapBack(ctx, f, r, a)
	case rotation.DoEnable:
		ret, ok := f.rules.Retirements[a.Version]
		if !ok {
			return fmt.Errorf("[unexpected] %s is disabled without a retirement", p.version(a.Version))
		}
		return p.enable(ctx, f, ret)
	case rotation.DoDrop:
		return p.drop(ctx, r, a)
	case rotation.DoDiscard:
		return p.discard(ctx, r, a)
	case rotation.DoStop:
		return p.commit(ctx, r.ID, rotation.Event{Kind: rotation.Stop, Why: a.Why}, nil)
	}
	return fmt.Errorf("[unexpected] act %q", a.Do)
}

func (p *pass) version(n key.Number) key.VersionID {
	return key.VersionID{Credential: p.id, Number: n}
}

// seen returns the largest number of ok answers that one process saw of v.
func seen(f *facts, v key.VersionID) (n int64) {
	for _, b := range f.rules.Ledger.Boots {
		u := b.Use(v)
		n = max(n, u.Live.OK+u.Probes.OK)
	}
	return n
}

// change is one transaction on the credential.
type change struct {
	p    *pass
	tx   store.Tx
	cred key.Credential
	rot  rotation.Rotation
	rev  key.Revision
	put  bool // cred has changed
}

func (c *change) touch() (key.Revision, error) {
	if !c.rev.IsZero() {
		return c.rev, nil
	}
	var err error
	c.rev, err = c.tx.Touch(c.p.id)
	return c.rev, err
}

// move gives version n the state s.
func (c *change) move(n key.Number, s key.State) error {
	v, err := c.tx.Version(c.p.version(n))
	if err != nil {
		return err
	}
	if v.State == s {
		return nil
	}
	v.State, v.Since = s, c.tx.Now()
	return c.tx.PutVersion(v)
}

// retireVersion begins the retirement of version n, which is in no slot any
// more since revision rev.
func (c *change) retireVersion(n key.Number, rev key.Revision, emergency bool) error {
	v, err := c.tx.Version(c.p.version(n))
	if err != nil {
		return err
	}
	if v.State.Terminal() || v.State.Retiring() {
		return nil
	}
	c.p.remember(c.p.id, n, rotation.Probe{}) // what it answered in its slot proves nothing of its end
	v.State, v.Since = key.StateRetired, c.tx.Now()
	if err := c.tx.PutVersion(v); err != nil {
		return err
	}
	r := rotation.Retirement{Version: v.ID, State: key.StateRetired, Revision: rev, Rotation: c.rot.ID, Entered: c.tx.Now(), Emergency: emergency}
	if emergency {
		pol, err := policyOf(c.tx, c.cred)
		if err != nil {
			return err
		}
		r.Deadline = c.rot.Started.Add(pol.Deadline)
	}
	return c.tx.PutRetirement(r)
}

func (p *pass) writeIntent(ctx context.Context, r rotation.Rotation) error {
	suffix := hexOf(p.cfg.Rand, 4)
	err := p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "rotation." + string(rotation.Intended), Credential: p.id, Rotation: r.ID}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c, err := tx.Credential(p.id)
		if err != nil {
			return err
		}
		cur, err := tx.Rotation(r.ID)
		if err != nil {
			return err
		}
		n := c.Next
		c.Next++
		cur, err = rotation.Apply(cur, rotation.Event{Kind: rotation.Intended, At: tx.Now(), To: n})
		if err != nil {
			return err
		}
		v := key.Version{ID: p.version(n), State: key.StateIntent, Origin: key.OriginIssued, Created: tx.Now(), Since: tx.Now(), Rotation: r.ID,
			Label: labelPrefix(p.id) + n.String() + "-" + suffix}
		if err := tx.PutVersion(v); err != nil {
			return err
		}
		if err := tx.PutCredential(c); err != nil {
			return err
		}
		return tx.PutRotation(cur)
	})
	if err == nil {
		p.intent = r.Attempt + 1
	}
	return err
}

// issue calls the vendor once. Its outcome is recorded whatever happened to the
// rotation meanwhile: a key that was issued is never forgotten.
func (p *pass) issue(ctx context.Context, f *facts, r rotation.Rotation) error {
	p.intent = 0 // never twice on one intent
	v := f.rules.Versions[r.To]
	env, err := p.env(ctx, f)
	if err != nil {
		return p.refused(ctx, r, provider.Errorf(provider.Transient, "opening the manager key: %v", err))
	}
	req := provider.Request{Label: v.Label, Old: f.rules.Versions[r.From], Taken: f.rules.Taken()}
	req.Place, _ = f.rules.Free()
	if r.From != 0 {
		if req.Parts, err = p.open(ctx, r.From); err != nil {
			return p.refused(ctx, r, provider.Errorf(provider.Transient, "opening %s: %v", p.version(r.From), err))
		}
	}
	call, cancel, err := p.renew(ctx)
	if err != nil {
		return err
	}
	got, err := f.driver.Issue(call, env, req)
	cancel()
	switch {
	case err == nil:
	case provider.KindOf(err) == provider.Ambiguous:
		return p.lost(ctx, r, err)
	default:
		return p.refused(ctx, r, err)
	}
	sealed, print, err := p.cfg.Keyring.Seal(ctx, v.ID, got.Parts)
	if err != nil {
		return p.lost(ctx, r, fmt.Errorf("sealing the new key: %w", err))
	}
	if f.rules.Can.Roll && (f.rules.Can.Grace == 0 || r.Hard) {
		return p.rolled(ctx, f, r, v, got, sealed, print)
	}
	return p.keep(ctx, f, r, v, got, sealed, print)
}

// keep stores an issued key.
func (p *pass) keep(ctx context.Context, f *facts, r rotation.Rotation, v key.Version, got provider.Issued, sealed key.Sealed, print string) error {
	if again, err := p.again(ctx, f, r, v, got, print); again || err != nil {
		return err
	}
	e := rotation.Event{Kind: rotation.Issued, To: r.To}
	err := p.commit(ctx, r.ID, e, func(c *change) error {
		if c.cred.Slots.Candidate != 0 && c.cred.Slots.Candidate != r.To {
			if err := c.retireVersion(c.cred.Slots.Candidate, c.cred.Revision, false); err != nil {
				return err
			}
		}
		if err := c.record(v, got, sealed, print, key.StateCandidate); err != nil {
			return err
		}
		c.cred.Slots.Candidate, c.put = r.To, true
		return c.lapses(f, r)
	})
	if !errors.Is(err, key.ErrConflict) {
		return err
	}
	// The rotation was rolled back or superseded while the vendor answered.
	return p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "version.issued late", Credential: p.id, Version: r.To, Rotation: r.ID}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		c := &change{p: p, tx: tx, rot: r}
		var err error
		if c.cred, err = tx.Credential(p.id); err != nil {
			return err
		}
		if err := c.record(v, got, sealed, print, key.StateCandidate); err != nil {
			return err
		}
		return c.retireVersion(v.ID.Number, c.cred.Revision, false)
	})
}

func (c *change) record(v key.Version, got provider.Issued, sealed key.Sealed, print string, s key.State) error {
	v.State, v.Since, v.VendorID, v.Fingerprint, v.Expires = s, c.tx.Now(), got.VendorID, print, got.Expires
	if len(got.Warnings) > 0 {
		v.Note = got.Warnings[0]
	}
	if err := c.tx.PutVersion(v); err != nil {
		return err
	}
	return c.tx.PutSealed(v.ID, sealed)
}

func (c *change) void(n key.Number, why string) error {
	v, err := c.tx.Version(c.p.version(n))
	if err != nil {
		return err
	}
	v.State, v.Since, v.Note = key.StateVoid, c.tx.Now(), why
	return c.tx.PutVersion(v)
}

// refused records that the vendor did nothing, for certain.
func (p *pass) refused(ctx context.Context, r rotation.Rotation, cause error) error {
	e := rotation.Event{Kind: rotation.Refused, Why: cause.Error(), Retry: p.now.Add(backoff(r.Attempt, cause))}
	e.Full = provider.KindOf(cause) == provider.Full
	if e.Full && r.Kind != rotation.Spare {
		e.Retry = p.now // the spare may do
		if r.Full {
			e.Retry = p.now.Add(time.Minute)
		}
	}
	if provider.KindOf(cause) == provider.Denied {
		e.Retry = p.now.Add(max(time.Minute, backoff(r.Attempt, cause)))
	}
	return p.afterIssue(ctx, r, e, func(c *change) error {
		return c.void(r.To, cause.Error())
	})
}

// lost records that nobody knows whether the vendor issued a key.
func (p *pass) lost(ctx context.Context, r rotation.Rotation, cause error) error {
	return p.afterIssue(ctx, r, rotation.Event{Kind: rotation.Lost, Why: cause.Error()}, func(c *change) error {
		return c.move(r.To, key.StateUnknown)
	})
}

// afterIssue commits e; when the rotation has moved on meanwhile, the version
// stays a stray, which is looked for by itself.
func (p *pass) afterIssue(ctx context.Context, r rotation.Rotation, e rotation.Event, fn func(*change) error) error {
	err := p.commit(ctx, r.ID, e, func(c *change) error {
		if err := fn(c); err != nil {
			return err
		}
		return nil
	})
	if !errors.Is(err, key.ErrConflict) {
		return err
	}
	return p.cfg.Store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "version." + string(e.Kind), Credential: p.id, Version: r.To, Rotation: r.ID}, func(tx store.Tx) error {
		if err := tx.Fence(*p.held); err != nil {
			return err
		}
		return fn(&change{p: p, tx: tx, rot: r})
	})
}

// open opens one version of the credential.
func (p *pass) open(ctx context.Context, n key.Number) (secret.Parts, error) {
	return p.openAt(ctx, p.version(n))
}

func (e *Engine) openAt(ctx context.Context, at key.VersionID) (secret.Parts, error) {
	var sealed key.Sealed
	err := e.cfg.Store.View(ctx, func(tx store.Tx) (err error) {
		sealed, err = tx.Sealed(at)
		return err
	})
	if err != nil {
		return nil, err
	}
	return e.cfg.Keyring.Open(ctx, at, sealed)
}

// probe asks the vendor about version n and remembers the answer.
func (p *pass) probe(ctx context.Context, f *facts, n key.Number) (rotation.Probe, error) {
	parts, err := p.open(ctx, n)
	if err != nil {
		return rotation.Probe{}, fmt.Errorf("opening %s: %w", p.version(n), err)
	}
	env, err := p.env(ctx, f)
	if err != nil {
		env.Manager = nil // a probe uses the key itself
	}
	call, cancel, err := p.renew(ctx)
	if err != nil {
		return rotation.Probe{}, err
	}
	defer cancel()
	out := p.outcome(call, f.driver, env, parts)
	if err := ctx.Err(); err != nil {
		return out, err
	}
	p.remember(p.id, n, out)
	return out, nil
}

// outcome makes one probe. A probe that cannot be made says nothing about the
// key.
func (e *Engine) outcome(ctx context.Context, d provider.Driver, env provider.Env, parts secret.Parts) rotation.Probe {
	o, err := d.Probe(ctx, env, parts)
	out := rotation.Probe{Outcome: o, Text: string(o)}
	if err != nil {
		out.Outcome, out.Text = evidence.Other, err.Error()
	}
	_ = e.cfg.Store.View(ctx, func(tx store.Tx) error { out.At = tx.Now(); return nil })
	if out.At.IsZero() {
		out.At = time.Now().UTC()
	}
	return out
}
