// Package dump is the form in which a whole store is written down, whatever
// database it is in: for backups, and for moves from one database to another.
//
// A dump is text, one JSON value a line, ended by "\n":
//
//	{"keybaton":"dump","format":1,"schema":1,"epoch":1,"number":7,"at":"…","tables":[
//	    {"name":"service","columns":[{"name":"name","type":"text"},…],"rows":2},…]}   in one line
//	{"table":"service"}                                          before the rows of each table, in the header's order
//	["billing-api","{…}"]                                        a row, its values in the order of the columns
//	{"end":[{"name":"service","rows":2,"sha256":"…"},…],"sha256":"…"}
//
// A value of type integer is a JSON number without fraction, of type bytes a
// string in base64 (RFC 4648, padded), of type text a string, or where it is not
// UTF-8 {"base64":"…"}; null is no value. The hash of a table is the hex SHA-256
// of its row lines, "\n" included; that of all is the one of every line before
// the last. Rows are in the order of their key, compared byte by byte: the same
// content gives the same hashes from every database.
//
// The format is frozen; another one gets another number. The package proves that
// a dump is whole, and says at which line it is not. What the rows mean is the
// business of store/sqlstore.
package dump

import (
	"fmt"
	"slices"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// Format is the number of the format that this program writes.
const Format = 1

// magic is the first field of a header.
const magic = "dump"

// Type is the type of a column's values.
type Type string

// The types, with the Go types of their values; every value may be nil.
const (
	Text    Type = "text"    // string
	Integer Type = "integer" // int64
	Bytes   Type = "bytes"   // []byte
)

// Column is one column of a table.
type Column struct {
	Name string `json:"name"`
	Type Type   `json:"type"`
}

// Table is one table, and how many rows of it follow.
type Table struct {
	Name    string   `json:"name"`
	Columns []Column `json:"columns"`
	Rows    int64    `json:"rows"`
}

// Header is the first line of a dump.
type Header struct {
	Schema int64     // number of the schema that the rows are of
	Epoch  int64     // with Number: the revision of what was dumped
	Number int64     // see Epoch
	At     time.Time // when it was dumped, by the clock of who dumped it
	Tables []Table
}

// Sum is what the last line says of one table.
type Sum struct {
	Name   string `json:"name"`
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"` // hex, of the row lines
}

// Manifest is what there is to know of a whole dump without its rows.
type Manifest struct {
	Header
	Sums   []Sum
	SHA256 string // hex, of every line before the last
}

// Revision returns the revision of what was dumped.
func (h Header) Revision() key.Revision { return key.Revision{Epoch: h.Epoch, Number: h.Number} }

// Rows returns how many rows there are in all tables.
func (h Header) Rows() (n int64) {
	for _, t := range h.Tables {
		n += t.Rows
	}
	return n
}

// Differ returns the names of the tables of which a and b hold different rows,
// and nil when there is none.
func Differ(a, b Manifest) (names []string) {
	for _, s := range a.Sums {
		if !slices.Contains(b.Sums, s) {
			names = append(names, s.Name)
		}
	}
	for _, s := range b.Sums {
		if !slices.Contains(a.Sums, s) && !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
	}
	return names
}

// Damage is where a dump is not what was written. It wraps [key.ErrInvalid].
type Damage struct {
	Line  int64  // from 1; the line that is damaged, or that is missing
	Table string // in whose rows; "" outside of any
	What  string
	Err   error // cause; may be nil
}

// Error says what is wrong, and where.
func (d *Damage) Error() string {
	where := ""
	if d.Table != "" {
		where = ", in the table " + d.Table
	}
	s := fmt.Sprintf("damaged at line %d%s: %s", d.Line, where, d.What)
	if d.Err != nil {
		s += ": " + d.Err.Error()
	}
	return s
}

// Unwrap returns [key.ErrInvalid] and the cause.
func (d *Damage) Unwrap() []error {
	if d.Err == nil {
		return []error{key.ErrInvalid}
	}
	return []error{key.ErrInvalid, d.Err}
}

// header and trailer are the lines as they are written.
type header struct {
	Keybaton string    `json:"keybaton"`
	Format   int       `json:"format"`
	Schema   int64     `json:"schema"`
	Epoch    int64     `json:"epoch"`
	Number   int64     `json:"number"`
	At       time.Time `json:"at"`
	Tables   []Table   `json:"tables"`
}

type section struct {
	Table string `json:"table"`
}

type trailer struct {
	End    []Sum  `json:"end"`
	SHA256 string `json:"sha256"`
}

type raw struct {
	Base64 []byte `json:"base64"`
}
