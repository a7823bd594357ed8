package client_test

import (
	"context"
	"log"
	"net/http"
	"os"

	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

// A program that calls a vendor itself: the transport puts the key on each
// request, falls back when it is refused, and follows rotations.
func ExampleClient_Follow() {
	c, err := client.New(client.Config{Token: secret.FromString(os.Getenv("KEYBATON_TOKEN"))})
	if err != nil {
		log.Fatal(err)
	}
	keys, err := c.Follow(context.Background(), client.FollowOptions{Cache: "/var/lib/shop/keybaton.cache"})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	billing, err := keys.Handle(client.Credential{Service: "billing-api", Environment: "prod"})
	if err != nil {
		log.Fatal(err)
	}
	vendor := &http.Client{Transport: billing.Transport(nil)}
	resp, err := vendor.Get("https://api.service.com/v1/invoices")
	if err != nil {
		log.Fatal(err)
	}
	_ = resp.Body.Close()
}

// A pool opens each connection with the key of the moment. The server revokes
// the key of a session only after it was closed.
func ExampleHandle_Open() {
	var (
		db      *client.Handle // of a database
		dial    func(ctx context.Context, user, password []byte) error
		refused func(error) bool // a failed login, and nothing else
	)
	session, err := db.Open(context.Background(), func(ctx context.Context, p secret.Parts) error {
		err := dial(ctx, p["user"].Reveal(), p["password"].Reveal())
		if err != nil && refused(err) {
			err = client.Refused(err) // try the fallback
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	if !session.Current() {
		log.Print("another key has taken over: open a new connection, then close this one")
	}
}
