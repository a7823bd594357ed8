package call

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// ProbeTimeout bounds one probe, whatever the caller's context allows.
const ProbeTimeout = 15 * time.Second

// Probe is a compiled probe: the cheap, read-only request that tells whether a
// version works. It is safe for concurrent use.
type Probe struct {
	method string
	url    *url.URL
	header http.Header
	body   string
	place  Place
	rules  Rules
}

// ProbeResult is what a probe found.
type ProbeResult struct {
	Outcome evidence.Outcome
	Status  int    // of the vendor's answer; 0: there was none
	Text    string // "401 Unauthorized", or why there was no answer; never a body, never a key
}

// CompileProbe compiles the probe of c. A call without a probe is
// key.ErrInvalid, with what to declare.
func CompileProbe(c key.Call) (*Probe, error) {
	if c.Probe == nil {
		return nil, key.WithHint(fmt.Errorf("%w: no probe is declared", key.ErrInvalid), "declare probe, such as {get: /me, valid: [200], invalid: [401]}")
	}
	base, err := ParseUpstream(c.Upstream)
	if err != nil {
		return nil, err
	}
	p := &Probe{method: strings.ToUpper(c.Probe.Method), header: http.Header{}, body: c.Probe.Body}
	if p.method == "" {
		p.method = http.MethodGet
	}
	if !httpguts.ValidHeaderFieldName(p.method) {
		return nil, fmt.Errorf("%w: probe: %q is not a method", key.ErrInvalid, c.Probe.Method)
	}
	if p.url, err = probeURL(base, c.Probe.Path); err != nil {
		return nil, err
	}
	p.header.Set("User-Agent", "keybaton")
	p.header.Set("Accept", "*/*")
	for name, v := range c.Probe.Header {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) {
			return nil, fmt.Errorf("%w: probe: header %q cannot be sent", key.ErrInvalid, name)
		}
		p.header.Set(name, v)
	}
	if p.place, err = CompilePlace(c.Place, c.PartNames()); err != nil {
		return nil, err
	}
	if p.rules, err = CompileProbeRules(c.Probe.Rules, c.Rules); err != nil {
		return nil, err
	}
	return p, nil
}

func probeURL(base *url.URL, path string) (*url.URL, error) {
	ref, err := url.Parse(path)
	if err != nil {
		return nil, fmt.Errorf("%w: probe: its path is not one", key.ErrInvalid)
	}
	if ref.IsAbs() || ref.Host != "" {
		if !strings.EqualFold(ref.Scheme, base.Scheme) || !strings.EqualFold(ref.Host, base.Host) || ref.User != nil {
			return nil, key.WithHint(fmt.Errorf("%w: probe: %s is not the upstream's host", key.ErrInvalid, ref.Host), "probe a path under "+base.Scheme+"://"+base.Host)
		}
		ref.Fragment = ""
		return ref, nil
	}
	u := *base
	if ref.Path != "" {
		joined, err := url.Parse(base.EscapedPath() + "/" + strings.TrimLeft(ref.EscapedPath(), "/"))
		if err != nil {
			return nil, fmt.Errorf("%w: probe: its path is not one", key.ErrInvalid)
		}
		u.Path, u.RawPath = joined.Path, joined.RawPath
	}
	u.RawQuery = ref.RawQuery
	return &u, nil
}

// String returns "METHOD URL" of the probe, with no key in it.
func (p *Probe) String() string { return p.method + " " + p.url.String() }

// Do probes the parts through rt. It follows no redirect and reads at most
// [BodyLimit] bytes of the answer. A vendor that cannot be reached, or does
// not answer within [ProbeTimeout], is the outcome other; an error is a probe
// that could not be made, or the end of ctx.
func (p *Probe) Do(ctx context.Context, rt http.RoundTripper, parts secret.Parts) (ProbeResult, error) {
	r, err := p.place.Render(parts)
	if err != nil {
		return ProbeResult{}, fmt.Errorf("preparing the probe: %w", err)
	}
	return p.DoRendered(ctx, rt, r)
}

// DoRendered is Do for a key that is rendered already, at the place of the
// call that the probe was compiled from.
func (p *Probe) DoRendered(ctx context.Context, rt http.RoundTripper, r Rendered) (ProbeResult, error) {
	tctx, cancel := context.WithTimeout(ctx, ProbeTimeout)
	defer cancel()
	var body io.Reader
	if p.body != "" {
		body = strings.NewReader(p.body)
	}
	req, err := http.NewRequestWithContext(tctx, p.method, p.url.String(), body)
	if err != nil {
		return ProbeResult{}, fmt.Errorf("preparing the probe: %w", err)
	}
	req.Header = p.header.Clone()
	if err := r.Apply(req); err != nil {
		return ProbeResult{}, fmt.Errorf("preparing the probe: %w", err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return ProbeResult{}, fmt.Errorf("probing: %w", ctx.Err())
		}
		return ProbeResult{Outcome: evidence.Other, Text: FailureText(err)}, nil
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, BodyLimit+1))
	if ctx.Err() != nil {
		return ProbeResult{}, fmt.Errorf("probing: %w", ctx.Err())
	}
	whole := err == nil && len(b) <= BodyLimit
	o, _ := p.rules.Classify(Answer{Method: p.method, Status: resp.StatusCode, Header: resp.Header, Body: b[:min(len(b), BodyLimit)], Whole: whole})
	return ProbeResult{Outcome: o, Status: resp.StatusCode, Text: StatusText(resp.StatusCode)}, nil
}

// StatusText returns "401 Unauthorized" for 401.
func StatusText(status int) string {
	if t := http.StatusText(status); t != "" {
		return strconv.Itoa(status) + " " + t
	}
	return strconv.Itoa(status)
}

// FailureText says in a few words why there was no answer. It never holds what
// was sent: the text of err itself may.
func FailureText(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var errno syscall.Errno
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var ne net.Error
	switch {
	case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid):
		return "no answer: the vendor's certificate is not trusted"
	case errors.As(err, &dns):
		return "no answer: the vendor's name does not resolve"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return "no answer: timed out"
	case errors.As(err, &errno):
		return "no answer: " + errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "no answer: the connection was closed"
	case errors.As(err, &op):
		return "no answer: " + op.Op + " went wrong"
	}
	return "no answer"
}
