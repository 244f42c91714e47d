// Package podrun runs a planned pod through a CRI server, as the kubelet does
// it: directories, sandbox, init containers in their order, containers,
// restarts while somebody waits, and the end.
//
// What Start made, a failed Start takes away again; what Stop and Remove are
// given need not be whole. The directories of a pod are removed after its
// containers and before its sandbox, which alone tells that there are any, so
// that a removal that was cut or failed can be done again.
//
// A Run is used by one goroutine; the goroutines it starts end when Wait or
// Detach has returned. Stop and Remove hold no state and may be called from
// anywhere.
package podrun

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/manifest"
)

// undoTimeout bounds the undoing of a Start that failed, beyond the pod's own
// grace period.
const undoTimeout = 30 * time.Second

// makeTimeout bounds the making of a sandbox or container, even where the
// caller has given up meanwhile.
const makeTimeout = 3 * time.Minute

// Options configure a Run. Client, Plan and Pull are required.
type Options struct {
	Client *client.Client
	Plan   *manifest.Plan
	// Pull pulls an image.
	Pull func(ctx context.Context, image string) error
	// Say, where set, is told what a user may want to know, by several
	// goroutines at once.
	Say func(format string, args ...any)
	// Started, where set, is told of each container that has been started. It
	// is called from several goroutines.
	Started func(c *manifest.Container, id, logPath string)
}

// A Run is one pod of berth run.
type Run struct {
	opts    Options
	client  *client.Client
	plan    *manifest.Plan
	images  map[string]*runtime.Image // by what the manifest calls them
	sandbox string
	started manifest.Started
	watch   *watcher

	background context.Context // of the supervision of sidecars and containers
	cancel     context.CancelFunc
	wg         sync.WaitGroup

	mu       sync.Mutex // guards the rest
	outcomes map[string]outcome
}

// An outcome is how a container ended for good.
type outcome struct {
	code int32
	err  error
}

// New returns a Run of the plan.
func New(opts Options) *Run {
	if opts.Say == nil {
		opts.Say = func(string, ...any) {}
	}
	if opts.Started == nil {
		opts.Started = func(*manifest.Container, string, string) {}
	}
	return &Run{
		opts: opts, client: opts.Client, plan: opts.Plan,
		images: map[string]*runtime.Image{}, outcomes: map[string]outcome{},
	}
}

// ID is the sandbox's, once Start has returned.
func (r *Run) ID() string { return r.sandbox }

// Start makes the pod and returns when its containers have been started.
func (r *Run) Start(ctx context.Context) (err error) {
	for _, c := range r.all() {
		if err := r.image(ctx, c); err != nil {
			return fmt.Errorf("container %s: image %s: %w", c.Name, c.Image, err)
		}
	}
	r.background, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	r.watch = watch(r.background, r.client.Runtime)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.undo(ctx))
		}
	}()
	if err := makeDirs(r.plan); err != nil {
		return err
	}
	if err := r.runSandbox(ctx); err != nil {
		return err
	}
	for i := range r.plan.Init {
		if err := r.init(ctx, &r.plan.Init[i]); err != nil {
			return fmt.Errorf("init container %s: %w", r.plan.Init[i].Name, err)
		}
	}
	for i := range r.plan.Containers {
		c := &r.plan.Containers[i]
		id, err := r.start(ctx, c, 0)
		if err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		r.supervise(c, id, r.plan.RestartPolicy)
	}
	return nil
}

func (r *Run) all() []*manifest.Container {
	var all []*manifest.Container
	for i := range r.plan.Init {
		all = append(all, &r.plan.Init[i])
	}
	for i := range r.plan.Containers {
		all = append(all, &r.plan.Containers[i])
	}
	return all
}

// image sees that the container's image is here, as its pull policy asks.
func (r *Run) image(ctx context.Context, c *manifest.Container) error {
	status := func() (*runtime.Image, error) {
		resp, err := r.client.Images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: c.Image}})
		return resp.GetImage(), err
	}
	found, err := status()
	if err != nil {
		return err
	}
	_, pulled := r.images[c.Image]
	switch {
	case pulled:
	case c.PullPolicy == corev1.PullNever && found == nil:
		return errors.New("it is not here and imagePullPolicy is Never: `berth load` or `berth pull` it first")
	case c.PullPolicy == corev1.PullAlways, c.PullPolicy == corev1.PullIfNotPresent && found == nil:
		if err := r.opts.Pull(ctx, c.Image); err != nil {
			return err
		}
		if found, err = status(); err != nil {
			return err
		}
		if found == nil {
			return errors.New("it is not here although its pull succeeded: was it removed meanwhile?")
		}
	}
	r.images[c.Image] = found
	return nil
}

func (r *Run) runSandbox(ctx context.Context) error {
	whole, cancel := uncut(ctx)
	defer cancel()
	resp, err := r.client.Runtime.RunPodSandbox(whole, &runtime.RunPodSandboxRequest{Config: r.plan.Sandbox, RuntimeHandler: r.plan.RuntimeHandler})
	if err != nil {
		return fmt.Errorf("pod %s: %w", client.PodName(r.plan.Sandbox.Metadata), err)
	}
	r.sandbox = resp.PodSandboxId
	status, err := r.client.Runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: r.sandbox})
	if err != nil {
		return fmt.Errorf("pod %s: %w", client.PodName(r.plan.Sandbox.Metadata), err)
	}
	r.started.IPs = PodIPs(status.GetStatus())
	if r.plan.HostsFile != "" {
		if err := os.WriteFile(r.plan.HostsFile, r.plan.Hosts(r.started.IPs), 0o644); err != nil {
			return fmt.Errorf("hosts file: %w", err)
		}
	}
	return nil
}

// uncut is the context of a call that makes something: a caller that gives up
// in the middle would not learn what there is to take away.
func uncut(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), makeTimeout)
}

// PodIPs are a pod's addresses, the main one first.
func PodIPs(s *runtime.PodSandboxStatus) []string {
	var ips []string
	if ip := s.GetNetwork().GetIp(); ip != "" {
		ips = append(ips, ip)
	}
	for _, ip := range s.GetNetwork().GetAdditionalIps() {
		ips = append(ips, ip.Ip)
	}
	return ips
}

// start creates and starts one attempt at a container.
func (r *Run) start(ctx context.Context, c *manifest.Container, attempt uint32) (id string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	ctx, cancel := uncut(ctx)
	defer cancel()
	config, err := r.plan.Config(c, attempt, r.images[c.Image], r.started)
	if err != nil {
		return "", err
	}
	created, err := r.client.Runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: r.sandbox, Config: config, SandboxConfig: r.plan.Sandbox,
	})
	if err != nil {
		return "", err
	}
	if _, err := r.client.Runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return "", err
	}
	r.opts.Started(c, created.ContainerId, config.LogPath)
	return created.ContainerId, nil
}

// init starts a sidecar, or runs an init container until it has succeeded.
func (r *Run) init(ctx context.Context, c *manifest.Container) error {
	id, err := r.start(ctx, c, 0)
	if err != nil {
		return err
	}
	if c.Sidecar {
		r.supervise(c, id, corev1.RestartPolicyAlways)
		return nil
	}
	policy := r.plan.RestartPolicy
	if policy == corev1.RestartPolicyAlways {
		policy = corev1.RestartPolicyOnFailure
	}
	o := r.untilDone(ctx, c, id, policy)
	if o.err == nil && o.code != 0 {
		return fmt.Errorf("it ended with exit code %d; its log:\n%s", o.code, r.lastLines(c))
	}
	return o.err
}

// supervise keeps a container going in the background.
func (r *Run) supervise(c *manifest.Container, id string, policy corev1.RestartPolicy) {
	r.wg.Go(func() {
		o := r.untilDone(r.background, c, id, policy)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.outcomes[c.Name] = o
		r.watch.wake()
	})
}

// Detach ends the supervision and leaves the pod as it is.
func (r *Run) Detach() {
	r.cancel()
	r.wg.Wait()
	r.watch.wait()
}

// Wait keeps the pod going until all its containers, sidecars apart, have ended
// for good, or ctx ends. The code is that of the first container that failed.
// The supervision has ended when it returns; the pod has yet to be stopped and
// removed.
func (r *Run) Wait(ctx context.Context) (int32, error) {
	defer r.Detach()
	for {
		changed := r.watch.changed()
		if code, done, err := r.done(); done || err != nil {
			return code, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-changed:
		}
	}
}

func (r *Run) done() (code int32, done bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done = true
	for _, c := range r.plan.Containers {
		o, ended := r.outcomes[c.Name]
		done = done && ended
		if o.err != nil {
			err = errors.Join(err, fmt.Errorf("container %s: %w", c.Name, o.err))
		}
		if code == 0 {
			code = o.code
		}
	}
	return code, done, err
}

// undo takes away all that a failed Start has made.
func (r *Run) undo(ctx context.Context) error {
	r.Detach()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	pod := &runtime.PodSandbox{Id: r.sandbox, Metadata: r.plan.Sandbox.Metadata, Annotations: r.plan.Sandbox.Annotations}
	if r.sandbox == "" {
		return removeDirs(rootsOf(r.plan), pod)
	}
	return errors.Join(Stop(ctx, r.client, pod, new(time.Duration(0))), Remove(ctx, r.client, rootsOf(r.plan), pod))
}
