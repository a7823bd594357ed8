package config_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/config"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

// TestMoves changes where live keys go, in each of the ways a file can.
func TestMoves(t *testing.T) {
	const src = `version: 1
services:
  a: {upstream: https://a.example/v1}
  b: {provider: sendgrid, params: {base_url: https://b.example}, manager: a}
credentials:
  - {service: a, environment: dev}
  - {service: b, environment: dev}
  - {service: a, environment: prod}
`
	for name, c := range map[string]struct {
		old, new string
		want     []string
	}{
		"nothing": {},
		"a path":  {old: "a.example/v1", new: "a.example/v2"},
		"an upstream": {old: "a.example/v1", new: "evil.example/v1", want: []string{
			"LIVE KEYS of a/dev go to https://evil.example instead of https://a.example"}},
		"a credential's own": {old: "{service: a, environment: dev}", new: "{service: a, environment: dev, upstream: https://c.example}", want: []string{
			"LIVE KEYS of a/dev go to https://c.example instead of https://a.example"}},
		"one without keys": {old: "{service: a, environment: prod}", new: "{service: a, environment: prod, upstream: https://c.example}"},
		"a param": {old: "https://b.example", new: "https://d.example", want: []string{
			"LIVE KEYS of b/dev go to https://d.example instead of https://b.example"}},
		"the provider": {old: "sendgrid", new: "simulated", want: []string{
			"LIVE KEYS of b/dev go to where the provider says instead of https://api.b.example"}},
	} {
		f, err := config.Parse("f", []byte(src))
		if err != nil {
			t.Fatal(err)
		}
		now := config.State{Services: f.Services, Policies: f.Policies}
		for _, c := range f.Credentials {
			if c.Call.Upstream = "https://a.example/v1"; c.ID.Service == "b" {
				c.Call.Upstream = "https://api.b.example"
			}
			if c.ID.Environment == "dev" && c.ID.Service == "a" { // the manager of b, too
				c.Slots.Primary = 1
			}
			now.Credentials = append(now.Credentials, c)
		}
		g, err := config.Parse("f", []byte(strings.Replace(src, c.old, c.new, 1)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []string
		for _, s := range config.Diff(now, g, false).Steps {
			for _, m := range s.Moves {
				got = append(got, m.String())
			}
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestDiff(t *testing.T) {
	f, err := config.Parse("keybaton.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	first := config.Diff(config.State{}, f, true)
	if len(first.Services) != 3 || len(first.Credentials) != 4 || len(first.Policies) != 2 || len(first.Steps) != 9 || first.Empty() {
		t.Fatalf("the first plan is %+v", first)
	}
	for _, s := range first.Steps {
		if s.Verb != config.Add {
			t.Errorf("the first plan has %+v", s)
		}
	}

	// What a store adds to a credential is not a difference.
	now := config.State{Services: f.Services, Policies: f.Policies}
	for _, c := range f.Credentials {
		c.Slots, c.Next, c.Created = key.Slots{Primary: 3}, 4, time.Unix(1, 0)
		c.Call = key.Call{Upstream: "https://resolved.example"}
		if c.Params == nil {
			c.Params = map[string]string{}
		}
		now.Credentials = append(now.Credentials, c)
	}
	if p := config.Diff(now, f, true); !p.Empty() || len(p.Steps) != 0 {
		t.Errorf("nothing changed, and the plan is %+v", p.Steps)
	}

	g, err := config.Parse("keybaton.yaml", []byte(strings.NewReplacer(
		"quiet: 1d12h", "quiet: 2d",
		"fallback_on: [401, 403]", "fallback_on: [401]",
		"upstream: https://sandbox.service.com", "upstream: https://sandbox2.service.com",
		"  - {service: mailer, environment: prod, params: {base_url: http://127.0.0.1:10}}\n", "",
	).Replace(good)))
	if err != nil {
		t.Fatal(err)
	}
	want := []config.Step{
		{Verb: config.Change, Kind: "service", Name: "billing-api", Fields: []config.Field{{Name: "call.fallback_on", From: "[401,403]", To: "[401]"}}},
		{Verb: config.Change, Kind: "policy", Name: "careful", Fields: []config.Field{{Name: "quiet", From: "1d12h", To: "2d"}}},
		{Verb: config.Change, Kind: "credential", Name: "billing-api/dev", Fields: []config.Field{{Name: "upstream", From: "https://sandbox.service.com", To: "https://sandbox2.service.com"}},
			Moves: []config.Move{{Credential: key.CredentialID{Service: "billing-api", Environment: "dev"}, From: "https://sandbox.service.com", To: "https://sandbox2.service.com"}}},
		{Verb: config.Keep, Kind: "credential", Name: "mailer/prod", Note: "kept: not in the file (use --prune)"},
	}
	p := config.Diff(now, g, false)
	if !reflect.DeepEqual(p.Steps, want) {
		t.Errorf("got %+v\nwant %+v", p.Steps, want)
	}
	if len(p.DeleteCredentials)+len(p.DeleteServices)+len(p.DeletePolicies) != 0 || len(p.Services) != 1 || len(p.Credentials) != 1 || len(p.Policies) != 1 {
		t.Errorf("got %+v", p)
	}

	p = config.Diff(now, config.File{}, true)
	if len(p.DeleteCredentials) != 4 || len(p.DeleteServices) != 3 || len(p.DeletePolicies) != 2 || len(p.Services)+len(p.Credentials)+len(p.Policies) != 0 {
		t.Errorf("pruning everything is %+v", p)
	}
	if p := config.Diff(now, config.File{}, false); !p.Empty() || len(p.Steps) != 9 {
		t.Errorf("without prune an empty file changes %+v", p)
	}
}

// A file may leave the default policy to another one.
func TestTheDefaultPolicyStays(t *testing.T) {
	now := config.State{Policies: []rotation.Policy{{Name: config.DefaultPolicy}}}
	was := key.Credential{ID: key.CredentialID{Service: "crm", Environment: "prod"}, Policy: config.DefaultPolicy}
	now.Credentials = []key.Credential{was}
	fresh := key.Credential{ID: key.CredentialID{Service: "mail", Environment: "prod"}}
	f := config.File{Credentials: []key.Credential{{ID: was.ID}, fresh}}
	if p := config.Diff(now, f, false); len(p.Credentials) != 1 || p.Credentials[0].ID != fresh.ID || p.Credentials[0].Policy != config.DefaultPolicy {
		t.Errorf("got %+v", p.Credentials)
	}
	if p := config.Diff(now, f, true); len(p.Credentials) != 2 || p.Credentials[0].Policy != "" || p.Credentials[1].Policy != "" {
		t.Errorf("where the policy is pruned: %+v", p.Credentials)
	}
	if f.Credentials[0].Policy != "" {
		t.Error("the file was changed")
	}
}

// Every field of a policy counts as a difference.
func TestDiffSeesEveryField(t *testing.T) {
	all := reflect.TypeFor[rotation.Policy]()
	for i := range all.NumField() {
		if all.Field(i).Name == "Name" {
			continue
		}
		was, is := rotation.Policy{Name: "p"}, rotation.Policy{Name: "p"}
		switch v := reflect.ValueOf(&is).Elem().Field(i); v.Kind() {
		case reflect.String:
			v.SetString("x")
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Struct:
			v.Field(0).SetInt(1)
		default:
			v.SetInt(1)
		}
		p := config.Diff(config.State{Policies: []rotation.Policy{was}}, config.File{Policies: []rotation.Policy{is}}, false)
		if len(p.Policies) != 1 || len(p.Steps) != 1 || len(p.Steps[0].Fields) != 1 || p.Steps[0].Fields[0].To == "" {
			t.Errorf("a change of %s is %+v", all.Field(i).Name, p.Steps)
		}
	}
}

var update = flag.Bool("update", false, "write docs/keybaton.schema.json")

func TestSchemaIsCommitted(t *testing.T) {
	const path = "../../docs/keybaton.schema.json"
	got, err := config.Schema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/keybaton.schema.json is not current; run go test ./internal/config -run Schema -update")
	}
	var s struct {
		Required   []string       `json:"required"`
		Properties map[string]any `json:"properties"`
		Defs       map[string]struct {
			Properties map[string]struct{ Description, Ref string } `json:"properties"`
			Additional any                                          `json:"additionalProperties"`
		} `json:"$defs"`
	}
	if err := json.Unmarshal(got, &s); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s.Required, []string{"version"}) || len(s.Properties) != 4 {
		t.Errorf("required %v, properties %v", s.Required, s.Properties)
	}
	for name, d := range s.Defs {
		if d.Additional != false {
			t.Errorf("%s allows fields that do not exist", name)
		}
		for field, p := range d.Properties {
			if p.Description == "" {
				t.Errorf("%s.%s has no description", name, field)
			}
		}
	}
}
