package vendortest

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxBody is the most that a request body may have, in bytes.
const maxBody = 16 << 20

// ServeHTTP serves the key API under /keys and the data API under /v1/.
func (v *Vendor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := r.URL.Path
	if d := time.Duration(v.skew.Load()); d != 0 {
		w.Header().Set("Date", v.now().Add(d).UTC().Format(http.TimeFormat))
	}
	if v.serveShapes(w, r) {
		return
	}
	isKeys, isData := p == "/keys" || strings.HasPrefix(p, "/keys/"), strings.HasPrefix(p, "/v1/")
	switch {
	case isKeys:
		v.keyRequests.Add(1)
	case isData:
		v.requests.Add(1)
	}
	if v.dropping.Load() {
		panic(http.ErrAbortHandler)
	}
	if v.down.Load() {
		fail(w, http.StatusServiceUnavailable, "down", "the vendor is down")
		return
	}
	switch {
	case isKeys:
		v.serveKeys(w, r, strings.TrimPrefix(strings.TrimPrefix(p, "/keys"), "/"))
	case isData:
		v.serveData(w, r)
	default:
		fail(w, http.StatusNotFound, "not_found", "there is nothing here")
	}
}

// fail answers with an error that names no key.
func fail(w http.ResponseWriter, status int, code, text string) {
	answer(w, status, map[string]any{"error": map[string]string{"code": code, "message": text}})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone; nothing to do
}

// strike answers with the fault b if it strikes.
func (b *budget) strike(w http.ResponseWriter) bool {
	if !b.take() {
		return false
	}
	if d := time.Duration(b.after.Load()); d > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10))
	}
	fail(w, int(b.status.Load()), "fault", "a fault was asked for")
	return true
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func (v *Vendor) serveKeys(w http.ResponseWriter, r *http.Request, rest string) {
	if v.throttleKeys.strike(w) || v.failKeys.strike(w) {
		return
	}
	if !v.managed(w, r) {
		return
	}
	id, act, _ := strings.Cut(rest, "/")
	switch {
	case rest == "" && r.Method == http.MethodPost:
		v.create(w, r)
	case rest == "" && r.Method == http.MethodGet && !v.noList.Load():
		v.list(w, r)
	case id != "" && act == "" && r.Method == http.MethodGet:
		if e := v.find(id); e != nil && !e.offList.Load() {
			answer(w, http.StatusOK, v.row(e.public()))
			return
		}
		fail(w, http.StatusNotFound, "no_key", "there is no such key")
	case id != "" && act == "" && r.Method == http.MethodDelete:
		v.revoke(w, id)
	case id != "" && (act == "disable" || act == "enable") && r.Method == http.MethodPost:
		v.toggle(w, id, act == "disable")
	default:
		fail(w, http.StatusNotFound, "not_found", "there is nothing here")
	}
}

// managed reports whether r carries the manager's token, and answers if not.
func (v *Vendor) managed(w http.ResponseWriter, r *http.Request) bool {
	if tok, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && same(tok, *v.manager.Load()) {
		return true
	}
	fail(w, http.StatusUnauthorized, "bad_manager", "the manager token is not valid")
	return false
}

// row returns k as the list shows it.
func (v *Vendor) row(k Key) map[string]any {
	skew := time.Duration(v.skew.Load())
	k.Created, k.LastUsed = k.Created.Add(skew), v.coarse(k.LastUsed, skew)
	if !k.Expires.IsZero() {
		k.Expires = k.Expires.Add(skew)
	}
	m := map[string]any{"id": k.ID, "name": k.Name, "scopes": k.Scopes, "created": k.Created.UTC().Format(time.RFC3339Nano),
		"last_used": nil, "disabled": k.Disabled, "expires": nil}
	if !k.LastUsed.IsZero() {
		m["last_used"] = k.LastUsed.UTC().Format(time.RFC3339Nano)
	}
	if !k.Expires.IsZero() {
		m["expires"] = k.Expires.UTC().Format(time.RFC3339Nano)
	}
	return m
}

// coarse returns a last use as the list tells it.
func (v *Vendor) coarse(t time.Time, skew time.Duration) time.Time {
	if t.IsZero() || v.usedMissing.Load() {
		return time.Time{}
	}
	if g := time.Duration(v.usedGrain.Load()); g > 0 {
		t = t.UTC().Truncate(g)
	}
	return t.Add(skew)
}

func (v *Vendor) create(w http.ResponseWriter, r *http.Request) {
	if v.dropCreate.take() {
		panic(http.ErrAbortHandler)
	}
	if v.refuseCreate.strike(w) {
		return
	}
	var in struct {
		Name      string   `json:"name"`
		Scopes    []string `json:"scopes"`
		ExpiresIn int64    `json:"expires_in"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil || in.Name == "" || in.ExpiresIn < 0 {
		fail(w, http.StatusBadRequest, "bad_request", "want {name, scopes, expires_in}")
		return
	}
	for _, s := range in.Scopes {
		if s != "read" && s != "write" {
			fail(w, http.StatusBadRequest, "bad_scope", "scopes are read and write")
			return
		}
	}
	v.making.Lock() // the limit and the names hold under load too
	defer v.making.Unlock()
	if n := v.maxActive.Load(); n > 0 && int64(v.Active()) >= n {
		fail(w, http.StatusConflict, "limit_reached", "there are as many keys as there may be")
		return
	}
	sec := newSecret()
	v.mu.RLock()
	taken := false
	for _, e := range v.order {
		taken = taken || (e.name == in.Name && !e.offList.Load())
	}
	if v.duplicate.Load() && len(v.order) > 0 {
		sec = v.order[len(v.order)-1].secret
	}
	v.mu.RUnlock()
	if v.unique && taken {
		fail(w, http.StatusConflict, "name_taken", "there is a key of that name")
		return
	}
	var delay []time.Duration
	if p := v.createDelay.Load(); p != nil {
		delay = *p
	}
	lose := v.loseCreate.take()
	e := v.add(in.Name, in.Scopes, time.Duration(in.ExpiresIn)*time.Second, sec, delay, time.Duration(v.listDelay.Load()))
	if lose {
		panic(http.ErrAbortHandler)
	}
	m := v.row(e.public())
	m["key"] = e.secret
	answer(w, http.StatusCreated, m)
}

func (v *Vendor) list(w http.ResponseWriter, r *http.Request) {
	from := 0
	if c := r.URL.Query().Get("cursor"); c != "" {
		n, err := strconv.Atoi(c)
		if err != nil || n < 0 {
			fail(w, http.StatusBadRequest, "bad_cursor", "that is no cursor")
			return
		}
		from = n
	}
	now := v.now().UnixNano()
	rows, next := []map[string]any{}, ""
	v.mu.RLock()
	for i := from; i < len(v.order); i++ {
		e := v.order[i]
		if e.offList.Load() || now < e.listed {
			continue
		}
		if len(rows) == v.pageSize {
			next = strconv.Itoa(i)
			break
		}
		rows = append(rows, v.row(e.public()))
	}
	v.mu.RUnlock()
	out := map[string]any{"keys": rows, "next": nil}
	if next != "" {
		out["next"] = next
	}
	answer(w, http.StatusOK, out)
}

func (v *Vendor) revoke(w http.ResponseWriter, id string) {
	if v.failRevoke.strike(w) {
		return
	}
	e := v.find(id)
	if e == nil || e.offList.Swap(true) {
		fail(w, http.StatusNotFound, "no_key", "there is no such key")
		return
	}
	lies := v.lyingRevoke.Load()
	if !lies {
		e.off.Store(v.now().Add(time.Duration(v.revokeDelay.Load())).UnixNano())
	}
	if v.loseRevoke.take() {
		panic(http.ErrAbortHandler)
	}
	if lies {
		answer(w, http.StatusOK, map[string]any{"deleted": true})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (v *Vendor) toggle(w http.ResponseWriter, id string, off bool) {
	e := v.find(id)
	if e == nil || e.offList.Load() {
		fail(w, http.StatusNotFound, "no_key", "there is no such key")
		return
	}
	if v.lyingDisable.Load() && off {
		e.disList.Store(true)
	} else {
		e.disable(off, v.now().Add(time.Duration(v.revokeDelay.Load())))
	}
	answer(w, http.StatusOK, v.row(e.public()))
}

// keyOf returns the key that r carries, or "".
func keyOf(r *http.Request) string {
	if k, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return k
	}
	if _, pw, ok := r.BasicAuth(); ok {
		return pw
	}
	if k := r.Header.Get("X-Api-Key"); k != "" {
		return k
	}
	if r.URL.RawQuery != "" {
		return r.URL.Query().Get("api_key")
	}
	return ""
}

func (v *Vendor) serveData(w http.ResponseWriter, r *http.Request) {
	k := keyOf(r)
	v.mu.RLock()
	e := v.bySecret[k]
	v.mu.RUnlock()
	probe := r.URL.Path == "/v1/me"
	if e != nil && probe {
		e.probes.Add(1)
	}
	if v.throttleData.strike(w) || v.failData.strike(w) {
		if e != nil {
			e.other.Add(1)
		}
		return
	}
	if e == nil {
		v.unknown.Add(1)
		v.dead(w)
		return
	}
	now := v.now().UnixNano()
	if !e.valid(int(v.node.Add(1)%uint64(v.nodes)), now) {
		e.refused.Add(1)
		v.dead(w)
		return
	}
	e.lastUsed.Store(now)
	safe := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !probe && ((safe && !e.read) || (!safe && !e.write)) {
		e.denied.Add(1)
		v.refuse(w, http.StatusForbidden, "out_of_scope", "the key may not do this")
		return
	}
	v.carryOut(w, r, e, safe)
}

func (v *Vendor) dead(w http.ResponseWriter) {
	v.refuse(w, int(v.deadStatus.Load()), "invalid_key", "the key is not valid")
}

// refuse answers the holder of a key.
func (v *Vendor) refuse(w http.ResponseWriter, status int, code, text string) {
	if v.always200.Load() {
		status = http.StatusOK
	}
	fail(w, status, code, text)
}

// carryOut does what the request asks for and says so.
func (v *Vendor) carryOut(w http.ResponseWriter, r *http.Request, e *entry, safe bool) {
	id := r.Header.Get("Idempotency-Key")
	if id == "" {
		id = r.Header.Get("X-Request-Id")
	}
	sum := emptySum
	if r.Body != nil && r.ContentLength != 0 {
		h := sha256.New()
		if _, err := io.Copy(h, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
			e.other.Add(1)
			fail(w, http.StatusBadRequest, "bad_body", "the body did not arrive whole")
			return
		}
		sum = hex.EncodeToString(h.Sum(nil))
	}
	if !safe {
		v.effects.add(id)
	}
	e.ok.Add(1)
	b := make([]byte, 0, 256)
	b = append(b, `{"method":`...)
	b = appendText(b, r.Method)
	b = append(b, `,"path":`...)
	b = appendText(b, r.URL.Path)
	b = append(b, `,"request_id":`...)
	b = appendText(b, id)
	b = append(b, `,"body_sha256":"`...)
	b = append(b, sum...)
	b = append(b, `","key_id":"`...)
	b = append(b, e.id...)
	b = append(b, "\"}\n"...)
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	_, _ = w.Write(b) // the client may be gone; nothing to do
}

// emptySum is the SHA-256 of nothing.
const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// appendText appends s as a JSON string.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			q, _ := json.Marshal(s) // a string always encodes
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
