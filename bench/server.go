//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

// environment is the one of the benchmark's credentials.
const environment = "prod"

// kb is a running keybaton serve.
type kb struct {
	*child
	api, gateway string
	client       *client.Client
}

// dirs returns the data and the configuration directory of a server.
func (b *bench) dirs(name string) (data, config string) {
	return filepath.Join(b.dir, name, "data"), filepath.Join(b.dir, name, "config")
}

// serve starts the real binary on one core and returns when it says that it
// answers.
func (b *bench) serve(ctx context.Context, name string) (*kb, error) {
	data, config := b.dirs(name)
	keep, err := b.log(name + ".log")
	if err != nil {
		return nil, err
	}
	out := newLines(keep)
	c, err := b.start("keybaton", partyCPU, out, b.binary, "serve", "--data", data, "--config", config, "--api", "127.0.0.1:0", "--gateway", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &kb{child: c}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if s.api, err = out.after(ctx, c, "API "); err == nil {
		s.gateway, err = out.after(ctx, c, "gateway ")
	}
	if err == nil {
		var tok secret.Value
		if tok, err = client.ReadTokenFile(filepath.Join(config, "admin.token")); err == nil {
			s.client, err = client.New(client.Config{Address: s.api, Token: tok})
		}
	}
	if err != nil {
		_ = s.stop()
		return nil, err
	}
	return s, nil
}

// log returns where the output of a child is kept; nil for nowhere.
func (b *bench) log(name string) (io.Writer, error) {
	if b.profile == "" {
		return nil, nil
	}
	if err := os.MkdirAll(b.profile, 0o755); err != nil {
		return nil, err
	}
	return os.Create(filepath.Join(b.profile, name))
}

// twoKeys makes s serve KEY-A as the primary and KEY-B as the fallback of each
// service, the way a person would: KEY-B is set, then KEY-A, and the rotation
// that brings it in soaks for longer than the benchmark lasts.
func (s *kb) twoKeys(ctx context.Context, yaml string, services ...string) error {
	if _, err := s.client.Apply(ctx, api.Apply{Name: "bench", YAML: yaml}); err != nil {
		return fmt.Errorf("applying the configuration: %w", err)
	}
	for _, name := range services {
		id := client.Credential{Service: name, Environment: environment}
		for _, k := range []string{keyB, keyA} {
			if _, err := s.client.Set(ctx, id, secret.Parts{"key": secret.FromString(k)}, "bench"); err != nil {
				return fmt.Errorf("setting a key of %s: %w", name, err)
			}
		}
	}
	for _, name := range services {
		if err := s.soaking(ctx, client.Credential{Service: name, Environment: environment}); err != nil {
			return err
		}
	}
	return nil
}

// install applies a configuration and sets the first key of one service.
func (s *kb) install(ctx context.Context, yaml, service, value string) error {
	if _, err := s.client.Apply(ctx, api.Apply{Name: "bench", YAML: yaml}); err != nil {
		return fmt.Errorf("applying the configuration: %w", err)
	}
	_, err := s.client.Set(ctx, client.Credential{Service: service, Environment: environment}, secret.Parts{"key": secret.FromString(value)}, "bench")
	if err != nil {
		return fmt.Errorf("setting the key of %s: %w", service, err)
	}
	return nil
}

// soaking waits until the second key is the primary and the first the fallback.
func (s *kb) soaking(ctx context.Context, id client.Credential) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		c, err := s.client.Credential(ctx, id)
		if err != nil {
			return fmt.Errorf("waiting for the keys of %s: %w", id.Service, err)
		}
		if c.Slots.Primary == 2 && c.Slots.Fallback == 1 {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			why := ""
			if c.Rotation != nil {
				why = c.Rotation.State + ": " + c.Rotation.Gate.Reason
			}
			return fmt.Errorf("waiting for the keys of %s (%s): %w", id.Service, why, ctx.Err())
		}
	}
}

// token makes a token for one consumer.
func (s *kb) token(ctx context.Context, name, kind string, refresh time.Duration, services ...string) (string, error) {
	t, _, err := s.client.CreateToken(ctx, client.TokenOptions{Name: name, Role: "consumer", Kind: kind, Refresh: refresh,
		Grants: []api.Grant{{Environment: environment, Services: services}}})
	if err != nil {
		return "", fmt.Errorf("making a token: %w", err)
	}
	return string(t.Reveal()), nil
}

// vendorProc is the upstream in its own process.
type vendorProc struct {
	*child
	addr string
}

// startVendor starts the upstream on the load's core.
func (b *bench) startVendor(ctx context.Context) (*vendorProc, error) {
	me, err := self()
	if err != nil {
		return nil, err
	}
	out := newLines(nil)
	c, err := b.start("upstream", loadCPU, out, me, "upstream", modeAll)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	addr, err := out.after(ctx, c, "upstream ")
	if err != nil {
		_ = c.stop()
		return nil, err
	}
	return &vendorProc{c, addr}, nil
}

// mode changes how the upstream treats keys.
func (v *vendorProc) mode(ctx context.Context, mode string) error {
	_, err := get(ctx, "http://"+v.addr+"/.mode/"+mode, "")
	return err
}

// counts are requests at the upstream since the last look.
type counts struct {
	Accepted int64 `json:"accepted"`
	Refused  int64 `json:"refused"`
}

func (v *vendorProc) count(ctx context.Context) (c counts, err error) {
	b, err := get(ctx, "http://"+v.addr+"/.count", "")
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	return c, err
}

// get returns the body of an answer, which must be 200.
func get(ctx context.Context, url, bearer string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, resp.Status, b)
	}
	return b, err
}
