// Package redis issues and revokes passwords of one Redis ACL user.
//
// A key is the user's name and one of its passwords. Redis keeps passwords as
// SHA-256 hashes, and it is the hash that is sent when one is added or removed:
// only who logs in sends the password itself. The vendor's id of a key is that
// hash. Beside each password that it adds, the driver makes a user that is off
// and may do nothing, whose name carries the label: so a stray of a lost answer
// is found again. Both are made, and removed, in one transaction.
//
// Sessions go on after their password was removed. Redis does not tell by which
// password one was opened, only when, and by which user.
package redis

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/secret"
)

// ID is the name of the provider.
const ID = "redis"

const vendor = "Redis"

// The parts of a key, and of the manager key.
const (
	partUser     = "user"
	partPassword = "password"
)

// The params.
const (
	paramAddress = "address"
	paramUser    = "user"
	paramTLS     = "tls"
)

// marker begins the names of the users that carry labels.
const marker = "keybaton:"

// New returns the driver. It satisfies provider.Lister and provider.Sessioner,
// keeps no state, and is safe for concurrent use.
func New() provider.Driver { return driver{} }

type driver struct{}

// Describe says what can be done in env.
func (driver) Describe(provider.Env) provider.Info {
	return provider.Info{
		ID: ID, Vendor: vendor, Connection: true, ListsAll: true, Manager: "required", ManagerParts: []string{partUser, partPassword}, Tested: "loopback",
		Abilities: rotation.Abilities{Issue: true, Probe: true, List: true, Revoke: true, Spacing: 100 * time.Millisecond, DeadOK: 3},
		Call:      key.Call{Parts: []string{partUser, partPassword}},
		Params: []provider.Param{
			{Name: paramAddress, Required: true, Help: "host:port of the server"},
			{Name: paramUser, Help: "the ACL user whose passwords are keys; it must exist, and be on"},
			{Name: paramTLS, Default: "no", Help: "yes to connect with TLS"},
		},
	}
}

// begin opens a connection and logs in with p, which is the manager's unless a
// key is probed. Nothing has been asked for when it fails.
func begin(ctx context.Context, env provider.Env, p secret.Parts) (*conn, error) {
	address := env.Params[paramAddress]
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" {
		return nil, invalid("the param %s of provider redis is no address; write it like redis.example.com:6379", paramAddress)
	}
	c, err := dial(ctx, env, address, host, env.Params[paramTLS] == "yes")
	if err != nil {
		return nil, provider.Unanswered(ctx, vendor, provider.Transient, err)
	}
	if _, err := c.do("AUTH", string(p[partUser].Reveal()), string(p[partPassword].Reveal())); err != nil {
		c.close()
		e := classify(ctx, provider.Transient, err)
		if err == refused("WRONGPASS") {
			e.Err = errLogin
		}
		return nil, e
	}
	return c, nil
}

// invalid is the error of a param that does not fit.
func invalid(format string, args ...any) *provider.Error {
	return &provider.Error{Kind: provider.Denied, Text: fmt.Sprintf(format, args...), Err: key.ErrInvalid}
}

// errLogin is the cause of a refused login.
var errLogin = errors.New("the login was refused")

// manage is begin with the manager key, for acts on the passwords of a user.
func manage(ctx context.Context, env provider.Env) (*conn, string, error) {
	if len(env.Manager) == 0 {
		return nil, "", provider.Errorf(provider.Denied, "redis needs a manager key; name the service that holds it: manager: SERVICE")
	}
	user := env.Params[paramUser]
	if user == "" || strings.ContainsAny(user, ": \t\r\n\x00") {
		return nil, "", provider.Errorf(provider.Denied, "redis needs the param %s: the name of the ACL user, without spaces and colons; set params: {%s: …}", paramUser, paramUser)
	}
	c, err := begin(ctx, env, env.Manager)
	return c, user, err
}

// classify returns err as a classified error; k is the kind of no answer.
func classify(ctx context.Context, k provider.Kind, err error) *provider.Error {
	var no refused
	if !errors.As(err, &no) {
		return provider.Unanswered(ctx, vendor, k, err)
	}
	switch no {
	case "WRONGPASS", "NOAUTH", "NOPERM":
		return provider.Errorf(provider.Denied, "Redis answered %s to the manager key; check that it is valid, and that its user may do +acl +multi +exec +client|list", no)
	case "LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN":
		return provider.Errorf(provider.Transient, "Redis answered %s", no)
	}
	return provider.Errorf(provider.Denied, "Redis answered %s", no)
}

// list is what ACL LIST says of the user, and of the labels of its passwords.
type list struct {
	found  bool
	on     bool
	nopass bool
	hashes []string
	labels map[string]string // by hash
}

// read reads the ACL. Each line is "user NAME on #hash … rules".
func read(ctx context.Context, c *conn, user string) (list, error) {
	x, err := c.do("ACL", "LIST")
	if err != nil {
		return list{}, classify(ctx, provider.Transient, err)
	}
	lines, _ := x.([]any)
	l := list{labels: map[string]string{}}
	for _, line := range lines {
		s, _ := line.(string)
		f := strings.Fields(s)
		if len(f) < 3 || f[0] != "user" {
			return list{}, provider.Errorf(provider.Denied, "Redis answered a list of users that cannot be read")
		}
		var hashes []string
		for _, w := range f[2:] {
			if h, ok := strings.CutPrefix(w, "#"); ok && isHash(h) {
				hashes = append(hashes, h)
			}
		}
		label, ours := strings.CutPrefix(f[1], marker+user+":")
		switch {
		case f[1] == user:
			l.found, l.on, l.nopass, l.hashes = true, slices.Contains(f[2:], "on"), slices.Contains(f[2:], "nopass"), hashes
		case ours:
			for _, h := range hashes {
				l.labels[h] = label
			}
		}
	}
	return l, nil
}

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

// hashOf returns the SHA-256 of a password, as Redis keeps it.
func hashOf(v secret.Value) string {
	h := sha256.Sum256(v.Reveal())
	return hex.EncodeToString(h[:])
}

// transact runs commands in one transaction. k is the kind of no answer.
func transact(ctx context.Context, c *conn, k provider.Kind, cmds ...[]string) error {
	if _, err := c.do("MULTI"); err != nil {
		return classify(ctx, provider.Transient, err)
	}
	for _, cmd := range cmds {
		if _, err := c.do(cmd...); err != nil {
			return classify(ctx, provider.Transient, err) // nothing is done before EXEC
		}
	}
	x, err := c.do("EXEC")
	if err != nil {
		return classify(ctx, k, err)
	}
	done, _ := x.([]any)
	if len(done) != len(cmds) {
		return provider.Errorf(k, "Redis answered EXEC with something else than the results of %d commands", len(cmds))
	}
	for _, d := range done {
		if no, ok := d.(refused); ok {
			// One may have been done and the other not.
			return provider.Errorf(k, "Redis answered %s within a transaction", no)
		}
	}
	return nil
}

// persist writes the ACL to the server's file. kept is false for a server
// without one: it keeps users in memory, or in a configuration that a person
// writes.
func persist(ctx context.Context, c *conn) (kept bool, err error) {
	_, err = c.do("ACL", "SAVE")
	if err == refused(noFile) {
		return false, nil
	}
	if err != nil {
		return false, classify(ctx, provider.Transient, err)
	}
	return true, nil
}

const passwordBytes = 24

// newPassword returns a password of 192 random bits.
func newPassword(env provider.Env) secret.Value {
	b := make([]byte, passwordBytes)
	if env.Rand != nil {
		env.Rand(b)
	} else {
		_, _ = rand.Read(b) // never fails
	}
	defer clear(b)
	return secret.FromString(hex.EncodeToString(b))
}

// Issue adds a password to the user. Its rights are the user's.
func (driver) Issue(ctx context.Context, env provider.Env, r provider.Request) (provider.Issued, error) {
	c, user, err := manage(ctx, env)
	if err != nil {
		return provider.Issued{}, err
	}
	defer c.close()
	l, err := read(ctx, c, user)
	if err != nil {
		return provider.Issued{}, err
	}
	switch {
	case !l.found:
		return provider.Issued{}, provider.Errorf(provider.Denied, "Redis has no ACL user %q; make it with its rights: ACL SETUSER %s on …", user, user)
	case !l.on:
		return provider.Issued{}, provider.Errorf(provider.Denied, "the Redis user %q is off, so no password of it works; switch it on: ACL SETUSER %s on", user, user)
	case l.nopass:
		return provider.Issued{}, provider.Errorf(provider.Denied, "the Redis user %q takes every password (nopass), so none can be revoked; end that: ACL SETUSER %s resetpass", user, user)
	}
	pass := newPassword(env)
	h := hashOf(pass)
	err = transact(ctx, c, provider.Ambiguous,
		[]string{"ACL", "SETUSER", marker + user + ":" + r.Label, "reset", "off", "#" + h},
		[]string{"ACL", "SETUSER", user, "#" + h})
	if err != nil {
		return provider.Issued{}, err
	}
	out := provider.Issued{VendorID: h, Parts: secret.Parts{partUser: secret.FromString(user), partPassword: pass}}
	switch kept, err := persist(ctx, c); {
	case err != nil: // the password works, and must not be lost for this
		out.Warnings = []string{"the server could not write its ACL file, so a restart forgets the new password; look at its log, then: ACL SAVE"}
	case !kept:
		out.Warnings = []string{"the server has no ACL file, so a restart forgets the new password; give it one: aclfile /etc/redis/users.acl"}
	}
	return out, nil
}

// Probe logs in with the parts.
func (driver) Probe(ctx context.Context, env provider.Env, p secret.Parts) (evidence.Outcome, error) {
	c, err := begin(ctx, env, p)
	if err == nil {
		c.close()
		return evidence.OK, nil
	}
	if cause := ctx.Err(); cause != nil {
		return evidence.Other, &provider.Error{Kind: provider.Transient, Text: "probing: " + cause.Error(), Err: cause}
	}
	var e *provider.Error
	switch {
	case errors.As(err, &e) && errors.Is(e.Err, errLogin):
		return evidence.Auth, nil
	case errors.As(err, &e) && errors.Is(e.Err, key.ErrInvalid):
		return evidence.Other, err
	}
	return evidence.Other, nil
}

// List returns every password of the user, by hash.
func (driver) List(ctx context.Context, env provider.Env) ([]provider.Listed, error) {
	c, user, err := manage(ctx, env)
	if err != nil {
		return nil, err
	}
	defer c.close()
	l, err := read(ctx, c, user)
	if err != nil {
		return nil, err
	}
	var out []provider.Listed
	for _, h := range l.hashes {
		out = append(out, provider.Listed{VendorID: h, Label: l.labels[h]})
	}
	return out, nil
}

// Revoke removes the password with the hash vendorID from the user. The last
// one is never removed. Sessions that it opened go on.
func (driver) Revoke(ctx context.Context, env provider.Env, vendorID string) error {
	c, user, err := manage(ctx, env)
	if err != nil {
		return err
	}
	defer c.close()
	l, err := read(ctx, c, user)
	if err != nil {
		return err
	}
	var cmds [][]string
	if slices.Contains(l.hashes, vendorID) {
		if len(l.hashes) == 1 {
			return provider.Errorf(provider.Denied, "it is the last password of the Redis user %q, and nobody could log in after it was removed; set another first: keybaton rotate", user)
		}
		cmds = append(cmds, []string{"ACL", "SETUSER", user, "!" + vendorID})
	}
	if label, ok := l.labels[vendorID]; ok {
		cmds = append(cmds, []string{"ACL", "DELUSER", marker + user + ":" + label})
	}
	if len(cmds) > 0 {
		if err := transact(ctx, c, provider.Transient, cmds...); err != nil {
			return err
		}
	}
	// A restart must not bring the password back, so what was removed before is
	// written too.
	_, err = persist(ctx, c)
	return err
}

// Identify returns the hash of the password.
func (driver) Identify(_ provider.Env, p secret.Parts) (string, bool) {
	v, ok := p[partPassword]
	if !ok || v.IsZero() {
		return "", false
	}
	return hashOf(v), true
}

// Sessions counts the user's sessions that began before a time: any of them may
// have been opened with the key.
func (driver) Sessions(ctx context.Context, env provider.Env, _ string, before time.Time) (provider.Sessions, error) {
	c, user, err := manage(ctx, env)
	if err != nil {
		return provider.Sessions{}, err
	}
	defer c.close()
	own, err := c.do("CLIENT", "ID")
	if err != nil {
		return provider.Sessions{}, classify(ctx, provider.Transient, err)
	}
	x, err := c.do("CLIENT", "LIST")
	if err != nil {
		return provider.Sessions{}, classify(ctx, provider.Transient, err)
	}
	text, _ := x.(string)
	since := time.Since(before)
	var out provider.Sessions
	for line := range strings.Lines(text) {
		f := map[string]string{}
		for _, w := range strings.Fields(line) {
			k, v, _ := strings.Cut(w, "=")
			f[k] = v
		}
		if f["user"] != user || f["id"] == fmt.Sprint(own) {
			continue
		}
		n, err := strconv.ParseInt(f["age"], 10, 64)
		if err != nil {
			return provider.Sessions{}, provider.Errorf(provider.Denied, "Redis answered a list of clients that cannot be read")
		}
		// Ages are whole seconds, rounded down: one more may have passed.
		if age := time.Duration(n+1) * time.Second; age > since {
			out.Open++
			out.Oldest = max(out.Oldest, age)
		}
	}
	return out, nil
}
