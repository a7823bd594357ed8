package provider

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/key"
)

// DialTimeout bounds the opening of a connection, whatever ctx allows.
const DialTimeout = 10 * time.Second

// errMetadata is the answer to an address that no key may go to.
var errMetadata = fmt.Errorf("%w: it is a cloud's metadata address", key.ErrInvalid)

// Dial opens a connection to a vendor; the addresses at which clouds serve
// machine credentials are refused, whatever name they go by.
func Dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: DialTimeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		if a, err := netip.ParseAddrPort(address); err == nil && call.Metadata(a.Addr()) {
			return errMetadata
		}
		return nil
	}}
	return d.DialContext(ctx, network, address)
}

// Connect opens a connection by env's Dial, or by [Dial].
func (e Env) Connect(ctx context.Context, network, address string) (net.Conn, error) {
	if e.Dial != nil {
		return e.Dial(ctx, network, address)
	}
	return Dial(ctx, network, address)
}

// Unanswered classifies what a vendor that does not speak HTTP left without an
// answer: k is its kind when ctx still ran. The text of err is not passed on,
// as it may hold what was sent.
func Unanswered(ctx context.Context, vendor string, k Kind, err error) *Error {
	if cause := ctx.Err(); cause != nil {
		return &Error{Kind: k, Text: vendor + " was not waited for: " + cause.Error(), Err: cause}
	}
	if errors.Is(err, errMetadata) {
		return &Error{Kind: Denied, Text: "the address of " + vendor + " is refused: it is a cloud's metadata address", Err: key.ErrInvalid}
	}
	return &Error{Kind: k, Text: vendor + ": " + call.FailureText(err)}
}
