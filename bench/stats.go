//go:build linux

package main

import (
	"fmt"
	"slices"
)

// series is one figure over the rounds.
type series []float64

func (s series) median() float64 {
	if len(s) == 0 {
		return 0
	}
	o := slices.Sorted(slices.Values(s))
	if n := len(o); n%2 == 0 {
		return (o[n/2-1] + o[n/2]) / 2
	}
	return o[len(o)/2]
}

// text returns "median (min–max)".
func (s series) text(format string) string {
	if len(s) == 0 {
		return "-"
	}
	return fmt.Sprintf(format+" ("+format+"–"+format+")", s.median(), slices.Min(s), slices.Max(s))
}

// spread is a figure in the last line.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func (s series) spread(digits int) spread {
	if len(s) == 0 {
		return spread{}
	}
	return spread{round(s.median(), digits), round(slices.Min(s), digits), round(slices.Max(s), digits)}
}

func round(v float64, digits int) float64 {
	p := 1.0
	for range digits {
		p *= 10
	}
	if v < 0 {
		return -round(-v, digits)
	}
	return float64(int64(v*p+0.5)) / p
}

// over returns the ratios of s to o, round by round.
func (s series) over(o series) series {
	var out series
	for i := range min(len(s), len(o)) {
		if o[i] != 0 {
			out = append(out, s[i]/o[i])
		}
	}
	return out
}
