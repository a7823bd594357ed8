// Package postgres opens the store on a PostgreSQL database, for several
// servers that share it.
//
// It guarantees what SQLite's opener does: a commit is durable when it returns,
// writes never meet, and a View sees one moment and waits for no write. Every
// Update and Observe first takes one advisory lock of the database, which its
// commit or the end of its session gives back; so a decision that was made from
// what a transaction read is still right when it is written, whichever server
// makes it, as the contract's users were written for. Views run in REPEATABLE
// READ, READ ONLY. The time of a transaction is that of the database's clock,
// so that servers whose clocks differ agree on leases.
//
// A revision that one server makes is told to the others by NOTIFY; a slow poll
// finds what that loses.
//
// It leaves to the caller: the database and its backups, and that a failover
// promotes a standby that has all that was committed (synchronous replication).
// LISTEN and the session's settings need connections of their own: a pooler
// between must pool sessions, not transactions.
package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
	"github.com/pressly/goose/v3"
)

const (
	// readers is how many Views of one server can run at once.
	readers = 8
	// connecting is how long each host is tried, unless the URL says otherwise.
	connecting = 5 * time.Second
	// oldest is the oldest PostgreSQL that can be used, as server_version_num.
	oldest = 150000
	// writeLock and schemaLock are the advisory locks of those who write, and
	// of who brings the schema up to date: "keybaton" in ASCII, and the next.
	writeLock  = 0x6b65796261746f6e
	schemaLock = writeLock + 1
	// channel is what revisions are told on.
	channel = "keybaton_revision"
)

// session is set for every connection. A server that was paused in the middle
// of a write must not keep the lock from the others, and nobody waits for it
// forever. A commit is durable, whatever the role's or the database's default.
const session = `SET idle_in_transaction_session_timeout = '30s';
	SET lock_timeout = '30s';
	SET client_min_messages = 'warning';
	SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`

const clock = `CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp()) * 1000) AS BIGINT)`

var dialect = sqlstore.Dialect{
	Goose:    goose.DialectPostgres,
	Classify: classify,
	Undone:   undone,
	Prepares: true,
	// By bytes, as in SQLite; and an index stays right when the database moves
	// to a host whose C library sorts by other rules.
	Text:     `TEXT COLLATE "C"`,
	Snapshot: sql.LevelRepeatableRead,
	Reading:  `SELECT ` + clock,
	// MATERIALIZED: the lock is taken before the clock is read.
	Writing: `WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(` + strconv.Itoa(writeLock) + `)) SELECT ` + clock + ` FROM turn`,
	Notify:  `SELECT pg_notify('` + channel + `', $1)`,
	Tables:  `SELECT COUNT(*) FROM pg_catalog.pg_class WHERE oid = to_regclass(CAST($1 AS TEXT))`,
}

// Options say how a store is opened.
type Options struct {
	Now      func() time.Time // time of transactions; nil means the database's clock
	NewEpoch bool             // the database was restored from a backup: begin the next epoch
	Poll     time.Duration    // between two looks for revisions that NOTIFY lost; default 2 s
	// Event is told when the line on which revisions are told was lost, and
	// with nil when it is there again; it must not block. Nil is told nothing.
	Event func(error)
}

// Store is a store on PostgreSQL.
type Store struct {
	*sqlstore.Store
	stop func() // ends the listener
}

// Open opens the store in the database at address: postgres://… or the keywords of
// libpq, completed from the environment as libpq does (PGHOST, PGPASSWORD,
// PGPASSFILE, PGSERVICE …). It brings the schema up to date; of several servers
// that start at once, one does that and the others wait. The password in address is
// in no error, and kept by the driver alone. Errors say what to do next:
// key.ErrInvalid for an address that is none, key.ErrNewer for a schema of a newer
// program, key.ErrUnavailable for what only the database can mend.
func Open(ctx context.Context, address string, o Options) (*Store, error) {
	c, err := connect(address)
	if err != nil {
		return nil, err
	}
	c.sql.Now, c.sql.NewEpoch = o.Now, o.NewEpoch
	if err := c.fit(ctx); err != nil {
		c.close()
		return nil, err
	}
	s, err := sqlstore.Open(ctx, c.sql)
	if err != nil {
		return nil, err
	}
	l := &listener{store: s, config: c.pgx, poll: o.Poll, event: o.Event}
	return &Store{Store: s, stop: l.start()}, nil
}

// Close implements [store.Store].
func (s *Store) Close() error {
	s.stop()
	return s.Store.Close()
}

// ReadSchema says which schema the database at address has, without changing it.
func ReadSchema(ctx context.Context, address string) (sqlstore.Schema, error) {
	c, err := connect(address)
	if err != nil {
		return sqlstore.Schema{}, err
	}
	defer c.close()
	if err := c.fit(ctx); err != nil {
		return sqlstore.Schema{}, err
	}
	return sqlstore.ReadSchema(ctx, c.sql)
}

// connection is how a database is reached.
type connection struct {
	pgx *pgx.ConnConfig
	sql sqlstore.Config
}

// connect prepares the connections to the database at address; it makes none.
func connect(address string) (*connection, error) {
	c, err := pgx.ParseConfig(address)
	if err != nil || odd(address) {
		// The text of the error may hold parts of the address, and so a password.
		return nil, key.WithHint(fmt.Errorf("%w: the address of the PostgreSQL database cannot be read", key.ErrInvalid),
			"write it like postgres://user@host:5432/database?sslmode=verify-full, with what is special in a password percent-encoded")
	}
	if c.ConnectTimeout == 0 || c.ConnectTimeout == 2*time.Minute { // the driver's default
		c.ConnectTimeout = connecting
	}
	if c.ValidateConnect == nil { // a store never works on a standby
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	c.DialFunc = dialer.DialContext
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "keybaton"
	}
	set := stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.PgConn().Exec(ctx, session).ReadAll()
		return err
	})
	to := connector{stdlib.GetConnector(*c, set)}
	write := sql.OpenDB(to)
	write.SetMaxOpenConns(1) // writes of one server wait for each other here, those of all at the lock
	read := sql.OpenDB(to)
	read.SetMaxOpenConns(readers)
	read.SetMaxIdleConns(readers)
	d := dialect
	d.Alone = func(ctx context.Context, fn func() error) error { return alone(ctx, read, fn) }
	return &connection{c, sqlstore.Config{Write: write, Read: read, Dialect: d, Where: where(c)}}, nil
}

// odd reports whether part of a password may have been taken for something else
// that is then printed: what is before an @ is a user and a password.
func odd(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Scheme != "" && (strings.Contains(u.Path, "@") || strings.Contains(u.RawQuery, "@") || u.Fragment != "")
}

// connector is the driver's, with errors for people.
type connector struct{ driver.Connector }

// Connect implements [driver.Connector].
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, unreached{err}
	}
	return conn, nil
}

func (c *connection) close() { _, _ = c.sql.Read.Close(), c.sql.Write.Close() } // nothing was written

// where names the database without user and password.
func where(c *pgx.ConnConfig) string {
	hosts := []string{net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))}
	for _, f := range c.Fallbacks {
		h := net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port)))
		if hosts[len(hosts)-1] != h { // with and without TLS
			hosts = append(hosts, h)
		}
	}
	return "the PostgreSQL database " + strconv.Quote(c.Database) + " at " + strings.Join(hosts, ",")
}

// fit checks that the server and the database can keep a store.
func (c *connection) fit(ctx context.Context) error {
	var version int
	var name, encoding, schema string
	err := c.sql.Read.QueryRowContext(ctx, `SELECT CAST(current_setting('server_version_num') AS INTEGER), current_setting('server_version'),
		current_setting('server_encoding'), COALESCE(current_schema(), '')`).Scan(&version, &name, &encoding, &schema)
	p := classify(err)
	switch {
	case err != nil:
	case version < oldest:
		p, err = sqlstore.Unfit, fmt.Errorf("it runs PostgreSQL %s", name)
	case encoding != "UTF8":
		p, err = sqlstore.Unfit, fmt.Errorf("its encoding is %s", encoding)
	case schema == "":
		p, err = sqlstore.Denied, errors.New("no schema of its search_path exists, or may be used")
	default:
		return nil
	}
	return p.Explain("opening the database", c.sql.Where, err)
}

// alone runs fn while this session has the lock for changing the schema.
func alone(ctx context.Context, db *sql.DB, fn func() error) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// The session's lock_timeout is for writes: a migration may take longer.
	if _, err := conn.ExecContext(ctx, `SET lock_timeout = 0`); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, int64(schemaLock)); err != nil {
		return err
	}
	defer func() {
		_, uerr := conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, int64(schemaLock))
		if uerr == nil {
			_, uerr = conn.ExecContext(context.WithoutCancel(ctx), `SET lock_timeout = '30s'`)
		}
		if err == nil {
			err = uerr
		}
	}()
	return fn()
}

// listener refreshes the store when another server has made a revision.
type listener struct {
	store  *sqlstore.Store
	config *pgx.ConnConfig
	poll   time.Duration
	event  func(error)
}

// Times of a listener that has lost its line.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	refreshing = 10 * time.Second
)

// start begins to listen and returns what ends it.
func (l *listener) start() (stop func()) {
	if l.poll <= 0 {
		l.poll = 2 * time.Second
	}
	if l.event == nil {
		l.event = func(error) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.look(ctx) })
	wg.Go(func() { l.listen(ctx) })
	return func() { cancel(); wg.Wait() }
}

// look polls.
func (l *listener) look(ctx context.Context) {
	tick := time.NewTicker(l.poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.refresh(ctx)
		}
	}
}

// refresh reads the revision. What fails is tried again by the next poll, and
// told by those who need the store.
func (l *listener) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, refreshing)
	defer cancel()
	_ = l.store.Refresh(ctx)
}

// listen keeps a line to the database and listens there.
func (l *listener) listen(ctx context.Context) {
	lost := false
	for wait := firstRetry; ctx.Err() == nil; wait = min(2*wait, lastRetry) {
		err := l.line(ctx, func() {
			if lost {
				l.event(nil)
			}
			wait, lost = firstRetry, false
		})
		if ctx.Err() != nil {
			return
		}
		if !lost {
			l.event(classify(err).Explain("listening for revisions", where(l.config), err))
		}
		lost = true
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// line listens on one connection until that fails.
func (l *listener) line(ctx context.Context, ready func()) error {
	conn, err := pgx.ConnectConfig(ctx, l.config)
	if err != nil {
		return unreached{err}
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(end)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	ready()
	l.refresh(ctx) // what was told before
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		if n.Payload != l.store.Revision().String() { // not one of ours
			l.refresh(ctx)
		}
	}
}
