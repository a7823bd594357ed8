// Package secret holds plaintext so that it cannot be printed, logged or
// encoded by accident.
//
// A [Value] refuses every formatter and encoder of the standard library; what
// comes out is the word "[secret]" or an error. [Exposed] is the one form that
// can be encoded, for the few places where a key must cross a wire on purpose.
// [Box] is the authenticated encryption that the store and the sealed caches
// share. The package keeps no global state and starts no goroutine.
//
// Clearing memory is not promised: the garbage collector copies. What is
// promised is that no log line, error text, metric or encoder shows a Value.
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
)

// redacted is what a Value prints as, whatever the verb.
const redacted = "[secret]"

// ErrEncode is returned by every encoder that meets a Value.
var ErrEncode = errors.New("secret: a value cannot be encoded; use secret.Expose where it must cross a wire")

// Value is plaintext that cannot be printed or encoded. The zero Value is
// empty. Values are immutable and safe for concurrent use. They do not compare
// with ==; use [Value.Equal].
//
// NOTE: the bytes sit behind a function on purpose. fmt and reflection print
// unexported byte slices, but never call a function.
type Value struct{ reveal func() []byte }

// New returns a Value with a copy of b; the caller may clear b afterwards.
func New(b []byte) Value {
	if len(b) == 0 {
		return Value{}
	}
	c := slices.Clone(b)
	return Value{reveal: func() []byte { return c }}
}

// FromString returns a Value of s.
func FromString(s string) Value { return New([]byte(s)) }

// Reveal returns a copy of the plaintext, owned by the caller. Only the rooms
// in the calls table of ARCHITECTURE.md may call it.
func (v Value) Reveal() []byte {
	if v.reveal == nil {
		return nil
	}
	return slices.Clone(v.reveal())
}

// Len returns the length of the plaintext in bytes.
func (v Value) Len() int {
	if v.reveal == nil {
		return 0
	}
	return len(v.reveal())
}

// IsZero reports whether v is empty.
func (v Value) IsZero() bool { return v.Len() == 0 }

// Equal reports whether v and w hold the same bytes, in constant time for
// equal lengths.
func (v Value) Equal(w Value) bool {
	if v.Len() != w.Len() {
		return false
	}
	if v.Len() == 0 {
		return true
	}
	return subtle.ConstantTimeCompare(v.reveal(), w.reveal()) == 1
}

// Format prints "[secret]" for every verb.
func (v Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String returns "[secret]".
func (v Value) String() string { return redacted }

// LogValue returns "[secret]".
func (v Value) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText always fails with [ErrEncode].
func (v Value) MarshalText() ([]byte, error) { return nil, ErrEncode }

// MarshalJSON always fails with [ErrEncode].
func (v Value) MarshalJSON() ([]byte, error) { return nil, ErrEncode }

// GobEncode always fails with [ErrEncode].
func (v Value) GobEncode() ([]byte, error) { return nil, ErrEncode }

// Parts are the named parts of one key: "key" for most vendors, or "user" and
// "password", "id" and "secret". All parts of a key travel and swap together.
type Parts map[string]Value

// Names returns the names of the parts, sorted.
func (p Parts) Names() []string { return slices.Sorted(maps.Keys(p)) }

// Equal reports whether p and q have the same names and values.
func (p Parts) Equal(q Parts) bool {
	if len(p) != len(q) {
		return false
	}
	for n, v := range p {
		w, ok := q[n]
		if !ok || !v.Equal(w) {
			return false
		}
	}
	return true
}

// Clone returns a copy of p; the values are shared, as they are immutable.
func (p Parts) Clone() Parts { return maps.Clone(p) }

// Exposed is a Value that encodes as text. It exists so that the few types
// that carry a key over a wire say so in their fields. It still prints as
// "[secret]".
type Exposed struct{ v Value }

// Expose marks v as allowed to be encoded.
func Expose(v Value) Exposed { return Exposed{v: v} }

// Value returns the value that e carries.
func (e Exposed) Value() Value { return e.v }

// IsZero reports whether e is empty; encoding/json honours it for omitzero.
func (e Exposed) IsZero() bool { return e.v.IsZero() }

// Format prints "[secret]" for every verb.
func (e Exposed) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns "[secret]".
func (e Exposed) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns the plaintext.
func (e Exposed) MarshalText() ([]byte, error) { return e.v.Reveal(), nil }

// UnmarshalText takes the plaintext from b.
func (e *Exposed) UnmarshalText(b []byte) error {
	e.v = New(b)
	return nil
}

// ExposeParts marks every part of p as allowed to be encoded.
func ExposeParts(p Parts) map[string]Exposed {
	m := make(map[string]Exposed, len(p))
	for n, v := range p {
		m[n] = Expose(v)
	}
	return m
}

// PartsOf returns the parts that m carries.
func PartsOf(m map[string]Exposed) Parts {
	p := make(Parts, len(m))
	for n, e := range m {
		p[n] = e.v
	}
	return p
}
