package link

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

const (
	// maxEvent bounds one event: a frame of some hundred thousand credentials.
	maxEvent = 512 << 20
	// keepEvent bounds the memory that is kept for the next event.
	keepEvent = 1 << 20
	// maxProblem bounds what is read of an error.
	maxProblem = 16 << 10
	// postTime bounds one acknowledgement or report.
	postTime = 10 * time.Second
)

var errSilent = errors.New("the server has gone silent")

// refusal is an answer other than success.
type refusal struct {
	status int
	err    error // of key's sentinels, with the server's words
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// final reports whether the same request would be refused again.
func (r *refusal) final() bool {
	switch r.status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// refused reads what the server says of its refusal. The text is the server's:
// it is cut, and its control characters are dropped.
func refused(resp *http.Response) error {
	var p struct {
		Detail string `json:"detail"`
		Next   string `json:"next"`
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil || json.Unmarshal(b, &p) != nil || p.Detail == "" {
		p.Detail, p.Next = http.StatusText(resp.StatusCode), ""
	}
	base := key.ErrUnavailable
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		base = key.ErrNoToken
	case http.StatusForbidden:
		base = key.ErrDenied
	case http.StatusNotFound:
		base = key.ErrNotFound
	case http.StatusConflict:
		base = key.ErrConflict
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		base = key.ErrInvalid
	}
	err = fmt.Errorf("%w: the server answered %d: %s", base, resp.StatusCode, clean(p.Detail))
	if p.Next != "" {
		err = key.WithHint(err, clean(p.Next))
	}
	return &refusal{status: resp.StatusCode, err: err}
}

func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if len(s) > 500 {
		s = s[:500]
	}
	return strings.ToValidUTF8(s, "")
}

// post sends v and waits for the server to take it.
func (l *Link) post(ctx context.Context, path string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, postTime)
	defer cancel()
	req, err := l.request(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := l.client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", key.ErrUnavailable, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return refused(resp)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxProblem)) // so that the connection is used again
	l.contact()
	return nil
}

// watch opens the stream of frames and takes each, until it breaks. heard says
// whether the server answered at all.
func (l *Link) watch(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(l.c.Silence, func() { cancel(errSilent) })
	defer silence.Stop()

	q := url.Values{"boot": {l.c.Boot}}
	if since := l.State().Revision; !since.IsZero() {
		q.Set("since", since.String())
	}
	req, err := l.request(ctx, http.MethodGet, WatchPath+"?"+q.Encode(), nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := l.client.Do(req)
	if err != nil {
		return false, because(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, refused(resp)
	}
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/event-stream") {
		return false, key.WithHint(fmt.Errorf("%w: the answer is no event stream", key.ErrUnavailable), "check the address of the server, and proxies before it")
	}
	l.contact()
	l.event(Connected, l.State().Revision, nil)

	err = events(resp.Body, func() {
		silence.Reset(l.c.Silence)
		l.contact()
	}, func(name string, data []byte) error {
		defer clear(data)
		if name != "frame" {
			return nil // of a newer server
		}
		var f Frame
		if err := json.Unmarshal(data, &f); err != nil {
			return fmt.Errorf("%w: the frame cannot be read", key.ErrInvalid) // the error of the decoder may quote it
		}
		// Writing and using it may take longer than the silence allowed.
		silence.Stop()
		err := l.take(f)
		silence.Reset(l.c.Silence)
		if err != nil {
			l.event(Refused, f.Revision, err)
		}
		return err
	})
	return true, because(ctx, err)
}

// because returns why ctx was cancelled, if it was, or else err.
func because(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		err = c
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", key.ErrUnavailable, err)
}

// events reads a stream of server-sent events (WHATWG HTML §9.2.6) until it
// ends or fn fails. alive is called for each line, comments too. The data
// belongs to fn until it returns.
func events(r io.Reader, alive func(), fn func(name string, data []byte) error) error {
	br := bufio.NewReaderSize(r, 64<<10)
	var (
		name string
		data []byte
		line []byte
		size int
	)
	for {
		line = line[:0]
		for {
			part, err := br.ReadSlice('\n')
			line = append(line, part...)
			if size += len(part); size > maxEvent {
				return fmt.Errorf("%w: an event is larger than %d bytes", key.ErrInvalid, maxEvent)
			}
			if err == nil {
				break
			}
			if len(part) > 0 {
				alive()
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				return err
			}
		}
		alive()
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			if len(data) > 0 {
				if err := fn(name, data[:len(data)-1]); err != nil {
					return err
				}
			}
			if cap(data) > keepEvent { // the next is most likely small
				data, line = nil, nil
			}
			name, data, size = "", data[:0], 0
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			name = string(value)
		case "data":
			data = append(append(data, value...), '\n')
		case "": // a comment
			size = len(data)
		}
	}
}
