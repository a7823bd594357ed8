package providertest

import (
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Postgres starts a PostgreSQL server of its own on a free loopback port, with
// the superuser "admin", and stops it when t ends. Started by root it runs as
// the user postgres. Where Debian's postgresql is not installed, t fails and
// says how to get it.
func Postgres(t TB) (address, admin, password string) {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if p, err := exec.LookPath("initdb"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			bins = append(bins, filepath.Dir(p))
		}
	}
	if len(bins) == 0 {
		t.Fatalf("postgresql is not installed; run: make deps")
	}
	bin := bins[len(bins)-1]
	ports, err := freePorts(1)
	if err != nil {
		t.Fatalf("finding free ports: %v", err)
	}
	admin, password = "admin", "admin-password-of-the-test"
	dir, err := os.MkdirTemp("", "keybaton-postgres-") // t's own is not for another user to enter
	if err != nil {
		t.Fatalf("making a directory: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	pwfile := filepath.Join(dir, "password")
	if err := os.WriteFile(pwfile, []byte(password+"\n"), 0o600); err != nil {
		t.Fatalf("writing the password: %v", err)
	}
	command := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(filepath.Join(bin, name), args...)
		c.Dir = dir
		c.Env = []string{"LANG=C.UTF-8", "PATH=/usr/bin:/bin"}
		return c
	}
	var as *syscall.SysProcAttr
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatalf("PostgreSQL does not run as root, and there is no user postgres: %v", err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		for _, f := range []string{dir, pwfile} {
			if err := os.Chown(f, uid, gid); err != nil {
				t.Fatalf("giving the directory to postgres: %v", err)
			}
		}
	}
	data := filepath.Join(dir, "data")
	initdb := command("initdb", "--pgdata", data, "--username", admin, "--pwfile", pwfile, "--auth", "scram-sha-256", "--no-sync", "--no-locale", "--encoding", "UTF8")
	initdb.SysProcAttr = as
	if b, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, b)
	}
	address = "127.0.0.1:" + strconv.Itoa(ports[0])
	p := &process{cmd: command("postgres", "-D", data, "-h", "127.0.0.1", "-p", strconv.Itoa(ports[0]), "-k", "", "-c", "fsync=off", "-c", "log_statement=all"), grace: syscall.SIGINT}
	p.cmd.SysProcAttr = as
	p.start(t, "postgres", func() error {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return address, admin, password
}
