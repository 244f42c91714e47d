package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"berth/internal/config"
)

// newConfigCommand is `berth config`: what can be configured, and whether a
// file is right. It talks to no daemon.
func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the documented default configuration, or check a file",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:               "default",
			Short:             "Print every key with its default and what it does",
			Example:           "  berth config default > /etc/berth/config.toml",
			Args:              cobra.NoArgs,
			ValidArgsFunction: cobra.NoFileCompletions,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := cmd.OutOrStdout().Write(config.Document())
				return err
			},
		},
		&cobra.Command{
			Use:   "check [FILE]",
			Short: "Say what is wrong with a configuration file (default " + config.DefaultPath + ")",
			Args:  cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				file := config.DefaultPath
				if len(args) == 1 {
					file = args[0]
				}
				if _, err := config.Load(file); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), file+" is fine")
				return err
			},
		},
	)
	return cmd
}
