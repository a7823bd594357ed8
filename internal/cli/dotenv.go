package cli

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

// parseEnv reads NAME=value lines: blank lines and comments are skipped,
// "export " is allowed, values may be quoted ('…' as it stands, "…" with \n,
// \t, \", \\ and over several lines) and may end with a # comment after a
// space. Errors name the line, never what stands in it.
func parseEnv(src []byte) ([]client.Variable, error) {
	src = bytes.TrimPrefix(src, []byte("\xef\xbb\xbf"))
	var out []client.Variable
	for line := 1; len(src) > 0; line++ {
		row, rest, _ := bytes.Cut(src, []byte("\n"))
		row = bytes.TrimSpace(row)
		if len(row) == 0 || row[0] == '#' {
			src = rest
			continue
		}
		row = bytes.TrimSpace(bytes.TrimPrefix(row, []byte("export ")))
		name, value, ok := bytes.Cut(row, []byte("="))
		n := string(bytes.TrimSpace(name))
		if !ok || !variable(n) {
			return nil, usage(fmt.Sprintf("line %d is not NAME=value", line), "each line is NAME=value, a comment, or empty")
		}
		value = bytes.TrimSpace(value)
		switch {
		case len(value) > 0 && (value[0] == '\'' || value[0] == '"'):
			// A quoted value may go on over several lines: read it from the source.
			at := bytes.Index(src, []byte("="))
			body := bytes.TrimLeft(src[at+1:], " \t")
			v, used, closed := quoted(body)
			if !closed {
				return nil, usage(fmt.Sprintf("the quote that begins in line %d is never closed", line), "")
			}
			line += bytes.Count(body[:used], []byte("\n"))
			tail, after, _ := bytes.Cut(body[used:], []byte("\n"))
			if tail = bytes.TrimSpace(tail); len(tail) > 0 && tail[0] != '#' {
				return nil, usage(fmt.Sprintf("line %d goes on after the closing quote", line), "")
			}
			out, rest = append(out, client.Variable{Name: n, Value: secret.New(v)}), after
		default:
			if i := bytes.Index(value, []byte(" #")); i >= 0 {
				value = bytes.TrimSpace(value[:i])
			}
			out = append(out, client.Variable{Name: n, Value: secret.New(value)})
		}
		src = rest
	}
	return out, nil
}

// quoted returns the value of the quoted text that b begins with, and how many
// bytes it takes.
func quoted(b []byte) (v []byte, used int, closed bool) {
	q := b[0]
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == q:
			return v, i + 1, true
		case c == '\\' && q == '"' && i+1 < len(b):
			i++
			switch b[i] {
			case 'n':
				v = append(v, '\n')
			case 't':
				v = append(v, '\t')
			case 'r':
				v = append(v, '\r')
			case '"', '\\', '$':
				v = append(v, b[i])
			default:
				v = append(v, '\\', b[i])
			}
		default:
			v = append(v, c)
		}
	}
	return nil, 0, false
}

// variable reports whether s can name an environment variable.
func variable(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 200 && strings.ToValidUTF8(s, "") == s
}
