package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
)

// watchFlags are the flags of verbs that can follow a rotation.
type watchFlags struct {
	watch   bool
	timeout time.Duration
}

func (w *watchFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.BoolVarP(&w.watch, "watch", "w", false, "follow the rotation until it ends or waits for a person")
	f.DurationVar(&w.timeout, "timeout", 0, "with --watch: stop looking after this long (exit code 6; the rotation goes on)")
}

const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 5 * time.Second
	giveUp     = time.Minute      // without an answer of the server
	sayAgain   = 10 * time.Second // between two lines about the same step
)

// errSeen ends a stream when there is nothing more to see.
var errSeen = errors.New("seen")

// follower shows one rotation as it goes.
type follower struct {
	*session
	id      string
	last    api.Rotation
	seen    bool              // last is set
	present bool              // the present stream told of it
	said    map[string]string // step to the line that was said last
	when    map[string]time.Time
	begun   bool
}

// follow shows the rotation until it is over, waits for a person, or timeout
// (0: never) is reached. The error carries the exit code for how it went.
func (s *session) follow(ctx context.Context, c *client.Client, id client.Credential, rotation string, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	f := &follower{session: s, id: rotation, said: map[string]string{}, when: map[string]time.Time{}}
	wait, lost := retryFirst, time.Time{}
	for {
		f.present = false
		err := c.Events(ctx, client.Filter(id), func(e api.Event) error {
			wait, lost = retryFirst, time.Time{}
			return f.take(ctx, c, e)
		})
		switch {
		case errors.Is(err, errSeen):
			return f.verdict(id)
		case ctx.Err() != nil:
			return f.unfinished(id)
		case err == nil: // streams end now and then
		case !client.IsCode(err, client.CodeUnreachable):
			return err
		case lost.IsZero(): // the rotation runs on the server whether we look or not
			lost, s.drawn = s.io.Now(), 0
			s.remark("the server does not answer; trying again")
		case s.io.Now().Sub(lost) > giveUp:
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return f.unfinished(id)
		case <-t.C:
		}
		wait = min(2*wait, retryMost)
	}
}

// take handles one event; errSeen ends the stream.
func (f *follower) take(ctx context.Context, c *client.Client, e api.Event) error {
	if e.Kind == api.EventReady && !f.present {
		// It ended before this stream began.
		r, err := c.Rotation(ctx, f.id)
		if err != nil {
			return err
		}
		return f.show(r, e.At)
	}
	if e.Rotation == nil || e.Rotation.ID != f.id {
		return nil
	}
	return f.show(*e.Rotation, e.At)
}

func (f *follower) show(r api.Rotation, at time.Time) error {
	f.last, f.seen, f.present = r, true, true
	switch {
	case f.json:
		if err := f.compact(r); err != nil {
			return err
		}
	case f.width > 0:
		f.draw(f.rotation(r))
	default:
		f.lines(r, at)
	}
	if ends(r) {
		return errSeen
	}
	return nil
}

// ends reports whether there is nothing more to see of r until a person acts.
func ends(r api.Rotation) bool {
	return r.Over || r.Paused || r.State == "stopped" || r.Gate.Person && !r.Gate.Open
}

// lines says what is new, as plain lines.
func (f *follower) lines(r api.Rotation, at time.Time) {
	if !f.begun {
		f.begun = true
		f.say(f.title(r)...)
	}
	for _, st := range r.Steps {
		if st.State != api.StepDone && st.State != api.StepCurrent {
			continue
		}
		line := f.line(stepSpans(r, st)...)
		soon := st.State == api.StepCurrent && f.said[st.Name] != "" && at.Sub(f.when[st.Name]) < sayAgain
		if f.said[st.Name] == line || soon && !ends(r) {
			continue
		}
		f.said[st.Name], f.when[st.Name] = line, at
		_, _ = fmt.Fprintln(f.out, line)
		if st.State == api.StepCurrent {
			for _, m := range missing(r) {
				f.say(m...)
			}
		}
	}
	if r.Over {
		if e := evidenceSpans(r); len(e) > 0 {
			f.say(e...)
		}
	}
}

// verdict says how it ended.
func (f *follower) verdict(id client.Credential) error {
	r, name := f.last, id.Service+"/"+id.Environment
	switch r.State {
	case "done":
		if !f.json {
			end := "the rotation is done"
			if r.Proof != "" && r.From != 0 {
				end += "; " + version(r.From) + ": " + r.Proof
			}
			f.say(span{"✓", good}, span{" " + name + ": " + end, plain})
		}
		return nil
	case "rolled_back":
		return Fail(ExitFailed, name+" was rolled back: "+clean(r.Back), "keybaton audit list shows what happened")
	case "superseded":
		return Fail(ExitConflict, "another rotation of "+name+" took the place of this one", "follow it: keybaton status "+id.Service+" --env "+id.Environment+" --watch")
	case "stopped":
		return Fail(ExitWaiting, "the rotation of "+name+" is stopped and both keys are kept: "+clean(r.Why), "when it is mended: keybaton rotate resume "+id.Service+" --env "+id.Environment)
	}
	if r.Paused {
		return Fail(ExitWaiting, "the rotation of "+name+" is paused", "keybaton rotate resume "+id.Service+" --env "+id.Environment)
	}
	next := opens(r.Gate.Missing, "keybaton rotate approve "+id.Service+" --env "+id.Environment)
	if r.State == "waiting_key" {
		next = "keybaton set " + id.Service + " --env " + id.Environment
	}
	return Fail(ExitWaiting, "the rotation of "+name+" waits for a person: "+clean(r.Gate.Reason), next)
}

// unfinished says that looking on ended before the rotation did.
func (f *follower) unfinished(id client.Credential) error {
	what := "the rotation of " + id.Service + "/" + id.Environment + " goes on"
	if f.seen && f.last.Gate.Reason != "" && !f.last.Gate.Open {
		what += ", waiting: " + clean(f.last.Gate.Reason)
	}
	return Fail(ExitWaiting, what, "keybaton status "+id.Service+" --env "+id.Environment+" --watch")
}

// opens returns what opens a gate that waits for a person: the command that the
// gate names, or what it names instead of one. Only where it names nothing it
// is approving.
func opens(missing []string, approve string) string {
	for _, m := range slices.Backward(missing) {
		if strings.Contains(m, "keybaton ") {
			return clean(m)
		}
	}
	if len(missing) > 0 {
		return clean(strings.Join(missing, "; "))
	}
	return approve
}
