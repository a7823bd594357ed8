// Package backup is the file of a backup: a dump of a store, encrypted with age
// (https://age-encryption.org/v1) for a passphrase or for recipients. The file
// is either whole and read back, or not there.
//
// What age encrypts is text: one line
//
//	{"keybaton":"backup","format":1,"program":"…","at":"…","source":"…","master_key":"…"}
//
// where master_key is the text of the master key's file and is left out unless
// it was asked for, and then a dump as package dump describes it. So a backup
// can be read without Keybaton: age --decrypt FILE. The format is frozen;
// another one gets another number.
//
// The package leaves to the caller what the rows are, and whether a store may be
// read or filled.
package backup

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store/dump"
	"github.com/keybaton/keybaton/secret"
)

// Format is the number of the format that this program writes.
const Format = 1

const magic = "backup"

// minPassphrase is the least length of a passphrase in bytes: a file can be
// guessed at for as long as somebody likes.
const minPassphrase = 12

// Head is what a backup says before the dump.
type Head struct {
	Program   string       // version of the program that wrote it
	At        time.Time    // when it was begun
	Source    string       // the place of the store; never a password
	MasterKey secret.Value // the text of the master key's file; empty: it is not in the backup
}

// head is the first line. Its master key is what it is in the clear.
type head struct {
	Keybaton  string    `json:"keybaton"`
	Format    int       `json:"format"`
	Program   string    `json:"program"`
	At        time.Time `json:"at"`
	Source    string    `json:"source"`
	MasterKey string    `json:"master_key,omitempty"`
}

// Keys say who can open a backup: whoever knows the passphrase, or whoever has
// the identity of a recipient. A passphrase and recipients exclude each other.
type Keys struct {
	passphrase secret.Value
	recipients []age.Recipient
	identities []age.Identity
}

// Passphrase returns the keys of a backup that a passphrase opens, or
// [key.ErrInvalid] for one that could be guessed.
func Passphrase(v secret.Value) (Keys, error) {
	if v.Len() < minPassphrase {
		return Keys{}, key.WithHint(fmt.Errorf("%w: the passphrase is too short: whoever has the file could guess it", key.ErrInvalid),
			fmt.Sprintf("take at least %d characters: several words that do not belong together", minPassphrase))
	}
	return Keys{passphrase: v}, nil
}

// KnownPassphrase returns the keys that open a backup that has the passphrase v.
func KnownPassphrase(v secret.Value) Keys { return Keys{passphrase: v} }

// Recipients returns the keys of a backup for the recipients of texts: age1…,
// one a line, lines that begin with "#" aside.
func Recipients(texts ...string) (Keys, error) {
	var k Keys
	for _, t := range texts {
		rs, err := age.ParseRecipients(strings.NewReader(t + "\n"))
		if err != nil {
			return Keys{}, key.WithHint(fmt.Errorf("%w: that is not a recipient of age", key.ErrInvalid), "give what age-keygen printed as the public key: age1…")
		}
		k.recipients = append(k.recipients, rs...)
	}
	return k, nil
}

// Identities returns the keys that open a backup for recipients: the content of
// a file that age-keygen made.
func Identities(v secret.Value) (Keys, error) {
	b := v.Reveal()
	defer clear(b)
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil { // its text may repeat a line
		return Keys{}, key.WithHint(fmt.Errorf("%w: the file holds no identity of age", key.ErrInvalid), "name the file that age-keygen made")
	}
	return Keys{identities: ids}, nil
}

// With returns k with the identities of o added, by which what is written for
// recipients can be read back.
func (k Keys) With(o Keys) Keys {
	k.identities = append(slices.Clone(k.identities), o.identities...)
	return k
}

// Opens reports whether k can open something, as opposed to only write it.
func (k Keys) Opens() bool { return !k.passphrase.IsZero() || len(k.identities) > 0 }

func (k Keys) encrypt() ([]age.Recipient, error) {
	if k.passphrase.IsZero() {
		if len(k.recipients) == 0 {
			return nil, fmt.Errorf("%w: a backup is for nobody", key.ErrInvalid)
		}
		return k.recipients, nil
	}
	b := k.passphrase.Reveal()
	defer clear(b)
	r, err := age.NewScryptRecipient(string(b))
	return []age.Recipient{r}, err
}

func (k Keys) decrypt() ([]age.Identity, error) {
	if k.passphrase.IsZero() {
		return k.identities, nil
	}
	b := k.passphrase.Reveal()
	defer clear(b)
	id, err := age.NewScryptIdentity(string(b))
	return []age.Identity{id}, err
}

// Reader reads one backup. It is for one goroutine.
type Reader struct {
	Head Head
	f    *os.File
	r    *bufio.Reader
}

// Open opens the backup in the file at path. What is none, or does not open with
// k, is [key.ErrInvalid], a newer format [key.ErrNewer].
func Open(path string, k Keys) (*Reader, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, key.WithHint(fmt.Errorf("the backup %s: %w", path, key.ErrNotFound), "name the file of the backup")
	}
	if err != nil {
		return nil, key.WithHint(fmt.Errorf("opening the backup: %w", err), "make the file readable for this user")
	}
	r, err := open(f, k)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("the backup %s: %w", path, err)
	}
	return r, nil
}

func open(f *os.File, k Keys) (*Reader, error) {
	ids, err := k.decrypt()
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, key.WithHint(fmt.Errorf("%w: there is nothing to open it with", key.ErrInvalid), "give the passphrase, or --identity FILE")
	}
	plain, err := age.Decrypt(bufio.NewReader(f), ids...)
	if err != nil {
		return nil, unopened(err, k)
	}
	r := &Reader{f: f, r: bufio.NewReaderSize(plain, 64<<10)}
	line, err := r.r.ReadSlice('\n')
	if err != nil {
		return nil, damaged(err)
	}
	defer clear(line)
	var h head
	if json.Unmarshal(line, &h) != nil || h.Keybaton != magic || h.Format < 1 {
		return nil, key.WithHint(fmt.Errorf("%w: it opens, but it is no backup of Keybaton", key.ErrInvalid), "name the file that keybaton backup wrote")
	}
	if h.Format > Format {
		return nil, key.WithHint(fmt.Errorf("%w: the backup has format %d, this program knows %d", key.ErrNewer, h.Format, Format),
			"use keybaton "+h.Program+" or a newer one")
	}
	r.Head = Head{Program: h.Program, At: h.At, Source: h.Source, MasterKey: secret.FromString(h.MasterKey)}
	return r, nil
}

// unopened says why age did not open a file.
func unopened(err error, k Keys) error {
	var no *age.NoIdentityMatchError
	if !errors.As(err, &no) {
		return key.WithHint(fmt.Errorf("%w: it is no backup of Keybaton, or its beginning is damaged: %w", key.ErrInvalid, err),
			"name the file that keybaton backup wrote, or take another copy of it")
	}
	forPassphrase := slices.Contains(no.StanzaTypes, "scrypt")
	switch {
	case forPassphrase && k.passphrase.IsZero():
		return key.WithHint(fmt.Errorf("%w: it opens with a passphrase, not with an identity", key.ErrInvalid), "leave out --identity, and give the passphrase")
	case forPassphrase:
		return key.WithHint(fmt.Errorf("%w: the passphrase is wrong", key.ErrInvalid), "try again with the passphrase that it was made with; nothing was changed")
	case !k.passphrase.IsZero():
		return key.WithHint(fmt.Errorf("%w: it opens with an identity of age, not with a passphrase", key.ErrInvalid), "name the file that age-keygen made: --identity FILE")
	}
	return key.WithHint(fmt.Errorf("%w: it was made for other recipients", key.ErrInvalid), "name the identity of one of its recipients: --identity FILE; nothing was changed")
}

// damaged says that the encrypted text cannot be read on.
func damaged(err error) error {
	what := "it is damaged"
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		what = "it is cut off"
	}
	return key.WithHint(fmt.Errorf("%w: %s: %w", key.ErrInvalid, what, err), anotherCopy)
}

const anotherCopy = "take another copy of it, or an older backup; nothing was changed"

// Dump returns what reads the dump, once.
func (r *Reader) Dump() io.Reader { return r.r }

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }

// Check reads the dump to its end and proves that it is whole. It calls row,
// which may be nil, for each row.
func (r *Reader) Check(row func(dump.Table, []any)) (dump.Manifest, error) {
	d, err := dump.NewReader(r.r)
	if err != nil {
		return dump.Manifest{}, key.WithHint(err, anotherCopy)
	}
	for {
		i, values, err := d.Next()
		if err == io.EOF { //nolint:errorlint // Next returns it as it is
			m, _ := d.Manifest()
			return m, nil
		}
		if err != nil {
			return dump.Manifest{}, key.WithHint(err, anotherCopy)
		}
		if row != nil {
			row(d.Header().Tables[i], values)
		}
	}
}
