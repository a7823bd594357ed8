package keybatontest_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/keybatontest"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

// follow opens the line of a client consumer of its own.
func follow(t *testing.T, s *keybatontest.Server, id client.Credential, o client.FollowOptions) (*client.Keys, *client.Handle) {
	t.Helper()
	tok, _, err := s.Client.CreateToken(t.Context(), client.TokenOptions{Name: "app-" + id.Service, Role: "consumer", Kind: "client",
		Grants: []api.Grant{{Environment: id.Environment, Services: []string{id.Service}}}})
	if err != nil {
		t.Fatalf("making a token: %v", err)
	}
	c, err := client.New(client.Config{Address: s.API, Token: tok})
	if err != nil {
		t.Fatal(err)
	}
	if o.Every == 0 {
		o.Every = 100 * time.Millisecond
	}
	k, err := c.Follow(t.Context(), o)
	if err != nil {
		t.Fatalf("following: %v", err)
	}
	t.Cleanup(k.Close)
	h, err := k.Handle(id)
	if err != nil {
		t.Fatal(err)
	}
	return k, h
}

// simulated starts a server with a simulated vendor behind billing-api.
func simulated(t *testing.T) (*keybatontest.Server, *vendortest.Vendor, *httptest.Server) {
	t.Helper()
	v := vendortest.New(vendortest.Config{})
	vs := httptest.NewServer(v)
	t.Cleanup(vs.Close)
	s := keybatontest.Start(t, keybatontest.Config{})
	s.Apply(t, fmt.Sprintf(`version: 1
services:
  billing-api: {provider: simulated, params: {base_url: %q}, manager: billing-admin}
  billing-admin: {provider: manual, upstream: %q}
credentials:
  - {service: billing-api, environment: prod, policy: quick}
  - {service: billing-admin, environment: prod}
`, vs.URL, vs.URL)+quick)
	s.Set(t, "billing-admin", "prod", secret.Parts{"key": secret.FromString(vendortest.DefaultManager)})
	s.Rotate(t, "billing-api", "prod")
	return s, v, vs
}

// TestASessionHoldsARetirementBack: a key that a client still has in use is
// not revoked, for as long as that takes; once let go of, it is.
func TestASessionHoldsARetirementBack(t *testing.T) {
	t.Parallel()
	s, v, vs := simulated(t)
	billing := client.Credential{Service: "billing-api", Environment: "prod"}
	_, h := follow(t, s, billing, client.FollowOptions{})
	hc := &http.Client{Transport: h.Transport(nil)}
	var old string
	session, err := h.Open(t.Context(), func(_ context.Context, p secret.Parts) error {
		old = string(p["key"].Reveal())
		resp, err := hc.Get(vs.URL + "/v1/me")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Client.Rotate(t.Context(), billing, api.Rotate{})
	if err != nil {
		t.Fatal(err)
	}
	look := func(ctx context.Context) api.Rotation {
		got, err := s.Client.Rotation(ctx, r.ID)
		if err == nil {
			r = got
		}
		return r
	}
	s.Until(t, "the gate that waits for the session", func(ctx context.Context) bool {
		r := look(ctx)
		return strings.Contains(strings.Join(r.Gate.Missing, ";"), "app-billing-api requests that use it are still running")
	})
	if session.Current() || !v.Valid(old) {
		t.Errorf("the session is current: %t; its key works: %t", session.Current(), v.Valid(old))
	}
	session.Close()
	s.Until(t, "the rotation", func(ctx context.Context) bool { return look(ctx).Over })
	if r.State != "done" || r.Proof != "revoked_proven" || v.Valid(old) {
		t.Errorf("got %s, %s; the old key works: %t", r.State, r.Proof, v.Valid(old))
	}
}

// TestAClientWithoutACacheIsWaitedFor: what a process that kept nothing held
// when it ended is held until a person says that it is gone.
func TestAClientWithoutACacheIsWaitedFor(t *testing.T) {
	t.Parallel()
	s, _, _ := simulated(t)
	billing := client.Credential{Service: "billing-api", Environment: "prod"}
	k, _ := follow(t, s, billing, client.FollowOptions{})
	k.Close()
	r, err := s.Client.Rotate(t.Context(), billing, api.Rotate{})
	if err != nil {
		t.Fatal(err)
	}
	s.Until(t, "the gate that waits for the client", func(ctx context.Context) bool {
		got, err := s.Client.Rotation(ctx, r.ID)
		if err != nil || got.Over {
			t.Errorf("over: %t, %v", got.Over, err)
			return true
		}
		return strings.Contains(strings.Join(got.Gate.Missing, ";"), "app-billing-api")
	})
	s.Until(t, "the client to have been silent long enough to be forgotten", func(ctx context.Context) bool {
		n, err := s.Client.Forget(ctx, "app-billing-api")
		return err == nil && n > 0
	})
	s.Until(t, "the rotation", func(ctx context.Context) bool {
		r, err = s.Client.Rotation(ctx, r.ID)
		return err == nil && r.Over
	})
	if r.State != "done" || r.Proof != "revoked_proven" {
		t.Errorf("got %s, %s: %s", r.State, r.Proof, r.Gate.Reason)
	}
}
