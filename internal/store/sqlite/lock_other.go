//go:build !linux

package sqlite

// heldHere has nothing to say where lockFile locks nothing.
func heldHere(string) error { return nil }

// lockFile leaves the file to SQLite: here a lock of the whole file would meet
// SQLite's own.
func lockFile(string) (unlock func() error, err error) { return func() error { return nil }, nil }
