package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

// login is what keybaton login keeps, in a file that only its owner reads.
type login struct {
	Address string `json:"address"`
	token   secret.Value
}

// maxTokenFile bounds what is read of a token file, in bytes.
const maxTokenFile = 4 << 10

// configDir returns the directory of the user's configuration; "" when there
// is none.
func (s *session) configDir() string {
	if d := s.io.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "keybaton")
	}
	if h := s.io.Getenv("HOME"); h != "" {
		return filepath.Join(h, ".config", "keybaton")
	}
	if d := s.io.Getenv("AppData"); d != "" {
		return filepath.Join(d, "keybaton")
	}
	return ""
}

func (s *session) loginFile() string {
	if d := s.configDir(); d != "" {
		return filepath.Join(d, "login.json")
	}
	return ""
}

// loadLogin returns what login kept; the zero login when there is none.
func (s *session) loadLogin() (login, error) {
	var l login
	p := s.loginFile()
	if p == "" {
		return l, nil
	}
	b, err := os.ReadFile(p)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, &Fault{Exit: ExitFailed, What: "reading the login file: " + err.Error(), Next: "check the permissions of " + p, Err: err}
	}
	var kept struct {
		Address string `json:"address"`
		Token   string `json:"token"`
	}
	if json.Unmarshal(b, &kept) != nil {
		return l, Fail(ExitFailed, "the login file is damaged: "+p, "run keybaton login again")
	}
	return login{Address: kept.Address, token: secret.FromString(kept.Token)}, nil
}

// saveLogin keeps l; the file appears whole or not at all.
func (s *session) saveLogin(l login) (string, error) {
	p := s.loginFile()
	if p == "" {
		return "", Fail(ExitFailed, "there is no configuration directory to keep the login in", "set HOME or XDG_CONFIG_HOME, or use KEYBATON_TOKEN")
	}
	b, err := json.MarshalIndent(map[string]string{"address": l.Address, "token": string(l.token.Reveal())}, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(p), 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("keeping the login: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(p), "login-*") // created with 0600
	if err != nil {
		return "", fmt.Errorf("keeping the login: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), p)
	}
	if err != nil {
		return "", fmt.Errorf("keeping the login: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return p, nil
}

// address returns where the server is, and what login kept.
func (s *session) address() (string, login, error) {
	l, err := s.loadLogin()
	for _, a := range []string{s.addr, s.io.Getenv("KEYBATON_ADDR"), l.Address} {
		if a != "" {
			return strings.TrimSuffix(a, "/"), l, err
		}
	}
	return client.DefaultAddress, l, err
}

// client returns a client for the server that is meant, with the token that is
// meant for it: a token that login kept goes only to the server it was kept
// for, the local server's admin token only to this machine.
func (s *session) client() (*client.Client, error) {
	addr, l, err := s.address()
	if err != nil && s.file == "" && s.io.Getenv("KEYBATON_TOKEN") == "" {
		return nil, err
	}
	if _, err := s.dial(addr, secret.Value{}); err != nil { // the address is wrong, whatever the token
		return nil, err
	}
	token, err := s.token(addr, l)
	if err != nil {
		return nil, err
	}
	if err := client.CheckToken(token); err != nil {
		return nil, err
	}
	return s.dial(addr, token)
}

func (s *session) dial(addr string, token secret.Value) (*client.Client, error) {
	return client.New(client.Config{Address: addr, Token: token, HTTP: s.io.HTTP, InsecureHTTP: s.insecure, UserAgent: "keybaton/" + s.io.Version})
}

func (s *session) token(addr string, l login) (secret.Value, error) {
	if s.file != "" {
		return tokenFrom(s.file)
	}
	if t := s.io.Getenv("KEYBATON_TOKEN"); t != "" {
		return secret.FromString(strings.TrimSpace(t)), nil
	}
	if l.Address == addr && !l.token.IsZero() {
		return l.token, nil
	}
	if local(addr) {
		for _, p := range s.adminFiles() {
			t, err := tokenFrom(p)
			if err == nil || s.io.Getenv("KEYBATON_TOKEN_FILE") != "" {
				return t, err
			}
			if errors.Is(err, fs.ErrPermission) {
				return secret.Value{}, Fail(ExitDenied, "there is a local server, but its admin token may not be read: "+p,
					"run as the user that runs the server, or use a token of your own: keybaton login")
			}
		}
	}
	return secret.Value{}, Fail(ExitDenied, "there is no token for "+addr, "name the file that keybaton serve printed: --token-file PATH; or run keybaton login, or set KEYBATON_TOKEN")
}

// adminFiles lists where a local server keeps its admin token.
func (s *session) adminFiles() []string {
	if p := s.io.Getenv("KEYBATON_TOKEN_FILE"); p != "" {
		return []string{p}
	}
	var ps []string
	if d := s.configDir(); d != "" {
		ps = append(ps, filepath.Join(d, "admin.token"))
	}
	return append(ps, "/etc/keybaton/admin.token")
}

func local(addr string) bool {
	u, err := url.Parse(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return strings.EqualFold(u.Hostname(), "localhost") || ip != nil && ip.IsLoopback()
}

func tokenFrom(path string) (secret.Value, error) {
	f, err := os.Open(path)
	if err != nil {
		return secret.Value{}, &Fault{Exit: ExitDenied, What: "reading the token file: " + err.Error(), Next: "check --token-file and KEYBATON_TOKEN_FILE", Err: err}
	}
	defer f.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
	if err != nil {
		return secret.Value{}, &Fault{Exit: ExitDenied, What: "reading the token file: " + err.Error(), Err: err}
	}
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return secret.Value{}, Fail(ExitDenied, "the token file is empty: "+path, "put the token in it, and nothing else")
	}
	return secret.New(b), nil
}

// interactive reports whether a person sits at the input.
func (s *session) interactive() bool {
	if s.io.ReadSecret != nil {
		return true
	}
	f, ok := s.io.In.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// askSecret asks for a value without showing it.
func (s *session) askSecret(prompt string) (secret.Value, error) {
	if s.io.ReadSecret != nil {
		return s.io.ReadSecret(prompt)
	}
	f, ok := s.io.In.(*os.File)
	if !ok {
		return secret.Value{}, usage("there is nobody to ask for the key", "pipe it in: keybaton set SERVICE --env E < file")
	}
	_, _ = fmt.Fprint(s.io.Err, prompt)
	b, err := term.ReadPassword(int(f.Fd()))
	_, _ = fmt.Fprintln(s.io.Err)
	if err != nil {
		return secret.Value{}, fmt.Errorf("reading the input: %w", err)
	}
	defer clear(b)
	return secret.New(bytes.TrimSpace(b)), nil
}

// confirm asks a person; without one the answer is yes.
func (s *session) confirm(question string, yes bool) error {
	if yes || !s.interactive() {
		return nil
	}
	_, _ = fmt.Fprint(s.io.Err, question+" [y/N] ")
	line, err := bufio.NewReader(s.io.In).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if a := strings.ToLower(strings.TrimSpace(line)); a != "y" && a != "yes" {
		return Fail(ExitFailed, "nothing was done", "")
	}
	return nil
}

// maxInput bounds what is read of standard input or a file of keys, in bytes.
const maxInput = 1 << 20

// readAll reads the file path, or standard input for "-".
func (s *session) readAll(path string) ([]byte, error) {
	r := s.io.In
	if path != "-" {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &Fault{Exit: ExitNotFound, What: "there is no file " + path, Next: "name another one, or - for standard input", Err: err}
		}
		if err != nil {
			return nil, &Fault{Exit: ExitFailed, What: err.Error(), Next: "name a file that this user may read, or - for standard input", Err: err}
		}
		defer f.Close() //nolint:errcheck // it was only read
		if st, err := f.Stat(); err == nil && st.IsDir() {
			return nil, usage(path+" is a directory", "name a file, or - for standard input")
		}
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(b) > maxInput {
		return nil, usage("the input is longer than 1 MiB", "")
	}
	return b, nil
}
