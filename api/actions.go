package api

import (
	"time"

	"github.com/keybaton/keybaton/secret"
)

// Set is the body of a set: a key that a person pasted.
type Set struct {
	Parts map[string]secret.Exposed `json:"parts" doc:"the parts of the key; most have one, named key"`
	Why   string                    `json:"why,omitempty" maxLength:"500"`
}

// SecretParts returns the parts that s carries.
func (s Set) SecretParts() secret.Parts { return secret.PartsOf(s.Parts) }

// SetResult says what became of a pasted key.
type SetResult struct {
	Version   int64  `json:"version"`
	Rotation  string `json:"rotation,omitempty" doc:"the rotation that brings it in"`
	Installed bool   `json:"installed" doc:"it is the primary now: there was none"`
	Outcome   string `json:"outcome" doc:"of its probe: ok, or unverified where there is no probe"`
}

// Import is the body of an import: variables that may hold keys.
type Import struct {
	Environment string        `json:"environment"`
	Variables   []ImportValue `json:"variables" nullable:"false" maxItems:"1000"`
	DryRun      bool          `json:"dry_run,omitempty" doc:"recognise and probe, keep nothing"`
}

// ImportValue is one variable of an [Import].
type ImportValue struct {
	Name  string         `json:"name" doc:"such as SENDGRID_API_KEY"`
	Value secret.Exposed `json:"value"`
}

// Names returns the names of the variables, in order.
func (i Import) Names() []string {
	out := make([]string, 0, len(i.Variables))
	for _, v := range i.Variables {
		out = append(out, v.Name)
	}
	return out
}

// Values returns the values of the variables, in order.
func (i Import) Values() []secret.Value {
	out := make([]secret.Value, 0, len(i.Variables))
	for _, v := range i.Variables {
		out = append(out, v.Value.Value())
	}
	return out
}

// Found is what could be said of one variable of an import.
type Found struct {
	Name        string   `json:"name" doc:"the variable"`
	Service     string   `json:"service" doc:"proposed, or the declared one it belongs to"`
	Environment string   `json:"environment"`
	Declared    bool     `json:"declared" doc:"the service is in the configuration"`
	Provider    string   `json:"provider,omitempty"`
	Vendor      string   `json:"vendor,omitempty"`
	Outcome     string   `json:"outcome" doc:"valid, invalid or unverified"`
	Rotation    string   `json:"rotation" doc:"automatic, or pasted by a person"`
	Missing     []string `json:"missing" nullable:"false" doc:"what is needed before it can be managed"`
	Installed   bool     `json:"installed"`
}

// Discovered is one key as the vendor lists it, beside what the store knows.
type Discovered struct {
	VendorID string    `json:"vendor_id,omitempty" doc:"the vendor's name for it; never a secret"`
	Label    string    `json:"label,omitempty" doc:"the name under which it was made"`
	Created  time.Time `json:"created,omitzero" doc:"by the vendor's clock"`
	LastUsed time.Time `json:"last_used,omitzero" doc:"by the vendor's clock; absent where it does not tell"`
	Disabled bool      `json:"disabled,omitempty"`
	Version  int64     `json:"version,omitempty" doc:"absent: the store does not know it"`
	State    string    `json:"state,omitempty" doc:"of the version"`
	Relation string    `json:"relation" doc:"known; stray (a label of ours, unknown to the store); foreign (made by others, never touched); missing (taken for alive, not listed); unidentified (its vendor id is not known)"`
}

// Adopt is the body of an adopt.
type Adopt struct {
	VendorID string `json:"vendor_id,omitempty" maxLength:"500" doc:"as the vendor lists it; may be left out where the key itself tells it"`
	Version  int64  `json:"version,omitempty" minimum:"0" doc:"the version that it is; 0: the only one whose vendor id is not known"`
	Retire   bool   `json:"retire,omitempty" doc:"it is no version, and nobody needs it: take it in to end it"`
	Why      string `json:"why,omitempty" maxLength:"500"`
}

// Rotate is the body of a rotate.
type Rotate struct {
	Why       string `json:"why,omitempty" maxLength:"500"`
	Emergency bool   `json:"emergency,omitempty" doc:"a version leaked: soak and quiet are skipped, probes never"`
	Leaked    int64  `json:"leaked,omitempty" minimum:"0" doc:"with emergency; 0 is the primary"`
}

// Why is the body of a rollback.
type Why struct {
	Why string `json:"why,omitempty" maxLength:"500"`
}

// Plan is what a rotation would do, without any of it being done.
type Plan struct {
	Service     string     `json:"service"`
	Environment string     `json:"environment"`
	Provider    string     `json:"provider"`
	Steps       []PlanStep `json:"steps" nullable:"false"`
	Refused     string     `json:"refused,omitempty" doc:"why it could not begin now"`
	Warnings    []string   `json:"warnings" nullable:"false" doc:"what cannot be promised or proven"`
}

// PlanStep is one step of a [Plan].
type PlanStep struct {
	Step     string   `json:"step"`
	Does     string   `json:"does"`
	Requests []string `json:"requests" nullable:"false" doc:"as METHOD URL, with no secret in them"`
	Gate     string   `json:"gate" doc:"what must be seen before the step is left"`
}

// Apply is the body of an apply: the text of a keybaton.yaml.
type Apply struct {
	Name   string `json:"name,omitempty" doc:"of the file, for messages"`
	YAML   string `json:"yaml" maxLength:"1048576"`
	Prune  bool   `json:"prune,omitempty" doc:"delete what the file does not name"`
	DryRun bool   `json:"dry_run,omitempty" doc:"plan only"`
	Expect string `json:"expect,omitempty" doc:"the digest of the plan that was shown; another plan is refused with stale"`
}

// Applied is the answer to an apply.
type Applied struct {
	Changes []Change `json:"changes" nullable:"false" doc:"what changes, and what only the server has"`
	Digest  string   `json:"digest" doc:"names this plan"`
	Applied bool     `json:"applied" doc:"false on a dry run, and when nothing changes"`
}

// What a [Change] can do.
const (
	ActionAdd    = "add"
	ActionChange = "change"
	ActionDelete = "delete"
	ActionKeep   = "keep" // it is not in the file, and is left alone
)

// Change is one line of a plan.
type Change struct {
	Action string         `json:"action" enum:"add,change,delete,keep"`
	Kind   string         `json:"kind" doc:"service, policy or credential"`
	Name   string         `json:"name"`
	Fields []ChangedField `json:"fields" nullable:"false" doc:"those that change"`
	Note   string         `json:"note,omitempty"`
	Moves  []string       `json:"moves,omitempty" doc:"the live keys that would be sent to another host, in words, one for each credential"`
}

// ChangedField is one field of a [Change]; an empty value is unsaid.
type ChangedField struct {
	Name string `json:"name"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Grant names the credentials that a token is for. "*" is every one.
type Grant struct {
	Environment string   `json:"environment"`
	Services    []string `json:"services" nullable:"false"`
}

// Token is an API token without itself and without its hash.
type Token struct {
	Name           string    `json:"name"`
	Role           string    `json:"role" doc:"viewer, operator, admin, consumer or gateway"`
	Kind           string    `json:"kind,omitempty" doc:"of a consumer: gateway, client or reader"`
	Grants         []Grant   `json:"grants" nullable:"false" doc:"empty for people: everything"`
	RefreshSeconds int64     `json:"refresh_seconds,omitempty" doc:"how often a reader reads again"`
	Created        time.Time `json:"created"`
	By             string    `json:"by"`
	Expires        time.Time `json:"expires,omitzero"`
	Expired        bool      `json:"expired,omitempty"`
}

// TokenCreate is the body of a token create. The token is made by the client
// and never leaves it: the server gets its hash.
type TokenCreate struct {
	Name           string    `json:"name"`
	Hash           string    `json:"hash" pattern:"^[0-9a-f]{64}$" patternDescription:"the SHA-256 of the token, in hex"`
	Role           string    `json:"role"`
	Kind           string    `json:"kind,omitempty" doc:"default: what the role suggests"`
	Grants         []Grant   `json:"grants,omitempty" nullable:"false"`
	RefreshSeconds int64     `json:"refresh_seconds,omitempty" minimum:"0"`
	Expires        time.Time `json:"expires,omitzero"`
}
