package sqlite

import (
	"context"
	"database/sql"

	"github.com/keybaton/keybaton/internal/store"
)

// OpenRaw is Open with the connection for writing.
func OpenRaw(ctx context.Context, path string, o Options) (store.Store, *sql.DB, error) {
	s, write, err := open(ctx, path, o)
	if err != nil {
		return nil, nil, err
	}
	return s, write, nil
}
