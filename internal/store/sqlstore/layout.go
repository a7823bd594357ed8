package sqlstore

import (
	"slices"
	"strconv"
	"strings"

	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/dump"
)

// table is a table as a dump describes it. Its first columns, so many as key
// says, are the key by which its rows are ordered.
type table struct {
	dump.Table
	key int
}

// layouts are the tables of each schema, by its number, in an order in which
// they can be filled: what is referred to comes first. A migration adds the next
// one; a test compares each with the schema that the migrations make.
var layouts = map[int64][]table{
	1: {
		describe("meta", 1, "id integer, epoch integer, number integer"),
		describe("service", 1, "name text, doc text"),
		describe("policy", 1, "name text, doc text"),
		describe("credential", 2, "service text, environment text, primary_slot integer, fallback_slot integer, candidate_slot integer, "+
			"next_number integer, policy text, upstream text, epoch integer, revision integer, created_ms integer, rotated_ms integer, doc text"),
		describe("spent", 2, "service text, environment text, next_number integer"),
		describe("version", 3, "service text, environment text, number integer, state text, parked integer, origin text, vendor_id text, "+
			"label text, fingerprint text, read_out integer, created_ms integer, since_ms integer, expires_ms integer, saved text, note text, rotation text"),
		describe("data_key", 1, "name text, wrapped bytes, created_ms integer"),
		describe("sealed", 3, "service text, environment text, number integer, data_key text, box bytes"),
		describe("rotation", 1, "id text, place integer, service text, environment text, machine integer, kind text, state text, started_ms integer, doc text"),
		describe("retirement", 3, "service text, environment text, number integer, state text, ended_ms integer, doc text"),
		describe("token", 1, "name text, hash text, doc text"),
		describe("hold", 5, "consumer text, boot text, service text, environment text, number integer, kind text, epoch integer, revision integer, "+
			"since_ms integer, until_ms integer, unbound integer"),
		describe("boot", 2, "consumer text, boot text, doc text"),
		describe("boot_use", 5, "consumer text, boot text, service text, environment text, number integer, doc text"),
		describe("boot_answer", 4, "consumer text, boot text, service text, environment text, doc text"),
		describe("ask", 3, "service text, environment text, number integer, ok integer"),
		describe("alert", 1, "id text, state text, started_ms integer, doc text"),
		describe("delivery", 1, "id text, created_ms integer, next_ms integer, sent_ms integer, doc text"),
		describe("audit", 1, "seq integer, at_ms integer, actor text, action text, service text, environment text, version integer, rotation text, "+
			"detail text, prev text, hash text"),
		describe("setting", 1, "name text, value text"),
		describe("lease", 2, "kind text, item text, owner text, term integer, until_ms integer, next_ms integer, due_ms integer"),
	},
}

// describe returns a table from the names and types of its columns.
func describe(name string, key int, columns string) table {
	t := table{dump.Table{Name: name}, key}
	for c := range strings.SplitSeq(columns, ", ") {
		n, typ, _ := strings.Cut(c, " ")
		t.Columns = append(t.Columns, dump.Column{Name: n, Type: dump.Type(typ)})
	}
	return t
}

func (t table) names() []string {
	var out []string
	for _, c := range t.Columns {
		out = append(out, c.Name)
	}
	return out
}

// selects reads every row in the order of the key. Texts are compared by their
// bytes, as every opener sees to.
func (t table) selects() string {
	cs := t.names()
	return "SELECT " + strings.Join(cs, ", ") + " FROM " + t.Name + t.where() + " ORDER BY " + strings.Join(cs[:t.key], ", ")
}

func (t table) counts() string { return "SELECT COUNT(*) FROM " + t.Name + t.where() }

// where leaves out what belongs to one database and not to what it holds.
func (t table) where() string {
	if t.Name == "setting" {
		return " WHERE name <> '" + store.SettingClosed + "'"
	}
	return ""
}

func (t table) inserts() string {
	cs := t.names()
	marks := make([]string, len(cs))
	for i := range marks {
		marks[i] = "$" + strconv.Itoa(i+1)
	}
	return "INSERT INTO " + t.Name + " (" + strings.Join(cs, ", ") + ") VALUES (" + strings.Join(marks, ", ") + ")"
}

// same reports whether d describes the same table.
func (t table) same(d dump.Table) bool { return t.Name == d.Name && slices.Equal(t.Columns, d.Columns) }

// free makes the row of a lease what it is when its owner has died: a claim
// means something only to the process that made it. The term stays.
func free(row []any) {
	const owner, until, next, due = 2, 4, 5, 6
	if row[owner] == "" {
		return
	}
	at, _ := row[until].(int64)
	if n, _ := row[next].(int64); n > 0 {
		at = min(at, n)
	}
	row[owner], row[until], row[next], row[due] = "", int64(0), at, at
}
