package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// versions is the table in which the number of the schema is kept.
const versions = "schema_version"

// Schema says which schema a database has, and which one this program brings.
type Schema struct{ Have, Know int64 }

// check returns key.ErrNewer for a schema that this program does not know.
func (s Schema) check() error {
	if s.Have <= s.Know {
		return nil
	}
	return key.WithHint(fmt.Errorf("%w: its schema has number %d, this program knows %d", key.ErrNewer, s.Have, s.Know),
		"run the newer keybaton that made it, or restore a backup from before the upgrade")
}

// ReadSchema returns the schema of the database that c names, without changing
// anything; Have is 0 where there is none yet. One that is newer than this
// program is key.ErrNewer. c stays with the caller.
func ReadSchema(ctx context.Context, c Config) (Schema, error) {
	s := &Store{c: c}
	var have Schema
	err := func() error {
		p, err := provider(c)
		if err != nil {
			return err
		}
		for _, m := range p.ListSources() {
			have.Know = max(have.Know, m.Version)
		}
		var n int
		if err := c.Read.QueryRowContext(ctx, c.Dialect.Tables, versions).Scan(&n); err != nil || n == 0 {
			return err
		}
		// The newest row counts: there is no way back.
		err = c.Read.QueryRowContext(ctx, `SELECT version_id FROM `+versions+` ORDER BY id DESC LIMIT 1`).Scan(&have.Have)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	}()
	if err == nil {
		err = have.check()
	}
	return have, s.explain("reading the schema", err)
}

func provider(c Config) (*goose.Provider, error) {
	dir, err := c.Dialect.migrations()
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(c.Dialect.Goose, c.Write, dir,
		goose.WithDisableGlobalRegistry(true), goose.WithTableName(versions), goose.WithLogger(goose.NopLogger()))
}

// migrate brings the schema up to date. Of several processes that start at
// once, one does it and the others wait.
func migrate(ctx context.Context, c Config) error {
	p, err := provider(c)
	if err != nil {
		return err
	}
	up := func() error {
		var s Schema
		var err error
		if s.Have, s.Know, err = p.GetVersions(ctx); err == nil {
			err = s.check()
		}
		if err == nil && s.Have < s.Know {
			_, err = p.Up(ctx)
		}
		return err
	}
	if c.Dialect.Alone == nil {
		return up()
	}
	return c.Dialect.Alone(ctx, up)
}

// migrations returns the migrations as the database takes them.
func (d Dialect) migrations() (fs.FS, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil || d.Text == "" {
		return dir, err
	}
	return declared{dir, []byte(d.Text)}, nil
}

// declared are migrations whose columns of TEXT are declared in another way.
type declared struct {
	fs.FS
	text []byte
}

var textType = regexp.MustCompile(`\bTEXT\b`)

// Open opens a migration.
func (d declared) Open(name string) (fs.File, error) {
	f, err := d.FS.Open(name)
	if err != nil || path.Ext(name) != ".sql" {
		return f, err
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return declaredFile{f, bytes.NewReader(textType.ReplaceAllLiteral(b, d.text))}, nil
}

type declaredFile struct {
	fs.File
	r *bytes.Reader
}

// Read reads what the database takes.
func (f declaredFile) Read(b []byte) (int, error) { return f.r.Read(b) }
