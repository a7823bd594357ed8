package cli

import (
	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/client"
)

// ClientOf returns the client that the persistent flags of cmd ask for, for
// verbs of other rooms. Where neither flags nor environment name an address or a
// token, addr and the token in the file tokenFile are taken; either may be "".
func ClientOf(cmd *cobra.Command, io IO, addr, tokenFile string) (*client.Client, error) {
	s := &session{io: io}
	f := cmd.Flags()
	s.addr, _ = f.GetString("addr")
	s.file, _ = f.GetString("token-file")
	s.insecure, _ = f.GetBool("insecure-http")
	if s.addr == "" && io.Getenv("KEYBATON_ADDR") == "" {
		s.addr = addr
	}
	if s.file == "" && io.Getenv("KEYBATON_TOKEN") == "" && io.Getenv("KEYBATON_TOKEN_FILE") == "" {
		s.file = tokenFile
	}
	return s.client()
}
