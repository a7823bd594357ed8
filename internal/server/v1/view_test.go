package v1_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/store"
)

func (h *house) observe(fn func(store.Tx) error) {
	h.t.Helper()
	if err := h.store.Observe(h.t.Context(), fn); err != nil {
		h.t.Fatal(err)
	}
}

// report makes the gateway gw known, holding the versions and having seen uses.
func (h *house) report(gw string, acked key.Revision, uses ...evidence.Use) {
	h.t.Helper()
	h.observe(func(tx store.Tx) error {
		b := evidence.Boot{Consumer: gw, Kind: key.KindGateway, Boot: gw + "-boot", Seq: 1, Elapsed: time.Minute, Seen: tx.Now(), Acked: acked}
		for _, u := range uses {
			b.Uses = append(b.Uses, u)
			b.Answers = append(b.Answers, evidence.Answers{Credential: u.Version.Credential, Requests: u.Live.Attempts()})
			if err := tx.PutHold(evidence.Hold{Consumer: gw, Kind: key.KindGateway, Boot: b.Boot, Version: u.Version, Revision: acked, Since: tx.Now()}); err != nil {
				return err
			}
		}
		return tx.PutBoot(b)
	})
}

// candidate adds the version 2 as a candidate.
func (h *house) candidate(id key.CredentialID) {
	h.t.Helper()
	h.update(func(tx store.Tx) error {
		return tx.PutVersion(key.Version{ID: key.VersionID{Credential: id, Number: 2}, State: key.StateCandidate, Origin: key.OriginIssued, Created: tx.Now(), Since: tx.Now(), Fingerprint: "two"})
	})
}

func TestHealthIsWhatWasSeen(t *testing.T) {
	v1 := key.VersionID{Credential: billingDev, Number: 1}
	for name, c := range map[string]struct {
		prepare func(h *house)
		want    string
		why     string
	}{
		"no key":        {func(*house) {}, api.HealthEmpty, "no key"},
		"nobody looked": {func(h *house) { h.install(billingDev, 1, nil) }, api.HealthUnverified, "nobody"},
		"live traffic": {func(h *house) {
			h.install(billingDev, 1, nil)
			h.report("gw", h.store.Revision(), evidence.Use{Version: v1, Live: evidence.Counts{OK: 3}})
		}, api.HealthOK, "gw"},
		"a probe": {func(h *house) {
			h.install(billingDev, 1, nil)
			h.report("gw", h.store.Revision(), evidence.Use{Version: v1, Probes: evidence.Counts{OK: 1}, LastProbe: evidence.OK})
		}, api.HealthOK, "gw"},
		"only refused": {func(h *house) {
			h.install(billingDev, 1, nil)
			h.report("gw", h.store.Revision(), evidence.Use{Version: v1, Live: evidence.Counts{Auth: 4}})
		}, api.HealthFailing, "all 4 requests"},
		"the last probe was refused": {func(h *house) {
			h.install(billingDev, 1, nil)
			h.report("gw", h.store.Revision(), evidence.Use{Version: v1, Live: evidence.Counts{OK: 9}, LastProbe: evidence.Auth})
		}, api.HealthFailing, "refused v1"},
		"another version's traffic": {func(h *house) {
			h.install(billingDev, 1, nil)
			h.candidate(billingDev)
			h.report("gw", h.store.Revision(), evidence.Use{Version: key.VersionID{Credential: billingDev, Number: 2}, Live: evidence.Counts{OK: 3}})
		}, api.HealthUnverified, "nobody"},
		"expired": {func(h *house) {
			h.install(billingDev, 1, func(v *key.Version) { v.Expires = start.Add(-time.Hour) })
		}, api.HealthFailing, "expired"},
		"an alert": {func(h *house) {
			h.install(billingDev, 1, nil)
			h.report("gw", h.store.Revision(), evidence.Use{Version: v1, Live: evidence.Counts{OK: 3}})
			h.observe(func(tx store.Tx) error {
				return tx.PutAlert(alert.Alert{ID: "a", State: alert.Firing, Started: start, LastSeen: start,
					Signal: alert.Signal{Credential: billingDev, Kind: "spike", Severity: alert.Critical, Cause: "the vendor revoked it"}})
			})
		}, api.HealthFailing, "the vendor revoked it"},
		"an alert about a rotation": {func(h *house) {
			h.install(billingDev, 1, nil)
			h.report("gw", h.store.Revision(), evidence.Use{Version: v1, Live: evidence.Counts{OK: 3}})
			h.observe(func(tx store.Tx) error {
				return tx.PutAlert(alert.Alert{ID: "a", State: alert.Firing, Started: start, LastSeen: start,
					Signal: alert.Signal{Credential: billingDev, Kind: "rotation", Severity: alert.Warning, Cause: "it waits"}})
			})
		}, api.HealthOK, "gw"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.credentials(billingDev)
			c.prepare(h)
			x, err := h.as("viewer", access.RoleViewer).Credential(t.Context(), client.Credential(billingDev))
			if err != nil || x.Health != c.want || !strings.Contains(x.HealthWhy, c.why) {
				t.Fatalf("got %q because %q, %v; want %q because %q", x.Health, x.HealthWhy, err, c.want, c.why)
			}
			st, err := h.as("viewer2", access.RoleViewer).Status(t.Context())
			n := map[string]int{api.HealthOK: st.Counts.OK, api.HealthFailing: st.Counts.Failing, api.HealthUnverified: st.Counts.Unverified, api.HealthEmpty: st.Counts.Empty}
			if err != nil || n[c.want] != 1 || st.Counts.Credentials != 1 {
				t.Fatalf("the status counts %+v, %v", st.Counts, err)
			}
		})
	}
}

// moving makes a rotation v1 -> v2 in that state, with its steps so far.
func moving(id string, s rotation.State, at time.Time) rotation.Rotation {
	r := rotation.Rotation{ID: id, Credential: billingDev, Machine: rotation.Machine, Kind: rotation.Manual, State: s, From: 1, To: 2, By: "ops",
		Started: at, Entered: at.Add(3 * time.Second), Gate: rotation.Gate{Reason: "1 of 2 holders acknowledged", Missing: []string{"gw-2"}}}
	for i, step := range rotation.Steps() {
		rec := rotation.StepRecord{Step: step, Started: at.Add(time.Duration(i) * time.Second)}
		if step == s.Step() {
			r.Steps = append(r.Steps, rec)
			break
		}
		rec.Ended, rec.Gate = at.Add(time.Duration(i+1)*time.Second), "seen"
		r.Steps = append(r.Steps, rec)
	}
	return r
}

func TestRotationShowsStepsEvidenceAndHolders(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev)
	h.install(billingDev, 1, nil)
	h.candidate(billingDev)
	r := moving("r1", rotation.Distribute, start)
	r.Revision = h.store.Revision()
	h.update(func(tx store.Tx) error { return tx.PutRotation(r) })
	one, two := key.VersionID{Credential: billingDev, Number: 1}, key.VersionID{Credential: billingDev, Number: 2}
	h.report("gw-1", r.Revision, evidence.Use{Version: one, Live: evidence.Counts{OK: 10, Auth: 1}}, evidence.Use{Version: two, Live: evidence.Counts{OK: 4}, Probes: evidence.Counts{OK: 2}})
	h.report("gw-2", key.Revision{Epoch: r.Revision.Epoch}, evidence.Use{Version: one, Live: evidence.Counts{OK: 5}})
	x, err := h.as("viewer", access.RoleViewer).Rotation(t.Context(), "r1")
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, s := range x.Steps {
		states = append(states, s.Name+" "+s.State)
	}
	want := []string{"generate done", "stage done", "distribute current", "promote pending", "retire pending"}
	if !slices.Equal(states, want) || x.Step != "distribute" || x.Over {
		t.Errorf("steps %v", states)
	}
	if x.Steps[2].Gate != "1 of 2 holders acknowledged" || !slices.Equal(x.Gate.Missing, []string{"gw-2"}) {
		t.Errorf("gate %+v %+v", x.Steps[2], x.Gate)
	}
	if len(x.Evidence) != 2 || x.Evidence[0].Requests != 16 || x.Evidence[0].Auth != 1 || x.Evidence[1].OK != 4 || x.Evidence[1].ProbesOK != 2 {
		t.Errorf("evidence %+v", x.Evidence)
	}
	var standing []string
	for _, o := range x.Holders {
		standing = append(standing, o.Consumer+" "+o.Standing)
	}
	if !slices.Equal(standing, []string{"gw-1 moved", "gw-2 holds"}) {
		t.Errorf("holders %v", standing)
	}
	cs, err := h.as("viewer2", access.RoleViewer).Consumers(t.Context())
	if err != nil || len(cs) != 2 || len(cs[0].Holds) != 2 || !cs[1].Boots[0].Behind || cs[0].Boots[0].Silent {
		t.Errorf("consumers %+v, %v", cs, err)
	}
	_, err = h.as("other", access.RoleViewer, access.Grant{Environment: "prod", Services: []string{"*"}}).Rotation(t.Context(), "r1")
	wantError(t, err, 403, api.CodeDenied)
}

func TestStepsOfRotationsThatEnded(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev)
	h.install(billingDev, 1, nil)
	back := moving("back", rotation.Soaking, start)
	back.State, back.Back, back.Ended = rotation.RolledBack, "it was refused", start.Add(time.Minute)
	stopped := moving("stop", rotation.Soaking, start.Add(time.Hour))
	stopped.State, stopped.Resume = rotation.Stopped, rotation.Soaking
	h.update(func(tx store.Tx) error { return errors.Join(tx.PutRotation(back), tx.PutRotation(stopped)) })
	c := h.as("viewer", access.RoleViewer)
	for id, want := range map[string]string{"back": "done done done done skipped skipped", "stop": "done done done current pending"} {
		r, err := c.Rotation(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		var states []string
		for _, s := range r.Steps {
			states = append(states, s.State)
		}
		if got := strings.Join(states, " "); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
	rs, err := c.Rotations(t.Context(), client.Filter{}, true, 0)
	if err != nil || len(rs) != 1 || rs[0].ID != "stop" {
		t.Errorf("open rotations %+v, %v", rs, err)
	}
	rs, err = c.Rotations(t.Context(), client.Filter{}, false, 0)
	if err != nil || len(rs) != 2 || rs[0].ID != "stop" {
		t.Errorf("rotations %+v, %v", rs, err)
	}
}

// next returns the next event that fits, or fails after a while.
func next(t *testing.T, events <-chan api.Event, fits func(api.Event) bool) api.Event {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatal("the stream ended")
			}
			if fits(e) {
				return e
			}
		case <-limit:
			t.Fatal("no such event came")
		}
	}
}

func TestEventsTellWhatChanges(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev, mailDev)
	h.install(billingDev, 1, nil)
	h.candidate(billingDev)
	c := h.as("viewer", access.RoleViewer, access.Grant{Environment: "dev", Services: []string{"billing", "mail"}})
	h.credentials(billingProd) // must never be seen
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, ended := make(chan api.Event, 100), make(chan error, 1)
	go func() {
		ended <- c.Events(ctx, client.Filter{}, func(e api.Event) error {
			if e.Environment == "prod" {
				t.Error("an event about a credential that may not be seen")
			}
			events <- e
			return nil
		})
	}()
	seen := map[string]bool{}
	next(t, events, func(e api.Event) bool { seen[e.Service] = true; return e.Kind == api.EventReady })
	if !seen["billing"] || !seen["mail"] {
		t.Fatalf("before ready came %v", seen)
	}
	h.update(func(tx store.Tx) error { return tx.PutRotation(moving("r1", rotation.Distribute, start)) })
	if e := next(t, events, func(e api.Event) bool { return e.Kind == api.EventRotation }); e.Rotation.ID != "r1" || e.Rotation.Step != "distribute" {
		t.Errorf("got %+v", e.Rotation)
	}
	// Counters move without a revision.
	h.report("gw", h.store.Revision(), evidence.Use{Version: key.VersionID{Credential: billingDev, Number: 2}, Live: evidence.Counts{OK: 42}})
	next(t, events, func(e api.Event) bool {
		return e.Kind == api.EventRotation && len(e.Rotation.Evidence) == 2 && e.Rotation.Evidence[1].OK == 42
	})
	h.observe(func(tx store.Tx) error {
		return tx.PutAlert(alert.Alert{ID: "a", State: alert.Firing, Started: start, LastSeen: start, Signal: alert.Signal{Credential: mailDev, Kind: "spike", Severity: alert.Critical}})
	})
	if e := next(t, events, func(e api.Event) bool { return e.Kind == api.EventAlert }); e.Alert.Service != "mail" || e.Alert.State != "firing" {
		t.Errorf("got %+v", e.Alert)
	}
	done := moving("r1", rotation.Retiring, start)
	done.State, done.Ended = rotation.Done, start.Add(time.Minute)
	h.update(func(tx store.Tx) error { return tx.PutRotation(done) })
	next(t, events, func(e api.Event) bool {
		return e.Kind == api.EventRotation && e.Rotation.Over && e.Rotation.State == "done"
	})
	h.update(func(tx store.Tx) error {
		if err := tx.DeleteCredential(mailDev); err != nil {
			return err
		}
		_, err := tx.TouchAll()
		return err
	})
	if e := next(t, events, func(e api.Event) bool { return e.Kind == api.EventRemoved }); e.Service != "mail" {
		t.Errorf("got %+v", e)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
}
