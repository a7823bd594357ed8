package secret_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/keybaton/keybaton/secret"
)

const mark = "pLaInTeXt"

type outer struct {
	Public  secret.Value
	private secret.Value
	Parts   secret.Parts
	Pointer *secret.Value
	Exposed secret.Exposed
}

func TestAValuePrintsNowhere(t *testing.T) {
	v := secret.FromString(mark)
	o := outer{v, v, secret.Parts{"key": v}, &v, secret.Expose(v)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p"} {
		for _, x := range []any{v, &v, o, &o, o.private, []secret.Value{v}, map[string]secret.Value{"k": v}, secret.Expose(v), fmt.Errorf("wrapped %v", v)} {
			got := fmt.Sprintf(verb, x)
			if strings.Contains(got, mark) || strings.Contains(strings.ToLower(got), fmt.Sprintf("%x", mark)) {
				t.Errorf("%s of %T shows the plaintext: %s", verb, x, got)
			}
		}
	}
	var buf bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&buf, nil), slog.NewJSONHandler(&buf, nil)} {
		slog.New(h).Info("x", "v", v, "o", o, "parts", o.Parts, "exposed", o.Exposed)
	}
	if strings.Contains(buf.String(), mark) {
		t.Errorf("a log shows the plaintext: %s", &buf)
	}
}

func TestAValueDoesNotEncode(t *testing.T) {
	v := secret.FromString(mark)
	if _, err := json.Marshal(v); !errors.Is(err, secret.ErrEncode) {
		t.Errorf("json: got %v, want ErrEncode", err)
	}
	if _, err := json.Marshal(map[string]any{"k": secret.Parts{"key": v}}); !errors.Is(err, secret.ErrEncode) {
		t.Errorf("json of parts: got %v, want ErrEncode", err)
	}
	if b, err := xml.Marshal(v); err == nil && bytes.Contains(b, []byte(mark)) {
		t.Errorf("xml shows the plaintext")
	}
	if err := gob.NewEncoder(&bytes.Buffer{}).Encode(v); !errors.Is(err, secret.ErrEncode) {
		t.Errorf("gob: got %v, want ErrEncode", err)
	}
	b, err := json.Marshal(secret.Expose(v))
	if err != nil || string(b) != `"`+mark+`"` {
		t.Errorf("the exposed form: got %s, %v", b, err)
	}
	var e secret.Exposed
	if err := json.Unmarshal(b, &e); err != nil || !e.Value().Equal(v) {
		t.Errorf("the exposed form does not come back: %v", err)
	}
}

func TestValuesAreCopies(t *testing.T) {
	b := []byte(mark)
	v := secret.New(b)
	clear(b)
	r := v.Reveal()
	clear(r)
	if string(v.Reveal()) != mark {
		t.Error("a caller's buffer changed the value")
	}
	if !(secret.Value{}).IsZero() || v.IsZero() || v.Len() != len(mark) || v.Equal(secret.FromString("other")) || v.Equal(secret.Value{}) {
		t.Error("length, zero or equality is wrong")
	}
}

func TestABoxOpensAtItsPlaceOnly(t *testing.T) {
	box, err := secret.NewBox(bytes.Repeat([]byte{7}, secret.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	other, err := secret.NewBox(bytes.Repeat([]byte{8}, secret.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	sealed := box.Seal("here", []byte(mark))
	if p, err := box.Open("here", sealed); err != nil || string(p) != mark {
		t.Fatalf("got %q, %v", p, err)
	}
	if _, err := box.Open("there", sealed); !errors.Is(err, secret.ErrOpen) {
		t.Errorf("at another place: got %v", err)
	}
	if _, err := other.Open("here", sealed); !errors.Is(err, secret.ErrOpen) {
		t.Errorf("with another key: got %v", err)
	}
	for i := range sealed {
		c := bytes.Clone(sealed)
		c[i] ^= 1
		if _, err := box.Open("here", c); !errors.Is(err, secret.ErrOpen) {
			t.Errorf("with byte %d changed: got %v", i, err)
		}
		if _, err := box.Open("here", sealed[:i]); !errors.Is(err, secret.ErrOpen) {
			t.Errorf("cut to %d bytes: got %v", i, err)
		}
	}
	if bytes.Equal(sealed, box.Seal("here", []byte(mark))) {
		t.Error("two boxes are the same: the nonce is not random")
	}
	if _, err := secret.NewBox([]byte("short")); err == nil {
		t.Error("a short key was taken")
	}
}
