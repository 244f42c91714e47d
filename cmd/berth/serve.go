package main

import (
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"berth/internal/config"
	berthd "berth/internal/daemon"
	"berth/internal/telemetry"
)

// newServeCommand is `berth serve`: the daemon.
func newServeCommand() *cobra.Command {
	var file string
	flags := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon: a CRI server for a kubelet, crictl and the other commands",
		Long: `Run the daemon until SIGTERM or Ctrl-C. Containers run on when it ends, and are
taken up again when it starts.

Without --config, ` + config.DefaultPath + ` is read if it is there. A flag wins over
the file. "berth config default" shows every key.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd, file, flags)
			if err != nil {
				return err
			}
			log, err := telemetry.NewLogger(os.Stderr, cfg.Log.Level, cfg.Log.Format)
			if err != nil {
				return err
			}
			executable, err := os.Executable()
			if err != nil {
				return err
			}
			watchdog, err := daemon.SdWatchdogEnabled(false)
			if err != nil {
				log.Warn("no watchdog", "err", err)
			}
			return berthd.Run(cmd.Context(), berthd.Options{
				Config: cfg, Executable: executable, Log: log,
				Ready: notify(daemon.SdNotifyReady), Alive: notify(daemon.SdNotifyWatchdog), AliveEvery: watchdog,
			})
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default "+config.DefaultPath+")")
	for name, usage := range map[string]string{
		"root": "directory of images and records", "state": "directory of sockets and mounts",
		"address": "unix socket to serve", "containerd": "socket of a containerd to use instead of the embedded one",
		"log-level": "debug, info, warn or error",
	} {
		flags[name] = cmd.Flags().String(name, "", usage)
	}
	return cmd
}

// loadConfig is the file with the flags over it, validated.
func loadConfig(cmd *cobra.Command, file string, flags map[string]*string) (*config.Config, error) {
	cfg := config.Default()
	if file == "" {
		if _, err := os.Stat(config.DefaultPath); err == nil {
			file = config.DefaultPath
		}
	}
	if file != "" {
		var err error
		if cfg, err = config.Load(file); err != nil {
			return nil, err
		}
	}
	into := map[string]*string{
		"root": &cfg.Root, "state": &cfg.State, "address": &cfg.Address,
		"containerd": &cfg.Containerd.Address, "log-level": &cfg.Log.Level,
	}
	for name, key := range into {
		if cmd.Flags().Changed(name) {
			*key = *flags[name]
		}
	}
	return cfg, cfg.Validate()
}

// notify tells systemd; elsewhere it does nothing.
func notify(state string) func() error {
	return func() error {
		if _, err := daemon.SdNotify(false, state); err != nil {
			return fmt.Errorf("sd_notify: %w", err)
		}
		return nil
	}
}
