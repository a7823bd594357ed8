package vendortest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

// What follows are other ways in which vendors hand out keys, beside the list
// under /keys. A vendor offers all of them; a recipe uses one.
//
//	POST   /roll                 -> 201 {"id": "app", "key"}: replaces the one key
//	GET    /slots                -> 200 {"slots": [{"name", "key"}]}
//	POST   /slots/{name}         -> 201 {"name", "key"}: makes that key anew
//	POST   /drafts {"name"}      -> 201 {"id"}: a key that does not work yet, in the list
//	POST   /drafts/{id}/key      -> 201 {"key"}: from now on it does

// RollID is the id of the one key under /roll.
const RollID = "app"

// shapes are the settings of these ways.
type shapes struct {
	grace     time.Duration
	slotNames []string
}

// SetUsedGrain makes the list tell the last use only as coarse as d, rounded
// down; 0: exactly.
func (v *Vendor) SetUsedGrain(d time.Duration) { v.usedGrain.Store(int64(d)) }

// SetUsedMissing makes the list tell no last use at all.
func (v *Vendor) SetUsedMissing(on bool) { v.usedMissing.Store(on) }

// SetClockSkew makes the times that the vendor tells, in bodies and in the
// header Date, differ from its real clock by d.
func (v *Vendor) SetClockSkew(d time.Duration) { v.skew.Store(int64(d)) }

// SetAlways200 makes the data API answer 200 to everything; what went wrong is
// in the body: {"error": {"code": …}}.
func (v *Vendor) SetAlways200(on bool) { v.always200.Store(on) }

// IssueSlot makes the fixed key name anew, as the vendor's console would.
func (v *Vendor) IssueSlot(name string) (key string) {
	v.making.Lock()
	defer v.making.Unlock()
	return v.fill(name, nil).secret
}

// IssueOne replaces the one key under /roll, as the vendor's console would.
func (v *Vendor) IssueOne() (key string) {
	v.making.Lock()
	defer v.making.Unlock()
	return v.replace(nil).secret
}

// fill makes the fixed key name anew: the one that was there ends at once.
func (v *Vendor) fill(name string, delay []time.Duration) *entry {
	for _, e := range v.entries() {
		if e.slot == name && !e.offList.Swap(true) {
			e.off.Store(v.now().UnixNano() + v.revokeDelay.Load())
		}
	}
	e := v.add(name, nil, 0, newSecret(), delay, 0)
	e.slot = name
	return e
}

// replace makes the one key anew: the one that was there works on for the
// grace, those before it end.
func (v *Vendor) replace(delay []time.Duration) *entry {
	now := v.now().UnixNano()
	for _, e := range v.entries() {
		if e.slot != RollID {
			continue
		}
		switch was := e.off.Load(); {
		case !e.offList.Swap(true):
			e.off.Store(now + int64(v.grace) + v.revokeDelay.Load())
		case was > now:
			e.off.Store(now)
		}
	}
	e := v.add(RollID, nil, 0, newSecret(), delay, 0)
	e.slot = RollID
	return e
}

func (v *Vendor) entries() []*entry {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Clone(v.order)
}

// serveShapes serves what is not under /keys; false means that it is not there.
func (v *Vendor) serveShapes(w http.ResponseWriter, r *http.Request) bool {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	known := map[string]bool{"roll": r.Method == http.MethodPost, "slots": true, "drafts": r.Method == http.MethodPost}
	if !known[kind] {
		return false
	}
	v.keyRequests.Add(1)
	if v.dropping.Load() {
		panic(http.ErrAbortHandler)
	}
	if v.down.Load() {
		fail(w, http.StatusServiceUnavailable, "down", "the vendor is down")
		return true
	}
	if v.throttleKeys.strike(w) || v.failKeys.strike(w) || !v.managed(w, r) {
		return true
	}
	if kind == "slots" && r.Method == http.MethodGet && rest == "" {
		v.showSlots(w)
		return true
	}
	if r.Method != http.MethodPost {
		fail(w, http.StatusNotFound, "not_found", "there is nothing here")
		return true
	}
	if v.dropCreate.take() {
		panic(http.ErrAbortHandler)
	}
	if v.refuseCreate.strike(w) {
		return true
	}
	v.making.Lock()
	defer v.making.Unlock()
	var delay []time.Duration
	if p := v.createDelay.Load(); p != nil {
		delay = *p
	}
	lose := v.loseCreate.take()
	var out map[string]any
	switch id, act, _ := strings.Cut(rest, "/"); {
	case kind == "roll" && rest == "":
		out = map[string]any{"id": RollID, "key": v.replace(delay).secret}
	case kind == "slots" && slices.Contains(v.slotNames, rest):
		out = map[string]any{"name": rest, "key": v.fill(rest, delay).secret}
	case kind == "drafts" && rest == "":
		var in struct {
			Name string `json:"name"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in); err != nil || in.Name == "" {
			fail(w, http.StatusBadRequest, "bad_request", "want {name}")
			return true
		}
		e := v.add(in.Name, nil, 0, newSecret(), delay, time.Duration(v.listDelay.Load()))
		e.draft.Store(true)
		out = map[string]any{"id": e.id}
	case kind == "drafts" && act == "key":
		e := v.find(id)
		if e == nil || e.offList.Load() || !e.draft.Swap(false) {
			fail(w, http.StatusNotFound, "no_draft", "there is no such draft")
			return true
		}
		out = map[string]any{"key": e.secret}
	default:
		fail(w, http.StatusNotFound, "not_found", "there is nothing here")
		return true
	}
	if lose {
		panic(http.ErrAbortHandler)
	}
	answer(w, http.StatusCreated, out)
	return true
}

func (v *Vendor) showSlots(w http.ResponseWriter) {
	v.making.Lock()
	defer v.making.Unlock()
	rows := []map[string]any{}
	for _, e := range v.entries() {
		if slices.Contains(v.slotNames, e.slot) && !e.offList.Load() {
			rows = append(rows, map[string]any{"name": e.slot, "key": e.secret})
		}
	}
	answer(w, http.StatusOK, map[string]any{"slots": rows})
}
