package link

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// A cache file is one line, "keybaton-cache N", and a sealed box. N is the
// format; it grows when older programs could not read it.
const (
	cacheMagic  = "keybaton-cache "
	cacheFormat = 1
)

var errCache = errors.New("the cache does not open: damaged, or sealed with another key or for another consumer")

// kept is what a cache holds.
type kept struct {
	Boot     string   `json:"boot"`               // of the process that wrote it
	Replaced []string `json:"replaced,omitempty"` // boots before it that the server may still count
	Frame    Frame    `json:"frame"`
}

// cache is the sealed file that the last frame is kept in.
type cache struct {
	path  string
	place string
	box   *secret.Box
}

func newCache(path string, k secret.Value, consumer string) (*cache, error) {
	raw := k.Reveal()
	defer clear(raw)
	box, err := secret.NewBox(raw)
	if err != nil {
		return nil, key.WithHint(fmt.Errorf("%w: the key of the cache %s: %w", key.ErrInvalid, path, err), "name a file for the cache key")
	}
	return &cache{path: path, place: "keybaton/link-cache/1|" + consumer, box: box}, nil
}

// lock takes the cache for this process alone, for as long as it lives. The
// lock is the proof that the process before is gone.
func (c *cache) lock() (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return nil, key.WithHint(fmt.Errorf("creating the directory of the cache: %w", err), "make it writable, or name another cache file")
	}
	f, err := os.OpenFile(c.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, key.WithHint(fmt.Errorf("locking the cache: %w", err), "make the directory writable, or name another cache file")
	}
	if err := lockFile(f); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, errLocked) {
			return nil, key.WithHint(fmt.Errorf("the cache %s: %w", c.path, key.ErrLocked), "stop the other process, or give this one a cache file of its own")
		}
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	return func() { _ = f.Close() }, nil // closing releases the lock
}

// load returns what the process before left; nothing when there is no file.
func (c *cache) load() (kept, error) {
	b, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return kept{}, nil
	}
	if err != nil {
		return kept{}, fmt.Errorf("reading the cache: %w", err)
	}
	head, sealed, ok := bytes.Cut(b, []byte("\n"))
	num, isCache := bytes.CutPrefix(head, []byte(cacheMagic))
	format, err := strconv.Atoi(string(num))
	if !ok || !isCache || err != nil || format < 1 {
		return kept{}, errCache
	}
	if format > cacheFormat {
		return kept{}, key.WithHint(fmt.Errorf("the cache %s has format %d: %w", c.path, format, key.ErrNewer),
			"run the newer keybaton, or name another cache file")
	}
	plain, err := c.box.Open(c.place, sealed)
	if err != nil {
		return kept{}, errCache
	}
	defer clear(plain)
	var k kept
	if json.Unmarshal(plain, &k) != nil {
		return kept{}, errCache
	}
	return k, nil
}

// save writes k so that the file is either the old one or the new one, whole,
// and durable when save returns.
func (c *cache) save(k kept) error {
	plain, err := json.Marshal(k)
	if err != nil {
		return err
	}
	defer clear(plain)
	head := cacheMagic + strconv.Itoa(cacheFormat) + "\n"
	if err := writeFile(c.path, []byte(head), c.box.Seal(c.place, plain)); err != nil {
		return fmt.Errorf("writing the cache: %w", err)
	}
	return nil
}

// writeFile replaces path by a file of mode 0600 that is whole and durable.
func writeFile(path string, content ...[]byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	for _, part := range content {
		if err == nil {
			_, err = f.Write(part)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// LoadOrCreateCacheKey reads the key of a cache from the file at path, 32 bytes
// readable by their owner alone, or makes one. Losing it loses the cache and
// nothing else.
func LoadOrCreateCacheKey(path string) (secret.Value, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw := make([]byte, secret.KeySize)
		defer clear(raw)
		_, _ = rand.Read(raw) // never fails
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return secret.Value{}, fmt.Errorf("creating the cache key: %w", err)
		}
		if err := writeFile(path, raw); err != nil {
			return secret.Value{}, fmt.Errorf("creating the cache key: %w", err)
		}
		return secret.New(raw), nil
	}
	if err != nil {
		return secret.Value{}, fmt.Errorf("reading the cache key: %w", err)
	}
	if mode := st.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return secret.Value{}, key.WithHint(fmt.Errorf("cache key %s: %w: others may read or change it (mode %04o)", path, key.ErrInvalid, mode), "run chmod 600 "+path)
	}
	raw, err := os.ReadFile(path)
	defer clear(raw)
	if err != nil {
		return secret.Value{}, fmt.Errorf("reading the cache key: %w", err)
	}
	if len(raw) != secret.KeySize {
		return secret.Value{}, key.WithHint(fmt.Errorf("cache key %s: %w: it must hold %d bytes", path, key.ErrInvalid, secret.KeySize), "remove the file and the cache; both are made anew")
	}
	return secret.New(raw), nil
}
