package access_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/key"
)

var (
	id    = key.CredentialID{Service: "billing-api", Environment: "prod"}
	verbs = []access.Verb{access.See, access.Operate, access.Manage, access.Call, access.Read, access.Follow}
)

// The whole table of who may do what, on a credential that is granted.
func TestCheckRoles(t *testing.T) {
	grant := []access.Grant{{Environment: "prod", Services: []string{"billing-api"}}}
	tests := []struct {
		role access.Role
		kind key.Kind
		may  []access.Verb
	}{
		{access.RoleViewer, "", []access.Verb{access.See}},
		{access.RoleOperator, "", []access.Verb{access.See, access.Operate}},
		{access.RoleAdmin, "", []access.Verb{access.See, access.Operate, access.Manage}},
		{access.RoleConsumer, key.KindReader, []access.Verb{access.Call, access.Read}},
		{access.RoleConsumer, key.KindClient, []access.Verb{access.Call, access.Read, access.Follow}},
		{access.RoleGateway, key.KindGateway, []access.Verb{access.Follow}},
		{"", "", nil},
		{"root", "", nil},
	}
	for _, tt := range tests {
		for _, v := range verbs {
			p := access.Principal{Name: "p", Role: tt.role, Kind: tt.kind, Grants: grant}
			err := p.Check(v, id)
			if may := slices.Contains(tt.may, v); may != (err == nil) {
				t.Errorf("%s %s: %s is %v", tt.role, tt.kind, v, err)
			}
			if err == nil {
				continue
			}
			if h := (*key.Hint)(nil); !errors.Is(err, key.ErrDenied) || !errors.As(err, &h) || h.Next == "" {
				t.Errorf("%s %s: the refusal of %s is %v", tt.role, tt.kind, v, err)
			}
		}
	}
}

func TestCheckGrants(t *testing.T) {
	other := key.CredentialID{Service: "mailer", Environment: "prod"}
	dev := key.CredentialID{Service: "billing-api", Environment: "dev"}
	tests := []struct {
		name   string
		role   access.Role
		verb   access.Verb
		grants []access.Grant
		may    []key.CredentialID // of id, other, dev and the server as a whole (zero)
	}{
		{"a person without grants", access.RoleViewer, access.See, nil, []key.CredentialID{{}, id, other, dev}},
		{"a person with grants", access.RoleViewer, access.See, []access.Grant{{"prod", []string{"billing-api"}}}, []key.CredentialID{{}, id}},
		{"a consumer without grants", access.RoleConsumer, access.Read, nil, []key.CredentialID{{}}},
		{"every environment", access.RoleConsumer, access.Read, []access.Grant{{"*", []string{"billing-api"}}}, []key.CredentialID{{}, id, dev}},
		{"every service", access.RoleConsumer, access.Read, []access.Grant{{"prod", []string{"*"}}}, []key.CredentialID{{}, id, other}},
		{"two grants", access.RoleConsumer, access.Read, []access.Grant{{"dev", []string{"*"}}, {"prod", []string{"mailer"}}}, []key.CredentialID{{}, other, dev}},
		{"no services", access.RoleConsumer, access.Read, []access.Grant{{"*", nil}}, []key.CredentialID{{}}},
	}
	for _, tt := range tests {
		p := access.Principal{Name: "p", Role: tt.role, Kind: key.KindClient, Grants: tt.grants}
		for _, c := range []key.CredentialID{{}, id, other, dev} {
			err := p.Check(tt.verb, c)
			if may := slices.Contains(tt.may, c); may != (err == nil) {
				t.Errorf("%s: %s of %q is %v", tt.name, tt.verb, c, err)
			}
		}
	}
	err := (access.Principal{Name: "p", Role: access.RoleConsumer}).Check(access.Read, id)
	if err == nil || !strings.Contains(err.Error(), "--service billing-api --env prod") {
		t.Errorf("the refusal is %v", err)
	}
	if err := access.System.Check(access.Manage, id); err != nil {
		t.Errorf("the engine may not manage: %v", err)
	}
}

func TestTokenPrincipal(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	tok := access.Token{Name: "gw", Role: access.RoleGateway, Kind: key.KindGateway, Grants: []access.Grant{{"*", []string{"*"}}}, Refresh: time.Minute}
	p, err := tok.Principal(now)
	if err != nil || p.Name != "gw" || p.Role != tok.Role || p.Kind != tok.Kind || p.Refresh != time.Minute || len(p.Grants) != 1 {
		t.Errorf("got %+v, %v", p, err)
	}
	tok.Expires = now
	if p, err := tok.Principal(now.Add(-time.Nanosecond)); err != nil || p.Name != "gw" {
		t.Errorf("before it expires: %+v, %v", p, err)
	}
	if p, err := tok.Principal(now); !errors.Is(err, key.ErrNoToken) || p.Name != "" || p.Role != "" {
		t.Errorf("when it expires: %+v, %v", p, err)
	}
}

func TestParseRole(t *testing.T) {
	for _, r := range access.Roles() {
		if got, err := access.ParseRole(string(r)); got != r || err != nil {
			t.Errorf("%s is %s, %v", r, got, err)
		}
	}
	for _, s := range []string{"", "Admin", "root"} {
		_, err := access.ParseRole(s)
		if !errors.Is(err, key.ErrInvalid) || !strings.Contains(err.Error(), "viewer, operator, admin, consumer, gateway") {
			t.Errorf("%q is %v", s, err)
		}
	}
}
