package store

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/keybaton/keybaton/internal/key"
)

// The settings by which a store tells of itself, each the JSON of a mark.
const (
	settingRestored = "store/restored"
	settingBackup   = "store/backup"
	SettingClosed   = "store/closed" // no part of a dump: it is about the place, not about what is stored
)

// Restored is the mark of a store that came from a backup. It is written in the
// transaction that begins the new epoch, and stays until the next restore: what
// was acknowledged, issued or revoked between Taken and At is not known here.
type Restored struct {
	Epoch  int64        `json:"epoch"`  // that it began
	At     time.Time    `json:"at"`     // when it was restored
	From   key.Revision `json:"from"`   // the revision that was backed up
	Taken  time.Time    `json:"taken"`  // when it was backed up
	Source string       `json:"source"` // the file of the backup
	Origin string       `json:"origin"` // the place of the store that was backed up
}

// Backup is the mark of the newest backup that was made of a store.
type Backup struct {
	At        time.Time    `json:"at"`
	File      string       `json:"file"`
	SHA256    string       `json:"sha256"` // hex, of the file
	Bytes     int64        `json:"bytes"`
	Revision  key.Revision `json:"revision"`
	MasterKey bool         `json:"master_key"` // it holds the master key
}

// Closed is the mark of a store that no server may start on.
type Closed struct {
	At   time.Time `json:"at"`
	To   string    `json:"to,omitempty"`   // the place that it was moved to
	From string    `json:"from,omitempty"` // it is the target of a move from there that has not come to its end
}

// ReadRestored returns the mark of the newest restore; ok is false where there
// was none.
func ReadRestored(tx Tx) (m Restored, ok bool, err error) { return read[Restored](tx, settingRestored) }

// PutRestored writes m.
func PutRestored(tx Tx, m Restored) error { return put(tx, settingRestored, m) }

// ReadBackup returns the mark of the newest backup; ok is false where there is
// none.
func ReadBackup(tx Tx) (m Backup, ok bool, err error) { return read[Backup](tx, settingBackup) }

// PutBackup writes m.
func PutBackup(tx Tx, m Backup) error { return put(tx, settingBackup, m) }

// ReadClosed returns why no server may start on the store; ok is false where
// one may.
func ReadClosed(tx Tx) (m Closed, ok bool, err error) { return read[Closed](tx, SettingClosed) }

// PutClosed writes m; nil takes the mark away.
func PutClosed(tx Tx, m *Closed) error {
	if m == nil {
		return tx.PutSetting(SettingClosed, "")
	}
	return put(tx, SettingClosed, *m)
}

func read[T any](tx Tx, name string) (m T, ok bool, err error) {
	text, err := tx.Setting(name)
	if err != nil || text == "" {
		return m, false, err
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return m, false, fmt.Errorf("reading the setting %q: %w", name, err)
	}
	return m, true, nil
}

func put(tx Tx, name string, m any) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return tx.PutSetting(name, string(b))
}
