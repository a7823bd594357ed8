// Package server holds what every face of a Keybaton server shares: who is
// asking, how errors are answered, and the headers of every answer.
//
// A caller is known by a bearer token; only its SHA-256 is looked up, so that a
// server never keeps a token. Errors are problem+json (RFC 9457) with a code
// for programs and the next step for people; what is not one of key's
// sentinels is answered as "internal error" with a request id, and only the log
// says more. Requests of other origins' pages are refused.
//
// The rooms under it hold the routes; they check what a [access.Principal] may
// do. The package keeps no sessions and no state between requests.
package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/key"
)

// Tokens finds a token by the hex SHA-256 of what the caller sent. It returns
// key.ErrNotFound when there is none. It must be safe for concurrent use.
type Tokens interface {
	TokenByHash(ctx context.Context, hash string) (access.Token, error)
}

// Config is what a Server works with. Tokens is required.
type Config struct {
	Tokens  Tokens
	Now     func() time.Time // nil means time.Now
	Log     *slog.Logger     // nil discards; it gets internal errors with their request id, never a token
	Origins []string         // other origins whose pages may act, such as https://keys.example.com
}

// Server answers for who is asking. It is safe for concurrent use.
type Server struct {
	tokens Tokens
	now    func() time.Time
	log    *slog.Logger
	cross  *http.CrossOriginProtection
}

// New returns a Server, or [key.ErrInvalid] for an origin that is none.
func New(c Config) (*Server, error) {
	s := &Server{tokens: c.Tokens, now: c.Now, log: c.Log, cross: http.NewCrossOriginProtection()}
	if s.tokens == nil {
		return nil, fmt.Errorf("%w: a server needs tokens", key.ErrInvalid)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, o := range c.Origins {
		if err := s.cross.AddTrustedOrigin(o); err != nil {
			return nil, key.WithHint(fmt.Errorf("%w: origin %q: %w", key.ErrInvalid, o, err), "write it like https://keys.example.com")
		}
	}
	s.cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := s.Problem(r.Context(), nil)
		p.Status, p.Title, p.Code = http.StatusForbidden, http.StatusText(http.StatusForbidden), "cross_origin"
		p.Detail = "a page of another origin asked for a change"
		p.Next = "open the dashboard under the address that the server knows, or name the origin in its settings"
		p.write(w)
	}))
	return s, nil
}

// maxToken is longer than any token; more is not hashed.
const maxToken = 1024

// Authenticate returns who asks with r, or an error that wraps
// [key.ErrNoToken]. Tokens are taken from the Authorization header alone, as
// what stands in a URL ends up in logs.
func (s *Server) Authenticate(r *http.Request) (access.Principal, error) {
	h := r.Header.Values("Authorization")
	if len(h) == 0 {
		return access.Principal{}, key.WithHint(fmt.Errorf("%w: the request carries none", key.ErrNoToken),
			"send it as Authorization: Bearer TOKEN, or run keybaton login")
	}
	scheme, token, ok := strings.Cut(h[0], " ")
	token = strings.TrimSpace(token)
	if len(h) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return access.Principal{}, key.WithHint(fmt.Errorf("%w: the Authorization header is not one Bearer token", key.ErrNoToken),
			"send it as Authorization: Bearer TOKEN")
	}
	sum := sha256.Sum256([]byte(token))
	t, err := s.tokens.TokenByHash(r.Context(), hex.EncodeToString(sum[:]))
	if errors.Is(err, key.ErrNotFound) {
		return access.Principal{}, key.WithHint(fmt.Errorf("%w: the server does not know this one", key.ErrNoToken),
			"it may have been revoked, or belong to another server: ask for a new one, or run keybaton login")
	}
	if err != nil {
		return access.Principal{}, fmt.Errorf("looking up who is asking: %w", err)
	}
	p, err := t.Principal(s.now())
	if err != nil {
		return access.Principal{}, key.WithHint(err, "create a new one: keybaton token create")
	}
	return p, nil
}

type ctxKey int

const (
	ctxPrincipal ctxKey = iota
	ctxRequest
)

// Require lets through only requests with a valid token; what h gets knows who
// is asking, see [PrincipalOf].
func (s *Server) Require(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := s.Authenticate(r)
		if err != nil {
			s.Fail(w, r, err)
			return
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), ctxPrincipal, p)))
	})
}

// PrincipalOf returns who asked with the request of ctx. Without [Server.Require]
// in front it returns a principal that may do nothing.
func PrincipalOf(ctx context.Context) access.Principal {
	p, _ := ctx.Value(ctxPrincipal).(access.Principal)
	return p
}

// RequestID returns the id of the request of ctx; "" outside [Server.Wrap].
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(ctxRequest).(string)
	return id
}

// Wrap gives every answer of h its headers, every request an id, refuses
// changes that pages of other origins ask for, and turns a panic into an
// internal error. It stands in front of everything.
func (s *Server) Wrap(h http.Handler) http.Handler {
	guarded := s.cross.Handler(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var raw [8]byte
		_, _ = rand.Read(raw[:]) // never fails
		id := hex.EncodeToString(raw[:])
		r = r.WithContext(context.WithValue(r.Context(), ctxRequest, id))
		head := w.Header()
		head.Set("Cache-Control", "no-store")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("X-Frame-Options", "DENY")
		head.Set("Referrer-Policy", "no-referrer")
		head.Set("Cross-Origin-Resource-Policy", "same-origin")
		head.Set("Cross-Origin-Opener-Policy", "same-origin")
		head.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'")
		if r.TLS != nil {
			head.Set("Strict-Transport-Security", "max-age=31536000")
		}
		head.Set("X-Request-Id", id)
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { //nolint:errorlint // the sentinel is compared as net/http does
				panic(v)
			}
			// The value of a panic is not logged: it may hold what was sent.
			s.log.ErrorContext(r.Context(), "a request panicked", "request", id, "type", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
			s.Problem(r.Context(), errPanic).write(w)
		}()
		guarded.ServeHTTP(w, r)
	})
}

var errPanic = errors.New("panic")
