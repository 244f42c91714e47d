package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/record"
	"berth/internal/spec"
	"berth/internal/steps"
	"berth/internal/supervisor"
)

// opTimeout bounds an operation that nobody waits for any more; a kubelet waits
// four minutes for a sandbox.
const opTimeout = 4 * time.Minute

// Run makes a sandbox ready and returns its ID. The configuration is valid.
//
// Errors: ErrInvalidArgument for an unknown handler or a bad sysctl;
// ErrAlreadyExists where the name is that of a sandbox that was stopped.
func (s *Service) Run(ctx context.Context, req *runtime.RunPodSandboxRequest) (string, error) {
	handler, err := s.handler(req.GetRuntimeHandler())
	if err != nil {
		return "", err
	}
	cfg := req.GetConfig()
	if spec.UserNamespace(cfg) != nil {
		if err := s.NoUserNamespaces(handler); err != nil {
			return "", fmt.Errorf("linux.security_context.namespace_options.userns_options: no user namespace can be had (leave hostUsers unset): %w", err)
		}
	}
	return s.flights.Do(ctx, "run of pod "+name(cfg.GetMetadata()), func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		return s.run(ctx, cfg, handler, req.GetRuntimeHandler())
	})
}

func (s *Service) run(ctx context.Context, cfg *runtime.PodSandboxConfig, handler, asked string) (string, error) {
	if box := s.byName(cfg.GetMetadata()); box != nil {
		switch box.State {
		case record.SandboxReady:
			return box.ID, nil
		case record.SandboxCreating: // its undoing failed; try that again first
			if err := s.Undo(ctx, steps.RunPodSandbox, box.ID); err != nil {
				return "", err
			}
		default:
			return "", fmt.Errorf("pod %s was stopped as sandbox %s; remove it or raise metadata.attempt: %w", name(cfg.GetMetadata()), box.ID, errdefs.ErrAlreadyExists)
		}
	}
	unlock, err := s.claimName(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer unlock()
	id, err := newID()
	if err != nil {
		return "", err
	}
	parent := s.cgroupParent(cfg, id)
	box := &record.Sandbox{
		ID: id, Config: cfg, Handler: handler, RuntimeHandler: asked,
		State: record.SandboxCreating, CreatedAt: time.Now(),
		CgroupParent: parent, OwnCgroup: !s.Cgroups.Exists(parent),
		Pause: s.Pauses.WantsPause(handler),
	}
	release, err := s.slots.Acquire(ctx, id)
	if err != nil {
		return "", err
	}
	defer release()
	if err := s.Steps.Run(ctx, steps.RunPodSandbox, id, s.runSteps(box)...); err != nil {
		return "", fmt.Errorf("pod %s/%s: %w", cfg.GetMetadata().GetNamespace(), cfg.GetMetadata().GetName(), err)
	}
	s.announce(id)
	return id, nil
}

// claimName keeps other sandboxes from a name that is to be this one's alone,
// until unlock. ErrAlreadyExists: one has it.
func (s *Service) claimName(ctx context.Context, cfg *runtime.PodSandboxConfig) (unlock func(), err error) {
	if cfg.GetAnnotations()[record.AnnotationUniqueName] == "" {
		return func() {}, nil
	}
	m := cfg.GetMetadata()
	shown := m.GetNamespace() + "/" + m.GetName()
	if unlock, err = s.slots.Acquire(ctx, "name "+shown); err != nil {
		return nil, err
	}
	for _, box := range s.Store.Sandboxes.List() {
		if have := box.Config.GetMetadata(); have.GetName() == m.GetName() && have.GetNamespace() == m.GetNamespace() {
			unlock()
			return nil, fmt.Errorf("pod %s is there already as sandbox %s (%s); remove it first: %w", shown, box.ID, box.State, errdefs.ErrAlreadyExists)
		}
	}
	return unlock, nil
}

// newID returns 64 hexadecimal characters, the form that tools know containers by.
func newID() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}

// runSteps are the steps of Run; docs/flow/run-pod.md says what each costs.
// Their undo uses the ID and the record alone, so that it serves after a crash.
func (s *Service) runSteps(box *record.Sandbox) []steps.Step {
	list := []steps.Step{
		{Name: "record", Do: func(context.Context) error { return s.Store.Sandboxes.Put(box) }},
		{Name: "directories", Do: func(context.Context) error { return s.makeDirectories(box.ID) }},
		{Name: "namespaces", Do: func(context.Context) error { return s.pinNamespaces(box) }},
	}
	if !hostIPC(box) {
		list = append(list, steps.Step{Name: "shm", Do: func(context.Context) error {
			uid, gid := spec.HostRoot(box.Config)
			return host.MountShm(s.Paths.Shm(box.ID), host.DefaultShmSize, int(uid), int(gid))
		}})
	}
	list = append(list, steps.Step{Name: "cgroup", Do: func(ctx context.Context) error { return s.makeCgroup(ctx, box.ID) }})
	if sharedPID(box) && !box.Pause {
		list = append(list, steps.Step{Name: "init", Do: func(ctx context.Context) error { return s.startInit(ctx, box) }})
	}
	if !hostNetwork(box) {
		list = append(list, steps.Step{Name: "network", Do: func(ctx context.Context) error { return s.attach(ctx, box) }})
	}
	if box.Pause { // its kernel or machine takes up the network as it is now
		list = append(list, steps.Step{Name: "pause", Do: func(ctx context.Context) error { return s.startPause(ctx, box) }})
	}
	list = append(list,
		steps.Step{Name: "files", Do: func(context.Context) error { return s.writeFiles(box) }},
		steps.Step{Name: "ready", Do: func(context.Context) error { return s.setState(box.ID, record.SandboxReady) }},
	)
	undo := s.undoOf(box.ID)
	for i := range list {
		list[i].Undo = undo[list[i].Name]
	}
	return list
}

// pinNamespaces makes the pod's namespaces. Those of a pod that has a user
// namespace and an init are made with that, see startInit.
func (s *Service) pinNamespaces(box *record.Sandbox) error {
	wanted, err := namespaceOptions(box)
	if err != nil || len(s.namespaces(box)) == 0 || wanted.User != nil && sharedPID(box) {
		return err
	}
	return host.PinNamespaces(s.Paths.Namespaces(box.ID), wanted)
}

func namespaceOptions(box *record.Sandbox) (o host.NamespaceOptions, err error) {
	o = host.NamespaceOptions{
		Net: !hostNetwork(box), UTS: !hostNetwork(box), IPC: !hostIPC(box), User: userNamespace(box),
		Sysctls: box.Config.GetLinux().GetSysctls(),
	}
	o.Hostname, err = hostnameOf(box)
	return o, err
}

// userNamespace is the pod's own; nil is none.
func userNamespace(box *record.Sandbox) *host.IDMap {
	uids, gids := spec.Mappings(box.Config)
	if uids == nil {
		return nil
	}
	forKernel := func(maps []specs.LinuxIDMapping) (out []syscall.SysProcIDMap) {
		for _, m := range maps {
			out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
		}
		return out
	}
	return &host.IDMap{UIDs: forKernel(uids), GIDs: forKernel(gids)}
}

// namespaces are the paths of those that are pinned, by kind.
func (s *Service) namespaces(box *record.Sandbox) map[string]string {
	pinned := map[string]string{}
	if !hostNetwork(box) {
		pinned["net"], pinned["uts"] = s.Paths.Namespace(box.ID, "net"), s.Paths.Namespace(box.ID, "uts")
	}
	if !hostIPC(box) {
		pinned["ipc"] = s.Paths.Namespace(box.ID, "ipc")
	}
	if userNamespace(box) != nil {
		pinned["user"] = s.Paths.Namespace(box.ID, "user")
	}
	return pinned
}

func (s *Service) startInit(ctx context.Context, box *record.Sandbox) error {
	o := supervisor.PodInitOptions{
		Binary: s.InitBinary, ID: box.ID, Pin: s.Paths.Namespace(box.ID, "pid"),
		Cgroups: s.initCgroups(box), Reaper: s.Reaper,
	}
	wanted, err := namespaceOptions(box)
	if err != nil {
		return err
	}
	if wanted.User != nil {
		o.Make = &wanted
	} else {
		o.Namespaces = slices.Collect(maps.Values(s.namespaces(box)))
	}
	p, err := supervisor.StartPodInit(ctx, o)
	if err != nil {
		return err
	}
	_, err = s.Store.Sandboxes.Update(box.ID, func(b *record.Sandbox) { b.Init = &record.Process{PID: p.PID, Start: p.Start} })
	return err
}

func (s *Service) startPause(ctx context.Context, box *record.Sandbox) error {
	p, err := s.Pauses.StartPause(ctx, box)
	if err != nil {
		return err
	}
	_, err = s.Store.Sandboxes.Update(box.ID, func(b *record.Sandbox) { b.Init = &record.Process{PID: p.PID, Start: p.Start} })
	return err
}

// dropPause removes the sandbox container, where the pod has one or nobody can
// tell.
func (s *Service) dropPause(ctx context.Context, id string) error {
	box, err := s.Store.Sandboxes.Get(id)
	switch {
	case notFound(err): // its cgroup may be the one that a pod has by itself
		return s.Pauses.DropPause(ctx, id, s.Cgroups.Path(s.cgroupParent(nil, id), id))
	case err != nil || !box.Pause:
		return err
	case box.CgroupParent == "":
		return s.Pauses.DropPause(ctx, id, "")
	}
	return s.Pauses.DropPause(ctx, id, s.Cgroups.Path(box.CgroupParent, id))
}

// initCgroups are where the init is charged for. In the v2 hierarchy a cgroup
// that holds cgroups of containers takes no process; there it stays in ours.
func (s *Service) initCgroups(box *record.Sandbox) []string {
	if s.Cgroups.Version() != 1 || s.Cgroups.Driver() == "systemd" {
		return nil
	}
	var dirs []string
	for _, controller := range s.Cgroups.Controllers() {
		if dir := s.Cgroups.Dir(controller, box.CgroupParent); dir != "" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func (s *Service) attach(ctx context.Context, box *record.Sandbox) error {
	result, err := s.Network.Add(ctx, s.pod(box))
	if err != nil {
		return err
	}
	if err := host.SetLinkSysctls(s.Paths.Namespace(box.ID, "net"), box.Config.GetLinux().GetSysctls()); err != nil {
		return err
	}
	_, err = s.Store.Sandboxes.Update(box.ID, func(b *record.Sandbox) { b.IPs, b.Network = result.IPs, result.Network })
	return err
}

// announce begins what goes with a sandbox that is ready.
func (s *Service) announce(id string) {
	box := s.recordOr(id)
	s.Events.Publish(runtime.ContainerEventType_CONTAINER_CREATED_EVENT, id, box)
	s.Events.Publish(runtime.ContainerEventType_CONTAINER_STARTED_EVENT, id, box)
	s.watch(box) // after them: it may publish that the pod has stopped
	m := box.Config.GetMetadata()
	s.Log.Info("pod is ready", "pod", m.GetNamespace()+"/"+m.GetName(), "sandbox", id, "ips", box.IPs)
}
