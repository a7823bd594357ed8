package v1_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/store"
)

func TestTokensLiveAndDie(t *testing.T) {
	h := newHouse(t)
	root, ctx := h.as("root", access.RoleAdmin), t.Context()
	before := h.store.Revision()
	v, tok, err := root.CreateToken(ctx, client.TokenOptions{Name: "ops", Role: "operator", Expires: start.Add(time.Hour)})
	if err != nil || tok.By != "root" || tok.Expired {
		t.Fatalf("got %+v, %v", tok, err)
	}
	if h.store.Revision().Compare(before) <= 0 {
		t.Error("a new token is no new revision: gateways would not learn of it")
	}
	if st, err := h.client(v).Status(ctx); err != nil || st.You.Name != "ops" || st.You.Role != "operator" {
		t.Fatalf("the new token is %+v, %v", st.You, err)
	}
	_, _, err = root.CreateToken(ctx, client.TokenOptions{Name: "ops", Role: "viewer"})
	wantError(t, err, 409, api.CodeExists)
	_, list := h.raw("GET", api.PathTokens, string(v.Reveal()), "", "")
	if strings.Contains(list, "hash") || strings.Contains(list, string(v.Reveal())) || !strings.Contains(list, `"ops"`) {
		t.Errorf("the list is %s", list)
	}
	h.clock.mu.Lock()
	h.clock.now = start.Add(2 * time.Hour)
	h.clock.mu.Unlock()
	_, err = h.client(v).Status(ctx)
	wantError(t, err, 401, api.CodeNoToken)
	if _, err := root.RevokeToken(ctx, "ops"); err != nil {
		t.Fatal(err)
	}
	_, err = root.RevokeToken(ctx, "ops")
	wantError(t, err, 404, api.CodeNotFound)
	_, err = root.RevokeToken(ctx, "root")
	wantError(t, err, 409, api.CodeConflict)
	es, err := root.Audit(ctx, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	var did []string
	for _, e := range es {
		if strings.HasPrefix(e.Action, "token.") {
			did = append(did, e.Actor+" "+e.Action+" "+e.Detail["name"])
		}
	}
	if got := strings.Join(did, ", "); got != "root token.created ops, root token.revoked ops" {
		t.Errorf("the audit says %s", got)
	}
}

func TestTokensThatMakeNoSense(t *testing.T) {
	h := newHouse(t)
	root := h.as("root", access.RoleAdmin)
	all := []api.Grant{{Environment: "*", Services: []string{"*"}}}
	for name, o := range map[string]client.TokenOptions{
		"no name":               {Role: "viewer"},
		"bad name":              {Name: "Ops Team", Role: "viewer"},
		"the server's own name": {Name: "keybaton", Role: "admin"},
		"no role":               {Name: "a"},
		"unknown role":          {Name: "a", Role: "king"},
		"granted nothing":       {Name: "a", Role: "consumer"},
		"a person with a kind":  {Name: "a", Role: "viewer", Kind: "reader"},
		"a gateway that reads":  {Name: "a", Role: "gateway", Kind: "reader", Grants: all},
		"a client refreshing":   {Name: "a", Role: "consumer", Kind: "client", Grants: all, Refresh: time.Minute},
		"unknown kind":          {Name: "a", Role: "consumer", Kind: "toaster", Grants: all},
		"grant of no service":   {Name: "a", Role: "consumer", Grants: []api.Grant{{Environment: "dev"}}},
		"grant of a bad name":   {Name: "a", Role: "consumer", Grants: []api.Grant{{Environment: "de v", Services: []string{"*"}}}},
		"expired before made":   {Name: "a", Role: "viewer", Expires: start.Add(-time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := root.CreateToken(t.Context(), o)
			wantError(t, err, 422, api.CodeInvalid)
		})
	}
}

func TestApplyPlansThenChanges(t *testing.T) {
	h := newHouse(t)
	root, ctx := h.as("root", access.RoleAdmin), t.Context()
	const yaml = `version: 1
services:
  billing:
    provider: manual
    upstream: https://api.example.com
    place: {header: Authorization, value: "Bearer {{key}}"}
credentials:
  - {service: billing, environment: dev}
`
	plan, err := root.Apply(ctx, api.Apply{YAML: yaml, DryRun: true})
	if err != nil || plan.Applied || len(plan.Changes) != 2 || plan.Digest == "" || len(h.engine.asked()) != 0 || len(h.engine.checked.Services) != 1 {
		t.Fatalf("got %+v, %v, %v", plan, err, h.engine.asked())
	}
	for _, c := range plan.Changes {
		if c.Action != api.ActionAdd {
			t.Errorf("%+v", c)
		}
	}
	_, err = root.Apply(ctx, api.Apply{YAML: yaml + "  - {service: billing, environment: prod}\n", Expect: plan.Digest})
	wantError(t, err, 409, api.CodeStale)
	done, err := root.Apply(ctx, api.Apply{YAML: yaml, Expect: plan.Digest})
	if err != nil || !done.Applied || len(h.engine.configure.Services) != 1 || len(h.engine.configure.Credentials) != 1 {
		t.Fatalf("got %+v, %v; the engine got %+v", done, err, h.engine.configure)
	}
	h.credentials(mailDev)
	pruned, err := root.Apply(ctx, api.Apply{YAML: yaml, Prune: true})
	if err != nil || len(h.engine.configure.DeleteCredentials) != 1 || h.engine.configure.DeleteCredentials[0] != mailDev {
		t.Fatalf("got %+v, %v; the engine got %+v", pruned, err, h.engine.configure)
	}
	_, err = root.Apply(ctx, api.Apply{Name: "my.yaml", YAML: "version: 1\nservices:\n  Bad Name: {}\n"})
	if e := wantError(t, err, 422, api.CodeInvalid); !strings.Contains(e.Detail, "my.yaml:3") {
		t.Errorf("got %q", e.Detail)
	}
}

func TestAuditIsListedAndVerified(t *testing.T) {
	h := newHouse(t)
	c, ctx := h.as("viewer", access.RoleViewer), t.Context()
	for range 5 {
		h.update(func(store.Tx) error { return nil })
	}
	all, err := c.Audit(ctx, 1, 1000)
	if err != nil || len(all) < 6 || all[0].Seq != 1 {
		t.Fatalf("got %v, %v", all, err)
	}
	last, err := c.Audit(ctx, 0, 2)
	if err != nil || len(last) != 2 || last[1].Seq != all[len(all)-1].Seq {
		t.Fatalf("got %v, %v", last, err)
	}
	v, err := c.Verify(ctx, "")
	if err != nil || !v.OK || v.Head.Hash != last[1].Hash || v.Entries != int64(len(all)) {
		t.Fatalf("got %+v, %v", v, err)
	}
	v, err = c.Verify(ctx, "3:"+all[2].Hash)
	if err != nil || !v.OK {
		t.Fatalf("got %+v, %v", v, err)
	}
	for _, head := range []string{"3:" + all[3].Hash, "999:" + all[2].Hash} {
		v, err = c.Verify(ctx, head)
		if err != nil || v.OK || v.Problem == "" {
			t.Errorf("head %s: got %+v, %v", head, v, err)
		}
	}
	_, err = c.Verify(ctx, "nonsense")
	wantError(t, err, 422, api.CodeInvalid)
}
