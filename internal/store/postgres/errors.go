package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/keybaton/keybaton/internal/store/sqlstore"
)

// classify says what an error of PostgreSQL, or of the line to it, means. The
// codes are those of appendix A of its manual.
func classify(err error) sqlstore.Problem {
	var e *pgconn.PgError
	var connecting *pgconn.ConnectError
	isConnecting := errors.As(err, &connecting)
	switch {
	case err == nil:
		return sqlstore.Unknown
	case errors.As(err, &e):
		if p := classifyCode(e.Code); p != sqlstore.Away || isConnecting {
			return p
		}
		return sqlstore.Lost
	case isConnecting:
		if onlyStandbys(connecting) {
			return sqlstore.Standby
		}
		return sqlstore.Away
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, pgconn.ErrConnClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNREFUSED),
		errors.Is(err, syscall.ETIMEDOUT), isNet(err):
		return sqlstore.Lost
	}
	return sqlstore.Unknown
}

// unreached is why no host of a database could be used, in one line. The
// driver's text names user and database, too.
type unreached struct{ err error }

// Error returns what each host said.
func (u unreached) Error() string { return strings.Join(tries(u.err), ", ") }

// Unwrap returns the driver's error.
func (u unreached) Unwrap() error { return u.err }

// tries returns what the driver says of each host that it tried.
func tries(err error) []string {
	_, text, ok := strings.Cut(err.Error(), "`:")
	if !ok {
		text = err.Error()
	}
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// onlyStandbys reports whether every host that was tried is a standby.
func onlyStandbys(err error) bool {
	for _, l := range tries(err) {
		if !strings.Contains(l, "read only connection") { // the driver has no error of its own for it
			return false
		}
	}
	return true
}

func isNet(err error) bool {
	var n net.Error
	return errors.As(err, &n) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}

func classifyCode(code string) sqlstore.Problem {
	switch code {
	case "40001", "40P01": // serialization_failure, deadlock_detected
		return sqlstore.Retry
	case "55P03", "53300", "57014": // lock_not_available, too_many_connections, query_canceled
		return sqlstore.Busy
	case "53100": // disk_full
		return sqlstore.Full
	case "25006": // read_only_sql_transaction
		return sqlstore.Standby
	case "42501": // insufficient_privilege
		return sqlstore.Denied
	case "3D000": // invalid_catalog_name
		return sqlstore.Missing
	case "25P03", "25P04": // idle_in_transaction_session_timeout, transaction_timeout
		return sqlstore.Away
	case "22021", "22P05": // character_not_in_repertoire, untranslatable_character
		return sqlstore.Rule
	}
	switch code[:min(2, len(code))] {
	case "08", "57": // the line; the server is being stopped or started
		return sqlstore.Away
	case "23": // a constraint
		return sqlstore.Rule
	case "28": // who may come in
		return sqlstore.Denied
	case "58", "XX": // the system under it, or the database itself
		return sqlstore.Broken
	}
	return sqlstore.Unknown
}

// undone reports whether the error of a commit proves that nothing was
// committed: the server refused it in words. FATAL is no such word: a server
// that is stopped while it waits for its standby has committed.
//
// NOTE: pgconn.SafeToRetry proves nothing. When the answer to a query is lost,
// the driver (v5.12) reports that the connection was closed before.
func undone(err error) bool {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.SeverityUnlocalized == "ERROR"
	}
	return errors.Is(err, pgx.ErrTxCommitRollback)
}
