package gateway

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
)

// maxProbes bounds how many probes run at the same time.
const maxProbes = 8

// errand is one probe that is due.
type errand struct {
	probe *call.Probe
	slot  *slot
}

// drop ends the errand.
func (e errand) drop() {
	e.slot.pins.Add(-1)
	e.slot.rival.Meter.EndProbe()
}

// RunProbes makes the probes that frames ask for, through rt, until ctx ends;
// it returns when the last of them has. Each version is probed until as many
// attempts (probes or live ones) as were asked for have answered ok to this
// boot, no more often than Config.ProbeEvery, and less often while it is
// refused.
func (c *Core) RunProbes(ctx context.Context, rt http.RoundTripper) {
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, maxProbes)
	tick := time.NewTicker(c.cfg.ProbeEvery)
	defer tick.Stop()
	for {
		for _, e := range c.errands(c.cfg.Now()) {
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				e.drop()
				continue
			}
			wg.Go(func() {
				defer func() { <-room }()
				c.run(ctx, rt, e)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-tick.C:
		}
	}
}

// errands returns the probes that are due at now, and marks them as running.
func (c *Core) errands(now time.Time) []errand {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.snap.Load()
	if s == nil {
		return nil
	}
	at := c.elapsed(now)
	var out []errand
	for i := range c.frame.Credentials {
		lc := &c.frame.Credentials[i]
		if len(lc.Asks) == 0 {
			continue
		}
		cr := s.creds[lc.ID]
		if cr == nil || cr.err != nil || cr.probe == nil {
			continue
		}
		for _, ask := range lc.Asks {
			sl := cr.all[ask.Version.Number]
			if sl == nil || ask.Version.Credential != lc.ID || !sl.rival.Meter.BeginProbe(at, ask.OK) {
				continue
			}
			sl.pins.Add(1)
			out = append(out, errand{cr.probe, sl})
		}
	}
	return out
}

// run makes one probe and counts it.
func (c *Core) run(ctx context.Context, rt http.RoundTripper, e errand) {
	defer e.drop()
	res, err := e.probe.DoRendered(ctx, rt, e.slot.key)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		res = call.ProbeResult{Outcome: evidence.Other}
	}
	e.slot.rival.Meter.Probed(res, c.elapsed(c.cfg.Now()), c.cfg.ProbeEvery)
}
