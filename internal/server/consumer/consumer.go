// Package consumer is the HTTP routes of whatever holds keys: gateways and
// clients follow the stream of frames, acknowledge and report; readers read.
// The paths and bodies are those of package link.
//
// Who asks is checked for every request, and for every frame of a stream, so
// that a withdrawn token ends the stream at once. Everything that decides is
// the desk's; this package only carries. Keys pass through it in encoded form
// and are kept nowhere.
package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/handover"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/internal/server"
)

// Config is what the routes work with. Server and Desk are required.
type Config struct {
	Server    *server.Server
	Desk      *handover.Desk
	Heartbeat time.Duration // between signs of life on a quiet stream; default 5 s
}

// Routes are the routes of consumers. They are safe for concurrent use.
type Routes struct {
	server *server.Server
	desk   *handover.Desk
	beat   time.Duration

	// Headers of every answer, shared: they are never changed.
	jsonType, noStore []string
}

// Limits of the bodies and of one write to a consumer that does not read.
const (
	maxAck    = 2 << 20
	maxReport = 64 << 20
	writeTime = 30 * time.Second
)

// New returns the routes, or [key.ErrInvalid] when something required is
// missing.
func New(c Config) (*Routes, error) {
	if c.Server == nil || c.Desk == nil {
		return nil, fmt.Errorf("%w: the routes of consumers need a server and a desk", key.ErrInvalid)
	}
	if c.Heartbeat <= 0 {
		c.Heartbeat = 5 * time.Second
	}
	return &Routes{server: c.Server, desk: c.Desk, beat: c.Heartbeat,
		jsonType: []string{"application/json"}, noStore: []string{"no-store"}}, nil
}

// Register adds the routes to mux. It belongs behind server.Server.Wrap.
func (c *Routes) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET "+link.WatchPath, c.watch)
	mux.HandleFunc("POST "+link.AckPath, c.ack)
	mux.HandleFunc("POST "+link.ReportPath, c.report)
	mux.HandleFunc("GET "+link.ReadPath, c.read)
}

// Fast returns a handler that answers reads at once, and gives next all the
// rest, which is registered there as well: other requests, and reads that are
// refused, fail or are written unusually. Reads outnumber everything else, are
// safe of themselves, and need nothing of what stands in front of the others.
func (c *Routes) Fast(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Path == link.ReadPath {
			if h := c.try(r); h != nil {
				c.hand(w, h)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// try returns the key that r asks for, or nil for any reason: who answers then
// finds it again, and says it.
func (c *Routes) try(r *http.Request) (h *handover.Handout) {
	id, ok := plain(r.URL.RawQuery)
	if !ok {
		return nil
	}
	defer func() {
		if recover() != nil {
			h = nil
		}
	}()
	by, err := c.server.Authenticate(r)
	if err != nil {
		return nil
	}
	if h, err = c.desk.ReadPair(r.Context(), by, id); err != nil {
		return nil
	}
	return h
}

// plain reads the query of a read as every client of ours writes it: two names,
// in either order, with nothing escaped.
func plain(query string) (id key.CredentialID, ok bool) {
	if strings.ContainsAny(query, "%+;") {
		return id, false
	}
	first, second, _ := strings.Cut(query, "&")
	for _, p := range [...]string{first, second} {
		name, v, _ := strings.Cut(p, "=")
		switch {
		case strings.Contains(v, "&"):
			return id, false
		case name == "service" && id.Service == "":
			id.Service = v
		case name == "environment" && id.Environment == "":
			id.Environment = v
		default:
			return id, false
		}
	}
	return id, id.Service != "" && id.Environment != ""
}

// hand answers with a key.
func (c *Routes) hand(w http.ResponseWriter, h *handover.Handout) {
	head := w.Header()
	head["Content-Type"], head["Cache-Control"] = c.jsonType, c.noStore
	head["Content-Length"] = []string{strconv.Itoa(h.Size())}
	_, _ = h.WriteTo(w) // a caller who is gone reads again
}

// read answers with the key of one credential.
func (c *Routes) read(w http.ResponseWriter, r *http.Request) {
	by, err := c.server.Authenticate(r)
	if err != nil {
		c.server.Fail(w, r, err)
		return
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	id := key.CredentialID{Service: q.Get("service"), Environment: q.Get("environment")}
	if err != nil || id.Service == "" || id.Environment == "" {
		c.server.Fail(w, r, key.WithHint(fmt.Errorf("%w: a read names a service and an environment", key.ErrInvalid), "write ?service=NAME&environment=NAME"))
		return
	}
	h, err := c.desk.ReadPair(r.Context(), by, id)
	if err != nil {
		c.server.Fail(w, r, err)
		return
	}
	c.hand(w, h)
}

// ack takes an acknowledgement.
func (c *Routes) ack(w http.ResponseWriter, r *http.Request) {
	var a evidence.Ack
	c.take(w, r, maxAck, &a, func(ctx context.Context, by access.Principal) error { return c.desk.Ack(ctx, by, a) })
}

// report takes a report.
func (c *Routes) report(w http.ResponseWriter, r *http.Request) {
	var v evidence.Report
	c.take(w, r, maxReport, &v, func(ctx context.Context, by access.Principal) error { return c.desk.Report(ctx, by, v) })
}

// take reads the body into v and gives it to do; who asks is known before any
// of it is read.
func (c *Routes) take(w http.ResponseWriter, r *http.Request, limit int64, v any, do func(context.Context, access.Principal) error) {
	by, err := c.server.Authenticate(r)
	if err == nil {
		err = by.Check(access.Follow, key.CredentialID{})
	}
	if err != nil {
		c.server.Fail(w, r, err)
		return
	}
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		c.server.Fail(w, r, c.server.Invalid(r.Context(), http.StatusUnsupportedMediaType, "the body is not JSON", "send it as application/json"))
		return
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit)).Decode(v); err != nil {
		p := c.server.Invalid(r.Context(), http.StatusBadRequest, "the body cannot be read", "compare it with the reference of the line")
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			p = c.server.Invalid(r.Context(), http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", limit), "send less at once")
		}
		c.server.Fail(w, r, p)
		return
	}
	if err := do(r.Context(), by); err != nil {
		c.server.Fail(w, r, err)
		return
	}
	w.Header()["Cache-Control"] = c.noStore
	w.WriteHeader(http.StatusNoContent)
}

// watch streams the frames of one process of a consumer: one at once, then one
// whenever the store has moved. Revisions that come while a frame is being sent
// arrive together, in the next.
func (c *Routes) watch(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	q := r.URL.Query()
	boot := q.Get("boot")
	var since key.Revision
	if s := q.Get("since"); s != "" {
		var err error
		if since, err = key.ParseRevision(s); err != nil {
			c.server.Fail(w, r, err)
			return
		}
	}
	rc := http.NewResponseController(w)
	last := since
	for begun := false; ; {
		by, err := c.server.Authenticate(r)
		var f link.Frame
		if err == nil {
			f, err = c.desk.Frame(ctx, by, boot, last)
		}
		if err != nil {
			if !begun {
				c.server.Fail(w, r, err)
			}
			return // the consumer comes again, and is told why
		}
		if !begun {
			head := w.Header()
			head.Set("Content-Type", "text/event-stream")
			head["Cache-Control"] = c.noStore
			head.Set("X-Accel-Buffering", "no") // for nginx, which would hold frames back
			w.WriteHeader(http.StatusOK)
		}
		if !begun || f.Revision != last {
			if err := sendFrame(w, rc, f); err != nil {
				return
			}
		}
		begun, last = true, f.Revision
		if !c.wait(ctx, w, rc, r, last) {
			return
		}
	}
}

// wait keeps the stream alive until the store has moved on from last. It
// reports false when the stream has ended.
func (c *Routes) wait(ctx context.Context, w http.ResponseWriter, rc *http.ResponseController, r *http.Request, last key.Revision) bool {
	for {
		quiet, cancel := context.WithTimeout(ctx, c.beat)
		err := c.desk.Wait(quiet, last)
		cancel()
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil, !errors.Is(err, context.DeadlineExceeded):
			return false
		}
		if _, err := c.server.Authenticate(r); err != nil { // it may have expired
			return false
		}
		if send(w, rc, []byte(": alive\n\n")) != nil {
			return false
		}
	}
}

func sendFrame(w http.ResponseWriter, rc *http.ResponseController, f link.Frame) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	defer clear(data)
	b := make([]byte, 0, len(data)+64)
	b = append(b, "id: "...)
	b = append(b, f.Revision.String()...)
	b = append(b, "\nevent: frame\ndata: "...)
	b = append(b, data...)
	b = append(b, "\n\n"...)
	defer clear(b)
	return send(w, rc, b)
}

// send writes b and sees it off. A consumer that does not read for long is cut
// off.
func send(w http.ResponseWriter, rc *http.ResponseController, b []byte) error {
	if err := rc.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	return rc.Flush()
}
