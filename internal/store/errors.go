package store

import (
	"errors"

	"github.com/keybaton/keybaton/internal/key"
)

// ErrWrongTx is returned by a write that this kind of transaction does not
// allow: any in a View, a change of keys in an Observe. It is a mistake in the
// program, not of the person who asked.
var ErrWrongTx = errors.New("not allowed in this kind of transaction")

func isNotFound(err error) bool { return errors.Is(err, key.ErrNotFound) }

func isFenced(err error) bool { return errors.Is(err, key.ErrFenced) }
