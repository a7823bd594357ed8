package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/keybaton/keybaton/secret"
)

func (s *session) getCmd() *cobra.Command {
	var part string
	c := &cobra.Command{
		Use:   "get SERVICE --env ENVIRONMENT",
		Short: "Print a key",
		Long: "The key goes to standard output and nowhere else. The token must be a consumer's that is granted the credential;\n" +
			"the server records that it holds the version. Most programs do better with keybaton run, or a gateway.",
		Args: one("service"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := s.named(args[0])
			if err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			k, err := c.Read(cmd.Context(), id)
			if err != nil {
				return err
			}
			if s.json && part == "" {
				return s.encode(struct {
					Service     string            `json:"service"`
					Environment string            `json:"environment"`
					Version     int64             `json:"version"`
					Parts       map[string]string `json:"parts"`
					Fallback    map[string]string `json:"fallback,omitempty"`
					EnvName     string            `json:"env_name,omitempty"`
				}{k.Service, k.Environment, k.Version, shown(k.Parts), shown(k.Fallback), k.EnvName})
			}
			names := k.Parts.Names()
			if part == "" && len(names) == 1 {
				part = names[0]
			}
			v, ok := k.Parts[part]
			if !ok {
				return usage("this key has the parts "+strings.Join(names, ", "), "name one with --part, or get them all with --json")
			}
			_, err = s.io.Out.Write(append(v.Reveal(), '\n'))
			return err
		},
	}
	c.Flags().StringVar(&part, "part", "", "which part, for keys of several")
	return c
}

// shown returns the parts as text, to be printed because they were asked for.
func shown(p secret.Parts) map[string]string {
	if p == nil {
		return nil
	}
	m := make(map[string]string, len(p))
	for n, v := range p {
		m[n] = string(v.Reveal())
	}
	return m
}
