//go:build !race

package explore_test

// few states of each world are visited unless more are asked for.
const few = 160_000
