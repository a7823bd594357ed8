package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/keybaton/keybaton/api"
)

// screen shows the story: in place on a terminal, as plain lines elsewhere,
// and as one JSON object where that was asked for.
type screen struct {
	cfg   Config
	mu    sync.Mutex
	block int               // lines of the block that is drawn in place
	rot   *api.Rotation     // as last shown
	said  map[string]string // step to what was last said of it
	drawn time.Time
}

func newScreen(cfg Config) *screen { return &screen{cfg: cfg, said: map[string]string{}} }

// The colours, as SGR parameters.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (s *screen) paint(sgr, text string) string {
	if !s.cfg.Color || text == "" {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}

func (s *screen) line(text string) {
	if !s.cfg.JSON {
		_, _ = fmt.Fprintln(s.cfg.Out, text)
	}
}

func (s *screen) title(title, sub string) {
	s.line("")
	s.line("  " + s.paint(bold, "Keybaton demo") + "  " + title)
	s.line("  " + s.paint(dim, sub))
	s.line("")
}

// note says something below what is drawn in place, which then stays.
func (s *screen) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	s.line("")
	s.line("  " + text)
	s.line("")
}

// settle leaves the block as it is.
func (s *screen) settle() { s.block, s.rot = 0, nil }

// draw replaces the block.
func (s *screen) draw(lines []string) {
	var b strings.Builder
	if s.block > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.block)
	}
	for _, l := range lines {
		b.WriteString("\r\x1b[2K" + l + "\n")
	}
	s.block = len(lines)
	_, _ = fmt.Fprint(s.cfg.Out, b.String())
}

// rotation shows a rotation and the traffic under it.
func (s *screen) rotation(r api.Rotation, t *traffic) {
	if s.cfg.JSON {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cfg.Terminal {
		s.lines(r, t)
		return
	}
	s.rot = &r
	var out []string
	for _, st := range r.Steps {
		if st.State == api.StepSkipped {
			continue
		}
		out = append(out, s.step(st, r))
	}
	s.draw(append(append(out, ""), s.trafficLines(t)...))
}

func (s *screen) step(st api.Step, r api.Rotation) string {
	mark, took, text := s.paint(dim, "○"), "", st.Gate
	switch st.State {
	case api.StepDone:
		mark, took = s.paint(green, "✓"), fmt.Sprintf("%.1f s", st.Ended.Sub(st.Started).Seconds())
	case api.StepCurrent:
		mark, took = s.paint(cyan, "●"), fmt.Sprintf("%.1f s", time.Since(st.Started).Seconds())
		if r.Gate.Reason != "" {
			text = "waits: " + strings.TrimPrefix(r.Gate.Reason, "waits for ")
			if len(r.Gate.Missing) > 0 {
				text += " (" + r.Gate.Missing[0] + ")"
			}
		}
	}
	return fmt.Sprintf("  %s %-10s %8s  %s", mark, st.Name, took, s.paint(dim, clip(text, 92)))
}

// clip cuts a text to n characters, so that a line stays a line.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

const barWidth = 40

// trafficLines shows who answers, and how it goes.
func (s *screen) trafficLines(t *traffic) []string {
	failed := fmt.Sprintf("failed %d", t.failed.Load())
	if t.failed.Load() > 0 {
		failed = s.paint(red, failed)
	} else {
		failed = s.paint(green, failed)
	}
	line := fmt.Sprintf("  requests %s   %s   fallbacks %d", thousands(t.requests.Load()), failed, t.fallbacks.Load())
	// Versions take turns, so that a version keeps its look while others come and go.
	glyphs, colors := []string{"█", "▓", "▒"}, []string{cyan, green, yellow}
	bar, legend := "", ""
	for _, sh := range t.shares() {
		g, c := glyphs[sh.version%len(glyphs)], colors[sh.version%len(colors)]
		bar += s.paint(c, strings.Repeat(g, int(sh.part*barWidth+0.5)))
		legend += fmt.Sprintf("   %s v%d %.0f %%", s.paint(c, g), sh.version, 100*sh.part)
	}
	return []string{line, "  " + bar + legend}
}

// counts refreshes the traffic where nothing else moves.
func (s *screen) counts(t *traffic) {
	if s.cfg.JSON || !s.cfg.Terminal || t == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.drawn) < 80*time.Millisecond {
		return
	}
	s.drawn = time.Now()
	s.draw(s.trafficLines(t))
}

// lines says what is new, one line each.
func (s *screen) lines(r api.Rotation, t *traffic) {
	for _, st := range r.Steps {
		text := ""
		switch st.State {
		case api.StepDone:
			text = fmt.Sprintf("done in %.1f s: %s", st.Ended.Sub(st.Started).Seconds(), st.Gate)
		case api.StepCurrent:
			if text = "begins"; r.Gate.Reason != "" {
				text = "waits: " + strings.TrimPrefix(r.Gate.Reason, "waits for ")
			}
		}
		if text == "" || s.said[st.Name] == text {
			continue
		}
		s.said[st.Name] = text
		shares := ""
		for _, sh := range t.shares() {
			shares += fmt.Sprintf(", v%d %.0f %%", sh.version, 100*sh.part)
		}
		s.line(fmt.Sprintf("  %-10s  %-92s  %s requests, %d failed%s", st.Name, clip(text, 92), thousands(t.requests.Load()), t.failed.Load(), shares))
	}
}

func (s *screen) alert(a api.Alert, after time.Duration) {
	if s.cfg.JSON {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	s.line("")
	s.line(fmt.Sprintf("  %s %s/%s v%d: %s, %d ms after it was revoked", s.paint(red, "ALERT"), a.Service, a.Environment, a.Version, a.Error, after.Milliseconds()))
	s.line("        " + a.Cause)
	s.line("        fix: " + s.paint(bold, a.Fix))
	s.line("")
}

// words says how a key ended.
func words(proof string) string {
	switch proof {
	case "revoked_proven":
		return "proven dead: the vendor refuses it and lists it no more"
	case "revoke_unproven":
		return "revoked, but not proven dead"
	}
	return proof
}

func (s *screen) summary(r Result) {
	if s.cfg.JSON {
		b, _ := json.Marshal(r)
		_, _ = fmt.Fprintf(s.cfg.Out, "%s\n", b)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	failed := s.paint(green, "0")
	if r.Failed > 0 {
		failed = s.paint(red, fmt.Sprint(r.Failed))
	}
	s.line(fmt.Sprintf("  %-10s %s", "requests", thousands(r.Requests)))
	s.line(fmt.Sprintf("  %-10s %s", "failed", failed))
	s.line(fmt.Sprintf("  %-10s %s", "fallbacks", thousands(r.Fallbacks)))
	steps := ""
	for _, st := range r.Steps {
		steps += fmt.Sprintf("%s %.1f s   ", st.Name, st.Seconds)
	}
	s.line(fmt.Sprintf("  %-10s %s", "steps", strings.TrimSpace(steps)))
	for _, v := range r.Versions {
		s.line(fmt.Sprintf("  %-10s %s requests, %s", fmt.Sprintf("v%d", v.Version), thousands(v.Requests), v.State))
	}
	s.line(fmt.Sprintf("  %-10s %s", "old key", words(r.OldKey)))
	for _, a := range r.Alerts {
		s.line(fmt.Sprintf("  %-10s %s after %d ms, while every request was answered", "alert", a.Kind, a.AfterMS))
	}
	for _, e := range r.Errors {
		s.line("  " + s.paint(red, "failure") + "    " + e)
	}
	s.line("")
	s.line(fmt.Sprintf("  %.0f seconds; nothing is left behind. Your own service in five minutes: see the README.", r.Seconds))
	s.line("")
}

// kept says where everything still runs.
func (s *screen) kept(srv Server, vendor string) {
	out := s.cfg.Out
	b, _ := os.ReadFile(srv.File)
	token := strings.TrimSpace(string(b))
	_, _ = fmt.Fprintf(out, "  Still running until Ctrl-C:\n    API      %s\n    gateway  %s\n    vendor   %s\n    token    %s\n\n    export KEYBATON_ADDR=%s KEYBATON_TOKEN=%s\n    keybaton status billing-api --env prod\n\n",
		srv.API, srv.Gateway, vendor, token, srv.API, token)
}

// thousands writes n with commas.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
