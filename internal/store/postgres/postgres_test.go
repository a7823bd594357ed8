package postgres_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/postgres"
	"github.com/keybaton/keybaton/internal/store/storetest"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, now func() time.Time) store.Store {
		s, err := postgres.Open(context.Background(), pgtest.Database(t), postgres.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, key.SealedFrom)
}
