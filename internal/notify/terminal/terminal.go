// Package terminal is the channel that writes alerts for a person to read, one
// block each.
package terminal

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/keybaton/keybaton/internal/alert"
)

// Terminal is the channel. It is safe for concurrent use.
type Terminal struct {
	mu sync.Mutex
	w  io.Writer
}

// New returns a channel that writes to w, one Write per alert.
func New(w io.Writer) *Terminal { return &Terminal{w: w} }

// Send writes d. Nothing in it can move the cursor or change colours: part of
// what it says comes from vendors.
func (t *Terminal) Send(_ context.Context, d alert.Delivery) error {
	p := alert.Message(d.Alert)
	var b strings.Builder
	head := "ALERT " + string(p.Severity)
	switch {
	case p.State == alert.Resolved:
		head = "RESOLVED"
	case p.Change > 1:
		head = "ALERT " + string(p.Severity) + " (changed)"
	}
	what := p.Service + "/" + p.Environment
	if p.Service == "" {
		what = p.Consumer
	}
	if p.Version != 0 {
		what += " " + p.Version.String()
	}
	fmt.Fprintf(&b, "%s  %s  %s\n", head, plain(what), plain(p.Error))
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(&b, "  %-9s %s\n", name, plain(text))
		}
	}
	line("cause", p.Cause)
	if p.State == alert.Firing {
		line("evidence", p.Evidence)
		line("fix", p.Fix)
		line("since", p.Started.Format(time.RFC3339))
	} else {
		line("lasted", cmp.Or(p.Ended.Sub(p.Started).Round(time.Second), time.Second).String())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.w.Write([]byte(b.String())); err != nil {
		return fmt.Errorf("writing the alert: %w", err)
	}
	return nil
}

func plain(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
}
