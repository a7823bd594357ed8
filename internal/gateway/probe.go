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
	e.slot.use.probing.Store(false)
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
	at := int64(c.elapsed(now))
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
			if sl == nil || ask.Version.Credential != lc.ID || sl.use.oks() >= ask.OK || at < sl.use.nextProbe.Load() {
				continue
			}
			if !sl.use.probing.CompareAndSwap(false, true) {
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
	u := e.slot.use
	defer e.drop()
	res, err := e.probe.DoRendered(ctx, rt, e.slot.key)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		res = call.ProbeResult{Outcome: evidence.Other}
	}
	u.probes.add(res.Outcome)
	u.lastProbe.Store(&res.Outcome)
	if res.Outcome == evidence.Auth || res.Outcome == evidence.Perm {
		u.refused(res.Text)
	}
	at := c.elapsed(c.cfg.Now())
	wait := c.cfg.ProbeEvery
	if res.Outcome == evidence.OK {
		u.misses.Store(0)
		if u.suspect.Load() {
			u.due.Store(int64(at)) // worth another try
		}
	} else {
		n := min(u.misses.Add(1), 6)
		most := 8 * c.cfg.ProbeEvery
		if res.Outcome == evidence.Rate {
			most = 64 * c.cfg.ProbeEvery
		}
		wait = min(c.cfg.ProbeEvery<<n, most)
	}
	u.nextProbe.Store(int64(at + wait))
}
