package recipe_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

func catalog(t *testing.T, id string) *recipe.Recipe {
	t.Helper()
	all, err := recipe.Catalog()
	if err != nil {
		t.Fatal(err)
	}
	r, ok := all[id]
	if !ok {
		t.Fatalf("no recipe %s", id)
	}
	return r
}

// simulated returns a vendor behind a real server, and the env to reach it.
func simulated(t *testing.T, c vendortest.Config) (*vendortest.Vendor, provider.Env) {
	t.Helper()
	v := vendortest.New(c)
	srv := httptest.NewServer(v)
	t.Cleanup(srv.Close)
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return v, provider.Env{
		Transport: tr,
		Params:    map[string]string{"base_url": srv.URL},
		Manager:   secret.Parts{"key": secret.FromString(vendortest.DefaultManager)},
	}
}

func TestSimulatedVendorConforms(t *testing.T) {
	v, env := simulated(t, vendortest.Config{PageSize: 2})
	providertest.Run(t, providertest.Harness{
		Driver: recipe.New(catalog(t, "simulated")), Env: env,
		SameRights: func(t *testing.T, a, b string) bool {
			ks := v.Keys()
			of := func(id string) []string {
				i := slices.IndexFunc(ks, func(k vendortest.Key) bool { return k.ID == id })
				return ks[i].Scopes
			}
			return slices.Equal(of(a), of(b))
		},
	})
	if n := v.Active(); n != 0 {
		t.Errorf("%d keys were left behind", n)
	}
}

func TestScopesAreCopied(t *testing.T) {
	v, env := simulated(t, vendortest.Config{})
	d := recipe.New(catalog(t, "simulated"))
	id, _ := v.Issue("old", "read")
	old := key.Version{ID: key.VersionID{Number: 1}, VendorID: id}
	k, err := d.Issue(t.Context(), env, provider.Request{Label: "new", Old: old})
	if err != nil || len(k.Warnings) != 0 {
		t.Fatalf("%v, %v", k.Warnings, err)
	}
	if got := v.Keys()[1].Scopes; !slices.Equal(got, []string{"read"}) {
		t.Errorf("scopes %v", got)
	}
	// Rights that cannot be read: this recipe allows the defaults, and says so.
	old.VendorID = "nobody"
	k, err = d.Issue(t.Context(), env, provider.Request{Label: "newer", Old: old})
	if err != nil || len(k.Warnings) != 1 || !strings.Contains(k.Warnings[0], "404") {
		t.Errorf("warnings %q, %v", k.Warnings, err)
	}
	// But not where the vendor could not be asked.
	v.FailKeys(1, 500)
	if _, err := d.Issue(t.Context(), env, provider.Request{Label: "x", Old: old}); provider.KindOf(err) != provider.Transient {
		t.Errorf("%s: %v", provider.KindOf(err), err)
	}
}

func TestVendorWithoutRoomIsFull(t *testing.T) {
	v, env := simulated(t, vendortest.Config{MaxActive: 1})
	d := recipe.New(catalog(t, "simulated"))
	if _, err := d.Issue(t.Context(), env, provider.Request{Label: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Issue(t.Context(), env, provider.Request{Label: "b"}); provider.KindOf(err) != provider.Full {
		t.Errorf("%s: %v", provider.KindOf(err), err)
	}
	if v.Active() != 1 {
		t.Errorf("active %d", v.Active())
	}
}

func TestExpiryIsAskedForAndReported(t *testing.T) {
	v, env := simulated(t, vendortest.Config{})
	d := recipe.New(catalog(t, "simulated"))
	k, err := d.Issue(t.Context(), env, provider.Request{Label: "a", Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if want := v.Keys()[0].Expires; !k.Expires.Equal(want) || time.Until(want) < 50*time.Minute {
		t.Errorf("expires %s, the vendor says %s", k.Expires, want)
	}
	k, err = d.Issue(t.Context(), env, provider.Request{Label: "b"})
	if err != nil || !k.Expires.IsZero() {
		t.Errorf("expires %s, %v", k.Expires, err)
	}
}

func TestRepeatedSecretIsRefusedAndNotRevoked(t *testing.T) {
	v, env := simulated(t, vendortest.Config{})
	d := recipe.New(catalog(t, "simulated"))
	id, plain := v.Issue("old")
	v.SetDuplicateSecrets(true)
	old := key.Version{ID: key.VersionID{Number: 1}, VendorID: id}
	_, err := d.Issue(t.Context(), env, provider.Request{Label: "new", Old: old, Parts: secret.Parts{"key": secret.FromString(plain)}})
	if provider.KindOf(err) != provider.Denied || strings.Contains(err.Error(), plain) {
		t.Errorf("%s: %v", provider.KindOf(err), err)
	}
	if !v.Valid(plain) {
		t.Error("the present key is dead")
	}
}

func TestLastUsedIsListed(t *testing.T) {
	v, env := simulated(t, vendortest.Config{})
	d := recipe.New(catalog(t, "simulated")).(provider.Lister)
	_, plain := v.Issue("used")
	v.Issue("idle")
	req := httptest.NewRequest("GET", "/v1/x", nil)
	req.Header.Set("Authorization", "Bearer "+plain)
	v.ServeHTTP(httptest.NewRecorder(), req)
	all, err := d.List(t.Context(), env)
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	if !all[0].LastUsed.Equal(v.Keys()[0].LastUsed) || all[0].LastUsed.IsZero() || !all[1].LastUsed.IsZero() || all[0].Created.IsZero() {
		t.Errorf("%+v", all)
	}
}

func TestEnvCallOverridesTheProbe(t *testing.T) {
	v, env := simulated(t, vendortest.Config{})
	_, plain := v.Issue("a", "write")
	env.Call.Probe = &key.Probe{Path: "/v1/orders"}
	d := recipe.New(catalog(t, "simulated"))
	o, err := d.Probe(t.Context(), env, secret.Parts{"key": secret.FromString(plain)})
	if err != nil || o != evidence.Perm {
		t.Errorf("a key out of scope probes %s, %v", o, err)
	}
}

func TestTry(t *testing.T) {
	v, env := simulated(t, vendortest.Config{})
	var names []string
	rep, err := recipe.Try(t.Context(), func(s recipe.TryStep) {
		names = append(names, s.Name)
		if strings.Contains(s.String(), "sim_") {
			t.Errorf("a step shows a key: %s", s)
		}
	}, catalog(t, "simulated"), env)
	if err != nil || !rep.OK || rep.Stray != "" {
		t.Fatalf("%+v, %v", rep, err)
	}
	want := "issue, probe, list, disable, probe disabled, enable, probe enabled, revoke, prove, list again, revoke again"
	if got := strings.Join(names, ", "); got != want {
		t.Errorf("steps: %s", got)
	}
	if v.Active() != 0 {
		t.Errorf("%d keys left", v.Active())
	}
}

func TestTryCleansUpAfterFailure(t *testing.T) {
	for name, fault := range map[string]func(*vendortest.Vendor){
		"lost answer": func(v *vendortest.Vendor) { v.LoseCreateAnswers(1) },
		"no list":     func(v *vendortest.Vendor) { v.SetNoList(true) },
		"no revoke":   func(v *vendortest.Vendor) { v.FailRevokes(1, 500) },
	} {
		v, env := simulated(t, vendortest.Config{})
		fault(v)
		rep, err := recipe.Try(t.Context(), nil, catalog(t, "simulated"), env)
		if err == nil || rep.OK {
			t.Errorf("%s: it went well", name)
		}
		if v.Active() != 0 || rep.Stray != "" {
			t.Errorf("%s: %d keys left, stray %q", name, v.Active(), rep.Stray)
		}
	}
	v, env := simulated(t, vendortest.Config{})
	v.FailRevokes(-1, 500)
	rep, err := recipe.Try(t.Context(), nil, catalog(t, "simulated"), env)
	if err == nil || rep.Stray != v.Keys()[0].ID {
		t.Errorf("stray %q, %v", rep.Stray, err)
	}
}

func TestTryCleansUpWhenInterrupted(t *testing.T) {
	v, env := simulated(t, vendortest.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := recipe.Try(ctx, func(s recipe.TryStep) {
		if s.Name == "issue" {
			cancel()
		}
	}, catalog(t, "simulated"), env)
	if err == nil || v.Active() != 0 {
		t.Errorf("%d keys left, %v", v.Active(), err)
	}
}

func TestTryOfAHumanVendor(t *testing.T) {
	_, env := simulated(t, vendortest.Config{})
	if _, err := recipe.Try(t.Context(), nil, catalog(t, "stripe"), env); err == nil {
		t.Error("a vendor without a key API was tried")
	}
}

func TestRabbitMQConforms(t *testing.T) {
	base, user, pass := providertest.RabbitMQ(t)
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	env := provider.Env{
		Transport: tr,
		Params:    map[string]string{"base_url": base},
		Manager:   secret.Parts{"user": secret.FromString(user), "password": secret.FromString(pass)},
	}
	rec := catalog(t, "rabbitmq")
	rights := func(t *testing.T, id string) string {
		t.Helper()
		var out []string
		for _, path := range []string{"/api/users/" + id, "/api/permissions/%2F/" + id} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth(user, pass)
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			var m map[string]any
			err = json.NewDecoder(resp.Body).Decode(&m)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%s: %d, %v", path, resp.StatusCode, err)
			}
			for _, f := range []string{"name", "user", "password_hash"} {
				delete(m, f)
			}
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(b))
		}
		return strings.Join(out, " ")
	}
	providertest.Run(t, providertest.Harness{
		Driver: recipe.New(rec), Env: env,
		SameRights: func(t *testing.T, a, b string) bool {
			ra, rb := rights(t, a), rights(t, b)
			if ra != rb {
				t.Logf("%s: %s", a, ra)
				t.Logf("%s: %s", b, rb)
			}
			return ra == rb
		},
	})
	t.Run("odd rights are copied as they are", func(t *testing.T) {
		d := recipe.New(rec)
		odd := env
		odd.Params = map[string]string{"base_url": base, "tags": "policymaker,monitoring", "configure": "^a\"b\\.c$", "write": "", "read": "^r-"}
		a, err := d.Issue(t.Context(), odd, provider.Request{Label: "odd-a"})
		if err != nil {
			t.Fatal(err)
		}
		b, err := d.Issue(t.Context(), env, provider.Request{Label: "odd-b", Old: key.Version{ID: key.VersionID{Number: 1}}, Parts: a.Parts})
		if err != nil {
			t.Fatal(err)
		}
		if ra, rb := rights(t, a.VendorID), rights(t, b.VendorID); ra != rb || !strings.Contains(ra, `"^a\"b\\.c$"`) {
			t.Errorf("%s\n%s", ra, rb)
		}
		for _, k := range []provider.Issued{a, b} {
			if err := d.Revoke(t.Context(), env, k.VendorID); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("try", func(t *testing.T) {
		rep, err := recipe.Try(t.Context(), nil, rec, env)
		if err != nil {
			t.Errorf("%v: %v", err, rep.Steps)
		}
	})
	t.Run("nothing is left", func(t *testing.T) {
		all, err := recipe.New(rec).(provider.Lister).List(t.Context(), env)
		if err != nil || len(all) != 1 || all[0].VendorID != user {
			t.Errorf("%v, %v", all, err)
		}
	})
}
