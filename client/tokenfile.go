package client

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/keybaton/keybaton/secret"
)

// TokenHash returns the hash that a server stores of t: hex SHA-256.
func TokenHash(t secret.Value) string {
	b := t.Reveal()
	defer clear(b)
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// WriteTokenFile writes t to a new file of mode 0600, in a directory that it
// makes with mode 0700 if needed. The file is whole or not there.
func WriteTokenFile(path string, t secret.Value) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	b := append(t.Reveal(), '\n')
	defer clear(b)
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// ReadTokenFile reads a token from a file that only its owner can read. An
// empty file is an error, and so is a damaged token, see [CheckToken].
func ReadTokenFile(path string) (secret.Value, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return secret.Value{}, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return secret.Value{}, fmt.Errorf("%s can be read by others; make it private: chmod 600 %s", path, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return secret.Value{}, err
	}
	defer clear(b)
	t := secret.FromString(strings.TrimSpace(string(b)))
	if t.IsZero() {
		return secret.Value{}, fmt.Errorf("%s is empty", path)
	}
	if err := CheckToken(t); err != nil {
		return secret.Value{}, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// Authorize makes req carry the token t as its bearer token, in the place where
// an SDK puts the vendor's key.
func Authorize(req *http.Request, t secret.Value) {
	req.Header.Set("Authorization", "Bearer "+string(t.Reveal()))
}
