package serve_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	eventsAPI "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/internal/supervisor/wire"
)

// attach connects to a container's output.
func (s *supervisor) attach(id string) *wire.Conn {
	s.t.Helper()
	c, err := wire.Dial(wire.Home(s.state, s.name))
	must(s.t, err)
	s.t.Cleanup(func() { _ = c.Close() })
	must(s.t, c.Send(wire.Request{Version: wire.Version, Op: wire.OpAttach, ID: id, Stdout: true, Stderr: true}))
	var res wire.Response
	_, err = c.Receive(&res)
	must(s.t, err)
	if !res.OK {
		s.t.Fatal(res.Error)
	}
	return c
}

// until reads frames until their text holds what is wanted, or the last frame.
func until(t testing.TB, c *wire.Conn, want string) (text string, last *wire.Response) {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	for want == "" || !strings.Contains(text, want) {
		stream, data, err := wire.ReadFrame(c, nil)
		if err != nil {
			t.Fatalf("%v after %q", err, text)
		}
		if stream == wire.FrameEnd {
			last = new(wire.Response)
			must(t, json.Unmarshal(data, last))
			return text, last
		}
		text += string(data)
	}
	return text, nil
}

func TestTerminal(t *testing.T) {
	s := start(t)
	ctx := testContext(t)
	o := s.options("tty")
	o.Stdin = true
	bundle := s.bundle("tty", "while read x; do case $x in size) stty size;; end) exit 8;; esac; done", func(spec *specs.Spec) {
		spec.Process.Terminal = true
		spec.Process.ConsoleSize = &specs.Box{Height: 11, Width: 22}
	})
	_, err := s.create("tty", bundle, o)
	must(t, err)
	_, err = s.task.Start(ctx, &taskAPI.StartRequest{ID: "tty"})
	must(t, err)
	client := s.attach("tty")
	in, err := os.OpenFile(filepath.Join(o.Stdio, "stdin"), os.O_RDWR, 0)
	must(t, err)
	defer in.Close()
	say := func(text string) {
		_, err := io.WriteString(in, text)
		must(t, err)
	}
	say("size\n")
	until(t, client, "11 22")
	_, err = s.task.ResizePty(ctx, &taskAPI.ResizePtyRequest{ID: "tty", Width: 44, Height: 33})
	must(t, err)
	say("size\n")
	until(t, client, "33 44")
	say("end\n")
	if got := s.wait("tty", ""); got != 8 {
		t.Errorf("exit status %d, want 8", got)
	}
	if _, last := until(t, client, ""); last == nil || !last.OK {
		t.Errorf("last frame %v", last)
	}
	if log := s.log("tty"); !strings.Contains(log, "stdout F 33 44") {
		t.Errorf("log %q", log)
	}
	s.remove("tty")
}

func TestInput(t *testing.T) {
	s := start(t)
	ctx := testContext(t)
	o := s.options("in")
	o.Stdin, o.StdinOnce = true, true
	_, err := s.create("in", s.bundle("in", "cat; echo end"), o)
	must(t, err)
	_, err = s.task.Start(ctx, &taskAPI.StartRequest{ID: "in"})
	must(t, err)
	client := s.attach("in")
	in, err := os.OpenFile(filepath.Join(o.Stdio, "stdin"), os.O_WRONLY, 0)
	must(t, err)
	_, err = io.WriteString(in, "one\n")
	must(t, err)
	until(t, client, "one")
	must(t, in.Close())
	// The end of a client is not the end of input.
	in, err = os.OpenFile(filepath.Join(o.Stdio, "stdin"), os.O_WRONLY, 0)
	must(t, err)
	_, err = io.WriteString(in, "two\n")
	must(t, err)
	must(t, in.Close())
	until(t, client, "two")
	_, err = s.task.CloseIO(ctx, &taskAPI.CloseIORequest{ID: "in", Stdin: true})
	must(t, err)
	s.wait("in", "")
	if diff := cmp.Diff("stdout F one\nstdout F two\nstdout F end\n", s.log("in")); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	s.remove("in")
}

// A client that does not read loses its connection; the log loses nothing.
func TestSlowClient(t *testing.T) {
	s := start(t)
	const lines = 200000
	pid, err := s.create("loud", s.bundle("loud", "read x < /go; seq 200000"), s.options("loud"))
	must(t, err)
	must(t, unix.Mkfifo(filepath.Join(s.state, "bundles/loud/rootfs/go"), 0o600))
	_, err = s.task.Start(testContext(t), &taskAPI.StartRequest{ID: "loud"})
	must(t, err)
	client := s.attach("loud")
	must(t, os.WriteFile(filepath.Join("/proc", itoa(pid), "root/go"), []byte("\n"), 0o600))
	if got := s.wait("loud", ""); got != 0 {
		t.Errorf("exit status %d", got)
	}
	if n := strings.Count(s.log("loud"), "\n"); n != lines {
		t.Errorf("%d lines in the log, want %d", n, lines)
	}
	_ = client
	s.remove("loud")
}

// The log is opened again by its path; the old file gets nothing more.
func TestReopen(t *testing.T) {
	s := start(t)
	_, err := s.create("log", s.bundle("log", "echo one; read x < /go; echo two"), s.options("log"))
	must(t, err)
	fifo := filepath.Join(s.state, "bundles/log/rootfs/go")
	must(t, unix.Mkfifo(fifo, 0o600))
	_, err = s.task.Start(testContext(t), &taskAPI.StartRequest{ID: "log"})
	must(t, err)
	within(t, "nothing in the log", func() bool { return s.log("log") != "" })
	path := filepath.Join(s.state, "logs/log.log")
	must(t, os.Rename(path, path+".1"))
	s.ask(wire.Request{Op: wire.OpReopen, ID: "log"})
	write(t, fifo)
	s.wait("log", "")
	if diff := cmp.Diff("stdout F two\n", s.log("log")); diff != "" {
		t.Errorf("new log (-want +got):\n%s", diff)
	}
	s.remove("log")
}

// sink is containerd's endpoint for events.
type sink struct {
	got chan *eventsAPI.ForwardRequest
}

func (s sink) Forward(_ context.Context, r *eventsAPI.ForwardRequest) (*emptypb.Empty, error) {
	s.got <- r
	return &emptypb.Empty{}, nil
}

// Lack of memory is told, and so is the end.
func TestEvents(t *testing.T) {
	dir, err := os.MkdirTemp("", "be-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	listener, err := net.Listen("unix", filepath.Join(dir, "events"))
	must(t, err)
	server, err := ttrpc.NewServer()
	must(t, err)
	got := sink{make(chan *eventsAPI.ForwardRequest, 100)}
	eventsAPI.RegisterTTRPCEventsService(server, got)
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), listener) }()
	t.Cleanup(func() {
		must(t, server.Close())
		<-served
	})
	s := start(t, "--events", filepath.Join(dir, "events"))
	limit := int64(64 << 20)
	s.launch("greedy", "x=x; while true; do x=$x$x; done", func(spec *specs.Spec) {
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	})
	if got := s.wait("greedy", ""); got != 137 && got != 2 { // the shell itself may lack memory
		t.Errorf("exit status %d, want 137", got)
	}
	want := map[string]bool{"/tasks/create": true, "/tasks/start": true, "/tasks/oom": true, "/tasks/exit": true}
	for len(want) > 0 {
		select {
		case e := <-got.got:
			delete(want, e.Envelope.Topic)
			if e.Envelope.Topic == "/tasks/exit" {
				var exit events.TaskExit
				must(t, unmarshal(e.Envelope.Event, &exit))
				if exit.ContainerID != "greedy" || exit.ExitStatus != 137 {
					t.Errorf("exit event %v", &exit)
				}
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("events that did not come: %v", want)
		}
	}
	s.remove("greedy")
}

// Processes of containers without a PID namespace of their own end with the
// init, and what became ours is reaped.
func TestSharedPIDNamespace(t *testing.T) {
	s := start(t)
	s.launch("host", "(sleep 1000 &) ; (sleep 0.01 &); echo up; sleep 1000", func(spec *specs.Spec) {
		spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
	})
	within(t, "it does not run", func() bool { return strings.Contains(s.log("host"), "up") })
	within(t, "orphans are not reaped", func() bool { return s.children() == 2 })
	s.killAndRemove("host")
	within(t, "processes are left", func() bool { return s.children() == 0 })
}

// Resources and statistics go to and come from the cgroup.
func TestResources(t *testing.T) {
	s := start(t)
	ctx := testContext(t)
	s.launch("box", "sleep 1000")
	limit := int64(64 << 20)
	value, err := json.Marshal(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
	must(t, err)
	_, err = s.task.Update(ctx, &taskAPI.UpdateTaskRequest{ID: "box", Resources: &anypb.Any{Value: value}})
	must(t, err)
	found, err := filepath.Glob("/sys/fs/cgroup/memory" + s.cgroup + "/box/memory.limit_in_bytes")
	must(t, err)
	found2, err := filepath.Glob("/sys/fs/cgroup" + s.cgroup + "/box/memory.max")
	must(t, err)
	for _, path := range append(found, found2...) {
		data, err := os.ReadFile(path)
		must(t, err)
		if string(bytes.TrimSpace(data)) != "67108864" {
			t.Errorf("%s is %s", path, data)
		}
	}
	stats, err := s.task.Stats(ctx, &taskAPI.StatsRequest{ID: "box"})
	must(t, err)
	if !strings.HasPrefix(stats.Stats.TypeUrl, "io.containerd.cgroups.") || len(stats.Stats.Value) == 0 {
		t.Errorf("statistics %v", stats.Stats)
	}
	_, err = s.task.Pause(ctx, &taskAPI.PauseRequest{ID: "box"})
	must(t, err)
	s.killAndRemove("box") // a frozen one, too
}
