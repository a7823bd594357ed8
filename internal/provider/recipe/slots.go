package recipe

import (
	"context"
	"fmt"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/spec"
	"github.com/keybaton/keybaton/secret"
)

// locator tells which of the vendor's fixed keys has the parts that are asked
// for: it reads them all and compares.
type locator struct{ c *core }

// Locate implements provider.Locator.
func (l locator) Locate(ctx context.Context, env provider.Env, p secret.Parts) (string, error) {
	c := l.c
	v, send, err := c.begin(env)
	if err != nil {
		return "", err
	}
	rd := c.Slots.Read
	a, err := send(ctx, rd.Act, v, onRead)
	if err != nil {
		return "", err
	}
	items, _ := rd.Items.Find(a.doc)
	rows, ok := items.([]any)
	if !ok {
		return "", &provider.Error{Kind: provider.Denied, Text: fmt.Sprintf("%s answered %s without its keys", c.Vendor, call.StatusText(a.status))}
	}
	for _, row := range rows {
		name, _ := rd.Name.Find(row)
		value, found := rd.Key.Find(row)
		id, err := spec.AsText(name)
		if err != nil || !found {
			continue
		}
		got := asSecret(value)
		for _, part := range c.Parts {
			if have, ok := p[part.Name]; ok && part.Secret && !got.IsZero() && have.Equal(got) {
				return id, nil
			}
		}
	}
	return "", fmt.Errorf("%w: none of the keys at %s is this one", key.ErrNotFound, c.Vendor)
}
