package vendortest

import (
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// faults are the switches; every one is safe under load.
type faults struct {
	createDelay  atomic.Pointer[[]time.Duration]
	listDelay    atomic.Int64
	revokeDelay  atomic.Int64
	maxActive    atomic.Int64
	deadStatus   atomic.Int64
	lyingRevoke  atomic.Bool
	lyingDisable atomic.Bool
	duplicate    atomic.Bool
	noList       atomic.Bool
	down         atomic.Bool
	dropping     atomic.Bool
	always200    atomic.Bool
	usedMissing  atomic.Bool
	usedGrain    atomic.Int64
	skew         atomic.Int64

	loseCreate, dropCreate, refuseCreate, failRevoke, loseRevoke, throttleKeys, throttleData, failKeys, failData budget
}

// budget is a fault for the next n requests: negative means until changed.
type budget struct {
	left   atomic.Int64
	status atomic.Int64
	after  atomic.Int64
}

func (b *budget) set(n, status int, after time.Duration) {
	b.left.Store(0)
	b.status.Store(int64(status))
	b.after.Store(int64(after))
	b.left.Store(int64(n))
}

// take reports whether the fault strikes this request.
func (b *budget) take() bool {
	for {
		n := b.left.Load()
		if n == 0 {
			return false
		}
		if n < 0 || b.left.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// SetCreateDelay makes keys that are created from now on valid only after a
// delay: one per node, the last one for all further nodes. None: at once.
func (v *Vendor) SetCreateDelay(perNode ...time.Duration) {
	d := slices.Clone(perNode)
	v.createDelay.Store(&d)
}

// SetListDelay makes keys that are created from now on appear in the list only
// after d.
func (v *Vendor) SetListDelay(d time.Duration) { v.listDelay.Store(int64(d)) }

// SetRevokeDelay makes revoked and disabled keys go on working for d.
func (v *Vendor) SetRevokeDelay(d time.Duration) { v.revokeDelay.Store(int64(d)) }

// LoseCreateAnswers makes the next n creations happen and then drops the
// connection without an answer; negative n: all of them, 0: none.
func (v *Vendor) LoseCreateAnswers(n int) { v.loseCreate.set(n, 0, 0) }

// DropCreates drops the connection of the next n creations and does nothing.
func (v *Vendor) DropCreates(n int) { v.dropCreate.set(n, 0, 0) }

// RefuseCreates answers the next n creations with status and does nothing.
func (v *Vendor) RefuseCreates(n, status int) { v.refuseCreate.set(n, status, 0) }

// FailRevokes answers the next n revocations with status and does nothing.
func (v *Vendor) FailRevokes(n, status int) { v.failRevoke.set(n, status, 0) }

// LoseRevokeAnswers makes the next n revocations happen and then drops the
// connection without an answer.
func (v *Vendor) LoseRevokeAnswers(n int) { v.loseRevoke.set(n, 0, 0) }

// ThrottleKeys answers the next n requests to the key API with 429 and
// Retry-After; after is rounded up to seconds, 0 leaves the header out.
func (v *Vendor) ThrottleKeys(n int, after time.Duration) {
	v.throttleKeys.set(n, http.StatusTooManyRequests, after)
}

// ThrottleData does the same to the data API.
func (v *Vendor) ThrottleData(n int, after time.Duration) {
	v.throttleData.set(n, http.StatusTooManyRequests, after)
}

// FailKeys answers the next n requests to the key API with status.
func (v *Vendor) FailKeys(n, status int) { v.failKeys.set(n, status, 0) }

// FailData answers the next n requests to the data API with status.
func (v *Vendor) FailData(n, status int) { v.failData.set(n, status, 0) }

// SetLyingRevoke makes revocations answer 200 and take the key out of the
// list, while it goes on working.
func (v *Vendor) SetLyingRevoke(on bool) { v.lyingRevoke.Store(on) }

// SetLyingDisable makes disabling answer 200 and show in the list, while the
// key goes on working.
func (v *Vendor) SetLyingDisable(on bool) { v.lyingDisable.Store(on) }

// SetDuplicateSecrets makes creations return the key that was issued last,
// under a new id.
func (v *Vendor) SetDuplicateSecrets(on bool) { v.duplicate.Store(on) }

// SetMaxActive limits how many keys may exist at once; 0: no limit. One more
// is answered 409 with the error code "limit_reached".
func (v *Vendor) SetMaxActive(n int) { v.maxActive.Store(int64(n)) }

// SetNoList takes the list away: it answers 404.
func (v *Vendor) SetNoList(on bool) { v.noList.Store(on) }

// SetDown makes every request answer 503.
func (v *Vendor) SetDown(on bool) { v.down.Store(on) }

// SetDropping makes every request end without an answer.
func (v *Vendor) SetDropping(on bool) { v.dropping.Store(on) }

// SetDeadStatus sets the status with which the data API answers keys that do
// not work; 0 means 401.
func (v *Vendor) SetDeadStatus(status int) {
	if status == 0 {
		status = http.StatusUnauthorized
	}
	v.deadStatus.Store(int64(status))
}

// Behave switches every fault off. Keys that are on their way stay on their
// way, and the limit of keys stays.
func (v *Vendor) Behave() {
	v.SetCreateDelay()
	v.SetListDelay(0)
	v.SetRevokeDelay(0)
	v.SetDeadStatus(0)
	v.SetUsedGrain(0)
	v.SetClockSkew(0)
	for _, b := range []*atomic.Bool{&v.lyingRevoke, &v.lyingDisable, &v.duplicate, &v.noList, &v.down, &v.dropping,
		&v.always200, &v.usedMissing} {
		b.Store(false)
	}
	for _, b := range []*budget{&v.loseCreate, &v.dropCreate, &v.refuseCreate, &v.failRevoke, &v.loseRevoke,
		&v.throttleKeys, &v.throttleData, &v.failKeys, &v.failData} {
		b.left.Store(0)
	}
}
