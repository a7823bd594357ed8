package redis_test

import (
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/internal/provider/redis"
	"github.com/keybaton/keybaton/secret"
)

func start(t *testing.T) provider.Env {
	address, user, password := providertest.Redis(t)
	return provider.Env{Params: map[string]string{"address": address, "user": "app"},
		Manager: secret.Parts{"user": secret.FromString(user), "password": secret.FromString(password)}}
}

func TestConformance(t *testing.T) {
	providertest.Run(t, providertest.Harness{Driver: redis.New(), Env: start(t)})
}

func issue(t *testing.T, env provider.Env, label string) provider.Issued {
	t.Helper()
	k, err := redis.New().Issue(t.Context(), env, provider.Request{Label: label})
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Warnings) > 0 {
		t.Errorf("warnings: %v", k.Warnings)
	}
	return k
}

// acl asks the server by its own program, which reads the password from the
// environment.
func acl(t *testing.T, env provider.Env, args ...string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(env.Params["address"])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("redis-cli", append([]string{"-h", host, "-p", port, "--user", string(env.Manager["user"].Reveal())}, args...)...)
	cmd.Env = append(cmd.Environ(), "REDISCLI_AUTH="+string(env.Manager["password"].Reveal()))
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, b)
	}
	return string(b)
}

// A session outlives its password; it is counted until it ends.
func TestSessionsSurviveTheirPassword(t *testing.T) {
	env := start(t)
	d := redis.New()
	k := issue(t, env, "one")
	c, err := net.Dial("tcp", env.Params["address"])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ask := func(cmd string) string {
		t.Helper()
		if _, err := c.Write([]byte(cmd + "\r\n")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 200)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b[:n]))
	}
	if got := ask("AUTH app " + string(k.Parts["password"].Reveal())); got != "+OK" {
		t.Fatalf("logging in: %s", got)
	}
	sessions := func(before time.Time) provider.Sessions {
		t.Helper()
		s, err := d.(provider.Sessioner).Sessions(t.Context(), env, k.VendorID, before)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := sessions(time.Now()); s.Open != 1 || s.Exact || s.Oldest <= 0 {
		t.Errorf("sessions: %+v", s)
	}
	if err := d.Revoke(t.Context(), env, k.VendorID); err != nil {
		t.Fatal(err)
	}
	if o, err := d.Probe(t.Context(), env, k.Parts); o != evidence.Auth || err != nil {
		t.Errorf("after the revocation: %s, %v", o, err)
	}
	if got := ask("GET x"); got != "$-1" {
		t.Errorf("the session was answered %q", got)
	}
	if s := sessions(time.Now()); s.Open != 1 {
		t.Errorf("sessions after the revocation: %+v", s)
	}
	if s := sessions(time.Now().Add(-time.Hour)); s.Open != 0 {
		t.Errorf("sessions from an hour ago: %+v", s)
	}
	_ = c.Close()
	deadline := time.Now().Add(10 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); sessions(time.Now()).Open > 0; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("a closed session is counted")
		}
	}
}

func TestTheLastPasswordIsNeverRemoved(t *testing.T) {
	env := start(t)
	d := redis.New()
	k := issue(t, env, "only")
	all, err := d.(provider.Lister).List(t.Context(), env)
	if err != nil || len(all) != 2 {
		t.Fatalf("listed %+v, %v", all, err)
	}
	for _, row := range all {
		if row.VendorID != k.VendorID {
			if err := d.Revoke(t.Context(), env, row.VendorID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Revoke(t.Context(), env, k.VendorID); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), "last password") {
		t.Errorf("removing the last password: %v", err)
	}
	if o, err := d.Probe(t.Context(), env, k.Parts); o != evidence.OK || err != nil {
		t.Errorf("the last password: %s, %v", o, err)
	}
}

// A restart brings back what was issued, and not what was revoked; labels leave
// nothing behind.
func TestWhatIsDoneIsWrittenToTheACLFile(t *testing.T) {
	env := start(t)
	a, b := issue(t, env, "a"), issue(t, env, "b")
	if err := redis.New().Revoke(t.Context(), env, a.VendorID); err != nil {
		t.Fatal(err)
	}
	acl(t, env, "ACL", "LOAD")
	users := acl(t, env, "ACL", "LIST")
	if strings.Contains(users, a.VendorID) || strings.Count(users, b.VendorID) != 2 || !strings.Contains(users, "user keybaton:app:b off ") || strings.Contains(users, "keybaton:app:a") {
		t.Errorf("the file has\n%s", users)
	}
}

func TestUsersThatCannotHaveKeys(t *testing.T) {
	env := start(t)
	acl(t, env, "ACL", "SETUSER", "sleeping", "off", ">x")
	acl(t, env, "ACL", "SETUSER", "open", "on", "nopass")
	for user, want := range map[string]string{"nobody": "no ACL user", "sleeping": "is off", "open": "nopass", "": "param user", "a:b": "without spaces and colons"} {
		env.Params["user"] = user
		if _, err := redis.New().Issue(t.Context(), env, provider.Request{Label: "x"}); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", user, err)
		}
	}
}
