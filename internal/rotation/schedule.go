package rotation

import (
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/keybaton/keybaton/internal/key"
)

// Validate reports what is wrong with p, as key.ErrInvalid.
func (p Policy) Validate() error {
	if p.Every < 0 || p.Quiet < 0 || p.Watch < 0 || p.Jitter < 0 || p.Soak.For < 0 {
		return fmt.Errorf("%w: policy %q: a duration is negative", key.ErrInvalid, p.Name)
	}
	if p.Every != 0 && p.Cron != "" {
		return fmt.Errorf("%w: policy %q: say every or cron, not both", key.ErrInvalid, p.Name)
	}
	if _, err := p.zone(); err != nil {
		return err
	}
	if p.Cron != "" {
		if _, err := cron.ParseStandard(p.Cron); err != nil {
			return fmt.Errorf("%w: policy %q: cron %q: write five fields such as \"0 3 * * 1\"", key.ErrInvalid, p.Name, p.Cron)
		}
	}
	if _, err := parseWindow(p.Window); err != nil {
		return fmt.Errorf("policy %q: %w", p.Name, err)
	}
	switch p.Unverified {
	case "", UnverifiedAsk, UnverifiedWait, UnverifiedProceed:
	default:
		return fmt.Errorf("%w: policy %q: unverified is ask, wait or proceed, not %q", key.ErrInvalid, p.Name, p.Unverified)
	}
	return nil
}

func (p Policy) zone() (*time.Location, error) {
	if p.Zone == "" {
		return time.UTC, nil
	}
	l, err := time.LoadLocation(p.Zone)
	if err != nil {
		return nil, fmt.Errorf("%w: policy %q: time zone %q: write one such as Europe/Berlin", key.ErrInvalid, p.Name, p.Zone)
	}
	return l, nil
}

// Due returns when the next rotation of id should begin, given when its primary
// was last changed: by age or by cron, spread by jitter, moved into the window.
// Zero means never. The spread is the same each time it is asked for the same
// id and change.
func (p Policy) Due(id key.CredentialID, rotated time.Time) time.Time {
	p = p.WithDefaults()
	zone, err := p.zone()
	if err != nil {
		return time.Time{}
	}
	var at time.Time
	switch {
	case p.Every > 0:
		at = rotated.Add(p.Every)
	case p.Cron != "":
		s, err := cron.ParseStandard(p.Cron)
		if err != nil {
			return time.Time{}
		}
		at = s.Next(rotated.In(zone))
	default:
		return time.Time{}
	}
	if p.Jitter > 0 {
		h := fnv.New64a()
		_, _ = fmt.Fprintf(h, "%s %d", id, rotated.UnixMilli())
		at = at.Add(time.Duration(h.Sum64() % uint64(p.Jitter)))
	}
	return p.Fit(at)
}

// Fit returns t, or the next moment after it that lies in the policy's window.
func (p Policy) Fit(t time.Time) time.Time {
	zone, err1 := p.zone()
	w, err2 := parseWindow(p.Window)
	if err1 != nil || err2 != nil {
		return time.Time{}
	}
	return w.next(t.In(zone)).UTC()
}

// window is the part of the week in which rotations may begin.
type window struct {
	days     [7]bool
	from, to time.Duration // since midnight; to > from
}

var dayNames = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// parseWindow parses "Mon-Fri 09:00-17:00", "09:00-17:00" or "Sat,Sun". An
// empty text is any time.
func parseWindow(s string) (window, error) {
	w := window{to: 24 * time.Hour}
	fields := strings.Fields(s)
	bad := fmt.Errorf("%w: window %q: write it like \"Mon-Fri 09:00-17:00\"", key.ErrInvalid, s)
	days := false
	for i, f := range fields {
		if strings.Contains(f, ":") {
			a, b, ok := strings.Cut(f, "-")
			from, err1 := time.Parse("15:04", a)
			to, err2 := time.Parse("15:04", b)
			if b == "24:00" {
				to, err2 = from.Truncate(24*time.Hour).Add(24*time.Hour), nil
			}
			if !ok || err1 != nil || err2 != nil || i != len(fields)-1 {
				return w, bad
			}
			w.from = time.Duration(from.Hour())*time.Hour + time.Duration(from.Minute())*time.Minute
			w.to = time.Duration(to.Hour())*time.Hour + time.Duration(to.Minute())*time.Minute
			if b == "24:00" {
				w.to = 24 * time.Hour
			}
			if w.to <= w.from {
				return w, bad
			}
			continue
		}
		for part := range strings.SplitSeq(f, ",") {
			a, b, ranged := strings.Cut(part, "-")
			i, j := day(a), day(b)
			if !ranged {
				j = i
			}
			if i < 0 || j < 0 {
				return w, bad
			}
			for d := i; ; d = (d + 1) % 7 {
				w.days[d] = true
				if d == j {
					break
				}
			}
			days = true
		}
	}
	if !days {
		for d := range w.days {
			w.days[d] = true
		}
	}
	return w, nil
}

func day(s string) int {
	for i, n := range dayNames {
		if strings.EqualFold(s, n) {
			return i
		}
	}
	return -1
}

// next returns at, or the next moment after it that lies in w. Days are local
// days of at's zone, so that a change of clocks moves nothing out of a window.
func (w window) next(at time.Time) time.Time {
	for i := range 9 {
		y, m, d := at.Date()
		midnight := time.Date(y, m, d+i, 0, 0, 0, 0, at.Location())
		if !w.days[midnight.Weekday()] {
			continue
		}
		begin := time.Date(y, m, d+i, 0, int(w.from.Minutes()), 0, 0, at.Location())
		end := time.Date(y, m, d+i, 0, int(w.to.Minutes()), 0, 0, at.Location())
		if i > 0 || at.Before(begin) {
			return begin
		}
		if at.Before(end) {
			return at
		}
	}
	return at
}
