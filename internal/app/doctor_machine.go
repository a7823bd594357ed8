package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// disk looks at the free space for a directory, or for the nearest one above it
// that is there.
func (d *doctor) disk(check, dir string) {
	at, err := filepath.Abs(dir)
	for err == nil && !exists(at) && filepath.Dir(at) != at {
		at = filepath.Dir(at)
	}
	free, files, err := freeSpace(at)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
	case err != nil:
		d.fail(check, err, "run as the user that runs the server")
	case free < tooLittle:
		d.add(check, LevelError, "free space on its disk", "%s has %s left", dir, bytesText(free))
	case files == 0:
		d.add(check, LevelError, "remove files on its disk", "%s has space, but no more files can be made there", dir)
	case free < little:
		d.add(check, LevelWarning, "free space on its disk", "%s has %s left", dir, bytesText(free))
	default:
		d.ok(check, "%s has %s left", dir, bytesText(free))
	}
}

func bytesText(n uint64) string {
	for _, u := range []struct {
		of   uint64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.of {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.of), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// clock compares the clock with the newest time in the store, and asks the
// kernel whether something keeps it right.
func (d *doctor) clock(ctx context.Context) {
	const check = "clock"
	now, newest := d.o.Now(), time.Time{}
	later := func(t time.Time) {
		if t.After(newest) {
			newest = t
		}
	}
	if d.store != nil {
		err := d.store.View(ctx, func(tx store.Tx) error {
			h, err := tx.Head()
			if err != nil {
				return err
			}
			es, err := tx.Entries(h.Seq, 1)
			for _, e := range es {
				later(e.At)
			}
			bs, berr := tx.Boots()
			for _, b := range bs {
				later(b.Seen)
			}
			return errors.Join(err, berr)
		})
		if err != nil {
			d.fail(check, err, "")
			return
		}
	}
	synced, known := clockSynced()
	switch {
	case newest.Sub(now) > skew:
		d.add(check, LevelError, "set the clock of this machine right before a server starts: times in the store must not lie ahead",
			"this machine says %s, and the store was written at %s", short(now), short(newest))
	case now.Year() < 2025:
		d.add(check, LevelError, "set the clock of this machine right", "this machine says %s", short(now))
	case known && !synced:
		d.add(check, LevelWarning, "let something keep it right: systemd-timesyncd, chrony or ntpd", "%s; the kernel does not know it to be synchronized", short(now))
	case known:
		d.ok(check, "%s, synchronized", short(now))
	default:
		d.ok(check, "%s", short(now))
	}
}

// ports looks who listens at the server's addresses.
func (d *doctor) ports(ctx context.Context) {
	for _, p := range []struct{ check, addr, flag string }{{"API address", d.o.API, "--api"}, {"gateway address", d.o.Gateway, "--gateway"}} {
		if p.addr == "off" {
			continue
		}
		l, err := net.Listen("tcp", p.addr)
		switch {
		case err == nil:
			_ = l.Close() // nothing came in
			d.ok(p.check, "%s is free: no server runs there", p.addr)
		case !errors.Is(err, syscall.EADDRINUSE):
			d.fail(p.check, err, "let the server listen elsewhere: "+p.flag+" 127.0.0.1:PORT")
		case d.ours(ctx, p.addr):
			d.ok(p.check, "%s is in use by a Keybaton server", p.addr)
		default:
			d.add(p.check, LevelError, "stop it, or let the server listen elsewhere: "+p.flag+" 127.0.0.1:PORT", "%s is in use by another program", p.addr)
		}
	}
}

// ours reports whether what listens at addr is a Keybaton server: its API says
// that it lives, its gateway marks the answers that it makes itself.
func (d *doctor) ours(ctx context.Context, addr string) bool {
	code, body, head, err := d.get(ctx, addr, "/livez")
	return err == nil && (code == http.StatusOK && body == "ok\n" || head.Get("Keybaton-Error") != "")
}

// get asks a local address, by TLS where the server has a certificate. Who
// answers is not authenticated: nothing secret is sent.
func (d *doctor) get(ctx context.Context, addr, path string) (code int, body string, head http.Header, err error) {
	ctx, cancel := context.WithTimeout(ctx, connecting)
	defer cancel()
	scheme := "http://"
	if d.o.CertFile != "" {
		scheme = "https://"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+addr+path, http.NoBody)
	if err != nil {
		return 0, "", nil, err
	}
	t := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}} //nolint:gosec // see above
	resp, err := t.RoundTrip(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return resp.StatusCode, string(b), resp.Header, err
}

// server asks the running server with the token.
func (d *doctor) server(ctx context.Context) {
	const check = "server"
	c := d.o.Client
	if token := filepath.Join(d.o.Config, "admin.token"); c == nil && !exists(token) {
		d.add(check, LevelWarning, "the first start of the server makes it; or name the file: --token-file PATH", "it was not asked, as there is no %s", token)
		return
	}
	if c == nil {
		d.fail(check, d.o.ClientErr, "name the file of the admin token: --token-file PATH")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, connecting)
	defer cancel()
	st, err := c.Status(ctx)
	e := (*client.Error)(nil)
	switch {
	case client.IsCode(err, client.CodeUnreachable):
		d.add(check, LevelWarning, "start it: keybaton serve; or say where it is: --addr or KEYBATON_ADDR", "no server answers at %s", c.Address())
		return
	case errors.As(err, &e):
		next := e.Next
		if e.Code == api.CodeNoToken {
			next = "name the file of the admin token: --token-file PATH"
		}
		d.add(check, LevelError, next, "%s: %s", c.Address(), e.Detail)
		return
	case err != nil:
		d.fail(check, err, "")
		return
	}
	if st.Version != Version {
		d.add(check, LevelWarning, "restart the server with this program, or use that one", "%s runs version %s, and this program is %s", c.Address(), st.Version, Version)
	} else {
		d.ok(check, "%s answers, version %s, revision %d.%d", c.Address(), st.Version, st.Revision.Epoch, st.Revision.Number)
	}
	if d.store != nil && (key.Revision{Epoch: st.Revision.Epoch}) != (key.Revision{Epoch: d.store.Revision().Epoch}) {
		d.add(check, LevelError, "name the data directory of that server: --data DIR", "%s runs on another store than this one", c.Address())
	}
	if gap := st.Now.Sub(d.o.Now()).Abs(); gap > skew {
		d.add("clock", LevelError, "set both clocks right", "the clock of the server at %s differs by %s from this machine's", c.Address(), gap.Round(time.Second))
	}
	u, err := url.Parse(c.Address())
	if err != nil {
		return // it has just been used
	}
	code, body, err := ready(ctx, u.String()+"/readyz")
	if err == nil && code == http.StatusOK {
		d.ok("readiness", "the server is ready")
		return
	}
	if err != nil {
		body = err.Error()
	}
	d.add("readiness", LevelError, "see its log", "the server is not ready: %s", body)
}

// ready asks a URL that needs no token.
func ready(ctx context.Context, url string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return resp.StatusCode, string(b), err
}

// upstreams connects to every declared upstream, and sends nothing.
func (d *doctor) upstreams(ctx context.Context) {
	const check = "upstream"
	of := map[string][]string{} // address to credentials
	err := d.store.View(ctx, func(tx store.Tx) error {
		services, err := tx.Services()
		if err != nil {
			return err
		}
		creds, err := tx.Credentials()
		for _, c := range creds {
			up := c.Upstream
			if i := slices.IndexFunc(services, func(s key.Service) bool { return s.Name == c.ID.Service }); up == "" && i >= 0 {
				up = services[i].Call.Upstream
			}
			if up == "" {
				up = c.Call.Upstream
			}
			if up != "" {
				of[up] = append(of[up], c.ID.String())
			}
		}
		return err
	})
	if err != nil {
		d.fail(check, err, "")
		return
	}
	done := map[string]bool{}
	for _, up := range slices.Sorted(maps.Keys(of)) {
		u, err := url.Parse(up)
		if err != nil || u.Host == "" {
			d.add(check, LevelError, "mend the upstream of "+of[up][0]+" in keybaton.yaml", "%s is not a URL", up)
			continue
		}
		if done[u.Scheme+u.Host] {
			continue
		}
		done[u.Scheme+u.Host] = true
		if err := connect(ctx, u); err != nil {
			d.add(check, LevelError, "check the network, name resolution and proxies of this machine, and the upstream of "+of[up][0], "%s cannot be reached: %v", u.Host, err)
			continue
		}
		d.ok(check, "%s can be reached", u.Host)
	}
}

// connect opens a connection, with TLS where the URL says so, and closes it.
func connect(ctx context.Context, u *url.URL) error {
	ctx, cancel := context.WithTimeout(ctx, connecting)
	defer cancel()
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	if u.Scheme != "https" {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	}
	c, err := (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12}}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}
