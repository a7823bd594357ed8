package call

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keybaton/keybaton/internal/key"
	"github.com/keybaton/keybaton/secret"
)

// TestSignatureOfAWSExample is the example that AWS gives in "Signature Version
// 4 signing process": its key, its request, its signature.
func TestSignatureOfAWSExample(t *testing.T) {
	req, err := http.NewRequest(http.MethodGet, "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	s := &signing{id: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", region: "us-east-1", service: "iam"}
	if err := s.apply(req, time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, SignedHeaders=content-type;host;x-amz-date, " +
		"Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
	if got := req.Header.Get("Authorization"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestSignedPlace(t *testing.T) {
	parts := []string{"id", "secret"}
	good := key.Place{In: key.InSigV4, Name: "us-east-1/iam", User: "{{id}}", Value: "{{secret}}"}
	p, err := CompilePlace(good, parts)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Signs() || p.InBody() || p.Name() != "Authorization" {
		t.Errorf("signs: %t, in the body: %t, name %q", p.Signs(), p.InBody(), p.Name())
	}
	r, err := p.Render(secret.Parts{"id": secret.FromString("AKID"), "secret": secret.FromString("very-secret-indeed")})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, "https://iam.amazonaws.com/", strings.NewReader("Action=ListUsers"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(req); err != nil {
		t.Fatal(err)
	}
	if a := req.Header.Get("Authorization"); !strings.Contains(a, "Credential=AKID/") || strings.Contains(a, "secret-indeed") || req.ContentLength != 16 {
		t.Errorf("signed as %s", a)
	}
	if !r.Leaks("x very-secret-indeed") {
		t.Error("the secret is not known as one")
	}
	for _, edit := range []func(*key.Place){
		func(p *key.Place) { p.Name = "iam" }, func(p *key.Place) { p.Name = "a/b/c" }, func(p *key.Place) { p.User = "" }, func(p *key.Place) { p.Value = "x" },
	} {
		bad := good
		edit(&bad)
		if _, err := CompilePlace(bad, parts); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if _, err := p.Render(secret.Parts{"id": secret.FromString("A/B"), "secret": secret.FromString("x")}); err == nil {
		t.Error("an id with a slash was taken")
	}
}
