package recipe

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/spec"
	"github.com/keybaton/keybaton/secret"
)

// TryStep is how one step of a [Try] went. It holds no secret.
type TryStep struct {
	Name string        // "issue", "probe", "list", "disable", …
	OK   bool          // as it should be
	Text string        // what was seen
	Took time.Duration // with all waiting
}

// String returns "ok    probe    1.2s  ok 3 times in a row".
func (s TryStep) String() string {
	mark := "ok"
	if !s.OK {
		mark = "FAIL"
	}
	return fmt.Sprintf("%-5s %-16s %8s  %s", mark, s.Name, s.Took.Round(time.Millisecond), s.Text)
}

// TryReport is how a [Try] went.
type TryReport struct {
	Recipe string
	OK     bool
	Steps  []TryStep
	Stray  string // vendor id of a key that could not be revoked; "" when nothing is left behind
}

// Try runs a recipe against the vendor that env names: it issues a key, probes
// it, finds it in the list, disables it, enables it, revokes it, and proves
// that it is dead, as far as the recipe goes. report, when not nil, is called
// with each step as it ends. Whatever it issued it revokes, also after a
// failure and when ctx ends. It waits for propagation as the recipe says, and
// returns an error when a step was not as it should be.
func Try(ctx context.Context, report func(TryStep), r *spec.Recipe, env provider.Env) (TryReport, error) {
	t := &try{rep: TryReport{Recipe: r.ID, OK: true}, report: report, d: New(r), env: env, r: r}
	if t.report == nil {
		t.report = func(TryStep) {}
	}
	if len(r.Steps) == 0 {
		return t.rep, key.WithHint(fmt.Errorf("%w: %s has no creation of keys to try", key.ErrInvalid, r.ID), "a person makes its keys")
	}
	t.run(ctx)
	if !t.rep.OK {
		return t.rep, fmt.Errorf("trying the recipe %s: %w", r.ID, errTried)
	}
	return t.rep, nil
}

// errTried is returned by a try with a step that was not as it should be.
var errTried = errors.New("a step was not as it should be")

type try struct {
	rep    TryReport
	report func(TryStep)
	d      provider.Driver
	env    provider.Env
	r      *spec.Recipe
}

// do runs one step and reports it.
func (t *try) do(name string, f func() (string, error)) bool {
	start := time.Now()
	text, err := f()
	s := TryStep{Name: name, OK: err == nil, Text: text, Took: time.Since(start)}
	if err != nil {
		s.Text, t.rep.OK = err.Error(), false
	}
	t.rep.Steps = append(t.rep.Steps, s)
	t.report(s)
	return s.OK
}

func (t *try) run(ctx context.Context) {
	label := "keybaton-try-" + time.Now().UTC().Format("20060102t150405") + "-" + randomHex(t.env.Rand)
	var k provider.Issued
	if !t.do("issue", func() (string, error) {
		var err error
		k, err = t.d.Issue(ctx, t.env, provider.Request{Label: label})
		return fmt.Sprintf("a key with the parts %v", k.Parts.Names()), err
	}) {
		t.strays(ctx, label)
		return
	}
	revoked := false
	defer func() {
		if !revoked {
			t.clean(ctx, k.VendorID)
		}
	}()
	if t.r.Probe != nil && !t.do("probe", func() (string, error) { return t.probes(ctx, k.Parts, evidence.OK, t.settle(), t.r.Early) }) {
		return
	}
	if l, ok := t.d.(provider.Lister); ok && !t.do("list", func() (string, error) { return t.listed(ctx, l, k.VendorID, label) }) {
		return
	}
	if d, ok := t.d.(provider.Disabler); ok {
		var saved string
		if !t.do("disable", func() (string, error) {
			var err error
			saved, err = d.Disable(ctx, t.env, k.VendorID)
			return "switched off", err
		}) {
			return
		}
		if t.r.Probe != nil {
			t.do("probe disabled", func() (string, error) { return t.probes(ctx, k.Parts, evidence.Auth, 1, t.r.Late) })
		}
		if !t.do("enable", func() (string, error) { return "switched on again", d.Enable(ctx, t.env, k.VendorID, saved) }) {
			return
		}
		if t.r.Probe != nil {
			t.do("probe enabled", func() (string, error) { return t.probes(ctx, k.Parts, evidence.OK, 1, t.r.Early) })
		}
	}
	revoked = t.do("revoke", func() (string, error) { return "revoked, as the vendor says", t.d.Revoke(ctx, t.env, k.VendorID) })
	if !revoked {
		return
	}
	if t.r.Probe != nil {
		t.do("prove", func() (string, error) { return t.probes(ctx, k.Parts, evidence.Auth, t.r.DeadOK, t.r.Late) })
	}
	if l, ok := t.d.(provider.Lister); ok && t.r.List.Complete {
		t.do("list again", func() (string, error) { return t.absent(ctx, l, k.VendorID) })
	}
	t.do("revoke again", func() (string, error) {
		return "a key that is gone counts as revoked", t.d.Revoke(ctx, t.env, k.VendorID)
	})
}

// settle is how often a new key must answer ok in a row.
func (t *try) settle() int { return 3 }

// probes waits until the key answers want n times in a row; within is the
// vendor's own propagation, to which some time is added.
func (t *try) probes(ctx context.Context, p secret.Parts, want evidence.Outcome, n int, within time.Duration) (string, error) {
	deadline := time.Now().Add(within + 10*time.Second)
	row, made := 0, 0
	for {
		o, err := t.d.Probe(ctx, t.env, p)
		if err != nil {
			return "", err
		}
		made++
		if row++; o != want {
			row = 0
		}
		if row >= n {
			return fmt.Sprintf("%s %d times in a row, after %d probes", want, n, made), nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("the probe answers %s, not %s, after %d probes", o, want, made)
		}
		wait := time.NewTimer(t.r.Spacing)
		select {
		case <-ctx.Done():
			wait.Stop()
			return "", ctx.Err()
		case <-wait.C:
		}
	}
}

func (t *try) listed(ctx context.Context, l provider.Lister, id, label string) (string, error) {
	all, err := l.List(ctx, t.env)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(all, func(k provider.Listed) bool { return k.VendorID == id })
	if i < 0 {
		return "", fmt.Errorf("the new key is not in the list of %d", len(all))
	}
	if want := provider.LabelAt(t.d, t.env, label); all[i].Label != want {
		return "", fmt.Errorf("the new key is listed as %q, not %q", all[i].Label, want)
	}
	return fmt.Sprintf("found among %d by id and label", len(all)), nil
}

func (t *try) absent(ctx context.Context, l provider.Lister, id string) (string, error) {
	all, err := l.List(ctx, t.env)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(all, func(k provider.Listed) bool { return k.VendorID == id }) {
		return "", errors.New("the revoked key is still in the list")
	}
	return fmt.Sprintf("gone from the list of %d", len(all)), nil
}

// strays revokes what a failed issue may have left under label.
func (t *try) strays(ctx context.Context, label string) {
	l, ok := t.d.(provider.Lister)
	if !ok {
		return
	}
	// A try that was interrupted still cleans up after itself.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	all, err := l.List(ctx, t.env)
	if err != nil {
		t.do("clean up", func() (string, error) { return "", err })
		return
	}
	want := provider.LabelAt(t.d, t.env, label)
	for _, k := range all {
		if k.Label == want {
			t.clean(ctx, k.VendorID)
		}
	}
}

// clean revokes the key id, or says that it was left behind.
func (t *try) clean(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if !t.do("clean up", func() (string, error) { return "revoked the key " + id, t.d.Revoke(ctx, t.env, id) }) {
		t.rep.Stray = id
	}
}

func randomHex(random func([]byte)) string {
	if random == nil {
		random = spec.SystemRandom
	}
	b := make([]byte, 4)
	random(b)
	return hex.EncodeToString(b)
}
