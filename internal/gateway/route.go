package gateway

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
)

// Body gives the core the whole body of a request, for the few credentials
// whose key rides in it. An error is relayed as it is when it is a [*Fault].
type Body interface{ Whole() ([]byte, error) }

// Head is a request as the core sees it.
type Head struct {
	Method     string
	Host       string // as the caller sent it
	Path       string // escaped, as the caller sent it
	Query      string // raw
	Header     http.Header
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

// Tokens are of 22 digits at least, and no longer one is looked at than the
// second says; in bytes.
const (
	minToken = 22
	maxToken = 512
)

// seeker looks for a token in the places where it may be, and notes which
// headers and parameters hold it, so that they are not forwarded.
type seeker struct {
	s     *snapshot
	found *consumer
	token string
	tried bool // something that could have been a token was there
	other bool // and another token that is known
}

// try looks at one text that may be a token, and reports whether it is the
// caller's.
func (k *seeker) try(t string) bool {
	if t == "" || len(t) > maxToken {
		return false
	}
	if k.found != nil {
		if t == k.token {
			return true
		}
		k.other = k.other || len(t) >= minToken && k.known(t) != nil
		return false
	}
	k.tried = true
	if p := k.known(t); p != nil {
		k.found, k.token = p, t
		return true
	}
	return false
}

// known returns whose token t is; nil: nobody's.
func (k *seeker) known(t string) *consumer {
	var buf [maxToken]byte
	n := copy(buf[:], t)
	return k.s.tokens[sha256.Sum256(buf[:n])]
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
	routed := len(cands) > 0
	if !routed {
		cands = s.places // it is not said which service: the token may be where any has its key
	}
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
	if k.found == nil && routed && len(cands) == 1 && cands[0].place.InBody() && h.Body != nil {
		b, err := h.Body.Whole()
		if err != nil {
			return nil, asFault(err)
		}
		k.try(cands[0].place.FromBody(b))
	}
	if k.found == nil {
		if k.tried {
			return nil, badToken()
		}
		return nil, noToken()
	}
	x.sweep(h, &k)
	if k.other {
		return nil, twoTokens(k.found.name)
	}
	return k.found, nil
}

// sweep takes the caller's token out of all that is forwarded, wherever else it
// is, and notes whether there is another known one. A header that holds it goes
// as a whole, so cookies do.
func (x *Exchange) sweep(h *Head, k *seeker) {
	for name, values := range h.Header {
		ours := strings.HasPrefix(name, "Keybaton-") || name == "Proxy-Authorization" // never forwarded
		for _, v := range values {
			if len(v) < minToken {
				continue
			}
			if held := k.header(v); !ours && (held || strings.Contains(v, k.token)) {
				x.stripHeader(name)
			}
			if name == "Cookie" {
				for c := range strings.SplitSeq(v, ";") {
					_, c, _ = strings.Cut(c, "=")
					k.try(strings.Trim(c, ` "`))
				}
			}
		}
	}
	if len(x.query) < minToken {
		return
	}
	kept, cut := "", false
	for pair := range strings.SplitSeq(x.query, "&") {
		_, v, _ := strings.Cut(pair, "=")
		if strings.IndexByte(pair, '%') >= 0 {
			if u, err := url.QueryUnescape(v); err == nil {
				v = u
			}
		}
		if k.try(v) || strings.Contains(pair, k.token) || strings.Contains(v, k.token) {
			if !cut {
				kept, cut = x.query[:strings.Index(x.query, pair)], true
				kept = strings.TrimSuffix(kept, "&")
			}
			continue
		}
		if cut {
			if kept != "" {
				kept += "&"
			}
			kept += pair
		}
	}
	if cut {
		x.query = kept
	}
}

// climbs reports whether a vendor might read path as leading out of where it
// begins: whether it has a segment "." or ".." as it is, or decoded once or
// twice, where a backslash may be a slash and a semicolon may end a segment.
func climbs(path string) bool {
	for range 3 {
		for path := path; ; {
			i := strings.IndexAny(path, `/\`)
			seg := path
			if i >= 0 {
				seg = path[:i]
			}
			if seg, _, _ = strings.Cut(seg, ";"); seg == "." || seg == ".." {
				return true
			}
			if i < 0 {
				break
			}
			path = path[i+1:]
		}
		if strings.IndexByte(path, '%') < 0 {
			return false
		}
		path = unescape(path)
	}
	return false
}

// unescape decodes what is well-formed of s, and leaves the rest.
func unescape(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if u, err := url.PathUnescape(s[i : i+3]); err == nil {
				b.WriteString(u)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
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
