package demo

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"charm.land/lipgloss/v2"
)

func TestClip(t *testing.T) {
	for _, c := range []struct {
		in   string
		cols int
		want string
	}{
		{"abcdef", 6, "abcdef"},
		{"abcdef", 5, "abcd…"},
		{"\x1b[2mabcdef\x1b[0m", 6, "\x1b[2mabcdef\x1b[0m"},
		{"\x1b[2mabcdef\x1b[0m", 4, "\x1b[2mabc…\x1b[0m"},
		{"ab\x1b[32mcd\x1b[0mef", 3, "ab\x1b[32m…\x1b[0m"},
		{"日本語", 4, "日…"},
	} {
		if got := clip(c.in, c.cols); got != c.want || lipgloss.Width(got) > c.cols {
			t.Errorf("clip(%q, %d) = %q, want %q", c.in, c.cols, got, c.want)
		}
	}
}

// terminal is as much of a terminal as draw uses. Text is broken at the width,
// also what is there already when the width changes.
type terminal struct {
	cols, rows int
	lines      []string // logical, without their breaks
	up         int      // screen rows from the end to the cursor, at the beginning of a row
}

func (m *terminal) Write(p []byte) (int, error) {
	s := string(p)
	for s != "" {
		var n int
		switch {
		case strings.HasPrefix(s, "\x1b[") && s[2] >= '0' && s[2] <= '9':
			var end byte
			if _, err := fmt.Sscanf(s, "\x1b[%d%c", &n, &end); err != nil || end != 'A' {
				return 0, fmt.Errorf("unexpected sequence in %q", s)
			}
			m.up += n
			s = s[strings.IndexByte(s, 'A')+1:]
		case strings.HasPrefix(s, "\r\x1b[J"):
			m.erase()
			s = s[4:]
		default:
			r, size := utf8.DecodeRuneInString(s)
			s = s[size:]
			if m.up != 0 {
				return 0, fmt.Errorf("text is written over text: %q", s)
			}
			if r == '\n' {
				m.lines = append(m.lines, "")
			} else {
				m.lines[len(m.lines)-1] += string(r)
			}
		}
	}
	return len(p), nil
}

// erase removes what is at the cursor and below, by screen rows.
func (m *terminal) erase() {
	rows := m.screen()
	rows = rows[:max(0, len(rows)-1-m.up)]
	m.lines = append(rows, "")
	m.up = 0
}

func (m *terminal) screen() []string {
	var out []string
	for _, l := range m.lines {
		r := []rune(l)
		for len(r) > m.cols {
			out, r = append(out, string(r[:m.cols])), r[m.cols:]
		}
		out = append(out, string(r))
	}
	return out
}

// TestDraw draws blocks of changing height on a terminal of changing size: what
// stands above stays, and of what was drawn before nothing is left.
func TestDraw(t *testing.T) {
	m := &terminal{cols: 80, rows: 24, lines: []string{"above", ""}}
	s := newScreen(Config{Out: m, Size: func() (int, int) { return m.cols, m.rows }})
	for i, c := range []struct{ cols, rows, lines, long int }{
		{80, 24, 8, 200}, {80, 24, 8, 200}, {60, 20, 8, 200}, {30, 20, 7, 200}, {200, 50, 8, 150}, {40, 50, 3, 10}, {40, 5, 8, 100}, {40, 5, 8, 100}, {80, 24, 2, 300},
	} {
		m.cols, m.rows = c.cols, c.rows
		var block []string
		for l := range c.lines {
			block = append(block, fmt.Sprintf("%d.%d ", i, l)+strings.Repeat("x", c.long))
		}
		s.draw(block)
		got := m.screen()
		if got[0] != "above" || got[len(got)-1] != "" {
			t.Fatalf("draw %d: the screen is %q", i, got)
		}
		got = got[1 : len(got)-1]
		if want := min(c.lines, c.rows-1); len(got) != want {
			t.Errorf("draw %d: %d rows are drawn, want %d: %q", i, len(got), want, got)
		}
		for _, l := range got {
			if !strings.HasPrefix(l, fmt.Sprintf("%d.", i)) || len([]rune(l)) >= c.cols {
				t.Errorf("draw %d leaves %q", i, l)
			}
		}
	}
}

// TestLine breaks what is said at words, and leaves it whole off a terminal.
func TestLine(t *testing.T) {
	text := "  Now v3, the primary, is revoked at the vendor behind Keybaton's back."
	var b bytes.Buffer
	newScreen(Config{Out: &b, Size: func() (int, int) { return 40, 20 }}).line(text)
	for l := range strings.Lines(b.String()) {
		if !strings.HasPrefix(l, "  ") || len(l) > 40 {
			t.Errorf("a line of 40 columns: %q", l)
		}
	}
	if strings.Join(strings.Fields(b.String()), " ") != strings.TrimSpace(text) {
		t.Errorf("broken into %q", b.String())
	}
	b.Reset()
	if newScreen(Config{Out: &b}).line(text); b.String() != text+"\n" {
		t.Errorf("off a terminal: %q", b.String())
	}
}
