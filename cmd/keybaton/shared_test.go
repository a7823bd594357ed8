package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

// node is one of several servers on one database, a process of its own.
type node struct {
	ready
	client *client.Client
	cmd    *exec.Cmd
	log    *bytes.Buffer // once the process has ended
}

// startNode starts the server name; its directories are in dir, and are the
// same each time.
func startNode(t *testing.T, dir, store, name string) *node {
	t.Helper()
	path, err := exec.LookPath("keybaton") // TestMain put the program there
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name+".json")
	_ = os.Remove(file) // of a process that was killed
	n := &node{log: &bytes.Buffer{}, cmd: exec.Command(path, "serve", "--name", name, "--data", filepath.Join(dir, name), "--config", filepath.Join(dir, name+"-config"),
		"--master-key", filepath.Join(dir, "master.key"), "--api", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--poll", "50ms", "--ready-file", file)}
	n.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "KEYBATON_STORE=" + store}
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.kill)
	within(t, "server "+name+" to answer", func() (bool, string) {
		b, err := os.ReadFile(file)
		if err != nil {
			return false, err.Error()
		}
		return json.Unmarshal(b, &n.ready) == nil, "the file is not whole"
	})
	tok, err := client.ReadTokenFile(n.TokenFile)
	if err == nil {
		n.client, err = client.New(client.Config{Address: n.API, Token: tok})
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// kill ends the process as a crash would; a second call does nothing.
func (n *node) kill() {
	if n.cmd.ProcessState == nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait() // it was killed
	}
}

// within looks again and again until done says yes; told says what it saw.
func within(t *testing.T, what string, done func() (ok bool, told string)) {
	t.Helper()
	end := time.NewTimer(2 * time.Minute)
	defer end.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		ok, told := done()
		if ok {
			return
		}
		select {
		case <-again.C:
		case <-end.C:
			t.Fatalf("waited two minutes for %s: %s", what, told)
		}
	}
}

// TestServerKilledInARotation: the server that works on a rotation is killed
// while the vendor issues the key. Another takes the rotation over when the
// lease has ended, and waits for the gateway that died with the first: it may
// still hold keys. When that is back, the rotation ends. No request failed.
//
// One that was only stopped wakes as a zombie after its lease: it gets the answer
// of a call that it made before, may record nothing of it, and asks the vendor
// for nothing more.
func TestServerKilledInARotation(t *testing.T) {
	for name, zombie := range map[string]bool{"killed": false, "stopped": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lostInARotation(t, zombie)
		})
	}
}

func lostInARotation(t *testing.T, zombie bool) {
	v := vendortest.New(vendortest.Config{})
	var hold atomic.Bool
	held, let := make(chan struct{}), make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/keys") && hold.CompareAndSwap(true, false) {
			rec := httptest.NewRecorder()
			v.ServeHTTP(rec, r) // the key is issued, and nobody is told
			close(held)
			<-let
			return
		}
		v.ServeHTTP(w, r)
	}))
	defer front.Close()
	release := sync.OnceFunc(func() { close(let) })
	defer release()

	dir, store, ctx := t.TempDir(), pgtest.Database(t), t.Context()
	u, err := url.Parse(store)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	id := client.Credential{Service: "crm", Environment: "prod"}
	b := startNode(t, dir, store, "b")
	_, err = b.client.Apply(ctx, api.Apply{Name: "keybaton.yaml", YAML: fmt.Sprintf(`version: 1
services:
  crm: {provider: simulated, params: {base_url: %q}, manager: crm-admin}
  crm-admin: {provider: manual, upstream: %q}
credentials:
  - {service: crm, environment: prod, policy: quick}
  - {service: crm-admin, environment: prod}
policies:
  quick: {soak: {for: 300ms, requests: 20, probes: 5}, quiet: 300ms, watch: 100ms}
`, front.URL, front.URL)})
	if err == nil {
		_, err = b.client.Set(ctx, client.Credential{Service: "crm-admin", Environment: "prod"}, secret.Parts{"key": secret.FromString(vendortest.DefaultManager)}, "test")
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := func(n *node, rotation string) api.Rotation {
		t.Helper()
		var r api.Rotation
		within(t, "the rotation to end", func() (bool, string) {
			got, err := n.client.Rotation(ctx, rotation)
			if err != nil {
				return false, err.Error()
			}
			r = got
			return r.Over, r.State + ": " + r.Gate.Reason + " " + strings.Join(r.Gate.Missing, ", ")
		})
		return r
	}
	first, err := b.client.Rotate(ctx, id, api.Rotate{})
	if err != nil {
		t.Fatal(err)
	}
	if r := ended(b, first.ID); r.State != "done" {
		t.Fatalf("the first rotation: %+v", r)
	}
	hold.Store(true)
	second, err := b.client.Rotate(ctx, id, api.Rotate{})
	if err != nil {
		t.Fatal(err)
	}
	<-held
	a := startNode(t, dir, store, "a")
	stop := calls(t, a, id)
	if zombie {
		if err := b.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	} else {
		b.kill()
	}

	within(t, "the other server to wait for the gateway that is gone", func() (bool, string) {
		r, err := a.client.Rotation(ctx, second.ID)
		if err != nil || r.Over {
			return false, fmt.Sprintf("%+v, %v", r, err)
		}
		told := r.State + ": " + r.Gate.Reason + " " + strings.Join(r.Gate.Missing, ", ")
		return r.State == "distributing" && strings.Contains(told, "gateway-b"), told
	})
	again := b
	if zombie {
		release() // the answer has been on its way all the time
		if err := b.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	} else {
		again = startNode(t, dir, store, "b") // at once: the name is its own, as is the directory
	}
	if r := ended(again, second.ID); r.State != "done" || r.Proof != "revoked_proven" {
		t.Errorf("got %s, %s: %s", r.State, r.Proof, r.Gate.Reason)
	}
	if total, failed := stop(); total == 0 || failed > 0 {
		t.Errorf("%d of %d requests failed", failed, total)
	}
	within(t, "the key that nobody was told of to be revoked", func() (bool, string) { return v.Active() == 1, fmt.Sprint(v.Keys()) })
	for _, n := range []*node{a, b, again} {
		n.kill()
		if strings.Contains(n.log.String(), password) {
			t.Error("a server printed the password of the database")
		}
		if t.Failed() {
			t.Logf("the log of a server:\n%s", n.log)
		}
	}
}

// calls sends requests through the gateway of n until the returned function is
// called, which says how many there were and how many were not answered 200.
func calls(t *testing.T, n *node, id client.Credential) func() (total, failed int) {
	t.Helper()
	tok, _, err := n.client.CreateToken(t.Context(), client.TokenOptions{Name: "callers", Role: "consumer", Kind: "reader", Refresh: time.Second,
		Grants: []api.Grant{{Environment: id.Environment, Services: []string{id.Service}}}})
	if err != nil {
		t.Fatal(err)
	}
	call := func() error {
		req, err := http.NewRequest(http.MethodGet, n.Gateway+"/"+id.Service+"/v1/me", nil)
		if err != nil {
			return err
		}
		client.Authorize(req, tok)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return errors.Join(err, resp.Body.Close())
	}
	within(t, "the gateway to know the token", func() (bool, string) { err := call(); return err == nil, fmt.Sprint(err) })
	ctx, cancel := context.WithCancel(context.Background())
	total, failed := 0, 0
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			total++
			if err := call(); err != nil {
				failed++
				t.Logf("a request failed: %v", err)
			}
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return func() (int, int) { stop(); return total, failed }
}
