//go:build race

package sim_test

// stride is how many effects are passed over between two crashes: the race
// detector makes the embedded database ten times slower, and this test has one
// goroutine. Without the detector every effect is tried.
const stride = 45
