package nethttp_test

import (
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"testing"
)

func writeCoded(w http.ResponseWriter, coding, s string) {
	if coding == "" {
		_, _ = io.WriteString(w, s)
		return
	}
	w.Header().Set("Content-Encoding", coding)
	z := gzip.NewWriter(w)
	_, _ = io.WriteString(z, s)
	_ = z.Close()
}

func readCoded(t *testing.T, a answer) string {
	t.Helper()
	if a.Header.Get("Content-Encoding") == "" {
		return a.body
	}
	z, err := gzip.NewReader(strings.NewReader(a.body))
	if err != nil {
		t.Fatalf("the coded answer arrived damaged: %v", err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatalf("the coded answer arrived damaged: %v", err)
	}
	return string(b)
}
