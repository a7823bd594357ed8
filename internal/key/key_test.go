package key_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/internal/key"
)

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"billing-api": true, "a": true, "7": true, "": false, "-a": false, "a-": false, "Upper": false, "a/b": false, "a.b": false, "a b": false,
		strings.Repeat("a", 63): true, strings.Repeat("a", 64): false, "ä": false, "a\n": false} {
		if err := key.CheckName(name); ok != (err == nil) || err != nil && !errors.Is(err, key.ErrInvalid) {
			t.Errorf("%q: got %v, want ok %v", name, err, ok)
		}
	}
}

func TestIdentifiersComeBack(t *testing.T) {
	id := key.CredentialID{Service: "crm", Environment: "prod"}
	if got, err := key.ParseCredentialID(id.String()); err != nil || got != id {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "crm", "crm/", "/prod", "crm/prod/x", "CRM/prod"} {
		if _, err := key.ParseCredentialID(bad); !errors.Is(err, key.ErrInvalid) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	for s, want := range map[string]key.Number{"v7": 7, "7": 7} {
		if got, err := key.ParseNumber(s); err != nil || got != want {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	for _, bad := range []string{"", "v", "v0", "-1", "v1x", "none"} {
		if _, err := key.ParseNumber(bad); !errors.Is(err, key.ErrInvalid) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	r := key.Revision{Epoch: 2, Number: 40}
	if got, err := key.ParseRevision(r.String()); err != nil || got != r {
		t.Errorf("got %v, %v", got, err)
	}
	if !r.Reached(key.Revision{Epoch: 2, Number: 40}) || r.Reached(key.Revision{Epoch: 2, Number: 41}) || r.Reached(key.Revision{Epoch: 1, Number: 1}) {
		t.Error("a revision covers those of its own epoch up to itself, and no other")
	}
}

func TestEveryStateIsOfOneKind(t *testing.T) {
	for _, s := range key.States() {
		n := 0
		for _, is := range []bool{s.Terminal(), s.InSlot(), s.Retiring()} {
			if is {
				n++
			}
		}
		if before := s == key.StateIntent || s == key.StateUnknown; n != 1 && !before || before && n != 0 {
			t.Errorf("%s is of %d kinds", s, n)
		}
	}
}
