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
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/pressly/goose/v3"
)

// tries is how often a transaction is run that the database could not
// serialize, or whose line ended before its commit was sent.
const tries = 10

// learning is how long a transaction that is over may still wait for a
// connection to prepare what it had to prepare for itself.
const learning = 2 * time.Millisecond

// committing is how long the answer to a commit over a network is waited for.
const committing = 30 * time.Second

// Dialect is what differs between databases.
type Dialect struct {
	Goose goose.Dialect
	// Classify says what an error of the driver or the operating system means.
	Classify func(error) Problem
	// Local says that every statement answers promptly, as there is no network:
	// a cancelled context then ends a transaction between two statements, never
	// within one, and never leaves in doubt whether it was committed.
	Local bool
	// Integrity is a query whose only answer is "ok" when the database finds no
	// damage in itself; "" is none.
	Integrity string
	// Undone reports whether the error of a commit proves that nothing was
	// committed; nil: every error does.
	Undone func(error) bool
	// Prepares says that the driver prepares statements and keeps them by itself.
	Prepares bool
	// Text is how a migration's columns of TEXT are declared, so that texts
	// compare by their bytes; "" is TEXT.
	Text string
	// Snapshot is the isolation in which every statement of a View reads the
	// same; the zero value is that of the database.
	Snapshot sql.IsolationLevel
	// Reading and Writing are the first query of a View, and of an Update or
	// Observe; "" is none. It returns the time in Unix milliseconds. Writing
	// also waits until no other transaction writes.
	Reading, Writing string
	// Notify is run by a transaction that makes a revision, with that revision
	// as a text; "" is none.
	Notify string
	// Tables is a query that counts the tables named $1 in the database.
	Tables string
	// Alone runs fn while no other process brings the schema up to date; nil
	// where the opener has the database alone.
	Alone func(ctx context.Context, fn func() error) error
}

// Config is what a Store works with. Write, Read and Dialect are required; Open
// takes them over.
type Config struct {
	Write    *sql.DB // for Update and Observe; transactions begin with the lock for writing
	Read     *sql.DB // for View; may be Write
	Dialect  Dialect
	Where    string           // names the database in errors; never a password
	Now      func() time.Time // nil means that of the dialect's first query, else time.Now
	NewEpoch bool             // the data was restored: old acknowledgements count for nothing
	Close    func() error     // called once, after the connections are closed; may be nil
}

// Store is a [store.Store] in SQL.
type Store struct {
	c           Config
	write, read *pool
	schema      int64 // that Attach found

	mu      sync.Mutex
	rev     key.Revision
	changed chan struct{} // closed when rev moves on
	ahead   time.Duration // by how much the database's clock is ahead of this one
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
	s := newStore(c)
	if err := s.open(ctx); err != nil {
		_ = s.Close() // the first error is the one to tell
		return nil, s.explain("opening the database", err)
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if err := migrate(ctx, s.c); err != nil {
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
		if p := s.problem(err); p != Retry && p != Lost {
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
	t := &transaction{ctx: ctx, sqlCtx: context.WithoutCancel(ctx), pool: p, mode: m, direct: s.c.Dialect.Prepares}
	// What ends ctx ends a transaction over a network as well, but never its
	// commit: from then on nobody could say whether it was done.
	detach, end := func() bool { return true }, func() {}
	if !s.c.Dialect.Local {
		t.sqlCtx, end = context.WithCancel(t.sqlCtx)
		detach = context.AfterFunc(ctx, end)
	}
	defer func() {
		t.done = true
		if t.tx != nil {
			_ = t.tx.Rollback() // after a commit it does nothing
		}
		if s.problem(err) == Standby { // the next one may lead to the primary
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
		_ = conn.Close() // gives it back
		p.learn(t.sqlCtx, t.fresh)
		detach()
		end()
	}()
	opts := sql.TxOptions{ReadOnly: m == inView}
	if opts.ReadOnly {
		opts.Isolation = s.c.Dialect.Snapshot
	}
	if t.tx, err = conn.BeginTx(t.sqlCtx, &opts); err != nil {
		return ended(ctx, err)
	}
	if err := s.begin(t); err != nil {
		return ended(ctx, err)
	}
	if err := fn(t); err != nil {
		return err
	}
	if why != nil && t.err == nil {
		err = t.Audit(*why)
	}
	if t.touched && t.err == nil && err == nil && s.c.Dialect.Notify != "" {
		_, err = t.exec(s.c.Dialect.Notify, t.rev.String())
	}
	if t.err != nil {
		return ended(ctx, t.err)
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
	if !detach() || ctx.Err() != nil {
		return ctx.Err()
	}
	if !s.c.Dialect.Local {
		limit := time.AfterFunc(committing, end)
		defer limit.Stop()
	}
	if err := t.tx.Commit(); err != nil {
		return s.uncommitted(err)
	}
	if t.touched {
		s.advance(t.rev)
	}
	return nil
}

// begin gives t its time, and the lock for writing where the dialect has one.
func (s *Store) begin(t *transaction) error {
	first := s.c.Dialect.Writing
	if t.mode == inView {
		first = s.c.Dialect.Reading
	}
	if first == "" {
		t.now = whole(s.now())
		return nil
	}
	before := time.Now()
	n, err := one(t, func(s scan) (n int64, err error) { return n, s(&n) }, first)
	if err != nil {
		return err
	}
	if t.now = time.UnixMilli(n).UTC(); s.c.Now != nil {
		t.now = whole(s.c.Now())
	}
	if t.mode == inView { // a write may have waited for its turn
		s.mu.Lock()
		s.ahead = time.UnixMilli(n + 1).Sub(before) // n was rounded down
		s.mu.Unlock()
	}
	return nil
}

func whole(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()).UTC() }

func (s *Store) now() time.Time {
	if s.c.Now != nil {
		return s.c.Now()
	}
	return time.Now()
}

// Now returns the time that a transaction would have now, without asking the
// database: by what the last View saw of its clock, and rather too late by what
// that took than too early.
func (s *Store) Now() time.Time {
	s.mu.Lock()
	d := s.ahead
	s.mu.Unlock()
	if s.c.Now != nil {
		d = 0
	}
	return s.now().Add(d)
}

// ended returns the error of ctx where that is why a transaction ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && !ours(err) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// uncommitted says what the error of a commit means. Only the one that was
// refused may be run again; of one whose answer was lost nobody knows.
func (s *Store) uncommitted(err error) error {
	err = fmt.Errorf("committing: %w", err)
	if s.c.Dialect.Undone == nil || s.c.Dialect.Undone(err) {
		return err
	}
	return key.WithHint(fmt.Errorf("%w: %s: %w", key.ErrUncertain, s.c.Where, err),
		"look whether it was done before you try again; Keybaton does so itself with what it does by itself")
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
