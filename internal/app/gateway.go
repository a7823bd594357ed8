package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/gateway/nethttp"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
)

// cacheFile is the name of the gateway's sealed cache in the data directory.
const cacheFile = "gateway.cache"

// registerLater registers the gateway's token as soon as the store takes it.
func (a *App) registerLater(ctx context.Context, t access.Token) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := registerToken(ctx, a.store, t); err == nil {
			a.log.Info("the gateway follows the store again")
			return
		}
	}
}

// startGateway starts the gateway of this process. It uses the same line as a
// remote one, straight into the handler, and returns when it can serve.
func (a *App) startGateway(ctx, run context.Context) error {
	tok, hash, err := client.NewToken("")
	if err != nil {
		return err
	}
	name := a.own(gatewayName)
	own := access.Token{Name: name, Hash: hash, Role: access.RoleGateway, Kind: key.KindGateway,
		Grants: []access.Grant{{Environment: "*", Services: []string{"*"}}}, By: access.System.Name}
	if err := registerToken(ctx, a.store, own); err != nil {
		cache := filepath.Join(a.set.Data, "gateway.cache")
		if _, gone := os.Stat(cache); gone != nil || !errors.Is(err, key.ErrFull) && !errors.Is(err, key.ErrUnavailable) {
			return fmt.Errorf("registering the gateway: %w", err)
		}
		// It has keys, and callers that need them: it serves from its cache.
		a.log.Warn("the gateway serves from its cache and follows the store later", "error", err)
		a.spawn(func() { a.registerLater(run, own) })
	}
	cacheKey, err := link.LoadOrCreateCacheKey(filepath.Join(a.set.Config, "gateway-cache.key"))
	if err != nil {
		return err
	}
	b := make([]byte, 8)
	_, _ = rand.Read(b)
	boot := hex.EncodeToString(b)
	a.link, err = link.New(link.Config{Server: "http://keybaton.local", Token: tok, Transport: link.HandlerTransport(a.handler),
		CachePath: filepath.Join(a.set.Data, cacheFile), CacheKey: cacheKey, Consumer: name, Boot: boot, Every: a.set.Report, Now: a.set.clock,
		Event: func(e link.Event) {
			if e.Err != nil {
				a.log.Warn("gateway line", "event", string(e.Kind), "revision", e.Revision.String(), "error", e.Err)
			}
		}})
	if err != nil {
		return err
	}
	a.core = gateway.New(gateway.Config{Consumer: name, Boot: boot, Booted: time.Now(), Now: a.set.clock, ProbeEvery: a.set.Probe})
	h, err := nethttp.New(nethttp.Config{Core: a.core, Now: a.set.clock})
	if err != nil {
		return err
	}
	first := make(chan struct{})
	installed := false
	a.spawn(func() {
		var last int64
		err := a.link.Run(run, func(f link.Frame) error {
			if err := a.core.Install(f); err != nil {
				return err
			}
			if !installed {
				installed = true
				close(first)
			}
			return nil
		}, a.core.Pinned, func(seq int64, elapsed time.Duration) evidence.Report {
			if seq > last {
				a.core.Reported(last) // the line asks for the next only when the last was taken
				last = seq
			}
			return a.core.Report(seq, elapsed)
		})
		if err != nil {
			a.log.Error("gateway line", "error", err)
		}
	})
	a.spawn(func() { a.core.RunProbes(run, h.Vendors()) })
	select {
	case <-first:
	case <-ctx.Done():
		return fmt.Errorf("waiting for the gateway's first keys: %w", ctx.Err())
	}
	a.serveWith(a.gw, h.Server())
	return nil
}
