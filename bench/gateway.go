//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// gatewayResult is the last line of the gateway benchmark. A ratio is nginx's
// CPU time for a request over that of Keybaton, in the same round: more than 1
// means that Keybaton serves more requests per core. Single figures are medians
// over the rounds.
type gatewayResult struct {
	Bench         string  `json:"bench"`
	NginxRatio    float64 `json:"nginx_ratio"`          // the primary is accepted
	NginxFallback float64 `json:"nginx_ratio_fallback"` // refused every time, then served with the fallback
	NginxLearned  float64 `json:"nginx_ratio_suspect"`  // the same, once the gateway has learned to try the fallback first
	Rate          float64 `json:"requests_per_second"`
	CPU           float64 `json:"cpu_us_per_request"`
	PerCore       float64 `json:"requests_per_second_per_core"` // 1e6 / cpu_us_per_request
	P50           float64 `json:"p50_us"`                       // at latency_rate requests a second
	P99           float64 `json:"p99_us"`
	LatencyRate   int     `json:"latency_rate"`
	Failed        int64   `json:"failed"` // requests through Keybaton that were answered other than 200

	NginxCPU   float64           `json:"nginx_cpu_us_per_request"`
	NginxP50   float64           `json:"nginx_p50_us"`
	NginxP99   float64           `json:"nginx_p99_us"`
	Throughput float64           `json:"nginx_ratio_throughput"` // of requests per second, as measured
	Direct     float64           `json:"direct_requests_per_second"`
	Spread     map[string]spread `json:"spread"`
	Rounds     int               `json:"rounds"`
	Memory     float64           `json:"rss_mib"`
	Load       string            `json:"load_average"`
}

// latencyRate is how many requests a second are sent when latency is measured.
const latencyRate = 5000

const gatewayYAML = `version: 1
services:
  billing:
    provider: manual
    upstream: "http://%[1]s"
    place: {header: Authorization, value: "Bearer {{key}}"}
    probe: {get: /me, valid: [200], invalid: [401]}
    early: 24h # a refusal of the new key is never held against it: it is tried first each time
  suspect:
    provider: manual
    upstream: "http://%[1]s"
    place: {header: Authorization, value: "Bearer {{key}}"}
    probe: {get: /me, valid: [200], invalid: [401]}
    early: 1s
credentials:
  - {service: billing, environment: prod, policy: bench}
  - {service: suspect, environment: prod, policy: bench}
policies:
  bench: {soak: {for: 240h, requests: 1000000, probes: 1000000}}
`

// party is one who is measured, in one situation.
type party struct {
	name string
	load load
	dead bool   // the vendor refuses the primary
	proc *child // nil: nobody's CPU counts

	rate, cpu, extra series // requests a second, µs a request, attempts at the vendor a request
	p50, p99         series // µs, at latencyRate
	failed           int64
}

func (b *bench) gateway(ctx context.Context) (_ any, err error) {
	v, err := b.startVendor(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.stop()) }()
	ngx, nginxURL, err := b.startNginx(ctx, v.addr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ngx.stop()) }()
	s, err := b.serve(ctx, "gateway")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.twoKeys(ctx, fmt.Sprintf(gatewayYAML, v.addr), "billing", "suspect"); err != nil {
		return nil, err
	}
	tok, err := s.token(ctx, "bench-load", "reader", 0, "billing", "suspect")
	if err != nil {
		return nil, err
	}
	if err := served(ctx, s.gateway+"/billing/v1/data", tok); err != nil {
		return nil, err
	}
	direct := &party{name: "direct", load: load{"http://" + v.addr + "/v1/data", keyA}}
	nginx := &party{name: "nginx", load: load{nginxURL + "/billing/v1/data", tok}, proc: ngx}
	ours := &party{name: "keybaton", load: load{s.gateway + "/billing/v1/data", tok}, proc: s.child}
	nginxDead := &party{name: "nginx, refused", load: nginx.load, proc: ngx, dead: true}
	oursDead := &party{name: "keybaton, refused", load: ours.load, proc: s.child, dead: true}
	learned := &party{name: "keybaton, suspect", load: load{s.gateway + "/suspect/v1/data", tok}, proc: s.child, dead: true}
	parties := []*party{direct, nginx, ours, nginxDead, oursDead, learned}
	for round := range b.rounds {
		for i := range parties { // every round begins with another one
			p := parties[(i+round)%len(parties)]
			if err := b.turn(ctx, p, v); err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", p.name, round+1, err)
			}
		}
	}
	now, _ := s.memory()
	table("requests/s", parties)
	ratio, fall, learn, through := nginx.cpu.over(ours.cpu), nginxDead.cpu.over(oursDead.cpu), nginxDead.cpu.over(learned.cpu), ours.rate.over(nginx.rate)
	fmt.Printf("against nginx, same round: accepted %s, refused each time %s, suspect %s; by throughput %s\n",
		ratio.text("%.2f"), fall.text("%.2f"), learn.text("%.2f"), through.text("%.2f"))
	return gatewayResult{Bench: "gateway", NginxRatio: round(ratio.median(), 3), NginxFallback: round(fall.median(), 3), NginxLearned: round(learn.median(), 3),
		Rate: round(ours.rate.median(), 0), CPU: round(ours.cpu.median(), 2), PerCore: round(1e6/ours.cpu.median(), 0),
		P50: round(ours.p50.median(), 1), P99: round(ours.p99.median(), 1), LatencyRate: latencyRate, Failed: ours.failed + oursDead.failed + learned.failed,
		NginxCPU: round(nginx.cpu.median(), 2), NginxP50: round(nginx.p50.median(), 1), NginxP99: round(nginx.p99.median(), 1),
		Throughput: round(through.median(), 3), Direct: round(direct.rate.median(), 0), Rounds: b.rounds, Memory: round(now, 1), Load: loadAverage(),
		Spread: map[string]spread{"nginx_ratio": ratio.spread(3), "nginx_ratio_fallback": fall.spread(3), "nginx_ratio_suspect": learn.spread(3),
			"nginx_ratio_throughput": through.spread(3), "cpu_us_per_request": ours.cpu.spread(2), "nginx_cpu_us_per_request": nginx.cpu.spread(2),
			"p50_us": ours.p50.spread(1), "p99_us": ours.p99.spread(1)}}, nil
}

// served waits until a request through the gateway is answered.
func served(ctx context.Context, url, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := get(ctx, url, token)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the gateway does not serve: %w", err)
		}
	}
}

// turn measures one party once.
func (b *bench) turn(ctx context.Context, p *party, v *vendorProc) error {
	mode := modeAll
	if p.dead {
		mode = modeDead
	}
	if err := v.mode(ctx, mode); err != nil {
		return err
	}
	if _, err := b.saturate(ctx, p.load, b.warm); err != nil {
		return err
	}
	if _, err := v.count(ctx); err != nil {
		return err
	}
	cpu, err := p.cpuTime()
	if err != nil {
		return err
	}
	l, err := b.saturate(ctx, p.load, b.measured)
	if err != nil {
		return err
	}
	after, err := p.cpuTime()
	if err != nil {
		return err
	}
	n, err := v.count(ctx)
	if err != nil {
		return err
	}
	p.rate = append(p.rate, l.rate())
	p.cpu = append(p.cpu, float64((after-cpu).Microseconds())/float64(max(l.Requests, 1)))
	p.extra = append(p.extra, float64(n.Accepted+n.Refused)/float64(max(l.Requests, 1)))
	p.failed += l.Failed
	if p.dead {
		return nil
	}
	l, err = b.generate(ctx, p.load, b.measured, latencyRate)
	if err != nil {
		return err
	}
	p.p50, p.p99 = append(p.p50, l.P50), append(p.p99, l.P99)
	p.failed += l.Failed
	return nil
}

func (p *party) cpuTime() (time.Duration, error) {
	if p.proc == nil {
		return 0, nil
	}
	return p.proc.cpu()
}

func table(what string, parties []*party) {
	fmt.Printf("%-18s  %-27s  %-22s  %-22s  %-26s  %-26s  %s\n", "", what, "CPU µs/request", "attempts/request",
		fmt.Sprintf("p50 µs at %d/s", latencyRate), fmt.Sprintf("p99 µs at %d/s", latencyRate), "failed")
	for _, p := range parties {
		cpu := p.cpu.text("%.1f")
		if p.proc == nil {
			cpu = "-"
		}
		fmt.Printf("%-18s  %-27s  %-22s  %-22s  %-26s  %-26s  %d\n", p.name, p.rate.text("%.0f"), cpu, p.extra.text("%.2f"),
			p.p50.text("%.0f"), p.p99.text("%.0f"), p.failed)
	}
}
