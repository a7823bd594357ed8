package keybatontest_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/keybatontest"
	"github.com/keybaton/keybaton/secret"
)

// dialPostgres opens a connection with a key.
func dialPostgres(ctx context.Context, address, database string, p secret.Parts) (*pgconn.PgConn, error) {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(string(p["user"].Reveal()), string(p["password"].Reveal())), Host: address, Path: "/" + database, RawQuery: "sslmode=disable"}
	c, err := pgconn.Connect(ctx, u.String())
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "28P01" || pg.Code == "28000") {
		return nil, client.Refused(pg)
	}
	return c, err
}

// TestTenRotationsAtPostgreSQL: a pool of long-lived connections, whose roles
// are dropped when the last of their sessions has ended.
func TestTenRotationsAtPostgreSQL(t *testing.T) {
	t.Parallel()
	address, user, password := providertest.Postgres(t)
	manager := secret.Parts{"user": secret.FromString(user), "password": secret.FromString(password)}
	var admin *pgconn.PgConn
	deadline := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(50 * time.Millisecond); admin == nil; <-tick.C { // it may be starting up
		c, err := dialPostgres(t.Context(), address, "postgres", manager)
		if err == nil {
			admin = c
		} else if time.Now().After(deadline) {
			t.Fatal("the server does not let its admin in")
		}
	}
	defer func() { _ = admin.Close(context.Background()) }()
	query := func(c *pgconn.PgConn, sql string) (string, error) {
		rs, err := c.Exec(context.Background(), sql).ReadAll()
		if err != nil || len(rs) == 0 || len(rs[0].Rows) == 0 {
			return "", err
		}
		return string(rs[0].Rows[0][0]), nil
	}
	for _, sql := range []string{"CREATE ROLE app NOLOGIN", "CREATE DATABASE shop OWNER app"} {
		if _, err := query(admin, sql); err != nil {
			t.Fatal(err)
		}
	}
	s := keybatontest.Start(t, keybatontest.Config{})
	s.Apply(t, fmt.Sprintf(`version: 1
services:
  db: {provider: postgres, params: {address: %q, owner: app, database: shop, tls: disable}, manager: db-admin}
  db-admin: {provider: postgres, params: {address: %q, tls: disable}}
credentials:
  - {service: db, environment: prod, policy: quick}
  - {service: db-admin, environment: prod}
`, address, address)+quick)
	s.Set(t, "db-admin", "prod", manager)
	s.Rotate(t, "db", "prod")
	_, h := follow(t, s, client.Credential{Service: "db", Environment: "prod"}, client.FollowOptions{})

	type conn struct {
		*pgconn.PgConn
		session *client.Session
	}
	var conns [6]*conn
	drop := func(c *conn) {
		if c != nil {
			_ = c.Close(context.Background())
			c.session.Close()
		}
	}
	l := startCalls(t, len(conns), 20, func(ctx context.Context, caller, i int) error {
		c := conns[caller]
		if c == nil || !c.session.Current() || i%50 == 0 {
			next := &conn{}
			var err error
			next.session, err = h.Open(ctx, func(ctx context.Context, p secret.Parts) (err error) {
				next.PgConn, err = dialPostgres(ctx, address, "shop", p)
				return err
			})
			if err != nil {
				return err
			}
			drop(c)
			c, conns[caller] = next, next
		}
		got, err := query(c.PgConn, "SELECT current_user")
		if err == nil && got != "app" {
			err = errors.New("acts as " + got)
		}
		return err
	})
	for i := range rotations {
		if r := s.Rotate(t, "db", "prod"); r.State != "done" || r.Proof != "revoked_proven" {
			t.Errorf("rotation %d: got %s, %s: %s", i, r.State, r.Proof, r.Gate.Reason)
		}
	}
	l.want(t)
	for _, c := range conns {
		drop(c)
	}
	if n, err := query(admin, "SELECT count(*) FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%' AND rolname NOT IN ('admin', 'app')"); n != "1" {
		t.Errorf("the server has %s roles of ours, %v: want 1", n, err)
	}
}
