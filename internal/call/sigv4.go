package call

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// signing is a key that rides nowhere itself: it signs each request by AWS
// Signature Version 4
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
type signing struct {
	id, secret      string
	region, service string
}

// signatureTime is the form of X-Amz-Date.
const signatureTime = "20060102T150405Z"

func (c *Place) compileSigned(p key.Place) error {
	region, service, ok := strings.Cut(p.Name, "/")
	if !ok || region == "" || service == "" || strings.Contains(service, "/") || !clean(p.Name) {
		return fmt.Errorf("%w: place: in %s needs the name of region and service, such as us-east-1/iam", key.ErrInvalid, p.In)
	}
	if !c.user.hasPart() || !c.value.hasPart() {
		return fmt.Errorf("%w: place: in %s needs user, the id of the key, and value, its secret", key.ErrInvalid, p.In)
	}
	return nil
}

func (p Place) renderSigned(id, value string) (*signing, error) {
	if !clean(id) || strings.ContainsAny(id, "/, =") {
		return nil, fmt.Errorf("%w: the id of the key cannot stand in a signature", key.ErrInvalid)
	}
	region, service, _ := strings.Cut(p.name, "/")
	return &signing{id, value, region, service}, nil
}

// apply signs req with the time now. A body is read first, at most
// [ApplyLimit] bytes.
func (s *signing) apply(req *http.Request, now time.Time) error {
	var body []byte
	if req.Body != nil && req.Body != http.NoBody {
		var err error
		body, err = io.ReadAll(io.LimitReader(req.Body, ApplyLimit+1))
		_ = req.Body.Close()
		if err != nil {
			return fmt.Errorf("reading the body that is signed: %w", err)
		}
		if len(body) > ApplyLimit {
			return fmt.Errorf("%w: the body that is signed is larger than %d bytes", key.ErrInvalid, ApplyLimit)
		}
		req.ContentLength = int64(len(body))
		req.Header.Del("Content-Length")
		req.TransferEncoding = nil
		req.Body = io.NopCloser(bytes.NewReader(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	sum := sha256.Sum256(body)
	payload := hex.EncodeToString(sum[:])
	at := now.UTC().Format(signatureTime)
	req.Header.Del("Authorization")
	req.Header.Set("X-Amz-Date", at)
	if s.service == "s3" {
		req.Header.Set("X-Amz-Content-Sha256", payload)
	}
	canonical, signed := s.canonical(req, payload)
	scope := at[:8] + "/" + s.region + "/" + s.service + "/aws4_request"
	sum = sha256.Sum256([]byte(canonical))
	text := "AWS4-HMAC-SHA256\n" + at + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	k := []byte("AWS4" + s.secret)
	for _, part := range []string{at[:8], s.region, s.service, "aws4_request", text} {
		m := hmac.New(sha256.New, k)
		m.Write([]byte(part))
		k = m.Sum(nil)
	}
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+s.id+"/"+scope+", SignedHeaders="+signed+", Signature="+hex.EncodeToString(k))
	return nil
}

// canonical returns the canonical request, and the names of the headers in it.
func (s *signing) canonical(req *http.Request, payload string) (text, signed string) {
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	headers := map[string]string{"host": host}
	for name, vs := range req.Header {
		if n := strings.ToLower(name); n == "content-type" || strings.HasPrefix(n, "x-amz-") {
			var trimmed []string
			for _, v := range vs {
				trimmed = append(trimmed, strings.Join(strings.Fields(v), " "))
			}
			headers[n] = strings.Join(trimmed, ",")
		}
	}
	var names []string
	for n := range headers {
		names = append(names, n)
	}
	slices.Sort(names)
	signed = strings.Join(names, ";")

	path := req.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	if s.service != "s3" { // the path is escaped once more, but for S3
		var segs []string
		for seg := range strings.SplitSeq(path, "/") {
			segs = append(segs, awsEscape(seg))
		}
		path = strings.Join(segs, "/")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", req.Method, path, awsQuery(req.URL.Query()))
	for _, n := range names {
		fmt.Fprintf(&b, "%s:%s\n", n, headers[n])
	}
	b.WriteString("\n" + signed + "\n" + payload)
	return b.String(), signed
}

func awsQuery(q url.Values) string {
	var pairs []string
	for n, vs := range q {
		for _, v := range vs {
			pairs = append(pairs, awsEscape(n)+"="+awsEscape(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

// awsEscape escapes everything but the unreserved characters of RFC 3986.
func awsEscape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
