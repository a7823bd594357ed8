package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"
)

// format begins everything that is hashed. It must not change; another encoding
// gets another text.
const format = "keybaton audit 1\n"

// Chain returns e as it is appended after prev (zero: as the first of all): with
// its Seq, Prev and Hash, its time in whole milliseconds UTC, and its texts
// as valid UTF-8, so that what is read back from a store hashes the same. The
// detail of the result is a copy.
func Chain(prev Head, e Entry) Entry {
	e.Seq, e.Prev = prev.Seq+1, prev.Hash
	e.At = time.UnixMilli(e.At.UnixMilli()).UTC()
	for _, s := range []*string{&e.Actor, &e.Action, &e.Credential.Service, &e.Credential.Environment, &e.Rotation} {
		*s = clean(*s)
	}
	var detail map[string]string
	if len(e.Detail) > 0 {
		detail = make(map[string]string, len(e.Detail))
		for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
			detail[clean(k)] = clean(e.Detail[k])
		}
	}
	e.Detail = detail
	e.Hash = Hash(e)
	return e
}

// Head returns the head of a chain that ends with e.
func (e Entry) Head() Head { return Head{Seq: e.Seq, Hash: e.Hash} }

// Hash returns the hex SHA-256 of everything in e but its Hash. The encoding
// is frozen: numbers as 8 bytes, big-endian; texts with their length before
// them; the fields in the order of [Entry]; the time as Unix milliseconds; the
// detail as the number of its pairs, then the pairs sorted by name.
func Hash(e Entry) string {
	b := []byte(format)
	number := func(n int64) { b = binary.BigEndian.AppendUint64(b, uint64(n)) }
	text := func(s string) {
		number(int64(len(s)))
		b = append(b, s...)
	}
	number(e.Seq)
	number(e.At.UnixMilli())
	text(e.Actor)
	text(e.Action)
	text(e.Credential.Service)
	text(e.Credential.Environment)
	number(int64(e.Version))
	text(e.Rotation)
	number(int64(len(e.Detail)))
	for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
		text(k)
		text(e.Detail[k])
	}
	text(e.Prev)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// clean replaces what is not UTF-8, and NUL, which some databases refuse.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
