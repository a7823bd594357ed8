package keybatontest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/keybatontest"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

// rotations is how many rotations in a row a vendor goes through under load.
const rotations = 10

const quick = `
policies:
  quick: {soak: {for: 300ms, requests: 20, probes: 5}, quiet: 300ms, watch: 100ms}
`

// TestTenRotationsAtTheSimulatedVendor: steady traffic, ten rotations in a row,
// no failed request, each old key proven dead, and no key at the vendor that
// the store does not know.
func TestTenRotationsAtTheSimulatedVendor(t *testing.T) {
	t.Parallel()
	v := vendortest.New(vendortest.Config{})
	vs := httptest.NewServer(v)
	defer vs.Close()
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
	tok := s.Consumer(t, "callers", "billing-api", "prod")
	l := startLoad(t, 8, 40, tok, func(c, i int) (*http.Request, error) {
		if i%2 == 0 {
			return http.NewRequest(http.MethodGet, fmt.Sprintf("%s/billing-api/v1/items/%d-%d", s.Gateway, c, i), nil)
		}
		return http.NewRequest(http.MethodPost, fmt.Sprintf("%s/billing-api/v1/items?n=%d", s.Gateway, i), strings.NewReader(fmt.Sprintf(`{"item":"%d-%d"}`, c, i)))
	}, func(resp *http.Response, body string) error {
		if p := resp.Request.URL.Path[len("/billing-api"):]; !strings.Contains(body, p) {
			return fmt.Errorf("the answer is to another request than %s", p)
		}
		return nil
	})
	for i := range rotations {
		if r := s.Rotate(t, "billing-api", "prod"); r.State != "done" || r.Proof != "revoked_proven" {
			t.Errorf("rotation %d: got %s, %s: %s", i, r.State, r.Proof, r.Gate.Reason)
		}
	}
	l.want(t)
	if n := v.Active(); n != 1 {
		t.Errorf("the vendor has %d living keys, want 1: %+v", n, v.Keys())
	}
	if _, repeated := v.Effects(); repeated > 0 {
		t.Errorf("%d requests took effect twice", repeated)
	}
}

// TestTenRotationsAtRabbitMQ is the same at a real vendor.
func TestTenRotationsAtRabbitMQ(t *testing.T) {
	t.Parallel()
	base, user, password := providertest.RabbitMQ(t)
	s := keybatontest.Start(t, keybatontest.Config{})
	s.Apply(t, fmt.Sprintf(`version: 1
services:
  broker: {provider: rabbitmq, params: {base_url: %q, tags: monitoring}, manager: broker-admin}
  broker-admin:
    provider: manual
    upstream: %q
    parts: [user, password]
    place: {basic: {user: "{{user}}", password: "{{password}}"}}
    probe: {get: /api/whoami, valid: [200], invalid: [401]}
credentials:
  - {service: broker, environment: prod, policy: quick}
  - {service: broker-admin, environment: prod}
`, base, base)+quick)
	s.Set(t, "broker-admin", "prod", secret.Parts{"user": secret.FromString(user), "password": secret.FromString(password)})
	s.Rotate(t, "broker", "prod")
	tok := s.Consumer(t, "callers", "broker", "prod")
	l := startLoad(t, 4, 15, tok, func(c, i int) (*http.Request, error) {
		path := []string{"/api/whoami", "/api/vhosts", "/api/overview"}[(c+i)%3]
		return http.NewRequest(http.MethodGet, s.Gateway+"/broker"+path, nil)
	}, func(resp *http.Response, body string) error {
		if !json.Valid([]byte(body)) {
			return fmt.Errorf("%s: the answer is not whole", resp.Request.URL.Path)
		}
		return nil
	})
	for i := range rotations {
		if r := s.Rotate(t, "broker", "prod"); r.State != "done" || r.Proof != "revoked_proven" {
			t.Errorf("rotation %d: got %s, %s: %s", i, r.State, r.Proof, r.Gate.Reason)
		}
	}
	l.want(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/api/users", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(user, password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var users []struct{ Name string }
	if err := json.NewDecoder(resp.Body).Decode(&users); err != nil {
		t.Fatal(err)
	}
	ours := 0
	for _, u := range users {
		if strings.HasPrefix(u.Name, "keybaton-") {
			ours++
		}
	}
	if ours != 1 {
		t.Errorf("the broker has %d users of ours, want 1: %v", ours, users)
	}
}
