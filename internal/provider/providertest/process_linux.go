package providertest

import "syscall"

// ownGroup puts a process in a group of its own, and ends it when whoever
// started it is killed.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
