//go:build !linux && !windows

package pgtest

import "syscall"

// attributes are those of a process that runs as cred, in a group of its own.
func attributes(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: cred, Setpgid: true}
}
