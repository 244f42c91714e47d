package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"berth/internal/config"
	"berth/internal/manual"
	"berth/internal/version"
)

// newManualCommand is `berth manual`, for those who make packages of berth.
func newManualCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "manual DIR",
		Short:  "Write the manual pages into a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pages := manual.Commands(cmd.Root(), version.Version())
			pages = append(pages, manual.Config(config.Document(), config.DefaultPath, version.Version()))
			for _, p := range pages {
				if err := os.WriteFile(filepath.Join(args[0], p.File()), []byte(p.Text), 0o644); err != nil {
					return fmt.Errorf("manual page: %w", err)
				}
			}
			return nil
		},
	}
}
