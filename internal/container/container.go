// Package container creates, starts, stops and removes containers, and follows
// those that run until they end.
//
// Invariants:
//   - The record is written before the first resource and deleted after the
//     last; every resource's name follows from the ID in it.
//   - Sandbox, name and attempt name one container. A repeated CreateContainer
//     or StartContainer joins the one under way, or has its result.
//   - A container that runs has one follower, which records how it ended and
//     then gives back its task and stdio. What ended while no daemon ran is
//     followed after the restart and ends the same way.
//   - A container's end is recorded when its output is in the log file.
//
// Concurrency: a Service is safe for concurrent use. Create, Start and Remove
// of one container follow each other; Stop does not wait for another Stop.
// Reads come from the record store and wait for nothing.
package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/engine"
	"berth/internal/host"
	"berth/internal/image"
	"berth/internal/logs"
	"berth/internal/paths"
	"berth/internal/record"
	"berth/internal/spec"
	"berth/internal/steps"
	"berth/internal/supervisor/wire"
)

// LabelRoot marks what is ours in containerd, with the daemon's root
// directory, for several daemons may share one containerd.
const LabelRoot = "berth.dev/root"

// Images finds images; internal/image implements it.
type Images interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
	// Unpack makes sure that the image's snapshot is there.
	Unpack(context.Context, *image.Image) error
}

// Hold keeps FIFOs open while no daemon runs; internal/supervisor implements it.
type Hold interface {
	Keep(ctx context.Context, key string, paths ...string) error
	// Release is idempotent.
	Release(ctx context.Context, key string) error
}

// Stdio is the daemon's end of a container's stdio: logs.IO where a shim runs
// the container, supervisor.Stdio where a supervisor does.
type Stdio interface {
	Attach(context.Context, logs.AttachOptions) error
	Reopen() error
	// Drained is closed when all output is in the log.
	Drained() <-chan struct{}
	// Close is idempotent.
	Close() error
}

// Supervisors run containers without a shim; internal/supervisor implements it.
type Supervisors interface {
	// NodeName is the supervisor that pods share, PodName a pod's own.
	NodeName() string
	PodName(sandboxID string) string
	// Endpoint is its Task API for containerd.
	Endpoint(name string) string
	// Ensure makes sure that it runs while the container needs it, until
	// Release; both are idempotent.
	Ensure(ctx context.Context, name, id string) error
	Release(name, id string) error
	// Keep takes what the next supervisor needs if this one is killed.
	Keep(ctx context.Context, name, id, stdio string) error
	// Task is ErrNotFound where the supervisor does not have the container.
	Task(ctx context.Context, name, id string) (wire.Task, error)
	// Delete kills and removes the container; it is idempotent.
	Delete(ctx context.Context, name, id string) error
	Stdio(name string, o logs.Options) Stdio
}

// Publisher tells watchers what happened.
type Publisher interface {
	Publish(kind runtime.ContainerEventType, id string, box *record.Sandbox)
}

// A Handler is a way to run containers, chosen by the pod's runtime handler.
type Handler struct {
	// Type is containerd's name of the runtime, "io.containerd.runc.v2".
	Type string
	// Binary is the program that a runc shim calls; "" for its default.
	Binary string
	// Supervisor is "node" or "pod" where supervisors run the containers, and
	// empty where a shim does.
	Supervisor string
	// Pause says that a shim wants a sandbox container first.
	Pause bool
	// ConfigPath is a file of the shim's own options, or empty.
	ConfigPath string
	// PrivilegedWithoutHostDevices keeps the node's devices from privileged
	// containers.
	PrivilegedWithoutHostDevices bool
	// PodAnnotations and ContainerAnnotations are patterns of the annotations
	// that the runtime is shown.
	PodAnnotations, ContainerAnnotations []string
}

// Options configure a Service. All but AppArmorDefault and LostOutput are required.
type Options struct {
	Paths       paths.Paths
	Store       *record.Store
	Steps       *steps.Runner
	Engine      *engine.Engine
	Images      Images
	Hold        Hold
	Supervisors Supervisors
	// SupervisorBinary is the program that containerd asks about supervisors.
	SupervisorBinary string
	Cgroups          *host.Cgroups
	Events           Publisher
	Log              *slog.Logger
	Handlers         map[string]Handler
	Snapshotter      string
	// CDIDirs hold CDI specs, by which containers get devices.
	CDIDirs []string
	Kernel  spec.Kernel
	// LostOutput is told of bytes of output that a log file did not take.
	LostOutput func(bytes int)
	// AppArmorDefault is the loaded profile that RuntimeDefault means.
	AppArmorDefault string
}

// A Service is the node's containers.
type Service struct {
	Options
	client  *containerd.Client
	slots   steps.Slots
	flights *steps.Flights[string]
	users   userFiles
	usage   layerUsage
	walks   walkList
	ooms    oomTally

	// base ends what is under way at Close.
	base   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows; never held across a call
	live   map[string]*live
	joined bool // the record that tasks join is there
}

// live is what the daemon holds of a container that has a task.
type live struct {
	id string
	// io is nil where it could not be taken up after a restart.
	io Stdio
	// supervisor is the name of the one that has the container; "" for a shim.
	supervisor string
	// ended is closed when the process has ended, exited when that is recorded,
	// gone when the task and the stdio are given back.
	ended, exited, gone chan struct{}

	mu sync.Mutex // guards t; not held across a call
	t  containerd.Task
}

func newLive(id string) *live {
	return &live{id: id, ended: make(chan struct{}), exited: make(chan struct{}), gone: make(chan struct{})}
}

// task returns the task. ErrUnavailable: after a restart it could not be asked
// for yet.
func (l *live) task() (containerd.Task, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t == nil {
		return nil, fmt.Errorf("the shim of container %s does not answer; it is asked again: %w", l.id, errdefs.ErrUnavailable)
	}
	return l.t, nil
}

func (l *live) setTask(t containerd.Task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t = t
}

// New returns a Service; Close ends it.
func New(o Options) *Service {
	base, cancel := context.WithCancel(o.Engine.Context(context.Background()))
	return &Service{
		Options: o, client: o.Engine.Client(),
		base: base, cancel: cancel,
		flights: steps.NewFlights[string](base, o.Log),
		live:    map[string]*live{},
		ooms:    oomTally{known: map[string]uint64{}},
	}
}

// Close cuts what is under way, which is undone, and waits for it. Containers
// run on. No call comes after.
func (s *Service) Close() error {
	s.cancel()
	s.flights.Wait()
	s.wg.Wait()
	return nil
}

// find resolves an ID or prefix to a container that clients are told of.
func (s *Service) find(id string) (*record.Container, error) {
	c, err := s.Store.Containers.Resolve(id)
	if err == nil && !Shown(c) {
		err = fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, err
}

// running resolves to a container that runs, with what is held of it.
func (s *Service) running(id string) (*record.Container, *live, error) {
	c, err := s.find(id)
	if err != nil {
		return nil, nil, err
	}
	l := s.liveOf(c.ID)
	if c.State != record.ContainerRunning || l == nil {
		return nil, nil, fmt.Errorf("container %s is %s, not running: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	return c, l, nil
}

func (s *Service) liveOf(id string) *live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// of lists a sandbox's containers, those being created too.
func (s *Service) of(sandboxID string) []*record.Container {
	var list []*record.Container
	for _, c := range s.Store.Containers.List() {
		if c.SandboxID == sandboxID {
			list = append(list, c)
		}
	}
	return list
}

// sandbox returns the container's sandbox if it is ready.
func (s *Service) sandbox(id string) (*record.Sandbox, error) {
	box, err := s.Store.Sandboxes.Resolve(id)
	if err != nil {
		return nil, err
	}
	if box.State != record.SandboxReady {
		return nil, fmt.Errorf("sandbox %s is %s, not ready: %w", box.ID, box.State, errdefs.ErrFailedPrecondition)
	}
	return box, nil
}

func (s *Service) publish(kind runtime.ContainerEventType, c *record.Container) {
	box, err := s.Store.Sandboxes.Get(c.SandboxID)
	if err != nil {
		return // both are being removed; the sandbox's own event follows
	}
	s.Events.Publish(kind, c.ID, box)
}

func notFound(err error) bool { return errors.Is(err, errdefs.ErrNotFound) }
