package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

func newInspectCommand(c *cli) *cobra.Command {
	var (
		out  output
		kind string
	)
	cmd := &cobra.Command{
		Use:   "inspect POD|CONTAINER|IMAGE...",
		Short: "Show all that is known of a pod, container or image",
		Long: `Show all that is known of a pod, a container or an image, as JSON or YAML: the
status that the CRI defines, and under "info" what the runtime adds.`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: c.completeAny(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch kind {
			case "", "pod", "container", "image":
			default:
				return fmt.Errorf("--type %q: want pod, container or image", kind)
			}
			return c.with(func(cl *client.Client) error {
				for _, ref := range args {
					doc, err := inspect(cmd.Context(), cl, ref, kind)
					if err != nil {
						return err
					}
					if out.format == "yaml" && len(args) > 1 {
						fmt.Fprintln(cmd.OutOrStdout(), "---")
					}
					if err := out.document(cmd.OutOrStdout(), doc); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	out.flag(cmd, "json", "yaml")
	cmd.Flags().StringVar(&kind, "type", "", "what it is, where a name fits several: pod, container or image")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{"pod", "container", "image"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// inspect is the full status of what ref means: a pod, else a container, else
// an image.
func inspect(ctx context.Context, cl *client.Client, ref, kind string) ([]byte, error) {
	set, err := cl.Set(ctx)
	if err != nil {
		return nil, err
	}
	if kind == "" || kind == "pod" {
		pod, err := client.FindPod(set.Pods, ref)
		if err == nil {
			resp, err := cl.Runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod.Id, Verbose: true})
			return statusDocument(resp, resp.GetInfo(), err)
		}
		if kind != "" || !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	if kind == "" || kind == "container" {
		ctr, err := set.FindContainer(ref, false)
		if err == nil {
			resp, err := cl.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: ctr.Id, Verbose: true})
			return statusDocument(resp, resp.GetInfo(), err)
		}
		if kind != "" || !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	img, err := cl.Image(ctx, ref)
	if errdefs.IsNotFound(err) && kind == "" || status.Code(err) == codes.InvalidArgument {
		return nil, fmt.Errorf("nothing is known by %q: no pod, container or image has that name or an ID that begins with it", ref)
	}
	if err != nil {
		return nil, err
	}
	resp, err := cl.Images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: img.Id}, Verbose: true})
	return statusDocument(resp, resp.GetInfo(), err)
}

// statusDocument is a verbose status as JSON, with the JSON texts in its info
// put in place as what they are.
func statusDocument(m proto.Message, info map[string]string, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	doc, err := messageJSON(m)
	if err != nil {
		return nil, err
	}
	// An object keeps its order only as pairs; info alone is replaced.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(doc, &fields); err != nil {
		return nil, fmt.Errorf("print as JSON: %w", err)
	}
	fields["info"], err = json.Marshal(infoValues(info))
	if err != nil {
		return nil, fmt.Errorf("print as JSON: %w", err)
	}
	return json.Marshal(fields)
}

// infoValues parses the values that are JSON.
func infoValues(info map[string]string) map[string]any {
	values := map[string]any{}
	for key, text := range info {
		dec := json.NewDecoder(bytes.NewReader([]byte(text)))
		dec.UseNumber() // large numbers stay what they are
		var v any
		if err := dec.Decode(&v); err != nil || dec.More() {
			v = text
		}
		values[key] = v
	}
	return values
}

// ttyIn finds in a container's info whether it has a terminal: in the CRI
// configuration ("tty") or the OCI spec ("process.terminal").
func ttyIn(info map[string]string) bool {
	var look func(v any) bool
	look = func(v any) bool {
		switch v := v.(type) {
		case map[string]any:
			if v["tty"] == true || v["terminal"] == true {
				return true
			}
			for _, inner := range v {
				if look(inner) {
					return true
				}
			}
		}
		return false
	}
	for _, v := range infoValues(info) {
		if look(v) {
			return true
		}
	}
	return false
}
