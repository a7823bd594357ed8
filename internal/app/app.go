package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/handover"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/server"
	"github.com/keybaton/keybaton/internal/server/consumer"
	"github.com/keybaton/keybaton/internal/server/v1"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

// Version is the version of the program; a release sets it when linking.
var Version = "0.1.0-dev"

// App is a running server.
type App struct {
	set     Settings
	log     *slog.Logger
	store   store.Store
	engine  *engine.Engine
	desk    *handover.Desk
	core    *gateway.Core
	link    *link.Link
	handler http.Handler // of the API

	name string // of this server among those on its store; "" when alone
	id   string // of its data directory; "" when alone

	api, gw   net.Listener
	tokenFile string
	tokenMade bool

	stop    context.CancelFunc
	servers []*http.Server
	wg      sync.WaitGroup
	once    sync.Once
}

// Start starts a server and returns when it answers. A failure leaves nothing
// running. The context only bounds the start; [App.Close] stops the server.
func Start(ctx context.Context, set Settings) (_ *App, err error) {
	if set, err = set.complete(); err != nil {
		return nil, err
	}
	a := &App{set: set, log: set.Log}
	if a.name, err = set.serverName(); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	a.stop = stop
	defer func() {
		if err != nil {
			_ = a.Close()
		}
	}()
	if err := a.listen(); err != nil { // first: a start that fails here leaves nothing behind
		return nil, err
	}
	if err := a.openStore(ctx); err != nil {
		return nil, err
	}
	if err := a.join(ctx, run); err != nil {
		return nil, err
	}
	ring, err := a.openKeyring(ctx)
	if err != nil {
		return nil, err
	}
	drivers, err := providers(set.Providers)
	if err != nil {
		return nil, err
	}
	a.engine = engine.New(engine.Config{Store: a.store, Keyring: ring, Providers: drivers, Poll: set.Poll, Lease: set.Lease, Forgot: func(name string) { a.desk.Forgotten(name) }, Event: func(what string, id key.CredentialID, err error) {
		a.log.Warn("engine", "what", what, "credential", id.String(), "error", err)
	}})
	if err := a.engine.Refresh(ctx); err != nil {
		return nil, fmt.Errorf("resolving the configuration: %w", err)
	}
	a.desk = handover.New(handover.Config{Store: a.store, Keyring: ring, Now: a.set.Now, Moved: a.engine.Moved})
	if a.tokenFile, a.tokenMade, err = adminToken(ctx, a.store, set.Config, a.own(adminName)); err != nil {
		return nil, err
	}
	if a.handler, err = a.routes(drivers); err != nil {
		return nil, err
	}
	a.spawn(func() { _ = a.engine.Run(run) })
	if err := a.startNotifier(run); err != nil {
		return nil, err
	}
	a.serve(a.api, a.handler)
	if a.gw != nil {
		if err := a.startGateway(ctx, run); err != nil {
			return nil, err
		}
	}
	a.spawn(func() { giveBack(run) })
	return a, nil
}

// settled is when what a start takes has been done, however much there is.
const settled = 15 * time.Second

// giveBack returns to the system the memory that the start has taken and that
// is not in use any more: with very many keys, more than what stays.
func giveBack(ctx context.Context) {
	t := time.NewTimer(settled)
	defer t.Stop()
	select {
	case <-t.C:
		debug.FreeOSMemory()
	case <-ctx.Done():
	}
}

func (a *App) spawn(fn func()) { a.wg.Go(fn) }

func (a *App) openKeyring(ctx context.Context) (*seal.Keyring, error) {
	src := dataKeys{a.store}
	m, err := seal.OpenMaster(ctx, a.set.MasterKey, src)
	if err != nil {
		return nil, fmt.Errorf("opening the master key: %w", err)
	}
	ring := seal.New(m, src)
	if err := ring.Check(ctx); err != nil {
		return nil, err
	}
	return ring, nil
}

// routes returns the handler of the API's address.
func (a *App) routes(drivers map[string]driver) (http.Handler, error) {
	srv, err := server.New(server.Config{Tokens: a.desk, Now: a.set.Now, Log: a.log})
	if err != nil {
		return nil, err
	}
	people, err := v1.New(v1.Config{Server: srv, Store: a.store, Engine: a.engine, Recipes: recipesOf(drivers), Version: Version, Now: a.set.Now})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	people.Register(mux)
	programs, err := consumer.New(consumer.Config{Server: srv, Desk: a.desk})
	if err != nil {
		return nil, err
	}
	programs.Register(mux)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", a.ready)
	mux.Handle("GET /metrics", srv.Require(a.metrics()))
	mux.Handle("/", srv.NotFound())
	return programs.Fast(srv.Wrap(mux)), nil
}

// ready says whether the store answers.
func (a *App) ready(w http.ResponseWriter, r *http.Request) {
	if err := a.store.View(r.Context(), func(store.Tx) error { return nil }); err != nil {
		http.Error(w, "the store does not answer", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

func (a *App) listen() error {
	open := func(what, flag, addr string) (net.Listener, error) {
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, key.WithHint(fmt.Errorf("%w: another program listens at %s (%s)", key.ErrLocked, addr, what), "stop it, or listen elsewhere: "+flag+" 127.0.0.1:PORT")
		}
		if err != nil {
			return nil, key.WithHint(fmt.Errorf("listening at %s: %w", addr, err), "listen elsewhere: "+flag+" 127.0.0.1:PORT")
		}
		if a.set.CertFile == "" {
			return l, nil
		}
		c, err := tls.LoadX509KeyPair(a.set.CertFile, a.set.KeyFile)
		if err != nil {
			_ = l.Close()
			return nil, key.WithHint(fmt.Errorf("reading the TLS certificate: %w", err), "check --tls-cert and --tls-key")
		}
		return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}), nil
	}
	var err error
	if a.api, err = open("the API", "--api", a.set.API); err != nil {
		return err
	}
	if a.set.Gateway == "off" {
		return nil
	}
	a.gw, err = open("the gateway", "--gateway", a.set.Gateway)
	return err
}

// serve answers at l until the server stops.
func (a *App) serve(l net.Listener, h http.Handler) {
	a.serveWith(l, &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10})
}

func (a *App) serveWith(l net.Listener, s *http.Server) {
	s.ErrorLog = slog.NewLogLogger(a.log.Handler(), slog.LevelDebug)
	a.servers = append(a.servers, s)
	a.spawn(func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("serving", "address", l.Addr().String(), "error", err)
		}
	})
}

// API returns the base URL of the API.
func (a *App) API() string { return a.scheme() + a.api.Addr().String() }

// Gateway returns the base URL of the gateway; "" without one.
func (a *App) Gateway() string {
	if a.gw == nil {
		return ""
	}
	return a.scheme() + a.gw.Addr().String()
}

func (a *App) scheme() string {
	if a.set.CertFile != "" {
		return "https://"
	}
	return "http://"
}

// TokenFile returns the path of the admin token, and whether this start made
// it.
func (a *App) TokenFile() (path string, made bool) { return a.tokenFile, a.tokenMade }

// Token returns the admin token.
func (a *App) Token() (secret.Value, error) { return client.ReadTokenFile(a.tokenFile) }

// Handler returns the handler of the API, for use in the same process.
func (a *App) Handler() http.Handler { return a.handler }

// Close stops the server: callers' requests are finished first, for at most
// ten seconds. A second call does nothing.
func (a *App) Close() error {
	var err error
	a.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// The gateway drains while the engine and the line still work.
		for i := len(a.servers) - 1; i > 0; i-- {
			err = errors.Join(err, a.servers[i].Shutdown(ctx))
		}
		a.stop()
		if len(a.servers) > 0 {
			_ = a.servers[0].Close() // event streams have no end of their own
		}
		a.wg.Wait()
		for _, l := range []net.Listener{a.api, a.gw} {
			if l != nil {
				_ = l.Close()
			}
		}
		if a.store != nil {
			err = errors.Join(err, a.store.Close())
		}
	})
	return err
}

// short returns a context for work that nobody waits for.
func (a *App) short() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Second)
}
