//go:build race

package explore_test

// few states of each world are visited under the race detector, for which a
// search with one goroutine has nothing to show.
const few = 4_000
