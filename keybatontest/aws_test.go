package keybatontest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/keybatontest"
	"github.com/keybaton/keybaton/secret"
)

// TestTenRotationsAtIAM: at most two keys, requests that are signed, and a
// vendor that lists a disabled key as such and accepts it all the same: moto
// does not look at the status. So the old key is not taken for dead when it was
// disabled, but when it was deleted and is refused.
func TestTenRotationsAtIAM(t *testing.T) {
	t.Parallel()
	base, id, sec, user := providertest.Moto(t)
	// The recipe's own windows are those of AWS, a minute for each rotation.
	src, err := os.ReadFile("../internal/provider/recipe/catalog/aws-iam.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(src), "propagation: {create: 60s, revoke: 60s, spacing: 2s}", "propagation: {create: 1s, revoke: 100ms, spacing: 100ms}", 1)
	if text == string(src) {
		t.Fatal("the recipe has other windows than the test knows of")
	}
	rec, err := recipe.Parse("aws-iam.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	d := recipe.New(rec)
	s := keybatontest.Start(t, keybatontest.Config{}.With(provider.Registry{"aws-iam": d}))
	s.Apply(t, fmt.Sprintf(`version: 1
services:
  aws: {provider: aws-iam, params: {user_name: %s, iam_url: %q, sts_url: %q}, manager: aws-admin}
  aws-admin: {provider: aws-iam, params: {user_name: admin, iam_url: %q, sts_url: %q}}
credentials:
  - {service: aws, environment: prod, policy: quick}
  - {service: aws-admin, environment: prod}
policies:
  quick: {soak: {for: 100ms, requests: 3, probes: 2}, quiet: 100ms, watch: 50ms} # moto takes some 50 ms for a call
`, user, base, base, base, base))
	manager := secret.Parts{"access_key_id": secret.FromString(id), "secret_access_key": secret.FromString(sec)}
	s.Set(t, "aws-admin", "prod", manager)
	s.Rotate(t, "aws", "prod")
	_, h := follow(t, s, client.Credential{Service: "aws", Environment: "prod"}, client.FollowOptions{})
	hc := &http.Client{Transport: h.Transport(nil)}

	call := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/", strings.NewReader("Action=GetCallerIdentity&Version=2011-06-15"))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := hc.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(b), "user/"+user)) {
			err = fmt.Errorf("answered %s", resp.Status)
		}
		return err
	}
	l := startCalls(t, 2, 8, func(ctx context.Context, _, _ int) error { return call(ctx) })
	for i := range rotations {
		if r := s.Rotate(t, "aws", "prod"); r.State != "done" || r.Proof != "revoked_proven" {
			t.Errorf("rotation %d: got %s, %s: %s", i, r.State, r.Proof, r.Gate.Reason)
		}
	}
	l.want(t)

	// Each old key was disabled first, and that alone proved nothing.
	disabled, revoked := 0, 0
	entries, err := s.Client.Audit(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch e.Action {
		case "version.disabled":
			disabled++
		case "version.revoked":
			if revoked++; !strings.Contains(e.Detail["why"], "answered invalid 3 times in a row; the survivor") {
				t.Errorf("revoked because: %s", e.Detail["why"])
			}
		}
	}
	if disabled != rotations || revoked != rotations {
		t.Errorf("%d keys were disabled and %d revoked, want %d of each", disabled, revoked, rotations)
	}
	env := provider.Env{Transport: http.DefaultTransport, Params: map[string]string{"user_name": user, "iam_url": base, "sts_url": base}, Manager: manager}
	if all, err := d.(provider.Lister).List(t.Context(), env); err != nil || len(all) != 1 || all[0].Disabled {
		t.Errorf("the user has the keys %+v, %v: want one", all, err)
	}
}
