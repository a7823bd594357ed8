package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"charm.land/lipgloss/v2"
	"golang.org/x/term"

	"github.com/keybaton/keybaton/api"
)

// The rules of output, for every verb:
//
//   - what a person asked for goes to Out, remarks and errors go to Err;
//   - a table has a dim header, two spaces between columns and no lines;
//   - colour only says what a word says too, and only on a terminal;
//   - text from the server is cleaned of control characters;
//   - on a terminal a running thing is redrawn in place, elsewhere it is lines;
//   - with --json, Out gets JSON and nothing else.

// tone is how a piece of text is meant.
type tone int

const (
	plain tone = iota
	good
	bad
	warn
	dim
	strong
)

// span is a piece of a line.
type span struct {
	text string
	tone tone
}

// printer writes by the rules.
type printer struct {
	out, err io.Writer
	now      func() time.Time
	asJSON   bool
	color    bool
	width    int // of the terminal; 0 when there is none
	drawn    int // lines that the last draw left
}

func newPrinter(o IO, noColor, asJSON bool) *printer {
	p := &printer{out: o.Out, err: o.Err, now: o.Now, asJSON: asJSON, width: o.Width}
	if f, ok := o.Out.(*os.File); ok && p.width == 0 && term.IsTerminal(int(f.Fd())) {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			p.width = w
		} else {
			p.width = 80
		}
	}
	if o.Getenv("TERM") == "dumb" {
		p.width = 0
	}
	p.color = p.width > 0 && !noColor && o.Getenv("NO_COLOR") == ""
	return p
}

// clean returns s without what a terminal would act on, as one line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, s)
}

// cleanLines returns s without what a terminal would act on; lines stay.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// clip returns s with at most n columns.
func clip(s string, n int) string {
	if n <= 0 || lipgloss.Width(s) <= n {
		return s
	}
	var b strings.Builder
	w := 0
	for _, r := range s {
		if w += lipgloss.Width(string(r)); w > n-1 {
			break
		}
		b.WriteRune(r)
	}
	return b.String() + "…"
}

func (p *printer) paint(s span) string {
	if !p.color || s.text == "" {
		return s.text
	}
	st := lipgloss.NewStyle()
	switch s.tone {
	case good:
		st = st.Foreground(lipgloss.Green)
	case bad:
		st = st.Foreground(lipgloss.Red).Bold(true)
	case warn:
		st = st.Foreground(lipgloss.Yellow)
	case dim:
		st = st.Faint(true)
	case strong:
		st = st.Bold(true)
	default:
		return s.text
	}
	return st.Render(s.text)
}

// line returns the spans as one line that fits the terminal.
func (p *printer) line(spans ...span) string {
	var b strings.Builder
	room := p.width
	for _, s := range spans {
		text := clean(s.text)
		if p.width > 0 {
			if room <= 0 {
				break
			}
			text = clip(text, room)
			room -= lipgloss.Width(text)
		}
		b.WriteString(p.paint(span{text, s.tone}))
	}
	return strings.TrimRight(b.String(), " ")
}

// say writes one line to Out.
func (p *printer) say(spans ...span) { _, _ = fmt.Fprintln(p.out, p.line(spans...)) }

// text writes one line of plain text to Out, however long it is.
func (p *printer) text(s string) { _, _ = fmt.Fprintln(p.out, clean(s)) }

// remark writes one line to Err.
func (p *printer) remark(s string) { _, _ = fmt.Fprintln(p.err, clean(s)) }

// next writes the next step to Err.
func (p *printer) next(s string) { p.remark("next: " + s) }

// encode writes v to Out as JSON.
func (p *printer) encode(v any) error {
	e := json.NewEncoder(p.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// compact writes v to Out as one line of JSON.
func (p *printer) compact(v any) error {
	e := json.NewEncoder(p.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes rows under a header. An empty cell is shown as "-".
func (p *printer) table(header []string, rows [][]span) {
	widths := make([]int, len(header))
	for i, h := range header {
		widths[i] = lipgloss.Width(h)
	}
	for _, r := range rows {
		for i := range r {
			if r[i].text = clean(r[i].text); r[i].text == "" {
				r[i] = span{"-", dim}
			}
			widths[i] = max(widths[i], lipgloss.Width(r[i].text))
		}
	}
	put := func(r []span) {
		var spans []span
		for i, c := range r {
			pad := ""
			if i < len(r)-1 {
				pad = strings.Repeat(" ", widths[i]-lipgloss.Width(c.text)+2)
			}
			spans = append(spans, c, span{pad, plain})
		}
		p.say(spans...)
	}
	head := make([]span, len(header))
	for i, h := range header {
		head[i] = span{h, dim}
	}
	put(head)
	for _, r := range rows {
		put(r)
	}
}

// draw shows lines in the place of those it showed before; only on a terminal.
func (p *printer) draw(lines []string) {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", p.drawn)
	}
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	p.drawn = len(lines)
	_, _ = io.WriteString(p.out, b.String())
}

// long returns a length of time for people: 1.2s, 14m, 3h 20m, 2d.
func long(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 24*time.Hour:
		if m := int(d.Minutes()) % 60; m != 0 {
			return fmt.Sprintf("%dh %dm", int(d.Hours()), m)
		}
		return strconv.Itoa(int(d.Hours())) + "h"
	}
	return strconv.Itoa(int(d.Hours()/24)) + "d"
}

// ago returns how long t is past, or in how long it comes; "" for no time.
func (p *printer) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	switch d := p.now().Sub(t); {
	case d < -time.Second:
		return "in " + long((-d).Round(time.Second))
	case d < time.Second:
		return "now"
	default:
		return long(d.Round(time.Second)) + " ago"
	}
}

// count returns n with thousands apart: 12,345.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// things returns "1 hold" or "3 holds".
func things(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(int64(n)) + " " + one + "s"
}

// version returns "v7", or "" for none.
func version(n int64) string {
	if n == 0 {
		return ""
	}
	return "v" + strconv.FormatInt(n, 10)
}

func healthTone(h string) tone {
	switch h {
	case api.HealthOK:
		return good
	case api.HealthFailing:
		return bad
	case api.HealthUnverified:
		return warn
	}
	return dim
}

// title says what a rotation replaces.
func (p *printer) title(r api.Rotation) []span {
	what := version(r.From) + " → " + version(r.To)
	switch {
	case r.From == 0 && r.To == 0:
		what = "first key"
	case r.From == 0:
		what = "first key " + version(r.To)
	case r.To == 0:
		what = version(r.From) + " → a new key"
	}
	by := fmt.Sprintf("  %s, by %s, %s", r.Kind, r.By, p.ago(r.Started))
	if r.Paused {
		by += ", paused"
	}
	return []span{{r.Service + "/" + r.Environment, strong}, {"  " + what, plain}, {by, dim}}
}

// stepSpans is the one line of a step: mark, name, how long it took, and what
// opened its gate or what it waits for.
func stepSpans(r api.Rotation, st api.Step) []span {
	name := fmt.Sprintf(" %-10s ", st.Name)
	switch st.State {
	case api.StepDone:
		took := ""
		if !st.Ended.IsZero() {
			took = long(st.Ended.Sub(st.Started))
		}
		return []span{{"✓", good}, {name, plain}, {fmt.Sprintf("%-7s ", took), dim}, {st.Gate, dim}}
	case api.StepCurrent:
		text, t := "at work", plain
		switch {
		case r.Paused:
			text, t = "paused", warn
		case r.State == "stopped":
			text, t = "stopped: "+r.Why, bad
		case r.Gate.Person && !r.Gate.Open:
			text, t = "waiting for a person: "+r.Gate.Reason, warn
		case !r.Gate.Open && r.Gate.Reason != "":
			text = "waiting: " + r.Gate.Reason
		}
		return []span{{"●", warn}, {name, strong}, {text, t}}
	case api.StepSkipped:
		return []span{{"–" + name, dim}}
	}
	return []span{{"○" + name, dim}}
}

// missing lists who or what the current step waits for.
func missing(r api.Rotation) [][]span {
	if r.Over || r.Gate.Open {
		return nil
	}
	const most = 6
	var out [][]span
	for i, m := range r.Gate.Missing {
		if i == most {
			out = append(out, []span{{fmt.Sprintf("    and %d more", len(r.Gate.Missing)-most), dim}})
			break
		}
		out = append(out, []span{{"    " + m, dim}})
	}
	return out
}

// evidenceSpans says in one line what the versions served.
func evidenceSpans(r api.Rotation) []span {
	var out []span
	for i, u := range r.Evidence {
		if i > 0 {
			out = append(out, span{"   ", plain})
		}
		out = append(out, span{version(u.Version), strong}, span{" " + count(u.Requests) + " requests", plain})
		if u.Auth > 0 {
			out = append(out, span{", " + count(u.Auth) + " refused", bad})
		}
	}
	if r.Answers.Requests > 0 {
		t := dim
		if r.Answers.Refused+r.Answers.Failed > 0 {
			t = bad
		}
		out = append(out, span{"   callers: " + callers(r.Answers), t})
	}
	return out
}

// callers says what callers got: the vendor's answer, its refusal of every key
// that was tried, or an error of Keybaton's own.
func callers(a api.Answers) string {
	return count(a.Requests-a.Refused-a.Failed) + " answered, " + count(a.Refused) + " refused, " + count(a.Failed) + " failed"
}

// rotation returns a rotation as lines.
func (p *printer) rotation(r api.Rotation) []string {
	lines := []string{p.line(p.title(r)...)}
	for _, st := range r.Steps {
		lines = append(lines, p.line(stepSpans(r, st)...))
		if st.State == api.StepCurrent {
			for _, m := range missing(r) {
				lines = append(lines, p.line(m...))
			}
		}
	}
	if e := evidenceSpans(r); len(e) > 0 {
		lines = append(lines, p.line(e...))
	}
	return lines
}
