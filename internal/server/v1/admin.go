package v1

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/config"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

func (a *API) registerAdmin(h huma.API) {
	register(a, h, op{Method: http.MethodPost, Path: api.PathApply, ID: "apply", Tag: "server", Max: 8 << 20, Verb: access.Manage, Whole: true,
		Summary: "Change what is managed to what a keybaton.yaml says, whole or not at all"}, overall[applyInput], a.apply)

	register(a, h, op{Method: http.MethodGet, Path: api.PathTokens, ID: "tokens", Tag: "tokens", Verb: access.See, Whole: true,
		Summary: "The tokens, by name"}, overall[none], a.tokens)
	register(a, h, op{Method: http.MethodPost, Path: api.PathTokens, ID: "createToken", Tag: "tokens", Verb: access.Manage, Status: http.StatusCreated,
		Summary: "Make a token known; the caller made it and sends its hash only"}, overall[tokenInput], a.createToken)
	register(a, h, op{Method: http.MethodDelete, Path: api.PathToken, ID: "deleteToken", Tag: "tokens", Verb: access.Manage, Whole: true,
		Summary: "Revoke a token at once; what its bearer holds stays recorded"}, overall[nameInput], a.deleteToken)

	register(a, h, op{Method: http.MethodGet, Path: api.PathAudit, ID: "audit", Tag: "audit", Verb: access.See, Whole: true,
		Summary: "Entries of the audit chain, oldest first"}, overall[auditInput], a.audit)
	register(a, h, op{Method: http.MethodGet, Path: api.PathVerify, ID: "verifyAudit", Tag: "audit", Verb: access.See, Whole: true,
		Summary: "Check the whole audit chain, against a head that was kept if one is named"}, overall[verifyInput], a.verify)
}

// applyInput is the text of a keybaton.yaml.
type applyInput struct{ Body api.Apply }

func (a *API) apply(ctx context.Context, p access.Principal, in *applyInput) (api.Applied, error) {
	b := in.Body
	name := b.Name
	if name == "" {
		name = "keybaton.yaml"
	}
	f, err := config.Parse(name, []byte(b.YAML))
	if err != nil {
		return api.Applied{}, key.WithHint(err, "mend what is named and apply the file again; nothing was changed")
	}
	var now config.State
	err = a.store.View(ctx, func(tx store.Tx) (err error) {
		now = config.State{}
		if now.Services, err = tx.Services(); err != nil {
			return err
		}
		if now.Policies, err = tx.Policies(); err != nil {
			return err
		}
		now.Credentials, err = tx.Credentials()
		return err
	})
	if err != nil {
		return api.Applied{}, fmt.Errorf("reading what is managed: %w", err)
	}
	plan := config.Diff(now, f, b.Prune)
	o := api.Applied{Changes: []api.Change{}}
	for _, s := range plan.Steps {
		c := api.Change{Action: string(s.Verb), Kind: s.Kind, Name: s.Name, Note: s.Note, Fields: []api.ChangedField{}}
		for _, f := range s.Fields {
			c.Fields = append(c.Fields, api.ChangedField{Name: f.Name, From: f.From, To: f.To})
		}
		for _, m := range s.Moves {
			c.Moves = append(c.Moves, m.String())
		}
		o.Changes = append(o.Changes, c)
	}
	if o.Digest, err = digest(o.Changes); err != nil {
		return api.Applied{}, err
	}
	if b.Expect != "" && b.Expect != o.Digest {
		return api.Applied{}, key.WithHint(fmt.Errorf("%w: the plan is no longer the one that was shown", key.ErrStale), "look at the new plan: run keybaton apply again")
	}
	if plan.Empty() {
		return o, nil
	}
	err = a.engine.Configure(ctx, p, engine.Configuration{Services: plan.Services, Credentials: plan.Credentials, Policies: plan.Policies,
		DeleteServices: plan.DeleteServices, DeleteCredentials: plan.DeleteCredentials, DeletePolicies: plan.DeletePolicies, DryRun: b.DryRun})
	if err != nil {
		return api.Applied{}, err
	}
	o.Applied = !b.DryRun
	return o, nil
}

func digest(changes []api.Change) (string, error) {
	b, err := json.Marshal(changes)
	if err != nil {
		return "", fmt.Errorf("naming the plan: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8]), nil
}

func (a *API) tokens(ctx context.Context, _ access.Principal, _ *none) (api.List[api.Token], error) {
	items := []api.Token{}
	err := a.store.View(ctx, func(tx store.Tx) error {
		ts, err := tx.Tokens()
		if err != nil {
			return fmt.Errorf("reading tokens: %w", err)
		}
		items = items[:0]
		for _, t := range ts {
			items = append(items, toToken(t, tx.Now()))
		}
		return nil
	})
	return list(items), err
}

// tokenInput is a token to be made known.
type tokenInput struct{ Body api.TokenCreate }

func (a *API) createToken(ctx context.Context, p access.Principal, in *tokenInput) (api.Token, error) {
	t, err := tokenOf(in.Body, p, a.now())
	if err != nil {
		return api.Token{}, err
	}
	why := audit.Entry{Actor: p.Name, Action: "token.created", Detail: map[string]string{"name": t.Name, "role": string(t.Role)}}
	if t.Kind != "" {
		why.Detail["kind"] = string(t.Kind)
	}
	for i, g := range t.Grants {
		why.Detail["grant."+strconv.Itoa(i+1)] = strings.Join(g.Services, ",") + "/" + g.Environment
	}
	if !t.Expires.IsZero() {
		why.Detail["expires"] = t.Expires.Format(time.RFC3339)
	}
	err = a.store.Update(ctx, why, func(tx store.Tx) error {
		t.Created = tx.Now()
		old, err := tx.Tokens()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(old, func(o access.Token) bool { return o.Name == t.Name }) {
			return key.WithHint(fmt.Errorf("%w: token %q", key.ErrExists, t.Name), "choose another name, or revoke it first: keybaton token revoke "+t.Name)
		}
		if err := tx.PutToken(t); err != nil {
			return err
		}
		_, err = tx.TouchAll()
		return err
	})
	if err != nil {
		return api.Token{}, fmt.Errorf("creating the token: %w", err)
	}
	return toToken(t, a.now()), nil
}

// tokenOf returns the token that b asks for, if p may give it.
func tokenOf(b api.TokenCreate, p access.Principal, now time.Time) (access.Token, error) {
	t := access.Token{Name: b.Name, Hash: b.Hash, Kind: key.Kind(b.Kind), Grants: fromGrants(b.Grants),
		Refresh: time.Duration(b.RefreshSeconds) * time.Second, By: p.Name, Expires: b.Expires.UTC()}
	if b.Expires.IsZero() {
		t.Expires = time.Time{}
	}
	if err := named("a token", t.Name); err != nil {
		return t, err
	}
	if t.Name == access.System.Name {
		return t, key.WithHint(fmt.Errorf("%w: %q is the name under which the server itself acts", key.ErrInvalid, t.Name), "choose another name")
	}
	var err error
	if t.Role, err = access.ParseRole(b.Role); err != nil {
		return t, err
	}
	program := t.Role == access.RoleConsumer || t.Role == access.RoleGateway
	switch {
	case t.Role == access.RoleGateway && t.Kind == "":
		t.Kind = key.KindGateway
	case t.Role == access.RoleConsumer && t.Kind == "":
		t.Kind = key.KindReader
	}
	switch {
	case !program && t.Kind != "":
		return t, fmt.Errorf("%w: a token of role %s has no kind: it belongs to a person", key.ErrInvalid, t.Role)
	case program && t.Kind != key.KindGateway && t.Kind != key.KindClient && t.Kind != key.KindReader:
		return t, fmt.Errorf("%w: kind %q: use gateway, client or reader", key.ErrInvalid, b.Kind)
	case (t.Role == access.RoleGateway) != (t.Kind == key.KindGateway):
		return t, fmt.Errorf("%w: role %s and kind %s do not go together", key.ErrInvalid, t.Role, t.Kind)
	case t.Refresh != 0 && t.Kind != key.KindReader:
		return t, fmt.Errorf("%w: only a reader declares a refresh interval: gateways and clients acknowledge", key.ErrInvalid)
	case program && len(t.Grants) == 0:
		return t, key.WithHint(fmt.Errorf("%w: a token of role %s that is granted nothing could do nothing", key.ErrInvalid, t.Role), "add --service SERVICE --env ENVIRONMENT")
	case !t.Expires.IsZero() && !t.Expires.After(now):
		return t, fmt.Errorf("%w: it would expire before it is made", key.ErrInvalid)
	}
	for _, g := range t.Grants {
		if len(g.Services) == 0 {
			return t, fmt.Errorf("%w: a grant names no service", key.ErrInvalid)
		}
		for _, n := range append([]string{g.Environment}, g.Services...) {
			if n != "*" {
				if err := named("a service or an environment", n); err != nil {
					return t, err
				}
			}
		}
	}
	return t, within(p, t)
}

// within refuses a token that may do more than the one who gives it.
func within(p access.Principal, t access.Token) error {
	if len(p.Grants) == 0 {
		return nil
	}
	ok := len(t.Grants) > 0
	for _, g := range t.Grants {
		for _, s := range g.Services {
			id := key.CredentialID{Service: s, Environment: g.Environment}
			ok = ok && slices.ContainsFunc(p.Grants, func(mine access.Grant) bool { return mine.Covers(id) })
		}
	}
	if !ok {
		return key.WithHint(fmt.Errorf("%w: %q is limited, and cannot give more than it has", key.ErrDenied, p.Name),
			"name only services and environments of your own token, or use a token without limits")
	}
	return nil
}

func (a *API) deleteToken(ctx context.Context, p access.Principal, in *nameInput) (api.Token, error) {
	var gone access.Token
	if err := named("a token", in.Name); err != nil {
		return api.Token{}, err
	}
	why := audit.Entry{Actor: p.Name, Action: "token.revoked", Detail: map[string]string{"name": in.Name}}
	err := a.store.Update(ctx, why, func(tx store.Tx) error {
		ts, err := tx.Tokens()
		if err != nil {
			return err
		}
		admins, found := 0, false
		for _, t := range ts {
			if t.Name == in.Name {
				gone, found = t, true
			} else if t.Role == access.RoleAdmin && len(t.Grants) == 0 && t.Expires.IsZero() {
				admins++
			}
		}
		if !found {
			return key.WithHint(fmt.Errorf("%w: token %q", key.ErrNotFound, in.Name), "keybaton token list shows what there is")
		}
		if gone.Role == access.RoleAdmin && admins == 0 {
			return key.WithHint(fmt.Errorf("%w: without %q nobody could administer this server", key.ErrConflict, in.Name),
				"create another one first: keybaton token create NAME --role admin")
		}
		if err := tx.DeleteToken(in.Name); err != nil {
			return err
		}
		_, err = tx.TouchAll()
		return err
	})
	if err != nil {
		return api.Token{}, fmt.Errorf("revoking the token: %w", err)
	}
	return toToken(gone, a.now()), nil
}

// auditInput is a page of the chain.
type auditInput struct {
	From  int64 `query:"from" minimum:"0" doc:"the first entry; 0: so that the newest is the last one"`
	Limit int   `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

func (a *API) audit(ctx context.Context, _ access.Principal, in *auditInput) (api.List[api.AuditEntry], error) {
	items := []api.AuditEntry{}
	err := a.store.View(ctx, func(tx store.Tx) error {
		items = items[:0]
		from := in.From
		if from == 0 {
			head, err := tx.Head()
			if err != nil {
				return err
			}
			from = max(1, head.Seq-int64(in.Limit)+1)
		}
		es, err := tx.Entries(from, in.Limit)
		for _, e := range es {
			items = append(items, toEntry(e))
		}
		return err
	})
	if err != nil {
		return api.List[api.AuditEntry]{}, fmt.Errorf("reading the audit chain: %w", err)
	}
	return list(items), nil
}

// verifyInput names a head that was kept elsewhere.
type verifyInput struct {
	Head string `query:"head" maxLength:"128" doc:"SEQ:HASH, as keybaton audit head prints it"`
}

// verifyPage is how many entries are read in one look.
const verifyPage = 1000

func (a *API) verify(ctx context.Context, _ access.Principal, in *verifyInput) (api.Verified, error) {
	var kept []audit.Head
	if in.Head != "" {
		seq, hash, _ := strings.Cut(in.Head, ":")
		n, err := strconv.ParseInt(seq, 10, 64)
		if raw, herr := hex.DecodeString(hash); err != nil || herr != nil || n < 1 || len(raw) != sha256.Size {
			return api.Verified{}, key.WithHint(fmt.Errorf("%w: the head is not SEQ:HASH", key.ErrInvalid), "take it as keybaton audit head printed it")
		}
		kept = append(kept, audit.Head{Seq: n, Hash: strings.ToLower(hash)})
	}
	v := audit.NewVerifier(kept...)
	var o api.Verified
	next := int64(1)
	for {
		var page []audit.Entry
		err := a.store.View(ctx, func(tx store.Tx) (err error) {
			page, err = tx.Entries(next, verifyPage)
			return err
		})
		if err != nil {
			return api.Verified{}, fmt.Errorf("reading the audit chain: %w", err)
		}
		for _, e := range page {
			if err := v.Add(e); err != nil {
				return broken(o, err)
			}
			o.Entries++
			next = max(next, e.Seq+1)
		}
		if len(page) < verifyPage {
			break
		}
	}
	head, err := v.End()
	if err != nil {
		return broken(o, err)
	}
	o.OK, o.Head = true, api.AuditHead{Seq: head.Seq, Hash: head.Hash}
	return o, nil
}

func broken(o api.Verified, err error) (api.Verified, error) {
	var b *audit.Broken
	if !errors.As(err, &b) {
		return api.Verified{}, err
	}
	o.Problem = b.Text
	return o, nil
}
