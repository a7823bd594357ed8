// Package spec reads recipes: the YAML files that describe the key API of a
// vendor.
//
// [Parse] is strict and reports everything that is wrong with a recipe at
// once, each with its place and what to write instead. A recipe that parses
// can be run: names in templates exist, rules compile, every part of a new key
// comes from somewhere, and revocation has a proof. Templates put values into
// JSON with their type and into paths escaped; no secret rides in a URL that a
// template makes.
//
// The package makes no calls; the room provider/recipe runs what is read here.
package spec

import (
	"regexp"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
)

// Shapes of a vendor's key API that recipes can express.
const (
	MultiKey     = "multi_key"     // keys are made and deleted one by one
	DualIdentity = "dual_identity" // a key is a user or account of its own
	TwoSlot      = "two_slot"      // fixed keys with names of their own, each made anew in place
	RollGrace    = "roll_grace"    // one key: a creation replaces it, and the old one works on for a while
	RollHard     = "roll_hard"     // one key: a creation ends the old one at once
	Human        = "human"         // a person makes the key; the rest may be automatic
)

// DefaultSpacing is the time between two probes.
const DefaultSpacing = 2 * time.Second

// Recipe is a parsed recipe. It is immutable. The first fields are for people,
// the rest is what its driver runs.
type Recipe struct {
	ID      string
	Vendor  string   // "SendGrid"
	Docs    []string // where the vendor describes its key API
	Source  string   // what the recipe was written from
	Tested  string   // "doc", "loopback" or "live"
	Shape   string
	Hazards []string // what to know before it is used

	Params   []provider.Param
	urlParam map[string]bool
	Upstream Template
	Parts    []Part
	IDPart   string // the part that is the vendor's id; "" for none
	Place    key.Place
	Rules    []key.Rule // of live answers
	Fallback []int

	Manager   manager
	Limits    limits
	Generate  map[string]generate
	Life      time.Duration // wished when the request says none
	Describe  *describe
	Steps     []Step
	List      *list
	Probe     *Probe
	Early     time.Duration
	Late      time.Duration
	Spacing   time.Duration
	UsageFrom bool
	Granular  time.Duration
	Grace     time.Duration // of shape roll_grace
	Slots     *Slots        // of shape two_slot
	Disable   *toggle
	Enable    *toggle
	Revoke    *Act
	DeadOK    int
	Human     ByHand
}

// Part is one part of a key.
type Part struct {
	Name    string
	Secret  bool
	Pattern string
	MinLen  int
}

type manager struct {
	Wanted string // "", "required", "self"
	Parts  []string
	Place  call.Place
	Base   Template
}

type limits struct {
	Max     int
	NameMax int
	Charset *regexp.Regexp // matches one character that is not permitted
	Full    *Condition
}

type generate struct {
	length  int
	classes []string // alphabets
}

// Request is one HTTP request to the vendor.
type Request struct {
	Method string
	Path   Template
	Query  []Named
	Header []Named
	JSON   *Tree
	Form   []Named
}

// Named is a header, parameter or field with its template.
type Named struct {
	Name  string
	Value Template
}

// Act is a request with what its answer must be.
type Act struct {
	Request Request
	Expect  Condition  // default: 2xx
	Gone    *Condition // the key is not there: for revoke and disable, done already
}

// Step is one call of a creation.
type Step struct {
	Act
	Extract []Extract
}

// Extract takes one value from an answer.
type Extract struct {
	Name     string
	Path     call.Path      // of the JSON body
	LivePath *Template      // or a path with names in it
	Header   string         // or a header
	XML      []string       // or local names of XML elements
	Value    *Template      // or no answer at all
	Match    *regexp.Regexp // on the text found: the first group, or all of it
	Source   string         // for errors
}

type describe struct {
	Steps    []Step
	Defaults map[string]Tree
	Allow    bool // a key whose rights cannot be read may be made with the defaults
}

type list struct {
	Act
	Items    call.Path
	XML      []string // or local names of the XML elements that are the items
	ID       call.Path
	Name     *call.Path
	Created  *call.Path
	LastUsed *call.Path
	Disabled *FlagRule
	Page     Page
	Complete bool
}

// FlagRule reads a yes or no from one item of a list.
type FlagRule struct {
	Path   call.Path
	Equals *string
	Not    bool
}

// Page says how a list goes on.
type Page struct {
	Kind      string // none, cursor, page, offset, link_header, next_url
	Next      call.Path
	Param     string
	First     int
	Size      int
	SizeParam string
	Most      int
}

// Probe is the request that tells whether a key works.
type Probe struct {
	Method string
	Path   Template
	Query  []Named
	Header []Named
	JSON   *Tree
	Form   []Named
	Rules  []key.Rule
}

// toggle is disable or enable.
type toggle struct {
	Act
	Read *Step // before a disable: what enable needs
	Must []string
}

// ByHand are the steps of a person.
type ByHand struct {
	Create, Revoke []string
	URL            string
}

// Condition is a rule over an answer that either holds or does not.
type Condition struct {
	Rules call.Rules
	Text  string // for people: "201" or "200 with $.ok"
}
