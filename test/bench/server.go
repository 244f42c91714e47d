package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

const (
	// callTimeout bounds every call; the slowest known one, the peer's
	// metrics of 300 pods, takes half a minute.
	callTimeout  = 3 * time.Minute
	startTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// A server is a CRI server under measurement: a daemon with directories, a
// network and a cgroup of its own.
type server struct {
	name string
	// dir holds its persistent files, state (on a tmpfs) the others.
	dir, state string
	// cgroup is below the root of every hierarchy: the daemon and what it
	// executes are in its child daemonCgroup, pods in podsCgroup.
	cgroup string
	// address is the CRI's socket, containerd that of the containerd behind it.
	address, containerd string
	command             []string
	env                 []string

	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended

	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

const (
	daemonCgroup = "daemon"
	podsCgroup   = "pods"
)

func (s *server) logFile() string { return filepath.Join(s.dir, "daemon.log") }

// start starts the daemon and returns when its CRI is ready.
func (s *server) start(ctx context.Context) error {
	if err := s.launch(); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	if s.conn == nil {
		if err := s.dial(); err != nil {
			return err
		}
	}
	return s.waitFor(ctx, 0)
}

// launch starts the process, in its cgroup before it has a child.
func (s *server) launch() error {
	log, err := os.OpenFile(s.logFile(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(s.command[0], s.command[1:]...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = log, log
	// Ctrl-C is for this program, which stops the daemon in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		return err
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func() {
		defer close(s.done)
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
	}()
	return joinCgroup(cmd.Process.Pid, filepath.Join(s.cgroup, daemonCgroup))
}

func (s *server) dial() error {
	// One that restarts is to be found at once.
	params := grpc.ConnectParams{MinConnectTimeout: time.Second}
	params.Backoff.BaseDelay, params.Backoff.MaxDelay, params.Backoff.Multiplier = 2*time.Millisecond, 10*time.Millisecond, 1.5
	conn, err := grpc.NewClient("unix://"+s.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(params),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", s.name, err)
	}
	s.conn, s.runtime, s.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return nil
}

// waitFor waits until the server is ready and lists so many pods and
// containers as running.
func (s *server) waitFor(ctx context.Context, pods int) error {
	err := testkit.Poll(ctx, startTimeout, func(ctx context.Context) string {
		select {
		case <-s.done:
			return "" // said below
		default:
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return s.notReady(ctx, pods)
	})
	select {
	case <-s.done:
		err = fmt.Errorf("it ended: %s", s.cmd.ProcessState)
	default:
	}
	if err != nil {
		return fmt.Errorf("%s is not ready: %w\n%s", s.name, err, tail(s.logFile(), 2000))
	}
	return nil
}

// notReady says what is missing, or nothing.
func (s *server) notReady(ctx context.Context, pods int) string {
	status, err := s.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err.Error()
	}
	for _, c := range status.Status.Conditions {
		if (c.Type == "RuntimeReady" || c.Type == "NetworkReady") && !c.Status {
			return fmt.Sprintf("%s is false: %s %s", c.Type, c.Reason, c.Message)
		}
	}
	if pods == 0 {
		return ""
	}
	sandboxes, err := s.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{
		Filter: &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}})
	if err != nil {
		return err.Error()
	}
	containers, err := s.runtime.ListContainers(ctx, &cri.ListContainersRequest{
		Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return err.Error()
	}
	if len(sandboxes.Items) != pods || len(containers.Containers) != pods {
		return fmt.Sprintf("%d pods are ready and %d containers run, want %d", len(sandboxes.Items), len(containers.Containers), pods)
	}
	return ""
}

// stop ends the daemon as systemd would; one that stays is killed.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	select {
	case <-s.done:
		return nil
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(stopTimeout):
	}
	err := fmt.Errorf("%s does not end within %s of SIGTERM", s.name, stopTimeout)
	err = errors.Join(err, s.cmd.Process.Kill())
	<-s.done
	return err
}

// clear removes all pods through the CRI.
func (s *server) clear(ctx context.Context) error {
	if s.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := s.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("clear %s: %w", s.name, err)
	}
	var errs []error
	for _, p := range list.Items {
		_, err := s.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, err)
		_, err = s.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clear %s: %w", s.name, err)
	}
	return nil
}

// close ends everything of the server but its files.
func (s *server) close(ctx context.Context) error {
	err := errors.Join(s.clear(ctx), s.stop())
	if s.conn != nil {
		err = errors.Join(err, s.conn.Close())
	}
	return err
}

// collect has the garbage of containerd's stores collected and waits for it.
func (s *server) collect(ctx context.Context) (err error) {
	client, err := containerd.New(s.containerd, containerd.WithTimeout(5*time.Second))
	if err != nil {
		return fmt.Errorf("containerd of %s: %w", s.name, err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
}

// tail is the end of a file, for an error.
func tail(file string, bytes int) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-bytes):])
}
