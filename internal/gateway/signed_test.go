package gateway_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/gateway"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

type signedVendor struct{ seen chan string }

func (v signedVendor) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case v.seen <- r.Header.Get("Authorization"):
	default:
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
}

// A key that signs requests is probed by the gateway, and forwarded by none:
// the caller is told what to do instead.
func TestKeysThatSignAreProbedAndNotForwarded(t *testing.T) {
	ck := newClock()
	c := gateway.New(gateway.Config{Now: ck.Now, Booted: ck.now, ProbeEvery: time.Millisecond})
	f := frame(1, key.Call{Upstream: "https://sts.vendor.example", Parts: []string{"id", "key"},
		Place: key.Place{In: key.InSigV4, Name: "us-east-1/sts", User: "{{id}}", Value: "{{key}}"},
		Probe: &key.Probe{Path: "/", Rules: []key.Rule{{Status: []int{200}, Is: key.IsValid}}}}, time.Time{}, 1)
	f.Credentials[0].Versions[0].Parts["id"] = secret.Expose(secret.FromString("AKIDEXAMPLE"))
	f.Credentials[0].Asks = []evidence.Ask{{Version: key.VersionID{Credential: prod, Number: 1}, OK: 1}}
	install(t, c, f)
	var x gateway.Exchange
	err := c.Begin(&x, head(http.MethodGet), ck.now)
	var fault *gateway.Fault
	if !errors.As(err, &fault) || fault.Status != http.StatusNotImplemented || fault.Code != "signing_unsupported" {
		t.Errorf("forwarding: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	v := signedVendor{make(chan string, 1)}
	done := make(chan struct{})
	go func() { defer close(done); c.RunProbes(ctx, v) }()
	select {
	case auth := <-v.seen:
		if !strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") || strings.Contains(auth, "MARKED") {
			t.Errorf("the probe is signed as %s", auth)
		}
	case <-time.After(10 * time.Second):
		t.Error("it is not probed")
	}
	cancel()
	<-done
}
