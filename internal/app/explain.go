package app

import (
	"errors"

	"github.com/keybaton/keybaton/internal/key"
)

// Is reports the kind of an error: whether the input was wrong, or something
// was not found.
func Is(err error) (input, missing bool) {
	return errors.Is(err, key.ErrInvalid), errors.Is(err, key.ErrNotFound)
}

// Explain splits an error into what went wrong and the next step for whoever
// reads it.
func Explain(err error) (what, next string) {
	what = err.Error()
	if h := (*key.Hint)(nil); errors.As(err, &h) {
		next = h.Next
		if n := len(what) - len(next) - 2; n > 0 && what[n:] == "; "+next {
			what = what[:n]
		}
	}
	return what, next
}

// IsRefused reports whether something was refused in the present state: what is
// asked for is in use, is there already, or is another than was thought.
func IsRefused(err error) bool {
	return errors.Is(err, key.ErrConflict) || errors.Is(err, key.ErrExists) || errors.Is(err, key.ErrLocked)
}
