package providertest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Redis starts a Redis server of its own on a free loopback port, with the
// manager user "admin" and the user "app", whose one password is "bootstrap",
// and stops it when t ends. Where Debian's redis-server is not installed, t
// fails and says how to get it.
func Redis(t TB) (address, admin, password string) {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatalf("redis-server is not installed; run: make deps")
	}
	ports, err := freePorts(1)
	if err != nil {
		t.Fatalf("finding free ports: %v", err)
	}
	dir := t.TempDir()
	acl := "user default off\nuser admin on >admin-password-of-the-test ~* &* +@all\nuser app on >bootstrap ~* &* +@read +@write +@connection\n"
	if err := os.WriteFile(filepath.Join(dir, "users.acl"), []byte(acl), 0o600); err != nil {
		t.Fatalf("writing the users: %v", err)
	}
	address = "127.0.0.1:" + strconv.Itoa(ports[0])
	p := &process{cmd: exec.Command(bin, "--port", strconv.Itoa(ports[0]), "--bind", "127.0.0.1", "--save", "", "--dir", dir, "--aclfile", filepath.Join(dir, "users.acl"))}
	p.start(t, "redis", func() error {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return address, "admin", "admin-password-of-the-test"
}

// process is a server that a test runs.
type process struct {
	cmd   *exec.Cmd
	grace syscall.Signal // what ends it; 0: SIGTERM
	out   buffer
	ended chan struct{}
}

// start starts the server, waits until ready returns nil, and stops it when t
// ends.
func (p *process) start(t TB, name string, ready func() error) {
	t.Helper()
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	attr := p.cmd.SysProcAttr
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setpgid = true // so that its children end with it
	p.cmd.SysProcAttr = attr
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	p.ended = make(chan struct{})
	go func() { defer close(p.ended); _ = p.cmd.Wait() }()
	t.Cleanup(p.stop)
	deadline := time.Now().Add(startTimeout)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-p.ended:
			t.Fatalf("%s has ended: %s", name, p.log())
		case <-tick.C:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v\n%s", name, err, p.log())
		}
	}
}

func (p *process) log() string {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	s := strings.TrimSpace(p.out.b.String())
	return s[max(0, len(s)-4000):]
}

func (p *process) stop() {
	sig := p.grace
	if sig == 0 {
		sig = syscall.SIGTERM
	}
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.ended
	}
}
