package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Module is the path of the module that is checked.
const Module = "github.com/keybaton/keybaton"

// room returns the name of the room in a folder: internal/ is left out.
func room(dir string) string { return strings.TrimPrefix(dir, "internal/") }

// CheckSource parses every Go file of tree, but for tests, nested modules,
// testdata and folders that begin with "." or "_", and returns where the
// tables are not obeyed, with file and line.
func CheckSource(tree fs.FS, t Tables) ([]string, error) {
	c := &checker{t: t, fset: token.NewFileSet(), noRow: map[string]bool{}}
	err := fs.WalkDir(tree, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			base := path.Base(name)
			if name == "." {
				return nil
			}
			if base[0] == '.' || base[0] == '_' || base == "testdata" || base == "node_modules" || base == "vendor" {
				return fs.SkipDir
			}
			if _, err := fs.Stat(tree, path.Join(name, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		src, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(c.fset, name, src, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		c.file(room(path.Dir(name)), f)
		return nil
	})
	return c.bad, err
}

type checker struct {
	t     Tables
	fset  *token.FileSet
	bad   []string
	noRow map[string]bool
}

func (c *checker) failf(at token.Pos, format string, args ...any) {
	p := c.fset.Position(at)
	c.bad = append(c.bad, fmt.Sprintf("%s:%d: ", p.Filename, p.Line)+fmt.Sprintf(format, args...))
}

// impure are the imports that pure rooms do without.
var impure = []string{"os", "io/ioutil", "net", "net/http", "net/rpc", "net/smtp", "database/sql", "log", "log/slog", "context",
	"math/rand", "math/rand/v2", "crypto/rand", "syscall", "unsafe", "plugin", "expvar", "flag"}

// clock is what reads or waits on the clock.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// sqlModules are SQL and its drivers.
var sqlModules = []string{"database/sql", "modernc.org/sqlite", "github.com/jackc", "github.com/lib/pq", "github.com/go-sql-driver",
	"github.com/mattn/go-sqlite3", "github.com/pressly/goose"}

func under(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func (c *checker) file(in string, f *ast.File) {
	row, ok := c.t.Room(in)
	if !ok {
		if !c.noRow[in] {
			c.noRow[in] = true
			c.failf(f.Package, "the room %s has no row in ARCHITECTURE.md", in)
		}
		return
	}
	pure, sql := slices.Contains(row.Marks, "pure"), slices.Contains(row.Marks, "sql")
	quiet := under(in, "provider") || under(in, "mirror") || in == "call"
	names := map[string]string{} // what a file calls a package, to its path
	for _, s := range f.Imports {
		p, _ := strconv.Unquote(s.Path.Value)
		name := path.Base(p)
		if s.Name != nil {
			name = s.Name.Name
		}
		names[name] = p
		if name == "." {
			c.failf(s.Pos(), "%s is imported with a dot: what it is used for cannot be read", p)
		}
		if pure && slices.ContainsFunc(impure, func(no string) bool { return p == no || no == "os" && under(p, no) }) {
			c.failf(s.Pos(), "%s is pure and imports %s", in, p)
		}
		if quiet && (p == "log" || p == "log/slog") {
			c.failf(s.Pos(), "%s imports %s: it returns values or classified errors", in, p)
		}
		if !sql && slices.ContainsFunc(sqlModules, func(m string) bool { return under(p, m) }) {
			c.failf(s.Pos(), "%s imports %s and is not marked sql", in, p)
		}
		switch {
		case under(p, Module):
			to := room(strings.TrimPrefix(strings.TrimPrefix(p, Module), "/"))
			if to != in && !covers(row.Allow, to) {
				c.failf(s.Pos(), "%s imports %s, which its row does not name", in, to)
			}
			if to == "seal" && !slices.Contains([]string{"engine", "handover", "app", "bench"}, in) {
				c.failf(s.Pos(), "%s imports seal; only engine, handover, app and bench do", in)
			}
		case strings.Contains(strings.Split(p, "/")[0], "."):
			i := slices.IndexFunc(c.t.Modules, func(r Row) bool { return under(p, r.Name) })
			if i < 0 {
				c.failf(s.Pos(), "%s imports %s, which is in no row of the modules", in, p)
			} else if !covers(c.t.Modules[i].Allow, in) {
				c.failf(s.Pos(), "%s imports %s, whose row does not name it", in, p)
			}
		}
	}
	c.calls(in, pure, f, names)
	if in == "engine" {
		c.exported(f, names)
	}
}

// secretForms are the names of secret that make the encodable form. PartsOf,
// which takes it off again, is free.
var secretForms = []string{"Exposed", "Expose", "ExposeParts"}

func (c *checker) calls(in string, pure bool, f *ast.File, names map[string]string) {
	may := func(call string) bool {
		return slices.ContainsFunc(c.t.Calls, func(r Row) bool { return r.Name == call && covers(r.Allow, in) })
	}
	ast.Inspect(f, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		// NOTE: any mention counts, called or passed on as a method value.
		if s.Sel.Name == "Reveal" && !may(".Reveal") {
			c.failf(s.Sel.Pos(), "%s calls Reveal, and is not in its row", in)
		}
		x, ok := s.X.(*ast.Ident)
		if !ok {
			return true
		}
		switch p := names[x.Name]; {
		case p == Module+"/secret" && slices.Contains(secretForms, s.Sel.Name) && !may("secret.Exposed"):
			c.failf(s.Pos(), "%s uses secret.%s, and is not in the row of secret.Exposed", in, s.Sel.Name)
		case p == Module+"/internal/key" && s.Sel.Name == "SealedFrom" && !may("key.SealedFrom"):
			c.failf(s.Pos(), "%s uses key.SealedFrom, and is not in its row", in)
		case p == "time" && pure && slices.Contains(clock, s.Sel.Name):
			c.failf(s.Pos(), "%s is pure and uses time.%s", in, s.Sel.Name)
		}
		return true
	})
}

// exported checks that what the engine exports returns and holds nothing of
// secret, by itself or inside what a provider takes and returns.
func (c *checker) exported(f *ast.File, names map[string]string) {
	check := func(what string, e ast.Node) {
		ast.Inspect(e, func(n ast.Node) bool {
			if fn, ok := n.(*ast.FuncType); ok {
				if fn.Results != nil {
					for _, r := range fn.Results.List {
						c.holds(what, r.Type, names)
					}
				}
				return false
			}
			return true
		})
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && (d.Recv == nil || exportedReceiver(d.Recv)) {
				check(d.Name.Name, d.Type)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					if !s.Name.IsExported() {
						continue
					}
					switch t := s.Type.(type) {
					case *ast.StructType:
						for _, fl := range t.Fields.List {
							if len(fl.Names) == 0 || slices.ContainsFunc(fl.Names, (*ast.Ident).IsExported) {
								check(s.Name.Name, fl.Type)
								if _, fn := fl.Type.(*ast.FuncType); !fn {
									c.holds(s.Name.Name, fl.Type, names)
								}
							}
						}
					case *ast.InterfaceType, *ast.FuncType:
						check(s.Name.Name, s.Type)
					default:
						c.holds(s.Name.Name, s.Type, names)
					}
				case *ast.ValueSpec:
					if s.Type != nil && slices.ContainsFunc(s.Names, (*ast.Ident).IsExported) {
						c.holds(s.Names[0].Name, s.Type, names)
					}
				}
			}
		}
	}
}

func exportedReceiver(l *ast.FieldList) bool {
	exported := false
	ast.Inspect(l.List[0].Type, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			exported = exported || id.IsExported()
			return false
		}
		return true
	})
	return exported
}

func (c *checker) holds(what string, e ast.Expr, names map[string]string) {
	ast.Inspect(e, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := s.X.(*ast.Ident)
		if !ok {
			return true
		}
		switch p := names[x.Name]; {
		case p == Module+"/secret",
			p == Module+"/internal/provider" && slices.Contains([]string{"Issued", "Env", "Request"}, s.Sel.Name):
			c.failf(s.Pos(), "%s of the engine returns or holds %s.%s: nothing of it may return a secret", what, x.Name, s.Sel.Name)
		}
		return true
	})
}
