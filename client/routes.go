package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/secret"
)

// Credential names a credential.
type Credential struct {
	Service     string
	Environment string
}

func (id Credential) path(pattern string) string {
	return path(pattern, "service", id.Service, "environment", id.Environment)
}

// Filter narrows a list; an empty field is every one.
type Filter struct {
	Service     string
	Environment string
}

func (f Filter) query(more ...string) url.Values {
	return query(append(more, "service", f.Service, "environment", f.Environment)...)
}

// Status returns the state of the server, and who is asking.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	return ask[api.Status](ctx, c, http.MethodGet, api.PathStatus, nil, nil)
}

// Services returns the services, by name.
func (c *Client) Services(ctx context.Context) ([]api.Service, error) {
	return list[api.Service](ctx, c, api.PathServices, nil)
}

// Credentials returns the credentials, by service and environment.
func (c *Client) Credentials(ctx context.Context, f Filter) ([]api.Credential, error) {
	return list[api.Credential](ctx, c, api.PathCredentials, f.query())
}

// Credential returns one credential with all its versions.
func (c *Client) Credential(ctx context.Context, id Credential) (api.Credential, error) {
	return ask[api.Credential](ctx, c, http.MethodGet, id.path(api.PathCredential), nil, nil)
}

// Set gives the server a key that the vendor issued. A live key is not
// overwritten: a rotation brings the new one in.
func (c *Client) Set(ctx context.Context, id Credential, p secret.Parts, why string) (api.SetResult, error) {
	return ask[api.SetResult](ctx, c, http.MethodPost, id.path(api.PathSet), nil, api.Set{Parts: secret.ExposeParts(p), Why: why})
}

// Variable is a named value that may be a key.
type Variable struct {
	Name  string
	Value secret.Value
}

// Import has the server recognise and probe keys among vs, and take those that
// belong to declared credentials of the environment; with dry it takes none.
func (c *Client) Import(ctx context.Context, environment string, vs []Variable, dry bool) ([]api.Found, error) {
	b := api.Import{Environment: environment, Variables: []api.ImportValue{}, DryRun: dry}
	for _, v := range vs {
		b.Variables = append(b.Variables, api.ImportValue{Name: v.Name, Value: secret.Expose(v.Value)})
	}
	l, err := ask[api.List[api.Found]](ctx, c, http.MethodPost, api.PathImport, nil, b)
	return l.Items, err
}

// Rotate begins a rotation.
func (c *Client) Rotate(ctx context.Context, id Credential, r api.Rotate) (api.Rotation, error) {
	return ask[api.Rotation](ctx, c, http.MethodPost, id.path(api.PathRotate), nil, r)
}

// Plan returns what a rotation would do; nothing is done.
func (c *Client) Plan(ctx context.Context, id Credential, r api.Rotate) (api.Plan, error) {
	return ask[api.Plan](ctx, c, http.MethodGet, id.path(api.PathPlan), query("emergency", flag(r.Emergency), "leaked", number(r.Leaked)), nil)
}

// Rollback goes back to the version before, if it still works.
func (c *Client) Rollback(ctx context.Context, id Credential, why string) (api.Rotation, error) {
	return ask[api.Rotation](ctx, c, http.MethodPost, id.path(api.PathRollback), nil, api.Why{Why: why})
}

// Pause holds the open rotation where it is.
func (c *Client) Pause(ctx context.Context, id Credential) (api.Rotation, error) {
	return ask[api.Rotation](ctx, c, http.MethodPost, id.path(api.PathPause), nil, nil)
}

// Resume lets a paused or stopped rotation go on.
func (c *Client) Resume(ctx context.Context, id Credential) (api.Rotation, error) {
	return ask[api.Rotation](ctx, c, http.MethodPost, id.path(api.PathResume), nil, nil)
}

// Approve opens the gate that waits for a person.
func (c *Client) Approve(ctx context.Context, id Credential) (api.Rotation, error) {
	return ask[api.Rotation](ctx, c, http.MethodPost, id.path(api.PathApprove), nil, nil)
}

// Revoke ends one version out of turn; one that sits in a slot is refused.
func (c *Client) Revoke(ctx context.Context, id Credential, version int64) (api.Credential, error) {
	p := path(id.path(api.PathRevoke), "number", number(version))
	return ask[api.Credential](ctx, c, http.MethodPost, p, nil, nil)
}

// Discover compares the vendor's list of keys with what the store knows; it
// changes nothing.
func (c *Client) Discover(ctx context.Context, id Credential) ([]api.Discovered, error) {
	return list[api.Discovered](ctx, c, id.path(api.PathDiscover), nil)
}

// Adopt says which of the vendor's keys a version is, or takes one in to end it.
func (c *Client) Adopt(ctx context.Context, id Credential, a api.Adopt) (api.Credential, error) {
	return ask[api.Credential](ctx, c, http.MethodPost, id.path(api.PathAdopt), nil, a)
}

// Rotations returns rotations, newest first. limit 0 means the server's
// default.
func (c *Client) Rotations(ctx context.Context, f Filter, open bool, limit int) ([]api.Rotation, error) {
	return list[api.Rotation](ctx, c, api.PathRotations, f.query("open", flag(open), "limit", number(int64(limit))))
}

// Rotation returns one rotation.
func (c *Client) Rotation(ctx context.Context, id string) (api.Rotation, error) {
	return ask[api.Rotation](ctx, c, http.MethodGet, path(api.PathRotation, "id", id), nil, nil)
}

// Apply changes what is managed to what the text of a keybaton.yaml says.
func (c *Client) Apply(ctx context.Context, a api.Apply) (api.Applied, error) {
	return ask[api.Applied](ctx, c, http.MethodPost, api.PathApply, nil, a)
}

// Consumers returns who gets keys, what they hold and what they acknowledged.
func (c *Client) Consumers(ctx context.Context) ([]api.Consumer, error) {
	return list[api.Consumer](ctx, c, api.PathConsumers, nil)
}

// Forget says that a consumer is gone: nothing waits for it any more. It
// returns how many holds were waived.
func (c *Client) Forget(ctx context.Context, consumer string) (int, error) {
	f, err := ask[api.Forgotten](ctx, c, http.MethodPost, path(api.PathForget, "name", consumer), nil, nil)
	return f.Holds, err
}

// Tokens returns the tokens, by name.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	return list[api.Token](ctx, c, api.PathTokens, nil)
}

// TokenOptions say what a token may do.
type TokenOptions struct {
	Name    string
	Role    string        // viewer, operator, admin, consumer or gateway
	Kind    string        // of a consumer; "" is what the role suggests
	Grants  []api.Grant   // empty for a person: everything
	Refresh time.Duration // how often a reader reads again; 0 is undeclared
	Expires time.Time     // zero: never
	Shape   string        // see NewToken
}

// CreateToken makes a token, tells the server its hash, and returns the token.
// Nobody can get it a second time.
func (c *Client) CreateToken(ctx context.Context, o TokenOptions) (secret.Value, api.Token, error) {
	v, hash, err := NewToken(o.Shape)
	if err != nil {
		return secret.Value{}, api.Token{}, err
	}
	t, err := ask[api.Token](ctx, c, http.MethodPost, api.PathTokens, nil, api.TokenCreate{Name: o.Name, Hash: hash, Role: o.Role, Kind: o.Kind,
		Grants: o.Grants, RefreshSeconds: seconds(o.Refresh), Expires: o.Expires})
	if err != nil {
		return secret.Value{}, api.Token{}, err
	}
	return v, t, nil
}

// RevokeToken makes a token worthless at once. What its bearer holds stays
// recorded until it is released or forgotten.
func (c *Client) RevokeToken(ctx context.Context, name string) (api.Token, error) {
	return ask[api.Token](ctx, c, http.MethodDelete, path(api.PathToken, "name", name), nil, nil)
}

// Audit returns entries of the audit chain, oldest first: from the entry from
// on, or the newest when from is 0. limit 0 means the server's default.
func (c *Client) Audit(ctx context.Context, from int64, limit int) ([]api.AuditEntry, error) {
	return list[api.AuditEntry](ctx, c, api.PathAudit, query("from", number(from), "limit", number(int64(limit))))
}

// Verify has the server check the whole chain, against head ("SEQ:HASH") when
// it is not "".
func (c *Client) Verify(ctx context.Context, head string) (api.Verified, error) {
	return ask[api.Verified](ctx, c, http.MethodGet, api.PathVerify, query("head", head), nil)
}

// Alerts returns alerts, newest first. state is firing, resolved or "" for any.
func (c *Client) Alerts(ctx context.Context, f Filter, state string) ([]api.Alert, error) {
	return list[api.Alert](ctx, c, api.PathAlerts, f.query("state", state))
}

// Recipes returns the providers that a service can name.
func (c *Client) Recipes(ctx context.Context) ([]api.Recipe, error) {
	return list[api.Recipe](ctx, c, api.PathRecipes, nil)
}
