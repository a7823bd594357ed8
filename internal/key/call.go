package key

import (
	"maps"
	"slices"
	"time"
)

// Call says how a service is called with a key: plain data, compiled by the
// call room, carried to gateways in a frame. An empty field is "not said".
type Call struct {
	Upstream   string        `json:"upstream,omitempty"` // https://host[:port][/prefix]; no other host ever gets the key
	Place      Place         `json:"place"`
	Rules      []Rule        `json:"rules,omitempty"` // classify live answers; first match wins
	Probe      *Probe        `json:"probe,omitempty"` // nil: nothing can be proven by a probe
	FallbackOn []int         `json:"fallback_on,omitempty"`
	Parts      []string      `json:"parts,omitempty"`         // names of the parts of a key; empty means {"key"}
	Early      time.Duration `json:"early,omitempty"`         // how long a new key may be refused before it counts as bad
	Insecure   bool          `json:"insecure_http,omitempty"` // the upstream may be plain HTTP off loopback
}

// PartNames returns the names of the parts of a key of this call.
func (c Call) PartNames() []string {
	if len(c.Parts) == 0 {
		return []string{"key"}
	}
	return c.Parts
}

// Over returns c with every field that o says taken from o: the service's file
// over the provider's recipe.
func (c Call) Over(o Call) Call {
	if o.Upstream != "" {
		c.Upstream = o.Upstream
	}
	if o.Place.In != "" {
		c.Place = o.Place
	}
	if len(o.Rules) > 0 {
		c.Rules = o.Rules
	}
	if o.Probe != nil {
		c.Probe = o.Probe
	}
	if len(o.FallbackOn) > 0 {
		c.FallbackOn = o.FallbackOn
	}
	if len(o.Parts) > 0 {
		c.Parts = o.Parts
	}
	if o.Early > 0 {
		c.Early = o.Early
	}
	c.Insecure = c.Insecure || o.Insecure
	return c
}

// Where a key can ride.
const (
	InHeader = "header" // Name is the header, Value the template
	InBasic  = "basic"  // User and Value are the templates of user name and password (RFC 7617)
	InQuery  = "query"  // Name is the parameter
	InForm   = "form"   // Name is the field of an application/x-www-form-urlencoded body
	InJSON   = "json"   // Name is the path of a field of a JSON body, such as $.auth.key
	InSigV4  = "sigv4"  // nowhere: it signs requests by AWS Signature Version 4; Name is REGION/SERVICE, User the id, Value the secret

	InConnection = "connection" // on no request: it logs in to connections that are not HTTP
)

// Place says where a key rides on a request. Templates are text with
// {{part}} in it; nothing else is replaced.
type Place struct {
	In    string `json:"in,omitempty"`
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"` // default "{{key}}"
	User  string `json:"user,omitempty"`  // basic and sigv4 only
}

// Probe is the cheap, read-only request that tells whether a version works.
type Probe struct {
	Method string            `json:"method,omitempty"` // default GET
	Path   string            `json:"path"`             // under the upstream, or an absolute URL on the same host
	Header map[string]string `json:"header,omitempty"`
	Body   string            `json:"body,omitempty"`
	Rules  []Rule            `json:"rules,omitempty"` // before the call's rules; first match wins
}

// What a rule can say of an answer.
const (
	IsValid      = "valid"              // outcome ok
	IsInvalid    = "invalid"            // outcome auth
	IsOutOfScope = "valid_out_of_scope" // outcome perm: the key was accepted, the act was not
	IsThrottled  = "throttled"          // outcome rate
	IsOther      = "other"              // says nothing about the key
)

// Rule says what an answer means when every test it has holds. A rule with no
// test matches nothing.
type Rule struct {
	Status  []int             `json:"status,omitempty"`  // 401, or 4 for every 4xx
	Header  map[string]string `json:"header,omitempty"`  // name to RE2; the header must be there and match
	Body    string            `json:"body,omitempty"`    // RE2 over the first 8 KiB
	JSON    []JSONTest        `json:"json,omitempty"`    // over the first 8 KiB, which must be whole
	Methods []string          `json:"methods,omitempty"` // only for these request methods
	Is      string            `json:"is"`
	Dead    bool              `json:"dead,omitempty"` // the key itself was refused: a 403 of any method falls back
}

// JSONTest is one test of a JSON answer.
type JSONTest struct {
	Path   string `json:"path"`             // $.a.b[0].c
	Equals string `json:"equals,omitempty"` // the value as text
	Match  string `json:"match,omitempty"`  // RE2 over the value as text
	Exists *bool  `json:"exists,omitempty"`
	Filled *bool  `json:"filled,omitempty"` // not null, "", [], {} or false
}

// Clone returns a deep copy of c.
func (c Call) Clone() Call {
	c.Rules = slices.Clone(c.Rules)
	c.FallbackOn = slices.Clone(c.FallbackOn)
	c.Parts = slices.Clone(c.Parts)
	if c.Probe != nil {
		p := *c.Probe
		p.Header = maps.Clone(p.Header)
		p.Rules = slices.Clone(p.Rules)
		c.Probe = &p
	}
	return c
}
