package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
)

// ready is what --ready-file tells: it is there while the server answers.
type ready struct {
	API       string `json:"api"`
	Gateway   string `json:"gateway,omitempty"`
	TokenFile string `json:"token_file"`
	PID       int    `json:"pid"`
}

// writeReady writes the file path whole or not at all, and returns what
// removes it. An empty path does nothing.
func writeReady(path string, a *app.App) (remove func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	token, _ := a.TokenFile()
	if token, err = filepath.Abs(token); err == nil {
		var b []byte
		if b, err = json.Marshal(ready{API: a.API(), Gateway: a.Gateway(), TokenFile: token, PID: os.Getpid()}); err == nil {
			err = writeWhole(path, append(b, '\n'))
		}
	}
	if err != nil {
		return nil, &cli.Fault{Exit: cli.ExitFailed, What: "writing the ready file: " + err.Error(), Next: "name a file in a directory that may be written: --ready-file FILE", Err: err}
	}
	return func() { _ = os.Remove(path) }, nil
}

// writeWhole replaces the file path in one step.
func writeWhole(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".ready-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// forgetReady removes the file of a server that ended without doing so.
func forgetReady(path string) error {
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing an old ready file: %w", err)
	}
	return nil
}
