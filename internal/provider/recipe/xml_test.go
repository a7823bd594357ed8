package recipe

import (
	"strings"
	"testing"
)

func TestXMLRows(t *testing.T) {
	path := strings.Split("Result/Keys/member", "/")
	const head, tail = `<?xml version="1.0"?><Answer xmlns="https://x"><Result>`, `</Result><Other><Keys><member><Id>no</Id></member></Keys></Other></Answer>`
	for body, want := range map[string]string{
		head + `<Keys><member><Id>a</Id><On>true</On></member><member><Id> b </Id><More><Id>c</Id></More></member></Keys>` + tail: "a b",
		head + `<Keys></Keys>` + tail:                 "",
		head + `<Keys/>` + tail:                       "",
		head + tail:                                   "none",
		head + `<Keys><member><Id>a</Id></member>`:    "none",
		head + `<Keys><member><Id>a</Wrong></member>`: "none",
		"":                   "none",
		`{"Result":[]}`:      "none",
		`<Result><Keys/></x`: "none",
	} {
		rows, ok := xmlRows([]byte(body), path)
		var ids []string
		for _, r := range rows {
			id, _ := r.(map[string]any)["Id"].(string)
			ids = append(ids, id)
		}
		got := strings.Join(ids, " ")
		if !ok {
			got = "none"
		}
		if got != want {
			t.Errorf("got %q, want %q: %s", got, want, body)
		}
	}
}
