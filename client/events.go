package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/keybaton/keybaton/api"
)

// maxEvent is the greatest length of one event, in bytes.
const maxEvent = 4 << 20

// Events calls fn with every event of the stream: first everything as it is,
// then api.EventReady, then what changes. It blocks until fn returns an error,
// which it returns, or the stream ends: nil when the server ended it, as it
// does after some minutes, and an [*Error] when it broke off. Callers that
// want to go on call it again, and get the present state first.
func (c *Client) Events(ctx context.Context, f Filter, fn func(api.Event) error) error {
	req, err := c.request(ctx, http.MethodGet, api.PathEvents, f.query(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		return problem(resp, b)
	}
	if mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mt != "text/event-stream" {
		return foreign(resp)
	}
	s := bufio.NewScanner(resp.Body)
	s.Buffer(make([]byte, 0, 64<<10), maxEvent)
	var data []byte
	for s.Scan() {
		line := s.Bytes()
		if len(line) > 0 {
			// Event names and ids repeat what the data say; comments keep the line alive.
			if d, ok := bytes.CutPrefix(line, []byte("data:")); ok {
				data = append(data, bytes.TrimPrefix(d, []byte(" "))...)
			}
			continue
		}
		if len(data) == 0 {
			continue
		}
		var e api.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return &Error{Code: CodeAnswer, Detail: "an event is not the JSON that was expected", Next: "client and server may be of different versions", Err: err}
		}
		data = data[:0]
		if err := fn(e); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return &Error{Code: CodeAnswer, Detail: "an event is longer than any should be", Err: err}
		}
		return &Error{Code: CodeUnreachable, Detail: "the event stream broke off", Err: err}
	}
	return ctx.Err()
}
