package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
)

// KeySize is the length of a Box key in bytes (AES-256).
const KeySize = 32

// boxFormat is the first byte of everything a Box seals. It must not change;
// another format gets another number.
const boxFormat = 1

// ErrOpen is returned when a box does not open: another key, another place,
// or damaged bytes. It says nothing about which.
var ErrOpen = errors.New("secret: the box does not open with this key at this place")

// Box seals bytes with AES-256-GCM under one key. The format is one byte of
// format number, a random nonce of 12 bytes, and the ciphertext with its tag.
// A Box is safe for concurrent use. One key should seal fewer than 2³² boxes
// (NIST SP 800-38D §8.3, random nonces).
type Box struct{ aead cipher.AEAD }

// NewBox returns a Box for key, which must be [KeySize] bytes; it is copied.
func NewBox(key []byte) (*Box, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("secret: a box key has %d bytes, not %d", KeySize, len(key))
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		return nil, err
	}
	return &Box{aead: g}, nil
}

// Seal encrypts plain and binds it to place: it opens only with the same
// place, so that sealed rows cannot be swapped.
func (b *Box) Seal(place string, plain []byte) []byte {
	out := make([]byte, 1+b.aead.NonceSize(), 1+b.aead.NonceSize()+len(plain)+b.aead.Overhead())
	out[0] = boxFormat
	_, _ = rand.Read(out[1:]) // never fails: crypto/rand crashes the program instead
	return b.aead.Seal(out, out[1:], plain, []byte(place))
}

// Open decrypts what Seal made for the same place, or returns [ErrOpen].
func (b *Box) Open(place string, sealed []byte) ([]byte, error) {
	n := b.aead.NonceSize()
	if len(sealed) < 1+n+b.aead.Overhead() || sealed[0] != boxFormat {
		return nil, ErrOpen
	}
	p, err := b.aead.Open(nil, sealed[1:1+n], sealed[1+n:], []byte(place))
	if err != nil {
		return nil, ErrOpen
	}
	return p, nil
}
