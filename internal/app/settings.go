// Package app wires the rooms into a running server, and owns its settings and
// its life: what starts, in which order, and how it stops. It holds no rules.
package app

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/secret"
)

// The defaults of a server.
const (
	DefaultAPI     = "127.0.0.1:7460"
	DefaultGateway = "127.0.0.1:7461"
)

// Settings say how a server runs; what it manages is in keybaton.yaml. The zero
// value of a field means its default.
type Settings struct {
	Store     secret.Value // URL of a PostgreSQL database; empty: a SQLite file in Data. See [StoreSource]
	Name      string       // of this server among those on one store; default that of its host, and none on SQLite
	Data      string       // directory of the SQLite file and the gateway's cache; one server's alone
	Config    string       // directory of the master key and the admin token; never Data
	MasterKey string       // file; default master.key in Config
	API       string       // address of API and dashboard
	Gateway   string       // address of the gateway; "off" for none

	CertFile, KeyFile string // TLS for both addresses
	InsecureHTTP      bool   // plain HTTP off loopback

	Webhooks      []secret.Value // URLs that alerts are posted to
	WebhookSecret secret.Value   // signs what is posted; empty: it is not signed
	Alerts        io.Writer      // where alerts are printed; nil: nowhere
	Log           *slog.Logger

	// For tests and the demo.
	Now       func() time.Time
	Lease     time.Duration     // of the work on one credential; default 30 s
	Poll      time.Duration     // how often a gate is looked at again; default 1 s
	Report    time.Duration     // between a gateway's reports; default 1 s
	Probe     time.Duration     // least time between two of a gateway's probes of a version; default 1 s
	Detect    time.Duration     // between two looks of the detector; default 1 s
	Providers provider.Registry // more than the catalog's

	clock func() time.Time // Now as it was given
}

// Defaults returns the settings of a server started by the present user: root
// keeps its data in /var/lib/keybaton and its configuration in /etc/keybaton,
// others in the XDG directories.
func Defaults() Settings {
	s := Settings{API: DefaultAPI, Gateway: DefaultGateway}
	if os.Geteuid() == 0 {
		s.Data, s.Config = "/var/lib/keybaton", "/etc/keybaton"
		return s
	}
	s.Data = filepath.Join(xdg("XDG_DATA_HOME", ".local/share"), "keybaton")
	s.Config = filepath.Join(xdg("XDG_CONFIG_HOME", ".config"), "keybaton")
	return s
}

func xdg(name, under string) string {
	if d := os.Getenv(name); d != "" {
		return d
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return under
	}
	return filepath.Join(home, under)
}

// complete fills the defaults in and reports what is wrong.
func (s Settings) complete() (Settings, error) {
	d := Defaults()
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&s.Data, d.Data)
	set(&s.Config, d.Config)
	set(&s.API, d.API)
	set(&s.Gateway, d.Gateway)
	set(&s.MasterKey, filepath.Join(s.Config, "master.key"))
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.clock = s.Now
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.Poll == 0 {
		s.Poll = time.Second
	}
	data, err1 := filepath.Abs(s.Data)
	master, err2 := filepath.Abs(s.MasterKey)
	if err := errors.Join(err1, err2); err != nil {
		return s, err
	}
	if filepath.Dir(master) == data {
		return s, key.WithHint(fmt.Errorf("%w: the master key %s would lie beside the data it protects", key.ErrInvalid, master), "keep it elsewhere: --config DIR or --master-key FILE")
	}
	for _, a := range []string{s.API, s.Gateway} {
		if err := s.checkAddress(a); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s Settings) checkAddress(addr string) error {
	if addr == "off" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return key.WithHint(fmt.Errorf("%w: address %q", key.ErrInvalid, addr), "write it like 127.0.0.1:7460")
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		return key.WithHint(fmt.Errorf("%w: TLS needs a certificate and its key", key.ErrInvalid), "give both --tls-cert and --tls-key")
	}
	if s.CertFile != "" || s.InsecureHTTP || loopback(host) {
		return nil
	}
	return key.WithHint(fmt.Errorf("%w: %s is not loopback, and without TLS keys and tokens would cross the network in the clear", key.ErrInvalid, addr),
		"give --tls-cert and --tls-key, or --insecure-http if something in front does TLS")
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
