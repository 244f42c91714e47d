// Package sandbox runs, stops and removes pod sandboxes.
//
// A sandbox holds no process and no image: it is a record, pinned namespaces,
// a few files, a /dev/shm, an address and a cgroup for its containers. Only a
// pod that shares a PID namespace has a process, its tiny init, and one whose
// handler's shim wants it a sandbox container.
//
// Invariants:
//   - The record is written before the first resource and deleted after the
//     last; every resource's name follows from the ID in it.
//   - Name, namespace, UID and attempt name one sandbox. A repeated
//     RunPodSandbox joins the run under way, or gets the ID of the one that is
//     ready.
//   - Stop and Remove may be repeated, and finish what a crash cut. A repeated
//     call joins the one under way.
//
// Concurrency: a Service is safe for concurrent use. Run, Stop and Remove of
// one sandbox follow each other, and wait for no other sandbox; a caller that
// gives up does not stop them. Reads come from the record store and wait for
// nothing.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/network"
	"berth/internal/paths"
	"berth/internal/record"
	"berth/internal/spec"
	"berth/internal/steps"
	"berth/internal/supervisor"
)

// Containers are the containers of sandboxes; internal/container implements it.
type Containers interface {
	// StopAll ends every container of the sandbox, side by side. The sandbox is
	// no longer ready, so no new one comes.
	StopAll(ctx context.Context, sandboxID string) error
	// RemoveAll removes every container of the sandbox, running or not.
	RemoveAll(ctx context.Context, sandboxID string) error
}

// Pauses are the sandbox containers that some handlers' shims want;
// internal/container implements it.
type Pauses interface {
	WantsPause(handler string) bool
	// StartPause returns the process with which the pod ends.
	StartPause(ctx context.Context, box *record.Sandbox) (host.Process, error)
	// DropPause is idempotent, whatever became of StartPause.
	DropPause(ctx context.Context, id, cgroup string) error
}

// Network attaches pods; internal/network implements it.
type Network interface {
	Add(context.Context, network.Pod) (*network.Result, error)
	// Del is idempotent, whatever became of Add.
	Del(context.Context, network.Pod) error
	// Settle ends what a dead daemon's Add or Del left running.
	Settle(ctx context.Context, id string) error
}

// Publisher tells watchers what happened.
type Publisher interface {
	Publish(kind runtime.ContainerEventType, id string, box *record.Sandbox)
}

// Options configure a Service. All are required.
type Options struct {
	Paths      paths.Paths
	Store      *record.Store
	Steps      *steps.Runner
	Network    Network
	Cgroups    *host.Cgroups
	Reaper     *supervisor.Reaper
	Containers Containers
	Pauses     Pauses
	Events     Publisher
	Log        *slog.Logger
	// InitBinary is the program containerd-shim-berth-v1, which a shared PID
	// namespace's init is started from.
	InitBinary string
	// Handlers are the runtime handlers there are; Default is used where a
	// request names none.
	Handlers []string
	Default  string
	// NoUserNamespaces says why a pod of the handler cannot have a user namespace;
	// nil: it can.
	NoUserNamespaces func(handler string) error
	// CgroupParent holds the cgroups of pods that name no parent.
	CgroupParent string
}

// A Service is the node's sandboxes.
type Service struct {
	Options
	slots   steps.Slots
	flights *steps.Flights[string]

	// base ends the flights and watches at Close.
	base   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New returns a Service; Close ends it.
func New(o Options) *Service {
	base, cancel := context.WithCancel(context.Background())
	return &Service{Options: o, base: base, cancel: cancel, flights: steps.NewFlights[string](base, o.Log)}
}

// Close cuts what is under way, which is undone, and waits for it. Sandboxes
// stay. No call comes after.
func (s *Service) Close() error {
	s.cancel()
	s.flights.Wait()
	s.wg.Wait()
	return nil
}

// handler resolves a runtime handler's name.
func (s *Service) handler(name string) (string, error) {
	if name == "" {
		return s.Default, nil
	}
	if slices.Contains(s.Handlers, name) {
		return name, nil
	}
	return "", fmt.Errorf("runtime_handler %q is not configured; there are %s: %w", name, strings.Join(s.Handlers, ", "), errdefs.ErrInvalidArgument)
}

// name is what a client calls a sandbox, in one line.
func name(m *runtime.PodSandboxMetadata) string {
	return fmt.Sprintf("%s/%s uid %s attempt %d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// byName finds the sandbox that a client's metadata names, or nil.
func (s *Service) byName(m *runtime.PodSandboxMetadata) *record.Sandbox {
	want := name(m)
	for _, box := range s.Store.Sandboxes.List() {
		if name(box.Config.GetMetadata()) == want {
			return box
		}
	}
	return nil
}

// options are the sandbox's namespace options.
func options(box *record.Sandbox) *runtime.NamespaceOption {
	return box.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func hostNetwork(box *record.Sandbox) bool { return spec.HostNetwork(box.Config) }
func hostIPC(box *record.Sandbox) bool     { return spec.HostIPC(box.Config) }

// sharedPID tells whether the pod's containers share a PID namespace of their
// own.
func sharedPID(box *record.Sandbox) bool {
	return options(box).GetPid() == runtime.NamespaceMode_POD
}

// pod is what CNI plugins are told.
func (s *Service) pod(box *record.Sandbox) network.Pod {
	m := box.Config.GetMetadata()
	return network.Pod{
		ID: box.ID, NetNS: s.Paths.Namespace(box.ID, "net"),
		Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		PortMappings: box.Config.GetPortMappings(), Annotations: box.Config.GetAnnotations(),
		CgroupParent: box.CgroupParent, DNS: box.Config.GetDnsConfig(),
	}
}

// notFound tells whether err only says that the sandbox is gone.
func notFound(err error) bool { return errors.Is(err, errdefs.ErrNotFound) }

// ignoreGone is err but for that.
func ignoreGone(err error) error {
	if notFound(err) {
		return nil
	}
	return err
}
