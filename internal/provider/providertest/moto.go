package providertest

import (
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Moto starts a moto server, which answers as AWS IAM and STS do, on a free
// loopback port, and stops it when t ends. It checks signatures, as AWS does;
// unlike AWS it accepts keys that are Inactive. id and secret are an
// administrator's; user is a user without a key. Where moto is not installed,
// t fails and says how to get it.
func Moto(t TB) (base, id, secret, user string) {
	t.Helper()
	bin, err := exec.LookPath("moto_server")
	if err != nil {
		cache, cerr := os.UserCacheDir()
		bin = filepath.Join(cache, "keybaton", "moto", "bin", "moto_server")
		if _, err = os.Stat(bin); err != nil || cerr != nil {
			t.Fatalf("moto_server is not installed; run: make deps")
		}
	}
	ports, err := freePorts(1)
	if err != nil {
		t.Fatalf("finding free ports: %v", err)
	}
	address := "127.0.0.1:" + strconv.Itoa(ports[0])
	base = "http://" + address
	p := &process{cmd: exec.Command(bin, "-H", "127.0.0.1", "-p", strconv.Itoa(ports[0]))}
	// So many calls need no signature: those that make the administrator.
	first := []url.Values{
		{"Action": {"CreateUser"}, "UserName": {"admin"}},
		{"Action": {"PutUserPolicy"}, "UserName": {"admin"}, "PolicyName": {"all"},
			"PolicyDocument": {`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`}},
		{"Action": {"CreateUser"}, "UserName": {"app"}},
		{"Action": {"CreateAccessKey"}, "UserName": {"admin"}},
	}
	p.cmd.Env = append(os.Environ(), "INITIAL_NO_AUTH_ACTION_COUNT="+strconv.Itoa(len(first)))
	p.start(t, "moto", func() error {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
	for _, form := range first {
		form.Set("Version", "2010-05-08")
		body, err := motoCall(base, form)
		if err != nil {
			t.Fatalf("moto: %s: %v", form.Get("Action"), err)
		}
		var key struct {
			ID     string `xml:"CreateAccessKeyResult>AccessKey>AccessKeyId"`
			Secret string `xml:"CreateAccessKeyResult>AccessKey>SecretAccessKey"`
		}
		if err := xml.Unmarshal(body, &key); err != nil {
			t.Fatalf("moto: %s: %v", form.Get("Action"), err)
		}
		id, secret = key.ID, key.Secret
	}
	return base, id, secret, "app"
}

func motoCall(base string, form url.Values) ([]byte, error) {
	req, err := http.NewRequest(http.MethodPost, base+"/", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// It goes by the scope of the signature; what is signed is not looked at yet.
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=none/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=none")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	return b, err
}
