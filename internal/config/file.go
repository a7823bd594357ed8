package config

import "time"

// The types below are keybaton.yaml as it is written. The yaml tag is the
// name; the doc tag is the schema's description.

type file struct {
	Version     int                `yaml:"version" doc:"Always 1." jsonschema:"required,enum=1"`
	Services    map[string]service `yaml:"services" doc:"The external APIs that are called with a key, by name."`
	Credentials []credential       `yaml:"credentials" doc:"The services by environment: each has keys of its own."`
	Policies    map[string]policy  `yaml:"policies" doc:"How keys are rotated, by name. The policy named default is for credentials that name none."`
}

type service struct {
	Provider   string            `yaml:"provider" doc:"manual (the default), or a recipe such as sendgrid."`
	Upstream   string            `yaml:"upstream" doc:"The URL of the API; no other host ever gets the key."`
	Insecure   bool              `yaml:"insecure_http" doc:"Keys may go to an upstream with plain http that is not this machine: the network between is trusted."`
	Place      *placing          `yaml:"place" doc:"Where the key rides on a request."`
	Probe      *probe            `yaml:"probe" doc:"The cheap, read-only request that tells whether a key works."`
	Rules      []rule            `yaml:"rules" doc:"What the API's answers say of the key; the first that matches counts."`
	FallbackOn []int             `yaml:"fallback_on" doc:"The statuses on which a request is tried again with the fallback."`
	EnvName    string            `yaml:"env_name" doc:"The variable that keybaton run sets."`
	Params     map[string]string `yaml:"params" doc:"What the provider asks for."`
	Manager    string            `yaml:"manager" doc:"The service whose key, in the same environment, may issue and revoke keys of this one."`
	Parts      []string          `yaml:"parts" doc:"The names of the parts of a key; key alone, if unsaid."`
	Early      duration          `yaml:"early" doc:"How long a new key may be refused before it counts as bad."`
}

type placing struct {
	Header string `yaml:"header" doc:"The name of a header."`
	Query  string `yaml:"query" doc:"The name of a query parameter."`
	Form   string `yaml:"form" doc:"The name of a field of a form body."`
	JSON   string `yaml:"json" doc:"The path of a field of a JSON body, such as $.auth.key."`
	Value  string `yaml:"value" doc:"The template of the value, such as Bearer {{key}}; {{key}} if unsaid."`
	Basic  *basic `yaml:"basic" doc:"HTTP basic authentication."`
}

type basic struct {
	User     string `yaml:"user" doc:"The template of the user name, such as {{user}}."`
	Password string `yaml:"password" doc:"The template of the password, such as {{password}}."`
}

type probe struct {
	Get        string            `yaml:"get" doc:"The path of a GET request, such as /me."`
	Method     string            `yaml:"method" doc:"With path: the method, GET if unsaid."`
	Path       string            `yaml:"path" doc:"Instead of get: the path under the upstream, or a URL on the same host."`
	Headers    map[string]string `yaml:"headers" doc:"Headers of the request, beside the key."`
	Body       string            `yaml:"body" doc:"The body of the request."`
	Valid      []status          `yaml:"valid" doc:"The statuses that say the key works."`
	Invalid    []status          `yaml:"invalid" doc:"The statuses that say the key was refused."`
	OutOfScope []status          `yaml:"valid_out_of_scope" doc:"The statuses that say the key works and may not do this."`
	Throttled  []status          `yaml:"throttled" doc:"The statuses that say there were too many requests."`
	Rules      []rule            `yaml:"rules" doc:"Finer rules, looked at before the statuses."`
}

type rule struct {
	Status  []status          `yaml:"status" doc:"One of these statuses."`
	Headers map[string]string `yaml:"headers" doc:"Every one of these headers is there and matches the RE2 expression."`
	Body    string            `yaml:"body" doc:"An RE2 expression over the first 8 KiB of the body."`
	JSON    []jsonTest        `yaml:"json" doc:"Tests of a JSON body of at most 8 KiB."`
	Methods []string          `yaml:"methods" doc:"Only for requests with one of these methods."`
	Is      string            `yaml:"is" doc:"What the answer says of the key." jsonschema:"required,enum=valid,enum=invalid,enum=valid_out_of_scope,enum=throttled,enum=other"`
	Dead    bool              `yaml:"dead" doc:"The key itself was refused: requests of any method fall back."`
}

type jsonTest struct {
	Path   string  `yaml:"path" doc:"Such as $.error.code." jsonschema:"required"`
	Equals *string `yaml:"equals" doc:"The value as text."`
	Match  string  `yaml:"match" doc:"An RE2 expression over the value as text."`
	Exists *bool   `yaml:"exists" doc:"Whether the value is there."`
	Filled *bool   `yaml:"filled" doc:"Whether the value is more than null, empty or false."`
}

type credential struct {
	Service     string            `yaml:"service" doc:"The name of a service." jsonschema:"required"`
	Environment string            `yaml:"environment" doc:"dev, staging, prod, or any other name." jsonschema:"required"`
	Upstream    string            `yaml:"upstream" doc:"Instead of the service's."`
	Policy      string            `yaml:"policy" doc:"The name of a policy."`
	Params      map[string]string `yaml:"params" doc:"Over the service's."`
}

type policy struct {
	Every      duration `yaml:"every" doc:"Rotate at this age, such as 30d; 1m at least."`
	Cron       string   `yaml:"cron" doc:"Instead of every: five fields, such as 0 3 1 * *."`
	Zone       string   `yaml:"zone" doc:"The time zone of cron and window, such as Europe/Berlin; UTC if unsaid."`
	Window     string   `yaml:"window" doc:"A rotation begins only then, such as Mon-Fri 09:00-17:00."`
	Jitter     duration `yaml:"jitter" doc:"The start is spread over this long; a tenth of every, at most 1h, if unsaid."`
	Spare      string   `yaml:"spare" doc:"warm keeps an issued fallback between rotations." jsonschema:"enum=warm,enum=none"`
	Soak       *soak    `yaml:"soak" doc:"How long a new primary is watched before the old key retires."`
	Quiet      duration `yaml:"quiet" doc:"How long the old key must be unused; 24h if unsaid."`
	Watch      duration `yaml:"watch" doc:"How long the old key stays disabled before it is revoked; 1h if unsaid."`
	Unverified string   `yaml:"unverified" doc:"What to do where non-use cannot be proven; ask if unsaid." jsonschema:"enum=ask,enum=wait,enum=proceed"`
	ProbeOK    int      `yaml:"probe_ok" doc:"How many probes in a row a new key must pass; 3 if unsaid." jsonschema:"minimum=1,maximum=100"`
	Deadline   duration `yaml:"deadline" doc:"Of an emergency: from then on holders are named, not waited for; 1h if unsaid."`
}

type soak struct {
	For      duration `yaml:"for" doc:"At least this long; 15m if unsaid."`
	Requests int      `yaml:"requests" doc:"And this many requests per gateway; 100 if unsaid." jsonschema:"minimum=1"`
	Probes   int      `yaml:"probes" doc:"Or this many probes per gateway; 20 if unsaid." jsonschema:"minimum=1"`
}

// duration is written like 30d, 12h, 1h30m or 500ms.
type duration time.Duration

// status is an HTTP status, or 4 for what is written 4xx.
type status int
