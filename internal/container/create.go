package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/signal"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/image"
	"berth/internal/record"
	"berth/internal/spec"
	"berth/internal/steps"
)

// opTimeout bounds an operation that nobody waits for any more.
const opTimeout = 4 * time.Minute

// A creation is what the steps of one CreateContainer share.
type creation struct {
	box  *record.Sandbox
	rec  *record.Container
	img  *image.Image
	host spec.Host
	root []mount.Mount // of the snapshot
	user spec.User
	vols []spec.Volume
	spec *specs.Spec
	// volumeImages are those of rec.ImageVolumes.
	volumeImages []volumeImage
}

// Create makes a container in a ready sandbox and returns its ID. The
// configuration is valid.
//
// Errors: ErrNotFound for the sandbox or the image; ErrFailedPrecondition where
// the sandbox is not ready or the machine lacks what is asked for;
// ErrInvalidArgument for what only the image or the machine shows to be wrong;
// ErrAlreadyExists where the name is that of a container that was started.
func (s *Service) Create(ctx context.Context, sandboxID string, cfg *runtime.ContainerConfig) (string, error) {
	box, err := s.sandbox(sandboxID)
	if err != nil {
		return "", err
	}
	key := fmt.Sprintf("create of container %s attempt %d in sandbox %s", cfg.GetMetadata().GetName(), cfg.GetMetadata().GetAttempt(), box.ID)
	return s.flights.Do(ctx, key, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		id, err := s.create(ctx, box, cfg)
		return id, marked(err)
	})
}

func (s *Service) create(ctx context.Context, box *record.Sandbox, cfg *runtime.ContainerConfig) (string, error) {
	if id, err := s.existing(ctx, box, cfg.GetMetadata()); id != "" || err != nil {
		return id, err
	}
	c, err := s.plan(ctx, box, cfg)
	if err != nil {
		return "", fmt.Errorf("container %s: %w", cfg.GetMetadata().GetName(), err)
	}
	release, err := s.slots.Acquire(ctx, c.rec.ID)
	if err != nil {
		return "", err
	}
	defer release()
	if err := s.Steps.Run(ctx, steps.CreateContainer, c.rec.ID, s.createSteps(c)...); err != nil {
		return "", fmt.Errorf("container %s of pod %s/%s: %w", cfg.GetMetadata().GetName(), box.Config.GetMetadata().GetNamespace(), box.Config.GetMetadata().GetName(), err)
	}
	s.publish(runtime.ContainerEventType_CONTAINER_CREATED_EVENT, c.rec)
	s.Log.Info("container is created", "container", c.rec.ID, "name", cfg.GetMetadata().GetName(), "sandbox", box.ID)
	return c.rec.ID, nil
}

// existing finds the container that a repeated call asks for.
func (s *Service) existing(ctx context.Context, box *record.Sandbox, m *runtime.ContainerMetadata) (string, error) {
	for _, c := range s.of(box.ID) {
		have := c.Config.GetMetadata()
		if have.GetName() != m.GetName() || have.GetAttempt() != m.GetAttempt() {
			continue
		}
		switch c.State {
		case record.ContainerCreated:
			return c.ID, nil
		case record.ContainerCreating: // its undoing failed; try that again first
			return "", s.Undo(ctx, steps.CreateContainer, c.ID)
		}
		return "", fmt.Errorf("container %s attempt %d of sandbox %s is there as %s and was started; remove it or raise metadata.attempt: %w",
			m.GetName(), m.GetAttempt(), box.ID, c.ID, errdefs.ErrAlreadyExists)
	}
	return "", nil
}

// plan decides everything that the record names; it changes nothing.
func (s *Service) plan(ctx context.Context, box *record.Sandbox, cfg *runtime.ContainerConfig) (*creation, error) {
	img, err := s.Images.Get(ctx, cfg.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	id, err := newID()
	if err != nil {
		return nil, err
	}
	rec := &record.Container{
		ID: id, SandboxID: box.ID, Config: cfg, Handler: box.Handler, State: record.ContainerCreating,
		ImageID: img.ID, ImageRef: img.ID, ImageName: cfg.GetImage().GetImage(),
		Snapshotter: s.Snapshotter, Cgroup: s.Cgroups.Path(box.CgroupParent, id),
		StopSignal: spec.StopSignal(cfg, &img.Config), CreatedAt: time.Now(),
	}
	if _, err := signal.ParseSignal(rec.StopSignal); err != nil {
		s.Log.Warn("the image's stop signal is none; SIGTERM is used", "container", id, "image", img.ID, "signal", rec.StopSignal)
		rec.StopSignal = "SIGTERM"
	}
	if digests := img.Proto.GetRepoDigests(); len(digests) > 0 {
		rec.ImageRef, rec.ImageName = digests[0], digests[0]
	}
	if tags := img.Proto.GetRepoTags(); len(tags) > 0 {
		rec.ImageName = tags[0]
	}
	if dir := box.Config.GetLogDirectory(); dir != "" && cfg.GetLogPath() != "" {
		rec.LogPath = filepath.Join(dir, cfg.GetLogPath())
	}
	c := &creation{box: box, rec: rec, img: img}
	return c, s.findVolumeImages(ctx, c)
}

func newID() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}

// createSteps are the steps of Create; docs/flow/start-container.md says what
// each costs. Their undo uses the ID and the record alone.
func (s *Service) createSteps(c *creation) []steps.Step {
	id := c.rec.ID
	undo := s.undoCreate(id)
	list := []steps.Step{
		{Name: "record", Undo: undo["record"], Do: func(context.Context) error { return s.recordNew(c) }},
		{Name: "mounts", Do: func(context.Context) (err error) {
			c.host, err = spec.Prepare(c.rec.Config, s.Handlers[c.rec.Handler].PrivilegedWithoutHostDevices)
			return err
		}},
		{Name: "directories", Undo: undo["directories"], Do: func(context.Context) error { return s.makeDirectories(id) }},
		{Name: "user", Undo: undo["user"], Do: func(ctx context.Context) error { return s.findUser(ctx, c) }},
	}
	if len(c.volumeImages) > 0 {
		list = append(list, steps.Step{Name: "images", Undo: undo["images"], Do: func(ctx context.Context) error { return s.makeImageViews(ctx, c) }})
	}
	return append(list, []steps.Step{
		{Name: "container", Undo: undo["container"], Do: func(ctx context.Context) error { return s.makeContainer(ctx, c) }},
		{Name: "volumes", Undo: undo["volumes"], Do: func(context.Context) error { return s.fillVolumes(c) }},
		{Name: "created", Do: func(context.Context) error { return s.recordCreated(c) }},
	}...)
}

// recordNew writes the record, and then looks whether the sandbox is still
// ready: a StopPodSandbox that came before sees this container, one that comes
// later is seen here.
func (s *Service) recordNew(c *creation) error {
	if err := s.Store.Containers.Put(c.rec); err != nil {
		return err
	}
	_, err := s.sandbox(c.box.ID)
	return err
}

func (s *Service) makeDirectories(id string) error {
	for _, dir := range []string{s.Paths.Container(id), s.Paths.ContainerState(id)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// marks are the labels of a snapshot of ours. The first makes it a root of
// containerd's garbage collection.
func (s *Service) marks(c *record.Container) map[string]string {
	return map[string]string{
		"containerd.io/gc.root": c.CreatedAt.UTC().Format(time.RFC3339),
		LabelRoot:               s.Paths.Root,
	}
}

// marksMapped are marks, and for a pod with a user namespace those by which the
// snapshotter shows the files of its root as the namespace's root's.
func (s *Service) marksMapped(c *record.Container, box *record.Sandbox) map[string]string {
	labels := s.marks(c)
	uids, gids := spec.Mappings(box.Config)
	if uids != nil {
		labels[snapshots.LabelSnapshotUIDMapping] = mappingLabel(uids)
		labels[snapshots.LabelSnapshotGIDMapping] = mappingLabel(gids)
	}
	return labels
}

// mappingLabel is a mapping in containerd's form.
func mappingLabel(maps []specs.LinuxIDMapping) string {
	var parts []string
	for _, m := range maps {
		parts = append(parts, fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size))
	}
	return strings.Join(parts, ",")
}

// makeContainer writes containerd's record of the container, with the spec, and
// makes the writable layer.
func (s *Service) makeContainer(ctx context.Context, c *creation) error {
	namespaces, err := s.namespaces(c)
	if err != nil {
		return err
	}
	if c.img.ChainID == "" && namespaces.User != "" {
		return fmt.Errorf("image %s has no layers, and its root cannot be that of a user namespace: use another image, or leave hostUsers unset: %w", c.img.ID, errdefs.ErrInvalidArgument)
	}
	s.planVolumes(c)
	handler := s.Handlers[c.rec.Handler]
	made, warnings, err := spec.Container(spec.Input{
		ID: c.rec.ID, SandboxID: c.box.ID,
		Sandbox: c.box.Config, Container: c.rec.Config, Image: &c.img.Config, ImageName: c.rec.ImageName,
		Namespaces: namespaces, CgroupsPath: s.Cgroups.OCIPath(c.box.CgroupParent, c.rec.ID),
		Hostname: s.Paths.Hostname(c.box.ID), Hosts: s.Paths.Hosts(c.box.ID), ResolvConf: s.Paths.ResolvConf(c.box.ID),
		Shm: s.Paths.Shm(c.box.ID), User: c.user, Volumes: c.vols, Host: c.host, Kernel: s.Kernel,
		PrivilegedWithoutHostDevices: handler.PrivilegedWithoutHostDevices,
		PodAnnotations:               handler.PodAnnotations, ContainerAnnotations: handler.ContainerAnnotations,
		AppArmorDefault: s.AppArmorDefault,
	})
	if err != nil {
		return err
	}
	if err := spec.InjectCDI(made, c.rec.Config, s.CDIDirs); err != nil {
		return err
	}
	if err := spec.BindDevices(made); err != nil {
		return err
	}
	for _, w := range warnings {
		s.Log.Warn("container differs from what was asked for", "container", c.rec.ID, "warning", w)
	}
	sandboxID := ""
	switch {
	case handler.Supervisor != "":
		sandboxID = joinedSandbox
	case !handler.Pause:
		// Without it the runc shim would serve all containers of a pod by one
		// process, and end with the first of them.
		made.Annotations["io.containerd.runc.v2.group"] = c.rec.ID
	}
	c.spec = made
	body, err := typeurl.MarshalAny(made)
	if err != nil {
		return err
	}
	runtimeOptions, err := s.runtimeOptions(c)
	if err != nil {
		return err
	}
	c.root, err = s.Engine.MakeContainer(ctx, containers.Container{
		ID: c.rec.ID, Labels: s.marked(c.rec.Config.GetLabels(), kindContainer), Image: c.rec.ImageName, Spec: body,
		Runtime:     containers.RuntimeInfo{Name: handler.Type, Options: runtimeOptions},
		Snapshotter: c.rec.Snapshotter, SnapshotKey: c.rec.ID, SandboxID: sandboxID,
	}, c.img.ChainID, s.marksMapped(c.rec, c.box))
	return err
}

// runtimeOptions are those of supervisors and of shims.
func (s *Service) runtimeOptions(c *creation) (typeurl.Any, error) {
	h := s.Handlers[c.rec.Handler]
	if h.Supervisor != "" {
		return s.supervisorOptions(c.rec)
	}
	var io hostUser
	if spec.UserNamespace(c.box.Config) != nil { // so that /dev/stdout can be opened again
		io.uid, io.gid = spec.HostUser(c.box.Config, c.user)
	}
	return s.shimOptions(h, io)
}

// A hostUser is who owns a container's stdio on the node.
type hostUser struct{ uid, gid uint32 }

// shimOptions are those of the runc shim, or the file of another shim's.
func (s *Service) shimOptions(h Handler, io hostUser) (typeurl.Any, error) {
	if h.Type != "io.containerd.runc.v2" {
		return optionsOf(h)
	}
	return typeurl.MarshalAny(&options.Options{
		BinaryName: h.Binary, Root: s.runcRoot(), SystemdCgroup: s.Cgroups.Driver() == "systemd",
		IoUid: io.uid, IoGid: io.gid,
	})
}

// runcRoot is where runc keeps its states, below a directory for the namespace.
func (s *Service) runcRoot() string { return filepath.Join(s.Paths.State, "runc") }

// marked are the client's labels, for tools that look for pods in containerd,
// and what marks the container as ours. containerd refuses a label of more than
// 4096 bytes; such a one is in our record alone.
func (s *Service) marked(client map[string]string, kind string) map[string]string {
	labels := map[string]string{}
	for k, v := range client {
		if len(k)+len(v) <= 4096 {
			labels[k] = v
		}
	}
	labels[kindLabel] = kind
	labels[LabelRoot] = s.Paths.Root
	return labels
}

// namespaces are what the container joins.
func (s *Service) namespaces(c *creation) (spec.Namespaces, error) {
	var n spec.Namespaces
	s.joinPod(c.box, &n)
	if spec.UserNamespace(c.box.Config) != nil {
		n.User = s.Paths.Namespace(c.box.ID, "user")
	}
	mode, target, err := spec.PIDMode(c.box.Config, c.rec.Config)
	if err != nil {
		return n, err
	}
	switch mode {
	case runtime.NamespaceMode_POD:
		n.PID = s.podPID(c.box)
	case runtime.NamespaceMode_TARGET:
		t, _, err := s.running(target)
		if err != nil {
			return n, fmt.Errorf("linux.security_context.namespace_options.target_id: %w", err)
		}
		if t.SandboxID != c.box.ID {
			return n, fmt.Errorf("linux.security_context.namespace_options.target_id %s is in sandbox %s, not in this one: %w", t.ID, t.SandboxID, errdefs.ErrInvalidArgument)
		}
		n.PID = fmt.Sprintf("/proc/%d/ns/pid", t.PID)
	}
	return n, nil
}

// joinPod sets the pod's namespaces that are pinned but for the PID's.
func (s *Service) joinPod(box *record.Sandbox, n *spec.Namespaces) {
	if !spec.HostNetwork(box.Config) {
		n.Net, n.UTS = s.Paths.Namespace(box.ID, "net"), s.Paths.Namespace(box.ID, "uts")
	}
	if !spec.HostIPC(box.Config) {
		n.IPC = s.Paths.Namespace(box.ID, "ipc")
	}
}

// podPID is the PID namespace that the pod shares: pinned, or that of its
// sandbox container, by the path that shims know it by.
func (s *Service) podPID(box *record.Sandbox) string {
	switch {
	case !box.Pause:
		return s.Paths.Namespace(box.ID, "pid")
	case box.Init == nil:
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/pid", box.Init.PID)
}

func (s *Service) recordCreated(c *creation) error {
	inForce, err := proto.Marshal(spec.ResourcesStatus(c.spec))
	if err != nil {
		return err
	}
	_, err = s.Store.Containers.Update(c.rec.ID, func(r *record.Container) {
		r.State, r.InForce = record.ContainerCreated, inForce
		r.UID, r.GID, r.Groups = c.user.UID, c.user.GID, c.user.AdditionalGIDs
	})
	return err
}
