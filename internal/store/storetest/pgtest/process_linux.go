package pgtest

import "syscall"

// attributes are those of a process that runs as cred, in a group of its own,
// and ends when whoever started it is killed.
func attributes(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: cred, Setpgid: true, Pdeathsig: syscall.SIGQUIT}
}
