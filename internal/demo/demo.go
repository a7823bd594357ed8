// Package demo is the README's story: a server, a simulated vendor, callers
// through the gateway, a rotation through all five steps under load, and then
// the primary revoked at the vendor behind Keybaton's back. It is a user of
// the API and knows nothing that any other user could not know.
//
// It leaves nothing behind: what it starts, it stops, and its directory is
// removed; where it was killed, by the next demo.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

// Server is a running server that the demo was given.
type Server struct {
	API     string // base URL
	Gateway string // base URL
	Token   secret.Value
	File    string // where the token is kept
	Close   func() error
}

// Config says how the demo runs. Start is required.
type Config struct {
	// Start starts a server that keeps everything under dir and works at the
	// demo's pace.
	Start   func(ctx context.Context, dir string) (Server, error)
	Out     io.Writer
	Size    func() (cols, rows int) // of the terminal that Out is, asked at each draw; nil: it is none, and nothing is drawn in place
	Color   bool
	JSON    bool // one object at the end of the story and nothing else
	Keep    bool // stay until the context ends
	Callers int  // default 8
	Rate    int  // requests a second of each caller; default 50
}

// The demo's pace, which it states.
const (
	soak  = 3 * time.Second
	quiet = 3 * time.Second
	watch = 1 * time.Second
	limit = 55 * time.Second // of the whole story
)

// id is the credential of the story.
var id = client.Credential{Service: "billing-api", Environment: "prod"}

// Result is what the demo saw. It is printed as one JSON object.
type Result struct {
	Requests  int64     `json:"requests"`
	Failed    int64     `json:"failed"` // callers that got anything but 200 with the right body
	Fallbacks int64     `json:"fallbacks"`
	Versions  []Version `json:"versions"`
	Steps     []Step    `json:"steps"`
	OldKey    string    `json:"old_key"` // how the replaced key ended
	Alerts    []Alert   `json:"alerts"`
	Seconds   float64   `json:"seconds"`
	Errors    []string  `json:"errors,omitempty"` // of failed requests, the first few
	Kept      *Kept     `json:"kept,omitempty"`   // what still runs
}

// Kept is where everything runs until the demo is stopped.
type Kept struct {
	API               string `json:"api"`     // base URL
	Gateway           string `json:"gateway"` // base URL
	Vendor            string `json:"vendor"`  // base URL
	TokenFile         string `json:"token_file"`
	ConsumerTokenFile string `json:"consumer_token_file"` // of a token that may call the service and read its key
}

// Version is one version of the story's credential.
type Version struct {
	Version  int64  `json:"version"`
	Requests int64  `json:"requests"` // answered with it
	State    string `json:"state"`
}

// Step is one step of the rotation.
type Step struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Gate    string  `json:"gate"` // what opened it
}

// Alert is one alert of the story.
type Alert struct {
	Service     string    `json:"service"`
	Error       string    `json:"error"`
	Timestamp   time.Time `json:"timestamp"`
	Environment string    `json:"environment"`
	Kind        string    `json:"kind"`
	Cause       string    `json:"cause"`
	AfterMS     int64     `json:"after_ms"` // from the revocation to the alert
}

// ErrFailed is returned when a caller saw a failure, or the old key was not
// proven dead.
var ErrFailed = errors.New("the demo did not end as it should")

// ErrStopped is returned when ctx ended before the story did. Nothing is left
// behind then, too.
var ErrStopped = errors.New("the demo was stopped before its end; nothing is left behind")

// Run tells the story and returns what was seen. It blocks until the story is
// over, and with Keep until ctx ends. What demos left behind that were killed
// is removed first.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if cfg.Callers == 0 {
		cfg.Callers = 8
	}
	if cfg.Rate == 0 {
		cfg.Rate = 50
	}
	dir, remove, err := scratch(os.TempDir())
	if err != nil {
		return Result{}, fmt.Errorf("making a directory for the demo: %w", err)
	}
	defer remove()
	res, err := run(ctx, cfg, dir)
	if err != nil && ctx.Err() != nil {
		err = ErrStopped
	}
	return res, err
}

// run is Run in a directory of its own.
func run(ctx context.Context, cfg Config, dir string) (Result, error) {
	v, stop, err := startVendor()
	if err != nil {
		return Result{}, err
	}
	defer stop()
	srv, err := cfg.Start(ctx, dir)
	if err != nil {
		return Result{}, fmt.Errorf("starting the server: %w", err)
	}
	defer func() { _ = srv.Close() }()
	c, err := client.New(client.Config{Address: srv.API, Token: srv.Token})
	if err != nil {
		return Result{}, err
	}
	s := &story{cfg: cfg, dir: dir, vendor: v.vendor, vendorURL: v.url, server: srv, client: c, screen: newScreen(cfg), began: time.Now()}
	story, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := s.tell(story)
	if err != nil {
		if story.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: it took longer than %s: %w", ErrFailed, limit, err)
		}
		return res, err
	}
	if cfg.Keep {
		<-ctx.Done()
	}
	return res, nil
}

type running struct {
	vendor *vendortest.Vendor
	url    string
}

func startVendor() (running, func(), error) {
	v := vendortest.New(vendortest.Config{})
	v.SetRevokeDelay(400 * time.Millisecond)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return running{}, nil, fmt.Errorf("listening for the simulated vendor: %w", err)
	}
	hs := &http.Server{Handler: v, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = hs.Serve(l) }()
	return running{v, "http://" + l.Addr().String()}, func() { _ = hs.Close() }, nil
}

// file is the keybaton.yaml of the story.
func file(vendor string) string {
	return fmt.Sprintf(`version: 1
services:
  billing-api:
    provider: simulated
    params: {base_url: %q}
    manager: billing-admin
  billing-admin:
    provider: manual
    upstream: %q
credentials:
  - {service: billing-api, environment: prod, policy: demo}
  - {service: billing-admin, environment: prod, policy: demo}
policies:
  demo: {spare: warm, soak: {for: %s, requests: 100, probes: 20}, quiet: %s, watch: %s}
`, vendor, vendor, soak, quiet, watch)
}

type story struct {
	cfg       Config
	dir       string
	kept      *Kept // with Keep
	vendor    *vendortest.Vendor
	vendorURL string
	server    Server
	client    *client.Client
	screen    *screen
	traffic   *traffic
	began     time.Time
}

func (s *story) tell(ctx context.Context) (Result, error) {
	if _, err := s.client.Apply(ctx, api.Apply{Name: "keybaton.yaml", YAML: file(s.vendorURL)}); err != nil {
		return Result{}, fmt.Errorf("applying the configuration: %w", err)
	}
	manager := client.Credential{Service: "billing-admin", Environment: id.Environment}
	if _, err := s.client.Set(ctx, manager, secret.Parts{"key": secret.FromString(vendortest.DefaultManager)}, "the demo's manager key"); err != nil {
		return Result{}, fmt.Errorf("setting the manager key: %w", err)
	}
	if _, err := s.client.Rotate(ctx, id, api.Rotate{Why: "the first key"}); err != nil {
		return Result{}, fmt.Errorf("asking for the first key: %w", err)
	}
	if err := s.until(ctx, "the first key", func(c api.Credential) bool { return c.Slots.Primary != 0 && c.Slots.Fallback != 0 && c.Rotation == nil }); err != nil {
		return Result{}, err
	}
	token, _, err := s.client.CreateToken(ctx, client.TokenOptions{Name: "demo-callers", Role: "consumer", Kind: "reader",
		Grants: []api.Grant{{Environment: id.Environment, Services: []string{id.Service}}}})
	if err != nil {
		return Result{}, fmt.Errorf("making a token for the callers: %w", err)
	}
	s.traffic = newTraffic(s.server.Gateway+"/"+id.Service, token, s.cfg.Callers, s.cfg.Rate)
	if err := s.traffic.start(ctx); err != nil {
		return Result{}, err
	}
	defer s.traffic.stop()
	s.screen.title(fmt.Sprintf("%s at a simulated vendor, %d callers, %d requests a second through the gateway", id.Service+"/"+id.Environment, s.cfg.Callers, s.cfg.Callers*s.cfg.Rate),
		fmt.Sprintf("demo timings: soak %s, quiet window %s, disabled and watched for %s (defaults: 15m, 24h, 1h)", soak, quiet, watch))
	if err := s.steady(ctx, time.Second); err != nil {
		return Result{}, err
	}
	r, err := s.client.Rotate(ctx, id, api.Rotate{Why: "the demo"})
	if err != nil {
		return Result{}, fmt.Errorf("rotating: %w", err)
	}
	if r, err = s.follow(ctx, r.ID); err != nil {
		return Result{}, err
	}
	if r.State != "done" {
		return s.result(ctx, r, nil), fmt.Errorf("%w: the rotation is %s: %s", ErrFailed, r.State, r.Gate.Reason)
	}
	s.screen.note("The old key is " + words(r.Proof) + ". Waiting for the warm spare.")
	if err := s.until(ctx, "a spare", func(c api.Credential) bool { return c.Slots.Fallback != 0 && c.Rotation == nil }); err != nil {
		return Result{}, err
	}
	if s.cfg.Keep {
		if err := s.keep(ctx); err != nil {
			return Result{}, err
		}
	}
	alert, err := s.betrayal(ctx)
	if err != nil {
		return Result{}, err
	}
	s.traffic.stop()
	res := s.result(ctx, r, alert)
	s.screen.summary(res)
	if res.Failed != 0 || res.OldKey != "revoked_proven" {
		return res, fmt.Errorf("%w: %d failed requests, old key %s", ErrFailed, res.Failed, res.OldKey)
	}
	return res, nil
}

// until waits for the credential to be as ok wants it.
func (s *story) until(ctx context.Context, what string, ok func(api.Credential) bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := s.client.Credential(ctx, id)
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok(c) {
			return nil
		}
		s.screen.counts(s.traffic)
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %s: %w", what, waiting(c), ctx.Err())
		case <-tick.C:
		}
	}
}

// waiting says what a credential waits for.
func waiting(c api.Credential) string {
	if c.Rotation != nil {
		return fmt.Sprintf("the %s rotation is %s: %s %v", c.Rotation.Kind, c.Rotation.State, c.Rotation.Gate.Reason, c.Rotation.Gate.Missing)
	}
	for _, r := range c.Retirements {
		return fmt.Sprintf("v%d is %s: %s %v", r.Version, r.State, r.Gate.Reason, r.Gate.Missing)
	}
	return fmt.Sprintf("primary v%d, fallback v%d, no rotation", c.Slots.Primary, c.Slots.Fallback)
}

// steady lets the traffic flow for a while.
func (s *story) steady(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// follow shows the rotation until it is over.
func (s *story) follow(ctx context.Context, rid string) (api.Rotation, error) {
	tick := time.NewTicker(80 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := s.client.Rotation(ctx, rid)
		if err != nil {
			return r, fmt.Errorf("following the rotation: %w", err)
		}
		s.screen.rotation(r, s.traffic)
		if r.Over {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("the rotation waits in %s: %s: %w", r.Step, r.Gate.Reason, ctx.Err())
		case <-tick.C:
		}
	}
}

// betrayal revokes the primary at the vendor, behind Keybaton's back, and waits
// until the fallback has carried the callers on and the alert is there.
func (s *story) betrayal(ctx context.Context) (*Alert, error) {
	c, err := s.client.Credential(ctx, id)
	if err != nil {
		return nil, err
	}
	vendorID := ""
	for _, v := range c.Versions {
		if v.Number == c.Slots.Primary {
			vendorID = v.VendorID
		}
	}
	s.vendor.SetRevokeDelay(0)
	if !s.vendor.RevokeKey(vendorID) {
		return nil, fmt.Errorf("%w: the vendor does not know the primary v%d", ErrFailed, c.Slots.Primary)
	}
	at := time.Now()
	s.screen.note(fmt.Sprintf("Now v%d, the primary, is revoked at the vendor behind Keybaton's back.", c.Slots.Primary))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		as, err := s.client.Alerts(ctx, client.Filter(id), "firing")
		if err != nil {
			return nil, fmt.Errorf("reading the alerts: %w", err)
		}
		for _, a := range as {
			if a.Severity == "critical" && s.traffic.fallbacks.Load() > 0 {
				found := &Alert{Service: a.Service, Error: a.Error, Timestamp: a.Started, Environment: a.Environment, Kind: a.Kind, Cause: a.Cause, AfterMS: time.Since(at).Milliseconds()}
				s.screen.alert(a, time.Since(at), s.kept)
				return found, s.steady(ctx, 2*time.Second) // and the callers go on
			}
		}
		s.screen.counts(s.traffic)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the alert: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (s *story) result(ctx context.Context, r api.Rotation, a *Alert) Result {
	t := s.traffic
	res := Result{Requests: t.requests.Load(), Failed: t.failed.Load(), Fallbacks: t.fallbacks.Load(), OldKey: r.Proof, Seconds: round(time.Since(s.began)), Errors: t.errors(), Kept: s.kept, Alerts: []Alert{}, Versions: []Version{}, Steps: []Step{}}
	if a != nil {
		res.Alerts = append(res.Alerts, *a)
	}
	for _, st := range r.Steps {
		if !st.Started.IsZero() && !st.Ended.IsZero() {
			res.Steps = append(res.Steps, Step{Name: st.Name, Seconds: round(st.Ended.Sub(st.Started)), Gate: st.Gate})
		}
	}
	if c, err := s.client.Credential(ctx, id); err == nil {
		for i := len(c.Versions) - 1; i >= 0; i-- {
			v := c.Versions[i]
			res.Versions = append(res.Versions, Version{Version: v.Number, State: v.State, Requests: t.by(v.Number)})
		}
	}
	return res
}

func round(d time.Duration) float64 { return float64(d.Milliseconds()/10) / 100 }

// keep prepares for people who look at what still runs: a token of their own
// may call the service and read its key.
func (s *story) keep(ctx context.Context) error {
	k := Kept{API: s.server.API, Gateway: s.server.Gateway, Vendor: s.vendorURL, TokenFile: s.server.File, ConsumerTokenFile: filepath.Join(s.dir, "consumer.token")}
	token, _, err := s.client.CreateToken(ctx, client.TokenOptions{Name: "demo-reader", Role: "consumer", Kind: "reader", Refresh: quiet,
		Grants: []api.Grant{{Environment: id.Environment, Services: []string{id.Service}}}})
	if err != nil {
		return fmt.Errorf("making a token to look with: %w", err)
	}
	if err := client.WriteTokenFile(k.ConsumerTokenFile, token); err != nil {
		return fmt.Errorf("writing a token to look with: %w", err)
	}
	s.kept = &k
	return nil
}
