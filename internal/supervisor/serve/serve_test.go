package serve_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/internal/supervisor/wire"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "berth-serve-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "containerd-shim-berth-v1")
	args := []string{"build", "-trimpath", "-tags", "seccomp netgo osusergo no_grpc",
		"-ldflags", "-s -w -linkmode external -extldflags -static"}
	if os.Getenv("BERTH_SUPERVISOR_RACE") != "" { // of the supervisor itself
		args = []string{"build", "-race", "-tags", "seccomp no_grpc"}
	}
	build := exec.Command("go", append(args, "-o", binary, "berth/cmd/containerd-shim-berth-v1")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s", build, err, out)
		os.Exit(1)
	}
	// What a killed supervisor leaves becomes ours, so that the tests say when
	// it is reaped.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// within waits for what another process brings about.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 seconds: %s", what)
		}
	}
}

// A supervisor is the program under test.
type supervisor struct {
	t      testing.TB
	state  string
	name   string
	cgroup string
	cmd    *exec.Cmd
	args   []string
	client *ttrpc.Client
	task   taskAPI.TTRPCTaskService
}

const supervisorName = "n-test"

// start runs a supervisor with a state directory of its own.
func start(t testing.TB, args ...string) *supervisor {
	dir, err := os.MkdirTemp("", "bs-")
	must(t, err)
	must(t, os.Chmod(dir, 0o711))
	s := &supervisor{t: t, state: dir, name: supervisorName, cgroup: "/" + filepath.Base(dir), args: args}
	t.Cleanup(func() {
		must(t, os.RemoveAll(dir))
		removeCgroups(t, s.cgroup)
	})
	s.run()
	t.Cleanup(s.end)
	return s
}

func removeCgroups(t testing.TB, path string) {
	found, err := filepath.Glob("/sys/fs/cgroup/*" + path)
	must(t, err)
	for _, dir := range append(found, "/sys/fs/cgroup"+path) {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	}
}

func (s *supervisor) run() {
	s.t.Helper()
	s.cmd = exec.Command(binary, append([]string{"serve", "--state", s.state, "--name", s.name}, s.args...)...)
	s.cmd.Env = []string{"GORACE=exitcode=66"}
	var log bytes.Buffer
	s.cmd.Stderr = &log
	out, err := s.cmd.StdoutPipe()
	must(s.t, err)
	must(s.t, s.cmd.Start())
	said, err := io.ReadAll(out)
	if err != nil || string(said) != "ready\n" {
		s.t.Fatalf("it said %q: %v: %s", said, err, log.String())
	}
	s.dial()
}

func (s *supervisor) dial() {
	conn, err := net.Dial("unix", wire.Socket(s.state, s.name))
	must(s.t, err)
	s.client = ttrpc.NewClient(conn)
	s.task = taskAPI.NewTTRPCTaskClient(s.client)
}

// kill ends the supervisor as a crash would.
func (s *supervisor) kill() {
	must(s.t, s.cmd.Process.Kill())
	_ = s.cmd.Wait() // it was killed
	must(s.t, s.client.Close())
}

// end has it end by itself.
func (s *supervisor) end() {
	s.t.Helper()
	if _, err := s.task.Shutdown(testContext(s.t), &taskAPI.ShutdownRequest{}); err != nil {
		s.t.Logf("shutdown: %v", err)
	}
	must(s.t, s.client.Close())
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			s.t.Errorf("supervisor: %v: %s", err, s.cmd.Stderr)
		}
	case <-time.After(20 * time.Second):
		s.t.Errorf("the supervisor does not end: %s", s.cmd.Stderr)
		must(s.t, s.cmd.Process.Signal(syscall.SIGQUIT))
		<-done
		s.t.Log(s.cmd.Stderr)
	}
	if s.t.Failed() {
		s.t.Logf("supervisor's log: %s", s.cmd.Stderr)
	}
}

// bundle makes a bundle of a container that runs a script.
func (s *supervisor) bundle(id, script string, change ...func(*specs.Spec)) string {
	dir := filepath.Join(s.state, "bundles", id)
	bin := filepath.Join(dir, "rootfs/bin")
	must(s.t, os.MkdirAll(bin, 0o755))
	must(s.t, os.MkdirAll(filepath.Join(dir, "rootfs/proc"), 0o755))
	must(s.t, os.MkdirAll(filepath.Join(dir, "rootfs/dev"), 0o755))
	must(s.t, os.Link(busybox(s.t, s.state), filepath.Join(bin, "busybox")))
	for _, applet := range []string{"sh", "cat", "sleep", "echo", "true", "seq", "stty", "yes", "head", "dd"} {
		must(s.t, os.Symlink("busybox", filepath.Join(bin, applet)))
	}
	caps := []string{"CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"}
	spec := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: s.cgroup + "/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
			Resources: &specs.LinuxResources{},
		},
	}
	for _, c := range change {
		c(spec)
	}
	data, err := json.Marshal(spec)
	must(s.t, err)
	must(s.t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	return dir
}

// busybox is one copy for all bundles of a test.
func busybox(t testing.TB, state string) string {
	path := filepath.Join(state, "busybox")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	data, err := os.ReadFile("/bin/busybox")
	must(t, err)
	must(t, os.WriteFile(path, data, 0o755))
	return path
}

func (s *supervisor) options(id string) wire.Options {
	return wire.Options{Stdio: filepath.Join(s.state, "stdio", id), LogPath: filepath.Join(s.state, "logs", id+".log")}
}

func (s *supervisor) create(id, bundle string, o wire.Options) (uint32, error) {
	value, err := json.Marshal(o)
	must(s.t, err)
	res, err := s.task.Create(testContext(s.t), &taskAPI.CreateTaskRequest{
		ID: id, Bundle: bundle, Options: &anypb.Any{TypeUrl: wire.OptionsType, Value: value},
	})
	return res.GetPid(), err
}

// launch creates and starts a container.
func (s *supervisor) launch(id, script string, change ...func(*specs.Spec)) uint32 {
	s.t.Helper()
	pid, err := s.create(id, s.bundle(id, script, change...), s.options(id))
	must(s.t, err)
	_, err = s.task.Start(testContext(s.t), &taskAPI.StartRequest{ID: id})
	must(s.t, err)
	return pid
}

func (s *supervisor) wait(id, execID string) uint32 {
	s.t.Helper()
	res, err := s.task.Wait(testContext(s.t), &taskAPI.WaitRequest{ID: id, ExecID: execID})
	must(s.t, err)
	return res.ExitStatus
}

func (s *supervisor) remove(id string) {
	s.t.Helper()
	_, err := s.task.Delete(testContext(s.t), &taskAPI.DeleteRequest{ID: id})
	must(s.t, err)
}

func (s *supervisor) killAndRemove(id string) {
	s.t.Helper()
	_, err := s.task.Kill(testContext(s.t), &taskAPI.KillRequest{ID: id, Signal: uint32(unix.SIGKILL), All: true})
	must(s.t, err)
	s.wait(id, "")
	s.remove(id)
}

// log is what the container's log says, without timestamps.
func (s *supervisor) log(id string) string {
	data, err := os.ReadFile(filepath.Join(s.state, "logs", id+".log"))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(line, " ")
		out.WriteString(rest)
	}
	return out.String()
}

// fds counts the supervisor's descriptors.
func (s *supervisor) fds() int {
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "fd"))
	must(s.t, err)
	return len(entries)
}

// children counts its child processes.
func (s *supervisor) children() int {
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "task/*/children"))
	must(s.t, err)
	n := 0
	for _, path := range tasks {
		data, err := os.ReadFile(path)
		if err == nil {
			n += len(strings.Fields(string(data)))
		}
	}
	return n
}

func itoa(pid uint32) string { return strconv.Itoa(int(pid)) }

func unmarshal(a *anypb.Any, into proto.Message) error { return proto.Unmarshal(a.Value, into) }
