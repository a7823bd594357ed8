package dump

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"unicode/utf8"
)

// Writer writes one dump. It is for one goroutine. After an error it writes
// nothing more.
type Writer struct {
	w     *bufio.Writer
	head  Header
	all   hash.Hash
	table hash.Hash
	sums  []Sum
	rows  int64
	line  bytes.Buffer
	enc   *json.Encoder
	err   error
}

// NewWriter writes the header. The tables follow in its order: for each
// [Writer.Table], then [Writer.Row] as often as the header says.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	d := &Writer{w: bufio.NewWriterSize(w, 64<<10), head: h, all: sha256.New(), table: sha256.New()}
	d.enc = json.NewEncoder(&d.line)
	d.enc.SetEscapeHTML(false)
	d.put(header{magic, Format, h.Schema, h.Epoch, h.Number, h.At.UTC(), h.Tables}, nil)
	return d, d.err
}

// put writes v as a line, and adds it to the hash of all and to also.
func (d *Writer) put(v any, also hash.Hash) {
	if d.err != nil {
		return
	}
	d.line.Reset()
	if d.err = d.enc.Encode(v); d.err != nil {
		return
	}
	d.all.Write(d.line.Bytes())
	if also != nil {
		also.Write(d.line.Bytes())
	}
	_, d.err = d.w.Write(d.line.Bytes())
}

// Table begins the next table of the header.
func (d *Writer) Table() error {
	d.end()
	if d.err == nil && len(d.sums) == len(d.head.Tables) {
		d.err = fmt.Errorf("the header names no more than %d tables", len(d.sums))
	}
	if d.err != nil {
		return d.err
	}
	d.rows = 0
	d.table.Reset()
	d.sums = append(d.sums, Sum{Name: d.head.Tables[len(d.sums)].Name})
	d.put(section{d.sums[len(d.sums)-1].Name}, nil)
	return d.err
}

// end ends the table that was begun, if any.
func (d *Writer) end() {
	if d.err != nil || len(d.sums) == 0 {
		return
	}
	s := &d.sums[len(d.sums)-1]
	if want := d.head.Tables[len(d.sums)-1].Rows; d.rows != want {
		d.err = fmt.Errorf("the table %s has %d rows, and the header says %d", s.Name, d.rows, want)
	}
	s.Rows, s.SHA256 = d.rows, hex.EncodeToString(d.table.Sum(nil))
}

// Row writes a row of the table that was begun; it changes nothing of values
// and keeps nothing of them.
func (d *Writer) Row(values []any) error {
	if d.err != nil {
		return d.err
	}
	if len(d.sums) == 0 {
		return fmt.Errorf("a row of no table")
	}
	out := make([]any, len(values))
	for i, v := range values {
		if s, ok := v.(string); ok && !utf8.ValidString(s) {
			v = raw{[]byte(s)}
		}
		out[i] = v
	}
	d.rows++
	d.put(out, d.table)
	return d.err
}

// Close writes the last line and what is buffered; it does not close the
// io.Writer. The manifest is that of the dump.
func (d *Writer) Close() (Manifest, error) {
	d.end()
	if d.err == nil && len(d.sums) != len(d.head.Tables) {
		d.err = fmt.Errorf("the header names %d tables, and %d were written", len(d.head.Tables), len(d.sums))
	}
	m := Manifest{Header: d.head, Sums: d.sums, SHA256: hex.EncodeToString(d.all.Sum(nil))}
	d.put(trailer{d.sums, m.SHA256}, nil)
	if d.err == nil {
		d.err = d.w.Flush()
	}
	if d.err != nil {
		return Manifest{}, fmt.Errorf("writing the dump: %w", d.err)
	}
	return m, nil
}
