// Package recipe is the provider that is data: a YAML file describes the key
// API of a vendor, and [New] makes a driver of it.
//
// [Parse] reads a recipe strictly and reports everything that is wrong with it
// at once, each with its line and what to write instead. A recipe that parses
// can be run: names in templates exist, rules compile, every part of a new key
// comes from somewhere, and revocation has a proof. Values are put into JSON
// with their type and into paths escaped; the parts of a key never ride in a
// URL that a template makes.
//
// A driver keeps no state and repeats no call. It classifies every failure
// (see [provider.Kind]): what was certainly not done is told from what may
// have been done. No error, preview or report holds a secret or a body.
// Redirects are not followed, and the manager key goes to no other host than
// the one that the recipe and its params name.
//
// Left to the caller: time-outs (through ctx), repeats, propagation (waiting
// until a new key works), and proof of revocation.
package recipe

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
	Human        = "human"         // a person makes the key; the rest may be automatic
)

// defaultSpacing is the time between two probes.
const defaultSpacing = 2 * time.Second

// Recipe is a parsed recipe. It is immutable; the exported fields are for
// people.
type Recipe struct {
	ID      string
	Vendor  string   // "SendGrid"
	Docs    []string // where the vendor describes its key API
	Source  string   // what the recipe was written from
	Tested  string   // "doc", "loopback" or "live"
	Shape   string
	Hazards []string // what to know before it is used

	params   []provider.Param
	urlParam map[string]bool
	upstream template
	parts    []part
	idPart   string // the part that is the vendor's id; "" for none
	place    key.Place
	rules    []key.Rule // of live answers
	fallback []int

	manager   manager
	limits    limits
	generate  map[string]generate
	life      time.Duration // wished when the request says none
	describe  *describe
	steps     []step
	list      *list
	probe     *probe
	early     time.Duration
	late      time.Duration
	spacing   time.Duration
	usageFrom bool
	granular  time.Duration
	disable   *toggle
	enable    *toggle
	revoke    *act
	deadOK    int
	human     human
}

type part struct {
	name    string
	secret  bool
	pattern string
	minLen  int
}

type manager struct {
	wanted string // "", "required", "self"
	parts  []string
	place  call.Place
	base   template
}

type limits struct {
	max     int
	nameMax int
	charset *regexp.Regexp // matches one character that is not permitted
	full    *condition
}

type generate struct {
	length  int
	classes []string // alphabets
}

// request is one HTTP request to the vendor.
type request struct {
	method string
	path   template
	query  []named
	header []named
	json   *tree
	form   []named
}

type named struct {
	name  string
	value template
}

// act is a request with what its answer must be.
type act struct {
	request request
	expect  condition  // default: 2xx
	gone    *condition // the key is not there: for revoke and disable, done already
}

// step is one call of a creation.
type step struct {
	act
	extract []extract
}

// extract takes one value from an answer.
type extract struct {
	name   string
	path   call.Path      // of the JSON body
	pathT  *template      // or a path with names in it
	header string         // or a header
	xml    []string       // or local names of XML elements
	value  *template      // or no answer at all
	match  *regexp.Regexp // on the text found: the first group, or all of it
	source string         // for errors
}

type describe struct {
	steps    []step
	defaults map[string]tree
	allow    bool // a key whose rights cannot be read may be made with the defaults
}

type list struct {
	act
	items    call.Path
	id       call.Path
	name     *call.Path
	created  *call.Path
	lastUsed *call.Path
	disabled *flagRule
	page     page
	complete bool
}

// flagRule reads a yes or no from one item of a list.
type flagRule struct {
	path   call.Path
	equals *string
	not    bool
}

type page struct {
	kind  string // none, cursor, page, offset, link_header, next_url
	next  call.Path
	param string
	first int
	size  int
	sizeP string
	most  int
}

type probe struct {
	method string
	path   template
	query  []named
	header []named
	json   *tree
	rules  []key.Rule
}

// toggle is disable or enable.
type toggle struct {
	act
	read *step // before a disable: what enable needs
	must []string
}

type human struct {
	create, revoke []string
	url            string
}

// condition is a rule over an answer that either holds or does not.
type condition struct {
	rules call.Rules
	text  string // for people: "201" or "200 with $.ok"
}
