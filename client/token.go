package client

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"hash/crc32"
	"regexp"
	"strconv"
	"strings"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/secret"
)

// TokenPrefix begins every token of the default shape, so that scanners can
// find one.
const TokenPrefix = "kbt_"

const (
	base62     = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	hexDigits  = "0123456789abcdef"
	randomLen  = 32 // of the default shape: 190 bits
	checkLen   = 6
	minBits    = 128
	maxShape   = 200
	bitsHex    = 4.0
	bitsBase62 = 5.95
)

var shapeRE = regexp.MustCompile(`^([!-z|~]*)\{(hex|base62):([0-9]{1,3})\}([!-z|~]*)$`)

// NewToken makes a token and returns it with its hash (hex SHA-256), which is
// all that a server gets.
//
// With shape "" it is "kbt_", 32 random letters and digits, and 6 that check
// them (see [CheckToken]). For SDKs that insist on a shape of their own, shape
// is text with one place for random digits, such as "AC{hex:32}" or
// "sk_live_{base62:24}"; there must be room for 128 random bits. The error is
// an [*Error] with [api.CodeInvalid].
func NewToken(shape string) (token secret.Value, hash string, err error) {
	text := ""
	if shape == "" {
		r := random(base62, randomLen)
		text = TokenPrefix + r + checksum(r)
	} else {
		m := shapeRE.FindStringSubmatch(shape)
		if m == nil || len(shape) > maxShape {
			return secret.Value{}, "", &Error{Code: api.CodeInvalid, Detail: "a token's shape is text with one {hex:N} or {base62:N} in it", Next: "write it like AC{hex:32} or sk_live_{base62:24}"}
		}
		n, digits, bits := 0, hexDigits, bitsHex
		if n, err = strconv.Atoi(m[3]); err != nil {
			return secret.Value{}, "", &Error{Code: api.CodeInvalid, Detail: "a token's shape has no length", Err: err}
		}
		if m[2] == "base62" {
			digits, bits = base62, bitsBase62
		}
		if float64(n)*bits < minBits {
			return secret.Value{}, "", &Error{Code: api.CodeInvalid, Detail: "a token of this shape could be guessed", Next: "use at least {hex:32} or {base62:22}"}
		}
		text = m[1] + random(digits, n) + m[4]
	}
	sum := sha256.Sum256([]byte(text))
	return secret.FromString(text), hex.EncodeToString(sum[:]), nil
}

// CheckToken reports whether t is damaged: it has the default shape, and its
// last six digits do not check the others. What has another shape cannot be
// told and is not damaged.
func CheckToken(t secret.Value) error {
	r, ok := strings.CutPrefix(string(t.Reveal()), TokenPrefix)
	if !ok {
		return nil
	}
	if n := len(r) - checkLen; n != randomLen || checksum(r[:n]) != r[n:] {
		return &Error{Code: api.CodeInvalid, Detail: "the token is damaged: its last digits do not match the others", Next: "paste it whole, as it was printed"}
	}
	return nil
}

// checksum returns the CRC-32 of s as six base-62 digits.
func checksum(s string) string {
	sum := crc32.ChecksumIEEE([]byte(s))
	var out [checkLen]byte
	for i := checkLen - 1; i >= 0; i-- {
		out[i] = base62[sum%62]
		sum /= 62
	}
	return string(out[:])
}

// random returns n digits, each equally likely.
func random(digits string, n int) string {
	limit := 256 - 256%len(digits)
	out := make([]byte, 0, n)
	var buf [64]byte
	for len(out) < n {
		_, _ = rand.Read(buf[:]) // never fails
		for _, b := range buf {
			if int(b) < limit && len(out) < n {
				out = append(out, digits[int(b)%len(digits)])
			}
		}
	}
	return string(out)
}
