package explore_test

import "testing"

// rule is one that a test can take out.
type rule uint64

// The rules, by what happens without them.
const (
	noReconcile      rule = 1 << iota // nobody looks again for a lost answer
	noLease                           // two servers work on one credential
	noFence                           // what follows from a lost lease is committed
	callUnfenced                      // a vendor is called when the lease has ended
	intentLater                       // the intent is not durable before the call
	blindRetry                        // a create whose answer was lost is repeated
	orphanUnmarked                    // a stray is found and not marked
	noMayTouch                        // a retirement does not ask whether a rollback needs the key
	callFirst                         // a revocation is not committed before the call
	noProof                           // the vendor's word is proof
	holdStale                         // a hold does not ask whether the revision is current
	holdLater                         // a hold is recorded after the bytes leave
	holdReplaces                      // a consumer holds what it was handed last, and nothing else
	ackBeforeDisk                     // an acknowledgement leaves before the cache is on disk
	pinsUnsaid                        // an acknowledgement does not list what still runs
	ackUncovered                      // an acknowledgement need not cover the revision that emptied the slot
	oldEpochs                         // acknowledgements of an earlier epoch count
	bootsAsOne                        // two processes of one identity are one holder
	readersUnheld                     // a read is no hold
	unboundIgnored                    // who declares no refresh interval is passed over unasked
	silenceOpens                      // who has not been heard from for a while has moved
	holdersIgnored                    // a key is ended although somebody holds it
	unprobedSurvivor                  // the survivor is not probed
	staleProbes                       // a probe of the survivor stays fresh for ever
	unprobedBack                      // the old key is not probed before it comes back
	unprobedNew                       // the new key is not probed
	unseen                            // gateways need not have seen the new key work
)

// TestEachRuleIsNeeded takes out one rule of the protocol at a time, in a small
// world, and wants a promise to break; with the rule in its place the same
// search finds nothing. What each rule says, and which are not taken out, is in
// the table.
//
//	Possession
//	  a hold is durable before the bytes leave                  holdLater
//	  … on condition that the revision is still current         holdStale
//	  holds are a set                                           holdReplaces
//	  a reader's hold lasts as long as its own term             readersUnheld
//	  an undeclared interval is unverified, a person says yes   unboundIgnored
//	  a time-out opens no gate                                  silenceOpens
//	  two boots of one identity are two holders                 bootsAsOne
//	  nobody holds a key that is disabled or revoked            holdersIgnored
//	An acknowledgement
//	  promises that the cache is on disk                        ackBeforeDisk
//	  lists what running requests, or a child, still use        pinsUnsaid
//	  is of the revision that emptied the slot, or later        ackUncovered
//	  of an earlier epoch does not count                        oldEpochs
//	Intent, then act; one owner
//	  the intent is durable before the call                     intentLater
//	  disabling and revoking are committed before the call      callFirst
//	  a lost create is never repeated blindly                   blindRetry
//	  a stray is marked by its vendor id before it is touched   orphanUnmarked
//	  lost answers are looked for again on every reconcile      noReconcile
//	  one owner works on a credential                           noLease
//	  a write says which lease it follows from                  noFence
//	  a call is made only if the lease outlasts it              callUnfenced
//	Rollback
//	  only to a version that was probed just now                unprobedBack
//	  what it needs is not ended under it                       noMayTouch
//	The steps
//	  the new key is probed before it is served                 unprobedNew
//	  each gateway has seen the new key work                    unseen
//	  the survivor is probed before anything is ended           unprobedSurvivor
//	  … just now                                                staleProbes
//	  a revocation is proven                                    noProof
//
// Not taken out, or not modelled:
//
//   - Every follower acknowledges before the gates of distribute and promote
//     open: in the model no promise breaks without it, as the old key stays
//     valid and held until each has moved. It keeps a bad new key from being
//     found late.
//   - The primary is probed before a spare is displaced: the key that displaces
//     it was proven, so that nobody loses the last one.
//   - Soak, quiet windows and canary shares: they only close gates that
//     possession opens. They are in the model, at one tick each.
//   - The deadline of an emergency: it breaks the promise by name.
//   - A request to disable that takes effect after its call was given up and a
//     rollback has enabled the key again: no order of ours outruns it, so the
//     model lets only creates come late.
//   - What a person at the vendor does between our probe and our act.
//   - A late create at a vendor that cannot list: a person was asked to look.
//   - Unknown copies, of which nothing can be seen; hard roll and vendors with
//     no key API, where people do the steps; reconciliation after a restore of
//     older data: a new epoch is modelled, as one that is settled at once.
//   - That all parts of a key travel as one, the audit chain, plaintext, and the
//     number of the state machine: no state of the model could show them.
func TestEachRuleIsNeeded(t *testing.T) {
	for name, c := range map[string]config{
		"holdLater":        {without: holdLater, Rollbacks: 1},
		"holdStale":        {without: holdStale, Readers: 1},
		"holdReplaces":     {without: holdReplaces},
		"readersUnheld":    {without: readersUnheld, Readers: 1},
		"unboundIgnored":   {without: unboundIgnored, Readers: 2},
		"silenceOpens":     {without: silenceOpens},
		"bootsAsOne":       {without: bootsAsOne, Followers: 2, Twins: true},
		"holdersIgnored":   {without: holdersIgnored},
		"ackBeforeDisk":    {without: ackBeforeDisk, Restarts: 1},
		"pinsUnsaid":       {without: pinsUnsaid, Pins: true},
		"ackUncovered":     {without: ackUncovered},
		"oldEpochs":        {without: oldEpochs, Epochs: 1},
		"intentLater":      {without: intentLater, Crashes: 1},
		"callFirst":        {without: callFirst},
		"blindRetry":       {without: blindRetry, Losses: 1},
		"orphanUnmarked":   {without: orphanUnmarked, Losses: 1},
		"noReconcile":      {without: noReconcile, Losses: 1},
		"noLease":          {without: noLease | noFence},
		"noFence":          {without: noFence, Stalls: 1, Rollbacks: 1},
		"callUnfenced":     {without: callUnfenced, Stalls: 1, Rollbacks: 1, Can: disables},
		"unprobedBack":     {without: unprobedBack, Kills: 1, Rollbacks: 1, Idle: true},
		"noMayTouch":       {without: noMayTouch, Rollbacks: 1},
		"unprobedNew":      {without: unprobedNew, Spoils: 1, Alone: true, Readers: 1},
		"unseen":           {without: unseen, Spoils: 1, Elsewhere: true, Idle: true},
		"unprobedSurvivor": {without: unprobedSurvivor, Kills: 1, Idle: true},
		"staleProbes":      {without: staleProbes, Kills: 1, Idle: true},
		"noProof":          {without: noProof, Lies: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.filled()
			sample := 0
			r := explore(c, 100_000, sample)
			if r.broken == kept { // it may be the end that is not reached
				sample = 20
				r = explore(c, 100_000, sample)
			}
			if r.broken == kept && r.stuck == "" {
				t.Fatalf("nothing breaks without it, in %d states", r.states)
			}
			t.Logf("%s%s, in %d states\n%s", r.broken, r.stuck, r.states, story(r))
			c.without = 0
			if r := explore(c, 2*r.states+1000, sample); r.broken != kept || r.stuck != "" {
				t.Errorf("with the rule in its place: %s%s\n%s", r.broken, r.stuck, story(r))
			}
		})
	}
}
