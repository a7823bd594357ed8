package app

import (
	"errors"

	"github.com/keybaton/keybaton/internal/key"
)

// Explain splits an error into what went wrong and the next step for whoever
// reads it, and says whether the input was wrong.
func Explain(err error) (what, next string, input bool) {
	what = err.Error()
	if h := (*key.Hint)(nil); errors.As(err, &h) {
		next = h.Next
		if n := len(what) - len(next) - 2; n > 0 && what[n:] == "; "+next {
			what = what[:n]
		}
	}
	return what, next, errors.Is(err, key.ErrInvalid)
}
