// Package seal is the envelope encryption of stored keys. A master key, kept
// in a file of its own and never beside the data, wraps one data key for each
// environment; a data key seals the parts of each version.
//
// What is sealed is bound to the credential and the version it belongs to:
// sealed bytes that were moved to another row do not open. Every format is
// frozen and numbered, so that what was sealed once opens for ever.
//
// The package leaves to the caller where wrapped data keys are stored (see
// [KeySource]), and what becomes of the opened parts.
package seal

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// canary names the data key that seals nothing: it exists from the first
// [Keyring.Check] on, so that a wrong master key is found at the start, and
// not by the first request.
const canary = "canary/1"

// fingerprintBytes is how much of the keyed hash a fingerprint shows: enough
// that two keys never share one by chance, and nothing to guess a key from.
const fingerprintBytes = 10

// KeySource is where wrapped data keys are kept. It is safe for concurrent
// use.
type KeySource interface {
	// DataKeys returns every wrapped data key by name.
	DataKeys(ctx context.Context) (map[string][]byte, error)
	// PutDataKey stores a new one durably, or fails with [key.ErrExists].
	PutDataKey(ctx context.Context, name string, wrapped []byte) error
}

// Keyring seals and opens. It is safe for concurrent use. Unwrapped data keys
// stay in memory for as long as the Keyring lives.
type Keyring struct {
	source KeySource
	path   string      // of the master key, for error texts
	wrap   *secret.Box // seals data keys
	print  []byte      // key of the fingerprints

	mu    sync.Mutex // one unwrapping or creation at a time
	boxes atomic.Pointer[map[string]*secret.Box]
}

// New returns a Keyring whose data keys come from source, wrapped by master.
// It does not call source; [Keyring.Check] does. Both must be non-nil.
func New(master *Master, source KeySource) *Keyring {
	k := &Keyring{source: source, path: master.path}
	m := master.reveal()
	k.print = derive(m, "keybaton/fingerprint/1")
	k.wrap = newBox(derive(m, "keybaton/wrap/1"))
	clear(m)
	k.boxes.Store(&map[string]*secret.Box{})
	return k
}

// derive returns the key for one purpose (HKDF-SHA-256, RFC 5869). The
// purposes are frozen.
func derive(master []byte, purpose string) []byte {
	d, err := hkdf.Key(sha256.New, master, nil, purpose, secret.KeySize)
	if err != nil {
		panic("seal: " + err.Error()) // only for a length that HKDF cannot give
	}
	return d
}

// newBox returns the box of a key that has the right length by construction.
func newBox(k []byte) *secret.Box {
	b, err := secret.NewBox(k)
	if err != nil {
		panic("seal: " + err.Error())
	}
	return b
}

// Check proves that the master key unwraps every data key of the store. It is
// called at the start; on a store without data keys it leaves a first one, so
// that another master key is noticed from then on. Its error names the file
// and the next step.
func (k *Keyring) Check(ctx context.Context) error {
	wrapped, err := k.source.DataKeys(ctx)
	if err != nil {
		return fmt.Errorf("reading the data keys: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(wrapped)) {
		if _, err := k.unwrap(name, wrapped[name]); err != nil {
			return err
		}
	}
	if len(wrapped) > 0 {
		return nil
	}
	_, err = k.box(ctx, canary, true)
	return err
}

// Seal encrypts p for the version at, under the data key of its environment,
// which is made on first use. The fingerprint is the same for the same parts
// wherever they are sealed under this master key, and tells nothing of them.
//
// It may write a data key through the KeySource: it must not be called inside
// a transaction of the same store.
func (k *Keyring) Seal(ctx context.Context, at key.VersionID, p secret.Parts) (key.Sealed, string, error) {
	if len(p) == 0 {
		return key.Sealed{}, "", fmt.Errorf("sealing %s: %w: a key has at least one part", at, key.ErrInvalid)
	}
	name := "env/" + at.Credential.Environment + "/1"
	b, err := k.box(ctx, name, true)
	if err != nil {
		return key.Sealed{}, "", fmt.Errorf("sealing %s: %w", at, err)
	}
	plain := encode(p)
	defer clear(plain)
	return key.SealedFrom(name, b.Seal(place(at), plain)), k.fingerprint(plain), nil
}

// Fingerprint returns what [Keyring.Seal] would return for p, without sealing.
func (k *Keyring) Fingerprint(p secret.Parts) string {
	plain := encode(p)
	defer clear(plain)
	return k.fingerprint(plain)
}

func (k *Keyring) fingerprint(plain []byte) string {
	h := hmac.New(sha256.New, k.print)
	h.Write(plain)
	return hex.EncodeToString(h.Sum(nil)[:fingerprintBytes])
}

// Open decrypts what was sealed for the version at. It fails with
// [secret.ErrOpen] for bytes that were damaged or belong to another version.
// It blocks on the KeySource only for a data key not seen before.
func (k *Keyring) Open(ctx context.Context, at key.VersionID, s key.Sealed) (secret.Parts, error) {
	if s.IsZero() {
		return nil, fmt.Errorf("opening %s: %w: nothing is sealed there", at, key.ErrNotFound)
	}
	b, ok := (*k.boxes.Load())[s.DataKey()]
	if !ok {
		var err error
		if b, err = k.box(ctx, s.DataKey(), false); err != nil {
			return nil, fmt.Errorf("opening %s: %w", at, err)
		}
	}
	plain, err := b.Open(place(at), s.Box())
	if err != nil {
		return nil, key.WithHint(fmt.Errorf("opening %s: %w", at, err),
			"the stored key was damaged or moved; set the key anew, or restore a backup")
	}
	defer clear(plain)
	p, err := decode(plain)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", at, err)
	}
	return p, nil
}

// place is what a sealed version is bound to. It is frozen.
func place(at key.VersionID) string {
	return "keybaton/version/1|" + at.Credential.Service + "|" + at.Credential.Environment + "|" + strconv.FormatInt(int64(at.Number), 10)
}

// wrapPlace is what a wrapped data key is bound to. It is frozen.
func wrapPlace(name string) string { return "keybaton/datakey/1|" + name }

// box returns the data key named name, unwrapping it, or making it when create
// is set and there is none.
func (k *Keyring) box(ctx context.Context, name string, create bool) (*secret.Box, error) {
	if b, ok := (*k.boxes.Load())[name]; ok {
		return b, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		if b, ok := (*k.boxes.Load())[name]; ok {
			return b, nil
		}
		wrapped, err := k.source.DataKeys(ctx)
		if err != nil {
			return nil, fmt.Errorf("reading the data keys: %w", err)
		}
		if w, ok := wrapped[name]; ok {
			b, err := k.unwrap(name, w)
			if err != nil {
				return nil, err
			}
			k.keep(name, b)
			return b, nil
		}
		if !create {
			return nil, key.WithHint(fmt.Errorf("data key %q: %w", name, key.ErrNotFound),
				"restore a backup that has it, or set the keys of this environment anew")
		}
		// A store whose data keys do not open with this master key gets no
		// further one: half of it would be lost with either file.
		for n, w := range wrapped {
			if _, err := k.unwrap(n, w); err != nil {
				return nil, err
			}
		}
		fresh := make([]byte, secret.KeySize)
		_, _ = rand.Read(fresh) // never fails: crypto/rand crashes the program instead
		b := newBox(fresh)
		err = k.source.PutDataKey(ctx, name, k.wrap.Seal(wrapPlace(name), fresh))
		clear(fresh)
		if errors.Is(err, key.ErrExists) {
			continue // another server was faster: its key counts
		}
		if err != nil {
			return nil, fmt.Errorf("storing data key %q: %w", name, err)
		}
		k.keep(name, b)
		return b, nil
	}
}

// keep remembers b; mu is held.
func (k *Keyring) keep(name string, b *secret.Box) {
	m := maps.Clone(*k.boxes.Load())
	m[name] = b
	k.boxes.Store(&m)
}

func (k *Keyring) unwrap(name string, wrapped []byte) (*secret.Box, error) {
	raw, err := k.wrap.Open(wrapPlace(name), wrapped)
	if err != nil {
		return nil, key.WithHint(fmt.Errorf("the master key in %s is not the one of this store: %w: data key %q does not open with it", k.path, key.ErrConflict, name),
			"put the master key file that belongs to this store back in its place, or restore it from a backup; without it the stored keys cannot be read")
	}
	defer clear(raw)
	b, err := secret.NewBox(raw)
	if err != nil {
		return nil, fmt.Errorf("data key %q: %w", name, err)
	}
	return b, nil
}
