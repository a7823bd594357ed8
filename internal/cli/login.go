package cli

import (
	"bytes"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/api"
	"github.com/keybaton/keybaton/client"
	"github.com/keybaton/keybaton/secret"
)

func (s *session) loginCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "login [ADDRESS]",
		Short: "Keep the address of a server and a token for it",
		Long: "The token is asked for without being shown, or read from standard input. Both are kept in a file that only you can read,\n" +
			"and the token is sent to that address alone.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("a token on the command line is refused: every process can read it, and the shell keeps it in its history", "usage: "+cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			addr := client.DefaultAddress
			if a := s.io.Getenv("KEYBATON_ADDR"); a != "" {
				addr = a
			}
			if s.addr != "" {
				addr = s.addr
			}
			if len(args) == 1 {
				if strings.HasPrefix(args[0], client.TokenPrefix) {
					return usage("a token on the command line is refused: every process can read it, and the shell keeps it in its history",
						"revoke that one, and paste the new one when asked")
				}
				addr = args[0]
			}
			addr = strings.TrimSuffix(addr, "/")
			token, err := s.readToken(addr)
			if err != nil {
				return err
			}
			if err := client.CheckToken(token); err != nil {
				return err
			}
			c, err := s.dial(addr, token)
			if err != nil {
				return err
			}
			who := "a token for programs"
			st, err := c.Status(cmd.Context())
			switch {
			case err == nil:
				who = st.You.Name + ", " + st.You.Role
			case !client.IsCode(err, api.CodeDenied): // a consumer's token is good, and may not see the status
				return err
			}
			path, err := s.saveLogin(login{Address: addr, token: token})
			if err != nil {
				return err
			}
			return s.show(map[string]string{"address": addr, "file": path}, nil, func() {
				s.say(span{"✓", good}, span{" logged in to " + addr + ": " + who, plain})
				s.remark("kept in " + path)
			})
		},
	}
}

func (s *session) readToken(addr string) (secret.Value, error) {
	if s.file != "" {
		return tokenFrom(s.file)
	}
	if s.interactive() {
		v, err := s.askSecret("token for " + addr + " (not shown): ")
		if err == nil && v.IsZero() {
			err = usage("nothing was pasted", "")
		}
		return v, err
	}
	b, err := s.readAll("-")
	if err != nil {
		return secret.Value{}, err
	}
	defer clear(b)
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return secret.Value{}, usage("there is no token on standard input", "pipe it in, or run it on a terminal to be asked")
	}
	return secret.New(b), nil
}
