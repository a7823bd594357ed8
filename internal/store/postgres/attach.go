package postgres

import (
	"context"
	"errors"
	"io"

	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
)

// errServing is why a store that a server has cannot be had alone.
var errServing = errors.New("a keybaton server is connected to it")

// Attach opens the store in the database at address as it is, while servers may
// be running on it; see [sqlstore.Attach]. With alone, one that is connected is
// key.ErrLocked: a server is known by the session in which it listens, which a
// user who is neither its own nor a superuser cannot see.
func Attach(ctx context.Context, address string, alone bool) (*sqlstore.Store, error) {
	c, err := connect(address)
	if err != nil {
		return nil, err
	}
	if err := c.fit(ctx); err != nil {
		c.close()
		return nil, err
	}
	if alone {
		if err := c.alone(ctx); err != nil {
			c.close()
			return nil, err
		}
	}
	return sqlstore.Attach(ctx, c.sql)
}

// Load fills the store in the database at address, which must be empty, with a
// dump; see [sqlstore.Load].
func Load(ctx context.Context, address string, r io.Reader, o sqlstore.LoadOptions) (*sqlstore.Store, dump.Manifest, error) {
	c, err := connect(address)
	if err != nil {
		return nil, dump.Manifest{}, err
	}
	if err := c.fit(ctx); err != nil {
		c.close()
		return nil, dump.Manifest{}, err
	}
	if err := c.alone(ctx); err != nil {
		c.close()
		return nil, dump.Manifest{}, err
	}
	return sqlstore.Load(ctx, c.sql, r, o)
}

// Where names the database at address for people, without user and password.
func Where(address string) (string, error) {
	c, err := connect(address)
	if err != nil {
		return "", err
	}
	defer c.close()
	return c.sql.Where, nil
}

// alone returns key.ErrLocked while a server is connected.
func (c *connection) alone(ctx context.Context) error {
	var n int
	err := c.sql.Read.QueryRowContext(ctx, `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND query = $1`, "LISTEN "+channel).Scan(&n)
	if err != nil {
		return classify(err).Explain("looking for servers", c.sql.Where, err)
	}
	if n > 0 {
		return sqlstore.Taken.Explain("", c.sql.Where, errServing)
	}
	return nil
}
