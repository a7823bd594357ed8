package spec_test

import (
	_ "embed"
	"errors"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/internal/provider/spec"
)

// good is a whole recipe; cases change one line of it.
//
//go:embed testdata/acme.yaml
var good string

func TestGoodRecipe(t *testing.T) {
	r, err := spec.Parse("acme.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	d := recipe.New(r)
	i := d.Describe(provider.Env{Params: map[string]string{"team": "t1"}})
	if i.ID != "acme" || i.Call.Upstream != "https://api.acme.example" || i.Patterns["key"] != "^acme_" || !i.Abilities.Issue ||
		!i.Abilities.Revoke || !i.Abilities.List || i.Abilities.Disable || !i.Abilities.Probe || !i.ListsAll || i.Manager != "required" {
		t.Errorf("%+v", i)
	}
	if _, ok := d.(provider.Disabler); ok {
		t.Error("it disables")
	}
	if _, ok := d.(provider.Identifier); ok {
		t.Error("it identifies")
	}
	if got := d.(provider.Previewer).Preview(provider.Env{Params: map[string]string{"team": "a/b"}}, "issue"); len(got) != 1 || got[0] != "POST https://api.acme.example/teams/a%2Fb/keys" {
		t.Errorf("preview %q", got)
	}
}

func TestProblemsSayWhereAndWhatToWrite(t *testing.T) {
	for _, c := range []struct{ name, old, repl, want string }{
		{"version", "recipe: 1", "recipe: 2", `acme.yaml:1:9: recipe: only version 1 is known; write recipe: 1`},
		{"id", "id: acme", "id: Acme!", `acme.yaml:2:5: id: "Acme!" is no id; write a-z, 0-9 and '-' only`},
		{"typo", "tested: doc", "testd: doc", `there is no such field; write tested`},
		{"unknown field", "tested: doc", "tested: doc\nbanana: 1", `acme.yaml:5:1: banana: there is no such field; write one of recipe, id,`},
		{"tested", "tested: doc", "tested: maybe", `acme.yaml:4:9: tested: "maybe" is not known; write one of doc, loopback, live`},
		{"twice", "tested: doc", "tested: doc\ntested: live", `acme.yaml:5:1: tested: the field is there twice`},
		{"no proof", "  prove: {probe_is: invalid}\n", "", `revoke.prove: a vendor that says it revoked may have done nothing`},
		{"proof without a probe", "prove: {probe_is: invalid}", "prove: {by: banana}", `"banana" is not known; write one of probe, list`},
		{"unknown name", `"/keys/{{id}}"`, `"/keys/{{ident}}"`, `acme.yaml:31:35: revoke.request.path: there is no "ident" here; write one of id, manager.token, param.base_url, param.team`},
		{"near name", "{{param.team}}", "{{param.taem}}", `there is no "param.taem" here; write {{param.team}}`},
		{"unclosed", "{{param.team}}", "{{param.team}", `there is a {{ without a }} after it`},
		{"closed", "{{param.team}}", "param.team}}", `there is a }} without a {{ before it`},
		{"filter", `json: {name: "{{name}}"}`, `json: {name: "{{name | rot13}}"}`, `there is no filter "rot13"; write one of b64,`},
		{"time filter", `json: {name: "{{name}}"}`, `json: {name: "{{name | unix}}"}`, `filter unix is for times, and name is none`},
		{"time without filter", `json: {name: "{{name}}"}`, `json: {name: "{{expires}}"}`, `expires is a time and needs a filter; write {{expires | rfc3339}}`},
		{"name of another act", `"/keys/{{id}}"`, `"/keys/{{name}}"`, `there is no "name" here`},
		{"secret in a path", `"/keys/{{id}}"`, `"/keys/{{manager.token}}"`, `manager.token is secret, and a secret may not ride in a URL`},
		{"secret in a query", `request: {path: /keys}`, `request: {path: /keys, query: {t: "{{manager.token}}"}}`, `a secret may not ride in a URL`},
		{"path", "path: /me", "path: me", `probe.request.path: "me" is no path`},
		{"foreign host", "path: /me", "path: //evil.example/me", `"//evil.example/me" is no path`},
		{"query in path", "path: /me", "path: /me?a=1", `what follows a ? under query:`},
		{"status", "status: 201", "status: 2001", `acme.yaml:19:24: create.steps[0].expect.status: "2001" is no status; write a status such as 401, or 4xx`},
		{"rule without a test", "- {status: 401, is: invalid}", "- {is: invalid}", `a rule that tests nothing never matches`},
		{"rule without is", "- {status: 401, is: invalid}", "- {status: 401}", `probe.classify[1].is: this field is missing`},
		{"no invalid", "    - {status: 401, is: invalid}\n", "", `no rule says when a key is invalid`},
		{"json path", "key: $.key", "key: key", `create.steps[0].extract.key: "key" does not begin with $; write a path such as $.data.id`},
		{"no id", "extract: {id: $.id, key: $.key}", "extract: {key: $.key}", `no step extracts the vendor's id; write extract: {id: $.id}`},
		{"no key", "extract: {id: $.id, key: $.key}", "extract: {id: $.id}", `no step extracts the part "key"`},
		{"place", `place: {in: header, name: Authorization, value: "Bearer {{key}}"}`, `place: {in: header, name: Authorization, value: "Bearer {{kay}}"}`, `credential.place:`},
		{"place in", "in: header, name: X-Token", "in: cookie, name: X-Token", `manager.place.in: "cookie" is not known; write one of header, basic, query, form, json`},
		{"pattern", "'^acme_'", "'^acme_('", `credential.parts[0].pattern: "^acme_(" does not compile`},
		{"no secret", "secret: true", "secret: false", `no part is secret`},
		{"no manager", "manager:\n  parts: [token]\n  place: {in: header, name: X-Token, value: \"{{token}}\"}\n", "", `calls of the key API need a manager key`},
		{"upstream", `upstream: "{{param.base_url}}"`, `upstream: ftp://x`, `upstream: "ftp://x" is no URL of a host`},
		{"upstream of a text", `upstream: "{{param.base_url}}"`, `upstream: "{{param.team}}"`, `the param is the whole address, and is no URL; write type: url at the param team`},
		{"anchor", "tested: doc", "tested: &a doc", `anchors and aliases are not read`},
		{"kind", "vendor: {name: Acme}", "vendor: Acme", `acme.yaml:3:9: vendor: this is text; write its fields as a mapping`},
		{"not YAML", "vendor: {name: Acme}", "vendor: {name: Acme", `this is not YAML`},
		{"human with creation", "tested: doc", "tested: doc\nshape: human\nhuman: {create: [do it], revoke: [undo it]}", `a vendor of shape human has no creation`},
		{"human without steps", "tested: doc", "tested: doc\nshape: human", `a vendor of shape human needs this field`},
		{"soft", "revoke:", "soft: {disable: {request: {path: /x}}}\nrevoke:", `one of disable and enable is missing`},
		{"paging", "  items: $.keys", "  items: $.keys\n  page: {kind: cursor}", `list.page.next: pages of kind cursor need this field; write next: $.next_cursor`},
		{"items of XML", "  items: $.keys", "  items: {xml: keys}", `list.items: "keys" is no path of items; write items: {xml: Result/Keys/member}`},
		{"signature", `place: {in: header, name: X-Token, value: "{{token}}"}`, `place: {in: sigv4, name: iam, user: "{{token}}", value: "{{token}}"}`, `needs the name of region and service, such as us-east-1/iam`},
		{"usage", "revoke:", "usage: {from: list, granularity: 1s}\nrevoke:", `the list maps no last_used`},
		{"duration", "revoke:", "propagation: {create: soon}\nrevoke:", `propagation.create: "soon" is no duration; write a duration such as 2s, 10m, 12h or 30d`},
		{"generate", "create:", "generate: {sesame: {len: 20}}\ncreate:", `there is no secret part "sesame"`},
		{"charset", "create:", "limits: {name_charset: 'A-Z'}\ncreate:", `"A-Z" does not fit`},
		{"two bodies", `json: {name: "{{name}}"}`, `json: {name: "{{name}}"}, form: {a: b}`, `a request has one body; write json or form`},
		{"two sources", "id: $.id, key", "id: {json: $.id, header: X-Id}, key", `there are 2 places to take the value from`},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := strings.Replace(good, c.old, c.repl, 1)
			if src == good {
				t.Fatal("the case changes nothing")
			}
			_, err := spec.Parse("acme.yaml", []byte(src))
			if err == nil {
				t.Fatal("it parses")
			}
			if !errors.Is(err, key.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want %q in\n%v", c.want, err)
			}
		})
	}
}

// Every problem has a place, and one run finds them all.
func TestAllProblemsAtOnce(t *testing.T) {
	src := strings.NewReplacer("recipe: 1", "recipe: 3", "tested: doc", "tested: no", "{{id}}", "{{nope}}", "status: 201", "status: 7").Replace(good)
	_, err := spec.Parse("x.yaml", []byte(src))
	var pe *spec.ParseError
	if !errors.As(err, &pe) || len(pe.Problems) != 4 {
		t.Fatalf("%v", err)
	}
	last := 0
	for _, p := range pe.Problems {
		if p.Line <= last || p.Col == 0 || p.Field == "" || p.Write == "" {
			t.Errorf("%+v after line %d", p, last)
		}
		last = p.Line
	}
}

func TestOddFiles(t *testing.T) {
	for name, src := range map[string]string{
		"empty": "", "comment": "# nothing\n", "list": "- 1\n", "text": "hello", "null": "~", "two documents": good + "---\n" + good,
		"deep": strings.Repeat("[", 5000), "deep map": "recipe: " + strings.Repeat("{a: ", 200) + "1" + strings.Repeat("}", 200),
		"long": strings.Repeat("#", 300<<10), "binary": "\x00\x01\xff",
	} {
		if _, err := spec.Parse("x.yaml", []byte(src)); !errors.Is(err, key.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("recipe: 1\nid: [\n"))
	f.Add([]byte("a: &a {b: *a}\n<<: *a\n"))
	f.Add([]byte("? {a: b}\n: !!set {c}\n"))
	for _, old := range []string{"{{name}}", "$.key", "status: 201", "in: header"} {
		f.Add([]byte(strings.Replace(good, old, "{{a|b}}|", 1)))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		r, err := spec.Parse("fuzz.yaml", src)
		if err != nil {
			var pe *spec.ParseError
			if !errors.As(err, &pe) || len(pe.Problems) == 0 {
				t.Fatalf("an error of no problem: %v", err)
			}
			return
		}
		// What parses can be described and previewed in any env.
		d := recipe.New(r)
		d.Describe(provider.Env{})
		for _, act := range []string{"issue", "probe", "list", "disable", "enable", "revoke"} {
			d.(provider.Previewer).Preview(provider.Env{Params: map[string]string{"team": "x", "base_url": "https://x.example"}}, act)
		}
	})
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"{{name}}", "a{{name|b64}}b", "{{", "}}", "{{name | sha256 | hex}}", "{{param.team}}{{expires|unix}}", "{{{{name}}}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(s) + `"`
		src := strings.Replace(good, `"{{name}}"`, quoted, 1)
		_, err := spec.Parse("fuzz.yaml", []byte(src))
		if err == nil && strings.Count(s, "{{") != strings.Count(s, "}}") {
			t.Errorf("%q parses", s)
		}
	})
}
