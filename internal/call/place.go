package call

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// ApplyLimit is the largest body, in bytes, into which [Rendered.Apply] puts a
// key.
const ApplyLimit = 1 << 20

// Place is a compiled place: where a key rides, and the templates that make
// what rides there. The zero Place is no place.
type Place struct {
	in          string
	name        string // canonical header name, query parameter, form field
	field       []string
	user, value template
}

// CompilePlace compiles p for keys with the named parts; none means {"key"}.
// Errors wrap key.ErrInvalid and say what to write instead.
func CompilePlace(p key.Place, parts []string) (Place, error) {
	if len(parts) == 0 {
		parts = []string{"key"}
	}
	c := Place{in: p.In, name: p.Name}
	value, err := compileTemplate(p.Value, parts)
	if err != nil {
		return Place{}, fmt.Errorf("place value: %w", err)
	}
	c.value = value
	if p.User != "" && p.In != key.InBasic && p.In != key.InSigV4 {
		return Place{}, fmt.Errorf("%w: place: user is for %s and %s only", key.ErrInvalid, key.InBasic, key.InSigV4)
	}
	switch p.In {
	case key.InHeader:
		if err := c.compileHeader(); err != nil {
			return Place{}, err
		}
	case key.InBasic:
		if err := c.compileBasic(p, parts); err != nil {
			return Place{}, err
		}
		return c, nil
	case key.InQuery, key.InForm:
		if p.Name == "" {
			return Place{}, fmt.Errorf("%w: place: in %s needs the name of the parameter", key.ErrInvalid, p.In)
		}
	case key.InJSON:
		path, err := ParsePath(p.Name)
		if err != nil {
			return Place{}, fmt.Errorf("place: %w", err)
		}
		var ok bool
		if c.field, ok = path.fields(); !ok {
			return Place{}, fmt.Errorf("%w: place: %q is not the path of a field; write it like $.auth.key", key.ErrInvalid, p.Name)
		}
	case key.InSigV4:
		if c.user, err = compileTemplate(p.User, parts); err != nil {
			return Place{}, fmt.Errorf("place user: %w", err)
		}
		return c, c.compileSigned(p)
	case "":
		return Place{}, key.WithHint(fmt.Errorf("%w: place: it is not said where the key rides", key.ErrInvalid),
			`declare place, such as {header: Authorization, value: "Bearer {{key}}"}`)
	default:
		return Place{}, fmt.Errorf("%w: place %q: use header, basic, query, form or json", key.ErrInvalid, p.In)
	}
	if len(c.value) == 0 {
		if c.value, err = compileTemplate("{{"+defaultPart(parts)+"}}", parts); err != nil {
			return Place{}, fmt.Errorf("place: say which part rides in value: %w", err)
		}
	}
	if !c.value.hasPart() {
		return Place{}, fmt.Errorf("%w: place: value names no part of the key; write {{%s}} in it", key.ErrInvalid, parts[0])
	}
	return c, nil
}

func (c *Place) compileHeader() error {
	if !httpguts.ValidHeaderFieldName(c.name) {
		return fmt.Errorf("%w: place: %q is not the name of a header", key.ErrInvalid, c.name)
	}
	c.name = textproto.CanonicalMIMEHeaderKey(c.name)
	if Hop(c.name) || strings.HasPrefix(c.name, "Keybaton-") {
		return fmt.Errorf("%w: place: a key cannot ride in the header %s", key.ErrInvalid, c.name)
	}
	switch c.name {
	case "Host", "Content-Length", "Content-Type", "Content-Encoding", "Expect":
		return fmt.Errorf("%w: place: a key cannot ride in the header %s", key.ErrInvalid, c.name)
	}
	return nil
}

func (c *Place) compileBasic(p key.Place, parts []string) error {
	var err error
	if p.User == "" && p.Value == "" && slices.Contains(parts, "user") && slices.Contains(parts, "password") {
		p.User, p.Value = "{{user}}", "{{password}}"
	}
	if c.user, err = compileTemplate(p.User, parts); err != nil {
		return fmt.Errorf("place user: %w", err)
	}
	if p.Value == "" && !c.user.hasPart() {
		p.Value = "{{" + defaultPart(parts) + "}}"
	}
	if c.value, err = compileTemplate(p.Value, parts); err != nil {
		return fmt.Errorf("place value: %w", err)
	}
	if !c.user.hasPart() && !c.value.hasPart() {
		return fmt.Errorf("%w: place: neither user nor value names a part of the key", key.ErrInvalid)
	}
	c.name = "Authorization"
	return nil
}

func defaultPart(parts []string) string {
	if len(parts) == 1 {
		return parts[0]
	}
	return "key"
}

// Hop reports whether the header with this canonical name belongs to one
// connection and is never forwarded (RFC 9110 §7.6.1).
func Hop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// In returns where the key rides: one of the key.In constants.
func (p Place) In() string { return p.in }

// Signs reports whether the key signs requests, so that each must be whole
// before it can be sent: only [Rendered.Apply] puts such a key on one.
func (p Place) Signs() bool { return p.in == key.InSigV4 }

// Name returns the canonical name of the header, or of the parameter or field;
// "Authorization" for basic and signatures, and "" for JSON.
func (p Place) Name() string {
	switch p.in {
	case key.InJSON:
		return ""
	case key.InSigV4:
		return "Authorization"
	}
	return p.name
}

// InBody reports whether the key rides in the body, so that a request must be
// read whole before it can be sent.
func (p Place) InBody() bool { return p.in == key.InForm || p.in == key.InJSON }

// Affixes returns the text before and after the one part of the value, such as
// "Bearer " and "". They are empty when the value has several parts.
func (p Place) Affixes() (prefix, suffix string) {
	n := 0
	for _, s := range p.value {
		switch {
		case s.part:
			n++
		case n == 0:
			prefix += s.text
		default:
			suffix += s.text
		}
	}
	if n != 1 {
		return "", ""
	}
	return prefix, suffix
}

// Render makes what rides of the parts, once per version. Errors name the part
// that is missing or unfit, never its value.
func (p Place) Render(parts secret.Parts) (Rendered, error) {
	r := &rendered{in: p.in, name: p.name, field: p.field}
	value, err := p.value.render(parts)
	if err != nil {
		return Rendered{}, err
	}
	switch p.in {
	case key.InHeader:
		if !clean(value) {
			return Rendered{}, unfit(p.value, "a header")
		}
		r.values = []string{value}
	case key.InBasic:
		user, err := p.user.render(parts)
		if err != nil {
			return Rendered{}, err
		}
		if strings.Contains(user, ":") {
			return Rendered{}, fmt.Errorf("%w: the user name of basic authentication cannot contain a colon", key.ErrInvalid)
		}
		if !clean(user) || !clean(value) {
			return Rendered{}, unfit(append(slices.Clone(p.user), p.value...), "basic authentication")
		}
		pair := base64.StdEncoding.EncodeToString([]byte(user + ":" + value))
		r.values = []string{"Basic " + pair}
		r.needles = append(r.needles, pair)
	case key.InQuery, key.InForm:
		r.pair = url.QueryEscape(p.name) + "=" + url.QueryEscape(value)
	case key.InJSON:
		r.value = value
	case key.InSigV4:
		id, err := p.user.render(parts)
		if err != nil {
			return Rendered{}, err
		}
		if r.sign, err = p.renderSigned(id, value); err != nil {
			return Rendered{}, err
		}
	default:
		return Rendered{}, fmt.Errorf("%w: the key has no place", key.ErrInvalid)
	}
	r.addNeedles(parts)
	return Rendered{c: func() *rendered { return r }}, nil
}

func unfit(t template, where string) error {
	return key.WithHint(fmt.Errorf("%w: part %s holds a line break or control character and cannot ride in %s", key.ErrInvalid, strings.Join(t.parts(), ", "), where),
		"set the key again without the stray character")
}

// clean reports whether s can be a header value: no control characters, and no
// space at either end.
func clean(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return strings.Trim(s, " ") == s
}

// Rendered is a key in the shape in which it rides. It cannot be printed or
// encoded; like secret.Value, its content sits behind a function, which
// neither fmt nor reflection calls. The zero Rendered rides nowhere.
type Rendered struct{ c func() *rendered }

type rendered struct {
	in, name, pair, value string
	values, field         []string
	sign                  *signing
	needles               []string
}

// Format prints "[secret]" for every verb.
func (r Rendered) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// MarshalText always fails.
func (r Rendered) MarshalText() ([]byte, error) { return nil, secret.ErrEncode }

// MarshalJSON always fails.
func (r Rendered) MarshalJSON() ([]byte, error) { return nil, secret.ErrEncode }

// IsZero reports whether r rides nowhere.
func (r Rendered) IsZero() bool { return r.c == nil }

// Header returns the header to set, for a key that rides in one; name is ""
// for any other. The slice is shared and must not be changed.
func (r Rendered) Header() (name string, values []string) {
	if r.c == nil {
		return "", nil
	}
	c := r.c()
	if c.values == nil {
		return "", nil
	}
	return c.name, c.values
}

// Query returns the parameter name and the encoded pair to append to a query,
// for a key that rides in one; name is "" for any other.
func (r Rendered) Query() (name, pair string) {
	if r.c == nil {
		return "", ""
	}
	c := r.c()
	if c.in != key.InQuery {
		return "", ""
	}
	return c.name, c.pair
}

// Body returns body with the key in it, for a key that rides in one; for any
// other it returns body itself. body is not changed.
func (r Rendered) Body(contentType string, body []byte) ([]byte, error) {
	if r.c == nil {
		return body, nil
	}
	c := r.c()
	ct, _, _ := mime.ParseMediaType(contentType)
	switch c.in {
	case key.InForm:
		if ct != "application/x-www-form-urlencoded" && (ct != "" || len(body) > 0) {
			return nil, fmt.Errorf("%w: the key rides in a form, and the body is not one", key.ErrInvalid)
		}
		rest, _, _ := CutQuery(string(body), c.name)
		return []byte(JoinQuery(rest, c.pair)), nil
	case key.InJSON:
		var v any = map[string]any{}
		if len(body) > 0 {
			var ok bool
			if v, ok = decodeJSON(body); !ok {
				return nil, fmt.Errorf("%w: the key rides in a JSON body, and the body is not one", key.ErrInvalid)
			}
		}
		return c.setJSON(v)
	}
	return body, nil
}

func (c *rendered) setJSON(root any) ([]byte, error) {
	at, ok := root.(map[string]any)
	for _, name := range c.field[:len(c.field)-1] {
		if !ok {
			break
		}
		next, there := at[name]
		if !there {
			next = map[string]any{}
			at[name] = next
		}
		at, ok = next.(map[string]any)
	}
	if !ok {
		return nil, fmt.Errorf("%w: the JSON body has no object at the place of the key", key.ErrInvalid)
	}
	at[c.field[len(c.field)-1]] = c.value
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(root); err != nil {
		return nil, fmt.Errorf("encoding the JSON body: %w", errors.New("not representable"))
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// Apply puts the key on a request that is about to be sent, taking away
// whatever was in its place. A body it has to go into is read first, at most
// [ApplyLimit] bytes.
func (r Rendered) Apply(req *http.Request) error {
	if r.c == nil {
		return fmt.Errorf("%w: there is no key to apply", key.ErrInvalid)
	}
	if req.Header == nil {
		req.Header = http.Header{}
	}
	c := r.c()
	switch c.in {
	case key.InHeader, key.InBasic:
		req.Header[c.name] = c.values
		return nil
	case key.InSigV4:
		return c.sign.apply(req, time.Now())
	case key.InQuery:
		rest, _, _ := CutQuery(req.URL.RawQuery, c.name)
		u := *req.URL
		u.RawQuery = JoinQuery(rest, c.pair)
		req.URL = &u
		return nil
	}
	var body []byte
	if req.Body != nil && req.Body != http.NoBody {
		var err error
		body, err = io.ReadAll(io.LimitReader(req.Body, ApplyLimit+1))
		_ = req.Body.Close()
		if err != nil {
			return fmt.Errorf("reading the body that the key goes into: %w", err)
		}
		if len(body) > ApplyLimit {
			return fmt.Errorf("%w: the body that the key goes into is larger than %d bytes", key.ErrInvalid, ApplyLimit)
		}
	}
	out, err := r.Body(req.Header.Get("Content-Type"), body)
	if err != nil {
		return err
	}
	if req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", c.contentType())
	}
	req.ContentLength = int64(len(out))
	req.Header.Del("Content-Length")
	req.TransferEncoding = nil
	req.Body = io.NopCloser(bytes.NewReader(out))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out)), nil }
	return nil
}

func (c *rendered) contentType() string {
	if c.in == key.InForm {
		return "application/x-www-form-urlencoded"
	}
	return "application/json"
}

// Leaks reports whether s holds the key, plain or in the forms in which it
// rides.
func (r Rendered) Leaks(s string) bool {
	if r.c == nil {
		return false
	}
	for _, n := range r.c().needles {
		if len(s) >= len(n) && strings.Contains(s, n) {
			return true
		}
	}
	return false
}

// needleMin is the length under which a part is too short to look for: it
// would be found by chance.
const needleMin = 8

func (c *rendered) addNeedles(parts secret.Parts) {
	for name, v := range parts {
		if len(parts) > 1 && public(name) {
			continue
		}
		s := string(v.Reveal())
		if len(s) < needleMin {
			continue
		}
		for _, n := range []string{s, url.QueryEscape(s), url.PathEscape(s), base64.StdEncoding.EncodeToString([]byte(s))} {
			if !slices.Contains(c.needles, n) {
				c.needles = append(c.needles, n)
			}
		}
	}
}

// public reports whether a part of this name is the public half of a key:
// vendors put it into links and answers.
func public(name string) bool {
	switch name {
	case "id", "key_id", "access_key_id", "client_id", "user", "username", "name", "account", "account_id", "sid", "account_sid", "app_id":
		return true
	}
	return false
}

// CutQuery returns raw without the parameters called name, byte for byte, the
// decoded value of the first of them, and whether there was one.
func CutQuery(raw, name string) (rest, value string, found bool) {
	if raw == "" {
		return raw, "", false
	}
	var b strings.Builder
	for i := 0; i <= len(raw); {
		j := strings.IndexByte(raw[i:], '&')
		if j < 0 {
			j = len(raw)
		} else {
			j += i
		}
		k, v, _ := strings.Cut(raw[i:j], "=")
		if is(k, name) {
			if !found {
				found = true
				b.Grow(len(raw))
				b.WriteString(strings.TrimSuffix(raw[:i], "&"))
				if u, err := url.QueryUnescape(v); err == nil {
					value = u
				}
			}
		} else if found {
			if b.Len() > 0 {
				b.WriteByte('&')
			}
			b.WriteString(raw[i:j])
		}
		i = j + 1
	}
	if !found {
		return raw, "", false
	}
	return b.String(), value, true
}

func is(escaped, name string) bool {
	if escaped == name {
		return true
	}
	if strings.IndexByte(escaped, '%') < 0 && strings.IndexByte(escaped, '+') < 0 {
		return false
	}
	u, err := url.QueryUnescape(escaped)
	return err == nil && u == name
}

// JoinQuery returns the query raw with pair appended.
func JoinQuery(raw, pair string) string {
	if raw == "" {
		return pair
	}
	return raw + "&" + pair
}

// FromBody returns what a body holds at the place of a key that rides in one,
// and "" when there is nothing: there a caller puts its own token.
func (p Place) FromBody(body []byte) string {
	switch p.in {
	case key.InForm:
		_, v, _ := CutQuery(string(body), p.name)
		return v
	case key.InJSON:
		v, ok := decodeJSON(body)
		for _, name := range p.field {
			m, is := v.(map[string]any)
			if !ok || !is {
				return ""
			}
			v, ok = m[name]
		}
		s, _ := v.(string)
		return s
	}
	return ""
}
