package demo

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"charm.land/lipgloss/v2"

	"github.com/keybaton/keybaton/api"
)

// screen shows the story: in place on a terminal, as plain lines elsewhere,
// and as one JSON object where that was asked for.
type screen struct {
	cfg   Config
	mu    sync.Mutex
	block []int             // columns of each line of the block that is drawn in place
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

// line writes one line; on a terminal it is broken between words, and what
// follows is indented like its beginning.
func (s *screen) line(text string) {
	if s.cfg.JSON {
		return
	}
	if s.cfg.Size != nil {
		cols, _ := s.cfg.Size()
		if lead := text[:len(text)-len(strings.TrimLeft(text, " "))]; lipgloss.Width(text) >= cols && cols > 2*len(lead)+20 {
			text = lead + strings.ReplaceAll(lipgloss.Wrap(text[len(lead):], cols-1-len(lead), ""), "\n", "\n"+lead)
		}
	}
	_, _ = fmt.Fprintln(s.cfg.Out, text)
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
func (s *screen) settle() { s.block = nil }

// draw replaces the block. The terminal may have another size each time: lines
// are cut to its width, and the last of them are shown where it has few rows.
// A line that was drawn on a wider terminal has been broken into several.
func (s *screen) draw(lines []string) {
	cols, rows := s.cfg.Size()
	cols, rows = max(cols, 2), max(rows, 2)
	up := 0
	for _, w := range s.block {
		up += max(1, (w+cols-1)/cols)
	}
	var b strings.Builder
	if up = min(up, rows-1); up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	b.WriteString("\r\x1b[J")
	s.block = s.block[:0]
	for _, l := range lines[max(0, len(lines)-(rows-1)):] {
		l = clip(l, cols-1) // the last column is left free: some terminals break a line there
		s.block = append(s.block, lipgloss.Width(l))
		b.WriteString(l + "\n")
	}
	_, _ = fmt.Fprint(s.cfg.Out, b.String())
}

// rotation shows a rotation and the traffic under it.
func (s *screen) rotation(r api.Rotation, t *traffic) {
	if s.cfg.JSON {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Size == nil {
		s.lines(r, t)
		return
	}
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
	return fmt.Sprintf("  %s %-10s %8s  %s", mark, st.Name, took, s.paint(dim, text))
}

// clip cuts a text to n columns. What colours it takes no column, and is kept
// also behind the cut, where it ends what has begun.
func clip(s string, n int) string {
	if lipgloss.Width(s) <= n {
		return s
	}
	var b strings.Builder
	for w, cut := 0, false; s != ""; {
		if strings.HasPrefix(s, "\x1b[") {
			end := strings.IndexByte(s, 'm') + 1
			if end == 0 {
				break
			}
			b.WriteString(s[:end])
			s = s[end:]
			continue
		}
		r, size := utf8.DecodeRuneInString(s)
		s = s[size:]
		if cut {
			continue
		}
		if w += lipgloss.Width(string(r)); w > n-1 {
			b.WriteString("…")
			cut = true
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// barWidth is the width of the traffic's bar, in columns, where there is room.
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
	look := func(sh share) (glyph, color string) {
		return glyphs[sh.version%len(glyphs)], colors[sh.version%len(colors)]
	}
	shares := t.shares()
	for _, sh := range shares {
		g, c := look(sh)
		legend += fmt.Sprintf("   %s v%d %.0f %%", s.paint(c, g), sh.version, 100*sh.part)
	}
	cols, _ := s.cfg.Size()
	width := float64(max(8, min(barWidth, cols-3-lipgloss.Width(legend))))
	for _, sh := range shares {
		g, c := look(sh)
		bar += s.paint(c, strings.Repeat(g, int(sh.part*width+0.5)))
	}
	return []string{line, "  " + bar + legend}
}

// counts refreshes the traffic where nothing else moves.
func (s *screen) counts(t *traffic) {
	if s.cfg.JSON || s.cfg.Size == nil || t == nil {
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

func (s *screen) alert(a api.Alert, after time.Duration, kept *Kept) {
	if s.cfg.JSON {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	s.line("")
	s.line(fmt.Sprintf("  %s %s/%s v%d: %s, %d ms after it was revoked", s.paint(red, "ALERT"), a.Service, a.Environment, a.Version, a.Error, after.Milliseconds()))
	s.line("        " + a.Cause)
	fix := a.Fix
	if kept != nil {
		fix += " --addr " + kept.API + " --token-file " + kept.TokenFile
	}
	s.line("        fix: " + s.paint(bold, fix))
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
	if s.line(fmt.Sprintf("  %.0f seconds%s. Your own service in five minutes: see the README.", r.Seconds, ends(r.Kept))); r.Kept != nil {
		s.kept(*r.Kept)
	}
	s.line("")
}

func ends(k *Kept) string {
	if k != nil {
		return ", and everything still runs"
	}
	return "; nothing is left behind"
}

// kept says where everything still runs, and how it is looked at. What is to be
// copied is not broken.
func (s *screen) kept(k Kept) {
	at := " --addr " + k.API + " --token-file "
	_, _ = fmt.Fprintf(s.cfg.Out, `
  Until Ctrl-C, which leaves nothing behind:
    API             %s
    gateway         %s
    vendor          %s
    admin token     %s
    consumer token  %s

  keybaton status %s --env %s%s
  keybaton get %s --env %s%s
  curl -H "Keybaton-Token: $(cat %s)" %s/%s/v1/invoices/1
`, k.API, k.Gateway, k.Vendor, k.TokenFile, k.ConsumerTokenFile,
		id.Service, id.Environment, at+k.TokenFile, id.Service, id.Environment, at+k.ConsumerTokenFile, k.ConsumerTokenFile, k.Gateway, id.Service)
}

// thousands writes n with commas.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
