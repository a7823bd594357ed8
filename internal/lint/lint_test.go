package lint_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/keybaton/keybaton/internal/lint"
)

func architecture(t *testing.T) (string, lint.Tables) {
	t.Helper()
	doc, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	tables, err := lint.ParseTables(string(doc))
	if err != nil {
		t.Fatalf("ARCHITECTURE.md: %v", err)
	}
	return string(doc), tables
}

func TestTheHouse(t *testing.T) {
	_, tables := architecture(t)
	for _, b := range lint.CheckTables(tables) {
		t.Error(b)
	}
	bad, err := lint.CheckSource(os.DirFS("../.."), tables)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bad {
		t.Error(b)
	}
}

// Every mark and room of the table is one that the test knows: a row that was
// misspelt would allow nothing, or everything.
func TestTheTablesAreWhole(t *testing.T) {
	_, tables := architecture(t)
	for _, room := range []string{"key", "access", "audit", "evidence", "alert", "rotation", "detect", "config"} {
		r, ok := tables.Room(room)
		if !ok || !slices.Contains(r.Marks, "pure") {
			t.Errorf("%s is not marked pure", room)
		}
	}
	var calls []string
	for _, r := range tables.Calls {
		calls = append(calls, r.Name)
	}
	if !slices.Equal(calls, []string{".Reveal", "secret.Exposed", "key.SealedFrom"}) {
		t.Errorf("the calls are %q", calls)
	}
	if r, ok := tables.Room("provider/any"); !ok || r.Name != "provider/*" {
		t.Errorf("the room provider/any has the row %q", r.Name)
	}
	if _, ok := tables.Room("unheard-of"); ok {
		t.Error("a room that nobody knows has a row")
	}
}

// Each rule over the tables catches the line that breaks it.
func TestTablesCatch(t *testing.T) {
	doc, _ := architecture(t)
	tests := []struct{ name, old, new, want string }{
		{"up", "key           pure  :\n", "key           pure  : access\n", "key may import access, which has no row above it"},
		{"unknown room", "seal                : key secret", "seal                : key secret cellar", "seal may import cellar, which has no row above it"},
		{"adapters", "notify/*            : notify", "notify/slack        : notify\nnotify/*            : notify/slack notify", "notify/* may import notify/slack: adapters do not import each other"},
		{"adapters of all", "notify/*            : notify", "notify/*            : ...", "notify/* may import ...: adapters do not import each other"},
		{"mark", "lint                :", "lint          prue  :", "lint is marked prue"},
		{"blind", "alert         pure  : key", "alert         pure  : key secret", "alert > secret permits a way from alert to secret"},
		{"blind by a chain", "evidence      pure  : key", "evidence      pure  : key api", "rotation > evidence > api > secret permits a way from rotation to secret"},
		{"blind store", "store/storetest     : store key", "store/storetest     : store seal key", "store/storetest > seal > secret permits a way from store/storetest to secret"},
		{"blind to all", "config        pure  : key", "config        pure  : ...", "permits a way from config to secret"},
		{"gateway", "gateway             : key", "gateway             : provider key", "gateway > provider: a gateway reaches no store"},
		{"gateway adapter", "gateway/*           : gateway", "gateway/*           : handover gateway", "gateway/* > handover > store: a gateway reaches no store"},
		{"seal", "notify              : key", "notify              : seal key", "notify may import seal; only engine, handover and app do"},
		{"people", "server/v1           : server", "server/v1           : handover server", "server/v1 may import handover"},
		{"people and secrets", "server/v1           : server", "server/v1           : secret server", "server/v1 may import secret"},
		{"call", "key.SealedFrom   : key", "key.SealedFrom   : cellar key", "key.SealedFrom names cellar, which has no row in imports"},
		{"module", ": config rotation", ": config rotation cellar", "github.com/robfig/cron names cellar, which has no row in imports"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changed := strings.Replace(doc, tt.old, tt.new, 1)
			if changed == doc {
				t.Fatalf("ARCHITECTURE.md has no %q", tt.old)
			}
			tables, err := lint.ParseTables(changed)
			if err != nil {
				t.Fatal(err)
			}
			bad := lint.CheckTables(tables)
			if !slices.ContainsFunc(bad, func(b string) bool { return strings.Contains(b, tt.want) }) {
				t.Errorf("got %q, want %q", bad, tt.want)
			}
		})
	}
	for _, bad := range []string{"", "\n```imports\na :\n```\n\n```calls\n```\n", strings.Replace(doc, "lint                :", "lint", 1), strings.Replace(doc, "lint                :", "cli :", 1)} {
		if _, err := lint.ParseTables(bad); err == nil {
			t.Errorf("a text without whole tables was read: %.40q", bad)
		}
	}
}

// Each rule over the source catches the file that breaks it, and nothing else.
func TestSourceCatches(t *testing.T) {
	_, tables := architecture(t)
	const m = lint.Module
	imports := func(pkg string, paths ...string) string {
		s := "package " + pkg + "\n"
		for _, p := range paths {
			s += "import _ \"" + p + "\"\n"
		}
		return s
	}
	tests := []struct {
		name, file, src string
		want            []string // parts of the messages, in order; none: it is fine
	}{
		{"row", "internal/access/a.go", imports("access", m+"/internal/key"), nil},
		{"not in row", "internal/access/a.go", "package access\n\nimport \"" + m + "/internal/store\"\n\nvar _ store.Store\n", []string{"internal/access/a.go:3: access imports store, which its row does not name"}},
		{"tests are exempt", "internal/access/a_test.go", imports("access", m+"/internal/store", "os"), nil},
		{"no row", "internal/cellar/a.go", "package cellar\n", []string{"internal/cellar/a.go:1: the room cellar has no row"}},
		{"no row at the root", "pkg/a.go", "package pkg\n", []string{"the room pkg has no row"}},
		{"nested module", "tool/sub/a.go", imports("sub", m+"/internal/seal"), nil},
		{"testdata", "internal/access/testdata/a.go", "package x\n", nil},
		{"adapter", "internal/notify/slack/a.go", imports("slack", m+"/internal/notify", m+"/secret"), nil},
		{"adapters", "internal/notify/slack/a.go", imports("slack", m+"/internal/notify/webhook"), []string{"notify/slack imports notify/webhook"}},
		{"deep adapter", "internal/notify/slack/deep/a.go", "package deep\n", []string{"notify/slack/deep has no row"}},
		{"any room", "internal/app/a.go", imports("app", m+"/internal/seal", m+"/internal/store/sqlite"), nil},
		{"seal by any room", "keybatontest/a.go", imports("keybatontest", m+"/internal/seal"), []string{"keybatontest imports seal, which its row does not name", "keybatontest imports seal; only engine, handover, app and bench do"}},
		{"pure os", "internal/rotation/a.go", imports("rotation", "os"), []string{"rotation is pure and imports os"}},
		{"pure os/exec", "internal/rotation/a.go", imports("rotation", "os/exec"), []string{"rotation is pure and imports os/exec"}},
		{"pure net", "internal/key/a.go", imports("key", "net", "net/url"), []string{"key is pure and imports net"}},
		{"pure http", "internal/key/a.go", imports("key", "net/http"), []string{"key is pure and imports net/http"}},
		{"pure sql", "internal/audit/a.go", imports("audit", "database/sql"), []string{"audit is pure and imports database/sql", "audit imports database/sql and is not marked sql"}},
		{"pure log", "internal/alert/a.go", imports("alert", "log/slog"), []string{"alert is pure and imports log/slog"}},
		{"pure context", "internal/detect/a.go", imports("detect", "context"), []string{"detect is pure and imports context"}},
		{"pure random", "internal/config/a.go", imports("config", "math/rand/v2", "crypto/rand"), []string{"math/rand/v2", "crypto/rand"}},
		{"pure clock", "internal/evidence/a.go", "package evidence\n\nimport \"time\"\n\nvar A = time.Now()\n", []string{"evidence/a.go:5: evidence is pure and uses time.Now"}},
		{"pure clock, renamed", "internal/evidence/a.go", "package evidence\n\nimport t \"time\"\n\nfunc a() { t.Sleep(1) }\nvar b = t.After\n", []string{"uses time.Sleep", "uses time.After"}},
		{"pure times", "internal/evidence/a.go", "package evidence\n\nimport \"time\"\n\nvar A = time.Unix(1, 0).Add(time.Second)\n", nil},
		{"clock", "internal/engine/a.go", "package engine\n\nimport \"time\"\n\nvar A = time.Now()\n", nil},
		{"dot import", "internal/engine/a.go", "package engine\n\nimport . \"" + m + "/secret\"\n", []string{"is imported with a dot"}},
		{"reveal", "internal/engine/a.go", "package engine\n\nimport \"" + m + "/secret\"\n\nfunc a(v secret.Value) { b(v.Reveal()) }\n", []string{"engine/a.go:5: engine calls Reveal"}},
		{"reveal as a value", "internal/engine/a.go", "package engine\n\nfunc a(v interface{ Reveal() []byte }) func() []byte { return v.Reveal }\n", []string{"engine calls Reveal"}},
		{"reveal allowed", "internal/provider/recipe/a.go", "package recipe\n\nimport \"" + m + "/secret\"\n\nfunc a(v secret.Value) { b(v.Reveal()) }\n", nil},
		{"reveal not by x alone", "internal/provider/a.go", "package provider\n\nimport \"" + m + "/secret\"\n\nfunc a(v secret.Value) { b(v.Reveal()) }\n", []string{"provider calls Reveal"}},
		{"exposed", "internal/engine/a.go", "package engine\n\nimport s \"" + m + "/secret\"\n\nfunc a(v s.Value) { b(s.Expose(v)) }\n", []string{"engine uses secret.Expose"}},
		{"exposed type", "internal/gateway/a.go", "package gateway\n\nimport \"" + m + "/secret\"\n\nvar a secret.Exposed\n", []string{"gateway uses secret.Exposed"}},
		{"exposed allowed", "api/a.go", "package api\n\nimport \"" + m + "/secret\"\n\nvar a secret.Exposed\n", nil},
		{"sealed", "internal/store/a.go", "package store\n\nimport \"" + m + "/internal/key\"\n\nvar a = key.SealedFrom(\"\", nil)\n", []string{"store uses key.SealedFrom"}},
		{"sealed allowed", "internal/store/sqlstore/a.go", "package sqlstore\n\nimport \"" + m + "/internal/key\"\n\nvar a = key.SealedFrom(\"\", nil)\n", nil},
		{"people", "internal/server/v1/a.go", imports("v1", m+"/secret", m+"/internal/handover"), []string{"server/v1 imports secret", "server/v1 imports handover"}},
		{"sql", "internal/store/sqlstore/a.go", imports("sqlstore", "database/sql"), nil},
		{"sql elsewhere", "internal/server/a.go", imports("server", "database/sql/driver"), []string{"server imports database/sql/driver and is not marked sql"}},
		{"log in a provider", "internal/provider/recipe/a.go", imports("recipe", "log/slog"), []string{"provider/recipe imports log/slog"}},
		{"log in call", "internal/call/a.go", imports("call", "log"), []string{"call imports log"}},
		{"module", "internal/config/a.go", imports("config", "github.com/goccy/go-yaml/ast"), nil},
		{"module elsewhere", "internal/key/a.go", imports("key", "github.com/goccy/go-yaml/ast"), []string{"key imports github.com/goccy/go-yaml/ast, whose row does not name it"}},
		{"module of no row", "internal/engine/a.go", imports("engine", "example.com/x"), []string{"engine imports example.com/x, which is in no row of the modules"}},
		{"engine takes secrets", "internal/engine/a.go", "package engine\n\nimport \"" + m + "/secret\"\n\nfunc Set(p secret.Parts) error { return nil }\ntype API interface{ Set(secret.Parts) error }\ntype E struct{ p secret.Parts; F func(secret.Value) }\n", nil},
		{"engine returns secrets", "internal/engine/a.go", "package engine\n\nimport \"" + m + "/secret\"\n\nfunc Get() (secret.Parts, error) { return nil, nil }\nfunc get() secret.Parts { return nil }\n", []string{"a.go:5: Get of the engine returns or holds secret.Parts"}},
		{"engine methods", "internal/engine/a.go", "package engine\n\nimport \"" + m + "/secret\"\n\nfunc (e *Engine) Get() map[string]secret.Value { return nil }\nfunc (e *inner) Get() secret.Value { return secret.Value{} }\n", []string{"a.go:5: Get of the engine"}},
		{"engine fields", "internal/engine/a.go", "package engine\n\nimport \"" + m + "/secret\"\n\ntype R struct{ P []secret.Parts; F func() secret.Value }\n", []string{"R of the engine", "R of the engine"}},
		{"engine interfaces", "internal/engine/a.go", "package engine\n\nimport \"" + m + "/secret\"\n\ntype API interface{ Get() secret.Value }\ntype Alias = secret.Parts\n", []string{"API of the engine", "Alias of the engine"}},
		{"engine returns what is issued", "internal/engine/a.go", "package engine\n\nimport \"" + m + "/internal/provider\"\n\nfunc Get() provider.Issued { return provider.Issued{} }\n", []string{"Get of the engine returns or holds provider.Issued"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := fstest.MapFS{
				tt.file:       {Data: []byte(tt.src)},
				"tool/go.mod": {Data: []byte("module tool\n")},
			}
			bad, err := lint.CheckSource(tree, tables)
			if err != nil {
				t.Fatal(err)
			}
			if len(bad) != len(tt.want) {
				t.Fatalf("got %q, want %q", bad, tt.want)
			}
			for i, w := range tt.want {
				if !strings.Contains(bad[i], w) {
					t.Errorf("got %q, want %q", bad[i], w)
				}
			}
		})
	}
	if _, err := lint.CheckSource(fstest.MapFS{"internal/key/a.go": {Data: []byte("package")}}, tables); err == nil {
		t.Error("a file that does not parse was passed")
	}
}
