// Package call knows how a key rides on a request, what an answer says of the
// key, which version is tried first, and how a version is probed. It compiles
// the plain data of [key.Call] once; what comes out is immutable and safe for
// concurrent use.
//
// It guarantees that a rendered key cannot be printed, that no error and no
// result holds a key or a body of the vendor, and that a probe goes to the
// declared upstream and nowhere else. Counting, retrying, time-outs of live
// requests and the choice of a transport are the caller's.
package call

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
)

// BodyLimit is how much of an answer rules may look at, in bytes.
const BodyLimit = 8 << 10

// DefaultEarly is how long a new key may be refused before it counts as bad,
// where the call does not say.
const DefaultEarly = time.Minute

// Early returns for how long a new key of c may be refused before it counts as
// bad.
func Early(c key.Call) time.Duration {
	if c.Early > 0 {
		return c.Early
	}
	return DefaultEarly
}

// ParseUpstream parses the upstream of a call: http or https, a host, and
// perhaps a port and a path prefix. The path of the result has no slash at its
// end. The addresses at which clouds serve machine credentials are refused.
func ParseUpstream(s string) (*url.URL, error) {
	bad := func(why string) (*url.URL, error) {
		return nil, key.WithHint(fmt.Errorf("%w: upstream: %s", key.ErrInvalid, why), "write it like https://api.example.com or https://api.example.com/v1")
	}
	if s == "" {
		return bad("none is declared")
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return bad("it is not a URL") // NOTE: the text is left out; people paste keys into URLs
	case u.Scheme != "https" && u.Scheme != "http":
		return bad("its scheme is neither https nor http")
	case u.Hostname() == "":
		return bad("it has no host")
	case u.User != nil:
		return bad("it must not hold a user or password")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return bad("it must not have a query or fragment")
	case dotted(u.EscapedPath()):
		return bad("its path must not have '.' or '..' segments")
	}
	if key.MetadataHost(u.Hostname()) {
		return bad("it is a cloud's metadata address")
	}
	u.Host = strings.ToLower(u.Host)
	u.RawPath = strings.TrimRight(u.RawPath, "/")
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// Metadata reports whether a is an address of which [key.Metadata] says so. No
// key and no request ever goes there.
func Metadata(a netip.Addr) bool { return key.Metadata(a) }

// dotted reports whether an escaped path has a segment that is "." or "..",
// however it is escaped.
func dotted(path string) bool {
	for seg := range strings.SplitSeq(path, "/") {
		if Dotted(seg) {
			return true
		}
	}
	return false
}

// Dotted reports whether one escaped path segment means "." or "..".
func Dotted(seg string) bool {
	n := 0
	for len(seg) > 0 {
		switch {
		case seg[0] == '.':
			seg = seg[1:]
		case len(seg) >= 3 && seg[0] == '%' && seg[1] == '2' && (seg[2] == 'e' || seg[2] == 'E'):
			seg = seg[3:]
		default:
			return false
		}
		n++
	}
	return n == 1 || n == 2
}

// Standing is how one version stands in the eyes of whoever chooses.
type Standing struct {
	Suspect bool // refused where another version was accepted, again and again
	Due     bool // a suspect that it is time to try again
	Proven  bool // has answered ok to this process
	Early   bool // so new that the vendor may not know it everywhere
}

// FallbackFirst reports whether the fallback is to be tried before the
// primary. replayable says whether the request can be sent again after a
// refusal; one that cannot is never used to find out about a key.
func FallbackFirst(primary, fallback Standing, replayable bool) bool {
	switch {
	case fallback.Suspect:
		return false
	case primary.Suspect:
		return !primary.Due || !replayable
	case primary.Early && !primary.Proven:
		return !replayable && fallback.Proven
	}
	return false
}

// FallsBack reports whether an answer asks for the next version: the key was
// refused (auth), whatever the method; it lacks a right (perm) and the method
// is GET or HEAD or the key itself was refused (dead); or the status is one
// that the service names in on. Whether the request can be sent again is the
// caller's to know.
func FallsBack(method string, status int, o evidence.Outcome, dead bool, on []int) bool {
	switch {
	case o == evidence.Auth:
		return true
	case o == evidence.Perm && (dead || method == "GET" || method == "HEAD"):
		return true
	}
	return status >= 400 && hasStatus(on, status)
}

// hasStatus reports whether list names status: 401, or 4 for every 4xx.
func hasStatus(list []int, status int) bool {
	for _, n := range list {
		if n == status || n < 10 && n == status/100 {
			return true
		}
	}
	return false
}
