package main

import (
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/internal/app"
)

func serveCommand() *cobra.Command {
	set := app.Defaults()
	var verbose, jsonLog bool
	var poll time.Duration
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Start the server: store, engine, API and gateway",
		Long: `Start the server: store, engine, API and gateway, in one process.

The data directory keeps the store and the gateway's sealed cache; the
configuration directory keeps the master key and the admin token, both readable
by their owner only. Without the master key the store cannot be opened: keep a
copy elsewhere.`,
		Example: "  keybaton serve\n  keybaton serve --data ./data --config ./config",
		Args:    cobra.NoArgs,
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
			a, err := app.Start(cmd.Context(), set)
			if err != nil {
				return explained(err)
			}
			file, made := a.TokenFile()
			say("keybaton %s", app.Version)
			say("  API      %s", a.API())
			if g := a.Gateway(); g != "" {
				say("  gateway  %s", g)
			}
			say("  data     %s", set.Data)
			say("  token    %s", file)
			if made && terminal(os.Stderr) {
				if b, err := os.ReadFile(file); err == nil {
					say("           %s", strings.TrimSpace(string(b)))
				}
			}
			<-cmd.Context().Done()
			say("stopping")
			return explained(a.Close())
		},
	}
	f := cmd.Flags()
	f.StringVar(&set.Data, "data", env("KEYBATON_DATA", set.Data), "directory of the store ($KEYBATON_DATA)")
	f.StringVar(&set.Config, "config", env("KEYBATON_CONFIG", set.Config), "directory of the master key and the admin token ($KEYBATON_CONFIG)")
	f.StringVar(&set.MasterKey, "master-key", env("KEYBATON_MASTER_KEY", ""), "file of the master key; default master.key in --config ($KEYBATON_MASTER_KEY)")
	f.StringVar(&set.API, "api", env("KEYBATON_API", set.API), "address of the API ($KEYBATON_API)")
	f.StringVar(&set.Gateway, "gateway", env("KEYBATON_GATEWAY", set.Gateway), "address of the gateway, or off ($KEYBATON_GATEWAY)")
	f.StringVar(&set.CertFile, "tls-cert", env("KEYBATON_TLS_CERT", ""), "certificate for both addresses ($KEYBATON_TLS_CERT)")
	f.StringVar(&set.KeyFile, "tls-key", env("KEYBATON_TLS_KEY", ""), "its private key ($KEYBATON_TLS_KEY)")
	f.BoolVar(&set.InsecureHTTP, "insecure-http", false, "plain HTTP off loopback: keys and tokens cross the network in the clear")
	f.StringArrayVar(&set.Webhooks, "webhook", split(env("KEYBATON_WEBHOOKS", "")), "post alerts to this URL; may be repeated ($KEYBATON_WEBHOOKS, separated by spaces)")
	f.DurationVar(&poll, "poll", time.Second, "how often a waiting gate is looked at again")
	f.BoolVarP(&verbose, "verbose", "v", false, "log more")
	f.BoolVar(&jsonLog, "log-json", false, "log as JSON")
	return cmd
}

func env(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

func split(s string) []string { return strings.Fields(s) }
