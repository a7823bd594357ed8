// Package sqlstore is the store in SQL: all of it, for every database. The
// openers beside it bring a connection and say what their errors mean; no SQL
// is theirs.
//
// It guarantees what the contract of package store says: a change and its audit
// entry are committed together or not at all, a revision becomes visible only
// after its commit, and what a transaction may not write it does not. States,
// slots and exclusions are constraints of the schema too. Statements are
// portable: one set of migrations and queries, no functions of one database.
//
// It leaves to the opener: the file or server, its durability, locks against
// other processes, and how many connections there are.
package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// tries is how often a transaction is run that the database could not
// serialize.
const tries = 10

// learning is how long a transaction that is over may still wait for a
// connection to prepare what it had to prepare for itself.
const learning = 2 * time.Millisecond

// Dialect is what differs between databases.
type Dialect struct {
	Goose goose.Dialect
	// Classify says what an error of the driver or the operating system means.
	Classify func(error) Problem
	// Local says that every statement answers promptly, as there is no network:
	// a cancelled context then ends a transaction between two statements, never
	// within one, and never leaves in doubt whether it was committed.
	Local bool
}

// Config is what a Store works with. Write, Read and Dialect are required; Open
// takes them over.
type Config struct {
	Write    *sql.DB // for Update and Observe; transactions begin with the lock for writing
	Read     *sql.DB // for View; may be Write
	Dialect  Dialect
	Where    string           // names the database in errors; never a password
	Now      func() time.Time // nil means time.Now
	NewEpoch bool             // the data was restored: old acknowledgements count for nothing
	Close    func() error     // called once, after the connections are closed; may be nil
}

// Store is a [store.Store] in SQL.
type Store struct {
	c           Config
	write, read *pool

	mu      sync.Mutex
	rev     key.Revision
	changed chan struct{} // closed when rev moves on
	closed  chan struct{}
	running sync.WaitGroup // transactions; added to with mu, while not closed
	once    sync.Once
	err     error // of Close
}

var _ store.Store = (*Store)(nil)

// Open brings the schema up to date and returns the store. A schema that is
// newer than this program is [key.ErrNewer] and is left alone. When Open fails,
// it closes what c holds.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Store{c: c, write: &pool{db: c.Write}, read: &pool{db: c.Read}, changed: make(chan struct{}), closed: make(chan struct{})}
	if err := s.open(ctx); err != nil {
		_ = s.Close() // the first error is the one to tell
		return nil, s.explain("opening the database", err)
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if err := s.Refresh(ctx); err != nil {
		return err
	}
	if !s.c.NewEpoch {
		return nil
	}
	return s.Update(ctx, audit.Entry{Actor: "keybaton", Action: "store.epoch"}, func(tx store.Tx) error {
		return tx.(*transaction).newEpoch()
	})
}

func (s *Store) migrate(ctx context.Context) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(s.c.Dialect.Goose, s.c.Write, dir,
		goose.WithDisableGlobalRegistry(true), goose.WithTableName("schema_version"), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	have, know, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if have > know {
		return key.WithHint(fmt.Errorf("%w: its schema has number %d, this program knows %d", key.ErrNewer, have, know),
			"run the newer keybaton that made it, or restore a backup from before the upgrade")
	}
	if have == know {
		return nil
	}
	_, err = p.Up(ctx)
	return err
}

// Refresh reads the newest revision from the database and wakes those who wait
// for one. Servers that share a database call it when another may have
// committed.
func (s *Store) Refresh(ctx context.Context) error {
	return s.View(ctx, func(tx store.Tx) error {
		r, err := tx.Revision()
		if err == nil {
			s.advance(r)
		}
		return err
	})
}

// View implements [store.Store].
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	return s.run(ctx, s.read, inView, nil, fn)
}

// Update implements [store.Store].
func (s *Store) Update(ctx context.Context, why audit.Entry, fn func(store.Tx) error) error {
	if why.Action == "" {
		return fmt.Errorf("%w: an update without an audit action", key.ErrInvalid)
	}
	return s.run(ctx, s.write, inUpdate, &why, fn)
}

// Observe implements [store.Store].
func (s *Store) Observe(ctx context.Context, fn func(store.Tx) error) error {
	return s.run(ctx, s.write, inObserve, nil, fn)
}

func (s *Store) run(ctx context.Context, p *pool, m mode, why *audit.Entry, fn func(store.Tx) error) error {
	var err error
	for range tries {
		err = s.attempt(ctx, p, m, why, fn)
		if err == nil || s.problem(err) != Retry {
			break
		}
	}
	return s.explain("", err)
}

// attempt runs one transaction. A panic of fn rolls back and goes on.
func (s *Store) attempt(ctx context.Context, p *pool, m mode, why *audit.Entry, fn func(store.Tx) error) (err error) {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	if err := ctx.Err(); err != nil {
		return err
	}
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return err
	}
	t := &transaction{ctx: ctx, sqlCtx: ctx, pool: p, mode: m}
	if s.c.Dialect.Local {
		t.sqlCtx = context.WithoutCancel(ctx)
	}
	defer func() {
		t.done = true
		if t.tx != nil {
			_ = t.tx.Rollback() // after a commit it does nothing
		}
		_ = conn.Close() // gives it back
		p.learn(t.sqlCtx, t.fresh)
	}()
	if t.tx, err = conn.BeginTx(t.sqlCtx, &sql.TxOptions{ReadOnly: m == inView}); err != nil {
		return err
	}
	t.now = time.UnixMilli(s.c.Now().UnixMilli()).UTC()
	if err := fn(t); err != nil {
		return err
	}
	if why != nil && t.err == nil {
		err = t.Audit(*why)
	}
	if t.err != nil {
		return t.err
	}
	if err != nil {
		return err
	}
	if m == inView {
		return nil
	}
	if err := t.checkSlots(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.tx.Commit(); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	if t.touched {
		s.advance(t.rev)
	}
	return nil
}

// Revision implements [store.Store].
func (s *Store) Revision() key.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}

// advance makes r the newest revision, unless a later commit was faster.
func (s *Store) advance(r key.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Compare(s.rev) <= 0 {
		return
	}
	s.rev = r
	close(s.changed)
	s.changed = make(chan struct{})
}

// Wait implements [store.Store].
func (s *Store) Wait(ctx context.Context, after key.Revision) error {
	for {
		s.mu.Lock()
		rev, changed := s.rev, s.changed
		s.mu.Unlock()
		if s.isClosed() {
			return errClosed()
		}
		if rev != after {
			return nil
		}
		select {
		case <-changed:
		case <-s.closed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enter begins a transaction, unless the store is closed.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return errClosed()
	}
	s.running.Add(1)
	return nil
}

// Close implements [store.Store].
func (s *Store) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		close(s.closed)
		s.mu.Unlock()
		s.running.Wait()
		s.read.close()
		s.write.close()
		s.err = s.c.Read.Close()
		if s.c.Write != s.c.Read {
			s.err = errors.Join(s.err, s.c.Write.Close())
		}
		if s.c.Close != nil {
			s.err = errors.Join(s.err, s.c.Close())
		}
	})
	return s.err
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

func errClosed() error { return fmt.Errorf("%w: the store is closed", key.ErrUnavailable) }

// pool is a set of connections and the statements that were prepared for them.
type pool struct {
	db    *sql.DB
	mu    sync.RWMutex
	stmts map[string]*sql.Stmt
}

func (p *pool) get(q string) *sql.Stmt {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.stmts[q]
}

// learn prepares the queries that a transaction had to prepare for itself. It
// is called when that transaction has given its connection back, as it needs
// one. When all are busy it gives up: the next transaction tries again.
func (p *pool) learn(ctx context.Context, queries []string) {
	if len(queries) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, learning)
	defer cancel()
	for _, q := range queries {
		st, err := p.db.PrepareContext(ctx, q)
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.stmts == nil {
			p.stmts = map[string]*sql.Stmt{}
		}
		if _, have := p.stmts[q]; have {
			_ = st.Close()
		} else {
			p.stmts[q] = st
		}
		p.mu.Unlock()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, st := range p.stmts {
		_ = st.Close()
	}
	p.stmts = nil
}
