package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// dataKeys lets the keyring keep its wrapped data keys in the store.
type dataKeys struct{ store store.Store }

// DataKeys returns the wrapped data keys by name.
func (d dataKeys) DataKeys(ctx context.Context) (keys map[string][]byte, err error) {
	err = d.store.View(ctx, func(tx store.Tx) error {
		keys, err = tx.DataKeys()
		return err
	})
	return keys, err
}

// PutDataKey stores a new wrapped data key.
func (d dataKeys) PutDataKey(ctx context.Context, name string, wrapped []byte) error {
	return d.store.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "datakey.created", Detail: map[string]string{"name": name}}, func(tx store.Tx) error {
		return tx.PutDataKey(name, wrapped)
	})
}

// adminName and gatewayName are the names of the tokens that a server makes
// for itself; where servers share a store, each adds its own name.
const (
	adminName   = "admin"
	gatewayName = "gateway"
)

// minToken is the least length of an admin token that somebody wrote by hand.
const minToken = 24

const anotherToken = "mend the file, or remove it: the next start makes another token"

// adminToken returns the path of the admin token's file, and makes the token
// when there is none: whoever can read the file administers this server. On a
// store that others share each server has its own, unless the file is a copy of
// another's.
func adminToken(ctx context.Context, st store.Store, dir, name string) (path string, made bool, err error) {
	path = filepath.Join(dir, "admin.token")
	v, err := client.ReadTokenFile(path)
	switch {
	case err == nil && v.Len() < minToken:
		return path, false, key.WithHint(fmt.Errorf("%w: the admin token in %s could be guessed", key.ErrInvalid, path), anotherToken)
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		if v, _, err = client.NewToken(""); err != nil {
			return path, false, err
		}
		made = true
	default:
		return path, false, key.WithHint(fmt.Errorf("reading the admin token: %w", err), anotherToken)
	}
	if err := registerToken(ctx, st, access.Token{Name: name, Hash: client.TokenHash(v), Role: access.RoleAdmin, By: access.System.Name}); err != nil {
		return path, false, fmt.Errorf("registering the admin token: %w", err)
	}
	if made {
		if err := client.WriteTokenFile(path, v); err != nil {
			return path, false, key.WithHint(fmt.Errorf("writing the admin token: %w", err), "let this user write "+dir)
		}
	}
	return path, made, nil
}

// registerToken makes t the only token of its name.
func registerToken(ctx context.Context, st store.Store, t access.Token) error {
	same := false
	err := st.View(ctx, func(tx store.Tx) error {
		have, err := tx.TokenByHash(t.Hash)
		same = err == nil && (have.Name == t.Name || have.Role == t.Role && t.Role == access.RoleAdmin)
		if errors.Is(err, key.ErrNotFound) {
			err = nil
		}
		return err
	})
	if err != nil || same {
		return err
	}
	return st.Update(ctx, audit.Entry{Actor: access.System.Name, Action: "token.created", Detail: map[string]string{"name": t.Name, "role": string(t.Role)}}, func(tx store.Tx) error {
		if err := tx.DeleteToken(t.Name); err != nil && !errors.Is(err, key.ErrNotFound) {
			return err
		}
		t.Created = tx.Now()
		if err := tx.PutToken(t); err != nil {
			return err
		}
		_, err := tx.TouchAll() // what it replaced is forgotten at once
		return err
	})
}
