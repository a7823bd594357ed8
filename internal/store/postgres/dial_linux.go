package postgres

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialer makes connections that notice within half a minute that the other
// side is gone, whether something is on the way or not.
var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4},
	Control: func(network, _ string, c syscall.RawConn) (err error) {
		if network == "unix" {
			return nil
		}
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 30_000) // ms
		})
		if cerr != nil {
			return cerr
		}
		return err
	},
}
