package recipe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/spec"
)

// maxAnswer is the most that is read of one answer, in bytes.
const maxAnswer = 8 << 20

// actKind says what an answer that never came, or a bad one, can mean.
type actKind int

const (
	onRead       actKind = iota // nothing is changed: it can be asked again
	onIdempotent                // doing it twice is doing it once
	onCreate                    // what was not answered may have been done
)

// answer is one answer of the vendor.
type answer struct {
	status int
	header http.Header
	body   []byte
	url    *url.URL // of the request, before the manager key was put on it
	doc    any      // the body as JSON; nil when it is none
}

// sender makes one call and checks its answer.
type sender func(ctx context.Context, a spec.Act, v spec.Values, kind actKind) (answer, error)

// begin resolves what all acts in env need: params, and how to send.
func (c *core) begin(env provider.Env) (spec.Values, sender, error) {
	v, err := c.values(env)
	if err != nil {
		return nil, nil, err
	}
	base, err := c.address(c.Manager.Base, v)
	if err != nil {
		return nil, nil, err
	}
	if c.Manager.Wanted != "" && len(env.Manager) == 0 {
		return nil, nil, denied(fmt.Errorf("%s needs a manager key", c.ID), "name the service that holds it: manager: SERVICE")
	}
	for _, name := range c.Manager.Parts {
		if m, ok := env.Manager[name]; ok {
			v["manager."+name] = m
		}
	}
	return v, func(ctx context.Context, a spec.Act, v spec.Values, kind actKind) (answer, error) {
		return c.send(ctx, env, base, a, v, kind)
	}, nil
}

// build makes the request of q under base, without the manager key.
func build(ctx context.Context, q spec.Request, base string, v spec.Values) (*http.Request, error) {
	path, err := q.Path.Text(v, spec.PathSegment)
	if err != nil {
		return nil, fmt.Errorf("path: %w", err)
	}
	u, err := url.Parse(base + path)
	if err != nil {
		return nil, errors.New("the path cannot be written as a URL")
	}
	if u.RawQuery, err = form(q.Query, v); err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	body, ctype, err := bodyOf(q, v)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, q.Method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the request cannot be made")
	}
	if len(body) == 0 {
		req.Body, req.GetBody = http.NoBody, nil
	}
	// NOTE: GetBody would let the transport send a request again by itself.
	req.GetBody = nil
	req.Header.Set("User-Agent", "keybaton")
	req.Header.Set("Accept", "application/json, */*;q=0.5")
	if ctype != "" {
		req.Header.Set("Content-Type", ctype)
	}
	for _, h := range q.Header {
		s, err := h.Value.Text(v, nil)
		if errors.Is(err, spec.ErrAbsent) {
			continue
		}
		if err != nil || !httpguts.ValidHeaderFieldValue(s) || !httpguts.ValidHeaderFieldName(h.Name) {
			return nil, fmt.Errorf("header %s cannot be sent", h.Name)
		}
		req.Header.Set(h.Name, s)
	}
	return req, nil
}

func bodyOf(q spec.Request, v spec.Values) (body []byte, ctype string, err error) {
	switch {
	case q.JSON != nil:
		b, err := encode(q.JSON, v)
		if err != nil {
			return nil, "", fmt.Errorf("json: %w", err)
		}
		return b, "application/json", nil
	case q.Form != nil:
		s, err := form(q.Form, v)
		if err != nil {
			return nil, "", fmt.Errorf("form: %w", err)
		}
		return []byte(s), "application/x-www-form-urlencoded", nil
	}
	return nil, "", nil
}

// form renders fields as a query or form; those without a value are left out.
func form(fields []spec.Named, v spec.Values) (string, error) {
	vals := url.Values{}
	for _, f := range fields {
		s, err := f.Value.Text(v, nil)
		if errors.Is(err, spec.ErrAbsent) {
			continue
		}
		if err != nil {
			return "", err
		}
		vals.Set(f.Name, s)
	}
	return vals.Encode(), nil
}

// encode renders t as JSON.
func encode(t *spec.Tree, v spec.Values) ([]byte, error) {
	x, err := t.Value(v)
	if err != nil && !errors.Is(err, spec.ErrAbsent) {
		return nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(x); err != nil {
		return nil, errors.New("the body cannot be written as JSON")
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// send makes the call a and returns its answer when it is as expected. For
// idempotent acts what is gone counts as done.
func (c *core) send(ctx context.Context, env provider.Env, base string, a spec.Act, v spec.Values, kind actKind) (answer, error) {
	req, err := build(ctx, a.Request, base, v)
	if err != nil {
		return answer{}, &provider.Error{Kind: provider.Denied, Text: "preparing the request: " + err.Error()}
	}
	return c.exchange(env, req, a, kind)
}

// exchange puts the manager key on req, sends it, and reads the answer.
func (c *core) exchange(env provider.Env, req *http.Request, a spec.Act, kind actKind) (answer, error) {
	bare := *req.URL
	if c.Manager.Wanted != "" {
		r, err := c.Manager.Place.Render(env.Manager)
		if err == nil {
			err = r.Apply(req)
		}
		if err != nil {
			return answer{}, denied(errors.New("the manager key cannot be put on the request"), "look at the parts of the manager key: "+strings.Join(c.Manager.Parts, ", "))
		}
	}
	ctx := req.Context()
	var asked, got atomic.Bool
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { asked.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	}))
	resp, err := env.Transport.RoundTrip(req)
	if err != nil {
		return answer{}, c.unanswered(ctx, err, kind, asked.Load() && !got.Load())
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		return answer{}, &provider.Error{Kind: lost(kind), Text: fmt.Sprintf("%s answered with more than %d bytes", c.Vendor, maxAnswer)}
	}
	if err != nil {
		return answer{}, c.unanswered(ctx, err, kind, false)
	}
	ans := answer{status: resp.StatusCode, header: resp.Header, body: body, url: &bare, doc: decode(body)}
	return ans, c.judge(req.Method, a, ans, kind)
}

// decode returns the body as JSON, numbers as json.Number; nil for none.
func decode(body []byte) any {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil
	}
	return v
}

// lost is the kind of what was asked and not answered.
func lost(k actKind) provider.Kind {
	if k == onCreate {
		return provider.Ambiguous
	}
	return provider.Transient
}

// unanswered classifies a call without an answer; unsent says that no
// connection was got.
func (c *core) unanswered(ctx context.Context, err error, kind actKind, unsent bool) error {
	k := lost(kind)
	var op *net.OpError
	var dns *net.DNSError
	if unsent || errors.As(err, &dns) || errors.As(err, &op) && op.Op == "dial" {
		k = provider.Transient
	}
	// NOTE: the text of err may hold what the vendor sent; it is not passed on.
	e := &provider.Error{Kind: k, Text: c.Vendor + ": " + call.FailureText(err)}
	if cause := ctx.Err(); cause != nil {
		e.Text, e.Err = c.Vendor+" was not waited for: "+cause.Error(), cause
	}
	return e
}

// holds reports whether cond holds for the answer.
func holds(cond spec.Condition, method string, a answer) bool {
	o, _ := cond.Rules.Classify(call.Answer{Method: method, Status: a.status, Header: a.header, Body: a.body, Whole: true})
	return o == evidence.OK
}

// judge returns nil when the answer is as expected, or its classification.
func (c *core) judge(method string, a spec.Act, ans answer, kind actKind) error {
	if holds(a.Expect, method, ans) {
		return nil
	}
	if kind == onIdempotent && a.Gone != nil && holds(*a.Gone, method, ans) {
		return nil
	}
	e := &provider.Error{Text: fmt.Sprintf("%s answered %s", c.Vendor, call.StatusText(ans.status)), After: retryAfter(ans.header, time.Now())}
	switch s := ans.status; {
	case kind == onCreate && c.Limits.Full != nil && holds(*c.Limits.Full, method, ans):
		e.Kind = provider.Full
		e.Text += ": there is no room for another key"
	case s == http.StatusTooManyRequests:
		e.Kind = provider.Transient
		e.Text += ": too many requests"
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		e.Kind = provider.Denied
		e.Text += " to the manager key; check that it is valid and has the scopes that the recipe " + c.ID + " names"
	case s == http.StatusRequestTimeout, s >= 500:
		e.Kind = lost(kind)
	case s >= 200 && s < 300:
		e.Kind = lost(kind)
		if kind != onCreate {
			e.Kind = provider.Denied
		}
		e.Text += ", not as the recipe " + c.ID + " expects (" + a.Expect.Text + ")"
	default:
		e.Kind = provider.Denied
	}
	return e
}

// retryAfter reads the header Retry-After: seconds, or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	s := h.Get("Retry-After")
	if n, err := strconv.ParseInt(s, 10, 32); err == nil && n > 0 {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		if d, err := http.ParseTime(h.Get("Date")); err == nil {
			now = d // the vendor's own clock, where it says it
		}
		return max(0, t.Sub(now))
	}
	return 0
}

// wrapped returns err as kind k with text before it; After is kept.
func wrapped(k provider.Kind, err error, before string) *provider.Error {
	e := &provider.Error{Kind: k, Text: before + err.Error(), Err: err}
	if in := (*provider.Error)(nil); errors.As(err, &in) {
		e.After = in.After
	}
	return e
}

// pathText lets a value into a JSON path only where it cannot change the path.
func pathText(s string, _ bool) (string, error) {
	if s == "" || strings.ContainsAny(s, `'"[]()\`) {
		return "", errors.New("cannot stand in a path")
	}
	return s, nil
}

var errNothing = errors.New("nothing is there")

// take takes the value out of the answer.
func take(x spec.Extract, a answer, v spec.Values) (any, error) {
	var got any
	switch {
	case x.Value != nil:
		t := spec.Tree{Kind: spec.IsText, Text: *x.Value}
		y, err := t.Value(v)
		if err != nil {
			return nil, err
		}
		got = y
	case x.Header != "":
		s := a.header.Get(x.Header)
		if s == "" {
			return nil, errNothing
		}
		got = s
	case x.XML != nil:
		s, ok := xmlText(a.body, x.XML)
		if !ok {
			return nil, errNothing
		}
		got = s
	default:
		path := x.Path
		if x.LivePath != nil {
			s, err := x.LivePath.Text(v, pathText)
			if err != nil {
				return nil, err
			}
			if path, err = call.ParsePath(s); err != nil {
				return nil, err
			}
		}
		y, ok := path.Find(a.doc)
		if !ok || a.doc == nil {
			return nil, errNothing
		}
		got = y
	}
	if x.Match == nil {
		return got, nil
	}
	s, err := spec.AsText(got)
	if err != nil {
		return nil, err
	}
	m := x.Match.FindStringSubmatch(s)
	if m == nil {
		return nil, errNothing
	}
	return m[len(m)-1], nil
}
