package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTimeout bounds each call that a helper makes.
var callTimeout = Scaled(60 * time.Second)

// A Client calls a daemon's CRI. All services are embedded, so that a test
// calls what it tests by its own name.
type Client struct {
	cri.RuntimeServiceClient
	cri.ImageServiceClient
	// Handler is the runtime handler of the pods that Pod makes.
	Handler string

	conn *grpc.ClientConn
	d    *Daemon
}

// Client is the daemon's, made once; it outlives the daemon's restarts.
func (d *Daemon) Client() (*Client, error) {
	d.clientMu.Lock()
	defer d.clientMu.Unlock()
	if d.client != nil {
		return d.client, nil
	}
	c, err := d.Dial()
	if err != nil {
		return nil, err
	}
	d.client = c
	return c, nil
}

// Dial makes a client with a connection of its own, which the caller closes.
func (d *Daemon) Dial() (*Client, error) {
	// A daemon that restarts is to be found at once.
	retry := grpc.ConnectParams{MinConnectTimeout: time.Second}
	retry.Backoff.BaseDelay, retry.Backoff.MaxDelay, retry.Backoff.Multiplier = 5*time.Millisecond, 50*time.Millisecond, 1.5
	conn, err := grpc.NewClient("unix://"+d.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(retry),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	return &Client{
		RuntimeServiceClient: cri.NewRuntimeServiceClient(conn),
		ImageServiceClient:   cri.NewImageServiceClient(conn),
		conn:                 conn, d: d,
	}, nil
}

// Close closes the connection of a client from Dial.
func (c *Client) Close() error { return c.conn.Close() }

// Conn is the client's connection, for services beside the CRI.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// WithHandler is a client on the same connection whose pods use handler.
func (c *Client) WithHandler(handler string) *Client {
	other := *c
	other.Handler = handler
	return &other
}

// Daemon is the one that the client calls.
func (c *Client) Daemon() *Daemon { return c.d }

// Version asks for the runtime's version.
func (c *Client) Version(ctx context.Context) (*cri.VersionResponse, error) {
	return c.RuntimeServiceClient.Version(ctx, &cri.VersionRequest{Version: "v1"})
}

// A Pod is a sandbox that a test made.
type Pod struct {
	ID     string
	Config *cri.PodSandboxConfig

	c *Client
}

// A Container is one that a test made.
type Container struct {
	ID     string
	Config *cri.ContainerConfig
	Pod    *Pod
}

var names atomic.Int64

// Name makes a name that no other has, from a test's name.
func Name(hint string) string {
	hint = strings.ToLower(filepath.Base(hint))
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, hint)
	return fmt.Sprintf("%.40s-%d", strings.Trim(clean, "-"), names.Add(1))
}

// PodConfig is the configuration of a pod of its own name, with a log
// directory and a cgroup parent.
func (c *Client) PodConfig(hint string, change ...func(*cri.PodSandboxConfig)) *cri.PodSandboxConfig {
	name := Name(hint)
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "testkit", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(c.d.Logs, name),
		Labels:       map[string]string{"test": hint},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: c.d.podCgroup(name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	for _, f := range change {
		f(config)
	}
	return config
}

// ContainerConfig is the configuration of a container that runs args, which
// replace the image's entrypoint, and logs to <name>.log.
func ContainerConfig(image string, args []string, change ...func(*cri.ContainerConfig)) *cri.ContainerConfig {
	name := Name("c")
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: image},
		Command:  args,
		LogPath:  name + ".log",
		Linux:    &cri.LinuxContainerConfig{},
	}
	for _, f := range change {
		f(config)
	}
	return config
}

// Client is the one that made the pod.
func (p *Pod) Client() *Client { return p.c }

// RunPod makes a pod and returns errors.
func (c *Client) RunPod(ctx context.Context, config *cri.PodSandboxConfig) (*Pod, error) {
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: c.Handler})
	if err != nil {
		return nil, err
	}
	return &Pod{ID: resp.PodSandboxId, Config: config, c: c}, nil
}

// Pod makes a pod that is stopped and removed at the test's end.
func (c *Client) Pod(t testing.TB, change ...func(*cri.PodSandboxConfig)) *Pod {
	t.Helper()
	p, err := c.RunPod(t.Context(), c.PodConfig(t.Name(), change...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Stop stops the pod.
func (p *Pod) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := p.c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Remove ends the pod's containers without a grace period, stops the pod and
// removes it.
func (p *Pod) Remove(ctx context.Context) error {
	if err := p.killContainers(ctx); err != nil {
		return fmt.Errorf("stop the containers of pod %s: %w", p.Config.Metadata.Name, err)
	}
	if err := p.Stop(ctx); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.Config.Metadata.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := p.c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.Config.Metadata.Name, err)
	}
	return nil
}

func (p *Pod) killContainers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := p.c.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: p.ID}})
	if err != nil {
		return err
	}
	var group errgroup.Group
	for _, c := range list.Containers {
		group.Go(func() error {
			_, err := p.c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.Id})
			return err
		})
	}
	return group.Wait()
}

// Status is the pod's.
func (p *Pod) Status(t testing.TB) *cri.PodSandboxStatus {
	t.Helper()
	resp, err := p.c.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status
}

// Create creates a container and returns errors.
func (p *Pod) Create(ctx context.Context, config *cri.ContainerConfig) (*Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := p.c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	if err != nil {
		return nil, err
	}
	return &Container{ID: resp.ContainerId, Config: config, Pod: p}, nil
}

// Container creates and starts a container.
func (p *Pod) Container(t testing.TB, image string, args []string, change ...func(*cri.ContainerConfig)) *Container {
	t.Helper()
	c, err := p.Create(t.Context(), ContainerConfig(image, args, change...))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// Output runs args in a container of its own, wants exit code 0 and returns
// what it wrote.
func (p *Pod) Output(t testing.TB, image string, args []string, change ...func(*cri.ContainerConfig)) string {
	t.Helper()
	c := p.Container(t, image, args, change...)
	status := c.Exited(t)
	text := c.Text(t)
	if status.ExitCode != 0 {
		t.Fatalf("%q: exit code %d (%s): %s", args, status.ExitCode, status.Reason, text)
	}
	return text
}

// Start starts the container.
func (c *Container) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.Pod.c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ID})
	return err
}

// Stop stops the container.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout+grace)
	defer cancel()
	_, err := c.Pod.c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: int64(grace / time.Second)})
	return err
}

// Remove removes the container.
func (c *Container) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.Pod.c.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.ID})
	return err
}

// Status is the container's.
func (c *Container) Status(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	resp, err := c.Pod.c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status
}

// Reach waits until the container is in a state and returns its status.
func (c *Container) Reach(ctx context.Context, state cri.ContainerState) (*cri.ContainerStatus, error) {
	var last *cri.ContainerStatus
	err := Poll(ctx, 30*time.Second, func(ctx context.Context) string {
		resp, err := c.Pod.c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
		if err != nil {
			return err.Error()
		}
		if last = resp.Status; last.State != state {
			return fmt.Sprintf("container %s is %s, want %s: %s", c.Config.Metadata.Name, last.State, state, last.Reason)
		}
		return ""
	})
	return last, err
}

// Exited waits until the container has exited.
func (c *Container) Exited(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	s, err := c.Reach(t.Context(), cri.ContainerState_CONTAINER_EXITED)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Exec runs args in the container and wants exit code 0.
func (c *Container) Exec(t testing.TB, args ...string) string {
	t.Helper()
	resp, err := c.ExecSync(t.Context(), args...)
	if err != nil {
		t.Fatalf("exec %q: %v", args, err)
	}
	if resp.ExitCode != 0 {
		t.Fatalf("exec %q: exit code %d: %s%s", args, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return string(resp.Stdout)
}

// ExecSync runs args in the container.
func (c *Container) ExecSync(ctx context.Context, args ...string) (*cri.ExecSyncResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.Pod.c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: args, Timeout: 30})
}

// LogFile is the container's log.
func (c *Container) LogFile() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}

// Pull pulls an image and returns its ID.
func (c *Client) Pull(ctx context.Context, ref string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		return "", err
	}
	return resp.ImageRef, nil
}

// WarmUp runs a pod and removes it, so that what the first one makes and all
// others share is there: the bridge, the base chains of port mappings,
// directories.
func (c *Client) WarmUp(ctx context.Context, image string) error {
	config := c.PodConfig("warm-up")
	config.PortMappings = []*cri.PortMapping{{HostPort: 1, ContainerPort: 1}}
	p, err := c.RunPod(ctx, config)
	if err != nil {
		return err
	}
	ctr, err := p.Create(ctx, ContainerConfig(image, []string{"true"}))
	if err != nil {
		return errors.Join(err, p.Remove(ctx))
	}
	return errors.Join(ctr.Start(ctx), p.Remove(ctx))
}

// Watched is a client of a running daemon that has the image, was warmed up,
// and must have the host as it is then when the test ends.
func (d *Daemon) Watched(t testing.TB, image string) *Client {
	t.Helper()
	c, err := d.Client()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if err := c.WarmUp(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	d.Watch(t)
	return c
}

// Clear removes every pod, and every image but those whose IDs are kept.
func (c *Client) Clear(ctx context.Context, keep ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	pods, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pods.Items {
		pod := &Pod{ID: p.Id, Config: &cri.PodSandboxConfig{Metadata: p.Metadata}, c: c}
		errs = append(errs, pod.Remove(ctx))
	}
	images, err := c.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	kept := map[string]bool{}
	for _, id := range keep {
		kept[id] = true
	}
	for _, i := range images.Images {
		if !kept[i.Id] {
			_, err := c.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.Id}})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// WantCode fails the test unless err has the code and names every part.
func WantCode(t testing.TB, err error, code codes.Code, parts ...string) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Errorf("code %s, want %s: %v", got, code, err)
		return
	}
	for _, part := range parts {
		if err != nil && !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not name %q: %v", part, err)
		}
	}
}
