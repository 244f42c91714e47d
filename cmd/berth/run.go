package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/manifest"
	"berth/internal/podrun"
)

type runFlags struct {
	follow, keep, replace bool
	roots                 rootFlags
}

func newRunCommand(c *cli) *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run FILE.yaml|-",
		Short: "Run a pod from a Kubernetes Pod manifest",
		Long: `Run a pod from a Kubernetes Pod manifest, as a kubelet would.

Images are pulled as imagePullPolicy says, init containers run in their order,
then the containers are started. A field that is not supported is an error that
names it; nothing is ignored.

Without --follow the pod's ID and name are printed and the pod is left running:
nobody restarts its containers then. With --follow the logs of all containers
are shown and restartPolicy is kept; Ctrl-C stops the pod and removes it (again:
at once, without a grace period), and so does the end of its containers, unless
--keep. The exit code is that of the first container that failed.`,
		Example: `  berth run web.yaml
  berth run --follow job.yaml
  kubectl run web --image=nginx:1.29 --dry-run=client -o yaml | berth run -`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			pod, err := readManifest(c.in, args[0])
			if err != nil {
				return err
			}
			return c.with(func(cl *client.Client) error { return runPod(cmd, cl, pod, flags) })
		},
	}
	cmd.Flags().BoolVarP(&flags.follow, "follow", "f", false, "show the logs, keep restartPolicy, and remove the pod in the end")
	cmd.Flags().BoolVar(&flags.keep, "keep", false, "with --follow: leave the pod when its containers have ended")
	cmd.Flags().BoolVar(&flags.replace, "replace", false, "stop and remove a pod of the same name first")
	flags.roots.add(cmd)
	return cmd
}

// rootFlags say where pods of berth run have their directories.
type rootFlags struct{ run, log string }

func (f *rootFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.run, "run-root", cmp.Or(os.Getenv("BERTH_RUN_ROOT"), podrun.DefaultRunRoot), "where emptyDir volumes are ($BERTH_RUN_ROOT)")
	cmd.Flags().StringVar(&f.log, "log-root", cmp.Or(os.Getenv("BERTH_LOG_ROOT"), podrun.DefaultLogRoot), "where logs are ($BERTH_LOG_ROOT)")
}

func (f *rootFlags) roots() (roots podrun.Roots, err error) {
	for _, root := range []struct {
		flag, value string
		into        *string
	}{{"--run-root", f.run, &roots.Run}, {"--log-root", f.log, &roots.Log}} {
		if root.value == "" {
			return roots, fmt.Errorf("%s: it is empty: want a directory", root.flag)
		}
		if *root.into, err = filepath.Abs(root.value); err != nil {
			return roots, fmt.Errorf("%s %q: %w", root.flag, root.value, err)
		}
	}
	return roots, nil
}

func readManifest(in io.Reader, file string) (_ *corev1.Pod, err error) {
	if file == "-" {
		return manifest.Read(in)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	pod, err := manifest.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return pod, nil
}

func runPod(cmd *cobra.Command, cl *client.Client, pod *corev1.Pod, flags runFlags) error {
	ctx := cmd.Context()
	roots, err := flags.roots.roots()
	if err != nil {
		return err
	}
	opts, err := machineFacts(roots)
	if err != nil {
		return err
	}
	plan := manifest.NewPlan(pod, opts)
	if err := makeWay(ctx, cl, roots, plan.Sandbox.Metadata, flags.replace); err != nil {
		return err
	}
	var lines sync.Mutex // guards the output, for a line at a time
	say := func(format string, args ...any) {
		lines.Lock()
		defer lines.Unlock()
		fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...)
	}
	run := podrun.Options{
		Client: cl, Plan: plan, Say: say,
		Pull: func(ctx context.Context, image string) error {
			say("pulling %s", image)
			_, err := pullImage(ctx, cl, pullRequest{image: image}, cmd.ErrOrStderr())
			return err
		},
	}
	if flags.follow {
		return followPod(cmd, run, roots, flags.keep, &lines)
	}
	r := podrun.New(run)
	if err := r.Start(ctx); err != nil {
		return err
	}
	r.Detach()
	_, err = fmt.Fprintln(cmd.OutOrStdout(), r.ID(), client.PodName(plan.Sandbox.Metadata))
	return err
}

// machineFacts are the options of a new pod's plan.
func machineFacts(roots podrun.Roots) (manifest.Options, error) {
	opts, err := podrun.Machine()
	if err != nil {
		return manifest.Options{}, err
	}
	opts.UID, opts.RunRoot, opts.LogRoot = uuid.NewString(), roots.Run, roots.Log
	return opts, nil
}

// makeWay sees that no pod has the name, with replace by removing it.
func makeWay(ctx context.Context, cl *client.Client, roots podrun.Roots, meta *runtime.PodSandboxMetadata, replace bool) error {
	resp, err := cl.Runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range resp.GetItems() {
		if client.PodName(p.Metadata) != client.PodName(meta) {
			continue
		}
		if !replace {
			return fmt.Errorf("pod %s is there already (%s, %s): remove it with `berth rm -f %[1]s`, or use --replace", client.PodName(meta), podState(p.State), shortID(p.Id))
		}
		if err := errors.Join(podrun.Stop(ctx, cl, p, nil), podrun.Remove(ctx, cl, roots, p)); err != nil {
			return fmt.Errorf("replace pod %s: %w", client.PodName(meta), err)
		}
	}
	return nil
}

// logsDrain bounds how long the end of a log is waited for once its container
// has ended.
const logsDrain = 3 * time.Second
