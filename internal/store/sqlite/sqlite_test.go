package sqlite_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/internal/store/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, now func() time.Time) store.Store {
		s, err := sqlite.Open(context.Background(), filepath.Join(t.TempDir(), "keybaton.db"), sqlite.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, key.SealedFrom)
}
