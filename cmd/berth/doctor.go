package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/config"
	"berth/internal/doctor"
)

func newDoctorCommand(c *cli) *cobra.Command {
	var (
		out  output
		file string
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this machine can run pods, and say what to do where not",
		Long: `Check the kernel, cgroups, network, runtime, disk and daemon. Each line is ok,
warn (some pods will not have all they ask for) or fail (pods will not run),
with what to do. The exit code is 1 where anything fails. Nothing is changed.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			executable, err := os.Executable()
			if err != nil {
				return fmt.Errorf("doctor: %w", err)
			}
			if c.address == "" && os.Getenv("BERTH_ADDRESS") == "" {
				c.address = cfg.Address
			}
			findings := doctor.Run(cmd.Context(), doctor.Options{Config: cfg, Executable: executable, Probe: c.probe})
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if err := printFindings(cmd.OutOrStdout(), &out, findings); err != nil {
				return err
			}
			if doctor.Worst(findings) == doctor.Fail {
				return &exitError{code: 1}
			}
			return nil
		},
	}
	out.flag(cmd, listFormats...)
	cmd.Flags().StringVar(&file, "config", "", "configuration of the daemon (default "+config.DefaultPath+")")
	return cmd
}

// probe asks the daemon how it is.
func (c *cli) probe(ctx context.Context) (version string, problems []string, err error) {
	err = c.with(func(cl *client.Client) error {
		v, err := cl.Runtime.Version(ctx, &runtime.VersionRequest{})
		if err != nil {
			return err
		}
		version = v.RuntimeName + " " + v.RuntimeVersion
		status, err := cl.Runtime.Status(ctx, &runtime.StatusRequest{})
		for _, condition := range status.GetStatus().GetConditions() {
			if !condition.Status {
				problems = append(problems, condition.Type+" is false: "+cmp.Or(condition.Message, condition.Reason))
			}
		}
		return err
	})
	return version, problems, err
}

func printFindings(w io.Writer, out *output, findings []doctor.Finding) error {
	if out.format != "table" {
		doc, err := json.Marshal(map[string]any{"findings": findings, "worst": doctor.Worst(findings)})
		if err != nil {
			return err
		}
		return out.document(w, doc)
	}
	colour := isTerminal(w) && os.Getenv("NO_COLOR") == ""
	for _, f := range findings {
		if _, err := fmt.Fprintf(w, "%s  %-18s %s\n", mark(f.Level, colour), f.Check, f.Detail); err != nil {
			return err
		}
		if f.Advice == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "      %-18s → %s\n", "", f.Advice); err != nil {
			return err
		}
	}
	return nil
}

// mark is the level, as wide as the widest.
func mark(l doctor.Level, colour bool) string {
	text := fmt.Sprintf("%-4s", l)
	if !colour {
		return text
	}
	codes := map[doctor.Level]string{doctor.OK: "32", doctor.Warn: "33", doctor.Fail: "31"}
	return "\x1b[" + codes[l] + "m" + text + "\x1b[0m"
}
