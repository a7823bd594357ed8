//go:build !windows

// Package pgtest runs PostgreSQL for tests: a temporary cluster of Debian's
// package on a free loopback port, with databases of their own for each test.
//
// Databases are made to differ from SQLite where they can: they sort texts by
// the rules of a language. Clusters do not sync, unless a test is about that.
package pgtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long a cluster may take to answer, or to stop.
const patience = time.Minute

var (
	mu     sync.Mutex
	shared *Cluster
	serial int
)

// Main runs the tests of a binary and stops the cluster that they shared.
func Main(m interface{ Run() int }) int {
	code := m.Run()
	Stop()
	return code
}

// Stop stops the shared cluster, if one was started.
func Stop() {
	mu.Lock()
	defer mu.Unlock()
	if shared != nil {
		shared.remove()
		shared = nil
	}
}

// Database returns the URL of a new, empty database of the cluster that the
// tests of this binary share. The binary's TestMain calls [Main] or [Stop].
func Database(t testing.TB) string {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if shared == nil {
		c, err := start(nil)
		if err != nil {
			t.Fatalf("starting PostgreSQL: %v", err)
		}
		shared = c
	}
	return shared.database(t)
}

// Cluster is one PostgreSQL server. Its methods are for one goroutine.
type Cluster struct {
	Host     string // 127.0.0.1:PORT
	Password string // of the superuser postgres

	dir, bin string
	cmd      *exec.Cmd
	ended    chan struct{}
}

// Start starts a cluster that is stopped when t ends; settings are lines of
// postgresql.conf, such as "fsync = on".
func Start(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	c, err := start(settings)
	if err != nil {
		t.Fatalf("starting PostgreSQL: %v", err)
	}
	t.Cleanup(c.remove)
	return c
}

// Database returns the URL of a new, empty database.
func (c *Cluster) Database(t testing.TB) string {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	return c.database(t)
}

func (c *Cluster) database(t testing.TB) string {
	t.Helper()
	serial++
	name := fmt.Sprintf("keybaton_%d", serial)
	err := c.Exec("postgres", `CREATE DATABASE `+name+` TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'`)
	if err != nil {
		t.Fatalf("making a database: %v", err)
	}
	return c.URL(name)
}

// URL returns the URL of a database, for the superuser.
func (c *Cluster) URL(database string) string {
	return (&url.URL{Scheme: "postgres", User: url.UserPassword("postgres", c.Password), Host: c.Host, Path: "/" + database,
		RawQuery: "sslmode=disable"}).String()
}

// Exec runs one statement in a database.
func (c *Cluster) Exec(database, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.URL(database))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

// bin returns the directory of PostgreSQL's programs, the newest first.
func bin() (string, error) {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well-formed
	slices.Sort(dirs)
	slices.Reverse(dirs)
	for _, d := range dirs {
		if _, err := os.Stat(filepath.Join(d, "initdb")); err == nil {
			return d, nil
		}
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(p), nil
	}
	return "", errors.New("PostgreSQL is not installed; run: make deps")
}

func start(settings []string) (*Cluster, error) {
	c, err := prepare()
	if err != nil {
		return nil, err
	}
	b := make([]byte, 12)
	_, _ = rand.Read(b) // never fails
	c.Password = "pg-" + hex.EncodeToString(b)
	pw := filepath.Join(c.dir, "pw")
	err = os.WriteFile(pw, []byte(c.Password+"\n"), 0o600)
	if err == nil {
		err = c.own(pw)
	}
	if err == nil {
		err = c.run("initdb", "-D", c.data(), "-U", "postgres", "-N", "-A", "scram-sha-256", "--pwfile", pw, "-E", "UTF8", "--locale", "C.UTF-8")
	}
	if err == nil {
		err = c.configure(append([]string{"fsync = off", "full_page_writes = off", "max_connections = 200", "shared_buffers = 64MB",
			"wal_level = replica", "max_wal_senders = 4", "hot_standby = on", "log_min_messages = warning",
			"logging_collector = off"}, settings...))
	}
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		c.remove()
		return nil, err
	}
	return c, nil
}

// prepare makes the directory and finds a port.
func prepare() (*Cluster, error) {
	c := &Cluster{}
	var err error
	if c.bin, err = bin(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c.Host = l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	if c.dir, err = os.MkdirTemp("", "pg-"); err != nil {
		return nil, err
	}
	return c, c.own(c.dir)
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// configure appends lines to the configuration; the last of a name counts.
func (c *Cluster) configure(lines []string) error {
	_, port, err := net.SplitHostPort(c.Host)
	if err != nil {
		return err
	}
	lines = append(slices.Clone(lines), "listen_addresses = '127.0.0.1'", "port = "+port, "unix_socket_directories = ''")
	f, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	return errors.Join(err, f.Close())
}

// root is whom the server runs as when the tests run as root, which PostgreSQL
// refuses to do; nil otherwise.
func root() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

func (c *Cluster) own(path string) error {
	cred, err := root()
	if err != nil || cred == nil {
		return err
	}
	return os.Chown(path, int(cred.Uid), int(cred.Gid))
}

func (c *Cluster) command(name string, args ...string) (*exec.Cmd, error) {
	cred, err := root()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(c.bin, name), args...) //nolint:gosec // fixed names
	cmd.Dir, cmd.Env = c.dir, []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + c.dir, "PGPASSWORD=" + c.Password}
	cmd.SysProcAttr = attributes(cred)
	return cmd, nil
}

func (c *Cluster) run(name string, args ...string) error {
	cmd, err := c.command(name, args...)
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// Start starts the server, which is down, and waits until it answers.
func (c *Cluster) Start() error {
	cmd, err := c.command("postgres", "-D", c.data())
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has its own
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	c.cmd, c.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait() // its log says why
		close(ended)
	}(c.ended)
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.Exec("postgres", "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.ended:
			return fmt.Errorf("it ended at once\n%s", c.Log())
		case <-deadline.C:
			return fmt.Errorf("it does not answer: %w\n%s", err, c.Log())
		}
	}
}

// Log returns what the server printed.
func (c *Cluster) Log() string {
	b, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Down ends the server: SIGTERM waits for its clients, SIGINT does not, and
// SIGQUIT is what a crash leaves behind.
func (c *Cluster) Down(with syscall.Signal) {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(with) // it may have ended
	select {
	case <-c.ended:
	case <-time.After(patience):
		_ = c.cmd.Process.Kill()
		<-c.ended
	}
	c.cmd = nil
}

func (c *Cluster) remove() {
	c.Down(syscall.SIGINT)
	_ = os.RemoveAll(c.dir) // in the directory for temporary files
}

// Standby starts a standby of c that streams from it, and waits until it has
// caught up. Until [Cluster.Promote] it only reads.
func (c *Cluster) Standby(t testing.TB) *Cluster {
	t.Helper()
	s, err := prepare()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.remove)
	s.Password = c.Password
	_, port, _ := net.SplitHostPort(c.Host) // it listens there
	err = s.run("pg_basebackup", "-D", s.data(), "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-R", "-X", "stream", "-c", "fast", "-N")
	if err == nil {
		err = s.configure(nil)
	}
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		t.Fatalf("starting a standby: %v", err)
	}
	return s
}

// Promote makes a standby the primary.
func (c *Cluster) Promote() error {
	return c.run("pg_ctl", "promote", "-D", c.data(), "-w")
}
