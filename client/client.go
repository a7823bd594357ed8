// Package client talks to a Keybaton server: one method for each route of
// /api/v1, and the making of tokens.
//
// Keys leave the program only in [Client.Set] and [Client.Import], and come in
// only through [Client.Read] and [Client.Follow], as secret.Values. A token is sent to the one
// address that was configured and to no other: redirects are not followed, and
// plain HTTP is refused off loopback. Nothing is repeated by itself; a failed
// call is an [*Error] that says whether anything can have been done.
//
// A Client keeps no state and starts no goroutine; it is safe for concurrent
// use. [Keys] is for programs that call a vendor themselves, without a gateway:
// it follows the keys, puts them on requests, falls back, and tells the server
// what it sees, so that a rotation waits for it.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/secret"
)

// DefaultAddress is where a server on the same machine listens.
const DefaultAddress = "http://127.0.0.1:7460"

// Config is what a Client works with.
type Config struct {
	Address      string       // "" means DefaultAddress
	Token        secret.Value // may be empty: every route but the description then answers no_token
	HTTP         *http.Client // nil means one with sensible time-outs; its redirects are never followed
	InsecureHTTP bool         // send the token over plain HTTP to hosts that are not loopback
	UserAgent    string       // "" means keybaton-client
}

// Client calls one server.
type Client struct {
	base  *url.URL
	token secret.Value
	http  *http.Client
	agent string
}

// maxAnswer bounds what is read of one answer, in bytes: a hundred thousand
// credentials take about a hundred megabytes.
const maxAnswer = 512 << 20

// New returns a Client. It does not call the server. The error is an [*Error]
// with [api.CodeInvalid] for an address that is none or is not safe.
func New(c Config) (*Client, error) {
	if c.Address == "" {
		c.Address = DefaultAddress
	}
	u, err := url.Parse(c.Address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, &Error{Code: api.CodeInvalid, Detail: "the address of the server is not a URL such as https://keys.example.com", Next: "check --addr or KEYBATON_ADDR"}
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) && !c.InsecureHTTP {
		return nil, &Error{Code: api.CodeInvalid, Detail: "the token would cross the network in the clear: " + u.Host + " is not this machine and the address is not https",
			Next: "use https, or say --insecure-http (KEYBATON_INSECURE_HTTP=1) where the network itself is encrypted"}
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	if c.HTTP == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = time.Minute
		c.HTTP = &http.Client{Transport: t}
	}
	h := *c.HTTP
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.UserAgent == "" {
		c.UserAgent = "keybaton-client"
	}
	return &Client{base: u, token: c.Token, http: &h, agent: c.UserAgent}, nil
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// Address returns the address of the server.
func (c *Client) Address() string { return c.base.String() }

// Error is a call that failed.
type Error struct {
	Status    int    // of the answer; 0 when there was none
	Code      string // one of the api.Code constants, or CodeUnreachable or CodeAnswer
	Detail    string // what went wrong, without a final period
	Next      string // the next step; may be ""
	RequestID string
	Err       error // cause; may be nil
}

// Codes of an [Error] that no server sends.
const (
	CodeUnreachable = "unreachable" // no answer: whether anything was done is not known
	CodeAnswer      = "answer"      // an answer that is not one of Keybaton's
)

// Error returns the detail.
func (e *Error) Error() string { return e.Detail }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// path fills the names in braces of a path of package api.
func path(pattern string, names ...string) string {
	for i := 0; i+1 < len(names); i += 2 {
		pattern = strings.Replace(pattern, "{"+names[i]+"}", url.PathEscape(names[i+1]), 1)
	}
	return pattern
}

func (c *Client) request(ctx context.Context, method, path string, q url.Values, body any) (*http.Request, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, &Error{Code: api.CodeInvalid, Detail: "the request cannot be encoded", Err: err}
		}
		r = bytes.NewReader(b)
	}
	u := c.base.String() + path
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, r)
	if err != nil {
		return nil, &Error{Code: api.CodeInvalid, Detail: "the request cannot be made", Err: err}
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.agent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if !c.token.IsZero() {
		req.Header.Set("Authorization", "Bearer "+string(c.token.Reveal()))
	}
	return req, nil
}

func (c *Client) send(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		if ctxErr := req.Context().Err(); ctxErr != nil {
			return nil, &Error{Code: CodeUnreachable, Detail: "the call was given up before the server answered", Err: ctxErr}
		}
		return nil, &Error{Code: CodeUnreachable, Detail: "no answer from " + c.base.Host + ": " + reason(err),
			Next: "is a server running there? Start one with keybaton serve, or name another with --addr or KEYBATON_ADDR", Err: err}
	}
	return resp, nil
}

// reason returns the innermost text of a network error: the outer ones repeat
// the URL.
func reason(err error) string {
	if e := (*net.OpError)(nil); errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	if e := (*url.Error)(nil); errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}

// ask sends one request and decodes the answer into a T.
func ask[T any](ctx context.Context, c *Client, method, path string, q url.Values, body any) (T, error) {
	var out T
	req, err := c.request(ctx, method, path, q, body)
	if err != nil {
		return out, err
	}
	resp, err := c.send(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return out, &Error{Status: resp.StatusCode, Code: CodeUnreachable, Detail: "the answer broke off", Err: err}
	}
	if resp.StatusCode/100 != 2 {
		return out, problem(resp, b)
	}
	if mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mt != "application/json" {
		return out, foreign(resp)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, &Error{Status: resp.StatusCode, Code: CodeAnswer, Detail: "the answer is not the JSON that was expected", Next: "client and server may be of different versions", Err: err}
	}
	return out, nil
}

func foreign(resp *http.Response) *Error {
	return &Error{Status: resp.StatusCode, Code: CodeAnswer, Detail: "what answered is not a Keybaton server (status " + strconv.Itoa(resp.StatusCode) + ")",
		Next: "check the address: --addr or KEYBATON_ADDR"}
}

// problem returns the error that a failed answer carries.
func problem(resp *http.Response, b []byte) *Error {
	var p api.Problem
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if mt != "application/problem+json" || json.Unmarshal(b, &p) != nil || p.Code == "" {
		return foreign(resp)
	}
	return &Error{Status: resp.StatusCode, Code: p.Code, Detail: p.Detail, Next: p.Next, RequestID: p.RequestID}
}

// list sends one request and returns the items of the answer.
func list[T any](ctx context.Context, c *Client, path string, q url.Values) ([]T, error) {
	l, err := ask[api.List[T]](ctx, c, http.MethodGet, path, q, nil)
	return l.Items, err
}

// query returns the pairs whose value is not empty.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func flag(b bool) string {
	if b {
		return "true"
	}
	return ""
}

// IsCode reports whether err is an [*Error] with that code.
func IsCode(err error, code string) bool {
	e := (*Error)(nil)
	return errors.As(err, &e) && e.Code == code
}

// duration in whole seconds, rounded up: a declared interval is never shortened.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
