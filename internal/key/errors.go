package key

import "errors"

// The sentinels that rooms wrap and faces map to exit codes and HTTP statuses.
// A wrapped error says what was being done and what the person can do next.
var (
	ErrInvalid     = errors.New("invalid input")                 // 422: the input is wrong; nothing was done
	ErrNotFound    = errors.New("not found")                     // 404
	ErrExists      = errors.New("exists already")                // 409
	ErrConflict    = errors.New("conflict")                      // 409: refused in the present state, with the reason
	ErrDenied      = errors.New("denied")                        // 403: who asks may not
	ErrNoToken     = errors.New("no valid token")                // 401
	ErrFenced      = errors.New("the lease was lost")            // another owner took over; stop, do nothing more
	ErrStale       = errors.New("the revision has moved on")     // read again, then try again
	ErrNewer       = errors.New("made by a newer version")       // the store, a cache or a rotation is newer than this program
	ErrLocked      = errors.New("in use by another process")     // a second server on the same file
	ErrUnavailable = errors.New("unavailable at the moment")     // 503: try again; nothing was done
	ErrUncertain   = errors.New("not known whether it was done") // 504: the answer of the database was lost; look before trying again
	ErrFull        = errors.New("no space left for the data")    // 507: the disk is full; nothing was done
)

// Hint is an error with the next step for the person who reads it.
type Hint struct {
	Err  error
	Next string // a sentence or a command, without a final period
}

// WithHint returns err with the next step; nil stays nil.
func WithHint(err error, next string) error {
	if err == nil {
		return nil
	}
	return &Hint{Err: err, Next: next}
}

// Error returns the text of the error, then the next step after a semicolon.
func (h *Hint) Error() string { return h.Err.Error() + "; " + h.Next }

// Unwrap returns the error under the hint.
func (h *Hint) Unwrap() error { return h.Err }
