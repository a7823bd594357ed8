package sqlstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// Problem is what an error of a database means for the person who runs it.
type Problem int

// The problems. Retry and Lost are answered by running the transaction again.
const (
	Unknown  Problem = iota
	Retry            // serialization failure or deadlock
	Busy             // somebody else holds the database for too long
	Full             // no space left
	ReadOnly         // may not be opened or written by this user
	Damaged          // the file is not what it should be
	Broken           // the disk or the line fails
	Taken            // another server runs on it
	Rule             // a constraint of the schema was violated
	Away             // the database server does not answer
	Lost             // the line ended within a transaction, which so was not committed
	Standby          // the database server only reads
	Denied           // the database server does not let this user in, or not do that
	Missing          // there is no such database
	Unfit            // the database server cannot keep a store
)

// Explain returns err as the sentinel of key that p stands for, with what the
// person can do next. doing and where may be empty.
func (p Problem) Explain(doing, where string, err error) error {
	if where == "" {
		where = "the database"
	}
	if doing != "" {
		err = fmt.Errorf("%s: %w", doing, err)
	}
	switch p {
	case Retry, Busy:
		return key.WithHint(fmt.Errorf("%w: %s is busy: %w", key.ErrUnavailable, where, err),
			"try again; if it stays busy, see which other program has it open")
	case Full:
		return key.WithHint(fmt.Errorf("%w: %s: %w", key.ErrFull, where, err),
			"free space on its disk, then try again; nothing was written by half")
	case ReadOnly:
		return key.WithHint(fmt.Errorf("%w: %s cannot be written: %w", key.ErrUnavailable, where, err),
			"make it and its directory readable and writable for the user that runs keybaton")
	case Damaged:
		return key.WithHint(fmt.Errorf("%s is damaged or is not a Keybaton database: %w", where, err),
			"stop keybaton, keep a copy of the file, and restore the newest backup")
	case Broken:
		return key.WithHint(fmt.Errorf("%w: %s: %w", key.ErrUnavailable, where, err),
			"look at the disk and the system log, then try again")
	case Taken:
		return key.WithHint(fmt.Errorf("%w: %s: %w", key.ErrLocked, where, err),
			"stop the other server, or give this one a data directory of its own")
	case Away, Lost:
		return key.WithHint(fmt.Errorf("%w: %s does not answer: %w", key.ErrUnavailable, where, err),
			"see that PostgreSQL runs there and can be reached from here; a server that runs tries again by itself")
	case Standby:
		return key.WithHint(fmt.Errorf("%w: %s is a standby: %w", key.ErrUnavailable, where, err),
			"name the primary, or every host of the cluster: postgres://HOST1,HOST2/DATABASE?target_session_attrs=read-write")
	case Denied:
		return key.WithHint(fmt.Errorf("%w: %s does not allow it: %w", key.ErrUnavailable, where, err),
			"check user and password (the URL, PGPASSWORD or PGPASSFILE) and pg_hba.conf, and make that user the owner of the database")
	case Missing:
		return key.WithHint(fmt.Errorf("%w: %s: %w", key.ErrUnavailable, where, err),
			"create it: CREATE DATABASE name OWNER user ENCODING 'UTF8' TEMPLATE template0")
	case Unfit:
		return key.WithHint(fmt.Errorf("%w: %s cannot keep the store: %w", key.ErrUnavailable, where, err),
			"use PostgreSQL 15 or newer, and a database with ENCODING 'UTF8'")
	case Rule:
		return fmt.Errorf("%w: refused by a rule of the schema: %w", key.ErrInvalid, err)
	}
	return err
}

// problem says what err means, if it comes from the database at all.
func (s *Store) problem(err error) Problem {
	if err == nil || ours(err) {
		return Unknown
	}
	return s.c.Dialect.Classify(err)
}

func (s *Store) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	if p := s.problem(err); p != Unknown {
		return p.Explain(doing, s.c.Where, err)
	}
	if doing != "" {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return err
}

// ours reports whether err already says what it means.
func ours(err error) bool {
	for _, e := range []error{key.ErrInvalid, key.ErrNotFound, key.ErrExists, key.ErrConflict, key.ErrFenced, key.ErrStale,
		key.ErrNewer, key.ErrLocked, key.ErrFull, key.ErrUnavailable, key.ErrUncertain, store.ErrWrongTx, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
