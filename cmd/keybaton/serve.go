package main

import (
	"errors"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
	"github.com/keybaton/keybaton/secret"
)

func serveCommand() *cobra.Command {
	set := app.Defaults()
	var verbose, jsonLog bool
	var poll time.Duration
	var readyFile string
	var from app.StoreSource
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Start the server: store, engine, API and gateway",
		Long: `Start the server: store, engine, API and gateway, in one process.

The data directory keeps the store and the gateway's sealed cache; the
configuration directory keeps the master key and the admin token, both readable
by their owner only. Without the master key the store cannot be opened: keep a
copy elsewhere.

The store is a SQLite file, or a PostgreSQL database (15 or newer) that several
servers share: give them one master key, and each a name and a data directory of
its own. The URL of the database comes by $KEYBATON_STORE or --store-file, as the
command line is read by everybody on the machine; --store takes one without a
password. PGPASSWORD, PGPASSFILE and the other variables of libpq work. For a
cluster that fails over name every host:
postgres://user@host1,host2/keybaton?target_session_attrs=read-write

Alerts are printed, and posted as JSON to each URL in KEYBATON_WEBHOOKS (separated
by spaces), signed with KEYBATON_WEBHOOK_SECRET if that is set.`,
		Example: "  keybaton serve\n  keybaton serve --data ./data --config ./config\n  KEYBATON_STORE=postgres://keybaton@db.internal/keybaton keybaton serve --name eu-1",
		Args:    cli.Nothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			var h slog.Handler = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})
			if jsonLog {
				h = slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})
			}
			set.Log, set.Alerts, set.Poll = slog.New(h), os.Stderr, poll
			// The address of a webhook is often its password: it comes by the environment, never by the command line.
			for _, u := range strings.Fields(os.Getenv("KEYBATON_WEBHOOKS")) {
				set.Webhooks = append(set.Webhooks, secret.FromString(u))
			}
			set.WebhookSecret = secret.FromString(os.Getenv("KEYBATON_WEBHOOK_SECRET"))
			var err error
			if set.Store, err = readStore(from); err != nil {
				return explained(err)
			}
			if err := forgetReady(readyFile); err != nil {
				return explained(err)
			}
			a, err := app.Start(cmd.Context(), set)
			if err != nil {
				return explained(err)
			}
			limitGarbage()
			notReady, err := writeReady(readyFile, a)
			if err != nil {
				return errors.Join(err, a.Close())
			}
			file, made := a.TokenFile()
			say("keybaton %s", app.Version)
			say("  API      %s", a.API())
			if g := a.Gateway(); g != "" {
				say("  gateway  %s", g)
			}
			say("  data     %s", set.Data)
			if !set.Store.IsZero() {
				say("  store    PostgreSQL")
			}
			say("  token    %s", file)
			if made && terminal(os.Stderr) {
				if b, err := os.ReadFile(file); err == nil {
					say("           %s", strings.TrimSpace(string(b)))
				}
			}
			<-cmd.Context().Done()
			say("stopping")
			notReady()
			return explained(a.Close())
		},
	}
	f := cmd.Flags()
	storeFlags(f, &set, &from)
	f.StringVar(&set.Name, "name", env("KEYBATON_NAME", ""), "of this server among those on one store; default that of its host, with PostgreSQL ($KEYBATON_NAME)")
	f.StringVar(&set.Config, "config", env("KEYBATON_CONFIG", set.Config), "directory of the master key and the admin token ($KEYBATON_CONFIG)")
	f.StringVar(&set.MasterKey, "master-key", env("KEYBATON_MASTER_KEY", ""), "file of the master key; default master.key in --config ($KEYBATON_MASTER_KEY)")
	f.StringVar(&set.API, "api", env("KEYBATON_API", set.API), "address of the API ($KEYBATON_API)")
	f.StringVar(&set.Gateway, "gateway", env("KEYBATON_GATEWAY", set.Gateway), "address of the gateway, or off ($KEYBATON_GATEWAY)")
	f.StringVar(&set.CertFile, "tls-cert", env("KEYBATON_TLS_CERT", ""), "certificate for both addresses ($KEYBATON_TLS_CERT)")
	f.StringVar(&set.KeyFile, "tls-key", env("KEYBATON_TLS_KEY", ""), "its private key ($KEYBATON_TLS_KEY)")
	f.BoolVar(&set.InsecureHTTP, "insecure-http", false, "plain HTTP off loopback: keys and tokens cross the network in the clear")
	f.StringVar(&readyFile, "ready-file", "", "write the addresses to this file, as JSON, once the server answers; it is removed when the server stops")
	f.DurationVar(&poll, "poll", time.Second, "how often a waiting gate is looked at again")
	f.BoolVarP(&verbose, "verbose", "v", false, "log more")
	f.BoolVar(&jsonLog, "log-json", false, "log as JSON")
	return cmd
}

// storeFlags are those of every verb that opens the store.
func storeFlags(f *pflag.FlagSet, set *app.Settings, from *app.StoreSource) {
	f.StringVar(&set.Data, "data", env("KEYBATON_DATA", set.Data), "directory of the SQLite store and the gateway's cache ($KEYBATON_DATA)")
	f.StringVar(&from.Flag, "store", "", "sqlite, or the URL of a PostgreSQL database, without a password; default $KEYBATON_STORE, which may have one")
	f.StringVar(&from.File, "store-file", env("KEYBATON_STORE_FILE", ""), "file with the URL of the store ($KEYBATON_STORE_FILE)")
}

// readStore returns the URL of the store. What the environment says is no
// default of a flag: it would be printed by --help.
func readStore(from app.StoreSource) (secret.Value, error) {
	if from.Flag != "" && os.Getenv("KEYBATON_STORE_FILE") == from.File {
		from.File = "" // a flag counts before the environment
	}
	from.Env = secret.FromString(os.Getenv("KEYBATON_STORE"))
	return from.Read()
}

func env(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// limitGarbage collects more often where a great store fills the memory: what a
// small server does not notice would be gigabytes.
func limitGarbage() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 128<<20 {
		debug.SetGCPercent(50)
	}
}
