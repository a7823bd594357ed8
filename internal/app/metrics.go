package app

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keybaton/keybaton/internal/evidence"
	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/store"
)

// collector reads what consumers reported when it is scraped. Its labels are
// services, environments and outcomes: bounded by the configuration.
type collector struct {
	app                                                    *App
	attempts, answers, refused, failed, rotations, waiting *prometheus.Desc
}

// metrics returns the handler of /metrics.
func (a *App) metrics() http.Handler {
	by := []string{"service", "environment"}
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{app: a,
		attempts:  d("keybaton_attempts_total", "Attempts at vendors by outcome, as reported by the consumers that are known.", append(by, "slot", "outcome")...),
		answers:   d("keybaton_requests_total", "Requests answered to callers.", by...),
		refused:   d("keybaton_requests_refused_total", "Requests whose callers got the vendor's refusal of every version.", by...),
		failed:    d("keybaton_requests_failed_total", "Requests whose callers got an error that Keybaton made.", by...),
		rotations: d("keybaton_rotations_open", "Rotations that have not ended."),
		waiting:   d("keybaton_rotations_waiting_for_person", "Open rotations that wait for a person."),
	})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

// Describe sends the descriptions of the metrics.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.attempts, c.answers, c.refused, c.failed, c.rotations, c.waiting} {
		ch <- d
	}
}

// Collect reads the store once.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := c.app.short()
	defer cancel()
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	err := c.app.store.View(ctx, func(tx store.Tx) error {
		boots, err := tx.Boots()
		if err != nil {
			return err
		}
		slots := map[key.VersionID]string{}
		creds, err := tx.Credentials()
		if err != nil {
			return err
		}
		for _, cr := range creds {
			slots[key.VersionID{Credential: cr.ID, Number: cr.Slots.Primary}] = "primary"
			slots[key.VersionID{Credential: cr.ID, Number: cr.Slots.Fallback}] = "fallback"
		}
		type label struct {
			id            key.CredentialID
			slot, outcome string
		}
		attempts := map[label]int64{}
		answers := map[key.CredentialID]evidence.Answers{}
		for _, b := range boots {
			for _, u := range b.Uses {
				slot := slots[u.Version]
				if slot == "" {
					slot = "none"
				}
				for o, n := range map[evidence.Outcome]int64{evidence.OK: u.Live.OK, evidence.Auth: u.Live.Auth, evidence.Perm: u.Live.Perm, evidence.Rate: u.Live.Rate, evidence.Other: u.Live.Other} {
					attempts[label{u.Version.Credential, slot, string(o)}] += n
				}
			}
			for _, x := range b.Answers {
				s := answers[x.Credential]
				s.Requests, s.Refused, s.Failed = s.Requests+x.Requests, s.Refused+x.Refused, s.Failed+x.Failed
				answers[x.Credential] = s
			}
		}
		for l, n := range attempts {
			send(c.attempts, prometheus.CounterValue, float64(n), l.id.Service, l.id.Environment, l.slot, l.outcome)
		}
		for id, x := range answers {
			send(c.answers, prometheus.CounterValue, float64(x.Requests), id.Service, id.Environment)
			send(c.refused, prometheus.CounterValue, float64(x.Refused), id.Service, id.Environment)
			send(c.failed, prometheus.CounterValue, float64(x.Failed), id.Service, id.Environment)
		}
		rs, err := tx.Rotations(key.CredentialID{}, 1000)
		if err != nil {
			return err
		}
		open, person := 0, 0
		for _, r := range rs {
			if r.State.Ended() {
				continue
			}
			open++
			if r.Gate.Person {
				person++
			}
		}
		send(c.rotations, prometheus.GaugeValue, float64(open))
		send(c.waiting, prometheus.GaugeValue, float64(person))
		return nil
	})
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.rotations, err)
	}
}
