//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// load is what a caller sends: the same request again and again.
type load struct {
	url    string // http://host:port/path
	bearer string // "" for none
}

// loaded is what was seen in one measurement.
type loaded struct {
	Requests int64   `json:"requests"`
	Failed   int64   `json:"failed"` // other than 200, or no answer at all
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
}

func (l loaded) rate() float64 { return float64(l.Requests) / l.Seconds }

// saturate keeps every connection busy for d, with wrk, or without it by our
// own generator.
func (b *bench) saturate(ctx context.Context, l load, d time.Duration) (loaded, error) {
	wrk, err := exec.LookPath("wrk")
	if err != nil {
		return b.generate(ctx, l, d, 0)
	}
	args := []string{"-c", strconv.Itoa(loadCPU), wrk, "-t1", "-c" + strconv.Itoa(b.conns), "-d" + strconv.Itoa(max(1, int(d.Round(time.Second).Seconds()))) + "s", "--latency"}
	if l.bearer != "" {
		args = append(args, "-H", "Authorization: Bearer "+l.bearer)
	}
	out, err := b.output(ctx, append(args, "-H", "Accept: */*", "-H", "User-Agent: bench", l.url))
	if err != nil {
		return loaded{}, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	return parseWrk(string(out))
}

// output runs a program of the load to its end.
func (b *bench) output(ctx context.Context, args []string) ([]byte, error) {
	var out strings.Builder
	c, err := b.startArgs("load", &out, args)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return []byte(out.String()), c.err
	case <-ctx.Done():
		_ = c.cmd.Process.Kill()
		<-c.done
		return nil, ctx.Err()
	}
}

// parseWrk reads the report of wrk 4.
func parseWrk(text string) (loaded, error) {
	var l loaded
	m := regexp.MustCompile(`(?m)^\s*(\d+) requests in ([\d.]+)(ms|s|m),`).FindStringSubmatch(text)
	if m == nil {
		return l, fmt.Errorf("wrk's report cannot be read:\n%s", text)
	}
	l.Requests, _ = strconv.ParseInt(m[1], 10, 64)
	d, err := time.ParseDuration(m[2] + m[3])
	if err != nil || d <= 0 {
		return l, fmt.Errorf("wrk's report cannot be read:\n%s", text)
	}
	l.Seconds = d.Seconds()
	for _, p := range []struct {
		name string
		to   *float64
	}{{"50%", &l.P50}, {"99%", &l.P99}} {
		m := regexp.MustCompile(`(?m)^\s*` + p.name + `\s+([\d.]+)(us|ms|s|m)\s*$`).FindStringSubmatch(text)
		if m == nil {
			continue
		}
		if d, err := time.ParseDuration(m[1] + m[2]); err == nil {
			*p.to = float64(d.Nanoseconds()) / 1000
		}
	}
	if m := regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`).FindStringSubmatch(text); m != nil {
		n, _ := strconv.ParseInt(m[1], 10, 64)
		l.Failed += n
	}
	if m := regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`).FindStringSubmatch(text); m != nil {
		for _, s := range m[1:] {
			n, _ := strconv.ParseInt(s, 10, 64)
			l.Failed += n
		}
	}
	return l, nil
}

// generate runs our own generator: closed, or open at rate requests a second.
func (b *bench) generate(ctx context.Context, l load, d time.Duration, rate int) (loaded, error) {
	me, err := self()
	if err != nil {
		return loaded{}, err
	}
	out, err := b.output(ctx, []string{"-c", strconv.Itoa(loadCPU), me, "load", "-url", l.url, "-bearer", l.bearer, "-for", d.String(),
		"-conns", strconv.Itoa(b.conns), "-rate", strconv.Itoa(rate)})
	if err != nil {
		return loaded{}, fmt.Errorf("load: %w\n%s", err, out)
	}
	var res loaded
	if err := json.Unmarshal(out, &res); err != nil || res.Requests == 0 {
		return loaded{}, errors.Join(fmt.Errorf("the load reports nothing: %s", out), err)
	}
	return res, nil
}
