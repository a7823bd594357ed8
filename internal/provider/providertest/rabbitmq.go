package providertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// TB is the part of testing.TB that the helpers here need, so that programs
// that measure can use them too.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// rabbitScript starts a node in the foreground as whoever calls it.
const rabbitScript = "/usr/lib/rabbitmq/bin/rabbitmq-server"

// startTimeout bounds how long a broker may take to answer.
const startTimeout = 3 * time.Minute

// RabbitMQ starts a RabbitMQ broker of its own with the management API on free
// loopback ports and in temporary directories, and stops it when t ends. It
// takes about 15 s: start it once per test binary. base has no slash at its
// end; user and password are an administrator's. Where Debian's
// rabbitmq-server is not installed, t fails and says how to get it.
func RabbitMQ(t TB) (base, user, password string) {
	t.Helper()
	if _, err := os.Stat(rabbitScript); err != nil {
		t.Fatalf("rabbitmq-server is not installed; run: make deps")
	}
	ports, err := freePorts(4)
	if err != nil {
		t.Fatalf("finding free ports: %v", err)
	}
	b := &broker{dir: t.TempDir(), epmd: ports[0], dist: ports[1], amqp: ports[2], http: ports[3]}
	// The directory must outlive the broker: cleanups run last in, first out.
	t.Cleanup(func() {
		if err := b.stop(); err != nil {
			t.Logf("stopping rabbitmq: %v", err)
		}
	})
	if err := b.start(); err != nil {
		t.Fatalf("starting rabbitmq: %v\n%s", err, b.log())
	}
	return b.base(), "guest", "guest"
}

// freePorts returns n TCP ports of 127.0.0.1 that nobody listens on.
func freePorts(n int) ([]int, error) {
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out, nil
}

// broker is one RabbitMQ node with an epmd of its own.
type broker struct {
	dir                    string
	epmd, dist, amqp, http int

	server, mapper *exec.Cmd
	ended          chan struct{} // closed when the server process ended
	out            buffer
}

// buffer is what the processes print.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *broker) log() string {
	b.out.mu.Lock()
	defer b.out.mu.Unlock()
	s := b.out.b.String()
	return s[max(0, len(s)-4000):]
}

func (b *broker) base() string { return "http://127.0.0.1:" + strconv.Itoa(b.http) }

// environment of the broker: nothing outside dir is written, nothing off
// loopback is listened on.
func (b *broker) environment() []string {
	p := strconv.Itoa
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG=C.UTF-8",
		"HOME=" + b.dir,
		"RABBITMQ_NODENAME=t" + p(b.dist) + "@localhost",
		"RABBITMQ_MNESIA_BASE=" + filepath.Join(b.dir, "mnesia"),
		"RABBITMQ_LOG_BASE=" + filepath.Join(b.dir, "log"),
		"RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE=" + filepath.Join(b.dir, "pid"),
		"RABBITMQ_CONFIG_FILE=" + filepath.Join(b.dir, "rabbitmq"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + filepath.Join(b.dir, "none.config"),
		"RABBITMQ_CONF_ENV_FILE=" + filepath.Join(b.dir, "none.conf"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + filepath.Join(b.dir, "plugins"),
		"RABBITMQ_GENERATED_CONFIG_DIR=" + filepath.Join(b.dir, "generated"),
		"RABBITMQ_DIST_PORT=" + p(b.dist),
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_EPMD_PORT=" + p(b.epmd),
	}
}

func (b *broker) start() error {
	files := map[string]string{
		"rabbitmq.conf":  fmt.Sprintf("listeners.tcp.1 = 127.0.0.1:%d\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = %d\nlog.console.level = warning\n", b.amqp, b.http),
		"plugins":        "[rabbitmq_management].\n",
		".erlang.cookie": "COOKIE" + strconv.Itoa(b.dist),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o400); err != nil {
			return err
		}
	}
	// An epmd of its own, in the foreground, so that it can be stopped by pid.
	b.mapper = b.command("epmd", "-address", "127.0.0.1", "-port", strconv.Itoa(b.epmd))
	if err := b.mapper.Start(); err != nil {
		b.mapper = nil
		return fmt.Errorf("epmd: %w", err)
	}
	b.server = b.command(rabbitScript)
	if err := b.server.Start(); err != nil {
		b.server = nil
		return fmt.Errorf("server: %w", err)
	}
	b.ended = make(chan struct{})
	go func() {
		_ = b.server.Wait() // its log says why
		close(b.ended)
	}()
	return b.await()
}

// command returns a command in a process group of its own.
func (b *broker) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(name, args...) //nolint:gosec // fixed names
	c.Env, c.Dir = b.environment(), b.dir
	c.Stdout, c.Stderr = &b.out, &b.out
	c.SysProcAttr = ownGroup()
	c.WaitDelay = time.Second
	return c
}

// await waits until the management API knows the administrator.
func (b *broker) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base()+"/api/whoami", nil)
		if err != nil {
			return err
		}
		req.SetBasicAuth("guest", "guest")
		if resp, err := tr.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-b.ended:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return fmt.Errorf("no answer within %s", startTimeout)
		case <-tick.C:
		}
	}
}

// stop ends the broker and its epmd, by their own process groups.
func (b *broker) stop() error {
	var errs []error
	if b.server != nil {
		_ = syscall.Kill(-b.server.Process.Pid, syscall.SIGTERM) // gone already: fine
		select {
		case <-b.ended:
		case <-time.After(20 * time.Second):
			errs = append(errs, errors.New("it did not stop when asked"))
		}
		_ = syscall.Kill(-b.server.Process.Pid, syscall.SIGKILL)
		<-b.ended
		errs = append(errs, b.sweep())
	}
	if b.mapper != nil {
		_ = syscall.Kill(-b.mapper.Process.Pid, syscall.SIGKILL)
		_ = b.mapper.Wait() // killed: its state says so
	}
	return errors.Join(errs...)
}

// sweep ends what the broker started in groups of its own: processes that run
// in its directory.
func (b *broker) sweep() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || b.mapper != nil && pid == b.mapper.Process.Pid {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && strings.Contains(string(env), "RABBITMQ_MNESIA_BASE="+filepath.Join(b.dir, "mnesia")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return nil
}
