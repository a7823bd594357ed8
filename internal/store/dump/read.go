package dump

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"slices"

	"github.com/keybaton/keybaton/internal/key"
)

// maxLine bounds one line in bytes: more than any row has, and less than what
// would fill a machine.
const maxLine = 64 << 20

// Reader reads one dump and proves that it is whole. It is for one goroutine.
type Reader struct {
	r     *bufio.Reader
	head  Header
	line  int64 // of what was read last
	at    int   // index of the table that was begun; -1 before the first
	rows  int64 // read of it
	all   hash.Hash
	table hash.Hash
	sums  []Sum
	end   *Manifest
	err   error
}

// NewReader reads the header. A dump of a newer format is [key.ErrNewer], and
// what is none a [*Damage].
func NewReader(r io.Reader) (*Reader, error) {
	d := &Reader{r: bufio.NewReaderSize(r, 64<<10), at: -1, all: sha256.New(), table: sha256.New()}
	b, err := d.next()
	if err != nil {
		return nil, err
	}
	var h header
	if json.Unmarshal(b, &h) != nil || h.Keybaton != magic {
		return nil, d.damage("this is not the header of a dump", nil)
	}
	if h.Format > Format {
		return nil, key.WithHint(fmt.Errorf("%w: the dump has format %d, this program knows %d", key.ErrNewer, h.Format, Format),
			"use the newer keybaton that made it")
	}
	if h.Format < 1 || h.Schema < 1 || h.Epoch < 1 || h.Number < 0 {
		return nil, d.damage("the header names no format, schema or revision", nil)
	}
	seen := map[string]bool{}
	for _, t := range h.Tables {
		if !nameRE.MatchString(t.Name) || seen[t.Name] || len(t.Columns) == 0 || t.Rows < 0 {
			return nil, d.damage("the header describes a table wrongly", nil)
		}
		seen[t.Name] = true
		for i, c := range t.Columns {
			if !nameRE.MatchString(c.Name) || slices.IndexFunc(t.Columns, func(o Column) bool { return o.Name == c.Name }) != i ||
				c.Type != Text && c.Type != Integer && c.Type != Bytes {
				return nil, d.damage("the header describes the table "+t.Name+" wrongly", nil)
			}
		}
	}
	d.head = Header{h.Schema, h.Epoch, h.Number, h.At, h.Tables}
	d.all.Write(b)
	return d, nil
}

// nameRE is what tables and columns are called: nothing that SQL could
// misunderstand.
var nameRE = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// Header returns the header.
func (d *Reader) Header() Header { return d.head }

// Next returns the next row, and the table it belongs to as an index into the
// header's. It returns io.EOF after the last one, when counts and hashes are
// right and nothing follows; a [*Damage] otherwise. The values belong to the
// caller.
func (d *Reader) Next() (table int, row []any, err error) {
	if d.err == nil && d.end != nil {
		d.err = io.EOF
	}
	for d.err == nil {
		if d.at >= 0 && d.rows < d.head.Tables[d.at].Rows {
			row, d.err = d.row()
			if d.err != nil {
				break
			}
			return d.at, row, nil
		}
		if d.at++; d.at == len(d.head.Tables) {
			if d.err = d.finish(); d.err == nil {
				d.err = io.EOF
			}
			break
		}
		d.err = d.section()
	}
	return 0, nil, d.err
}

// section reads the line before the rows of the table at d.at.
func (d *Reader) section() error {
	d.sum()
	b, err := d.next()
	if err != nil {
		return err
	}
	var s section
	name := d.head.Tables[d.at].Name
	if strict(b, &s) != nil || s.Table != name {
		return d.damage("the rows of the table "+name+" should begin here", nil)
	}
	d.all.Write(b)
	d.table.Reset()
	d.rows = 0
	return nil
}

// sum keeps the hash of the table before that at d.at.
func (d *Reader) sum() {
	if d.at > 0 {
		d.sums = append(d.sums, Sum{d.head.Tables[d.at-1].Name, d.rows, hex.EncodeToString(d.table.Sum(nil))})
	}
}

func (d *Reader) row() ([]any, error) {
	b, err := d.next()
	if err != nil {
		return nil, err
	}
	t := d.head.Tables[d.at]
	var vs []json.RawMessage
	if json.Unmarshal(b, &vs) != nil || len(vs) != len(t.Columns) {
		return nil, d.damage(fmt.Sprintf("row %d of %d is not %d values", d.rows+1, t.Rows, len(t.Columns)), nil)
	}
	out := make([]any, len(vs))
	for i, v := range vs {
		if out[i], err = value(t.Columns[i].Type, v); err != nil {
			return nil, d.damage(fmt.Sprintf("row %d of %d has no good value of %s", d.rows+1, t.Rows, t.Columns[i].Name), nil)
		}
	}
	d.rows++
	d.all.Write(b)
	d.table.Write(b)
	return out, nil
}

func value(t Type, v json.RawMessage) (any, error) {
	if bytes.Equal(v, []byte("null")) {
		return nil, nil
	}
	switch t {
	case Integer:
		var n int64
		err := json.Unmarshal(v, &n)
		return n, err
	case Bytes:
		b := []byte{}
		err := json.Unmarshal(v, &b)
		return b, err
	}
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s, nil
	}
	var r raw
	err := strict(v, &r)
	return string(r.Base64), err
}

// finish reads the last line and compares it with what was read.
func (d *Reader) finish() error {
	d.sum()
	b, err := d.next()
	if err != nil {
		return err
	}
	var t trailer
	if strict(b, &t) != nil {
		return d.damage("the last line should be here", nil)
	}
	if len(t.End) != len(d.sums) {
		return d.damage(fmt.Sprintf("the last line tells of %d tables, and there are %d", len(t.End), len(d.sums)), nil)
	}
	for i, s := range d.sums {
		if t.End[i] != s {
			return d.damage("the table "+s.Name+" is not as it was written: its hash or its count is another", nil)
		}
	}
	if all := hex.EncodeToString(d.all.Sum(nil)); t.SHA256 != all {
		return d.damage("it is not as it was written: the hash of all is another", nil)
	}
	if c, err := d.r.ReadByte(); err == nil {
		return d.damage(fmt.Sprintf("something follows the last line (byte %#x)", c), nil)
	} else if !errors.Is(err, io.EOF) {
		return d.broken(err)
	}
	d.end = &Manifest{d.head, d.sums, t.SHA256}
	return nil
}

// Manifest returns the manifest, once Next has returned io.EOF.
func (d *Reader) Manifest() (Manifest, bool) {
	if d.end == nil {
		return Manifest{}, false
	}
	return *d.end, true
}

// Verify reads a whole dump and returns its manifest.
func Verify(r io.Reader) (Manifest, error) {
	d, err := NewReader(r)
	for err == nil {
		_, _, err = d.Next()
	}
	if err != io.EOF { //nolint:errorlint // Next returns it as it is
		return Manifest{}, err
	}
	m, _ := d.Manifest()
	return m, nil
}

// next returns the next line with its end.
func (d *Reader) next() ([]byte, error) {
	d.line++
	var b []byte
	for {
		part, err := d.r.ReadSlice('\n')
		b = append(b, part...)
		switch {
		case err == nil:
			return b, nil
		case len(b) > maxLine:
			return nil, d.damage("the line does not end", nil)
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(b) == 0:
			return nil, d.damage("it ends here and is not complete: the rest is missing", nil)
		case errors.Is(err, io.EOF):
			return nil, d.damage("it ends within this line: the rest is missing", nil)
		default:
			return nil, d.broken(err)
		}
	}
}

// broken is an error of the reader below.
func (d *Reader) broken(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return d.damage("it ends here and is not complete: the rest is missing", err)
	}
	return d.damage("it cannot be read on", err)
}

func (d *Reader) damage(what string, err error) error {
	t := ""
	if d.at >= 0 && d.at < len(d.head.Tables) {
		t = d.head.Tables[d.at].Name
	}
	return &Damage{d.line, t, what, err}
}

// strict decodes one object that has no other fields.
func strict(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}
