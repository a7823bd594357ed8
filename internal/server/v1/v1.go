// Package v1 is the HTTP API at /api/v1 that people, the dashboard and the
// command line talk to: everything that can be seen, and everything that can be
// asked for.
//
// Keys go in and never come out: no answer holds plaintext, and an error never
// repeats what was sent. Every route names the verb that its caller needs and
// the credential it is about; a route without them cannot be registered. Reads
// are consistent snapshots of the store. What writes a key is done by the
// engine; tokens are written here.
//
// The caller serves the routes behind server.Server.Wrap; the routes that
// consumers use, and those of the Vault-compatible reader, are other rooms.
package v1

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/server"
	"github.com/keybaton/keybaton/internal/store"
)

// Config is what the API works with. Server, Store and Engine are required.
type Config struct {
	Server  *server.Server
	Store   store.Store
	Engine  engine.API
	Recipes func() []api.Recipe // what providers there are; nil means none
	Version string              // of the program, for the status
	Now     func() time.Time    // nil means time.Now
	Every   time.Duration       // how often an event stream looks for new counters; default 500 ms
	Stream  time.Duration       // after this long an event stream ends, and its token is checked again; default 10 min
}

// API is the routes. It is safe for concurrent use.
type API struct {
	server  *server.Server
	store   store.Store
	engine  engine.API
	recipes func() []api.Recipe
	version string
	now     func() time.Time
	every   time.Duration
	stream  time.Duration
}

// New returns the API, or [key.ErrInvalid] when something required is missing.
func New(c Config) (*API, error) {
	if c.Server == nil || c.Store == nil || c.Engine == nil {
		return nil, fmt.Errorf("%w: the API needs a server, a store and an engine", key.ErrInvalid)
	}
	a := &API{server: c.Server, store: c.Store, engine: c.Engine, recipes: c.Recipes, version: c.Version,
		now: c.Now, every: c.Every, stream: c.Stream}
	if a.now == nil {
		a.now = time.Now
	}
	if a.recipes == nil {
		a.recipes = func() []api.Recipe { return nil }
	}
	if a.every <= 0 {
		a.every = 500 * time.Millisecond
	}
	if a.stream <= 0 {
		a.stream = 10 * time.Minute
	}
	return a, nil
}

// guarded registers handlers behind the token check.
type guarded struct {
	*http.ServeMux
	server *server.Server
}

// HandleFunc registers h for requests with a valid token.
func (g guarded) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	g.Handle(pattern, g.server.Require(http.HandlerFunc(h)))
}

// Register adds every route to mux, and the description of them all at
// [api.PathOpenAPI], which needs no token.
func (a *API) Register(mux *http.ServeMux) {
	c := huma.DefaultConfig("Keybaton", a.version)
	c.Info.Description = "Keys go in and never come out. Errors are problem+json (RFC 9457) with a code for programs and the next step for people."
	c.CreateHooks = nil
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.Formats = map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat}
	c.Transformers = []huma.Transformer{a.problems}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "an API token: keybaton token create"},
	}
	c.Security = []map[string][]string{{"token": {}}}
	h := humago.New(guarded{mux, a.server}, c)

	a.registerReads(h)
	a.registerActs(h)
	a.registerAdmin(h)
	a.registerEvents(h)

	describeProblems(h.OpenAPI())
	spec, err := json.Marshal(h.OpenAPI())
	if err != nil {
		panic(err) // the description is built from types alone: it cannot depend on input
	}
	mux.HandleFunc("GET "+api.PathOpenAPI, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(spec)
	})
}

// out is an answer with a body.
type out[T any] struct{ Body T }

// none is an input without parameters.
type none struct{}

// aim says what a route is about, so that access can be checked before it runs.
type aim[I any] func(*I) key.CredentialID

// overall is the aim of a route that is about the server as a whole; what its
// answer lists is filtered by what the caller may see.
func overall[I any](*I) key.CredentialID { return key.CredentialID{} }

// OfCredential is the input of a route about one credential.
type OfCredential struct {
	Service     string `path:"service" maxLength:"63"`
	Environment string `path:"environment" maxLength:"63"`
}

func (c OfCredential) id() key.CredentialID {
	return key.CredentialID{Service: c.Service, Environment: c.Environment}
}

// op describes a route. The verb is what its caller must be allowed to do;
// Whole routes are refused to tokens that are limited to some credentials.
type op struct {
	Method  string
	Path    string
	ID      string
	Tag     string
	Summary string
	Verb    access.Verb
	Whole   bool
	Secret  bool  // the body holds keys: nothing of it is named in an error
	Max     int64 // of the body in bytes; 0 is 1 MiB
	Status  int   // of success; 0 is 200
}

// metaSecret marks operations whose bodies hold keys.
const metaSecret = "keybaton-secret"

// register adds a route. Access is checked before do runs.
func register[I, O any](a *API, h huma.API, o op, at aim[I], do func(context.Context, access.Principal, *I) (O, error)) {
	huma.Register(h, huma.Operation{
		Method: o.Method, Path: o.Path, OperationID: o.ID, Summary: o.Summary, Tags: []string{o.Tag},
		Description:  fmt.Sprintf("Needs a token that may %s.", o.Verb),
		MaxBodyBytes: o.Max, DefaultStatus: o.Status,
		Metadata: map[string]any{metaSecret: o.Secret},
	}, func(ctx context.Context, in *I) (*out[O], error) {
		p := server.PrincipalOf(ctx)
		if err := check(p, o, at(in)); err != nil {
			return nil, a.server.Problem(ctx, err)
		}
		v, err := do(ctx, p, in)
		if err != nil {
			return nil, a.server.Problem(ctx, err)
		}
		return &out[O]{Body: v}, nil
	})
}

func check(p access.Principal, o op, id key.CredentialID) error {
	if !id.IsZero() {
		if err := named("a service", id.Service); err != nil && id.Service != "*" {
			return err
		}
		if err := named("an environment", id.Environment); err != nil {
			return err
		}
	}
	if err := p.Check(o.Verb, id); err != nil {
		return err
	}
	if o.Whole && len(p.Grants) > 0 {
		return key.WithHint(fmt.Errorf("%w: %q is limited to some credentials, and this is about all of them", key.ErrDenied, p.Name),
			"use a token without --service and --env")
	}
	return nil
}

// named refuses what cannot be the name of what. It does not repeat it: a key
// may have been given in the place of a name.
func named(what, name string) error {
	if key.CheckName(name) == nil {
		return nil
	}
	return key.WithHint(fmt.Errorf("%w: that cannot be the name of %s; names are 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
		key.ErrInvalid, what), "give the name; and if it was a key or a token, replace it")
}

// problems turns the errors that huma makes into problems that hold nothing of
// what was sent: huma itself would repeat the rejected value.
func (a *API) problems(ctx huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	if e.Status >= http.StatusInternalServerError {
		return a.server.Problem(ctx.Context(), fmt.Errorf("answering %s: %s", ctx.Operation().OperationID, e.Detail)), nil
	}
	next := "the shape is described at " + api.PathOpenAPI
	detail := e.Detail
	if secret, _ := ctx.Operation().Metadata[metaSecret].(bool); secret {
		detail = "the body does not have the shape that is wanted; nothing of it is repeated here, as it may hold a key"
	} else if parts := causes(e); len(parts) > 0 {
		detail = strings.Join(parts, "; ")
	}
	return a.server.Invalid(ctx.Context(), e.Status, detail, next), nil
}

func causes(e *huma.ErrorModel) []string {
	var parts []string
	for _, d := range e.Errors {
		if d == nil {
			continue
		}
		message := d.Message
		if d.Location == "body" && d.Value != nil {
			// A parser's message may quote what it could not parse.
			message = "is not the JSON that is wanted"
		}
		parts = append(parts, strings.TrimSpace(d.Location+" "+message))
	}
	return parts
}

// describeProblems puts [api.Problem] in the place of huma's own errors in the
// description.
func describeProblems(o *huma.OpenAPI) {
	r := o.Components.Schemas
	ref := r.Schema(typeOf[api.Problem](), true, "Problem")
	for _, item := range o.Paths {
		for _, operation := range []*huma.Operation{item.Get, item.Post, item.Put, item.Delete, item.Patch} {
			if operation == nil {
				continue
			}
			for code, resp := range operation.Responses {
				if _, isProblem := resp.Content[server.ProblemType]; isProblem {
					delete(operation.Responses, code)
				}
			}
			operation.Responses["default"] = &huma.Response{Description: "a problem, with a code and the next step",
				Content: map[string]*huma.MediaType{server.ProblemType: {Schema: ref}}}
		}
	}
	delete(r.Map(), "ErrorModel")
	delete(r.Map(), "ErrorDetail")
}
