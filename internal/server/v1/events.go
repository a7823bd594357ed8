package v1

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/server"
	"github.com/keybaton/keybaton/internal/store"
)

const (
	keepAlive = 15 * time.Second       // a comment is sent after this long without an event
	minGap    = 100 * time.Millisecond // between two looks, however busy the store is
	sendIn    = 10 * time.Second       // a reader that takes longer is let go
	recent    = 50                     // rotations and alerts that one look goes through
)

func (a *API) registerEvents(h huma.API) {
	o := op{Method: http.MethodGet, Path: api.PathEvents, ID: "events", Tag: "server", Verb: access.See,
		Summary: "Server-sent events: everything as it is, then what changes, with the counters of now"}
	huma.Register(h, huma.Operation{
		Method: o.Method, Path: o.Path, OperationID: o.ID, Summary: o.Summary, Tags: []string{o.Tag},
		Description: "Needs a token that may see. Each event is one JSON object in a data line; the stream ends after some minutes, and readers come back.",
		Responses: map[string]*huma.Response{"200": {Description: "the stream", Content: map[string]*huma.MediaType{
			"text/event-stream": {Schema: h.OpenAPI().Components.Schemas.Schema(typeOf[api.Event](), true, "Event")}}}},
	}, func(ctx context.Context, in *Filter) (*huma.StreamResponse, error) {
		p := server.PrincipalOf(ctx)
		if err := check(p, o, key.CredentialID{}); err != nil {
			return nil, a.server.Problem(ctx, err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			_, w := humago.Unwrap(hc)
			a.serveEvents(hc.Context(), w, p, *in)
		}}, nil
	})
}

// serveEvents writes events until the reader goes, or the time of a stream is
// over.
func (a *API) serveEvents(ctx context.Context, w http.ResponseWriter, p access.Principal, f Filter) {
	ctx, cancel := context.WithTimeout(ctx, a.stream)
	defer cancel()
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	send := func(b []byte) error {
		// Not every writer has deadlines; the flush below fails for a reader that is gone.
		_ = rc.SetWriteDeadline(time.Now().Add(sendIn))
		if _, err := w.Write(b); err != nil {
			return err
		}
		return rc.Flush()
	}
	s := &stream{a: a, p: p, f: f, sent: map[string][]byte{}, open: map[string]bool{}}
	quiet := time.Duration(0)
	for {
		rev := a.store.Revision()
		events, err := s.next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				a.server.Problem(ctx, fmt.Errorf("reading events: %w", err)) // logs it
			}
			return
		}
		var b bytes.Buffer
		for _, e := range events {
			data, err := json.Marshal(e)
			if err != nil {
				a.server.Problem(ctx, fmt.Errorf("encoding an event: %w", err))
				return
			}
			fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", e.Kind, data)
		}
		if quiet += a.every; b.Len() == 0 && quiet >= keepAlive {
			b.WriteString(": still here\n\n")
		}
		if b.Len() > 0 {
			quiet = 0
			if send(b.Bytes()) != nil {
				return
			}
		}
		if !a.pause(ctx, rev) {
			return
		}
	}
}

// pause waits for a new revision or the next tick, but at least minGap. It
// reports whether ctx goes on.
func (a *API) pause(ctx context.Context, rev key.Revision) bool {
	gap := time.NewTimer(min(minGap, a.every))
	defer gap.Stop()
	wait, cancel := context.WithTimeout(ctx, a.every)
	defer cancel()
	_ = a.store.Wait(wait, rev) // either way it is time to look
	select {
	case <-ctx.Done():
		return false
	case <-gap.C:
		return ctx.Err() == nil
	}
}

// stream is what one reader has been sent.
type stream struct {
	a     *API
	p     access.Principal
	f     Filter
	ready bool
	since time.Time
	sent  map[string][]byte // kind and id to the JSON that was sent last
	open  map[string]bool   // rotations that were sent while they were open
}

// next returns what changed since the last call; at first everything.
func (s *stream) next(ctx context.Context) ([]api.Event, error) {
	var out []api.Event
	err := s.a.store.View(ctx, func(tx store.Tx) error {
		out = nil
		v, err := look(tx)
		if err != nil {
			return err
		}
		if s.since.IsZero() {
			s.since = v.now
		}
		cs, err := v.credentials(s.p, s.f)
		if err != nil {
			return err
		}
		for _, c := range cs {
			x, err := v.credential(c, false)
			if err != nil {
				return err
			}
			out = append(out, api.Event{Kind: api.EventCredential, Service: x.Service, Environment: x.Environment, Credential: &x})
		}
		rs, err := s.rotations(v, cs)
		if err != nil {
			return err
		}
		for _, r := range rs {
			x := v.rotation(r)
			out = append(out, api.Event{Kind: api.EventRotation, Service: x.Service, Environment: x.Environment, Rotation: &x})
		}
		alerts, err := tx.Alerts("", recent)
		if err != nil {
			return fmt.Errorf("reading alerts: %w", err)
		}
		for _, al := range alerts {
			id := al.Signal.Credential
			if s.f.takes(id) && s.p.Check(access.See, id) == nil && (al.State == alert.Firing || !al.Ended.Before(s.since)) {
				x := toAlert(al)
				out = append(out, api.Event{Kind: api.EventAlert, Service: x.Service, Environment: x.Environment, Alert: &x})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.changed(out)
}

// rotations returns the open ones, and those that ended while the stream runs.
func (s *stream) rotations(v *view, cs []key.Credential) ([]rotation.Rotation, error) {
	var out []rotation.Rotation
	for _, c := range cs {
		rs, err := v.tx.Rotations(c.ID, 3)
		if err != nil {
			return nil, fmt.Errorf("reading rotations: %w", err)
		}
		for _, r := range rs {
			if !r.State.Ended() || s.open[r.ID] || !r.Ended.Before(s.since) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// changed keeps the events that differ from what was sent, and adds those for
// what is gone.
func (s *stream) changed(all []api.Event) ([]api.Event, error) {
	var out []api.Event
	at, rev := s.a.now().UTC(), toRevision(s.a.store.Revision())
	there := map[string]bool{}
	for _, e := range all {
		id := e.Kind + " " + e.Service + "/" + e.Environment
		switch {
		case e.Rotation != nil:
			id = e.Kind + " " + e.Rotation.ID
			if s.open[e.Rotation.ID] = !e.Rotation.Over; e.Rotation.Over {
				delete(s.open, e.Rotation.ID)
			}
		case e.Alert != nil:
			id = e.Kind + " " + e.Alert.ID
		}
		there[id] = true
		b, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("encoding an event: %w", err)
		}
		if bytes.Equal(b, s.sent[id]) {
			continue
		}
		s.sent[id] = b
		e.At, e.Revision = at, rev
		out = append(out, e)
	}
	for id := range s.sent {
		if there[id] {
			continue
		}
		var old api.Event
		if err := json.Unmarshal(s.sent[id], &old); err != nil {
			return nil, fmt.Errorf("reading what was sent: %w", err)
		}
		delete(s.sent, id)
		if old.Kind == api.EventCredential {
			out = append(out, api.Event{Kind: api.EventRemoved, Service: old.Service, Environment: old.Environment, At: at, Revision: rev})
		}
	}
	if !s.ready {
		s.ready = true
		out = append(out, api.Event{Kind: api.EventReady, At: at, Revision: rev})
	}
	return out, nil
}
