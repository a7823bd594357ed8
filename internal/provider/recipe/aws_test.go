package recipe_test

import (
	"net/http"
	"testing"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/secret"
)

func moto(t *testing.T) provider.Env {
	base, id, sec, user := providertest.Moto(t)
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return provider.Env{Transport: tr, Params: map[string]string{"user_name": user, "iam_url": base, "sts_url": base},
		Manager: secret.Parts{"access_key_id": secret.FromString(id), "secret_access_key": secret.FromString(sec)}}
}

func TestAWSConforms(t *testing.T) {
	env := moto(t)
	d := recipe.New(catalog(t, "aws-iam"))
	providertest.Run(t, providertest.Harness{Driver: d, Env: env, Unenforced: true})

	// What the suite does not know of: two keys at most, and no names.
	if i := d.Describe(env); i.Abilities.List || !i.ListsAll || i.Abilities.Max != 2 {
		t.Errorf("the abilities are %+v", i.Abilities)
	}
	var keys []provider.Issued
	for range 2 {
		k, err := d.Issue(t.Context(), env, provider.Request{Label: "any"})
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	if _, err := d.Issue(t.Context(), env, provider.Request{Label: "third"}); provider.KindOf(err) != provider.Full {
		t.Errorf("a third key: %v", err)
	}
	all, err := d.(provider.Lister).List(t.Context(), env)
	if err != nil || len(all) != 2 || all[0].Created.IsZero() || all[0].Disabled {
		t.Errorf("listed %+v, %v", all, err)
	}
	wrong := keys[0].Parts.Clone()
	wrong["secret_access_key"] = keys[1].Parts["secret_access_key"]
	if o, err := d.Probe(t.Context(), env, wrong); o != evidence.Auth || err != nil {
		t.Errorf("a key with another's secret: %s, %v", o, err)
	}
	for _, k := range keys {
		if err := d.Revoke(t.Context(), env, k.VendorID); err != nil {
			t.Error(err)
		}
	}
	if all, err := d.(provider.Lister).List(t.Context(), env); err != nil || len(all) != 0 {
		t.Errorf("an empty list: %+v, %v", all, err)
	}
}
