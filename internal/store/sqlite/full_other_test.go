//go:build !linux

package sqlite_test

// disks are the ways to run out of space.
var disks = map[string]disk{"pages": pages}
