package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/keybaton/keybaton/internal/app"
	"github.com/keybaton/keybaton/internal/cli"
	"github.com/keybaton/keybaton/secret"
)

func backupCommand(std cli.IO) *cobra.Command {
	set := app.Defaults()
	var o app.BackupOptions
	var passFile, identity string
	var recipients, recipientFiles []string
	var store func() error
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write an encrypted backup of the store, while the server runs or not",
		Long: `Write an encrypted backup of the store, while the server runs or not.

It reads the store itself, so run it on the machine of the server and as the
user that runs it. The backup is of one moment; requests and rotations go on.
It is encrypted with age for a passphrase, or for recipients whose identity is
not on this machine, and is read back before the file gets its name.

It does NOT hold the master key, without which the keys in it cannot be read:
keep a copy of that elsewhere, or say --with-master-key. Then the backup alone is
enough to read every key, for whoever can open it.`,
		Example: "  keybaton backup keybaton.age\n  keybaton backup --recipient age1… /mnt/backup/keybaton-$(date +%F).age\n  keybaton backup --passphrase-file pass keybaton.age",
		Args:    cli.One("file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := store(); err != nil {
				return err
			}
			o.File, o.Keys.Recipients = args[0], recipients
			for _, f := range recipientFiles {
				b, err := os.ReadFile(f)
				if err != nil {
					return unread("recipients", f, err)
				}
				o.Keys.Recipients = append(o.Keys.Recipients, string(b))
			}
			var err error
			if o.Keys.Identity, err = readSecretFile("identity", identity); err != nil {
				return err
			}
			if o.Keys.Passphrase, err = readSecretFile("passphrase", passFile); err != nil {
				return err
			}
			if passFile == "" && len(o.Keys.Recipients) == 0 && asks(std) {
				if o.Keys.Passphrase, err = newPassphrase(std); err != nil {
					return err
				}
			}
			b, err := app.Backup(cmd.Context(), set, o)
			if err != nil {
				return explainedState(err)
			}
			for _, w := range b.Warnings {
				warn(cmd, w)
			}
			if asJSON(cmd) {
				return printJSON(cmd, b)
			}
			out := cmd.OutOrStdout()
			_, _ = fmt.Fprintf(out, "✓ %s: %d rows in %d tables, revision %s, %d bytes\n", b.File, b.Rows, b.Tables, b.Revision, b.Bytes)
			if b.Opened {
				_, _ = fmt.Fprintln(out, "  it was opened again and holds what was read")
			} else {
				_, _ = fmt.Fprintln(out, "  its bytes were read again and are what was written")
			}
			if b.MasterKey {
				_, _ = fmt.Fprintln(out, "  IT HOLDS THE MASTER KEY: whoever can open this file can read every key in it. Guard it like the keys themselves")
			} else {
				_, _ = fmt.Fprintf(out, "  it does not hold the master key (%s): keep a copy of that elsewhere, without it the keys in this backup cannot be read\n", b.KeyFile)
			}
			return nil
		},
	}
	f := cmd.Flags()
	store = placeFlags(cmd, &set)
	f.StringVar(&passFile, "passphrase-file", "", "file with the passphrase, readable by its owner alone; otherwise it is asked for on a terminal")
	f.StringArrayVar(&recipients, "recipient", nil, "encrypt for this recipient of age instead, age1…; may be repeated")
	f.StringArrayVar(&recipientFiles, "recipients-file", nil, "encrypt for the recipients in this file, one a line; may be repeated")
	f.StringVar(&identity, "identity", "", "with recipients: open it again with the identity in this file, to see that it can be opened")
	f.BoolVar(&o.MasterKey, "with-master-key", false, "put the master key in it: the backup is then enough to read every key")
	f.BoolVar(&o.Overwrite, "overwrite", false, "replace an older file of this name, once the new one is proven")
	return cmd
}

func restoreCommand(std cli.IO) *cobra.Command {
	set := app.Defaults()
	var o app.RestoreOptions
	var passFile, identity string
	var store func() error
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Restore a backup into an empty store",
		Long: `Restore a backup into an empty store.

No server may be running on it. The whole backup is opened and proven before
anything is written, and the master key that is there is compared with it. What
is there already is never overwritten.

The store begins a new epoch: what consumers acknowledged before counts for
nothing, and every one is given its keys anew. What was issued or revoked after
the backup was made is not in it.`,
		Example: "  keybaton restore keybaton.age\n  keybaton restore --identity key.txt --data ./data --config ./config keybaton.age",
		Args:    cli.One("file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := store(); err != nil {
				return err
			}
			o.File = args[0]
			var err error
			if o.Keys.Identity, err = readSecretFile("identity", identity); err != nil {
				return err
			}
			if o.Keys.Passphrase, err = readSecretFile("passphrase", passFile); err != nil {
				return err
			}
			if passFile != "" && identity != "" {
				return cli.Fail(cli.ExitUsage, "a passphrase and an identity exclude each other", "give the one that opens the backup")
			}
			if passFile == "" && identity == "" {
				if !asks(std) {
					return cli.Fail(cli.ExitUsage, "there is nothing to open the backup with", "say --passphrase-file FILE or --identity FILE, or run it on a terminal to be asked")
				}
				if o.Keys.Passphrase, err = askSecret(std, "passphrase (not shown): "); err != nil {
					return err
				}
			}
			r, err := app.Restore(cmd.Context(), set, o)
			if err != nil {
				return explainedState(err)
			}
			if r.KeyMissing {
				warn(cmd, "the master key is not in the backup, and not in "+r.MasterKey+": put it there before you start the server; without it the keys cannot be read")
			}
			if asJSON(cmd) {
				return printJSON(cmd, r)
			}
			out := cmd.OutOrStdout()
			_, _ = fmt.Fprintf(out, "✓ %s: %d credentials, %d rows in %d tables, as they were at %s\n", r.Place, r.Credentials, r.Rows, r.Tables, r.Taken.UTC().Format("2006-01-02 15:04:05 UTC"))
			_, _ = fmt.Fprintf(out, "  it begins a new epoch at revision %s: what was acknowledged before counts for nothing\n", r.Revision)
			switch {
			case r.KeyWritten:
				_, _ = fmt.Fprintf(out, "  the master key was in it, and is now in %s\n", r.MasterKey)
			case !r.KeyMissing:
				_, _ = fmt.Fprintf(out, "  the master key in %s opens its keys\n", r.MasterKey)
			}
			say("next: keybaton serve; consumers that are gone for good are waited for until you say so: keybaton consumer list, keybaton consumer forget NAME")
			return nil
		},
	}
	store = placeFlags(cmd, &set)
	cmd.Flags().StringVar(&passFile, "passphrase-file", "", "file with the passphrase, readable by its owner alone; otherwise it is asked for on a terminal")
	cmd.Flags().StringVar(&identity, "identity", "", "file with the identity of a recipient, made by age-keygen")
	return cmd
}

// placeFlags are those of the verbs that work on a store without its server.
// What it returns reads where the store is, once the flags are known.
func placeFlags(cmd *cobra.Command, set *app.Settings) (read func() error) {
	f := cmd.Flags()
	var from app.StoreSource
	storeFlags(f, set, &from)
	f.StringVar(&set.Config, "config", env("KEYBATON_CONFIG", set.Config), "directory of the master key and the admin token ($KEYBATON_CONFIG)")
	f.StringVar(&set.MasterKey, "master-key", env("KEYBATON_MASTER_KEY", ""), "file of the master key; default master.key in --config ($KEYBATON_MASTER_KEY)")
	return func() (err error) {
		set.Store, err = readStore(from)
		return explained(err)
	}
}

// explainedState is explained, where a refusal in the present state has its own
// exit code.
func explainedState(err error) error {
	err = explained(err)
	if f := (*cli.Fault)(nil); errors.As(err, &f) && f.Exit == cli.ExitFailed && app.IsRefused(err) {
		f.Exit = cli.ExitConflict
	}
	return err
}

func asJSON(cmd *cobra.Command) bool {
	v, _ := cmd.Flags().GetBool("json")
	return v
}

func printJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func warn(cmd *cobra.Command, what string) {
	_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+what)
}

// maxSecretFile bounds what is read of a file with a passphrase or identities,
// in bytes.
const maxSecretFile = 64 << 10

// readSecretFile reads a file that only its owner may read, without the end of
// its last line; an empty path is an empty value.
func readSecretFile(what, path string) (secret.Value, error) {
	if path == "" {
		return secret.Value{}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return secret.Value{}, unread(what, path, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	st, err := f.Stat()
	if err != nil {
		return secret.Value{}, unread(what, path, err)
	}
	if runtime.GOOS != "windows" && st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return secret.Value{}, cli.Fail(cli.ExitUsage, fmt.Sprintf("the %s file %s can be read by others (mode %04o)", what, path, st.Mode().Perm()), "chmod 600 "+path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	defer clear(b)
	if err != nil {
		return secret.Value{}, unread(what, path, err)
	}
	line := bytes.TrimRight(b, "\r\n")
	if len(line) == 0 {
		return secret.Value{}, cli.Fail(cli.ExitUsage, "the "+what+" file "+path+" is empty", "put the "+what+" in it")
	}
	return secret.New(line), nil
}

func unread(what, path string, err error) error {
	exit := cli.ExitFailed
	if errors.Is(err, fs.ErrNotExist) {
		exit = cli.ExitNotFound
	}
	return &cli.Fault{Exit: exit, What: "reading the " + what + " file: " + err.Error(), Next: "name a file that this user may read, not " + path, Err: err}
}

// asks reports whether a person can be asked.
func asks(std cli.IO) bool {
	return std.ReadSecret != nil || std.In == io.Reader(os.Stdin) && term.IsTerminal(int(os.Stdin.Fd()))
}

func askSecret(std cli.IO, prompt string) (secret.Value, error) {
	if std.ReadSecret != nil {
		return std.ReadSecret(prompt)
	}
	_, _ = fmt.Fprint(std.Err, prompt)
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	_, _ = fmt.Fprintln(std.Err)
	if err != nil {
		return secret.Value{}, fmt.Errorf("reading the passphrase: %w", err)
	}
	defer clear(b)
	return secret.New(b), nil
}

// newPassphrase asks twice: what was mistyped once would never open again.
func newPassphrase(std cli.IO) (secret.Value, error) {
	one, err := askSecret(std, "passphrase for the backup (not shown): ")
	if err != nil {
		return secret.Value{}, err
	}
	two, err := askSecret(std, "once more: ")
	if err != nil {
		return secret.Value{}, err
	}
	if !one.Equal(two) {
		return secret.Value{}, cli.Fail(cli.ExitUsage, "the two passphrases differ", "try again; nothing was written")
	}
	return one, nil
}
