package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlite"
)

// fill writes n credentials of 100 services, each with a sealed primary, in one
// Update.
func fill(s store.Store, n int) error {
	call := key.Call{Upstream: "https://api.example.com", Place: key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"},
		Rules: []key.Rule{{Status: []int{401}, Is: key.IsInvalid, Dead: true}, {Status: []int{2}, Is: key.IsValid}},
		Probe: &key.Probe{Path: "/me"}, FallbackOn: []int{401, 403}}
	return s.Update(context.Background(), audit.Entry{Actor: "bench", Action: "bench.fill"}, func(tx store.Tx) error {
		if err := tx.PutDataKey("prod", make([]byte, 60)); err != nil {
			return err
		}
		for i := range n {
			id := key.CredentialID{Service: fmt.Sprintf("service-%02d", i%100), Environment: fmt.Sprintf("customer-%06d", i/100)}
			if i < 100 {
				if err := tx.PutService(key.Service{Name: id.Service, Provider: "manual", Call: call}); err != nil {
					return err
				}
			}
			v := key.Version{ID: key.VersionID{Credential: id, Number: 1}, State: key.StatePrimary, Origin: key.OriginSet,
				Fingerprint: fmt.Sprintf("%032x", i), Created: tx.Now(), Since: tx.Now()}
			err := errors.Join(
				tx.PutCredential(key.Credential{ID: id, Slots: key.Slots{Primary: 1}, Next: 2, Call: call, Created: tx.Now(), Rotated: tx.Now()}),
				tx.PutVersion(v), tx.PutSealed(v.ID, key.SealedFrom("prod", make([]byte, 80))))
			if err != nil {
				return err
			}
			if _, err := tx.Touch(id); err != nil {
				return err
			}
		}
		return nil
	})
}

func BenchmarkHundredThousand(b *testing.B) {
	const n = 100_000
	ctx, path := context.Background(), filepath.Join(b.TempDir(), "keybaton.db")
	s, err := sqlite.Open(ctx, path, sqlite.Options{})
	if err != nil {
		b.Fatal(err)
	}
	begun := time.Now()
	if err := fill(s, n); err != nil {
		b.Fatal(err)
	}
	b.Logf("writing %d credentials in one update: %s", n, time.Since(begun))
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			s, err := sqlite.Open(ctx, path, sqlite.Options{})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	if s, err = sqlite.Open(ctx, path, sqlite.Options{}); err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	id := key.CredentialID{Service: "service-42", Environment: "customer-000042"}
	now := time.Now()
	for name, fn := range map[string]func(store.Tx) error{
		"credentials": func(tx store.Tx) error { _, err := tx.Credentials(); return err },
		"versions":    func(tx store.Tx) error { _, err := tx.AllVersions(key.StatePrimary, key.StateFallback); return err },
		"sealed":      func(tx store.Tx) error { _, err := tx.AllSealed(key.StatePrimary, key.StateFallback); return err },
		"one": func(tx store.Tx) error {
			_, err1 := tx.Credential(id)
			_, err2 := tx.Versions(id)
			_, err3 := tx.Sealed(key.VersionID{Credential: id, Number: 1})
			return errors.Join(err1, err2, err3)
		},
		"changed": func(tx store.Tx) error { _, err := tx.ChangedSince(s.Revision()); return err },
	} {
		b.Run("view "+name, func(b *testing.B) {
			for b.Loop() {
				if err := s.View(ctx, fn); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for name, fn := range map[string]func(store.Tx) error{
		"setting": func(tx store.Tx) error { return tx.PutSetting("a", "b") },
		"due and claim": func(tx store.Tx) error {
			l, err := tx.ClaimItem("bench", "i", "o", time.Minute)
			return errors.Join(err, tx.Release(l, now))
		},
	} {
		b.Run("observe "+name, func(b *testing.B) {
			for b.Loop() {
				if err := s.Observe(ctx, fn); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
