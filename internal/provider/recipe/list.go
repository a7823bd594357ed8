package recipe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keybaton/keybaton/internal/call"
	"github.com/keybaton/keybaton/internal/provider"
	"github.com/keybaton/keybaton/internal/provider/spec"
)

// List returns every key at the vendor. A list that could not be read to its
// end is an error, never a short list.
func (l lister) List(ctx context.Context, env provider.Env) ([]provider.Listed, error) {
	c := l.c
	v, _, err := c.begin(env)
	if err != nil {
		return nil, err
	}
	base, err := c.address(c.Manager.Base, v)
	if err != nil {
		return nil, err
	}
	req, err := build(ctx, c.Recipe.List.Request, base, v)
	if err != nil {
		return nil, &provider.Error{Kind: provider.Denied, Text: "preparing the request: " + err.Error()}
	}
	first := *req.URL
	next := firstPage(c.Recipe.List.Page, &first)
	var out []provider.Listed
	seen := map[string]bool{}
	for n := 0; next != nil; n++ {
		if n >= c.Recipe.List.Page.Most {
			return nil, &provider.Error{Kind: provider.Denied, Text: fmt.Sprintf("%s has more than %d pages of keys; raise list.page.most in the recipe %s", c.Vendor, c.Recipe.List.Page.Most, c.ID)}
		}
		again := req.Clone(ctx)
		again.URL, again.Body = next, http.NoBody
		if req.Body != nil && req.Body != http.NoBody {
			body, _, err := bodyOf(c.Recipe.List.Request, v)
			if err != nil {
				return nil, &provider.Error{Kind: provider.Denied, Text: "preparing the request: " + err.Error()}
			}
			again.Body = readCloser(body)
		}
		ans, err := c.exchange(env, again, c.Recipe.List.Act, onRead)
		if err != nil {
			return nil, err
		}
		rows, at, ok := c.rows(ans)
		if !ok {
			return nil, c.odd(ans, "without a list at "+at)
		}
		for _, row := range rows {
			k, err := c.listed(row)
			if err != nil {
				return nil, c.odd(ans, err.Error())
			}
			if !seen[k.VendorID] {
				seen[k.VendorID] = true
				out = append(out, k)
			}
		}
		if next, err = nextPage(c.Recipe.List.Page, next, ans, len(rows), n); err != nil {
			return nil, c.odd(ans, err.Error())
		}
	}
	return out, nil
}

// rows returns the items of one page, and where they were looked for.
func (c *core) rows(a answer) (rows []any, at string, ok bool) {
	l := c.Recipe.List
	if l.XML != nil {
		rows, ok = xmlRows(a.body, l.XML)
		return rows, strings.Join(l.XML, "/"), ok
	}
	items, ok := l.Items.Find(a.doc)
	rows, isArray := items.([]any)
	return rows, l.Items.String(), ok && (isArray || items == nil)
}

// odd is an answer to a list that does not fit the recipe.
func (c *core) odd(a answer, what string) error {
	return &provider.Error{Kind: provider.Denied, Text: fmt.Sprintf("%s answered %s %s", c.Vendor, call.StatusText(a.status), what)}
}

func (c *core) listed(row any) (provider.Listed, error) {
	var k provider.Listed
	x, _ := c.Recipe.List.ID.Find(row)
	id, err := spec.AsText(x)
	if err != nil || id == "" {
		return k, errors.New("with a key that has no id at " + c.Recipe.List.ID.String())
	}
	k.VendorID = id
	get := func(p *call.Path) any {
		if p == nil {
			return nil
		}
		x, _ := p.Find(row)
		return x
	}
	if s, err := spec.AsText(get(c.Recipe.List.Name)); err == nil {
		k.Label = s
	}
	k.Created, _ = asTime(get(c.Recipe.List.Created))
	k.LastUsed, _ = asTime(get(c.Recipe.List.LastUsed))
	k.Disabled = flagged(c.Recipe.List.Disabled, row)
	return k, nil
}

// flagged reads the flag of one row.
func flagged(f *spec.FlagRule, row any) bool {
	if f == nil {
		return false
	}
	x, found := f.Path.Find(row)
	if f.Equals == nil {
		yes, _ := x.(bool)
		return yes || x == "true"
	}
	if !found {
		return false
	}
	return (call.Text(x) == *f.Equals) != f.Not
}

// asTime reads RFC 3339, a date, or Unix seconds or milliseconds. A date means
// the end of that day: whatever happened then happened before.
func asTime(x any) (time.Time, bool) {
	switch v := x.(type) {
	case time.Time:
		return v, true
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			f, err := v.Float64()
			if err != nil {
				return time.Time{}, false
			}
			n = int64(f)
		}
		switch {
		case n <= 0:
			return time.Time{}, false
		case n > 100_000_000_000: // seconds would be the year 5138
			return time.UnixMilli(n), true
		}
		return time.Unix(n, 0), true
	case string:
		if t, err := time.Parse(time.RFC3339, v); err == nil {
			return t, true
		}
		if t, err := time.Parse(time.DateOnly, v); err == nil {
			return t.AddDate(0, 0, 1).Add(-time.Second), true
		}
		if _, err := strconv.ParseInt(v, 10, 64); err == nil {
			return asTime(json.Number(v))
		}
	}
	return time.Time{}, false
}

// firstPage returns the URL of the first page.
func firstPage(g spec.Page, u *url.URL) *url.URL {
	q := u.Query()
	if g.SizeParam != "" {
		q.Set(g.SizeParam, strconv.Itoa(g.Size))
	}
	if g.Kind == "page" {
		q.Set(g.Param, strconv.Itoa(g.First))
	}
	if g.Kind == "offset" {
		q.Set(g.Param, "0")
	}
	v := *u
	v.RawQuery = q.Encode()
	return &v
}

// nextPage returns the URL of the page after the one at u, the nth; nil when that
// was the last. rows is how many it had.
func nextPage(g spec.Page, u *url.URL, a answer, rows, n int) (*url.URL, error) {
	set := func(value string) *url.URL {
		v := *u
		q := v.Query()
		q.Set(g.Param, value)
		v.RawQuery = q.Encode()
		return &v
	}
	switch g.Kind {
	case "cursor":
		x, _ := g.Next.Find(a.doc)
		s, err := spec.AsText(x)
		if err != nil {
			return nil, errors.New("with a cursor that is none")
		}
		if s == "" || x == false {
			return nil, nil
		}
		if u.Query().Get(g.Param) == s {
			return nil, errors.New("with the same cursor again")
		}
		return set(s), nil
	case "page":
		if rows == 0 || g.Size > 0 && rows < g.Size {
			return nil, nil
		}
		return set(strconv.Itoa(g.First + n + 1)), nil
	case "offset":
		if rows == 0 {
			return nil, nil
		}
		at, err := strconv.Atoi(u.Query().Get(g.Param))
		if err != nil {
			return nil, errors.New("after an offset that is none")
		}
		if rows < g.Size {
			return nil, nil
		}
		return set(strconv.Itoa(at + rows)), nil
	case "link_header":
		return sameHost(u, nextLink(a.header))
	case "next_url":
		x, _ := g.Next.Find(a.doc)
		s, err := spec.AsText(x)
		if err != nil {
			return nil, errors.New("with a next page that is no URL")
		}
		return sameHost(u, s)
	}
	return nil, nil
}

// sameHost resolves ref against u; the manager key goes to no other host.
func sameHost(u *url.URL, ref string) (*url.URL, error) {
	if ref == "" {
		return nil, nil
	}
	v, err := u.Parse(ref)
	if err != nil || v.User != nil {
		return nil, errors.New("with a next page that is no URL")
	}
	if v.Scheme != u.Scheme || !strings.EqualFold(v.Host, u.Host) {
		return nil, errors.New("with a next page on another host")
	}
	if v.String() == u.String() {
		return nil, errors.New("with the same page again")
	}
	return v, nil
}

// nextLink returns the target of rel="next" (RFC 8288), or "".
func nextLink(h http.Header) string {
	for _, line := range h.Values("Link") {
		for line != "" {
			_, rest, ok := strings.Cut(line, "<")
			if !ok {
				break
			}
			target, tail, ok := strings.Cut(rest, ">")
			if !ok {
				break
			}
			params, more := tail, ""
			if i := strings.Index(tail, ",<"); i >= 0 {
				params, more = tail[:i], tail[i:]
			} else if i := strings.Index(tail, ", <"); i >= 0 {
				params, more = tail[:i], tail[i:]
			}
			for prm := range strings.SplitSeq(params, ";") {
				k, v, _ := strings.Cut(strings.TrimSpace(prm), "=")
				if strings.EqualFold(k, "rel") && slices.Contains(strings.Fields(strings.Trim(v, `"`)), "next") {
					return target
				}
			}
			line = more
		}
	}
	return ""
}
