package recipe

import (
	"bytes"
	"context"
	"encoding/json"
	"io"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/spec"
)

func readCloser(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }

// Disable switches the key off. saved is what Enable needs; it is returned
// with an error too once it was read, since the vendor may have lost it by
// then. A key that is off or gone already is a success with saved "": what was
// saved before stays good.
func (d disabler) Disable(ctx context.Context, env provider.Env, vendorID string) (saved string, err error) {
	c := d.c
	v, send, err := c.beginOn(env, vendorID)
	if err != nil {
		return "", err
	}
	t := c.Recipe.Disable
	if t.Read != nil {
		a, err := send(ctx, t.Read.Act, v, onIdempotent)
		if err == nil && holds(*t.Read.Gone, t.Read.Request.Method, a) && !holds(t.Read.Expect, t.Read.Request.Method, a) {
			return "", nil // what is gone is off; the revocation proves it
		}
		if err != nil {
			return "", wrapped(provider.KindOf(err), err, "reading what it takes to enable the key again: ")
		}
		state := map[string]any{}
		for _, x := range t.Read.Extract {
			got, err := take(x, a, v)
			if err != nil {
				return "", &provider.Error{Kind: provider.Denied, Text: c.Vendor + " answered " + call.StatusText(a.status) + " without " + x.Source}
			}
			state[x.Name] = got
			v["saved."+x.Name] = got
		}
		for _, m := range t.Must {
			if s, err := spec.AsText(state[m]); err == nil && s == "" {
				return "", nil
			}
		}
		b, err := json.Marshal(state)
		if err != nil {
			return "", &provider.Error{Kind: provider.Denied, Text: "what it takes to enable the key again cannot be kept"}
		}
		saved = string(b)
	}
	_, err = send(ctx, t.Act, v, onIdempotent)
	return saved, err
}

// Enable switches the key on again with what Disable saved.
func (d disabler) Enable(ctx context.Context, env provider.Env, vendorID, saved string) error {
	c := d.c
	v, send, err := c.beginOn(env, vendorID)
	if err != nil {
		return err
	}
	if c.Recipe.Disable.Read != nil {
		state, ok := decode([]byte(saved)).(map[string]any)
		if !ok {
			return &provider.Error{Kind: provider.Denied, Text: "what it takes to enable the key again was not kept; issue a new key: keybaton rotate SERVICE --env E"}
		}
		for n, x := range state {
			v["saved."+n] = x
		}
	}
	_, err = send(ctx, c.Recipe.Enable.Act, v, onRead) // not onIdempotent: a key that is gone is not enabled
	return err
}
