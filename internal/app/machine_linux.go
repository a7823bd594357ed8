package app

import "golang.org/x/sys/unix"

// freeSpace returns the bytes and the files that this user may still make in the
// file system of dir.
func freeSpace(dir string) (bytes, files uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	files = st.Ffree
	if st.Files == 0 { // it does not count them
		files = 1
	}
	return st.Bavail * uint64(st.Bsize), files, nil //nolint:gosec // a block has a positive size
}

// clockSynced reports whether the kernel knows its clock to be synchronized, and
// whether it can be asked.
func clockSynced() (synced, known bool) {
	var t unix.Timex // Modes 0: nothing is changed
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, false
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, true
}
