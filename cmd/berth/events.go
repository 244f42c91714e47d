package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
)

func newEventsCommand(c *cli) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens to pods and containers, as it happens",
		Long: `Show each creation, start, stop and removal of a container or pod from now on,
until Ctrl-C. With -o json each event is one line; with -o yaml, one document.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(func(cl *client.Client) error {
				stream, err := cl.Runtime.GetContainerEvents(cmd.Context(), &runtime.GetEventsRequest{})
				if err != nil {
					return err
				}
				for {
					event, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						return errors.New("the daemon ended the stream of events: is it being stopped?")
					}
					if err != nil {
						return err
					}
					if err := printEvent(cmd.OutOrStdout(), event, &out); err != nil {
						return err
					}
				}
			})
		},
	}
	out.flag(cmd, listFormats...)
	return cmd
}

func printEvent(w io.Writer, event *runtime.ContainerEventResponse, out *output) error {
	if out.format == "table" {
		_, err := fmt.Fprintln(w, eventLine(event))
		return err
	}
	doc, err := messageJSON(event)
	if err != nil {
		return err
	}
	if out.format == "json" {
		_, err := w.Write(append(doc, '\n'))
		return err
	}
	if _, err := io.WriteString(w, "---\n"); err != nil {
		return err
	}
	return out.document(w, doc)
}

// eventLine is an event for people: when, what, to whom.
func eventLine(event *runtime.ContainerEventResponse) string {
	what := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(event.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
	when := time.Unix(0, event.CreatedAt).Local().Format("2006-01-02T15:04:05.000Z07:00")
	pod := event.GetPodSandboxStatus()
	name := "-"
	if pod.GetMetadata() != nil {
		name = client.PodName(pod.Metadata)
	}
	if pod.GetId() == event.ContainerId {
		return fmt.Sprintf("%s  %-8s pod        %s  %s", when, what, shortID(event.ContainerId), name)
	}
	detail := ""
	for _, st := range event.GetContainersStatuses() {
		if st.Id != event.ContainerId {
			continue
		}
		name += "/" + st.GetMetadata().GetName()
		if event.ContainerEventType == runtime.ContainerEventType_CONTAINER_STOPPED_EVENT {
			detail = fmt.Sprintf("  exit code %d", st.ExitCode)
			if st.Reason != "" {
				detail += " (" + st.Reason + ")"
			}
		}
	}
	return fmt.Sprintf("%s  %-8s container  %s  %s%s", when, what, shortID(event.ContainerId), name, detail)
}
