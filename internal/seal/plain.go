package seal

import (
	"encoding/binary"
	"errors"

	"github.com/keybaton/keybaton/secret"
)

// plainFormat is the first byte of the plain form. It is frozen; another form
// gets another number.
const plainFormat = 1

var errPlain = errors.New("the opened bytes are not the parts of a key")

// encode returns the plain form of p: the format byte, the number of parts,
// then for each part, by name, its name and its value, each behind its length.
// Numbers are 32 bits, big-endian. The same parts always give the same bytes.
func encode(p secret.Parts) []byte {
	names := p.Names()
	n := 1 + 4
	for _, name := range names {
		n += 4 + len(name) + 4 + p[name].Len()
	}
	out := append(make([]byte, 0, n), plainFormat)
	out = binary.BigEndian.AppendUint32(out, uint32(len(names)))
	for _, name := range names {
		v := p[name].Reveal()
		out = binary.BigEndian.AppendUint32(out, uint32(len(name)))
		out = append(out, name...)
		out = binary.BigEndian.AppendUint32(out, uint32(len(v)))
		out = append(out, v...)
		clear(v)
	}
	return out
}

// decode is the reverse of encode. It accepts nothing that encode does not
// make, and keeps no reference to b.
func decode(b []byte) (secret.Parts, error) {
	if len(b) < 5 || b[0] != plainFormat {
		return nil, errPlain
	}
	count := binary.BigEndian.Uint32(b[1:])
	b = b[5:]
	if count == 0 || uint64(count) > uint64(len(b)) {
		return nil, errPlain
	}
	p := make(secret.Parts, count)
	last := ""
	for i := range count {
		name, rest, ok := field(b)
		if !ok || (i > 0 && string(name) <= last) {
			return nil, errPlain
		}
		value, rest, ok := field(rest)
		if !ok {
			return nil, errPlain
		}
		last = string(name)
		p[last] = secret.New(value)
		b = rest
	}
	if len(b) != 0 {
		return nil, errPlain
	}
	return p, nil
}

func field(b []byte) (f, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}
