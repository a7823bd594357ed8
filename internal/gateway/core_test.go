package gateway_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
)

const token = "kbt_0123456789abcdef0123456789abcdef"

var prod = key.CredentialID{Service: "billing-api", Environment: "prod"}

func bearer() key.Call {
	return key.Call{Upstream: "https://api.vendor.example", Place: key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}}
}

func hash(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func keyOf(n key.Number) string { return fmt.Sprintf("MARKED-key-of-%s-%020d", n, n) }

func version(n key.Number, since time.Time) link.Version {
	return link.Version{Number: n, Since: since, Parts: map[string]secret.Exposed{"key": secret.Expose(secret.FromString(keyOf(n)))}}
}

// frame serves the numbers: primary, then fallback.
func frame(rev int64, c key.Call, since time.Time, numbers ...key.Number) link.Frame {
	lc := link.Credential{ID: prod, Call: c}
	for i, n := range numbers {
		lc.Versions = append(lc.Versions, version(n, since))
		if i == 0 {
			lc.Slots.Primary = n
		} else {
			lc.Slots.Fallback = n
		}
	}
	return link.Frame{Revision: key.Revision{Epoch: 1, Number: rev}, Full: true, Credentials: []link.Credential{lc},
		Tokens: []link.Token{{Name: "n8n", Hash: hash(token), Grants: []access.Grant{{Environment: "prod", Services: []string{"*"}}}}}}
}

type clock struct{ now time.Time }

func (c *clock) Now() time.Time                { return c.now }
func (c *clock) pass(d time.Duration)          { c.now = c.now.Add(d) }
func newClock() *clock                         { return &clock{time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)} }
func (c *clock) ago(d time.Duration) time.Time { return c.now.Add(-d) }

func install(t *testing.T, c *gateway.Core, f link.Frame) {
	t.Helper()
	if err := c.Install(f); err != nil {
		t.Fatalf("installing revision %s: %v", f.Revision, err)
	}
}

func head(method string) gateway.Head {
	return gateway.Head{Method: method, Host: "localhost:7461", Path: "/billing-api/v1/me", Replayable: true,
		Header: http.Header{"Authorization": {"Bearer " + token}}}
}

// send makes one request; answers says how the vendor answers each version.
// It returns the versions that were tried, and the status that is relayed.
func send(t *testing.T, c *gateway.Core, now time.Time, h gateway.Head, answers map[key.Number]int) (tried []key.Number, status int) {
	t.Helper()
	var x gateway.Exchange
	if err := c.Begin(&x, h, now); err != nil {
		t.Fatalf("beginning: %v", err)
	}
	defer x.Done()
	for {
		at := x.Attempt()
		tried = append(tried, at.Version.Number)
		status = answers[at.Version.Number]
		if !x.Answered(call.Answer{Status: status, Header: http.Header{}}, h.Replayable) {
			return tried, status
		}
		if len(tried) > 3 {
			t.Fatalf("tried %v: more attempts than versions", tried)
		}
	}
}

func useOf(t *testing.T, c *gateway.Core, n key.Number) evidence.Use {
	t.Helper()
	for _, u := range c.Report(1, 0).Uses {
		if u.Version.Number == n {
			return u
		}
	}
	return evidence.Use{}
}

func TestVerdictNeedsAnotherVersionThatWasAccepted(t *testing.T) {
	ck := newClock()
	var refetched []key.CredentialID
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now, Refetch: func(id key.CredentialID) { refetched = append(refetched, id) }})
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7, 8))
	for range 5 {
		ck.pass(100 * time.Millisecond)
		if tried, status := send(t, c, ck.now, head("GET"), map[key.Number]int{7: 401, 8: 401}); !slices.Equal(tried, []key.Number{7, 8}) || status != 401 {
			t.Fatalf("both refused: tried %v and relayed %d, want v7 then v8 and the vendor's 401", tried, status)
		}
	}
	a, b := useOf(t, c, 7), useOf(t, c, 8)
	if a.Worse+a.Better+b.Worse+b.Better != 0 {
		t.Errorf("both refused, yet a verdict was drawn: %+v %+v", a, b)
	}
	if a.Live.Auth != 5 || b.Live.Auth != 5 {
		t.Errorf("attempts: v7 %+v, v8 %+v, want 5 auth each", a.Live, b.Live)
	}
	if len(refetched) != 1 || refetched[0] != prod {
		t.Errorf("refetched %v, want once in this second", refetched)
	}
	if got := c.Report(1, 0).Answers; len(got) != 1 || got[0].Requests != 5 || got[0].Refused != 5 {
		t.Errorf("answers %+v, want 5 requests, 5 refused", got)
	}
	if a.LastAuth != "401 Unauthorized" {
		t.Errorf("last refusal %q, want 401 Unauthorized", a.LastAuth)
	}
}

func TestSuspectIsTriedAgainNowAndThen(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7, 8))
	dead := map[key.Number]int{7: 401, 8: 200}
	for i := range 3 {
		if tried, _ := send(t, c, ck.now, head("GET"), dead); !slices.Equal(tried, []key.Number{7, 8}) {
			t.Fatalf("request %d tried %v, want v7 then v8: three hits make a suspect", i, tried)
		}
	}
	if tried, _ := send(t, c, ck.now, head("GET"), dead); !slices.Equal(tried, []key.Number{8}) {
		t.Fatalf("tried %v, want v8 at once: v7 is suspect", tried)
	}
	u := useOf(t, c, 7)
	if u.Worse != 3 || useOf(t, c, 8).Better != 3 || useOf(t, c, 8).Fallbacks != 3 {
		t.Errorf("verdicts: %+v, %+v, want worse 3, better 3, fallbacks 3", u, useOf(t, c, 8))
	}

	ck.pass(time.Second)
	big := head("POST")
	big.Replayable = false
	if tried, _ := send(t, c, ck.now, big, dead); !slices.Equal(tried, []key.Number{8}) {
		t.Errorf("a request that cannot be sent again was used to find out about v7: %v", tried)
	}
	if tried, _ := send(t, c, ck.now, head("GET"), dead); !slices.Equal(tried, []key.Number{7, 8}) {
		t.Errorf("tried %v, want v7 again after a second", tried)
	}
	ck.pass(time.Second)
	if tried, _ := send(t, c, ck.now, head("GET"), dead); !slices.Equal(tried, []key.Number{8}) {
		t.Errorf("tried %v, want v8: the wait has doubled", tried)
	}
	ck.pass(time.Second)
	well := map[key.Number]int{7: 200, 8: 200}
	for i, want := range [][]key.Number{{7}, {7}, {7}} {
		if tried, _ := send(t, c, ck.now, head("GET"), well); !slices.Equal(tried, want) {
			t.Errorf("recovery %d tried %v, want %v", i, tried, want)
		}
	}
	if tried, _ := send(t, c, ck.now, big, well); !slices.Equal(tried, []key.Number{7}) {
		t.Errorf("tried %v, want v7: two good trials in a row restore trust", tried)
	}
}

func TestOneHitMakesNoSuspect(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7, 8))
	for i := range 20 { // refused, accepted, refused, accepted: flapping, not dead
		status := 200
		if i%2 == 0 {
			status = 401
		}
		if tried, _ := send(t, c, ck.now, head("GET"), map[key.Number]int{7: status, 8: 200}); tried[0] != 7 {
			t.Fatalf("request %d went to %v first", i, tried)
		}
	}
}

func TestEarlyKeyIsNotBad(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	cl := bearer()
	cl.Early = time.Minute
	f := frame(1, cl, ck.ago(time.Hour), 8, 7)
	f.Credentials[0].Versions[0].Since = ck.now // v8 was issued just now
	install(t, c, f)
	lag := map[key.Number]int{8: 401, 7: 200}
	for range 10 {
		if tried, status := send(t, c, ck.now, head("GET"), lag); !slices.Equal(tried, []key.Number{8, 7}) || status != 200 {
			t.Fatalf("tried %v, relayed %d; want v8, then v7 with 200", tried, status)
		}
	}
	if u := useOf(t, c, 8); u.Worse != 0 || u.Live.Auth != 10 {
		t.Errorf("an early key was declared bad: %+v", u)
	}
	big := head("POST")
	big.Replayable = false
	if tried, _ := send(t, c, ck.now, big, lag); !slices.Equal(tried, []key.Number{7}) {
		t.Errorf("tried %v; a request that cannot be sent again goes with the proven key", tried)
	}
	ck.pass(2 * time.Minute)
	for range 3 {
		send(t, c, ck.now, head("GET"), lag)
	}
	if u := useOf(t, c, 8); u.Worse != 3 {
		t.Errorf("worse %d after its time, want 3", u.Worse)
	}
}

func TestUnreplayableRefusalsMakeRoomForTheOther(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7, 8))
	big := head("POST")
	big.Replayable = false
	for range 3 {
		if tried, status := send(t, c, ck.now, big, map[key.Number]int{7: 401, 8: 200}); !slices.Equal(tried, []key.Number{7}) || status != 401 {
			t.Fatalf("tried %v, relayed %d", tried, status)
		}
	}
	if tried, status := send(t, c, ck.now, big, map[key.Number]int{7: 401, 8: 200}); !slices.Equal(tried, []key.Number{8}) || status != 200 {
		t.Errorf("tried %v, relayed %d: uploads would fail for ever", tried, status)
	}
	if u := useOf(t, c, 7); u.Worse != 0 {
		t.Errorf("worse %d without a comparison", u.Worse)
	}
}

func TestFallBackRules(t *testing.T) {
	yes, no := []key.Number{7, 8}, []key.Number{7}
	dead403 := []key.Rule{{Status: []int{403}, Header: map[string]string{"X-Reason": "blocked"}, Is: key.IsOutOfScope, Dead: true}}
	for _, tc := range []struct {
		name, method string
		status       int
		on           []int
		rules        []key.Rule
		header       http.Header
		want         []key.Number
	}{
		{"401 of a GET", "GET", 401, nil, nil, nil, yes},
		{"401 of a POST", "POST", 401, nil, nil, nil, yes},
		{"403 of a GET", "GET", 403, nil, nil, nil, yes},
		{"403 of a HEAD", "HEAD", 403, nil, nil, nil, yes},
		{"403 of a POST", "POST", 403, nil, nil, nil, no},
		{"403 of a POST that is named", "POST", 403, []int{403}, nil, nil, yes},
		{"403 of a POST whose key is dead", "POST", 403, nil, dead403, http.Header{"X-Reason": {"blocked"}}, yes},
		{"403 of a POST for another reason", "POST", 403, nil, dead403, http.Header{"X-Reason": {"scope"}}, no},
		{"403 that is a rate limit", "GET", 403, nil, nil, http.Header{"Retry-After": {"30"}}, no},
		{"429", "GET", 429, nil, nil, nil, no},
		{"429 that is named", "POST", 429, []int{429}, nil, nil, yes},
		{"a class that is named", "POST", 402, []int{4}, nil, nil, yes},
		{"500", "GET", 500, nil, nil, nil, no},
		{"404", "GET", 404, nil, nil, nil, no},
		{"401 that a rule calls a scope", "POST", 401, nil, []key.Rule{{Status: []int{401}, Is: key.IsOutOfScope}}, nil, no},
		{"400 that a rule calls invalid", "POST", 400, nil, []key.Rule{{Status: []int{400}, Is: key.IsInvalid}}, nil, yes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ck := newClock()
			c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
			cl := bearer()
			cl.FallbackOn, cl.Rules = tc.on, tc.rules
			install(t, c, frame(1, cl, ck.ago(time.Hour), 7, 8))
			var x gateway.Exchange
			if err := c.Begin(&x, head(tc.method), ck.now); err != nil {
				t.Fatal(err)
			}
			defer x.Done()
			tried := []key.Number{x.Attempt().Version.Number}
			for status := tc.status; x.Answered(call.Answer{Status: status, Header: tc.header}, true); status = 200 {
				tried = append(tried, x.Attempt().Version.Number)
			}
			if !slices.Equal(tried, tc.want) {
				t.Errorf("tried %v, want %v", tried, tc.want)
			}
		})
	}
}

func TestReportsAreCumulative(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now, Consumer: "gw-1", Boot: "b1"})
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7, 8))
	ok := map[key.Number]int{7: 200, 8: 200}
	ck.pass(3 * time.Second)
	send(t, c, ck.now, head("GET"), ok)
	one := c.Report(1, 3*time.Second)
	again := c.Report(2, 4*time.Second)
	if len(one.Uses) != 1 || !slices.Equal(one.Uses, again.Uses) || !slices.Equal(one.Answers, again.Answers) {
		t.Errorf("a report that nobody confirmed was not repeated: %+v then %+v", one, again)
	}
	if u := one.Uses[0]; u.LastUse != 3*time.Second || u.Live.OK != 1 || one.Consumer != "gw-1" || one.Boot != "b1" || one.Seq != 1 {
		t.Errorf("report %+v", one)
	}
	c.Reported(2)
	if r := c.Report(3, 5*time.Second); len(r.Uses)+len(r.Answers) != 0 {
		t.Errorf("nothing changed, yet %+v", r)
	}
	install(t, c, frame(2, bearer(), ck.ago(time.Hour), 8, 7))
	install(t, c, frame(3, bearer(), ck.ago(time.Hour), 7, 8))
	send(t, c, ck.now, head("GET"), ok)
	r := c.Report(4, 6*time.Second)
	if len(r.Uses) != 1 || r.Uses[0].Live.OK != 2 {
		t.Errorf("counters did not outlive the snapshots: %+v", r.Uses)
	}
	c.Reported(3) // a late confirmation of an older report
	if r := c.Report(5, 7*time.Second); len(r.Uses) != 1 {
		t.Errorf("the confirmation of report 3 swallowed report 4: %+v", r.Uses)
	}
	l := evidence.Ledger{}.Merge(one, ck.now).Merge(again, ck.now).Merge(r, ck.now)
	if got := l.Total(one.Uses[0].Version); got.Live.OK != 2 {
		t.Errorf("merged total %+v, want 2 ok", got)
	}
}

func TestHangingUpDoesNotHideAUse(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7))
	ck.pass(time.Second)
	var x gateway.Exchange
	if err := c.Begin(&x, head("GET"), ck.now); err != nil {
		t.Fatal(err)
	}
	x.Attempt()
	if u := useOf(t, c, 7); u.LastUse == 0 || u.Live.Attempts() != 0 {
		t.Errorf("while it is written: %+v, want the time of use and no outcome yet", u)
	}
	x.Done()
	x.Done()
	if u := useOf(t, c, 7); u.Live.Other != 1 || u.Live.Attempts() != 1 {
		t.Errorf("after hanging up: %+v, want one other", u.Live)
	}
	if a := c.Report(1, 0).Answers; len(a) != 1 || a[0].Requests != 1 || a[0].Failed != 0 {
		t.Errorf("answers %+v", a)
	}
}

func TestPins(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	rev := func(n int64) key.Revision { return key.Revision{Epoch: 1, Number: n} }
	id := func(ns ...key.Number) (out []key.VersionID) {
		for _, n := range ns {
			out = append(out, key.VersionID{Credential: prod, Number: n})
		}
		return out
	}
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7, 8))
	send(t, c, ck.now, head("GET"), map[key.Number]int{7: 401, 8: 200})
	var choosing, streaming gateway.Exchange
	if err := c.Begin(&choosing, head("GET"), ck.now); err != nil {
		t.Fatal(err)
	}
	if err := c.Begin(&streaming, head("GET"), ck.now); err != nil {
		t.Fatal(err)
	}
	streaming.Attempt()
	streaming.Answered(call.Answer{Status: 200}, true)
	if got := c.Pinned(rev(1)); len(got) != 0 {
		t.Errorf("pinned below the revision in use: %v", got)
	}
	install(t, c, frame(2, bearer(), ck.ago(time.Hour), 8, 9))
	if got := c.Pinned(rev(2)); !slices.Equal(got, id(7, 8)) {
		t.Errorf("pinned %v, want v7 and v8: one request has not chosen yet", got)
	}
	choosing.Done()
	if got := c.Pinned(rev(2)); !slices.Equal(got, id(7)) {
		t.Errorf("pinned %v, want v7, which is still streaming", got)
	}
	if got := c.Pinned(rev(1)); len(got) != 0 {
		t.Errorf("pinned below 1: %v", got)
	}
	streaming.Done()
	if got := c.Pinned(rev(2)); len(got) != 0 {
		t.Errorf("pinned %v after everything ended", got)
	}
}

func TestLastWorkingVersionIsKeptUntilAnotherWorks(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	rev := key.Revision{Epoch: 1, Number: 2}
	v7 := []key.VersionID{{Credential: prod, Number: 7}}
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7))
	send(t, c, ck.now, head("GET"), map[key.Number]int{7: 200})
	install(t, c, frame(2, bearer(), ck.ago(time.Hour), 8))
	if got := c.Pinned(rev); !slices.Equal(got, v7) {
		t.Fatalf("pinned %v, want v7: v8 has not answered ok here", got)
	}
	if tried, status := send(t, c, ck.now, head("GET"), map[key.Number]int{7: 200, 8: 401}); !slices.Equal(tried, []key.Number{8, 7}) || status != 200 {
		t.Errorf("tried %v, relayed %d", tried, status)
	}
	if got := c.Pinned(rev); !slices.Equal(got, v7) {
		t.Errorf("pinned %v, want v7 still", got)
	}
	send(t, c, ck.now, head("GET"), map[key.Number]int{8: 200})
	if got := c.Pinned(rev); len(got) != 0 {
		t.Errorf("pinned %v, want nothing: v8 works", got)
	}
	if tried, status := send(t, c, ck.now, head("GET"), map[key.Number]int{8: 401}); !slices.Equal(tried, []key.Number{8}) || status != 401 {
		t.Errorf("tried %v, relayed %d; v7 was promised to be gone", tried, status)
	}
}

func TestInstall(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	var x gateway.Exchange
	var f *gateway.Fault
	if err := c.Begin(&x, head("GET"), ck.now); !errors.As(err, &f) || f.Code != "no_snapshot" {
		t.Errorf("without a frame: %v", err)
	}
	bad := frame(5, bearer(), ck.ago(time.Hour), 7)
	broken := bad.Credentials[0]
	broken.ID.Service = "broken-api"
	broken.Versions = []link.Version{{Number: 3, Parts: map[string]secret.Exposed{"key": secret.Expose(secret.FromString("MARKED\nline"))}}}
	broken.Slots = key.Slots{Primary: 3}
	bad.Credentials = append(bad.Credentials, broken)
	install(t, c, bad)
	if tried, _ := send(t, c, ck.now, head("GET"), map[key.Number]int{7: 200}); len(tried) != 1 {
		t.Errorf("one broken credential disabled another: %v", tried)
	}
	h := head("GET")
	h.Path = "/broken-api/x"
	if err := c.Begin(&x, h, ck.now); !errors.As(err, &f) || f.Code != "credential_disabled" || f.Status != 503 || !strings.Contains(f.Detail, "broken-api/prod") {
		t.Errorf("broken credential: %v", err)
	} else if strings.Contains(string(f.Body()), "MARKED") {
		t.Errorf("the fault holds the key: %s", f.Body())
	}
	p := c.Problems()
	if len(p) != 1 || p[0].Credential.Service != "broken-api" || strings.Contains(p[0].Err.Error(), "MARKED") {
		t.Errorf("problems %v", p)
	}
	if err := c.Install(frame(4, bearer(), ck.now, 7)); !errors.Is(err, key.ErrStale) {
		t.Errorf("an older frame: %v, want stale", err)
	}
	if err := c.Install(link.Frame{Revision: key.Revision{Epoch: 1, Number: 6}, Removed: []key.CredentialID{broken.ID}, Tokens: bad.Tokens}); err != nil {
		t.Errorf("a frame with changes only: %v", err)
	}
	if len(c.Problems()) != 0 || c.Revision().Number != 6 {
		t.Errorf("problems %v at %s", c.Problems(), c.Revision())
	}
	send(t, c, ck.now, head("GET"), map[key.Number]int{7: 200})
}

// vendor answers probes.
type vendor struct {
	mu   sync.Mutex
	dead map[string]bool
	seen map[string][]time.Time
}

func (v *vendor) RoundTrip(r *http.Request) (*http.Response, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := r.Header.Get("Authorization")
	v.seen[k] = append(v.seen[k], time.Now())
	status := 200
	if v.dead[k] {
		status = 401
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}"))}, nil
}

func TestProbesThatAreAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gateway.New(gateway.Config{})
		cl := bearer()
		cl.Probe = &key.Probe{Path: "/me"}
		f := frame(1, cl, time.Now(), 7, 8)
		f.Credentials[0].Asks = []evidence.Ask{
			{Version: key.VersionID{Credential: prod, Number: 8}, OK: 3},
			{Version: key.VersionID{Credential: prod, Number: 7}, OK: 1},
		}
		install(t, c, f)
		v := &vendor{dead: map[string]bool{"Bearer " + keyOf(7): true}, seen: map[string][]time.Time{}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.RunProbes(ctx, v) }()
		time.Sleep(10 * time.Minute) // of the bubble's clock
		cancel()
		<-done
		if u := useOf(t, c, 8); u.Probes.OK != 3 || u.Live.Attempts() != 0 || u.LastProbe != evidence.OK {
			t.Errorf("v8: %+v, want 3 probes and no more", u)
		}
		at := v.seen["Bearer "+keyOf(8)]
		for i := 1; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d < time.Second {
				t.Errorf("probes %s apart, want at least a second", d)
			}
		}
		u := useOf(t, c, 7)
		if n := u.Probes.Auth; n < 60 || n > 90 {
			t.Errorf("a refused version was probed %d times in 10 minutes, want about one in 8 s", n)
		}
		if u.LastAuth != "401 Unauthorized" || u.LastProbe != evidence.Auth {
			t.Errorf("v7: %+v", u)
		}
		if got := c.Pinned(key.Revision{Epoch: 1, Number: 2}); len(got) != 0 {
			t.Errorf("probes left pins: %v", got)
		}
	})
}

func TestDecidingAllocatesNothing(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	install(t, c, frame(1, bearer(), ck.ago(time.Hour), 7, 8))
	h := head("GET")
	h.Query = "a=1"
	a := call.Answer{Status: 200, Header: http.Header{}}
	var x gateway.Exchange
	if n := testing.AllocsPerRun(1000, func() {
		if err := c.Begin(&x, h, ck.now); err != nil {
			t.Fatal(err)
		}
		x.Attempt()
		x.Answered(a, true)
		x.Done()
	}); n != 0 {
		t.Errorf("%v allocations for one request, want none", n)
	}
}

func BenchmarkCore(b *testing.B) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now})
	if err := c.Install(frame(1, bearer(), ck.ago(time.Hour), 7, 8)); err != nil {
		b.Fatal(err)
	}
	h := head("GET")
	a := call.Answer{Status: 200, Header: http.Header{}}
	var x gateway.Exchange
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Begin(&x, h, ck.now); err != nil {
			b.Fatal(err)
		}
		x.Attempt()
		x.Answered(a, true)
		x.Done()
	}
}
