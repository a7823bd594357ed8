package nethttp_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/internal/link"
	"github.com/keybaton/keybaton/secret"
	"github.com/keybaton/keybaton/vendortest"
)

// TestEffectsHappenOnce has a vendor that ends the primary in the middle of
// POSTs: each of them succeeds, whole, and takes effect exactly once.
func TestEffectsHappenOnce(t *testing.T) {
	v := vendortest.New(vendortest.Config{})
	oldID, oldKey := v.Issue("old", "read", "write")
	newID, newKey := v.Issue("new", "read", "write")
	r := newRig(t, v.ServeHTTP, nil)
	r.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	lc := cred(prod, r.call, 1, 2)
	for i, k := range []string{oldKey, newKey} {
		lc.Versions[i].Parts = map[string]secret.Exposed{"key": secret.Expose(secret.FromString(k))}
	}
	r.install(link.Frame{Revision: key.Revision{Epoch: 1, Number: 1}, Full: true, Credentials: []link.Credential{lc}, Tokens: frame(1).Tokens})

	const callers, each = 16, 100
	var sent atomic.Int64
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				if sent.Add(1) == callers*each/2 {
					v.RevokeKey(oldID)
				}
				body := strings.Repeat(fmt.Sprintf("%d-%d;", c, i), 500)
				sum := sha256.Sum256([]byte(body))
				req := r.request("POST", "/billing-api/v1/charges", strings.NewReader(body))
				req.Header.Set("Authorization", "Bearer "+token)
				req.Header.Set("X-Request-Id", fmt.Sprintf("%d-%d", c, i))
				resp, err := r.client.Do(req)
				if err != nil {
					t.Errorf("caller %d: %v", c, err)
					return
				}
				b, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != 200 || !strings.Contains(string(b), hex.EncodeToString(sum[:])) {
					t.Errorf("caller %d, request %d: %d (%s) %s", c, i, resp.StatusCode, resp.Header.Get("Keybaton-Error"), b)
				}
			}
		})
	}
	wg.Wait()
	if done, repeated := v.Effects(); done != callers*each || repeated != 0 {
		t.Errorf("%d effects and %d repeated, want %d and none", done, repeated, callers*each)
	}
	a, b := v.Uses(oldID), v.Uses(newID)
	if a.OK == 0 || a.Refused == 0 || b.OK == 0 || b.Refused != 0 {
		t.Errorf("the vendor saw old %+v, new %+v", a, b)
	}
	if got := r.use(1).Live; got.OK != a.OK || got.Auth != a.Refused {
		t.Errorf("the gateway counted %+v of the old key, the vendor %+v", got, a)
	}
	if v.Unknown() != 0 {
		t.Errorf("%d requests carried no key of the vendor's", v.Unknown())
	}
}
