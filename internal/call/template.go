package call

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// template is text with {{part}} in it.
type template []segment

type segment struct {
	text string // literal text, or the name of a part
	part bool
}

func compileTemplate(s string, parts []string) (template, error) {
	var t template
	for s != "" {
		i := strings.Index(s, "{{")
		if i < 0 {
			t = append(t, segment{text: s})
			break
		}
		j := strings.Index(s[i:], "}}")
		if j < 0 {
			return nil, fmt.Errorf("%w: {{ without }}", key.ErrInvalid)
		}
		name := strings.TrimSpace(s[i+2 : i+j])
		if !slices.Contains(parts, name) {
			return nil, fmt.Errorf("%w: {{%s}} is not a part of the key; its parts are %s", key.ErrInvalid, name, strings.Join(parts, ", "))
		}
		if i > 0 {
			t = append(t, segment{text: s[:i]})
		}
		t = append(t, segment{text: name, part: true})
		s = s[i+j+2:]
	}
	return t, nil
}

func (t template) hasPart() bool {
	return slices.ContainsFunc(t, func(s segment) bool { return s.part })
}

func (t template) parts() []string {
	var out []string
	for _, s := range t {
		if s.part && !slices.Contains(out, s.text) {
			out = append(out, s.text)
		}
	}
	return out
}

func (t template) render(p secret.Parts) (string, error) {
	var b strings.Builder
	for _, s := range t {
		if !s.part {
			b.WriteString(s.text)
			continue
		}
		v, ok := p[s.text]
		if !ok || v.IsZero() {
			return "", key.WithHint(fmt.Errorf("%w: the key has no part %s", key.ErrInvalid, s.text), "set the key with all of its parts")
		}
		b.Write(v.Reveal())
	}
	return b.String(), nil
}
