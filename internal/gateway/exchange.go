package gateway

import (
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
)

// Exchange is one request on its way: [Core.Begin], then Attempt and Answered
// until it says that there is no other attempt, then Done. The zero Exchange
// is ready; it may be used again after Done. It is for one goroutine at a time.
type Exchange struct {
	core   *Core
	cr     *credential
	who    *consumer
	now    time.Time
	method string
	prefix int
	mount  string
	query  string
	strip  [4]string
	strips int
	named  []string // headers that Connection nominates

	order   [3]*slot // as in trial
	trial   call.Trial
	settled bool // the answer is chosen; only its slot is pinned
}

// Attempt is one attempt: the version and the key to put on the request.
type Attempt struct {
	Version key.VersionID
	Key     call.Rendered
	Header  []string // value of Keybaton-Version; shared, must not be changed
	Primary bool     // it is the first of the frame's slots
}

// Begin decides where the request goes and with which versions, and pins them
// until [Exchange.Done], which the caller owes after a nil error. The error is
// a [*Fault]: the answer to give. now needs a monotonic reading.
func (c *Core) Begin(x *Exchange, h Head, now time.Time) error {
	*x = Exchange{core: c, now: now, method: h.Method}
	if f := x.begin(&h); f != nil {
		if x.cr != nil {
			x.cr.tally.Fail()
			x.cr = nil
		}
		return f
	}
	return nil
}

func (x *Exchange) begin(h *Head) *Fault {
	for {
		s := x.core.snap.Load()
		if s == nil {
			return noSnapshot()
		}
		cr, f := x.admit(h, s)
		if f != nil {
			return f
		}
		// Pin, then look again: either whoever installs a frame now sees the
		// pin, or this sees the frame.
		cr.pins.Add(1)
		if x.core.snap.Load() != s {
			cr.pins.Add(-1)
			*x = Exchange{core: x.core, now: x.now, method: x.method}
			continue
		}
		if f = x.ready(h, cr); f != nil {
			cr.pins.Add(-1)
			x.cr = cr
			return f
		}
		x.cr = cr
		return nil
	}
}

// admit routes and authorizes.
func (x *Exchange) admit(h *Head, s *snapshot) (*credential, *Fault) {
	cands, env, prefix, miss := s.route(h)
	p, f := x.seek(h, s, cands)
	if f != nil {
		return nil, f // what there is, is for callers with a token to know
	}
	if p.expired(x.now) {
		return nil, expiredToken(p.name)
	}
	if miss != nil {
		return nil, miss
	}
	cr, f := choose(p, cands, env != "")
	if f != nil {
		return nil, f
	}
	x.who, x.prefix, x.mount = p, prefix, h.Path[:prefix]
	return cr, nil
}

// ready checks the request against the credential and orders the versions.
func (x *Exchange) ready(h *Head, cr *credential) *Fault {
	switch {
	case cr.err != nil:
		return disabled(cr)
	case len(cr.slots) == 0:
		return noKey(cr.id)
	case cr.place.Signs():
		return &Fault{501, "signing_unsupported", "this gateway does not sign requests; let the workload follow the key instead, with the client library, or read it: keybaton get", nil}
	}
	switch h.Method {
	case "TRACE", "TRACK", "CONNECT":
		return &Fault{405, "method_refused", "Keybaton does not forward " + h.Method + ": vendors answer it with the key", key.ErrInvalid}
	}
	if f := x.checkConnection(h, cr); f != nil {
		return f
	}
	if cr.upstream.RawPath != "" && climbs(h.Path[x.prefix:]) {
		return badRequest("bad_path", "the path has a '.' or '..' segment, plain or encoded, which could leave the upstream's prefix; send it without")
	}
	if cr.place.In() == key.InQuery {
		x.query, _, _ = call.CutQuery(x.query, cr.place.Name())
	}
	x.arrange(cr, h.Replayable)
	return nil
}

// checkConnection refuses what would take the key off the request or the
// connection out of sight.
func (x *Exchange) checkConnection(h *Head, cr *credential) *Fault {
	for _, line := range h.Header.Values("Connection") {
		for tok := range strings.SplitSeq(line, ",") {
			tok = strings.Trim(tok, " \t")
			switch {
			case tok == "", strings.EqualFold(tok, "close"), strings.EqualFold(tok, "keep-alive"),
				strings.EqualFold(tok, "upgrade"), strings.EqualFold(tok, "te"):
				continue
			case strings.EqualFold(tok, cr.place.Name()), strings.EqualFold(tok, "Authorization"), strings.EqualFold(tok, "Host"),
				strings.EqualFold(tok, "Content-Length"), strings.EqualFold(tok, "Transfer-Encoding"), strings.EqualFold(tok, "Content-Type"):
				return badRequest("bad_connection_header", "the header Connection must not name "+quote(tok)+"; send the request without it")
			}
			x.named = append(x.named, tok)
		}
	}
	if vs := h.Header.Values("Upgrade"); len(vs) > 0 {
		if strings.EqualFold(strings.Trim(vs[0], " \t"), "websocket") {
			return &Fault{501, "websocket_unsupported", "this gateway does not relay WebSockets; let the workload read the key instead: keybaton get", nil}
		}
		return &Fault{501, "upgrade_refused", "this gateway does not change protocols; send the request without the header Upgrade", nil}
	}
	return nil
}

// arrange orders the versions that this request may try.
func (x *Exchange) arrange(cr *credential, replayable bool) {
	n := copy(x.order[:], cr.slots)
	var served [2]call.Rival
	for i, s := range cr.slots {
		served[i] = s.rival
	}
	if x.trial.Arrange(served[:n], replayable, x.now, x.core.elapsed(x.now)) {
		x.order[0], x.order[1] = x.order[1], x.order[0]
	}
	if k := cr.kept; k != nil && !call.Proven(served[:n]...) {
		x.order[n] = k // the last one known to work, after all that the frame serves
		x.trial.Last(k.rival)
	}
}

// Attempt returns the attempt to make, and counts it as being written: it is
// called right before the request goes out. Only the key it returns may be on
// that request.
func (x *Exchange) Attempt() Attempt {
	s := x.order[x.trial.Position()]
	if x.trial.Position() > 0 {
		x.now = x.core.cfg.Now()
	}
	x.trial.Attempt(x.core.elapsed(x.now))
	return Attempt{Version: s.id, Key: s.key, Header: s.header, Primary: len(x.cr.slots) > 0 && s == x.cr.slots[0]}
}

// NeedsBody reports whether Answered wants the beginning of the body of an
// answer with this status.
func (x *Exchange) NeedsBody(status int) bool { return x.cr.sniffs && x.cr.rules.NeedsBody(status) }

// Answered classifies the vendor's answer to the last attempt and counts it.
// replayable says whether the request can still be sent again in full. It
// returns true when the answer is to be dropped and [Exchange.Attempt] called
// again, false when it is to be relayed.
func (x *Exchange) Answered(a call.Answer, replayable bool) (again bool) {
	a.Method = x.method
	at := x.core.elapsed(x.now)
	if x.trial.Answered(x.cr.rules, x.cr.fallOn, a, replayable, x.core.breaker, x.now, at) {
		return true
	}
	x.settle()
	if x.trial.Refused() {
		x.core.refetch(x.cr, at)
	}
	return false
}

// Failed counts the last attempt as one without an answer; the caller gets an
// answer that Keybaton makes.
func (x *Exchange) Failed() {
	x.trial.Failed(x.core.elapsed(x.now))
	x.settle()
}

// settle lets go of every version but the one whose answer is being relayed.
func (x *Exchange) settle() {
	if x.settled {
		return
	}
	x.settled = true
	x.order[x.trial.Position()].pins.Add(1)
	x.cr.pins.Add(-1)
}

// Done ends the exchange. An attempt whose answer was not waited for counts as
// other: hanging up does not hide a use. It may be called twice.
func (x *Exchange) Done() {
	if x.cr == nil {
		return
	}
	x.trial.Done(x.cr.tally)
	if x.settled {
		x.order[x.trial.Position()].pins.Add(-1)
	} else {
		x.cr.pins.Add(-1)
	}
	x.cr = nil
}

// refetch tells the caller of the core, at most once a second, that all that
// was tried of cr was refused.
func (c *Core) refetch(cr *credential, at time.Duration) {
	if c.cfg.Refetch != nil && cr.tally.Refetch(at) {
		c.cfg.Refetch(cr.id)
	}
}

func (x *Exchange) stripHeader(name string) {
	for _, n := range x.strip[:x.strips] {
		if n == name {
			return
		}
	}
	if x.strips < len(x.strip) {
		x.strip[x.strips] = name
		x.strips++
	} else {
		x.named = append(x.named, name)
	}
}

// Forwards reports whether the caller's header with this canonical name goes to
// the vendor: those of the connection, Keybaton's own, what holds the token,
// what Connection nominates, and the place of the key do not.
func (x *Exchange) Forwards(name string) bool {
	if call.Hop(name) || strings.HasPrefix(name, "Keybaton-") || name == "Expect" {
		return false
	}
	switch x.cr.place.In() {
	case key.InHeader, key.InBasic:
		if name == x.cr.place.Name() {
			return false
		}
	}
	for _, n := range x.strip[:x.strips] {
		if n == name {
			return false
		}
	}
	for _, n := range x.named {
		if strings.EqualFold(n, name) {
			return false
		}
	}
	return true
}

// Credential returns what the request is for.
func (x *Exchange) Credential() key.CredentialID { return x.cr.id }

// Consumer returns the name of the caller's token.
func (x *Exchange) Consumer() string { return x.who.name }

// Upstream returns where the request goes; shared, must not be changed.
func (x *Exchange) Upstream() *Upstream { return x.cr.upstream }

// Prefix returns how many bytes of the caller's path name the service and are
// not forwarded.
func (x *Exchange) Prefix() int { return x.prefix }

// Mount returns those bytes, such as "/billing-api"; "" when the host names
// the service.
func (x *Exchange) Mount() string { return x.mount }

// Query returns the query to forward, without a token and without the key's
// parameter; an attempt's own pair is joined to it.
func (x *Exchange) Query() string { return x.query }

// InBody reports whether the key rides in the body.
func (x *Exchange) InBody() bool { return x.cr.place.InBody() }

// Sniffs reports whether answers may have to be read to be understood, so that
// they must come in an encoding that can be.
func (x *Exchange) Sniffs() bool { return x.cr.sniffs }

// CanFallBack reports whether another version is left to try.
func (x *Exchange) CanFallBack() bool { return x.trial.More() }
