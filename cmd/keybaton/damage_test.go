package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keybaton/keybaton/internal/store/storetest/pgtest"
)

// damage writes a backup anew with something wrong: damage cut | flip | newer
// FROM TO. Newer encrypts it again, by the identity in keys/identity, with a
// schema that no program knows.
func damage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: damage cut | flip | newer FROM TO")
	}
	b := []byte(ts.ReadFile(args[1]))
	switch args[0] {
	case "cut":
		b = b[:len(b)-len(b)/3]
	case "flip":
		b[len(b)-len(b)/3] ^= 1
	case "newer":
		ids, err := age.ParseIdentities(strings.NewReader(ts.ReadFile("keys/identity")))
		ts.Check(err)
		r, err := age.Decrypt(bytes.NewReader(b), ids...)
		ts.Check(err)
		plain, err := io.ReadAll(r)
		ts.Check(err)
		var out bytes.Buffer
		w, err := age.Encrypt(&out, ids[0].(*age.X25519Identity).Recipient())
		ts.Check(err)
		_, err = w.Write(newerSchema(ts, plain))
		ts.Check(err)
		ts.Check(w.Close())
		b = out.Bytes()
	default:
		ts.Fatalf("usage: damage cut | flip | newer FROM TO")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), b, 0o600))
}

// newerSchema returns a backup whose dump says that it has a schema of number
// 9999, with the hash that belongs to it.
func newerSchema(ts *testscript.TestScript, plain []byte) []byte {
	head, rest, _ := bytes.Cut(plain, []byte("\n"))
	lines := bytes.SplitAfter(bytes.TrimSuffix(rest, []byte("\n")), []byte("\n"))
	first := regexp.MustCompile(`"schema":\d+`).ReplaceAll(lines[0], []byte(`"schema":9999`))
	if bytes.Equal(first, lines[0]) {
		ts.Fatalf("this is not the header of a dump: %s", lines[0])
	}
	body := bytes.Join(append([][]byte{first}, lines[1:len(lines)-1]...), nil)
	sum := sha256.Sum256(body)
	last := regexp.MustCompile(`"sha256":"[0-9a-f]{64}"}$`).ReplaceAll(lines[len(lines)-1], []byte(`"sha256":"`+hex.EncodeToString(sum[:])+`"}`))
	return slices.Concat(head, []byte("\n"), body, last, []byte("\n"))
}

// scribble writes over the middle of a file, as a failing disk would: scribble
// FILE.
func scribble(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: scribble FILE")
	}
	b := []byte(ts.ReadFile(args[0]))
	const page = 4096
	for at := page; at+page < len(b); at += 3 * page {
		copy(b[at:], bytes.Repeat([]byte{0xa5}, page/2))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// address sets a variable to the host and port of the URL in another one:
// address VARIABLE OTHER.
func address(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: address VARIABLE OTHER")
	}
	_, addr, ok := strings.Cut(ts.Getenv(args[1]), "://")
	if !ok {
		ts.Fatalf("%s holds no URL", args[1])
	}
	ts.Setenv(args[0], addr)
}

// newDatabase makes an empty PostgreSQL database and writes its URL to a file:
// database FILE.
func newDatabase(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: database FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(pgtest.Database(worldOf(ts).t)+"\n"), 0o600))
}
