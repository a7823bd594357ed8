package app

import (
	"context"
	"fmt"

	"github.com/keybaton/keybaton/internal/notify"
	"github.com/keybaton/keybaton/internal/notify/terminal"
	"github.com/keybaton/keybaton/internal/notify/webhook"
	"github.com/keybaton/keybaton/internal/store"
)

// newNotifier returns a notifier on st with the channels of the settings.
func (a *App) newNotifier(st store.Store) (*notify.Notifier, error) {
	channels := map[string]notify.Sender{}
	if a.set.Alerts != nil {
		channels["terminal"] = terminal.New(a.set.Alerts)
	}
	for i, u := range a.set.Webhooks {
		w, err := webhook.New(webhook.Config{URL: u, Secret: a.set.WebhookSecret, Now: a.set.Now})
		if err != nil {
			return nil, fmt.Errorf("webhook %d: %w", i+1, err)
		}
		channels[fmt.Sprintf("webhook-%d", i+1)] = w
	}
	return notify.New(notify.Config{Store: st, Channels: channels, Now: a.set.Now, Every: a.set.Detect, Log: a.log})
}

// startNotifier looks and sends until run ends.
func (a *App) startNotifier(run context.Context) error {
	n, err := a.newNotifier(a.store)
	if err != nil {
		return err
	}
	if a.set.shared() {
		a.spawn(func() { a.notifyInTurn(run) })
		return nil
	}
	a.spawn(func() {
		if err := n.Run(run); err != nil && run.Err() == nil {
			a.log.Error("notifier", "error", err)
		}
	})
	return nil
}
