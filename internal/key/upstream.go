package key

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// CheckUpstream reports what is wrong with sending keys to the upstream s:
// plain HTTP that is not loopback, unless insecure says that it may be, and a
// cloud's metadata address always. What is no URL with a host, and other
// schemes, are for others to judge. Errors wrap ErrInvalid and have a hint.
func CheckUpstream(s string, insecure bool) error {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return nil
	}
	host := u.Hostname()
	switch {
	case MetadataHost(host):
		return WithHint(fmt.Errorf("%w: %s is a cloud's metadata address, which no key and no request is sent to", ErrInvalid, host), "name the host of the API")
	case u.Scheme == "http" && !insecure && !loopback(host):
		return WithHint(fmt.Errorf("%w: over http:// the keys would cross the network to %s in the clear", ErrInvalid, host),
			"write https://, or say insecure_http: true on the service if the network between is trusted")
	}
	return nil
}

func loopback(host string) bool {
	if h := strings.TrimSuffix(strings.ToLower(host), "."); h == "localhost" || strings.HasSuffix(h, ".localhost") { // RFC 6761 §6.3
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// MetadataHost reports whether host is the name or the address of a service at
// which a cloud hands out machine credentials.
func MetadataHost(host string) bool {
	h := strings.TrimSuffix(strings.ToLower(host), ".")
	if slices.Contains([]string{"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal", "metadata.tencentyun.com"}, h) {
		return true
	}
	a, err := netip.ParseAddr(h)
	return err == nil && Metadata(a)
}

// metadata are the addresses at which clouds hand out machine credentials.
func metadata() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("169.254.0.0/16"), // link-local, with 169.254.169.254 and 169.254.170.2
		netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("fd00:ec2::254/128"),
		netip.MustParsePrefix("100.100.100.200/32"),
		netip.MustParsePrefix("192.0.0.192/32"),
		netip.MustParsePrefix("168.63.129.16/32"),
	}
}

// Metadata reports whether a is, or embeds, an address at which a cloud hands
// out machine credentials.
func Metadata(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		b := a.As16()
		switch {
		case b[0] == 0x00 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b: // NAT64, RFC 6052
			if Metadata(netip.AddrFrom4([4]byte(b[12:16]))) {
				return true
			}
		case b[0] == 0x20 && b[1] == 0x02: // 6to4, RFC 3056
			if Metadata(netip.AddrFrom4([4]byte(b[2:6]))) {
				return true
			}
		}
	}
	for _, p := range metadata() {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
