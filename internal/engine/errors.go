package engine

import (
	"errors"

	"github.com/keybaton/keybaton/internal/key"
)

func isNotFound(err error) bool { return errors.Is(err, key.ErrNotFound) }
