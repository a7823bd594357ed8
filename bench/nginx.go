//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// nginxConf does by hand what the gateway does: it takes the caller's token
// off, puts the key on, and asks again with the second key when the first is
// refused. It keeps connections to the upstream open, and logs nothing.
const nginxConf = `worker_processes 1;
daemon off;
%[4]s
pid %[1]s/nginx.pid;
error_log %[1]s/error.log crit;
events { worker_connections 4096; }
http {
	access_log off;
	keepalive_requests 1000000000;
	keepalive_timeout 300s;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	upstream vendor { server %[3]s; keepalive 512; keepalive_requests 1000000000; }
	proxy_http_version 1.1;
	server {
		listen %[2]s;
		location /billing/ {
			proxy_set_header Connection "";
			proxy_set_header Host %[3]s;
			proxy_set_header Authorization "Bearer KEY-A";
			proxy_intercept_errors on;
			error_page 401 403 = @fallback;
			proxy_pass http://vendor/;
		}
		location @fallback {
			rewrite ^/billing(/.*)$ $1 break;
			proxy_set_header Connection "";
			proxy_set_header Host %[3]s;
			proxy_set_header Authorization "Bearer KEY-B";
			proxy_pass http://vendor;
		}
	}
}
`

var errNoNginx = errors.New("nginx is missing: sh scripts/deps.sh bench")

func nginxPath() (string, error) {
	for _, name := range []string{"nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", errNoNginx
}

// startNginx starts nginx in front of the upstream and returns its base URL.
func (b *bench) startNginx(ctx context.Context, upstream string) (*child, string, error) {
	program, err := nginxPath()
	if err != nil {
		return nil, "", err
	}
	dir := filepath.Join(b.dir, "nginx")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, "", err
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, addr, upstream, user), 0o644); err != nil {
		return nil, "", err
	}
	c, err := b.start("nginx", partyCPU, os.Stderr, program, "-c", conf, "-p", dir, "-e", filepath.Join(dir, "error.log"))
	if err != nil {
		return nil, "", err
	}
	base := "http://" + addr
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		_, err := get(ctx, base+"/billing/v1/data", "")
		if err == nil {
			return c, base, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-c.done:
			return nil, "", fmt.Errorf("nginx ended: %w", errors.Join(c.err, err))
		case <-ctx.Done():
			_ = c.stop()
			return nil, "", fmt.Errorf("waiting for nginx: %w", err)
		}
	}
}

// freeAddr returns a loopback address at which nobody listens just now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
