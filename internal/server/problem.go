package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
)

// Problem is an error as callers get it (RFC 9457, problem+json). It is an
// error itself.
type Problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	Next      string `json:"next,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

// Error returns the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns the media type of a problem for that of the answer.
func (p *Problem) ContentType(string) string { return ProblemType }

// ProblemType is the media type of every error.
const ProblemType = "application/problem+json"

// status maps the sentinels of key to statuses and codes; the first that
// matches counts.
func status(err error) (int, string, bool) {
	for _, m := range []struct {
		err    error
		status int
		code   string
	}{
		{key.ErrNoToken, http.StatusUnauthorized, "no_token"},
		{key.ErrDenied, http.StatusForbidden, "denied"},
		{key.ErrInvalid, http.StatusUnprocessableEntity, "invalid"},
		{key.ErrNotFound, http.StatusNotFound, "not_found"},
		{key.ErrExists, http.StatusConflict, "exists"},
		{key.ErrStale, http.StatusConflict, "stale"},
		{key.ErrConflict, http.StatusConflict, "conflict"},
		{key.ErrFenced, http.StatusServiceUnavailable, "unavailable"},
		{key.ErrFull, http.StatusInsufficientStorage, "full"},
		{key.ErrNewer, http.StatusServiceUnavailable, "newer"},
		{key.ErrLocked, http.StatusServiceUnavailable, "locked"},
		{key.ErrUncertain, http.StatusGatewayTimeout, "uncertain"},
		{key.ErrUnavailable, http.StatusServiceUnavailable, "unavailable"},
	} {
		if errors.Is(err, m.err) {
			return m.status, m.code, true
		}
	}
	return http.StatusInternalServerError, "internal", false
}

// Problem returns err as callers get it. What wraps none of key's sentinels is
// an internal error: it is logged under the request id, and the caller gets
// nothing of its text. A [Problem] is returned as it is.
func (s *Server) Problem(ctx context.Context, err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	p = &Problem{Type: "about:blank", RequestID: RequestID(ctx)}
	if err == nil {
		return p
	}
	known := false
	p.Status, p.Code, known = status(err)
	p.Title = http.StatusText(p.Status)
	switch {
	case known:
		p.Detail = err.Error()
		if h := (*key.Hint)(nil); errors.As(err, &h) {
			p.Next = h.Next
			p.Detail = strings.Replace(p.Detail, "; "+h.Next, "", 1)
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		p.Status, p.Code = http.StatusServiceUnavailable, "unavailable"
		p.Title, p.Detail, p.Next = http.StatusText(p.Status), "the request ended before it was answered", "try again"
	default:
		p.Detail = "internal error"
		p.Next = "look for request " + p.RequestID + " in the server's log"
		s.log.ErrorContext(ctx, "a request failed", "request", p.RequestID, "error", err)
	}
	return p
}

// Invalid returns a problem with status and a detail that holds nothing that
// was sent.
func (s *Server) Invalid(ctx context.Context, status int, detail, next string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail,
		Code: "invalid", Next: next, RequestID: RequestID(ctx)}
}

// Fail answers r with err. Nothing may have been written before.
func (s *Server) Fail(w http.ResponseWriter, r *http.Request, err error) {
	s.Problem(r.Context(), err).write(w)
}

// NotFound answers with not_found: it is what stands behind every path that no
// route takes.
func (s *Server) NotFound() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Fail(w, r, key.WithHint(fmt.Errorf("%w: no such path", key.ErrNotFound), "the paths are listed at /api/v1/openapi.json"))
	})
}

func (p *Problem) write(w http.ResponseWriter) {
	b, err := json.Marshal(p)
	if err != nil { // strings and numbers encode
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="keybaton"`)
	}
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", ProblemType)
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(b, '\n'))
}
