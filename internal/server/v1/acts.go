package v1

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

func (a *API) registerActs(h huma.API) {
	operate := func(path, id, tag, summary string) op {
		return op{Method: http.MethodPost, Path: path, ID: id, Tag: tag, Summary: summary, Verb: access.Operate}
	}
	set := operate(api.PathSet, "set", "credentials", "Take a pasted key; a live one is never overwritten, a rotation brings the new one in")
	set.Secret, set.Max = true, 256<<10
	register(a, h, set, (*setInput).aim, a.set)

	imp := operate(api.PathImport, "import", "credentials", "Recognise keys among variables, and take those that are declared")
	imp.Secret, imp.Max = true, 4<<20
	register(a, h, imp, func(in *importInput) key.CredentialID {
		return key.CredentialID{Service: "*", Environment: in.Body.Environment}
	}, a.importKeys)

	register(a, h, operate(api.PathRotate, "rotate", "rotations", "Begin a rotation"), (*rotateInput).aim, a.rotate)
	register(a, h, operate(api.PathRollback, "rollback", "rotations", "Go back to the version before, if it still works"), (*whyInput).aim,
		func(ctx context.Context, p access.Principal, in *whyInput) (api.Rotation, error) {
			why := ""
			if in.Body != nil {
				why = in.Body.Why
			}
			r, err := a.engine.Rollback(ctx, p, in.id(), why)
			return a.shown(ctx, r, err)
		})
	for _, x := range []struct {
		path, id, summary string
		do                func(context.Context, access.Principal, key.CredentialID) (rotation.Rotation, error)
	}{
		{api.PathPause, "pause", "Hold the open rotation where it is; keys stay as they are", a.engine.Pause},
		{api.PathResume, "resume", "Let a paused or stopped rotation go on", a.engine.Resume},
		{api.PathApprove, "approve", "Open the gate that waits for a person", a.engine.Approve},
	} {
		register(a, h, operate(x.path, x.id, "rotations", x.summary), (*OfCredential).aim,
			func(ctx context.Context, p access.Principal, in *OfCredential) (api.Rotation, error) {
				r, err := x.do(ctx, p, in.id())
				return a.shown(ctx, r, err)
			})
	}
	register(a, h, operate(api.PathRevoke, "revoke", "credentials", "End one version out of turn; refused for one in a slot"), (*versionInput).aim, a.revoke)

	register(a, h, op{Method: http.MethodGet, Path: api.PathDiscover, ID: "discover", Tag: "credentials", Verb: access.Operate,
		Summary: "Compare the vendor's list of keys with what is known here; nothing is changed"}, (*OfCredential).aim, a.discover)
	register(a, h, operate(api.PathAdopt, "adopt", "credentials", "Say which of the vendor's keys a version is, or take one in to end it"), (*adoptInput).aim, a.adopt)

	forget := operate(api.PathForget, "forget", "consumers", "Say that a consumer is gone: nothing waits for it any more")
	forget.Verb, forget.Whole = access.Manage, true
	register(a, h, forget, overall[nameInput], func(ctx context.Context, p access.Principal, in *nameInput) (api.Forgotten, error) {
		if err := named("a consumer", in.Name); err != nil {
			return api.Forgotten{}, err
		}
		n, err := a.engine.Forget(ctx, p, in.Name)
		if err != nil {
			return api.Forgotten{}, err
		}
		return api.Forgotten{Holds: n}, nil
	})
}

// shown returns r with the evidence of now.
func (a *API) shown(ctx context.Context, r rotation.Rotation, err error) (api.Rotation, error) {
	if err != nil {
		return api.Rotation{}, err
	}
	var o api.Rotation
	err = a.store.View(ctx, func(tx store.Tx) error {
		v, err := look(tx)
		if err != nil {
			return err
		}
		o = v.rotation(r)
		return nil
	})
	return o, err
}

// setInput is a pasted key.
type setInput struct {
	OfCredential
	Body api.Set
}

// maxPart is the greatest length of one part of a key, in bytes.
const maxPart = 64 << 10

func (a *API) set(ctx context.Context, p access.Principal, in *setInput) (api.SetResult, error) {
	parts := in.Body.SecretParts()
	if len(parts) == 0 {
		return api.SetResult{}, key.WithHint(fmt.Errorf("%w: the key is empty", key.ErrInvalid), "paste the key that the vendor issued")
	}
	for _, v := range parts {
		if v.IsZero() || v.Len() > maxPart {
			return api.SetResult{}, key.WithHint(fmt.Errorf("%w: a part of the key is empty, or longer than 64 KiB", key.ErrInvalid),
				"paste every part as the vendor issued it")
		}
	}
	r, err := a.engine.Set(ctx, p, in.id(), parts, key.OriginSet, in.Body.Why)
	if err != nil {
		return api.SetResult{}, err
	}
	return api.SetResult{Version: int64(r.Version), Rotation: r.Rotation, Installed: r.Installed, Outcome: r.Outcome}, nil
}

// importInput is variables that may hold keys.
type importInput struct{ Body api.Import }

func (a *API) importKeys(ctx context.Context, p access.Principal, in *importInput) (api.List[api.Found], error) {
	found, err := a.engine.Import(ctx, p, in.Body.Environment, in.Body.Names(), in.Body.Values(), in.Body.DryRun)
	if err != nil {
		return api.List[api.Found]{}, err
	}
	items := []api.Found{}
	for _, f := range found {
		items = append(items, toFound(f, in.Body.Environment))
	}
	return list(items), nil
}

// rotateInput begins a rotation.
type rotateInput struct {
	OfCredential
	Body *api.Rotate
}

func (a *API) rotate(ctx context.Context, p access.Principal, in *rotateInput) (api.Rotation, error) {
	b := api.Rotate{}
	if in.Body != nil {
		b = *in.Body
	}
	if b.Leaked != 0 && !b.Emergency {
		return api.Rotation{}, key.WithHint(fmt.Errorf("%w: a leaked version is named, but this is no emergency", key.ErrInvalid),
			"add --emergency")
	}
	r, err := a.engine.Rotate(ctx, p, in.id(), engine.RotateOptions{Why: b.Why, Emergency: b.Emergency, Leaked: key.Number(b.Leaked)})
	return a.shown(ctx, r, err)
}

// whyInput is a credential and a reason.
type whyInput struct {
	OfCredential
	Body *api.Why
}

// versionInput names a version.
type versionInput struct {
	OfCredential
	Number int64 `path:"number" minimum:"1"`
}

func (a *API) revoke(ctx context.Context, p access.Principal, in *versionInput) (api.Credential, error) {
	if err := a.engine.Revoke(ctx, p, key.VersionID{Credential: in.id(), Number: key.Number(in.Number)}); err != nil {
		return api.Credential{}, err
	}
	return a.credential(ctx, p, &in.OfCredential)
}

func (a *API) discover(ctx context.Context, p access.Principal, in *OfCredential) (api.List[api.Discovered], error) {
	found, err := a.engine.Discover(ctx, p, in.id())
	if err != nil {
		return api.List[api.Discovered]{}, err
	}
	items := []api.Discovered{}
	for _, d := range found {
		items = append(items, api.Discovered{VendorID: d.VendorID, Label: d.Label, Created: d.Created, LastUsed: d.LastUsed, Disabled: d.Disabled,
			Version: int64(d.Version), State: string(d.State), Relation: string(d.Relation)})
	}
	return list(items), nil
}

// adoptInput names a key at the vendor.
type adoptInput struct {
	OfCredential
	Body *api.Adopt
}

func (a *API) adopt(ctx context.Context, p access.Principal, in *adoptInput) (api.Credential, error) {
	b := api.Adopt{}
	if in.Body != nil {
		b = *in.Body
	}
	if _, err := a.engine.Adopt(ctx, p, in.id(), engine.AdoptOptions{VendorID: b.VendorID, Version: key.Number(b.Version), Retire: b.Retire, Why: b.Why}); err != nil {
		return api.Credential{}, err
	}
	return a.credential(ctx, p, &in.OfCredential)
}

// nameInput names a consumer or a token.
type nameInput struct {
	Name string `path:"name" maxLength:"63"`
}
