//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/internal/access"
	"github.com/keybaton/keybaton/internal/audit"
	"github.com/keybaton/keybaton/internal/engine"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/provider/recipe"
	"github.com/keybaton/keybaton/internal/seal"
	"github.com/keybaton/keybaton/internal/store"
	"github.com/keybaton/keybaton/internal/store/sqlite"
	"github.com/keybaton/keybaton/secret"
)

// scaleResult is the last line of the scale benchmark. Times are from the start
// of the process; single figures are medians over the starts after the first.
type scaleResult struct {
	Bench       string            `json:"bench"`
	Credentials int               `json:"credentials"`
	Start       float64           `json:"start_seconds"`       // until the API answers and the gateway serves
	First       float64           `json:"first_start_seconds"` // the same, with no gateway cache yet
	API         float64           `json:"api_seconds"`         // until GET /readyz is 200
	Gateway     float64           `json:"gateway_seconds"`     // until a request through the gateway is 200
	CPU         float64           `json:"start_cpu_seconds"`   // until both
	Settled     float64           `json:"settled_seconds"`     // until the process rests
	Memory      float64           `json:"rss_mib"`             // at rest
	Most        float64           `json:"rss_peak_mib"`        // since the start
	Idle        float64           `json:"idle_cpu_percent"`    // of one core, over ten seconds at rest
	Change      float64           `json:"change_seconds"`      // from a new key that is set to the first request with it
	ChangeCPU   float64           `json:"change_cpu_seconds"`  // of the server, for that
	One         float64           `json:"one_credential_ms"`   // GET of one credential by the API
	All         float64           `json:"all_credentials_s"`   // GET of all
	Starts      int               `json:"starts"`              // that were measured
	StoreMiB    float64           `json:"store_mib"`           // on disk
	Spread      map[string]spread `json:"spread"`
	Load        string            `json:"load_average"`
}

// fresh is an environment of the first service that has no key yet.
const fresh = "fresh"

// perService is how many environments each service of the store has.
const perService = 100

// dataKeys keeps the keyring's data keys in the store.
type dataKeys struct{ store store.Store }

func (d dataKeys) DataKeys(ctx context.Context) (keys map[string][]byte, err error) {
	err = d.store.View(ctx, func(tx store.Tx) error {
		keys, err = tx.DataKeys()
		return err
	})
	return keys, err
}

func (d dataKeys) PutDataKey(ctx context.Context, name string, wrapped []byte) error {
	return d.store.Update(ctx, audit.Entry{Actor: "bench", Action: "datakey.created"}, func(tx store.Tx) error { return tx.PutDataKey(name, wrapped) })
}

// scaleID returns the i-th credential.
func scaleID(i int) key.CredentialID {
	return key.CredentialID{Service: fmt.Sprintf("service-%05d", i/perService), Environment: fmt.Sprintf("env-%02d", i%perService)}
}

// fill makes the store of a server with b.creds credentials, each with a primary
// that a person has set, and returns a token for the first.
func (b *bench) fill(ctx context.Context, name, upstream string) (token string, err error) {
	data, config := b.dirs(name)
	st, err := sqlite.Open(ctx, filepath.Join(data, "keybaton.db"), sqlite.Options{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	src := dataKeys{st}
	master, err := seal.OpenMaster(ctx, filepath.Join(config, "master.key"), src)
	if err != nil {
		return "", err
	}
	ring := seal.New(master, src)
	if err := ring.Check(ctx); err != nil {
		return "", err
	}
	tok, hash, err := client.NewToken("")
	if err != nil {
		return "", err
	}
	if err := b.declare(ctx, st, ring, upstream); err != nil {
		return "", err
	}
	why := audit.Entry{Actor: "bench", Action: "bench.filled"}
	err = st.Update(ctx, why, func(tx store.Tx) error {
		first := []string{scaleID(0).Service}
		_, err := tx.TouchAll()
		return errors.Join(err, tx.PutToken(access.Token{Name: "bench-load", Hash: hash, Role: access.RoleConsumer, Kind: key.KindReader, Created: tx.Now(), By: "bench",
			Grants: []access.Grant{{Environment: scaleID(0).Environment, Services: first}, {Environment: fresh, Services: first}}}))
	})
	if err != nil {
		return "", err
	}
	const batch = 5000
	for from := 0; from < b.creds; from += batch {
		n := min(batch, b.creds-from)
		boxes, prints := make([]key.Sealed, n), make([]string, n)
		for i := range n {
			value := keyA // the first one is used
			if from+i > 0 {
				value = "sk-bench-" + strconv.Itoa(from+i) + "-0123456789abcdef0123456789abcdef"
			}
			if boxes[i], prints[i], err = ring.Seal(ctx, key.VersionID{Credential: scaleID(from + i), Number: 1}, secret.Parts{"key": secret.FromString(value)}); err != nil {
				return "", err
			}
		}
		err = st.Update(ctx, why, func(tx store.Tx) error {
			for i := range n {
				if err := install(tx, scaleID(from+i), boxes[i], prints[i]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	// The engine has looked at each of them, and nothing is expected of any.
	err = st.Observe(ctx, func(tx store.Tx) error {
		for i := range b.creds {
			l, err := tx.ClaimItem("credential", scaleID(i).String(), "bench", time.Minute)
			if err == nil {
				err = tx.Release(l, time.Time{})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return string(tok.Reveal()), err
}

// declare says what is managed, as an apply would.
func (b *bench) declare(ctx context.Context, st store.Store, ring *seal.Keyring, upstream string) error {
	drivers, err := recipe.Drivers()
	if err != nil {
		return err
	}
	call := key.Call{Upstream: "http://" + upstream, Place: key.Place{In: key.InHeader, Name: "Authorization", Value: "Bearer {{key}}"}}
	c := engine.Configuration{Credentials: []key.Credential{{ID: key.CredentialID{Service: scaleID(0).Service, Environment: fresh}}}}
	for i := range b.creds {
		if i%perService == 0 {
			c.Services = append(c.Services, key.Service{Name: scaleID(i).Service, Provider: "manual", Call: call})
		}
		c.Credentials = append(c.Credentials, key.Credential{ID: scaleID(i)})
	}
	return engine.New(engine.Config{Store: st, Keyring: ring, Providers: drivers}).Configure(ctx, access.System, c)
}

// install makes a sealed key the primary of a credential that has none.
func install(tx store.Tx, id key.CredentialID, box key.Sealed, print string) error {
	c, err := tx.Credential(id)
	if err != nil {
		return err
	}
	v := key.Version{ID: key.VersionID{Credential: id, Number: c.Next}, State: key.StatePrimary, Origin: key.OriginSet, Fingerprint: print, Created: tx.Now(), Since: tx.Now()}
	c.Slots.Primary, c.Next, c.Rotated = c.Next, c.Next+1, tx.Now()
	if err := tx.PutCredential(c); err != nil {
		return err
	}
	if err := tx.PutVersion(v); err != nil {
		return err
	}
	if err := tx.PutSealed(v.ID, box); err != nil {
		return err
	}
	_, err = tx.Touch(id)
	return err
}

func (b *bench) scale(ctx context.Context) (_ any, err error) {
	v, err := b.startVendor(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.stop()) }()
	began := time.Now()
	token, err := b.fill(ctx, "scale", v.addr)
	if err != nil {
		return nil, fmt.Errorf("filling the store: %w", err)
	}
	res := scaleResult{Bench: "scale", Credentials: b.creds, Starts: b.rounds}
	fmt.Printf("filled the store with %d credentials in %.1f s\n", b.creds, time.Since(began).Seconds())
	var start, apis, gws, cpu, settled, rss, peak, idle series
	for i := range b.rounds + 1 {
		s, r, err := b.startScaled(ctx, token)
		if err != nil {
			return nil, err
		}
		if err := s.rest(ctx, &r); err != nil {
			return nil, errors.Join(err, s.stop())
		}
		fmt.Printf("start %d: API after %.2f s, gateway after %.2f s (CPU %.2f s), at rest after %.1f s; RSS %.0f MiB, at most %.0f MiB; idle CPU %.2f %%\n",
			i+1, r.API, r.Gateway, r.CPU, r.Settled, r.Memory, r.Most, r.Idle)
		if i == 0 {
			res.First = round(r.Start, 2)
		} else {
			start, apis, gws, cpu, settled = append(start, r.Start), append(apis, r.API), append(gws, r.Gateway), append(cpu, r.CPU), append(settled, r.Settled)
			rss, peak, idle = append(rss, r.Memory), append(peak, r.Most), append(idle, r.Idle)
		}
		if i == b.rounds {
			err = s.live(ctx, &res, token)
		}
		if err := errors.Join(err, s.stop()); err != nil {
			return nil, err
		}
	}
	data, _ := b.dirs("scale")
	res.StoreMiB = round(sizeOf(filepath.Join(data, "keybaton.db")), 1)
	res.Start, res.API, res.Gateway, res.CPU, res.Settled = round(start.median(), 2), round(apis.median(), 2), round(gws.median(), 2), round(cpu.median(), 2), round(settled.median(), 1)
	res.Memory, res.Most, res.Idle, res.Load = round(rss.median(), 0), round(peak.median(), 0), round(idle.median(), 2), loadAverage()
	res.Spread = map[string]spread{"start_seconds": start.spread(2), "rss_mib": rss.spread(0), "idle_cpu_percent": idle.spread(2), "start_cpu_seconds": cpu.spread(2)}
	fmt.Printf("one credential by the API %.1f ms, all %.2f s; a new key is in use %.2f s after it was set (CPU %.2f s)\n", res.One, res.All, res.Change, res.ChangeCPU)
	return res, nil
}

// startScaled starts the server on the filled store and returns when both of
// its addresses answer.
func (b *bench) startScaled(ctx context.Context, token string) (*kb, scaleResult, error) {
	var r scaleResult
	data, config := b.dirs("scale")
	apiAddr, err := freeAddr()
	if err != nil {
		return nil, r, err
	}
	gwAddr, err := freeAddr()
	if err != nil {
		return nil, r, err
	}
	keep, err := b.log("scale.log")
	if err != nil {
		return nil, r, err
	}
	began := time.Now()
	c, err := b.start("keybaton", partyCPU, keep, b.binary, "serve", "--data", data, "--config", config, "--api", apiAddr, "--gateway", gwAddr)
	if err != nil {
		return nil, r, err
	}
	s := &kb{child: c, api: "http://" + apiAddr, gateway: "http://" + gwAddr}
	if err := s.until200(ctx, s.api+"/readyz", ""); err != nil {
		return nil, r, errors.Join(err, c.stop())
	}
	r.API = time.Since(began).Seconds()
	if err := s.until200(ctx, s.gateway+"/"+scaleID(0).Service+"@"+scaleID(0).Environment+"/v1/data", token); err != nil {
		return nil, r, errors.Join(err, c.stop())
	}
	r.Gateway = time.Since(began).Seconds()
	r.Start = max(r.API, r.Gateway)
	used, err := c.cpu()
	r.CPU = used.Seconds()
	if err == nil {
		var tok secret.Value
		if tok, err = client.ReadTokenFile(filepath.Join(config, "admin.token")); err == nil {
			s.client, err = client.New(client.Config{Address: s.api, Token: tok})
		}
	}
	if err != nil {
		return nil, r, errors.Join(err, c.stop())
	}
	r.Settled = time.Since(began).Seconds() // not before
	return s, r, nil
}

// until200 asks until the answer is 200.
func (s *kb) until200(ctx context.Context, url, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for {
		_, err := get(ctx, url, token)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-s.done:
			return fmt.Errorf("keybaton ended: %w", errors.Join(s.err, err))
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", url, err)
		}
	}
}

// atRest is how long after its start a server is looked at: it has given back
// the memory that starting took.
const atRest = 20 * time.Second

// rest waits until the server does next to nothing, for a minute at most, and
// then looks at what it still does in ten seconds.
func (s *kb) rest(ctx context.Context, r *scaleResult) error {
	began := time.Now()
	for time.Since(began) < time.Minute {
		used, err := s.busy(ctx, time.Second)
		if err != nil {
			return err
		}
		if used < 50*time.Millisecond {
			break
		}
	}
	r.Settled += time.Since(began).Seconds()
	if left := atRest - time.Since(began); left > 0 {
		if _, err := s.busy(ctx, left); err != nil {
			return err
		}
	}
	used, err := s.busy(ctx, 10*time.Second)
	if err != nil {
		return err
	}
	r.Idle = 100 * used.Seconds() / 10
	r.Memory, r.Most = s.memory()
	return nil
}

// busy returns the CPU time that the server uses in d.
func (s *kb) busy(ctx context.Context, d time.Duration) (time.Duration, error) {
	before, err := s.cpu()
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-s.done:
		return 0, fmt.Errorf("keybaton ended: %v", s.err)
	}
	after, err := s.cpu()
	return after - before, err
}

// live measures what a running server does with its many credentials: it shows
// one and all, and a new key is brought in.
func (s *kb) live(ctx context.Context, res *scaleResult, token string) error {
	id := client.Credential{Service: scaleID(0).Service, Environment: scaleID(0).Environment}
	began := time.Now()
	if _, err := s.client.Credential(ctx, id); err != nil {
		return fmt.Errorf("reading one credential: %w", err)
	}
	res.One = round(time.Since(began).Seconds()*1000, 1)
	began = time.Now()
	if _, err := s.client.Credentials(ctx, client.Filter{}); err != nil {
		fmt.Println("reading all credentials fails:", err)
		res.All = -1
	} else {
		res.All = round(time.Since(began).Seconds(), 2)
	}
	before, err := s.cpu()
	if err != nil {
		return err
	}
	id = client.Credential{Service: id.Service, Environment: fresh}
	began = time.Now()
	if _, err := s.client.Set(ctx, id, secret.Parts{"key": secret.FromString(keyA)}, "bench"); err != nil {
		return fmt.Errorf("setting a key: %w", err)
	}
	if err := s.until200(ctx, s.gateway+"/"+id.Service+"@"+fresh+"/v1/data", token); err != nil {
		return err
	}
	res.Change = round(time.Since(began).Seconds(), 2)
	// What follows on the heels of a change belongs to it.
	if _, err := s.busy(ctx, 3*time.Second); err != nil {
		return err
	}
	after, err := s.cpu()
	res.ChangeCPU = round((after - before).Seconds(), 2)
	return err
}

// sizeOf returns the size of a file in MiB.
func sizeOf(path string) float64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return float64(fi.Size()) / (1 << 20)
}
