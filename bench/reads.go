//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/keybaton/keybaton/internal/link"
)

// readsResult is the last line of the reads benchmark; medians over the rounds.
type readsResult struct {
	Bench    string            `json:"bench"`
	PerCore  float64           `json:"reads_per_second_per_core"` // 1e6 / cpu_us_per_read
	Measured float64           `json:"reads_per_second"`
	CPU      float64           `json:"cpu_us_per_read"`
	P50      float64           `json:"p50_us"` // with every connection busy
	P99      float64           `json:"p99_us"`
	Failed   int64             `json:"failed"`
	Floor    float64           `json:"livez_per_second_per_core"` // the same server, answering two bytes without a token
	Rounds   int               `json:"rounds"`
	Spread   map[string]spread `json:"spread"`
	Load     string            `json:"load_average"`
}

const readsYAML = `version: 1
services:
  billing: {provider: manual, upstream: "http://127.0.0.1:9"}
credentials:
  - {service: billing, environment: prod}
`

func (b *bench) reads(ctx context.Context) (_ any, err error) {
	s, err := b.serve(ctx, "reads")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.install(ctx, readsYAML, "billing", keyA); err != nil {
		return nil, err
	}
	tok, err := s.token(ctx, "bench-reader", "reader", time.Hour, "billing")
	if err != nil {
		return nil, err
	}
	target := load{s.api + link.ReadPath + "?" + url.Values{"service": {"billing"}, "environment": {environment}}.Encode(), tok}
	body, err := get(ctx, target.url, tok)
	if err != nil {
		return nil, err
	}
	var read struct {
		Parts map[string]string `json:"parts"`
	}
	if err := json.Unmarshal(body, &read); err != nil || read.Parts["key"] != keyA {
		return nil, fmt.Errorf("the read does not answer the key: %w", err)
	}
	reader := &party{name: "secret read", load: target, proc: s.child}
	floor := &party{name: "livez", load: load{url: s.api + "/livez"}, proc: s.child}
	var p50, p99 series
	for range b.rounds {
		for _, p := range []*party{floor, reader} {
			l, err := b.measure(ctx, p)
			if err != nil {
				return nil, err
			}
			if p == reader {
				p50, p99 = append(p50, l.P50), append(p99, l.P99)
			}
		}
	}
	for _, p := range []*party{reader, floor} {
		fmt.Printf("%-12s  %s requests/s, CPU %s µs each, failed %d\n", p.name, p.rate.text("%.0f"), p.cpu.text("%.1f"), p.failed)
	}
	return readsResult{Bench: "reads", PerCore: round(1e6/reader.cpu.median(), 0), Measured: round(reader.rate.median(), 0), CPU: round(reader.cpu.median(), 2),
		P50: round(p50.median(), 1), P99: round(p99.median(), 1), Failed: reader.failed, Floor: round(1e6/floor.cpu.median(), 0), Rounds: b.rounds, Load: loadAverage(),
		Spread: map[string]spread{"cpu_us_per_read": reader.cpu.spread(2), "reads_per_second": reader.rate.spread(0), "livez_cpu_us": floor.cpu.spread(2)}}, nil
}

// measure puts load on p once, with no vendor behind it.
func (b *bench) measure(ctx context.Context, p *party) (loaded, error) {
	if _, err := b.saturate(ctx, p.load, b.warm); err != nil {
		return loaded{}, err
	}
	cpu, err := p.cpuTime()
	if err != nil {
		return loaded{}, err
	}
	l, err := b.saturate(ctx, p.load, b.measured)
	if err != nil {
		return loaded{}, err
	}
	after, err := p.cpuTime()
	if err != nil {
		return loaded{}, err
	}
	p.rate = append(p.rate, l.rate())
	p.cpu = append(p.cpu, float64((after-cpu).Microseconds())/float64(max(l.Requests, 1)))
	p.failed += l.Failed
	return l, nil
}
