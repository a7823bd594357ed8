package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/postgres"
	"github.com/keybaton/keybaton/internal/store/storetest"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, now func() time.Time) store.Store {
		s, err := postgres.Open(context.Background(), pgtest.Database(t), postgres.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, key.SealedFrom)
}

// open opens the store at url and closes it when the test ends.
func open(t *testing.T, url string, o postgres.Options) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	return s
}

// raw returns a connection of the test's own.
func raw(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func exec(t *testing.T, c *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := c.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func why() audit.Entry { return audit.Entry{Actor: "test", Action: "test.change"} }

// touch makes a revision.
func touch(s store.Store) error {
	return s.Update(context.Background(), why(), func(tx store.Tx) error { _, err := tx.TouchAll(); return err })
}

func setting(t *testing.T, s store.Store, name string) (v string) {
	t.Helper()
	if err := s.View(t.Context(), func(tx store.Tx) (err error) { v, err = tx.Setting(name); return err }); err != nil {
		t.Fatal(err)
	}
	return v
}

// with returns base with some parts replaced.
func with(t *testing.T, base string, change func(*url.URL)) string {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	change(u)
	return u.String()
}

// told fails the test unless err wraps want, has a next step, says says, and
// holds no password.
func told(t *testing.T, err, want error, password string, says ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	var hint *key.Hint
	if !errors.As(err, &hint) {
		t.Errorf("error %q has no next step", err)
	}
	for _, w := range says {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), password) || strings.Contains(err.Error(), url.QueryEscape(password)) || strings.Contains(fmt.Sprintf("%+v", err), password) {
		t.Errorf("error %q holds the password", err)
	}
}

func TestCannotBeOpened(t *testing.T) {
	c := pgtest.Start(t)
	good := c.Database(t)
	db := raw(t, good)
	exec(t, db, `CREATE ROLE guest LOGIN PASSWORD '`+c.Password+`'`,
		`CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'`,
		`ALTER ROLE guest SET search_path = nowhere`)
	standby := c.Standby(t)
	free := pgtest.Start(t)
	free.Down(syscall.SIGINT) // nobody listens there any more
	for name, tc := range map[string]struct {
		url  string
		want error
		says []string
	}{
		"wrong password": {with(t, good, func(u *url.URL) { u.User = url.UserPassword("postgres", c.Password+"x") }), key.ErrUnavailable,
			[]string{c.Host, "password authentication failed", "PGPASSFILE"}},
		"no database":  {c.URL("nowhere"), key.ErrUnavailable, []string{`"nowhere"`, "CREATE DATABASE"}},
		"nobody there": {with(t, good, func(u *url.URL) { u.Host = free.Host }), key.ErrUnavailable, []string{free.Host, "does not answer", "can be reached"}},
		"standby":      {with(t, good, func(u *url.URL) { u.Host = standby.Host }), key.ErrUnavailable, []string{"is a standby", "target_session_attrs=read-write"}},
		"encoding":     {c.URL("latin"), key.ErrUnavailable, []string{"LATIN1", "ENCODING 'UTF8'"}},
		"no schema":    {with(t, good, func(u *url.URL) { u.User = url.UserPassword("guest", c.Password) }), key.ErrUnavailable, []string{"search_path", "owner"}},
		"no rights": {with(t, good, func(u *url.URL) {
			u.User = url.UserPassword("guest", c.Password)
			u.RawQuery += "&search_path=public"
		}), key.ErrUnavailable, []string{"permission denied", "owner"}},
		"no number":           {strings.Replace(good, c.Host, "127.0.0.1:port", 1), key.ErrInvalid, []string{"postgres://"}},
		"odd escape":          {strings.Replace(good, ":pg-", ":%zzpg-", 1), key.ErrInvalid, []string{"percent-encoded"}},
		"slash in it":         {strings.Replace(good, ":pg-", ":/pg-", 1), key.ErrInvalid, []string{"percent-encoded"}},
		"question mark in it": {strings.Replace(good, ":pg-", ":12?pg-", 1), key.ErrInvalid, []string{"percent-encoded"}},
		"number sign in it":   {strings.Replace(good, ":pg-", ":12#pg-", 1), key.ErrInvalid, []string{"percent-encoded"}},
		"odd sslmode":         {strings.Replace(good, "sslmode=disable", "sslmode=odd", 1), key.ErrInvalid, nil},
		"TLS where is none":   {strings.Replace(good, "sslmode=disable", "sslmode=require", 1), key.ErrUnavailable, []string{"TLS"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := postgres.Open(t.Context(), tc.url, postgres.Options{})
			if err == nil {
				_ = s.Close()
				t.Fatal("the store was opened")
			}
			told(t, err, tc.want, c.Password, tc.says...)
			_, err = postgres.ReadSchema(t.Context(), tc.url)
			if name != "no rights" { // to read that there is none is allowed
				told(t, err, tc.want, c.Password, tc.says...)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := postgres.Open(ctx, good, postgres.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("opening with an ended context: got error %v", err)
	}
	if got, err := postgres.ReadSchema(t.Context(), good); err != nil || got.Have != 0 || got.Know < 1 {
		t.Errorf("the schema of a database that nobody could open: %+v, %v", got, err)
	}
}

func TestNewerSchemaIsLeftAlone(t *testing.T) {
	at := pgtest.Database(t)
	if err := open(t, at, postgres.Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	exec(t, raw(t, at), `INSERT INTO schema_version (version_id, is_applied) VALUES (99999, true)`)
	_, err := postgres.Open(t.Context(), at, postgres.Options{})
	told(t, err, key.ErrNewer, "pg-", "99999", "run the newer keybaton")
	_, err = postgres.ReadSchema(t.Context(), at)
	told(t, err, key.ErrNewer, "pg-", "99999")
}

// Servers that start at once on an empty database make the schema once.
func TestManyStartAtOnce(t *testing.T) {
	at := pgtest.Database(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			s, err := postgres.Open(context.Background(), at, postgres.Options{})
			if err == nil {
				err = errors.Join(touch(s), s.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := postgres.ReadSchema(t.Context(), at); err != nil || got.Have != got.Know {
		t.Errorf("schema: %+v, %v", got, err)
	}
	if r := open(t, at, postgres.Options{}).Revision(); r.Number != 6 {
		t.Errorf("revision %s, want one for each of 6", r)
	}
}

// Texts compare by their bytes in every column.
func TestEveryTextIsInBytes(t *testing.T) {
	at := pgtest.Database(t)
	open(t, at, postgres.Options{})
	rows, err := raw(t, at).Query(t.Context(), `SELECT table_name || '.' || column_name, COALESCE(collation_name, '') FROM information_schema.columns
		WHERE table_schema = 'public' AND data_type = 'text'`)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var column, collation string
	_, err = pgx.ForEachRow(rows, []any{&column, &collation}, func() error {
		if n++; collation != "C" {
			t.Errorf("%s has the collation %q", column, collation)
		}
		return nil
	})
	if err != nil || n < 20 {
		t.Errorf("%d columns, %v", n, err)
	}
}

func TestNewEpoch(t *testing.T) {
	at := pgtest.Database(t)
	a := open(t, at, postgres.Options{Poll: time.Hour})
	if err := touch(a); err != nil {
		t.Fatal(err)
	}
	b := open(t, at, postgres.Options{NewEpoch: true})
	if r := b.Revision(); r.Epoch < 1_700_000_000 || r.Number != 2 {
		t.Fatalf("revision %s, want an epoch that is the time, and number 2", r)
	}
	if err := waitFor(t, a, b.Revision()); err != nil {
		t.Errorf("the other server: %v", err)
	}
}

// Two servers count as one does.
func TestTwoServersWriteAsOne(t *testing.T) {
	at := pgtest.Database(t)
	stores := []*postgres.Store{open(t, at, postgres.Options{}), open(t, at, postgres.Options{})}
	const workers, each = 3, 15
	var wg sync.WaitGroup
	for _, s := range stores {
		for range workers {
			wg.Go(func() {
				for range each {
					err := s.Update(context.Background(), why(), func(tx store.Tx) error {
						v, err := tx.Setting("count")
						if err != nil {
							return err
						}
						_, err = tx.TouchAll()
						return errors.Join(err, tx.PutSetting("count", v+"x"))
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	const total = 2 * workers * each
	if got := len(setting(t, stores[0], "count")); got != total {
		t.Errorf("%d changes were counted, want %d", got, total)
	}
	err := stores[1].View(t.Context(), func(tx store.Tx) error {
		es, err := tx.Entries(0, 0)
		prev := audit.Head{}
		for _, e := range es {
			if want := audit.Chain(prev, e); want.Hash != e.Hash {
				t.Errorf("entry %d does not follow", e.Seq)
			}
			prev = e.Head()
		}
		if len(es) != total {
			t.Errorf("%d entries, want %d", len(es), total)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, s := range stores {
		if err := waitFor(t, s, key.Revision{Epoch: 1, Number: total}); err != nil {
			t.Error(err)
		}
	}
}

// waitFor waits until s knows the revision r.
func waitFor(t *testing.T, s store.Store, r key.Revision) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		have := s.Revision()
		if have.Compare(r) >= 0 {
			return nil
		}
		if err := s.Wait(ctx, have); err != nil {
			return fmt.Errorf("at %s, waiting for %s: %w", have, r, err)
		}
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.NewTimer(20 * time.Second)
	defer end.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("waited for %s", what)
		}
	}
}

// What one server commits the other learns by NOTIFY; without it by the poll;
// and by NOTIFY again.
func TestRevisionsAreTold(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	at := pgtest.Database(t)
	a, err := postgres.Open(t.Context(), at, postgres.Options{Poll: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	const poll = 2 * time.Second
	p := newProxy(t, at)
	defer p.close()
	events := make(chan error, 100)
	b, err := postgres.Open(t.Context(), p.url, postgres.Options{Poll: poll, Event: func(err error) { events <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	until(t, "it to listen", func() bool { return p.saw("LISTEN keybaton_revision") == 1 })
	learn := func() time.Duration {
		t.Helper()
		if err := touch(a); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := waitFor(t, b, a.Revision()); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun)
	}
	fast := func() {
		t.Helper()
		var all time.Duration
		for range 20 {
			all += learn()
		}
		t.Logf("told within %s, on average", all/20)
		if all/20 > poll/10 {
			t.Errorf("by NOTIFY it took %s, on average", all/20)
		}
	}
	fast()

	p.refuse(true)
	p.cut("LISTEN keybaton_revision")
	if err := <-events; err == nil {
		t.Error("the lost line was not told")
	} else {
		told(t, err, key.ErrUnavailable, "pg-", "does not answer")
	}
	if d := learn(); d > poll+5*time.Second {
		t.Errorf("by the poll it took %s", d)
	}
	p.refuse(false)
	if err := <-events; err != nil {
		t.Errorf("what was told when the line was there again: %v", err)
	}
	fast()
}

// put writes a setting, and counts how often it was tried.
func put(s store.Store, name, value string, runs *int) error {
	return s.Update(context.Background(), why(), func(tx store.Tx) error {
		*runs++
		_, err := tx.TouchAll()
		return errors.Join(err, tx.PutSetting(name, value))
	})
}

// A commit whose answer is lost may have been done or not: that is what is
// said, and nothing is done twice.
func TestLostAnswerToACommit(t *testing.T) {
	for name, done := range map[string]bool{"committed": true, "not committed": false} {
		t.Run(name, func(t *testing.T) {
			at := pgtest.Database(t)
			p := newProxy(t, at)
			defer p.close()
			s := open(t, p.url, postgres.Options{Poll: 50 * time.Millisecond})
			runs := 0
			if err := put(s, "a", "1", &runs); err != nil || runs != 1 {
				t.Fatalf("%d runs, %v", runs, err)
			}
			before := s.Revision()
			runs = 0
			p.lose("commit\x00", done)
			err := put(s, "a", "2", &runs)
			told(t, err, key.ErrUncertain, "pg-", "look whether it was done")
			if errors.Is(err, key.ErrUnavailable) || runs != 1 {
				t.Errorf("after %d runs: %v", runs, err)
			}
			want, rev := "1", before
			if done {
				want = "2"
				rev.Number++
			}
			if got := setting(t, s, "a"); got != want {
				t.Errorf("the setting is %q, want %q", got, want)
			}
			if err := waitFor(t, s, rev); err != nil { // that of the lost commit, too
				t.Error(err)
			}
			if err := put(s, "a", "3", &runs); err != nil {
				t.Fatalf("the next update: %v", err)
			}
			rev.Number++
			if s.Revision() != rev {
				t.Errorf("revision %s, want %s", s.Revision(), rev)
			}
		})
	}
}

// A line that ends before the commit was sent is got over: that transaction is
// not, and the next try is.
func TestLineEndsWithinATransaction(t *testing.T) {
	p := newProxy(t, pgtest.Database(t))
	defer p.close()
	s := open(t, p.url, postgres.Options{})
	runs := 0
	p.lose("INSERT INTO setting", false)
	if err := put(s, "a", "1", &runs); err != nil || runs != 2 {
		t.Fatalf("%d runs, %v", runs, err)
	}
	// So are lines that ended while nobody used them.
	p.cut("")
	runs = 0
	if err := put(s, "a", "2", &runs); err != nil || runs < 1 {
		t.Fatalf("%d runs, %v", runs, err)
	}
	p.cut("")
	if got := setting(t, s, "a"); got != "2" {
		t.Errorf("the setting is %q", got)
	}
	if s.Revision().Number != 2 {
		t.Errorf("revision %s, want 1.2", s.Revision())
	}
	// A database that stays away is not waited for.
	p.refuse(true)
	p.cut("")
	begun := time.Now()
	told(t, put(s, "a", "3", &runs), key.ErrUnavailable, "pg-", "does not answer")
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("that took %s to say", d)
	}
}

// What the database says becomes what it means. A trigger says it.
func TestWhatTheDatabaseSays(t *testing.T) {
	at := pgtest.Database(t)
	s := open(t, at, postgres.Options{})
	exec(t, raw(t, at), `CREATE SEQUENCE tries`, `CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF NEW.name = 'code' THEN RAISE EXCEPTION 'said so' USING ERRCODE = NEW.value; END IF;
			IF NEW.name = 'twice' AND nextval('tries') <= 2 THEN RAISE EXCEPTION 'said so' USING ERRCODE = NEW.value; END IF;
			RETURN NEW;
		END $$`, `CREATE TRIGGER say BEFORE INSERT ON setting FOR EACH ROW EXECUTE FUNCTION say()`)
	for code, tc := range map[string]struct {
		want error
		runs int
		says string
	}{
		"40001": {key.ErrUnavailable, 10, "busy"},
		"40P01": {key.ErrUnavailable, 10, "busy"},
		"55P03": {key.ErrUnavailable, 1, "busy"},
		"53100": {key.ErrFull, 1, "free space"},
		"25006": {key.ErrUnavailable, 1, "standby"},
		"42501": {key.ErrUnavailable, 1, "does not allow it"},
		"57P01": {key.ErrUnavailable, 10, "does not answer"},
		"XX001": {key.ErrUnavailable, 1, "system log"},
	} {
		runs := 0
		err := put(s, "code", code, &runs)
		told(t, err, tc.want, "pg-", tc.says, "said so")
		if runs != tc.runs {
			t.Errorf("%s: run %d times, want %d", code, runs, tc.runs)
		}
	}
	runs := 0
	if err := put(s, "code", "23514", &runs); !errors.Is(err, key.ErrInvalid) || runs != 1 {
		t.Errorf("a rule of the schema: got error %v after %d runs", err, runs)
	}
	for _, code := range []string{"40001", "40P01"} {
		exec(t, raw(t, at), `ALTER SEQUENCE tries RESTART`)
		runs := 0
		if err := put(s, "twice", code, &runs); err != nil || runs != 3 {
			t.Errorf("%s twice: %d runs, %v", code, runs, err)
		}
	}
}

// The time is the database's, whatever the clocks of servers say; Now is near
// it, and rather late than early.
func TestTheTimeIsTheDatabases(t *testing.T) {
	at := pgtest.Database(t)
	db := raw(t, at)
	s := open(t, at, postgres.Options{})
	clock := func() (n time.Time) {
		if err := db.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n.Truncate(time.Millisecond)
	}
	between := func(what string, get func() time.Time, slack time.Duration) {
		t.Helper()
		first := clock()
		now := get()
		if last := clock(); now.Before(first) || now.After(last.Add(slack)) {
			t.Errorf("%s is %s, not between %s and %s", what, now, first, last)
		}
	}
	in := func(run func(context.Context, func(store.Tx) error) error) func() time.Time {
		return func() (now time.Time) {
			if err := run(t.Context(), func(tx store.Tx) error { now = tx.Now(); return nil }); err != nil {
				t.Fatal(err)
			}
			return now
		}
	}
	between("the time of a view", in(s.View), 0)
	between("the time of an observation", in(s.Observe), 0)
	between("the time of the store", s.Now, time.Second)
}

// Every session is set up, whatever the role's defaults are.
func TestSessions(t *testing.T) {
	at := pgtest.Database(t)
	db := raw(t, at)
	exec(t, db, `ALTER DATABASE `+db.Config().Database+` SET synchronous_commit = off`)
	s := open(t, at, postgres.Options{})
	exec(t, db, `CREATE TABLE seen (name TEXT, value TEXT)`, `CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO seen SELECT n, current_setting(n) FROM unnest(ARRAY['synchronous_commit', 'idle_in_transaction_session_timeout', 'lock_timeout', 'transaction_isolation']) n;
			RETURN NEW;
		END $$`, `CREATE TRIGGER look BEFORE INSERT ON setting FOR EACH ROW EXECUTE FUNCTION look()`)
	runs := 0
	if err := put(s, "a", "1", &runs); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"synchronous_commit": "on", "idle_in_transaction_session_timeout": "30s", "lock_timeout": "30s", "transaction_isolation": "read committed"} {
		var got string
		if err := db.QueryRow(t.Context(), `SELECT value FROM seen WHERE name = $1`, name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
}
