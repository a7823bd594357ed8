//go:build !linux

package postgres

import (
	"net"
	"time"
)

// dialer makes connections that notice that the other side is gone.
var dialer = net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}}
