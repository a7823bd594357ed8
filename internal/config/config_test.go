package config_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/config"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
)

const good = `version: 1                       # keybaton.yaml says what is managed
services:
  billing-api:
    provider: manual
    upstream: https://api.service.com/
    place: {header: Authorization, value: "Bearer {{key}}"}
    probe: {get: /me, valid: [200], invalid: [401]}
    fallback_on: [401, 403]
    env_name: MY_SERVICE_API_KEY
  mailer:
    provider: sendgrid
    params: {base_url: http://127.0.0.1:9, tries: 3, on: true}
    manager: mailer-admin
    early: 90s
    rules:
      - {status: [403], body: "(?i)revoked", is: invalid, dead: true}
      - status: [4xx]
        headers: {x-ratelimit-remaining: "^0$"}
        json: [{path: $.error.code, equals: 17}, {path: $.e, filled: false}]
        methods: [get]
        is: throttled
  mailer-admin:
    upstream: https://api.mail.example
    parts: [user, password]
    place:
      basic: {user: "{{user}}", password: "{{password}}"}
    probe:
      method: post
      path: /whoami
      headers: {Accept: application/json}
      body: "{}"
      rules: [{json: [{path: $.ok, exists: true}], is: valid}]
      throttled: [429]
credentials:
  - {service: mailer, environment: prod, params: {base_url: http://127.0.0.1:10}}
  - {service: mailer-admin, environment: prod}
  - {service: billing-api, environment: prod, policy: careful}
  - {service: billing-api, environment: dev, upstream: https://sandbox.service.com}
policies:
  careful: {every: 30d, spare: warm, soak: {requests: 100, for: 15m}, quiet: 1d12h, unverified: ask, window: "Mon-Fri 09:00-17:00"}
  default: {cron: "0 3 1 * *", zone: Europe/Berlin, jitter: 500ms, spare: none, probe_ok: 5, deadline: 2h, watch: 30m, soak: {probes: 7}}
`

func TestParse(t *testing.T) {
	f, err := config.Parse("keybaton.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	yes, no := true, false
	want := config.File{
		Services: []key.Service{
			{Name: "billing-api", Provider: "manual", EnvName: "MY_SERVICE_API_KEY", Call: key.Call{
				Upstream:   "https://api.service.com",
				Place:      key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"},
				Probe:      &key.Probe{Method: "GET", Path: "/me", Rules: []key.Rule{{Status: []int{200}, Is: "valid"}, {Status: []int{401}, Is: "invalid"}}},
				FallbackOn: []int{401, 403},
			}},
			{Name: "mailer", Provider: "sendgrid", Manager: "mailer-admin", Params: map[string]string{"base_url": "http://127.0.0.1:9", "tries": "3", "on": "true"}, Call: key.Call{
				Early: 90 * time.Second,
				Rules: []key.Rule{
					{Status: []int{403}, Body: "(?i)revoked", Is: "invalid", Dead: true},
					{Status: []int{4}, Header: map[string]string{"x-ratelimit-remaining": "^0$"}, Methods: []string{"GET"}, Is: "throttled",
						JSON: []key.JSONTest{{Path: "$.error.code", Equals: "17"}, {Path: "$.e", Filled: &no}}},
				},
			}},
			{Name: "mailer-admin", Provider: "manual", Call: key.Call{
				Upstream: "https://api.mail.example",
				Parts:    []string{"user", "password"},
				Place:    key.Place{In: key.InBasic, User: "{{user}}", Value: "{{password}}"},
				Probe: &key.Probe{Method: "POST", Path: "/whoami", Header: map[string]string{"Accept": "application/json"}, Body: "{}", Rules: []key.Rule{
					{JSON: []key.JSONTest{{Path: "$.ok", Exists: &yes}}, Is: "valid"}, {Status: []int{429}, Is: "throttled"}}},
			}},
		},
		Credentials: []key.Credential{
			{ID: key.CredentialID{Service: "billing-api", Environment: "dev"}, Policy: "default", Upstream: "https://sandbox.service.com"},
			{ID: key.CredentialID{Service: "billing-api", Environment: "prod"}, Policy: "careful"},
			{ID: key.CredentialID{Service: "mailer", Environment: "prod"}, Policy: "default", Params: map[string]string{"base_url": "http://127.0.0.1:10"}},
			{ID: key.CredentialID{Service: "mailer-admin", Environment: "prod"}, Policy: "default"},
		},
		Policies: []rotation.Policy{
			{Name: "careful", Every: 30 * 24 * time.Hour, Spare: true, Soak: rotation.Soak{Requests: 100, For: 15 * time.Minute}, Quiet: 36 * time.Hour, Unverified: rotation.UnverifiedAsk, Window: "Mon-Fri 09:00-17:00"},
			{Name: "default", Cron: "0 3 1 * *", Zone: "Europe/Berlin", Jitter: 500 * time.Millisecond, ProbeOK: 5, Deadline: 2 * time.Hour, Watch: 30 * time.Minute, Soak: rotation.Soak{Probes: 7}},
		},
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got  %+v\nwant %+v", f, want)
	}
}

// Each mistake is named once, at its place, with what to write instead.
func TestParseNamesMistakes(t *testing.T) {
	const head = "version: 1\nservices:\n  a: {upstream: https://a.example}\n"
	tests := []struct{ name, src, want string }{
		{"empty", "", "f:1:1: the file is empty; begin with version: 1"},
		{"comment", "# nothing\n", "f:1:1: the file is empty; begin with version: 1"},
		{"no version", "services: {}\n", "f:1:1: version: the file does not say its version; begin with version: 1"},
		{"other version", "version: 2\n", "f:1:10: version: this program reads version 1, not 2"},
		{"version text", "version: one\n", `f:1:10: version: "one" is not a whole number`},
		{"syntax", "version: 1\nservices: [\n", "f:2:11: this is not YAML: "},
		{"tab", "version: 1\nservices:\n\ta: {}\n", "f:3:1: this is not YAML: "},
		{"documents", "version: 1\n---\nversion: 1\n", "f:1:1: the file has several documents; write one, without ---"},
		{"scalar", "hello\n", "f:1:1: a mapping is wanted here"},
		{"unknown top", "version: 1\nservice: {}\n", `f:2:1: service: there is no such field; did you mean "services"?`},
		{"unknown field", "version: 1\nservices:\n  a:\n    upstraem: https://a.example\n", `f:4:5: services.a.upstraem: there is no such field; did you mean "upstream"?`},
		{"far field", head + "policies:\n  p:\n    often: 1d\n", "f:6:5: policies.p.often: there is no such field; there is cron, deadline, every, jitter, probe_ok, quiet, soak, spare, unverified, watch, window, zone"},
		{"twice", "version: 1\nversion: 1\n", "f:2:1: version: this is said before, on line 1; keep one of the two"},
		{"anchor", head + "policies:\n  p: &x {every: 1d}\n", "f:5:6: policies.p: anchors and aliases are not read; write the value out"},
		{"merge", head + "policies:\n  p:\n    <<: {every: 1d}\n", "f:6:5: policies.p: merge keys are not read; write the fields out"},
		{"tag", "version: !!int 1\n", "f:1:10: version: tags are not read; write the value alone, in quotes if it is text"},
		{"list for mapping", "version: 1\nservices: [a]\n", "f:2:11: services: a mapping is wanted here"},
		{"mapping for list", head + "credentials: {a: b}\n", "f:4:14: credentials: a list is wanted here"},
		{"list for value", "version: 1\nservices: {a: {upstream: [x]}}\n", "f:2:26: services.a.upstream: one value is wanted here, not a list or a mapping"},
		{"empty entry", head + "credentials:\n  -\n", "credentials[0]: an entry of the list is empty; write it or leave it out"},
		{"service name", "version: 1\nservices:\n  Billing_API: {}\n", `f:3:3: services.Billing_API: "Billing_API" cannot be the name of a service; use 1 to 63 of a-z, 0-9 and '-'`},
		{"environment name", head + "credentials: [{service: a, environment: Prod!}]\n", `f:4:41: credentials[0].environment: "Prod!" cannot be the name of an environment`},
		{"policy name", head + "policies: {P: {every: 1d}}\n", `f:4:12: policies.P: "P" cannot be the name of a policy`},
		{"provider name", "version: 1\nservices: {a: {provider: 'x y'}}\n", `f:2:26: services.a.provider: "x y" cannot be the name of a provider`},
		{"unknown service", head + "credentials:\n  - {service: b, environment: dev}\n", `f:5:15: credentials[0].service: there is no service "b" in this file; there is a`},
		{"no service", head + "credentials:\n  - {environment: dev}\n", "f:5:5: credentials[0]: service is missing; write the name of a service"},
		{"no environment", head + "credentials:\n  - {service: a}\n", "f:5:5: credentials[0]: environment is missing; write one such as dev or prod"},
		{"duplicate", head + "credentials:\n  - {service: a, environment: dev}\n  - {service: a, environment: dev}\n", "f:6:5: credentials[1]: a/dev is declared before, on line 5; keep one of the two"},
		{"unknown policy", head + "credentials:\n  - {service: a, environment: dev, policy: carefull}\npolicies: {careful: {every: 1d}}\n", `f:5:44: credentials[0].policy: there is no policy "carefull" in this file; did you mean "careful"?`},
		{"no policies", head + "credentials:\n  - {service: a, environment: dev, policy: x}\n", `f:5:44: credentials[0].policy: there is no policy "x" in this file; there is none`},
		{"no upstream", "version: 1\nservices: {a: {}}\ncredentials: [{service: a, environment: dev}]\n", "f:3:15: credentials[0]: nothing says where a is; write upstream: https://… here or under services.a"},
		{"plain http", "version: 1\nservices: {a: {upstream: 'http://10.0.0.7:80'}}\n", `f:2:26: services.a.upstream: over http:// the keys would cross the network to 10.0.0.7 in the clear; write https://`},
		{"plain http of a credential", head + "credentials: [{service: a, environment: dev, upstream: 'http://b.example'}]\n", `credentials[0].upstream: over http:// the keys`},
		{"metadata", "version: 1\nservices: {a: {upstream: 'https://169.254.169.254/x', insecure_http: true}}\n", `services.a.upstream: 169.254.169.254 is a cloud's metadata address, which no key and no request is sent to; name the host`},
		{"metadata in IPv6", "version: 1\nservices: {a: {upstream: 'http://[fd00:ec2::254]'}}\n", `services.a.upstream: fd00:ec2::254 is a cloud's metadata address`},
		{"metadata by name", "version: 1\nservices: {a: {upstream: 'http://Metadata.Google.Internal.'}}\n", `services.a.upstream: Metadata.Google.Internal. is a cloud's metadata address`},
		{"probe of another host", "version: 1\nservices: {a: {upstream: 'https://a.example', probe: {get: //b.example/me}}}\n", `services.a.probe.get: "//b.example/me" may be read as the address of another host; begin it with one /, such as /me`},
		{"our header", "version: 1\nservices: {a: {upstream: 'https://a.example', place: {header: keybaton-token}}}\n", `services.a.place.header: keybaton-token is Keybaton's own, and does not reach the API; name another header`},
		{"every second", head + "policies: {p: {every: 30s}}\n", "f:4:23: policies.p.every: a rotation every 30s would never rest; write 1m or more, such as 30d"},
		{"scheme", "version: 1\nservices: {a: {upstream: 'ftp://x'}}\n", `f:2:26: services.a.upstream: "ftp" is neither https nor http; write it like https://api.example.com`},
		{"no scheme", "version: 1\nservices: {a: {upstream: api.example.com}}\n", "f:2:26: services.a.upstream: this is not a URL with a host; write it like https://api.example.com"},
		{"userinfo", "version: 1\nservices: {a: {upstream: 'https://u:p@x'}}\n", "services.a.upstream: a URL here holds no user or password"},
		{"query", "version: 1\nservices: {a: {upstream: 'https://x/?a=b'}}\n", "services.a.upstream: a URL here ends with its path; leave out what follows ? or #"},
		{"env name", "version: 1\nservices: {big-a: {env_name: MY-KEY}}\n", `services.big-a.env_name: "MY-KEY" cannot be the name of a variable; use letters, digits and '_', such as BIG_A_API_KEY`},
		{"manager", "version: 1\nservices: {a: {manager: b}}\n", `services.a.manager: there is no service "b"; there is a`},
		{"manager credential", "version: 1\nservices: {a: {provider: x, manager: b}, b: {provider: x}}\ncredentials: [{service: a, environment: dev}, {service: b, environment: prod}]\n",
			"f:3:15: credentials[0]: the manager key of a/dev is that of b/dev, which is not declared; add {service: b, environment: dev}"},
		{"two places", "version: 1\nservices: {a: {place: {header: X, query: y}}}\n", "services.a.place: a key rides in one place, not in header and query; keep one"},
		{"no place", "version: 1\nservices: {a: {place: {value: '{{key}}'}}}\n", "services.a.place: it does not say where the key rides; write one of header, basic, query, form and json"},
		{"no key in value", "version: 1\nservices: {a: {place: {header: X, value: abc}}}\n", `services.a.place.value: there is no key in it; write it like "Bearer {{key}}"`},
		{"unknown part", "version: 1\nservices: {a: {place: {header: X, value: '{{kee}}'}}}\n", `services.a.place.value: {{kee}} is no part of the key; did you mean "key"?`},
		{"which part", "version: 1\nservices: {a: {parts: [user, password], place: {header: X}}}\n", `services.a.place: which part of the key rides here? write value: "{{user}}"`},
		{"hop header", "version: 1\nservices: {a: {place: {header: Connection}}}\n", "services.a.place.header: Connection belongs to the connection, and does not reach the API; name another header"},
		{"header", "version: 1\nservices: {a: {place: {header: 'X Y'}}}\n", `services.a.place.header: "X Y" cannot be the name of a header; write it like Authorization`},
		{"json place", "version: 1\nservices: {a: {place: {json: key}}}\n", `services.a.place.json: "key" is not a path; write it like $.auth.key`},
		{"basic", "version: 1\nservices: {a: {place: {basic: {user: me}}}}\n", `services.a.place.basic: there is no key in it; write it like {user: "{{user}}", password: "{{password}}"}`},
		{"part twice", "version: 1\nservices: {a: {parts: [id, id]}}\n", `services.a.parts[1]: the part "id" is named twice`},
		{"part name", "version: 1\nservices: {a: {parts: [Id]}}\n", `services.a.parts[0]: "Id" cannot be the name of a part; use a-z, 0-9 and '_', such as user`},
		{"fallback_on", "version: 1\nservices: {a: {fallback_on: [401, 200]}}\n", "f:2:35: services.a.fallback_on[1]: 200 is not a refusal; name statuses from 400 to 599, such as 401"},
		{"probe", "version: 1\nservices: {a: {probe: {valid: [200]}}}\n", "services.a.probe: it does not say what is asked; write get: /me"},
		{"probe path", "version: 1\nservices: {a: {probe: {get: me}}}\n", `services.a.probe.get: "me" is not a path; begin it with /, such as /me`},
		{"probe both", "version: 1\nservices: {a: {probe: {get: /me, method: HEAD}}}\n", "services.a.probe.get: get says method and path already; keep get, or write method and path"},
		{"probe status twice", "version: 1\nservices: {a: {probe: {get: /me, valid: [200], invalid: [200]}}}\n", "services.a.probe.invalid[0]: 200 is named under valid and cannot mean both"},
		{"status", "version: 1\nservices: {a: {probe: {get: /me, valid: [ok]}}}\n", `services.a.probe.valid[0]: "ok" is not a status; write 401, or 4xx for every one that begins with 4`},
		{"rule is", "version: 1\nservices: {a: {rules: [{status: [401], is: inval}]}}\n", `services.a.rules[0].is: "inval" is not known here; did you mean "invalid"?`},
		{"rule without is", "version: 1\nservices: {a: {rules: [{status: [401]}]}}\n", "services.a.rules[0]: is is missing; write one of valid, invalid, valid_out_of_scope, throttled, other"},
		{"rule without test", "version: 1\nservices: {a: {rules: [{is: valid}]}}\n", "services.a.rules[0]: it tests nothing, and so matches nothing"},
		{"rule regexp", "version: 1\nservices: {a: {rules: [{body: '(', is: valid}]}}\n", "services.a.rules[0].body: this is not a regular expression in RE2: missing closing ): `(`"},
		{"json test", "version: 1\nservices: {a: {rules: [{json: [{path: $.a}], is: valid}]}}\n", "services.a.rules[0].json[0]: it tests nothing; write equals, match, exists or filled"},
		{"json path", "version: 1\nservices: {a: {rules: [{json: [{path: a, exists: true}], is: valid}]}}\n", `services.a.rules[0].json[0].path: "a" is not a path; begin it with $`},
		{"bool", "version: 1\nservices: {a: {rules: [{status: [401], is: valid, dead: yes}]}}\n", `services.a.rules[0].dead: "yes" is neither true nor false`},
		{"duration unit", head + "policies: {p: {every: 30}}\n", `f:4:23: policies.p.every: "30" is not a duration; write it like 30d, 12h, 15m, 2s or 500ms`},
		{"duration zero", head + "policies: {p: {quiet: 0s}}\n", "policies.p.quiet: a duration of zero means nothing here"},
		{"duration negative", head + "policies: {p: {quiet: -1h}}\n", `policies.p.quiet: "-1h" is not a duration`},
		{"duration long", head + "policies: {p: {quiet: 4000d}}\n", "policies.p.quiet: 4000d is longer than 3650d"},
		{"every and cron", head + "policies: {p: {every: 1d, cron: '0 3 * * *'}}\n", "policies.p.cron: a policy has every or cron, not both; keep one"},
		{"cron", head + "policies: {p: {cron: '0 3 * *'}}\n", "policies.p.cron: expected exactly 5 fields"},
		{"cron zone", head + "policies: {p: {cron: 'TZ=UTC 0 3 * * *'}}\n", "policies.p.cron: write five fields, such as 0 3 1 * *; the time zone goes into zone"},
		{"zone", head + "policies: {p: {zone: Berlin}}\n", `policies.p.zone: "Berlin" is not a time zone; write it like Europe/Berlin or UTC`},
		{"window", head + "policies: {p: {window: nights}}\n", `policies.p.window: "nights" is not a window; write it like Mon-Fri 09:00-17:00`},
		{"window backwards", head + "policies: {p: {window: '17:00-09:00'}}\n", `policies.p.window: "17:00-09:00" is not a window`},
		{"spare", head + "policies: {p: {spare: hot}}\n", `policies.p.spare: "hot" is not known here; there is warm, none`},
		{"unverified", head + "policies: {p: {unverified: proced}}\n", `policies.p.unverified: "proced" is not known here; did you mean "proceed"?`},
		{"probe_ok", head + "policies: {p: {probe_ok: 0}}\n", "policies.p.probe_ok: 0 is not between 1 and 100; leave it out for its default"},
		{"soak", head + "policies: {p: {soak: {requests: -1}}}\n", "policies.p.soak.requests: -1 is not between 1 and 1000000000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := config.Parse("f", []byte(tt.src))
			var ps config.Problems
			if !errors.As(err, &ps) || !errors.Is(err, key.ErrInvalid) {
				t.Fatalf("got %v", err)
			}
			if len(ps) != 1 || !strings.Contains(ps[0].Error(), tt.want) {
				t.Errorf("got:\n%v\nwant one: %s", err, tt.want)
			}
			if !reflect.DeepEqual(f, config.File{}) {
				t.Errorf("a file with a mistake yielded %+v", f)
			}
		})
	}
}

func TestParseCollectsInOrder(t *testing.T) {
	_, err := config.Parse("f", []byte(`version: 1
services:
  a: {upstream: "ftp://x", fallback: [401]}
  b: {provider: sendgrid, parts: x}
credentials:
  - {service: c, environment: dev, policy: p}
  - {service: b, environment: "D"}
policies:
  q: {every: tomorrow, spare: lots}
`))
	var ps config.Problems
	if !errors.As(err, &ps) {
		t.Fatal(err)
	}
	var got []string
	for _, p := range ps {
		got = append(got, fmt.Sprintf("%d %s", p.Line, p.Field))
	}
	want := []string{"3 services.a.upstream", "3 services.a.fallback", "4 services.b.parts", "6 credentials[0].service", "6 credentials[0].policy",
		"7 credentials[1].environment", "9 policies.q.every", "9 policies.q.spare"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q\n%v", got, want, err)
	}
}

func TestParseIsBounded(t *testing.T) {
	if _, err := config.Parse("f", []byte("version: 1\n#"+strings.Repeat("x", config.MaxSize))); err == nil || len(err.Error()) > 200 {
		t.Errorf("got %v", err)
	}
	_, err := config.Parse("f", []byte("version: 1\ncredentials: ["+strings.Repeat("{a: b},", 1000)+"]"))
	var ps config.Problems
	if !errors.As(err, &ps) || len(ps) != 50 {
		t.Errorf("%d problems are named", len(ps))
	}
}

// What is not said means its default, also when it is written as nothing.
func TestParseNothing(t *testing.T) {
	f, err := config.Parse("f", []byte("version: 1\nservices:\ncredentials:\npolicies:\n  p:\n"))
	if err != nil || !reflect.DeepEqual(f, config.File{Policies: []rotation.Policy{{Name: "p"}}}) {
		t.Errorf("got %+v, %v", f, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("version: 1\nservices: {a: {upstream: [x]}}\n"))
	f.Add([]byte("- &a [*a]\n? x\n: !!str |\n  y\n<<: *a\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		got, err := config.Parse("f", src)
		var ps config.Problems
		if err != nil && (!errors.As(err, &ps) || len(ps) == 0) {
			t.Fatalf("an error that names no problem: %v", err)
		}
		for _, p := range ps {
			if p.Line < 1 || p.Col < 1 || p.Text == "" || strings.ContainsAny(p.Text, "\n\r") {
				t.Errorf("a bad problem: %+q", p)
			}
		}
		if err == nil {
			if again, err := config.Parse("f", src); err != nil || !reflect.DeepEqual(got, again) {
				t.Errorf("parsed twice, it is not the same: %v", err)
			}
			if p := config.Diff(config.State(got), got, true); !p.Empty() {
				t.Errorf("a file differs from itself: %+v", p.Steps)
			}
		}
	})
}

// Plain HTTP is taken to this machine, and elsewhere where it is said.
func TestPlainHTTP(t *testing.T) {
	for _, u := range []string{"http://localhost:8080", "http://api.localhost", "http://127.0.0.2", "http://[::1]:1/x", "http://10.0.0.7', insecure_http: true, env_name: 'X"} {
		f, err := config.Parse("f", []byte("version: 1\nservices: {a: {upstream: '"+u+"'}}\n"))
		if err != nil {
			t.Errorf("%s: %v", u, err)
		} else if got, want := f.Services[0].Call.Insecure, strings.Contains(u, "insecure"); got != want {
			t.Errorf("%s: insecure_http is %v, want %v", u, got, want)
		}
	}
}
