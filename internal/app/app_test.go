package app_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/demo"
	"context"
	"os"
	"log/slog"
)

func TestDemo(t *testing.T) {
	res, err := demo.Run(t.Context(), demo.Config{Out: os.Stdout, Callers: 4, Rate: 30, Start: func(ctx context.Context, dir string) (demo.Server, error) {
		a, err := app.Start(ctx, app.Settings{Data: filepath.Join(dir, "data"), Config: filepath.Join(dir, "config"), API: "127.0.0.1:0", Gateway: "127.0.0.1:0",
			Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Poll: 50 * time.Millisecond, Report: 100 * time.Millisecond, Probe: 200 * time.Millisecond})
		if err != nil {
			return demo.Server{}, err
		}
		tok, err := a.Token()
		return demo.Server{API: a.API(), Gateway: a.Gateway(), Token: tok, Close: a.Close}, err
	}})
	t.Logf("%+v %v", res, err)
}
