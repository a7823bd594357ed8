package cli_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/cli"
)

func ago(d time.Duration) time.Time { return now.Add(-d) }

var credentials = []api.Credential{
	{Service: "billing", Environment: "dev", Health: api.HealthOK, Slots: api.Slots{Primary: 7, Fallback: 6}, Rotated: ago(3 * time.Hour), Due: now.Add(27 * 24 * time.Hour)},
	{Service: "mail", Environment: "prod", Health: api.HealthFailing, Slots: api.Slots{Primary: 12}, Rotated: ago(40 * 24 * time.Hour),
		Rotation: &api.Rotation{Step: "promote", State: "soaking"}},
	{Service: "träger", Environment: "dev", Health: api.HealthEmpty},
}

func TestList(t *testing.T) {
	w := newWorld(t)
	w.routes["GET /api/v1/credentials"] = answer(api.List[api.Credential]{Items: credentials})
	_, out, errOut := w.run("list")
	want(t, "out", out, `SERVICE  ENV   HEALTH   PRIMARY  FALLBACK  ROTATED  DUE     DOING
billing  dev   ok       v7       v6        3h ago   in 27d  -
mail     prod  failing  v12      -         40d ago  -       rotating: promote
träger   dev   empty    -        -         -        -       -
`)
	want(t, "err", errOut, "")
	_, out, _ = w.run("list", "--json")
	var back []api.Credential
	if err := json.Unmarshal([]byte(out), &back); err != nil || len(back) != 3 || back[0].Slots.Primary != 7 {
		t.Errorf("JSON: %v", err)
	}
	w.routes["GET /api/v1/credentials"] = answer(api.List[api.Credential]{Items: []api.Credential{}})
	_, out, errOut = w.run("list")
	want(t, "out", out, "there are no credentials yet\n")
	want(t, "err", errOut, "next: declare them in keybaton.yaml and run keybaton apply\n")
}

func TestColourIsOnlyForTerminals(t *testing.T) {
	for name, c := range map[string]struct {
		width int
		env   map[string]string
		args  []string
		color bool
	}{
		"a terminal":    {width: 120, color: true},
		"a pipe":        {},
		"NO_COLOR":      {width: 120, env: map[string]string{"NO_COLOR": "1"}},
		"--no-color":    {width: 120, args: []string{"--no-color"}},
		"dumb terminal": {width: 120, env: map[string]string{"TERM": "dumb"}},
	} {
		w := newWorld(t)
		w.width = c.width
		for k, v := range c.env {
			w.env[k] = v
		}
		w.routes["GET /api/v1/credentials"] = answer(api.List[api.Credential]{Items: credentials})
		_, out, _ := w.run(append([]string{"list"}, c.args...)...)
		if got := strings.Contains(out, "\x1b["); got != c.color {
			t.Errorf("%s: colour is %v", name, got)
		}
		if !strings.Contains(out, "failing") {
			t.Errorf("%s: what colour says is not said in words", name)
		}
	}
}

// What a server sends must not act on the terminal of whoever reads it.
func TestTextOfTheServerIsCleaned(t *testing.T) {
	const evil = "x\x1b]0;owned\x07\x1b[2J\u202ereversed\u200b\r\ny"
	w := newWorld(t)
	w.width = 200
	w.routes["GET /api/v1/credentials"] = answer(api.List[api.Credential]{Items: []api.Credential{{Service: evil, Environment: evil, Health: evil, HealthWhy: evil}}})
	w.routes["GET /api/v1/alerts"] = answer(api.List[api.Alert]{Items: []api.Alert{{Service: evil, Cause: evil, Error: evil, Fix: evil, Severity: evil, Kind: evil}}})
	w.routes["GET /api/v1/status"] = problem(422, api.CodeInvalid, evil, evil)
	w.routes["POST /api/v1/credentials/a/b/rotate"] = answer(api.Rotation{ID: "r", Service: evil, By: evil, State: "stopped", Why: evil, Steps: []api.Step{{Name: evil, State: api.StepCurrent}},
		Gate: api.Gate{Reason: evil, Missing: []string{evil}}})
	for _, args := range [][]string{{"list", "--no-color"}, {"alert", "list", "--no-color"}, {"status"}, {"rotate", "a/b", "--no-color"}} {
		_, out, errOut := w.run(args...)
		if strings.ContainsAny(out+errOut, "\x1b\x07\r\u202e\u200b") {
			t.Errorf("%v: %q", args, out+errOut)
		}
	}
}

func TestStatusOfAService(t *testing.T) {
	w := newWorld(t)
	c := credentials[0]
	c.Provider, c.HealthWhy, c.Upstream = "manual", "v7 was accepted by the vendor, seen by gw", "https://api.example.com"
	c.Holders, c.Answers = api.HolderCounts{Holding: 3, Silent: 1}, api.Answers{Requests: 12345}
	c.Versions = []api.Version{
		{Number: 7, State: "primary", Origin: "set", Created: ago(3 * time.Hour), Fingerprint: "f7", Uses: api.Uses{Requests: 12000}},
		{Number: 6, State: "fallback", Origin: "issued", Created: ago(30 * 24 * time.Hour), Expires: now.Add(time.Hour), Fingerprint: "f6", Uses: api.Uses{Requests: 345, Auth: 2}},
	}
	c.Retirements = []api.Retirement{{Version: 5, State: "retired", Gate: api.Gate{Reason: "a reader may hold it", Missing: []string{"airflow"}}}}
	w.routes["GET /api/v1/credentials"] = answer(api.List[api.Credential]{Items: []api.Credential{c}})
	w.routes["GET /api/v1/credentials/billing/dev"] = answer(c)
	code, out, _ := w.run("status", "billing")
	if code != 0 {
		t.Fatalf("exit %d", code)
	}
	want(t, "out", out, `billing/dev  ok  v7 was accepted by the vendor, seen by gw
  provider  manual
  upstream  https://api.example.com
  policy    default, next rotation in 27d
  rotated   3h ago
  holders   3 holders, 1 not heard from
  callers   12,345 answered, 0 refused, 0 failed
  VERSION  STATE     ORIGIN  MADE     EXPIRES  REQUESTS  REFUSED  FINGERPRINT
  v7       primary   set     3h ago   -        12,000    0        f7
  v6       fallback  issued  30d ago  in 1h    345       2        f6
  v5 is retired  a reader may hold it
    airflow
`)
	w.routes["GET /api/v1/credentials"] = answer(api.List[api.Credential]{})
	if code, _, _ := w.run("status", "nothing"); code != cli.ExitNotFound {
		t.Errorf("exit %d", code)
	}
}

// rot makes a rotation v7 -> v8 whose current step is the n-th.
func rot(n int, reason string) api.Rotation {
	r := api.Rotation{ID: "r1", Service: "billing", Environment: "dev", Kind: "manual", State: "at work", By: "ops", From: 7, To: 8, Started: ago(20 * time.Second),
		Gate: api.Gate{Reason: reason}}
	for i, name := range []string{"generate", "stage", "distribute", "promote", "retire"} {
		s := api.Step{Name: name, State: api.StepPending}
		at := ago(20 * time.Second).Add(time.Duration(i) * 1200 * time.Millisecond)
		switch {
		case i < n:
			s.State, s.Started, s.Ended, s.Gate = api.StepDone, at, at.Add(1200*time.Millisecond), name+" was seen"
		case i == n:
			s.State, s.Started, s.Gate, r.Step = api.StepCurrent, at, reason, name
		}
		r.Steps = append(r.Steps, s)
	}
	return r
}

func over(state, back string) api.Rotation {
	r := rot(5, "")
	r.State, r.Over, r.Back, r.Proof = state, true, back, "revoked_proven"
	r.Evidence = []api.Uses{{Version: 7, Requests: 1200}, {Version: 8, Requests: 3400, Auth: 1}}
	r.Answers = api.Answers{Requests: 4600}
	return r
}

func event(r api.Rotation, after time.Duration) api.Event {
	return api.Event{Kind: api.EventRotation, At: now.Add(after), Service: "billing", Environment: "dev", Rotation: &r}
}

func TestRotateWatchAsLines(t *testing.T) {
	w := newWorld(t)
	w.routes["POST /api/v1/credentials/billing/dev/rotate"] = answer(rot(0, ""))
	d := rot(2, "1 of 2 holders acknowledged")
	d.Gate.Missing = []string{"gw-2: is at revision 1.4, not yet 1.5"}
	busy := rot(2, "2 of 2 holders acknowledged")
	other := rot(1, "not ours")
	other.ID = "r2"
	w.routes["GET /api/v1/events"] = events(event(rot(0, "1 of 3 probes ok"), 0), api.Event{Kind: api.EventReady}, event(rot(0, "2 of 3 probes ok"), time.Second),
		event(other, time.Second), event(d, 2*time.Second), event(d, 3*time.Second), event(busy, 4*time.Second), event(busy, 30*time.Second), event(over("done", ""), time.Minute))
	code, out, errOut := w.run("rotate", "billing", "--env", "dev", "--watch")
	if code != 0 || errOut != "" {
		t.Errorf("exit %d: %s", code, errOut)
	}
	want(t, "out", out, `billing/dev  v7 → v8  manual, by ops, 20s ago
● generate   waiting: 1 of 3 probes ok
✓ generate   1.2s    generate was seen
✓ stage      1.2s    stage was seen
● distribute waiting: 1 of 2 holders acknowledged
    gw-2: is at revision 1.4, not yet 1.5
● distribute waiting: 2 of 2 holders acknowledged
✓ distribute 1.2s    distribute was seen
✓ promote    1.2s    promote was seen
✓ retire     1.2s    retire was seen
v7 1,200 requests   v8 3,400 requests, 1 refused   callers: 4,600 answered, 0 refused, 0 failed
✓ billing/dev: the rotation is done; v7: revoked_proven
`)
}

func TestRotateWatchOnATerminalRedrawsInPlace(t *testing.T) {
	w := newWorld(t)
	w.width = 40
	w.routes["POST /api/v1/credentials/billing/dev/rotate"] = answer(rot(0, ""))
	w.routes["GET /api/v1/events"] = events(event(rot(1, strings.Repeat("long reason ", 9)), 0), event(over("done", ""), time.Second))
	code, out, _ := w.run("rotate", "billing", "--env", "dev", "--watch", "--no-color")
	if code != 0 {
		t.Fatalf("exit %d", code)
	}
	want(t, "out", out, `billing/dev  v7 → v8  manual, by ops, 2…
✓ generate   1.2s    generate was seen
● stage      waiting: long reason long …
○ distribute
○ promote
○ retire
`+"\x1b[6A\r\x1b[J"+`billing/dev  v7 → v8  manual, by ops, 2…
✓ generate   1.2s    generate was seen
✓ stage      1.2s    stage was seen
✓ distribute 1.2s    distribute was seen
✓ promote    1.2s    promote was seen
✓ retire     1.2s    retire was seen
v7 1,200 requests   v8 3,400 requests, …
✓ billing/dev: the rotation is done; v7…
`)
}

func TestRotateWatchEnds(t *testing.T) {
	person := rot(4, "unverified: a reader may hold v7")
	person.Gate.Person, person.Gate.Missing = true, []string{"keybaton rotate approve billing --env dev"}
	reader := rot(4, "1 may still hold v7")
	reader.Gate.Person, reader.Gate.Missing = true, []string{"app read it", "keybaton rotate approve billing --env dev"}
	hand := rot(4, "revoke v7 at the vendor")
	hand.Gate.Person, hand.Gate.Missing = true, []string{"open its console", "delete v7"}
	waiting := rot(0, "issue a key")
	waiting.State, waiting.Gate.Person = "waiting_key", true
	paused := rot(2, "")
	paused.Paused = true
	stopped := rot(2, "")
	stopped.State, stopped.Why = "stopped", "both keys were refused"
	for name, c := range map[string]struct {
		last api.Rotation
		exit int
		says string
	}{
		"a person":     {person, cli.ExitWaiting, "waits for a person: unverified: a reader may hold v7\nnext: keybaton rotate approve billing --env dev\n"},
		"a reader":     {reader, cli.ExitWaiting, "waits for a person: 1 may still hold v7\nnext: keybaton rotate approve billing --env dev\n"},
		"a console":    {hand, cli.ExitWaiting, "waits for a person: revoke v7 at the vendor\nnext: open its console; delete v7\n"},
		"a pasted key": {waiting, cli.ExitWaiting, "waits for a person: issue a key\nnext: keybaton set billing --env dev\n"},
		"paused":       {paused, cli.ExitWaiting, "is paused\nnext: keybaton rotate resume"},
		"stopped":      {stopped, cli.ExitWaiting, "both keys were refused"},
		"rolled back":  {over("rolled_back", "the new key was refused"), cli.ExitFailed, "was rolled back: the new key was refused"},
		"superseded":   {over("superseded", ""), cli.ExitConflict, "another rotation"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, jsonFlag := range []string{"--json=false", "--json"} {
				w := newWorld(t)
				w.routes["GET /api/v1/credentials/billing/dev"] = answer(api.Credential{Rotation: &api.Rotation{ID: "r1"}})
				w.routes["GET /api/v1/events"] = events(event(c.last, 0))
				code, out, errOut := w.run("status", "billing", "--env", "dev", "--watch", jsonFlag)
				if code != c.exit {
					t.Errorf("exit %d, want %d: %s", code, c.exit, errOut)
				}
				if jsonFlag == "--json" {
					var r api.Rotation
					if err := json.Unmarshal([]byte(out), &r); err != nil || r.ID != "r1" {
						t.Errorf("JSON: %q %v", out, err)
					}
				} else if !strings.Contains(errOut, c.says) {
					t.Errorf("says %q", errOut)
				}
			}
		})
	}
}

func TestRotateWatchComesBackWhenTheStreamEnds(t *testing.T) {
	w := newWorld(t)
	w.routes["POST /api/v1/credentials/billing/dev/rotate"] = answer(rot(0, ""))
	n := 0
	w.routes["GET /api/v1/events"] = func(rw http.ResponseWriter, r *http.Request) {
		switch n++; n {
		case 1:
			events(event(rot(1, ""), 0))(rw, r)
		default: // it ended while nobody looked
			events(api.Event{Kind: api.EventReady, At: now})(rw, r)
		}
	}
	gone := 0
	w.routes["GET /api/v1/rotations/r1"] = func(rw http.ResponseWriter, r *http.Request) { gone++; answer(over("done", ""))(rw, r) }
	code, out, errOut := w.run("rotate", "billing", "--env", "dev", "--watch")
	if code != 0 || gone != 1 || n != 2 || !strings.Contains(out, "the rotation is done") {
		t.Errorf("exit %d after %d streams and %d looks: %s%s", code, n, gone, out, errOut)
	}
}

func TestRotateWatchTimesOut(t *testing.T) {
	w := newWorld(t)
	begun := rot(0, "")
	w.routes["GET /api/v1/credentials/billing/dev"] = answer(api.Credential{Rotation: &begun})
	w.routes["GET /api/v1/events"] = events(event(rot(2, "quiet for 1h of 24h"), 0))
	w.hang = true
	code, _, errOut := w.run("status", "billing", "--env", "dev", "--watch", "--timeout", "300ms")
	if code != cli.ExitWaiting || !strings.Contains(errOut, "goes on, waiting: quiet for 1h of 24h\n") || !strings.Contains(errOut, "next: keybaton status billing --env dev --watch") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

// What ends the looking on is said, however soon it comes.
func TestRotateWatchSaysWhatItWaitsFor(t *testing.T) {
	w := newWorld(t)
	person := rot(0, "paste a key")
	person.State, person.Gate.Person, person.Gate.Missing = "waiting_key", true, []string{"make a second key at the vendor"}
	w.routes["POST /api/v1/credentials/billing/dev/rotate"] = answer(rot(0, ""))
	w.routes["GET /api/v1/events"] = events(event(rot(0, ""), 0), event(person, time.Second))
	code, out, _ := w.run("rotate", "billing", "--env", "dev", "--watch")
	if code != cli.ExitWaiting {
		t.Errorf("exit %d", code)
	}
	want(t, "out", out, `billing/dev  v7 → v8  manual, by ops, 20s ago
● generate   at work
● generate   waiting for a person: paste a key
    make a second key at the vendor
`)
}

func TestRotateDryRun(t *testing.T) {
	w := newWorld(t)
	p := api.Plan{Service: "billing", Environment: "dev", Provider: "sendgrid", Warnings: []string{"the vendor cannot list keys"},
		Steps: []api.PlanStep{{Step: "generate", Does: "asks the vendor for a key", Requests: []string{"POST https://api.example.com/keys"}, Gate: "3 probes answer ok"}}}
	w.routes["GET /api/v1/credentials/billing/dev/plan"] = answer(p)
	code, out, _ := w.run("rotate", "billing", "--env", "dev", "--dry-run")
	if code != 0 {
		t.Errorf("exit %d", code)
	}
	want(t, "out", out, `billing/dev  provider sendgrid  (nothing was done)
○ generate   asks the vendor for a key
    POST https://api.example.com/keys
    then waits for: 3 probes answer ok
! the vendor cannot list keys
`)
	p.Refused = "a rotation is open"
	w.routes["GET /api/v1/credentials/billing/dev/plan"] = answer(p)
	if code, _, errOut := w.run("rotate", "billing", "--env", "dev", "--dry-run"); code != cli.ExitConflict || !strings.Contains(errOut, "a rotation is open") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}
