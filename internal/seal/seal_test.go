package seal_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/secret"
)

// memory is a KeySource in memory.
type memory struct {
	mu   sync.Mutex
	keys map[string][]byte
	puts int
	err  error
}

func (m *memory) DataKeys(context.Context) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.keys), m.err
}

func (m *memory) PutDataKey(_ context.Context, name string, wrapped []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[name] != nil {
		return key.ErrExists
	}
	if m.keys == nil {
		m.keys = map[string][]byte{}
	}
	m.keys[name] = wrapped
	m.puts++
	return nil
}

func master(t *testing.T, fill byte) *seal.Master {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	text := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, 32))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := seal.LoadMaster(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func version(s, e string, n key.Number) key.VersionID {
	return key.VersionID{Credential: key.CredentialID{Service: s, Environment: e}, Number: n}
}

func parts(kv ...string) secret.Parts {
	p := secret.Parts{}
	for i := 0; i < len(kv); i += 2 {
		p[kv[i]] = secret.FromString(kv[i+1])
	}
	return p
}

func TestSealThenOpen(t *testing.T) {
	ctx := t.Context()
	src := &memory{}
	k := seal.New(master(t, 1), src)
	for _, p := range []secret.Parts{
		parts("key", "k-1"),
		parts("id", "AC1", "secret", "s\x00\xff\n"),
		parts("key", ""),
		parts("", "odd name"),
		parts("key", strings.Repeat("x", 100_000)),
	} {
		at := version("billing-api", "prod", 7)
		s, fp, err := k.Seal(ctx, at, p)
		if err != nil {
			t.Fatal(err)
		}
		if s.DataKey() != "env/prod/1" || len(fp) != 20 {
			t.Fatalf("data key %q, fingerprint %q", s.DataKey(), fp)
		}
		got, err := k.Open(ctx, at, s)
		if err != nil || !got.Equal(p) {
			t.Fatalf("opened %v, %v", got.Names(), err)
		}
		// Another process, with nothing cached.
		got, err = seal.New(master(t, 1), src).Open(ctx, at, s)
		if err != nil || !got.Equal(p) {
			t.Fatalf("opened by another process: %v, %v", got.Names(), err)
		}
	}
	if src.puts != 1 {
		t.Fatalf("%d data keys were made for one environment", src.puts)
	}
	if _, _, err := k.Seal(ctx, version("a", "dev", 1), nil); !errors.Is(err, key.ErrInvalid) {
		t.Fatalf("sealing nothing: %v", err)
	}
}

func TestSealedBytesOpenOnlyInTheirPlace(t *testing.T) {
	ctx := t.Context()
	k := seal.New(master(t, 1), &memory{})
	home := version("billing-api", "prod", 7)
	s, _, err := k.Seal(ctx, home, parts("key", "k-1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.Seal(ctx, version("billing-api", "dev", 7), parts("key", "k-2")); err != nil {
		t.Fatal(err)
	}
	for _, at := range []key.VersionID{
		version("billing-api", "prod", 8), version("billing-api", "dev", 7), version("billing", "prod", 7),
		version("billing-api|prod", "7", 7), version("", "", 0),
	} {
		if _, err := k.Open(ctx, at, s); !errors.Is(err, secret.ErrOpen) {
			t.Errorf("%s opened as %s: %v", home, at, err)
		}
	}
	if _, err := k.Open(ctx, home, key.SealedFrom("env/dev/1", s.Box())); !errors.Is(err, secret.ErrOpen) {
		t.Errorf("opened under another data key: %v", err)
	}
	if _, err := k.Open(ctx, home, key.SealedFrom("env/none/1", s.Box())); !errors.Is(err, key.ErrNotFound) {
		t.Errorf("unknown data key: %v", err)
	}
	for i := range s.Box() {
		bad := bytes.Clone(s.Box())
		bad[i] ^= 1
		if _, err := k.Open(ctx, home, key.SealedFrom(s.DataKey(), bad)); !errors.Is(err, secret.ErrOpen) {
			t.Fatalf("byte %d changed, and it opened: %v", i, err)
		}
		if _, err := k.Open(ctx, home, key.SealedFrom(s.DataKey(), s.Box()[:i])); err == nil {
			t.Fatalf("cut at %d, and it opened", i)
		}
	}
}

// Swapped data keys do not unwrap: a wrapped key is bound to its name.
func TestDataKeysCannotBeSwapped(t *testing.T) {
	ctx := t.Context()
	src := &memory{}
	k := seal.New(master(t, 1), src)
	for _, env := range []string{"dev", "prod"} {
		if _, _, err := k.Seal(ctx, version("a", env, 1), parts("key", "x")); err != nil {
			t.Fatal(err)
		}
	}
	src.keys["env/dev/1"], src.keys["env/prod/1"] = src.keys["env/prod/1"], src.keys["env/dev/1"]
	if err := seal.New(master(t, 1), src).Check(ctx); err == nil {
		t.Fatal("swapped data keys were accepted")
	}
}

// What these bytes are must never change: stores out there hold them.
func TestFrozenVectors(t *testing.T) {
	const (
		wrapped = "01ba77e75151ee43666fbfd8bbce8037d5fd1cb4a207696e62a28a2627a781604a7e86de6238ae776aa68d21072881c7408d5c93e0ed9e88c7624da9e2"
		box     = "019428710251f2ceb102dd07d37c8f8cc11b78487def860bcb17db49bed14167e638923bfb7e08442c55b3bdc401b5eec2589a8780ec402982b877c34c723af963b7a055f51c"
		print   = "8702fe4ea59d7722a5db"
	)
	raw := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	src := &memory{keys: map[string][]byte{"env/prod/1": raw(wrapped)}}
	k := seal.New(master(t, 42), src)
	at := version("billing-api", "prod", 7)
	want := parts("id", "AC0001", "secret", "frozen")
	got, err := k.Open(t.Context(), at, key.SealedFrom("env/prod/1", raw(box)))
	if err != nil || !got.Equal(want) {
		t.Fatalf("the frozen box does not open: %v", err)
	}
	if fp := k.Fingerprint(want); fp != print {
		t.Fatalf("fingerprint %s, frozen as %s", fp, print)
	}
}

func TestFingerprint(t *testing.T) {
	ctx := t.Context()
	k := seal.New(master(t, 1), &memory{})
	_, a, _ := k.Seal(ctx, version("a", "dev", 1), parts("key", "same"))
	_, b, _ := k.Seal(ctx, version("b", "prod", 9), parts("key", "same"))
	_, c, _ := k.Seal(ctx, version("a", "dev", 2), parts("key", "other"))
	if a == "" || a != b || a == c {
		t.Fatalf("fingerprints %q %q %q", a, b, c)
	}
	if k.Fingerprint(parts("key", "same")) != a {
		t.Fatal("Fingerprint differs from what Seal returned")
	}
	// The border between name, value and next part counts.
	if k.Fingerprint(parts("ab", "c")) == k.Fingerprint(parts("a", "bc")) {
		t.Fatal("different parts share a fingerprint")
	}
	if seal.New(master(t, 2), &memory{}).Fingerprint(parts("key", "same")) == a {
		t.Fatal("the fingerprint does not depend on the master key")
	}
}

func TestCheckFindsAnotherMaster(t *testing.T) {
	ctx := t.Context()
	src := &memory{}
	if err := seal.New(master(t, 1), src).Check(ctx); err != nil {
		t.Fatal(err)
	}
	if src.puts != 1 {
		t.Fatal("an empty store got no first data key: another master key would not be noticed")
	}
	if err := seal.New(master(t, 1), src).Check(ctx); err != nil || src.puts != 1 {
		t.Fatalf("second start: %v, %d keys", err, src.puts)
	}
	wrong := master(t, 2)
	k := seal.New(wrong, src)
	err := k.Check(ctx)
	if err == nil || !strings.Contains(err.Error(), wrong.Path()) || !hasHint(err) {
		t.Fatalf("another master key: %v", err)
	}
	if _, _, err := k.Seal(ctx, version("a", "dev", 1), parts("key", "x")); err == nil || src.puts != 1 {
		t.Fatalf("a wrong master key made a data key: %v", err)
	}
}

func TestTwoServersMakeOneDataKey(t *testing.T) {
	ctx := t.Context()
	src := &memory{}
	a, b := seal.New(master(t, 1), src), seal.New(master(t, 1), src)
	at := version("a", "dev", 1)
	var wg sync.WaitGroup
	sealed := make([]key.Sealed, 16)
	for i := range sealed {
		wg.Go(func() {
			k := a
			if i%2 == 1 {
				k = b
			}
			s, _, err := k.Seal(ctx, at, parts("key", "x"))
			if err != nil {
				t.Error(err)
			}
			sealed[i] = s
		})
	}
	wg.Wait()
	for _, s := range sealed {
		for _, k := range []*seal.Keyring{a, b} {
			if _, err := k.Open(ctx, at, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if src.puts != 1 {
		t.Fatalf("%d data keys", src.puts)
	}
}

func TestSourceErrorsAreKept(t *testing.T) {
	src := &memory{err: key.ErrUnavailable}
	k := seal.New(master(t, 1), src)
	if err := k.Check(t.Context()); !errors.Is(err, key.ErrUnavailable) {
		t.Fatal(err)
	}
	if _, _, err := k.Seal(t.Context(), version("a", "dev", 1), parts("key", "x")); !errors.Is(err, key.ErrUnavailable) {
		t.Fatal(err)
	}
}

func TestMasterFile(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{9}, 32))
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		says    string
	}{
		"readable by others": {good, 0o644, "chmod 600"},
		"writable by group":  {good, 0o620, "chmod 600"},
		"empty":              {"", 0o600, "32 bytes"},
		"too short":          {"c2hvcnQ=", 0o600, "32 bytes"},
		"not base64":         {strings.Repeat("!", 44), 0o600, "32 bytes"},
		"too long":           {good + good, 0o600, "32 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			for _, load := range []func(string) (*seal.Master, error){seal.LoadMaster, seal.LoadOrCreateMaster} {
				_, err := load(path)
				if !errors.Is(err, key.ErrInvalid) || !hasHint(err) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
					t.Fatalf("error: %v", err)
				}
				if c.content != "" && strings.Contains(err.Error(), c.content) {
					t.Fatal("the error shows the content of the file")
				}
			}
		})
	}
	if _, err := seal.LoadMaster(t.TempDir()); !errors.Is(err, key.ErrInvalid) {
		t.Fatalf("a directory: %v", err)
	}
}

func TestMasterIsMadeOnceAndOnlyForANewStore(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "conf", "master.key")
	if _, err := seal.LoadMaster(path); !errors.Is(err, key.ErrNotFound) || !hasHint(err) {
		t.Fatalf("missing: %v", err)
	}
	used := &memory{keys: map[string][]byte{"env/prod/1": {1}}}
	if _, err := seal.OpenMaster(ctx, path, used); !errors.Is(err, key.ErrNotFound) || !strings.Contains(err.Error(), path) {
		t.Fatalf("missing beside a store with keys: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a master key was made beside a store with keys")
	}

	src := &memory{}
	m, err := seal.OpenMaster(ctx, path, src)
	if err != nil {
		t.Fatal(err)
	}
	if err := seal.New(m, src).Check(ctx); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
	again, err := seal.OpenMaster(ctx, path, src)
	if err != nil {
		t.Fatal(err)
	}
	if err := seal.New(again, src).Check(ctx); err != nil {
		t.Fatalf("the file read back is another key: %v", err)
	}
}

func TestMasterIsMadeOnceByMany(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	prints := make([]string, 8)
	var wg sync.WaitGroup
	for i := range prints {
		wg.Go(func() {
			m, err := seal.LoadOrCreateMaster(path)
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = seal.New(m, &memory{}).Fingerprint(parts("key", "x"))
		})
	}
	wg.Wait()
	for _, p := range prints {
		if p == "" || p != prints[0] {
			t.Fatalf("several master keys: %v", prints)
		}
	}
}

func TestNothingShowsPlaintext(t *testing.T) {
	ctx := t.Context()
	const word = "CORRECT-HORSE"
	src := &memory{}
	m := master(t, 'K')
	k := seal.New(m, src)
	at := version("a", "dev", 1)
	s, fp, err := k.Seal(ctx, at, parts("key", word))
	if err != nil {
		t.Fatal(err)
	}
	_, openErr := k.Open(ctx, version("a", "dev", 2), s)
	shown := fmt.Sprintf("%v %+v %#v %s %x %q", m, m, m, s, s, fp) + openErr.Error() + string(s.Box()) + string(src.keys["env/dev/1"])
	j, err := json.Marshal(m)
	if err == nil {
		t.Fatal("a master key was encoded")
	}
	shown += string(j)
	for _, bad := range []string{word, "KKKKKKKK", hex.EncodeToString([]byte(word)), strings.Repeat("4b", 8), "75 75 75 75"} {
		if strings.Contains(shown, bad) {
			t.Fatalf("plaintext is shown: %q", bad)
		}
	}
}

func hasHint(err error) bool {
	h, ok := errors.AsType[*key.Hint](err)
	return ok && h.Next != ""
}

func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "m")
	m, err := seal.LoadOrCreateMaster(path)
	if err != nil {
		b.Fatal(err)
	}
	k := seal.New(m, &memory{})
	at := version("billing-api", "prod", 7)
	s, _, err := k.Seal(b.Context(), at, parts("key", "sk_live_0123456789abcdef0123456789abcdef"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Open(b.Context(), at, s); err != nil {
			b.Fatal(err)
		}
	}
}

// A master key that goes through a backup is the same one, and is never put over
// another.
func TestMasterTextAndBack(t *testing.T) {
	src := &memory{}
	m := master(t, 1)
	if err := seal.New(m, src).Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys, err := src.DataKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "new", "master.key")
	back, err := seal.ParseMaster(path, m.Text())
	if err != nil {
		t.Fatal(err)
	}
	if !back.Same(m) || back.Same(master(t, 2)) {
		t.Error("two master keys are not told apart")
	}
	if err := back.Opens(keys); err != nil {
		t.Error(err)
	}
	if err := master(t, 2).Opens(keys); !errors.Is(err, key.ErrConflict) || !hasHint(err) {
		t.Errorf("another master key: got error %v, want %v", err, key.ErrConflict)
	}
	if err := back.Save(); err != nil {
		t.Fatal(err)
	}
	read, err := seal.LoadMaster(path)
	if err != nil || !read.Same(m) {
		t.Errorf("what was saved is another one (%v)", err)
	}
	if err := back.Save(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("saved over a file: got error %v", err)
	}
	for _, bad := range []string{"", "AAAA", "not base64 at all", strings.Repeat("A", 1000)} {
		if _, err := seal.ParseMaster(path, secret.FromString(bad)); !errors.Is(err, key.ErrInvalid) || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%.10q: got error %v", bad, err)
		}
	}
}
