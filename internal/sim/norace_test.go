//go:build !race

package sim_test

const stride = 1
