//go:build !linux

package main

import "github.com/rogpeppe/go-internal/testscript"

// smallDisk is for systems where a test may mount a file system.
func smallDisk(ts *testscript.TestScript, _ bool, _ []string) { ts.Fatalf("ask [mount] first") }

func mayMount() bool { return false }
