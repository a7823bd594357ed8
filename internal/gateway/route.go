package gateway

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
)

// Header is what the core reads of a request's header, by canonical name;
// http.Header has it.
type Header interface {
	Get(name string) string
	Values(name string) []string
}

// Body gives the core the whole body of a request, for the few credentials
// whose key rides in it. An error is relayed as it is when it is a [*Fault].
type Body interface{ Whole() ([]byte, error) }

// Head is a request as the core sees it.
type Head struct {
	Method     string
	Host       string // as the caller sent it
	Path       string // escaped, as the caller sent it
	Query      string // raw
	Header     Header
	Body       Body // asked only where a key rides in the body; may be nil
	Replayable bool // the body, if any, is known to be small enough to be sent again
}

// route finds the candidates for the credential that a request is for: all of
// one service where the environment is not said. prefix is how many bytes of
// the path name it; fault is an answer to callers with a valid token.
func (s *snapshot) route(h *Head) (cands []*credential, env string, prefix int, fault *Fault) {
	if service, env, ok := splitHost(h.Host); ok {
		cands, fault := s.lookup(service, env)
		return cands, env, 0, fault
	}
	service, n := segment(h.Path, 0)
	if svc, e, ok := strings.Cut(service, "@"); ok {
		cands, fault := s.lookup(svc, e)
		return cands, e, n, fault
	}
	if cands := s.services[service]; len(cands) > 0 {
		return cands, "", n, nil
	}
	if s.envs[service] {
		if svc, m := segment(h.Path, n); svc != "" {
			cands, fault := s.lookup(svc, service)
			return cands, service, m, fault
		}
	}
	return nil, "", n, noService(service)
}

func (s *snapshot) lookup(service, env string) ([]*credential, *Fault) {
	list := s.services[service]
	for i, cr := range list {
		if cr.id.Environment == env {
			return list[i : i+1], nil
		}
	}
	if len(list) == 0 {
		return nil, noService(service)
	}
	return nil, noCredential(service, env)
}

// segment returns the path segment after the slash at path[at], and where it
// ends; "" when there is none.
func segment(path string, at int) (string, int) {
	if at >= len(path) || path[at] != '/' {
		return "", at
	}
	end := strings.IndexByte(path[at+1:], '/')
	if end < 0 {
		return path[at+1:], len(path)
	}
	return path[at+1 : at+1+end], at + 1 + end
}

const hostSuffix = ".keybaton"

// splitHost splits service.env.keybaton[:port], in any case.
func splitHost(host string) (service, env string, ok bool) {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	if len(host) <= len(hostSuffix) || !strings.EqualFold(host[len(host)-len(hostSuffix):], hostSuffix) {
		return "", "", false
	}
	service, env, ok = strings.Cut(strings.ToLower(host[:len(host)-len(hostSuffix)]), ".")
	return service, env, ok && service != "" && env != "" && strings.IndexByte(env, '.') < 0
}

// maxToken is the longest token that is looked at, in bytes.
const maxToken = 512

// seeker looks for a token in the places where it may be, and notes which
// headers and parameters hold it, so that they are not forwarded.
type seeker struct {
	s     *snapshot
	found *consumer
	token string
	tried bool // something that could have been a token was there
}

// try looks at one text that may be a token, and reports whether it is the
// caller's.
func (k *seeker) try(t string) bool {
	if t == "" || len(t) > maxToken {
		return false
	}
	if k.found != nil {
		return t == k.token
	}
	k.tried = true
	var buf [maxToken]byte
	n := copy(buf[:], t)
	if p := k.s.tokens[sha256.Sum256(buf[:n])]; p != nil {
		k.found, k.token = p, t
		return true
	}
	return false
}

// header looks at a header value: whole, after its first word, and as basic
// credentials.
func (k *seeker) header(v string) bool {
	if v == "" {
		return false
	}
	scheme, rest, ok := strings.Cut(v, " ")
	if !ok {
		return k.try(v)
	}
	rest = strings.TrimLeft(rest, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return k.try(rest) || k.try(v)
	}
	b, err := base64.StdEncoding.DecodeString(rest)
	if err != nil || len(b) > 2*maxToken {
		return false
	}
	user, pass, _ := strings.Cut(string(b), ":")
	return k.try(pass) || k.try(user)
}

// seek finds the caller's token for one of cands. It fills x.strip with the
// headers that hold it, and x.query with the query without it.
func (x *Exchange) seek(h *Head, s *snapshot, cands []*credential) (*consumer, *Fault) {
	k := seeker{s: s}
	if v := h.Header.Get(HeaderToken); v != "" {
		k.header(v) // never forwarded, like everything of ours
	}
	if v := h.Header.Get("Proxy-Authorization"); v != "" {
		k.header(v) // never forwarded: it belongs to this hop
	}
	x.query = h.Query
	for _, cr := range cands {
		switch cr.place.In() {
		case key.InHeader:
			if name := cr.place.Name(); name != "Authorization" {
				v := h.Header.Get(name)
				if v != "" && (k.affixed(v, cr.affixes) || k.header(v)) {
					x.stripHeader(name)
				}
			} else if v := h.Header.Get(name); v != "" && k.affixed(v, cr.affixes) {
				x.stripHeader(name)
			}
		case key.InQuery:
			rest, v, ok := call.CutQuery(x.query, cr.place.Name())
			if ok && k.try(v) {
				x.query = rest
			}
		}
	}
	if v := h.Header.Get("Authorization"); v != "" && k.header(v) {
		x.stripHeader("Authorization")
	}
	if k.found == nil && len(cands) == 1 && cands[0].place.InBody() && h.Body != nil {
		b, err := h.Body.Whole()
		if err != nil {
			return nil, asFault(err)
		}
		k.try(cands[0].place.FromBody(b))
	}
	switch {
	case k.found != nil:
		return k.found, nil
	case k.tried:
		return nil, badToken()
	}
	return nil, noToken()
}

// affixed looks at v without the text that the credential's template puts
// around the key.
func (k *seeker) affixed(v string, around [2]string) bool {
	p, s := around[0], around[1]
	if p == "" && s == "" || len(v) <= len(p)+len(s) || !strings.EqualFold(v[:len(p)], p) || v[len(v)-len(s):] != s {
		return false
	}
	return k.try(v[len(p) : len(v)-len(s)])
}

func asFault(err error) *Fault {
	if f, ok := err.(*Fault); ok {
		return f
	}
	return badRequest("unreadable_body", "the request's body could not be read")
}

// expired reports whether p's token has ended.
func (p *consumer) expired(now time.Time) bool { return !p.expires.IsZero() && !now.Before(p.expires) }

// choose picks the credential among cands that p may call. said is whether the
// request names the environment.
func choose(p *consumer, cands []*credential, said bool) (*credential, *Fault) {
	var found *credential
	for _, cr := range cands {
		if !p.covers(cr.id) {
			continue
		}
		if found != nil {
			return nil, ambiguous(cr.id.Service)
		}
		found = cr
	}
	if found == nil {
		id := cands[0].id
		if !said && len(cands) > 1 {
			id.Environment = "ENVIRONMENT"
		}
		return nil, notGranted(p.name, id)
	}
	return found, nil
}
