package spec

import (
	"crypto/rand"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/secret"
)

// Make returns a new secret with at least one character of each class.
func (g generate) Make(random func([]byte)) secret.Value {
	if random == nil {
		random = SystemRandom
	}
	all := ""
	for _, c := range g.classes {
		all += alphabets[c]
	}
	pick := func(from string) byte { return from[below(random, len(from))] }
	out := make([]byte, g.length)
	for {
		for i := range out {
			out[i] = pick(all)
		}
		// Drawing again until every class is there keeps all such secrets
		// equally likely; with 16 characters and more it is rarely needed.
		if !slices.ContainsFunc(g.classes, func(c string) bool { return !strings.ContainsAny(string(out), alphabets[c]) }) {
			return secret.New(out)
		}
	}
}

// SystemRandom fills b; it never fails: crypto/rand ends the program instead.
func SystemRandom(b []byte) { _, _ = rand.Read(b) }

// below returns an unbiased random number in [0, n), n ≤ 256.
func below(random func([]byte), n int) int {
	var b [1]byte
	for {
		random(b[:])
		if int(b[0]) < 256-256%n {
			return int(b[0]) % n
		}
	}
}
