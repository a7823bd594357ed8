package v1_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/rotation"
	"github.com/keybaton/keybaton/internal/server"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/secret"
)

func (h *house) raw(method, path, token, contentType, body string) (int, string) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	resp, err := h.http.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		return resp.StatusCode, ""
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// least names the least role that may use each route. A route that is not
// listed here fails the test.
var least = map[string]access.Role{
	"GET /api/v1/status":                                                        access.RoleViewer,
	"GET /api/v1/services":                                                      access.RoleViewer,
	"GET /api/v1/credentials":                                                   access.RoleViewer,
	"GET /api/v1/credentials/{service}/{environment}":                           access.RoleViewer,
	"GET /api/v1/credentials/{service}/{environment}/plan":                      access.RoleViewer,
	"GET /api/v1/rotations":                                                     access.RoleViewer,
	"GET /api/v1/rotations/{id}":                                                access.RoleViewer,
	"GET /api/v1/events":                                                        access.RoleViewer,
	"GET /api/v1/consumers":                                                     access.RoleViewer,
	"GET /api/v1/alerts":                                                        access.RoleViewer,
	"GET /api/v1/recipes":                                                       access.RoleViewer,
	"GET /api/v1/tokens":                                                        access.RoleViewer,
	"GET /api/v1/audit":                                                         access.RoleViewer,
	"GET /api/v1/audit/verify":                                                  access.RoleViewer,
	"POST /api/v1/credentials/{service}/{environment}/set":                      access.RoleOperator,
	"POST /api/v1/credentials/{service}/{environment}/rotate":                   access.RoleOperator,
	"POST /api/v1/credentials/{service}/{environment}/rollback":                 access.RoleOperator,
	"POST /api/v1/credentials/{service}/{environment}/pause":                    access.RoleOperator,
	"POST /api/v1/credentials/{service}/{environment}/resume":                   access.RoleOperator,
	"POST /api/v1/credentials/{service}/{environment}/approve":                  access.RoleOperator,
	"POST /api/v1/credentials/{service}/{environment}/versions/{number}/revoke": access.RoleOperator,
	"GET /api/v1/credentials/{service}/{environment}/discover":                  access.RoleOperator,
	"POST /api/v1/credentials/{service}/{environment}/adopt":                    access.RoleOperator,
	"POST /api/v1/import":                                                       access.RoleOperator,
	"POST /api/v1/apply":                                                        access.RoleAdmin,
	"POST /api/v1/consumers/{name}/forget":                                      access.RoleAdmin,
	"POST /api/v1/tokens":                                                       access.RoleAdmin,
	"DELETE /api/v1/tokens/{name}":                                              access.RoleAdmin,
}

var bodies = map[string]string{
	"POST /api/v1/credentials/{service}/{environment}/set": `{"parts":{"key":"` + plaintext + `"}}`,
	"POST /api/v1/import":  `{"environment":"dev","variables":[{"name":"A_KEY","value":"` + plaintext + `"}]}`,
	"POST /api/v1/apply":   `{"yaml":"version: 1\n"}`,
	"POST /api/v1/tokens":  `{"name":"new","role":"viewer","hash":"` + strings.Repeat("ab", 32) + `"}`,
	"POST /api/v1/nothing": ``,
}

func TestEveryRouteChecksTheRole(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev)
	h.install(billingDev, 1, nil)
	h.update(func(tx store.Tx) error {
		c, err := tx.Credential(billingDev)
		if err != nil {
			return err
		}
		return tx.PutRotation(rotation.New("r1", c, rotation.Manual, "test", "", tx.Now()))
	})
	h.engine.rotation = rotation.Rotation{ID: "r1", Credential: billingDev, State: rotation.Planned}
	order := []access.Role{access.RoleViewer, access.RoleOperator, access.RoleAdmin}
	tokens := map[access.Role]string{}
	for _, r := range access.Roles() {
		tok := access.Token{Name: "t-" + string(r), Role: r}
		if r == access.RoleConsumer || r == access.RoleGateway {
			tok.Grants, tok.Kind = []access.Grant{{Environment: "*", Services: []string{"*"}}}, key.KindGateway
		}
		tokens[r] = string(h.token(tok).Reveal())
	}
	h.token(access.Token{Name: "victim", Role: access.RoleViewer})
	_, spec := h.raw("GET", api.PathOpenAPI, "", "", "")
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal([]byte(spec), &doc); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for path, methods := range doc.Paths {
		for method := range methods {
			seen++
			route := strings.ToUpper(method) + " " + path
			min, ok := least[route]
			if !ok {
				t.Errorf("%s is in no table of who may use it", route)
				continue
			}
			url := strings.NewReplacer("{service}", "billing", "{environment}", "dev", "{number}", "1", "{id}", "r1", "{name}", "victim").Replace(path)
			ct := ""
			if bodies[route] != "" {
				ct = "application/json"
			}
			if code, _ := h.raw(strings.ToUpper(method), url, "", ct, bodies[route]); code != http.StatusUnauthorized {
				t.Errorf("%s without a token: %d", route, code)
			}
			if code, _ := h.raw(strings.ToUpper(method), url, "kbt_wrong", ct, bodies[route]); code != http.StatusUnauthorized {
				t.Errorf("%s with an unknown token: %d", route, code)
			}
			before := len(h.engine.asked())
			for _, r := range []access.Role{access.RoleConsumer, access.RoleGateway} {
				if code, _ := h.raw(strings.ToUpper(method), url, tokens[r], ct, bodies[route]); code != http.StatusForbidden {
					t.Errorf("%s as %s: %d", route, r, code)
				}
			}
			for i, r := range order {
				may := i >= slices.Index(order, min)
				if !may && len(h.engine.asked()) != before {
					t.Errorf("%s reached the engine before %s", route, r)
				}
				code, body := h.raw(strings.ToUpper(method), url, tokens[r], ct, bodies[route])
				if may && code/100 != 2 || !may && code != http.StatusForbidden {
					t.Errorf("%s as %s: %d, may=%v: %s", route, r, code, may, body)
				}
			}
		}
	}
	if seen != len(least) {
		t.Errorf("%d routes are described, %d are expected", seen, len(least))
	}
}

func TestGrantsLimitWhatIsSeenAndDone(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev, billingProd, mailDev)
	ctx := t.Context()
	c := h.as("limited", access.RoleAdmin, access.Grant{Environment: "dev", Services: []string{"billing"}})
	items, err := c.Credentials(ctx, client.Filter{})
	if err != nil || len(items) != 1 || items[0].Service != "billing" || items[0].Environment != "dev" {
		t.Fatalf("a limited token sees %v, %v", items, err)
	}
	svcs, err := c.Services(ctx)
	if err != nil || len(svcs) != 1 || !slices.Equal(svcs[0].Environments, []string{"dev"}) {
		t.Fatalf("a limited token sees services %v, %v", svcs, err)
	}
	st, err := c.Status(ctx)
	if err != nil || st.Counts.Credentials != 1 || st.Counts.Services != 1 {
		t.Fatalf("a limited token gets status %+v, %v", st.Counts, err)
	}
	_, err = c.Credential(ctx, client.Credential(billingProd))
	wantError(t, err, 403, api.CodeDenied)
	_, err = c.Rotate(ctx, client.Credential(mailDev), api.Rotate{})
	wantError(t, err, 403, api.CodeDenied)
	_, err = c.Import(ctx, "dev", []client.Variable{{Name: "A", Value: secret.FromString("b")}}, true)
	wantError(t, err, 403, api.CodeDenied)
	_, err = c.Apply(ctx, api.Apply{YAML: "version: 1\n"})
	wantError(t, err, 403, api.CodeDenied)
	_, err = c.Audit(ctx, 0, 0)
	wantError(t, err, 403, api.CodeDenied)
	_, _, err = c.CreateToken(ctx, client.TokenOptions{Name: "more", Role: "admin"})
	wantError(t, err, 403, api.CodeDenied)
	_, _, err = c.CreateToken(ctx, client.TokenOptions{Name: "more", Role: "consumer", Grants: []api.Grant{{Environment: "*", Services: []string{"billing"}}}})
	wantError(t, err, 403, api.CodeDenied)
	if _, _, err = c.CreateToken(ctx, client.TokenOptions{Name: "same", Role: "consumer", Grants: []api.Grant{{Environment: "dev", Services: []string{"billing"}}}}); err != nil {
		t.Fatalf("a limited admin gives what it has: %v", err)
	}
	if calls := h.engine.asked(); len(calls) != 0 {
		t.Fatalf("refused requests reached the engine: %v", calls)
	}
}

// A body that is refused may hold a key wherever its sender put it.
func TestRefusedBodiesAreNotRepeated(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev)
	token := string(h.token(access.Token{Name: "op", Role: access.RoleOperator}).Reveal())
	const set = "/api/v1/credentials/billing/dev/set"
	k := plaintext
	for name, c := range map[string]struct{ path, contentType, body string }{
		"parts are text":         {set, "application/json", `{"parts":"` + k + `"}`},
		"a part is a list":       {set, "application/json", `{"parts":{"key":["` + k + `"]}}`},
		"the key is a property":  {set, "application/json", `{"` + k + `":1}`},
		"the key is a part name": {set, "application/json", `{"parts":{"` + k + `":7}}`},
		"extra property":         {set, "application/json", `{"parts":{"key":"x"},"key":"` + k + `"}`},
		"reason too long":        {set, "application/json", `{"parts":{"key":"x"},"why":"` + strings.Repeat(k, 20) + `"}`},
		"not JSON":               {set, "application/json", k},
		"broken JSON":            {set, "application/json", `{"parts":{"key":"` + k + `"`},
		"a bare text":            {set, "application/json", `"` + k + `"`},
		"another media type":     {set, "text/plain", k},
		"a media type of it":     {set, k + "/" + k, k},
		"empty part":             {set, "application/json", `{"parts":{"` + k + `":""}}`},
		"too large":              {set, "application/json", `{"parts":{"key":"` + strings.Repeat(k, 10000) + `"}}`},
		"query":                  {"/api/v1/rotations?limit=" + k, "", ""},
		"query of a plan":        {"/api/v1/credentials/billing/dev/plan?leaked=" + k, "", ""},
		"number in the path":     {"/api/v1/credentials/billing/dev/versions/" + k + "/revoke", "", ""},
		"import value":           {"/api/v1/import", "application/json", `{"environment":"dev","variables":[{"name":"A","value":["` + k + `"]}]}`},
		"import shape":           {"/api/v1/import", "application/json", `{"environment":"dev","variables":{"A":"` + k + `"}}`},
		"token hash":             {"/api/v1/tokens", "application/json", `{"name":"a","role":"viewer","hash":"` + k + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			method := http.MethodPost
			if c.body == "" && !strings.HasSuffix(c.path, "revoke") {
				method = http.MethodGet
			}
			code, body := h.raw(method, c.path, token, c.contentType, c.body)
			if code < 400 || code >= 500 {
				t.Fatalf("got %d: %s", code, body)
			}
			var p api.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil || p.Code != api.CodeInvalid && p.Code != api.CodeDenied || p.Status != code || p.Detail == "" {
				t.Fatalf("got %s (%v)", body, err)
			}
		})
	}
	if calls := h.engine.asked(); len(calls) != 0 {
		t.Fatalf("refused bodies reached the engine: %v", calls)
	}
}

func TestSetReachesTheEngineWhole(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev)
	c := h.as("op", access.RoleOperator)
	want := secret.Parts{"id": secret.FromString("user"), "secret": secret.FromString(plaintext)}
	r, err := c.Set(t.Context(), client.Credential(billingDev), want, "new hire")
	if err != nil || r.Version != 1 || !r.Installed || r.Outcome != "ok" {
		t.Fatalf("got %+v, %v", r, err)
	}
	if !h.engine.parts.Equal(want) || h.engine.by.Name != "op" || !slices.Equal(h.engine.asked(), []string{"set billing/dev set new hire"}) {
		t.Fatalf("the engine got %v of %q: %v", h.engine.parts.Names(), h.engine.by.Name, h.engine.asked())
	}
}

func TestImportReachesTheEngineInOrder(t *testing.T) {
	h := newHouse(t)
	h.engine.found = []engine.Found{{Name: "B", Service: "billing", Outcome: "valid", Rotation: "pasted"}}
	c := h.as("op", access.RoleOperator)
	found, err := c.Import(t.Context(), "dev", []client.Variable{{Name: "A", Value: secret.FromString("1")}, {Name: "B", Value: secret.FromString(plaintext)}}, true)
	if err != nil || len(found) != 1 || found[0].Environment != "dev" || found[0].Missing == nil {
		t.Fatalf("got %+v, %v", found, err)
	}
	if !slices.Equal(h.engine.names, []string{"A", "B"}) || !h.engine.values[1].Equal(secret.FromString(plaintext)) || !slices.Equal(h.engine.asked(), []string{"import dev dry"}) {
		t.Fatalf("the engine got %v %v", h.engine.names, h.engine.asked())
	}
}

func TestActsReachTheEngine(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev)
	h.install(billingDev, 3, nil)
	h.engine.rotation = rotation.Rotation{ID: "r9", Credential: billingDev, State: rotation.Planned, From: 3}
	c, ctx, id := h.as("root", access.RoleAdmin), t.Context(), client.Credential(billingDev)
	if r, err := c.Rotate(ctx, id, api.Rotate{Why: "leak", Emergency: true, Leaked: 3}); err != nil || r.ID != "r9" || r.Step != "generate" || len(r.Steps) != 5 {
		t.Fatalf("rotate: %+v, %v", r, err)
	}
	if want := (engine.RotateOptions{Why: "leak", Emergency: true, Leaked: 3}); h.engine.options != want {
		t.Fatalf("rotate got %+v", h.engine.options)
	}
	if p, err := c.Plan(ctx, id, api.Rotate{Emergency: true}); err != nil || len(p.Steps) != 1 || !h.engine.options.Emergency {
		t.Fatalf("plan: %+v, %v", p, err)
	}
	_, err := c.Rotate(ctx, id, api.Rotate{Leaked: 3})
	wantError(t, err, 422, api.CodeInvalid)
	for _, do := range []func() error{
		func() error { _, err := c.Rollback(ctx, id, "worse"); return err },
		func() error { _, err := c.Pause(ctx, id); return err },
		func() error { _, err := c.Resume(ctx, id); return err },
		func() error { _, err := c.Approve(ctx, id); return err },
		func() error { _, err := c.Revoke(ctx, id, 3); return err },
		func() error {
			n, err := c.Forget(ctx, "gw-1")
			if n != 2 {
				return fmt.Errorf("%d holds", n)
			}
			return err
		},
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"rotate billing/dev", "plan billing/dev", "rollback billing/dev worse", "pause billing/dev", "resume billing/dev", "approve billing/dev", "revoke billing/dev@v3", "forget gw-1"}
	if got := h.engine.asked(); !slices.Equal(got, want) {
		t.Fatalf("the engine was asked %v", got)
	}
}

func TestErrorsBecomeProblems(t *testing.T) {
	h := newHouse(t)
	h.credentials(billingDev)
	c := h.as("op", access.RoleOperator)
	for _, x := range []struct {
		err    error
		status int
		code   string
	}{
		{key.ErrInvalid, 422, api.CodeInvalid}, {key.ErrNotFound, 404, api.CodeNotFound}, {key.ErrExists, 409, api.CodeExists},
		{key.ErrConflict, 409, api.CodeConflict}, {key.ErrStale, 409, api.CodeStale}, {key.ErrDenied, 403, api.CodeDenied},
		{key.ErrNoToken, 401, api.CodeNoToken}, {key.ErrFenced, 503, api.CodeUnavailable}, {key.ErrNewer, 503, api.CodeNewer},
		{key.ErrLocked, 503, api.CodeLocked}, {key.ErrUnavailable, 503, api.CodeUnavailable}, {key.ErrUncertain, 504, api.CodeUncertain}, {key.ErrFull, 507, api.CodeFull},
	} {
		h.engine.err = fmt.Errorf("pausing: %w", key.WithHint(fmt.Errorf("%w: because", x.err), "do this"))
		_, err := c.Pause(t.Context(), client.Credential(billingDev))
		e := wantError(t, err, x.status, x.code)
		if e.Next != "do this" || e.Detail != "pausing: "+x.err.Error()+": because" || e.RequestID == "" {
			t.Errorf("%v became %+v", x.err, e)
		}
	}
	h.engine.err = errors.New("the disk at /var/lib is on fire")
	_, err := c.Pause(t.Context(), client.Credential(billingDev))
	e := wantError(t, err, 500, api.CodeInternal)
	if e.Detail != "internal error" || !strings.Contains(e.Next, e.RequestID) || !strings.Contains(h.log.String(), e.RequestID) || !strings.Contains(h.log.String(), "on fire") {
		t.Errorf("an unknown error became %+v; the log has %s", e, h.log.String())
	}
	h.engine.panics = true
	_, err = c.Pause(t.Context(), client.Credential(billingDev))
	if e := wantError(t, err, 500, api.CodeInternal); !strings.Contains(h.log.String(), e.RequestID) {
		t.Errorf("a panic was not logged under %s", e.RequestID)
	}
}

// What the server writes and what the API describes are one shape.
func TestProblemIsTheAPIsProblem(t *testing.T) {
	a, err := json.Marshal(server.Problem{Type: "t", Title: "T", Status: 1, Detail: "d", Code: "c", Next: "n", RequestID: "r"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(api.Problem{Type: "t", Title: "T", Status: 1, Detail: "d", Code: "c", Next: "n", RequestID: "r"})
	if err != nil || string(a) != string(b) {
		t.Fatalf("%s is not %s (%v)", a, b, err)
	}
}

func TestDescription(t *testing.T) {
	h := newHouse(t)
	code, spec := h.raw("GET", api.PathOpenAPI, "", "", "")
	var doc struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]struct {
			OperationID string                     `json:"operationId"`
			Summary     string                     `json:"summary"`
			Responses   map[string]json.RawMessage `json:"responses"`
		} `json:"paths"`
		Components struct {
			Schemas map[string]json.RawMessage `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal([]byte(spec), &doc); err != nil || code != 200 || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Fatalf("%d %q: %v", code, doc.OpenAPI, err)
	}
	if strings.Contains(spec, "ErrorModel") || doc.Components.Schemas["Problem"] == nil || doc.Components.Schemas["Event"] == nil {
		t.Error("the description names errors that are never sent, or not those that are")
	}
	ids := map[string]bool{}
	for path, methods := range doc.Paths {
		for m, o := range methods {
			if o.OperationID == "" || ids[o.OperationID] || o.Summary == "" || o.Responses["default"] == nil || o.Responses["422"] != nil {
				t.Errorf("%s %s is not described well: %+v", m, path, o)
			}
			ids[o.OperationID] = true
		}
	}
}

// No type that the API answers with can carry a key.
func TestAnswersHaveNoPlaceForAKey(t *testing.T) {
	exposed := reflect.TypeFor[secret.Exposed]()
	var walk func(reflect.Type, map[reflect.Type]bool) bool
	walk = func(ty reflect.Type, seen map[reflect.Type]bool) bool {
		if ty == exposed || ty == reflect.TypeFor[secret.Value]() {
			return true
		}
		if seen[ty] || ty == reflect.TypeFor[time.Time]() {
			return false
		}
		seen[ty] = true
		switch ty.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			return walk(ty.Elem(), seen)
		case reflect.Struct:
			for i := range ty.NumField() {
				if walk(ty.Field(i).Type, seen) {
					return true
				}
			}
		}
		return false
	}
	if !walk(reflect.TypeFor[api.Set](), map[reflect.Type]bool{}) {
		t.Fatal("the test does not find a key where there is one")
	}
	for _, ty := range []reflect.Type{reflect.TypeFor[api.Status](), reflect.TypeFor[api.Service](), reflect.TypeFor[api.Credential](),
		reflect.TypeFor[api.Rotation](), reflect.TypeFor[api.SetResult](), reflect.TypeFor[api.Found](), reflect.TypeFor[api.Plan](), reflect.TypeFor[api.Applied](),
		reflect.TypeFor[api.Token](), reflect.TypeFor[api.Consumer](), reflect.TypeFor[api.AuditEntry](), reflect.TypeFor[api.Verified](), reflect.TypeFor[api.Alert](),
		reflect.TypeFor[api.Recipe](), reflect.TypeFor[api.Event](), reflect.TypeFor[api.Forgotten]()} {
		if walk(ty, map[reflect.Type]bool{}) {
			t.Errorf("%s can carry a key", ty)
		}
	}
}

// A key may be given in the place of a name: it is refused and not repeated.
func TestWhatIsNoNameIsNotRepeated(t *testing.T) {
	h := newHouse(t)
	tok := string(h.token(access.Token{Name: "root", Role: access.RoleAdmin}).Reveal())
	for route := range least {
		method, path, _ := strings.Cut(route, " ")
		if !strings.Contains(path, "{service}") && !strings.Contains(path, "{name}") {
			continue
		}
		bad := strings.NewReplacer("{service}", plaintext, "{environment}", "prod", "{name}", plaintext, "{number}", "1").Replace(path)
		paths := []string{bad}
		if strings.Contains(path, "{environment}") {
			paths = append(paths, strings.NewReplacer("{service}", "crm", "{environment}", plaintext, "{number}", "1").Replace(path))
		}
		for _, p := range paths {
			status, body := h.raw(method, p, tok, "application/json", bodies[route])
			if status != http.StatusUnprocessableEntity || strings.Contains(body, plaintext) || !strings.Contains(body, `"next"`) {
				t.Errorf("%s: %d", route, status)
			}
		}
	}
	if calls := h.engine.asked(); len(calls) != 0 {
		t.Errorf("the engine was asked: %d", len(calls))
	}
}
