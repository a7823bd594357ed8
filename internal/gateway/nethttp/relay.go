package nethttp

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/gateway"
)

// drainLimit is how much of a dropped answer is read so that its connection
// can be used again, in bytes.
const drainLimit = 8 << 10

// answered has the core judge the answer, and relays it unless there is to be
// another attempt. It reports whether the request is done.
func (h *Handler) answered(w http.ResponseWriter, st *state, at gateway.Attempt, resp *http.Response, rp *replay) (done bool) {
	x := &st.x
	stream := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
	a := call.Answer{Status: resp.StatusCode, Header: resp.Header}
	var begun []byte
	if x.NeedsBody(resp.StatusCode) && !stream {
		var whole bool
		begun, whole = peek(resp.Body)
		a.Body, a.Whole = decoded(begun, whole, resp.Header.Get("Content-Encoding"))
	}
	replayable := rp == nil || rp.freeze()
	again := x.Answered(a, replayable)
	if rp != nil {
		rp.thaw(again)
	}
	if again {
		drop(resp)
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode < 200 || resp.StatusCode > 999 {
		x.Failed()
		writeFault(w, &gateway.Fault{Status: 502, Code: "upstream_confused", Detail: "the vendor at " + x.Upstream().Host + " gave an answer that cannot be relayed; it changed protocols without being asked"})
		return true
	}
	h.relay(w, x, at, resp, begun, stream)
	return true
}

// peek reads the beginning of an answer, as much as rules may look at, and
// whether that was all.
func peek(r io.Reader) (begun []byte, whole bool) {
	begun, err := io.ReadAll(io.LimitReader(r, call.BodyLimit))
	if err != nil || len(begun) < call.BodyLimit {
		return begun, err == nil
	}
	return begun, false
}

// decoded undoes the content coding of the beginning of a body, as far as it
// goes.
func decoded(b []byte, whole bool, coding string) ([]byte, bool) {
	switch strings.ToLower(coding) {
	case "", "identity":
		return b, whole
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, false
		}
		out, err := io.ReadAll(io.LimitReader(z, call.BodyLimit+1))
		return out[:min(len(out), call.BodyLimit)], err == nil && len(out) <= call.BodyLimit
	}
	return nil, false
}

// drop throws an answer away, so that its connection can be used again where
// that is cheap.
func drop(resp *http.Response) {
	if resp.ContentLength >= 0 && resp.ContentLength <= drainLimit {
		_, _ = io.CopyN(io.Discard, resp.Body, drainLimit)
		_ = resp.Body.Close()
		return
	}
	// The end of an answer of unknown length may be long in coming, and the
	// caller waits. The request's context ends this.
	go func() {
		_, _ = io.CopyN(io.Discard, resp.Body, drainLimit)
		_ = resp.Body.Close()
	}()
}

// relay sends the answer to the caller: begun, then what is left of it.
func (h *Handler) relay(w http.ResponseWriter, x *gateway.Exchange, at gateway.Attempt, resp *http.Response, begun []byte, stream bool) {
	hd := w.Header()
	nominated := resp.Header["Connection"]
	for name, values := range resp.Header {
		if !relayed(name, nominated) || leaks(at.Key, values) {
			continue
		}
		hd[name] = values
	}
	if l := hd["Location"]; len(l) == 1 {
		hd["Location"] = []string{relocate(l[0], x)}
	}
	if hd["Content-Type"] == nil {
		hd["Content-Type"] = nil // the vendor says none, and none is guessed
	}
	hd[gateway.HeaderVersion] = at.Header
	if !at.Primary {
		hd[gateway.HeaderFallback] = []string{"1"}
	}
	var announced []string
	for name := range resp.Trailer {
		if relayed(name, nominated) {
			announced = append(announced, name)
		}
	}
	if len(announced) > 0 {
		hd["Trailer"] = announced
	}
	w.WriteHeader(resp.StatusCode)
	out := writer{w: w}
	if stream || resp.ContentLength < 0 {
		out.flusher, _ = w.(http.Flusher)
	}
	if (stream || len(announced) > 0) && out.flusher != nil {
		out.flusher.Flush()
	}
	if len(begun) > 0 && out.write(begun, false) != nil {
		return
	}
	if !h.copy(&out, resp.Body) {
		return
	}
	for name, values := range resp.Trailer {
		if !relayed(name, nominated) || leaks(at.Key, values) {
			continue
		}
		if slices.Contains(announced, name) {
			hd[name] = values
		} else {
			hd[http.TrailerPrefix+name] = values // it came unannounced, and goes so
		}
	}
}

// copy moves a body to the caller. It reports whether it got to the end; a
// vendor that breaks off aborts the caller's answer too.
func (h *Handler) copy(out *writer, body io.Reader) bool {
	buf := h.chunks.Get().(*[chunkSize]byte)
	defer h.chunks.Put(buf)
	for {
		n, err := body.Read(buf[:])
		if n > 0 && out.write(buf[:n], err == io.EOF) != nil {
			return false // the caller is gone
		}
		switch err {
		case nil:
		case io.EOF:
			return true
		default:
			panic(http.ErrAbortHandler)
		}
	}
}

// writer writes to the caller, and flushes where there is a flusher.
type writer struct {
	w       http.ResponseWriter
	flusher http.Flusher
}

func (o *writer) write(b []byte, last bool) error {
	if _, err := o.w.Write(b); err != nil {
		return err
	}
	if o.flusher != nil && !last {
		o.flusher.Flush()
	}
	return nil
}

// relayed reports whether the vendor's header with this canonical name goes to
// the caller.
func relayed(name string, nominated []string) bool {
	if call.Hop(name) || strings.HasPrefix(name, "Keybaton-") {
		return false
	}
	for _, line := range nominated {
		for tok := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.Trim(tok, " \t"), name) {
				return false
			}
		}
	}
	return true
}

func leaks(k call.Rendered, values []string) bool {
	for _, v := range values {
		if k.Leaks(v) {
			return true
		}
	}
	return false
}

// relocate turns a redirect into the declared upstream into one that comes
// back through the gateway; any other is left as it is.
func relocate(loc string, x *gateway.Exchange) string {
	u, err := url.Parse(loc)
	if err != nil || u.User != nil {
		return loc
	}
	up := x.Upstream()
	switch {
	case u.Host == "" && u.Scheme == "" && strings.HasPrefix(loc, "/"):
	case strings.EqualFold(u.Scheme, up.Scheme) && strings.EqualFold(u.Host, up.Host):
	default:
		return loc
	}
	path, ok := strings.CutPrefix(u.EscapedPath(), up.RawPath)
	if !ok || path != "" && path[0] != '/' {
		return loc // not under the prefix: it cannot come back
	}
	out := x.Mount() + path
	if u.RawQuery != "" || u.ForceQuery {
		out += "?" + u.RawQuery
	}
	if u.Fragment != "" {
		out += "#" + u.EscapedFragment()
	}
	if out == "" {
		return "/"
	}
	return out
}
