package terminal_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/alert"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/notify/terminal"
)

// counter counts how often it is written to.
type counter struct {
	bytes.Buffer
	n int
}

func (c *counter) Write(b []byte) (int, error) {
	c.n++
	return c.Buffer.Write(b)
}

func TestBlocks(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	a := alert.Alert{ID: "al_1", State: alert.Firing, Started: now, LastSeen: now, Change: 1,
		Signal: alert.Signal{Credential: key.CredentialID{Service: "billing-api", Environment: "prod"}, Version: 2, Kind: alert.Spike, Severity: alert.Critical,
			Error: "401 \x1b[31mUnauthorized\r\n", Cause: "the primary v2 is refused", Evidence: "v2 refused once", Fix: "keybaton rotate billing-api --env prod"}}
	changed, resolved, boots := a, a, a
	changed.Change = 2
	resolved.State, resolved.Ended = alert.Resolved, now.Add(90*time.Second)
	boots.Signal = alert.Signal{Consumer: "gw", Severity: alert.Warning, Error: "two processes are gw"}
	tests := []struct {
		name string
		a    alert.Alert
		want string
	}{
		{"firing", a, `ALERT critical  billing-api/prod v2  401  [31mUnauthorized
  cause     the primary v2 is refused
  evidence  v2 refused once
  fix       keybaton rotate billing-api --env prod
  since     2026-11-22T10:00:00Z
`},
		{"changed", changed, `ALERT critical (changed)  billing-api/prod v2  401  [31mUnauthorized
  cause     the primary v2 is refused
  evidence  v2 refused once
  fix       keybaton rotate billing-api --env prod
  since     2026-11-22T10:00:00Z
`},
		{"resolved", resolved, `RESOLVED  billing-api/prod v2  401  [31mUnauthorized
  cause     the primary v2 is refused
  lasted    1m30s
`},
		{"a consumer", boots, `ALERT warning  gw  two processes are gw
  since     2026-11-22T10:00:00Z
`},
	}
	for _, tt := range tests {
		var c counter
		if err := terminal.New(&c).Send(t.Context(), alert.Delivery{Alert: tt.a}); err != nil {
			t.Fatal(err)
		}
		if c.String() != tt.want || c.n != 1 {
			t.Errorf("%s: in %d writes it wrote\n%swant\n%s", tt.name, c.n, c.String(), tt.want)
		}
	}
}

type full struct{}

var errFull = errors.New("full")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestAFailedWriteIsNotTaken(t *testing.T) {
	if err := terminal.New(full{}).Send(t.Context(), alert.Delivery{}); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
}
