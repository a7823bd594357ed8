package recipe_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/providertest"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/secret"
)

// parse returns the recipe of a made-up vendor with pairs of text replaced.
func parse(t *testing.T, pairs ...string) *recipe.Recipe {
	t.Helper()
	b, err := os.ReadFile("../spec/testdata/acme.yaml")
	if err != nil {
		t.Fatal(err)
	}
	src := string(b)
	for i := 0; i+1 < len(pairs); i += 2 {
		if !strings.Contains(src, pairs[i]) {
			t.Fatalf("the recipe has no %q", pairs[i])
		}
		src = strings.Replace(src, pairs[i], pairs[i+1], 1)
	}
	r, err := recipe.Parse("acme.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// serve returns an env whose vendor is h.
func serve(t *testing.T, h http.HandlerFunc) provider.Env {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return provider.Env{Transport: tr, Params: map[string]string{"base_url": srv.URL, "team": "t1"},
		Manager: secret.Parts{"token": secret.FromString("m4n4ger-t0ken")}}
}

func TestValuesInJSONKeepTheirType(t *testing.T) {
	r := parse(t,
		"create:\n", `describe:
  steps:
    - request: {path: "/keys/{{old.id}}"}
      copy: {list: $.list, object: $.object, number: $.number, yes: $.yes, none: $.none, text: $.text}
create:
`,
		`json: {name: "{{name}}"}`, `json: {name: "{{name}}", list: "{{copied.list}}", object: "{{copied.object}}", number: "{{copied.number}}",
        yes: "{{copied.yes}}", none: "{{copied.none}}", text: "{{copied.text}}", mix: "n={{copied.number}} {{copied.text}}", encoded: "{{copied.object | json}}",
        b64: "{{name | b64}}", b64url: "{{name | b64url}}", hex: "{{name | hex}}", sha: "{{name | sha256}}", url: "{{copied.text | urlencode}}",
        at: "{{expires | rfc3339}}", day: "{{expires | date}}", sec: "{{expires | unix}}", ms: "{{expires | unix_ms}}", life: "{{life}}", fixed: [1, 1.5, true, null, x]}`)
	rights := `{"list":["a",1],"object":{"b":"<&>"},"number":12345678901234567890,"yes":true,"none":null,"text":"q\"}{ /ü"}`
	var got map[string]any
	env := serve(t, func(w http.ResponseWriter, q *http.Request) {
		if q.Method == "GET" {
			_, _ = io.WriteString(w, rights)
			return
		}
		d := json.NewDecoder(q.Body)
		d.UseNumber()
		if err := d.Decode(&got); err != nil {
			t.Error(err)
		}
		w.WriteHeader(201)
		_, _ = io.WriteString(w, `{"id":17,"key":"acme_secret"}`)
	})
	k, err := recipe.New(r).Issue(t.Context(), env, provider.Request{Label: "lab?l", Life: time.Hour, Old: key.Version{ID: key.VersionID{Number: 3}, VendorID: "o/1"}})
	if err != nil {
		t.Fatal(err)
	}
	if k.VendorID != "17" || !k.Parts["key"].Equal(secret.FromString("acme_secret")) || time.Until(k.Expires) < 59*time.Minute {
		t.Errorf("%+v", k)
	}
	sec := strconv.FormatInt(k.Expires.Unix(), 10)
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("lab?l")))
	want := map[string]string{
		"name": `"lab?l"`, "list": `["a",1]`, "object": `{"b":"<&>"}`, "number": "12345678901234567890", "yes": "true", "none": "null",
		"text": `"q\"}{ /ü"`, "mix": `"n=12345678901234567890 q\"}{ /ü"`, "encoded": `"{\"b\":\"\\u003c\\u0026\\u003e\"}"`,
		"b64": `"bGFiP2w="`, "b64url": `"bGFiP2w"`, "hex": `"6c61623f6c"`, "url": `"q%22%7D%7B+%2F%C3%BC"`,
		"sha":   `"` + sum + `"`,
		"sec":   sec,
		"life":  "3600",
		"at":    `"` + k.Expires.UTC().Format(time.RFC3339) + `"`,
		"day":   `"` + k.Expires.UTC().Format(time.DateOnly) + `"`,
		"fixed": `[1,1.5,true,null,"x"]`,
	}
	for name, w := range want {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(got[name]); err != nil || strings.TrimSpace(b.String()) != w {
			t.Errorf("%s: %s, want %s", name, strings.TrimSpace(b.String()), w)
		}
	}
	if ms, _ := got["ms"].(json.Number); !strings.HasPrefix(ms.String(), sec) || len(ms.String()) != len(sec)+3 {
		t.Errorf("ms %s, seconds %s", ms, sec)
	}
	// What has no value is left out, not sent empty.
	got = nil
	if _, err := recipe.New(r).Issue(t.Context(), env, provider.Request{Label: "first"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"list", "none", "at", "sec", "life", "mix"} {
		if x, ok := got[name]; ok {
			t.Errorf("%s is sent as %v", name, x)
		}
	}
}

func TestValuesInPathsAreEscaped(t *testing.T) {
	var paths []string
	env := serve(t, func(w http.ResponseWriter, q *http.Request) {
		paths = append(paths, q.Method+" "+q.URL.EscapedPath())
		w.WriteHeader(204)
	})
	d := recipe.New(parse(t))
	for _, id := range []string{"a/b", "../admin", "x?y#z", "ü %2e", "a b"} {
		if err := d.Revoke(t.Context(), env, id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	want := []string{"DELETE /keys/a%2Fb", "DELETE /keys/..%2Fadmin", "DELETE /keys/x%3Fy%23z", "DELETE /keys/%C3%BC%20%252e", "DELETE /keys/a%20b"}
	if !slices.Equal(paths, want) {
		t.Errorf("%q", paths)
	}
	for _, id := range []string{"", ".", ".."} {
		if err := d.Revoke(t.Context(), env, id); provider.KindOf(err) != provider.Denied {
			t.Errorf("%q: %v", id, err)
		}
	}
	if len(paths) != len(want) {
		t.Errorf("a request was made all the same: %q", paths[len(want):])
	}
}

func TestExtraction(t *testing.T) {
	for name, c := range map[string]struct{ extract, body string }{
		"nested":   {`{id: $.data.id, key: "$.data.keys[1].v"}`, `{"data":{"id":"i1","keys":[{"v":"no"},{"v":"s3cr3t"}]}}`},
		"filter":   {`{id: "$.a[?(@.k=='y')].id", key: "$.a[?(@.k=='y')].v"}`, `{"a":[{"k":"x","id":"no","v":"no"},{"k":"y","id":"i1","v":"s3cr3t"}]}`},
		"live":     {`{id: "$.a[?(@.k=='{{name}}')].id", key: "$.a[?(@.k=='{{name}}')].v"}`, `{"a":[{"k":"x","id":"no","v":"no"},{"k":"lab","id":"i1","v":"s3cr3t"}]}`},
		"header":   {`{id: {header: X-Id}, key: {header: X-Line, match: "key=([^;]+)"}}`, ``},
		"match":    {`{id: {json: $.urn, match: "[^:]+$"}, key: {json: $.line, match: "^k:(.*)$"}}`, `{"urn":"urn:key:i1","line":"k:s3cr3t"}`},
		"xml":      {`{id: {xml: Result/Key/Id}, key: {xml: Result/Key/Secret}}`, `<r:Answer xmlns:r="urn:x"><Meta/><Result><Key><Id>i1</Id><Secret> s3cr3t </Secret></Key></Result></r:Answer>`},
		"constant": {`{id: {value: "i1"}, key: {json: $.k}}`, `{"k":"s3cr3t"}`},
	} {
		t.Run(name, func(t *testing.T) {
			r := parse(t, "{id: $.id, key: $.key}", c.extract)
			env := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Id", "i1")
				w.Header().Set("X-Line", "a=b; key=s3cr3t; c=d")
				w.WriteHeader(201)
				_, _ = io.WriteString(w, c.body)
			})
			k, err := recipe.New(r).Issue(t.Context(), env, provider.Request{Label: "lab"})
			if err != nil {
				t.Fatal(err)
			}
			if k.VendorID != "i1" || !k.Parts["key"].Equal(secret.FromString("s3cr3t")) {
				t.Errorf("id %q, key of %d bytes", k.VendorID, k.Parts["key"].Len())
			}
		})
	}
}

func TestAnswersWithoutTheKeyAreAmbiguous(t *testing.T) {
	d := recipe.New(parse(t))
	for name, h := range map[string]http.HandlerFunc{
		"no key": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"id":"i"}`)
		},
		"empty key": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"id":"i","key":""}`)
		},
		"no id": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"key":"k"}`)
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); _, _ = io.WriteString(w, `<html>`) },
		"a list": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"id":"i","key":["k"]}`)
		},
		"200": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"id":"i","key":"k"}`) },
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(201)
			_, _ = io.WriteString(w, `{"id":"i","key":"k"`)
		},
	} {
		if _, err := d.Issue(t.Context(), serve(t, h), provider.Request{Label: "a"}); provider.KindOf(err) != provider.Ambiguous {
			t.Errorf("%s: %s, %v", name, provider.KindOf(err), err)
		}
	}
}

func TestLaterStepsThatFailAreAmbiguous(t *testing.T) {
	r := parse(t, "      extract: {id: $.id, key: $.key}", `      extract: {id: $.id, key: $.key}
    - request: {method: PUT, path: "/keys/{{new.id}}/grant", form: {secret: "{{new.key}}", who: "{{manager.token}}"}}`)
	status, form := 200, ""
	env := serve(t, func(w http.ResponseWriter, q *http.Request) {
		if q.Method == "PUT" {
			b, _ := io.ReadAll(q.Body)
			form = q.URL.Path + " " + string(b)
			w.WriteHeader(status)
			return
		}
		w.WriteHeader(201)
		_, _ = io.WriteString(w, `{"id":"i","key":"k3y"}`)
	})
	d := recipe.New(r)
	if _, err := d.Issue(t.Context(), env, provider.Request{Label: "a"}); err != nil || form != "/keys/i/grant secret=k3y&who=m4n4ger-t0ken" {
		t.Errorf("%q, %v", form, err)
	}
	for _, status = range []int{400, 403, 429, 500} {
		_, err := d.Issue(t.Context(), env, provider.Request{Label: "a"})
		if provider.KindOf(err) != provider.Ambiguous || !strings.Contains(err.Error(), "the first 1 of 2 calls were made") {
			t.Errorf("%d: %s, %v", status, provider.KindOf(err), err)
		}
	}
}

func TestPages(t *testing.T) {
	const total = 7
	rows := func(from, n int) string {
		var out []string
		for i := from; i < min(from+n, total); i++ {
			out = append(out, fmt.Sprintf(`{"id":%d,"name":"n%d"}`, i, i))
		}
		return `"keys":[` + strings.Join(out, ",") + `]`
	}
	num := func(q *http.Request, name string) int { n, _ := strconv.Atoi(q.URL.Query().Get(name)); return n }
	for name, c := range map[string]struct {
		page string
		h    func(w http.ResponseWriter, q *http.Request)
	}{
		"cursor": {`{kind: cursor, next: $.next, param: after}`, func(w http.ResponseWriter, q *http.Request) {
			from, next := num(q, "after"), "null"
			if from+3 < total {
				next = strconv.Itoa(from + 3)
			}
			fmt.Fprintf(w, `{%s,"next":%s}`, rows(from, 3), next)
		}},
		"page": {`{kind: page, param: p}`, func(w http.ResponseWriter, q *http.Request) { fmt.Fprintf(w, `{%s}`, rows((num(q, "p")-1)*3, 3)) }},
		"page from 0": {`{kind: page, param: p, first: 0, size: 3, size_param: n}`, func(w http.ResponseWriter, q *http.Request) {
			fmt.Fprintf(w, `{%s}`, rows(num(q, "p")*3, num(q, "n")))
		}},
		"offset": {`{kind: offset, param: o, size: 3, size_param: n}`, func(w http.ResponseWriter, q *http.Request) {
			fmt.Fprintf(w, `{%s}`, rows(num(q, "o"), num(q, "n")))
		}},
		"link": {`{kind: link_header}`, func(w http.ResponseWriter, q *http.Request) {
			if from := num(q, "f"); from+3 < total {
				w.Header().Set("Link", fmt.Sprintf(`</keys?f=0>; rel="first", </keys?f=%d>; title="a, b"; rel="next"`, from+3))
			}
			fmt.Fprintf(w, `{%s}`, rows(num(q, "f"), 3))
		}},
		"next": {`{kind: next_url, next: $.links.next}`, func(w http.ResponseWriter, q *http.Request) {
			next := `""`
			if from := num(q, "f"); from+3 < total {
				next = fmt.Sprintf(`"http://%s/keys?f=%d"`, q.Host, from+3)
			}
			fmt.Fprintf(w, `{%s,"links":{"next":%s}}`, rows(num(q, "f"), 3), next)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			env := serve(t, func(w http.ResponseWriter, q *http.Request) {
				if q.Header.Get("X-Token") == "" {
					t.Error("a page without the manager key")
				}
				c.h(w, q)
			})
			d := recipe.New(parse(t, "  items: $.keys", "  items: $.keys\n  page: "+c.page)).(provider.Lister)
			all, err := d.List(t.Context(), env)
			if err != nil || len(all) != total || all[6].VendorID != "6" || all[6].Label != "n6" {
				t.Errorf("%v, %v", all, err)
			}
		})
	}
}

func TestListsThatDoNotEndAreErrors(t *testing.T) {
	for name, c := range map[string]struct{ page, body, link, want string }{
		"same cursor":  {`{kind: cursor, next: $.next, param: after}`, `{"keys":[],"next":"x"}`, "", "same cursor"},
		"endless":      {`{kind: page, param: p, most: 5}`, `{"keys":[{"id":1}]}`, "", "more than 5 pages"},
		"other host":   {`{kind: link_header}`, `{"keys":[]}`, `<https://evil.example/keys>; rel=next`, "another host"},
		"other scheme": {`{kind: next_url, next: $.next}`, `{"keys":[],"next":"ftp://x/keys"}`, "", "another host"},
		"same page":    {`{kind: next_url, next: $.next}`, `{"keys":[],"next":"/keys"}`, "", "same page"},
		"no list":      {`{kind: none}`, `{"kees":[]}`, "", "without a list at $.keys"},
		"no id":        {`{kind: none}`, `{"keys":[{"name":"x"}]}`, "", "no id"},
		"no JSON":      {`{kind: none}`, `<html>`, "", "without a list"},
	} {
		env := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if c.link != "" {
				w.Header().Set("Link", c.link)
			}
			_, _ = io.WriteString(w, c.body)
		})
		d := recipe.New(parse(t, "  items: $.keys", "  items: $.keys\n  page: "+c.page)).(provider.Lister)
		all, err := d.List(t.Context(), env)
		if err == nil || all != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
}

func TestListedTimesAndFlags(t *testing.T) {
	r := parse(t, "map: {id: $.id, name: $.name}", "map: {id: $.id, created: $.c, last_used: $.u, disabled: {json: $.state, not: active}}")
	env := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"keys":[{"id":"a","c":1700000000,"u":1700000000123,"state":"active"},
			{"id":"b","c":"2023-11-14","u":null,"state":"off"},{"id":"c","c":"2023-11-14T22:13:20+01:00","u":0},{"id":"d","c":"1700000000","u":"never"}]}`)
	})
	all, err := recipe.New(r).(provider.Lister).List(t.Context(), env)
	if err != nil || len(all) != 4 {
		t.Fatalf("%v, %v", all, err)
	}
	for i, want := range []struct {
		created, used string
		off           bool
	}{
		{"2023-11-14T22:13:20Z", "2023-11-14T22:13:20Z", false}, {"2023-11-14T23:59:59Z", "", true},
		{"2023-11-14T21:13:20Z", "", false}, {"2023-11-14T22:13:20Z", "", false},
	} {
		show := func(t time.Time) string {
			if t.IsZero() {
				return ""
			}
			return t.UTC().Format(time.RFC3339)
		}
		if k := all[i]; show(k.Created) != want.created || show(k.LastUsed) != want.used || k.Disabled != want.off {
			t.Errorf("%s: %s, %s, %t", k.VendorID, show(k.Created), show(k.LastUsed), k.Disabled)
		}
	}
}

func TestLabelsAreShaped(t *testing.T) {
	long := "billing-api/prod@v7-" + strings.Repeat("x", 80)
	for name, c := range map[string]struct{ limits, label, want string }{
		"as it is":   {"{}", long, "^" + regexp.QuoteMeta(long) + "$"},
		"charset":    {"{name_charset: a-zA-Z0-9-}", "a/b@v7", "^a-b-v7[0-9a-f]{8}$"},
		"no dash":    {"{name_charset: a-z0-9_}", "a-b", "^a_b[0-9a-f]{8}$"},
		"only words": {"{name_charset: a-z0-9}", "a-b", "^a0b[0-9a-f]{8}$"},
		"fits":       {"{name_charset: a-z0-9-, name_max: 16}", "a-b", "^a-b$"},
		"long":       {"{name_charset: a-zA-Z0-9-, name_max: 40}", long, "^billing-api-prod-v7-x{12}[0-9a-f]{8}$"},
		"umlaut":     {"{name_max: 16}", "ääääääääää", "^ä{4}[0-9a-f]{8}$"},
	} {
		r := parse(t, "create:\n", "limits: "+c.limits+"\ncreate:\n")
		d := recipe.New(r)
		got := provider.LabelAt(d, provider.Env{}, c.label)
		if !regexp.MustCompile(c.want).MatchString(got) || got != provider.LabelAt(d, provider.Env{}, c.label) {
			t.Errorf("%s: %q, want %s", name, got, c.want)
		}
		if other := provider.LabelAt(d, provider.Env{}, c.label+"y"); other == got {
			t.Errorf("%s: two labels are one: %q", name, got)
		}
	}
}

func TestGeneratedSecrets(t *testing.T) {
	r := parse(t, "create:\n", "generate: {key: {len: 20, classes: [lower, digit, symbol]}}\ncreate:\n",
		"{id: $.id, key: $.key}", "{id: $.id}", `json: {name: "{{name}}"}`, `json: {name: "{{name}}", secret: "{{gen.key}}"}`)
	var sent []string
	env := serve(t, func(w http.ResponseWriter, q *http.Request) {
		var in struct{ Secret string }
		if err := json.NewDecoder(q.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		sent = append(sent, in.Secret)
		w.WriteHeader(201)
		fmt.Fprintf(w, `{"id":"i%d"}`, len(sent))
	})
	d := recipe.New(r)
	seen := map[string]bool{}
	for i := range 50 {
		k, err := d.Issue(t.Context(), env, provider.Request{Label: "a"})
		if err != nil {
			t.Fatal(err)
		}
		s := sent[i]
		if !k.Parts["key"].Equal(secret.FromString(s)) || seen[s] || len(s) != 20 ||
			!strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyz") || !strings.ContainsAny(s, "0123456789") || !regexp.MustCompile(`[^a-z0-9]`).MatchString(s) || regexp.MustCompile(`[A-Z]`).MatchString(s) {
			t.Fatalf("the secret %d is odd", i)
		}
		seen[s] = true
	}
	n := byte(0)
	env.Rand = func(b []byte) {
		for i := range b {
			n++
			b[i] = n
		}
	}
	if _, err := d.Issue(t.Context(), env, provider.Request{Label: "a"}); err != nil || sent[50] == "" {
		t.Error(err)
	}
	n = 0
	if _, err := d.Issue(t.Context(), env, provider.Request{Label: "a"}); err != nil || sent[51] != sent[50] {
		t.Errorf("env's random is not used: %v", err)
	}
}

func TestParamsAreChecked(t *testing.T) {
	d := recipe.New(parse(t))
	env := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was made") })
	base := env.Params["base_url"]
	for name, p := range map[string]map[string]string{
		"missing":  {"base_url": base},
		"no URL":   {"base_url": "api.example.com", "team": "a"},
		"userinfo": {"base_url": "https://a:b@api.example.com", "team": "a"},
		"metadata": {"base_url": "http://169.254.169.254", "team": "a"},
	} {
		env.Params = p
		if err := d.Revoke(t.Context(), env, "x"); provider.KindOf(err) != provider.Denied {
			t.Errorf("%s: %v", name, err)
		}
		d.Describe(env)
	}
	host := recipe.New(parse(t, `upstream: "{{param.base_url}}"`, `upstream: "https://{{param.team}}.example.com/v1"`))
	if got := host.Describe(provider.Env{Params: map[string]string{"team": "eu-1"}}).Call.Upstream; got != "https://eu-1.example.com/v1" {
		t.Errorf("upstream %q", got)
	}
	for _, evil := range []string{"evil.example/", "a@evil", "x#", "", "a b"} {
		if got := host.Describe(provider.Env{Params: map[string]string{"team": evil}}).Call.Upstream; got != "" {
			t.Errorf("team %q makes the upstream %q", evil, got)
		}
	}
}

func TestTypesTellTheAbilities(t *testing.T) {
	list := "list:\n  request: {path: /keys}\n  items: $.keys\n  map: {id: $.id, name: $.name}\n"
	soft := "soft:\n  disable: {request: {method: POST, path: \"/keys/{{id}}/off\"}}\n  enable: {request: {method: POST, path: \"/keys/{{id}}/on\"}}\n"
	for n := range 8 {
		wantList, wantSoft, wantID := n&1 != 0, n&2 != 0, n&4 != 0
		pairs := []string{list, ""}
		if wantList {
			pairs = []string{list, list}
		}
		if wantSoft {
			pairs = append(pairs, "revoke:", soft+"revoke:")
		}
		if wantID {
			pairs = append(pairs, "    - {name: key, secret: true, pattern: '^acme_'}\n", "    - {name: user, secret: false}\n    - {name: key}\n  id: user\n",
				"{id: $.id, key: $.key}", "{id: $.id, user: $.id, key: $.key}")
		}
		d := recipe.New(parse(t, pairs...))
		_, isList := d.(provider.Lister)
		_, isSoft := d.(provider.Disabler)
		id, isID := d.(provider.Identifier)
		a := d.Describe(provider.Env{}).Abilities
		if isList != wantList || isSoft != wantSoft || isID != wantID || a.List != wantList || a.Disable != wantSoft {
			t.Errorf("%d: list %t, disable %t, identify %t, %+v", n, isList, isSoft, isID, a)
		}
		if isID {
			if got, ok := id.Identify(provider.Env{}, secret.Parts{"user": secret.FromString("u1")}); got != "u1" || !ok {
				t.Errorf("identified %q, %t", got, ok)
			}
			if _, ok := id.Identify(provider.Env{}, secret.Parts{}); ok {
				t.Error("nothing was identified")
			}
		}
	}
}

func TestManual(t *testing.T) {
	drivers, err := recipe.Drivers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := drivers.Driver("manual")
	if err != nil {
		t.Fatal(err)
	}
	env := serve(t, func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Api-Key") != "right" {
			w.WriteHeader(401)
		}
	})
	env.Call = key.Call{Upstream: env.Params["base_url"], Place: key.Place{In: "header", Name: "Api-Key"}, Probe: &key.Probe{Path: "/me"}}
	i := d.Describe(env)
	if a := i.Abilities; a.Issue || a.Revoke || a.List || a.Disable || !a.Probe || len(a.Steps) == 0 || len(a.Undo) == 0 || a.Spacing <= 0 || a.DeadOK < 1 {
		t.Errorf("%+v", a)
	}
	if d.Describe(provider.Env{}).Abilities.Probe {
		t.Error("it probes with no probe")
	}
	for want, plain := range map[evidence.Outcome]string{evidence.OK: "right", evidence.Auth: "wrong"} {
		if o, err := d.Probe(t.Context(), env, secret.Parts{"key": secret.FromString(plain)}); o != want || err != nil {
			t.Errorf("%s, %v", o, err)
		}
	}
	if _, err := d.Issue(t.Context(), env, provider.Request{}); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), "a person does it: make a second key") {
		t.Error(err)
	}
	if err := d.Revoke(t.Context(), env, "x"); provider.KindOf(err) != provider.Denied || !strings.Contains(err.Error(), "revoke the old key") {
		t.Error(err)
	}
	if _, err := drivers.Driver("nope"); !errors.Is(err, key.ErrNotFound) {
		t.Error(err)
	}
}

// Every recipe of the catalog can be described, says what it was made from,
// and recognises its own keys and nobody else's.
func TestCatalog(t *testing.T) {
	all, err := recipe.Catalog()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Errorf("%d recipes", len(all))
	}
	keys := map[string]string{
		"sendgrid": "SG." + strings.Repeat("a", 60), "openrouter": "sk-or-v1-" + strings.Repeat("0", 64), "openai-admin": "sk-admin-" + strings.Repeat("x", 40),
		"stripe": "rk_live_" + strings.Repeat("A", 24), "hubspot": "pat-na1-01234567-89ab-cdef-0123-456789abcdef", "resend": "re_" + strings.Repeat("a", 24),
		"simulated": "sim_" + strings.Repeat("a", 32), "": "ghp_" + strings.Repeat("a", 36),
	}
	for id, r := range all {
		d := recipe.New(r)
		env := provider.Env{Params: map[string]string{}}
		for _, p := range d.Describe(env).Params {
			if p.Required {
				env.Params[p.Name] = "https://vendor.example"
			}
			if p.Required && p.Help == "" {
				t.Errorf("%s: the param %s has no help", id, p.Name)
			}
		}
		i := d.Describe(env)
		if i.Call.Upstream == "" || i.Call.Probe == nil || i.Tested == "" || r.Source == "" {
			t.Errorf("%s: %+v", id, i)
		}
		if i.Abilities.Issue == (len(i.Abilities.Steps) > 0) {
			t.Errorf("%s: either it issues, or a person does", id)
		}
		if i.Abilities.Late <= 0 || i.Abilities.Early <= 0 {
			t.Errorf("%s: no time for propagation", id)
		}
		for of, k := range keys {
			for _, re := range i.Patterns {
				if got := regexp.MustCompile(re).MatchString(k); got != (of == id) {
					t.Errorf("%s recognises a key of %q: %t", id, of, got)
				}
			}
		}
		// No recipe shows what it sends, and none calls another host.
		seen := &providertest.Seen{Base: providertest.Forged{Status: 500}}
		env.Transport = seen
		env.Manager = secret.Parts{}
		for _, n := range i.ManagerParts {
			env.Manager[n] = secret.FromString("m4n4ger")
		}
		_, err := d.Issue(t.Context(), env, provider.Request{Label: "x"})
		if i.Abilities.Issue && provider.KindOf(err) != provider.Ambiguous {
			t.Errorf("%s: a 500 to a creation is %s: %v", id, provider.KindOf(err), err)
		}
		for _, q := range seen.Requests() {
			host := i.Call.Upstream
			if id == "aws-iam" {
				host = "https://iam.amazonaws.com" // keys are made at one host and probed at another
			}
			if _, u, _ := strings.Cut(q, " "); !strings.HasPrefix(u, host) || strings.Contains(u, "m4n4ger") {
				t.Errorf("%s: %s", id, q)
			}
		}
	}
}
