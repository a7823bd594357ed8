package keybatontest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/internal/provider/redis"
	"github.com/keybaton/keybaton/keybatontest"
	"github.com/keybaton/keybaton/secret"
)

// redisConn is a connection of an application.
type redisConn struct {
	net.Conn
	r       *bufio.Reader
	session *client.Session
}

var errWrongPass = errors.New("WRONGPASS")

// dialRedis opens a connection with a key.
func dialRedis(address string, p secret.Parts) (*redisConn, error) {
	nc, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	c := &redisConn{Conn: nc, r: bufio.NewReader(nc)}
	got, err := c.do("AUTH " + string(p["user"].Reveal()) + " " + string(p["password"].Reveal()))
	if err == nil && got != "+OK" {
		err = errors.New("logging in: the server answered an error")
		if strings.HasPrefix(got, "-WRONGPASS") {
			err = client.Refused(errWrongPass)
		}
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return c, nil
}

func (c *redisConn) do(cmd string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(cmd + "\r\n")); err != nil {
		return "", err
	}
	l, err := c.r.ReadString('\n')
	return strings.TrimRight(l, "\r\n"), err
}

// TestTenRotationsAtRedis: applications with long-lived connections of their
// own, which follow the keys by the client. Each opens a new connection when
// its key is not current any more, and from time to time.
func TestTenRotationsAtRedis(t *testing.T) {
	t.Parallel()
	address, user, password := providertest.Redis(t)
	s := keybatontest.Start(t, keybatontest.Config{})
	s.Apply(t, fmt.Sprintf(`version: 1
services:
  cache: {provider: redis, params: {address: %q, user: app}, manager: cache-admin}
  cache-admin: {provider: redis, params: {address: %q}}
credentials:
  - {service: cache, environment: prod, policy: quick}
  - {service: cache-admin, environment: prod}
`, address, address)+quick)
	manager := secret.Parts{"user": secret.FromString(user), "password": secret.FromString(password)}
	s.Set(t, "cache-admin", "prod", manager)
	s.Rotate(t, "cache", "prod")
	_, h := follow(t, s, client.Credential{Service: "cache", Environment: "prod"}, client.FollowOptions{})

	conns := make([]*redisConn, 8)
	l := startCalls(t, len(conns), 40, func(ctx context.Context, caller, i int) error {
		c := conns[caller]
		if c == nil || !c.session.Current() || i%25 == 0 {
			var next *redisConn
			session, err := h.Open(ctx, func(_ context.Context, p secret.Parts) (err error) {
				next, err = dialRedis(address, p)
				return err
			})
			if err != nil {
				return err
			}
			next.session = session
			if c != nil {
				_ = c.Close()
				c.session.Close()
			}
			c, conns[caller] = next, next
		}
		got, err := c.do("INCR counter")
		if err == nil && !strings.HasPrefix(got, ":") {
			err = errors.New("not a number: " + got)
		}
		return err
	})
	for i := range rotations {
		if r := s.Rotate(t, "cache", "prod"); r.State != "done" || r.Proof != "revoked_proven" {
			t.Errorf("rotation %d: got %s, %s: %s", i, r.State, r.Proof, r.Gate.Reason)
		}
	}
	l.want(t)
	for _, c := range conns {
		_ = c.Close()
		c.session.Close()
	}
	d := redis.New()
	env := provider.Env{Params: map[string]string{"address": address, "user": "app"}, Manager: manager}
	all, err := d.(provider.Lister).List(t.Context(), env)
	if err != nil || len(all) != 2 {
		t.Errorf("the user has the passwords %+v, %v: want the bootstrap's and one", all, err)
	}
}
