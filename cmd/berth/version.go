package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/version"
)

func newVersionCommand(c *cli) *cobra.Command {
	var (
		out  output
		only bool
	)
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Show the versions of this program and of the daemon",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			shown := struct {
				Client string           `json:"client"`
				Server *json.RawMessage `json:"server,omitempty"`
			}{Client: version.Version()}
			if out.format == "table" {
				fmt.Fprintln(cmd.OutOrStdout(), "client:", version.String())
			}
			show := func() error {
				if out.format == "table" {
					return nil
				}
				doc, err := json.Marshal(shown)
				if err != nil {
					return err
				}
				return out.document(cmd.OutOrStdout(), doc)
			}
			if only {
				return show()
			}
			return c.with(func(cl *client.Client) error {
				resp, err := cl.Runtime.Version(cmd.Context(), &runtime.VersionRequest{})
				if err != nil {
					return err
				}
				if out.format == "table" {
					fmt.Fprintf(cmd.OutOrStdout(), "server: %s %s (CRI %s) at %s\n", resp.RuntimeName, resp.RuntimeVersion, resp.RuntimeApiVersion, cl.Socket())
					return nil
				}
				server, err := messageJSON(resp)
				if err != nil {
					return err
				}
				shown.Server = (*json.RawMessage)(&server)
				return show()
			})
		},
	}
	out.flag(cmd, listFormats...)
	cmd.Flags().BoolVar(&only, "client", false, "this program's alone; asks no daemon")
	return cmd
}
