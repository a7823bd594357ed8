package dump_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store/dump"
)

var head = dump.Header{Schema: 3, Epoch: 2, Number: 7, At: time.Date(2030, 1, 2, 3, 4, 5, 6_000_000, time.UTC), Tables: []dump.Table{
	{Name: "empty", Columns: []dump.Column{{Name: "a", Type: dump.Integer}}},
	{Name: "all", Columns: []dump.Column{{Name: "n", Type: dump.Integer}, {Name: "t", Type: dump.Text}, {Name: "b", Type: dump.Bytes}}, Rows: 3},
}}

var rows = [][]any{
	{int64(-1 << 63), "a\nb\x00 <ü>", []byte{0, 255, '\n'}},
	{int64(1<<63 - 1), "not UTF-8: \xff\xfe", []byte{}},
	{nil, nil, nil},
}

func write(t *testing.T, h dump.Header) ([]byte, dump.Manifest) {
	t.Helper()
	var out bytes.Buffer
	w, err := dump.NewWriter(&out, h)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Table(), w.Table()); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if err := w.Row(r); err != nil {
			t.Fatal(err)
		}
	}
	m, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), m
}

// frozen is the dump as every program since the first writes it.
const frozen = `{"keybaton":"dump","format":1,"schema":3,"epoch":2,"number":7,"at":"2030-01-02T03:04:05.006Z","tables":[{"name":"empty","columns":[{"name":"a","type":"integer"}],"rows":0},{"name":"all","columns":[{"name":"n","type":"integer"},{"name":"t","type":"text"},{"name":"b","type":"bytes"}],"rows":3}]}
{"table":"empty"}
{"table":"all"}
[-9223372036854775808,"a\nb\u0000 <ü>","AP8K"]
[9223372036854775807,{"base64":"bm90IFVURi04OiD//g=="},""]
[null,null,null]
{"end":[{"name":"empty","rows":0,"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},{"name":"all","rows":3,"sha256":"`

func TestFormatIsFrozen(t *testing.T) {
	text, m := write(t, head)
	if !strings.HasPrefix(string(text), frozen) {
		t.Errorf("the dump is\n%s\nnot\n%s…", text, frozen)
	}
	got, err := dump.Verify(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("read %+v, wrote %+v", got, m)
	}
	r, err := dump.NewReader(iotest.OneByteReader(bytes.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range rows {
		table, row, err := r.Next()
		if err != nil || table != 1 || !reflect.DeepEqual(row, want) {
			t.Errorf("row %d is %#v of %d (%v), not %#v", i, row, table, err, want)
		}
	}
	for range 2 {
		if _, _, err := r.Next(); err != io.EOF { //nolint:errorlint // as it is
			t.Errorf("after the last row: %v", err)
		}
	}
}

// Whatever is cut off, changed or left out is found, and where.
func TestDamageIsFound(t *testing.T) {
	text, _ := write(t, head)
	refused := func(what string, b []byte) {
		t.Helper()
		_, err := dump.Verify(bytes.NewReader(b))
		var d *dump.Damage
		newer := errors.Is(err, key.ErrNewer) // a byte of the format's number
		if !newer && (!errors.As(err, &d) || !errors.Is(err, key.ErrInvalid) || d.Line < 1 || d.Line > 8) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	for i := range text {
		refused("cut off", text[:i])
		for _, x := range []byte{1, 0x80} {
			b := bytes.Clone(text)
			b[i] ^= x
			refused("a changed byte", b)
		}
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	for i := range lines {
		b := bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil)
		if !bytes.Equal(b, text) {
			refused("a line is missing", b)
		}
	}
	refused("something follows", append(bytes.Clone(text), ' '))
	refused("it cannot be read", nil)
	_, err := dump.Verify(io.MultiReader(bytes.NewReader(text[:400]), iotest.ErrReader(io.ErrUnexpectedEOF)))
	if err == nil || !strings.Contains(err.Error(), "the rest is missing") {
		t.Errorf("a reader that breaks off: %v", err)
	}
}

func TestNewerFormat(t *testing.T) {
	text, _ := write(t, head)
	text = bytes.Replace(text, []byte(`"format":1`), []byte(`"format":12`), 1)
	if _, err := dump.Verify(bytes.NewReader(text)); !errors.Is(err, key.ErrNewer) {
		t.Errorf("got error %v, want %v", err, key.ErrNewer)
	}
}

// A header may not bring what SQL would misunderstand.
func TestNamesOfTables(t *testing.T) {
	for _, bad := range []string{"", "a b", "x; DROP TABLE meta", "A", "1", strings.Repeat("a", 64), "all"} {
		h := head
		h.Tables = append([]dump.Table{}, head.Tables...)
		h.Tables[0].Name = bad
		text, _ := write(t, h)
		if _, err := dump.Verify(bytes.NewReader(text)); !errors.Is(err, key.ErrInvalid) {
			t.Errorf("table %q: got error %v", bad, err)
		}
	}
}

func TestWriterCounts(t *testing.T) {
	w, err := dump.NewWriter(io.Discard, head)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Table(), w.Table(), w.Row(rows[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err == nil {
		t.Error("a dump with too few rows was ended")
	}
	if w, err = dump.NewWriter(io.Discard, head); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err == nil {
		t.Error("a dump with too few tables was ended")
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(frozen))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := dump.Verify(bytes.NewReader(b))
		if err != nil && !errors.Is(err, key.ErrInvalid) && !errors.Is(err, key.ErrNewer) {
			t.Errorf("got error %v", err)
		}
	})
}
