package explore_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/rotation"
)

var (
	policy = rotation.Policy{Soak: rotation.Soak{For: tick, Requests: 1, Probes: 1}, Quiet: tick, Watch: tick, ProbeOK: 1, Deadline: 2 * tick}.WithDefaults()
	plain  = rotation.Abilities{Issue: true, Revoke: true, List: true, Probe: true, Spacing: time.Second, DeadOK: 1}
)

func able(change func(*rotation.Abilities)) rotation.Abilities {
	c := plain
	change(&c)
	return c
}

var (
	disables = able(func(c *rotation.Abilities) { c.Disable = true })
	lists    = able(func(c *rotation.Abilities) { c.Probe = false })
	blind    = able(func(c *rotation.Abilities) { c.List = false })
	twoKeys  = able(func(c *rotation.Abilities) { c.Max = 2 })
	slow     = able(func(c *rotation.Abilities) { c.Early, c.Late = tick, tick })
)

// configs are the worlds that are explored. Each has one gateway unless it says
// otherwise; messages arrive late, twice, in another order or never in all.
func configs() []config {
	cs := []config{
		{Name: "nothing goes wrong but the line", Followers: 2},
		{Name: "servers die and stall", Crashes: 1, Stalls: 1},
		{Name: "a server dies, an answer is lost", Crashes: 1, Losses: 1},
		{Name: "two answers are lost, one create is refused", Losses: 2, Refuses: 1},
		{Name: "a vendor that cannot list loses an answer", Can: blind, Losses: 1, Crashes: 1, Foreign: true, Approves: true},
		{Name: "a vendor without a probe", Can: lists, Crashes: 1, Losses: 1, Approves: true},
		{Name: "a vendor that disables", Can: disables, Crashes: 1, Losses: 1},
		{Name: "a vendor that disables, and a rollback", Can: disables, Rollbacks: 1, Losses: 1},
		{Name: "a vendor that is slow, and a key that never works", Can: slow, Spoils: 1, Crashes: 1},
		{Name: "a vendor that is slow, and a rollback", Can: slow, Rollbacks: 1},
		{Name: "a key that works for the server alone", Can: slow, Spoils: 1, Elsewhere: true, Idle: true},
		{Name: "a vendor that lies", Lies: true, Foreign: true, Losses: 1, Crashes: 1},
		{Name: "a vendor with room for two", Can: twoKeys, Losses: 1, Refuses: 1},
		{Name: "a spare at a vendor with room for two", Can: twoKeys, Spare: true, Crashes: 1, Losses: 1, Rollbacks: 1},
		{Name: "a spare is issued", Kind: rotation.Spare, Losses: 1, Crashes: 1, Rollbacks: 1},
		{Name: "a dead primary and a spare", DeadFirst: true, Spare: true, Losses: 1},
		{Name: "somebody else revokes a key", Kills: 1, Idle: true},
		{Name: "somebody else revokes a key, and a rollback", Kills: 1, Rollbacks: 1, Idle: true},
		{Name: "a rollback while a server dies", Rollbacks: 1, Crashes: 1},
		{Name: "a rollback while a server stalls", Rollbacks: 1, Stalls: 1},
		{Name: "a rollback of two gateways", Rollbacks: 1, Followers: 2},
		{Name: "an emergency", Kind: rotation.Emergency, Crashes: 1, Losses: 1},
		{Name: "an emergency with a spare", Kind: rotation.Emergency, Can: twoKeys, Spare: true, Losses: 1, Crashes: 1},
		{Name: "an emergency supersedes", Emergencies: 1},
		{Name: "gateways start again with what is on their disks", Restarts: 2, Followers: 2},
		{Name: "requests outlive a revision", Pins: true, Restarts: 1, Rollbacks: 1},
		{Name: "an agent whose child keeps its key", Followers: 2, Clients: 1, Pins: true},
		{Name: "two processes of one identity", Followers: 2, Twins: true, Restarts: 1},
		{Name: "readers", Readers: 2, Approves: true},
		{Name: "a reader, and a rollback", Readers: 1, Rollbacks: 1},
		{Name: "a key that was set by a person", Copies: true, Crashes: 1, Losses: 1, Approves: true},
		{Name: "the store begins an epoch", Epochs: 1, Restarts: 1},
	}
	for i := range cs {
		cs[i] = cs[i].filled()
	}
	return cs
}

func (c config) filled() config {
	if c.Followers == 0 && !c.Alone {
		c.Followers = 1
	}
	if c.Can.Spacing == 0 {
		c.Can = plain
	}
	c.Policy = policy
	return c
}

// bound returns how many states of each world are visited: few under the race
// detector, which has nothing to find here; all when asked.
func bound(t *testing.T) int {
	switch v := os.Getenv("KEYBATON_EXPLORE"); v {
	case "":
		return few
	case "all":
		return 0
	default:
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("KEYBATON_EXPLORE is %q; say all, or how many states of each world", v)
		}
		return n
	}
}

// TestThePromisesHoldInEveryState visits the states of each world, breadth
// first. It visits [few] of each; KEYBATON_EXPLORE=all visits all of them, and a
// number that many.
func TestThePromisesHoldInEveryState(t *testing.T) {
	began, states := time.Now(), 0
	for _, c := range configs() {
		t.Run(c.Name, func(t *testing.T) {
			r := explore(c, bound(t), 300)
			report(t, r)
			states += r.states
			if r.broken != kept || r.stuck != "" {
				t.Errorf("%s%s\n%s", r.broken, r.stuck, story(r))
			}
		})
	}
	t.Logf("%d states in %.1f s", states, time.Since(began).Seconds())
}
