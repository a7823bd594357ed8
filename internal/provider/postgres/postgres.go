// Package postgres issues and revokes login roles of PostgreSQL.
//
// A key is a role of its own: its name, which is the vendor's id and carries
// the label, and its password. Each is a member of one role, the owner, and
// becomes it at login, so that what one makes belongs to all. The server gets
// passwords as SCRAM verifiers alone: what logs statements logs no key.
//
// Sessions go on when their role may no longer log in. A role is dropped when
// its last session has ended, or at once where the param terminate says so.
package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/secret"
)

// ID is the name of the provider.
const ID = "postgres"

const vendor = "PostgreSQL"

// The parts of a key, and of the manager key.
const (
	partUser     = "user"
	partPassword = "password"
)

// The params.
const (
	paramAddress   = "address"
	paramDatabase  = "database"
	paramOwner     = "owner"
	paramTLS       = "tls"
	paramTerminate = "terminate"
)

// nameMax is the longest name of a role, in bytes (NAMEDATALEN - 1).
const nameMax = 63

// callTimeout bounds one act, whatever ctx allows.
const callTimeout = 20 * time.Second

// Error codes of https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	badPassword   = "28P01"
	badLogin      = "28000"
	noRight       = "42501"
	exists        = "42710"
	noSuch        = "42704"
	stillNeeded   = "2BP01"
	noDatabase    = "3D000"
	loginRoutine  = "InitializeSessionUserId" // of a 28000 about the role, not about pg_hba.conf
	connectionErr = "08"
	resourceErr   = "53"
	operatorErr   = "57"
)

// New returns the driver. It satisfies provider.Lister, provider.Disabler,
// provider.Identifier, provider.Labeler and provider.Sessioner, keeps no state,
// and is safe for concurrent use.
func New() provider.Driver { return driver{} }

type driver struct{}

// Describe says what can be done in env.
func (driver) Describe(provider.Env) provider.Info {
	return provider.Info{
		ID: ID, Vendor: vendor, Connection: true, ListsAll: true, Manager: "required", ManagerParts: []string{partUser, partPassword}, Tested: "loopback",
		Abilities: rotation.Abilities{Issue: true, Probe: true, List: true, Disable: true, Revoke: true, Spacing: 100 * time.Millisecond, DeadOK: 3},
		Call:      key.Call{Parts: []string{partUser, partPassword}},
		Params: []provider.Param{
			{Name: paramAddress, Required: true, Help: "host:port of the server"},
			{Name: paramDatabase, Default: "postgres", Help: "the database that keys are probed at"},
			{Name: paramOwner, Help: "the role that each key is a member of and acts as; it must exist"},
			{Name: paramTLS, Default: "verify-full", Help: "verify-full, require (the certificate is not looked at) or disable"},
			{Name: paramTerminate, Default: "no", Help: "yes to end open sessions when their key is revoked; no to wait for them"},
		},
	}
}

// conn is a connection, and the time that an act may take.
type conn struct {
	*pgconn.PgConn
	cancel context.CancelFunc
	owner  string
}

func (c *conn) close(ctx context.Context) {
	_ = c.Close(ctx)
	c.cancel()
}

// invalid is the error of a param that does not fit.
func invalid(format string, args ...any) *provider.Error {
	return &provider.Error{Kind: provider.Denied, Text: fmt.Sprintf(format, args...), Err: key.ErrInvalid}
}

// errLogin is the cause of a refused login.
var errLogin = errors.New("the login was refused")

// begin logs in with p, which is the manager's unless a key is probed. Nothing
// has been asked for when it fails.
func begin(ctx context.Context, env provider.Env, p secret.Parts) (context.Context, *conn, error) {
	host, port, err := net.SplitHostPort(env.Params[paramAddress])
	if err != nil || host == "" || port == "" {
		return ctx, nil, invalid("the param %s of provider postgres is no address; write it like db.example.com:5432", paramAddress)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return ctx, nil, invalid("the port in the param %s of provider postgres is no number", paramAddress)
	}
	mode := env.Params[paramTLS]
	switch mode {
	case "":
		mode = "verify-full"
	case "verify-full", "require", "disable":
	default:
		return ctx, nil, invalid("the param %s of provider postgres is verify-full, require or disable", paramTLS)
	}
	// The host is given here so that its name is what the certificate is for.
	cfg, err := pgconn.ParseConfig("host=" + quoteDSN(host) + " sslmode=" + mode + " user=x dbname=x target_session_attrs=any")
	if err != nil {
		return ctx, nil, invalid("the settings of the connection to PostgreSQL do not fit; check the PG… variables of the server's environment")
	}
	cfg.Port, cfg.Fallbacks, cfg.DialFunc = uint16(n), nil, env.Connect
	cfg.User, cfg.Password, cfg.Database = string(p[partUser].Reveal()), string(p[partPassword].Reveal()), env.Params[paramDatabase]
	if cfg.Database == "" {
		cfg.Database = "postgres"
	}
	cfg.RuntimeParams = map[string]string{"application_name": "keybaton"}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	c, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		e := classify(ctx, provider.Transient, err)
		cancel()
		return ctx, nil, e
	}
	return ctx, &conn{PgConn: c, cancel: cancel}, nil
}

func quoteDSN(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// manage is begin with the manager key, for acts on roles.
func manage(ctx context.Context, env provider.Env) (context.Context, *conn, error) {
	if len(env.Manager) == 0 {
		return ctx, nil, provider.Errorf(provider.Denied, "postgres needs a manager key; name the service that holds it: manager: SERVICE")
	}
	owner := env.Params[paramOwner]
	if owner == "" || strings.Contains(owner, "\x00") {
		return ctx, nil, provider.Errorf(provider.Denied, "postgres needs the param %s: the role that keys act as; set params: {%s: …}", paramOwner, paramOwner)
	}
	ctx, c, err := begin(ctx, env, env.Manager)
	if err == nil {
		c.owner = owner
	}
	return ctx, c, err
}

// classify returns err as a classified error; k is the kind of no answer. The
// server's own text is left out: it may quote what was sent.
func classify(ctx context.Context, k provider.Kind, err error) *provider.Error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return provider.Unanswered(ctx, vendor, k, err)
	}
	code := pg.Code
	if len(code) != 5 || strings.Trim(code, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return provider.Errorf(k, "PostgreSQL answered an error without a code")
	}
	switch {
	case code == badPassword, code == badLogin:
		e := provider.Errorf(provider.Denied, "PostgreSQL answered %s to the manager key; check that it is valid, and that pg_hba.conf lets it in", code)
		if code == badPassword || pg.Routine == loginRoutine {
			e.Err = errLogin
		}
		return e
	case code == noRight:
		e := provider.Errorf(provider.Denied, "PostgreSQL answered %s to the manager key; its role needs CREATEROLE, and ADMIN OPTION on the owner", code)
		e.Err = errRight
		return e
	case code[:2] == connectionErr, code[:2] == resourceErr, code[:2] == operatorErr:
		return provider.Errorf(k, "PostgreSQL answered %s", code)
	}
	return provider.Errorf(provider.Denied, "PostgreSQL answered %s", code)
}

var errRight = errors.New("a right is missing")

// codeOf returns the code of a server's answer, "" when err is none.
func codeOf(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// exec runs statements in one transaction: all are done, or none.
func (c *conn) exec(ctx context.Context, statements ...string) error {
	_, err := c.Exec(ctx, strings.Join(statements, ";\n")).ReadAll()
	return err
}

// rows runs one query with text arguments.
func (c *conn) rows(ctx context.Context, q string, args ...string) ([][][]byte, error) {
	vs := make([][]byte, len(args))
	for i, a := range args {
		vs[i] = []byte(a)
	}
	r := c.ExecParams(ctx, q, vs, nil, nil, nil).Read()
	if r.Err != nil {
		return nil, classify(ctx, provider.Transient, r.Err)
	}
	return r.Rows, nil
}

func identifier(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// Label returns the name of the role that a key under label is.
func (driver) Label(_ provider.Env, label string) string {
	label = strings.ReplaceAll(label, "\x00", "")
	if len(label) <= nameMax {
		return label
	}
	h := sha256.Sum256([]byte(label))
	tail := hex.EncodeToString(h[:4])
	return strings.ToValidUTF8(label[:nameMax-len(tail)], "") + tail
}

const (
	passwordBytes = 24
	saltBytes     = 16
	iterations    = 4096 // scram_iterations of PostgreSQL
)

func random(env provider.Env, n int) []byte {
	b := make([]byte, n)
	if env.Rand != nil {
		env.Rand(b)
	} else {
		_, _ = rand.Read(b) // never fails
	}
	return b
}

// verifier returns what PostgreSQL keeps of a password: SCRAM-SHA-256 of RFC
// 5802 and RFC 7677, in the form of pg_authid.rolpassword.
func verifier(password string, salt []byte) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(text string) []byte {
		m := hmac.New(sha256.New, salted)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}

// Issue makes a role with a password, as a member of the owner.
func (d driver) Issue(ctx context.Context, env provider.Env, r provider.Request) (provider.Issued, error) {
	ctx, c, err := manage(ctx, env)
	if err != nil {
		return provider.Issued{}, err
	}
	defer c.close(ctx)
	name := d.Label(env, r.Label)
	password := hex.EncodeToString(random(env, passwordBytes))
	v, err := verifier(password, random(env, saltBytes))
	if err != nil {
		return provider.Issued{}, provider.Errorf(provider.Denied, "the password cannot be hashed on this machine")
	}
	out := provider.Issued{VendorID: name, Parts: secret.Parts{partUser: secret.FromString(name), partPassword: secret.FromString(password)}}
	until := ""
	if r.Life > 0 {
		out.Expires = time.Now().Add(r.Life).UTC().Truncate(time.Second)
		until = " VALID UNTIL '" + out.Expires.Format(time.RFC3339) + "'"
	}
	err = c.exec(ctx,
		"CREATE ROLE "+identifier(name)+" LOGIN PASSWORD '"+v+"'"+until+" IN ROLE "+identifier(c.owner),
		"ALTER ROLE "+identifier(name)+" SET role TO "+identifier(c.owner))
	switch codeOf(err) {
	case exists:
		return provider.Issued{}, provider.Errorf(provider.Denied, "PostgreSQL has a role %q already", name)
	case noSuch:
		return provider.Issued{}, provider.Errorf(provider.Denied, "PostgreSQL has no role %q; make it with its rights: CREATE ROLE … NOLOGIN", c.owner)
	}
	if err != nil {
		return provider.Issued{}, classify(ctx, provider.Ambiguous, err)
	}
	return out, nil
}

// Probe logs in with the parts.
func (driver) Probe(ctx context.Context, env provider.Env, p secret.Parts) (evidence.Outcome, error) {
	cctx, c, err := begin(ctx, env, p)
	if err == nil {
		c.close(cctx)
		return evidence.OK, nil
	}
	if cause := ctx.Err(); cause != nil {
		return evidence.Other, &provider.Error{Kind: provider.Transient, Text: "probing: " + cause.Error(), Err: cause}
	}
	var e *provider.Error
	switch {
	case errors.As(err, &e) && errors.Is(e.Err, errLogin):
		return evidence.Auth, nil
	case errors.As(err, &e) && errors.Is(e.Err, errRight): // it may not use this database
		return evidence.Perm, nil
	case errors.As(err, &e) && errors.Is(e.Err, key.ErrInvalid):
		return evidence.Other, err
	}
	return evidence.Other, nil
}

// List returns every member of the owner.
func (driver) List(ctx context.Context, env provider.Env) ([]provider.Listed, error) {
	ctx, c, err := manage(ctx, env)
	if err != nil {
		return nil, err
	}
	defer c.close(ctx)
	rows, err := c.rows(ctx, `SELECT k.rolname, k.rolcanlogin FROM pg_auth_members m
		JOIN pg_roles k ON k.oid = m.member JOIN pg_roles o ON o.oid = m.roleid WHERE o.rolname = $1 GROUP BY 1, 2 ORDER BY 1`, c.owner)
	if err != nil {
		return nil, err
	}
	var out []provider.Listed
	for _, r := range rows {
		out = append(out, provider.Listed{VendorID: string(r[0]), Label: string(r[0]), Disabled: string(r[1]) != "t"})
	}
	return out, nil
}

// login switches the login of the role on or off; gone says that there is no
// such role.
func (c *conn) login(ctx context.Context, role, what string) (gone bool, err error) {
	if role == c.owner {
		return false, provider.Errorf(provider.Denied, "the role %q is the owner of the keys, and none itself", role)
	}
	err = c.exec(ctx, "ALTER ROLE "+identifier(role)+" "+what)
	if codeOf(err) == noSuch {
		return true, nil
	}
	if err != nil {
		return false, classify(ctx, provider.Transient, err)
	}
	return false, nil
}

// Disable takes the role's right to log in; its sessions go on. Nothing is
// needed to give it back.
func (driver) Disable(ctx context.Context, env provider.Env, vendorID string) (string, error) {
	ctx, c, err := manage(ctx, env)
	if err != nil {
		return "", err
	}
	defer c.close(ctx)
	_, err = c.login(ctx, vendorID, "NOLOGIN")
	return "", err
}

// Enable lets the role log in again.
func (driver) Enable(ctx context.Context, env provider.Env, vendorID, _ string) error {
	ctx, c, err := manage(ctx, env)
	if err != nil {
		return err
	}
	defer c.close(ctx)
	gone, err := c.login(ctx, vendorID, "LOGIN")
	if err == nil && gone {
		return provider.Errorf(provider.Denied, "PostgreSQL has no role %q any more; issue a new key: keybaton rotate", vendorID)
	}
	return err
}

// Revoke takes the role's right to log in and drops it. While it has sessions
// it is not dropped, unless the param terminate ends them: the error, which is
// transient, says how many there are.
func (driver) Revoke(ctx context.Context, env provider.Env, vendorID string) error {
	ctx, c, err := manage(ctx, env)
	if err != nil {
		return err
	}
	defer c.close(ctx)
	if gone, err := c.login(ctx, vendorID, "NOLOGIN"); err != nil || gone {
		return err
	}
	if env.Params[paramTerminate] == "yes" {
		if _, err := c.rows(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, vendorID); err != nil {
			return err
		}
	} else if s, err := c.sessions(ctx, vendorID); err != nil {
		return err
	} else if s.Open > 0 {
		return provider.Errorf(provider.Transient, "the role %q still has %d open sessions; it is dropped when they have ended (params: {%s: yes} ends them)", vendorID, s.Open, paramTerminate)
	}
	err = c.exec(ctx, "DROP ROLE IF EXISTS "+identifier(vendorID))
	if codeOf(err) == stillNeeded {
		return provider.Errorf(provider.Denied, "the role %q owns objects or has rights of its own, and is not dropped; give them to the owner: REASSIGN OWNED BY %s TO %s; DROP OWNED BY %s",
			vendorID, identifier(vendorID), identifier(c.owner), identifier(vendorID))
	}
	if err != nil {
		return classify(ctx, provider.Transient, err)
	}
	return nil
}

// Identify returns the name of the role.
func (driver) Identify(_ provider.Env, p secret.Parts) (string, bool) {
	v, ok := p[partUser]
	if !ok || v.IsZero() {
		return "", false
	}
	return string(v.Reveal()), true
}

// Sessions counts the role's sessions: they were all opened with its password.
func (driver) Sessions(ctx context.Context, env provider.Env, vendorID string, _ time.Time) (provider.Sessions, error) {
	ctx, c, err := manage(ctx, env)
	if err != nil {
		return provider.Sessions{}, err
	}
	defer c.close(ctx)
	return c.sessions(ctx, vendorID)
}

func (c *conn) sessions(ctx context.Context, role string) (provider.Sessions, error) {
	rows, err := c.rows(ctx, `SELECT count(*), coalesce(ceil(extract(epoch FROM clock_timestamp() - min(backend_start)))::bigint, 0) FROM pg_stat_activity WHERE usename = $1`, role)
	if err != nil {
		return provider.Sessions{}, err
	}
	if len(rows) == 1 && len(rows[0]) == 2 {
		n, err1 := strconv.Atoi(string(rows[0][0]))
		age, err2 := strconv.ParseInt(string(rows[0][1]), 10, 64)
		if err1 == nil && err2 == nil {
			return provider.Sessions{Open: n, Exact: true, Oldest: time.Duration(age) * time.Second}, nil
		}
	}
	return provider.Sessions{}, provider.Errorf(provider.Denied, "PostgreSQL answered a count of sessions that cannot be read")
}
