//go:build !linux

package app

import "errors"

func freeSpace(string) (bytes, files uint64, err error) { return 0, 0, errors.ErrUnsupported }

func clockSynced() (synced, known bool) { return false, false }
