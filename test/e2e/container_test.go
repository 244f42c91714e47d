package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func TestContainerLifecycle(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		config := testkit.ContainerConfig(busybox, []string{"sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"})
		config.Metadata.Attempt = 2
		config.Labels = map[string]string{"tier": "web"}
		config.Annotations = map[string]string{"note": "x"}
		begin := time.Now()
		ctr, err := p.Create(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		s := ctr.Status(t)
		if s.State != cri.ContainerState_CONTAINER_CREATED || s.StartedAt != 0 || s.FinishedAt != 0 || s.CreatedAt < begin.UnixNano() {
			t.Errorf("created: %v", s)
		}
		if s.Metadata.Name != config.Metadata.Name || s.Metadata.Attempt != 2 || s.Labels["tier"] != "web" || s.Annotations["note"] != "x" {
			t.Errorf("created: %v", s)
		}
		if s.Image.GetImage() == "" || !strings.Contains(s.ImageRef, "sha256:") || s.ImageId != busyboxID || s.LogPath != ctr.LogFile() {
			t.Errorf("image %v, ref %q, id %q, log %q", s.Image, s.ImageRef, s.ImageId, s.LogPath)
		}
		if err := ctr.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		s = ctr.Status(t)
		if s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt || s.FinishedAt != 0 {
			t.Errorf("running: %v", s)
		}
		ctr.Logged(t, "ready")
		if err := ctr.Stop(t.Context(), 20*time.Second); err != nil {
			t.Fatal(err)
		}
		s = ctr.Status(t)
		if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 7 || s.Reason != "Error" || s.FinishedAt < s.StartedAt || s.FinishedAt > time.Now().UnixNano() {
			t.Errorf("exited: %v", s)
		}
		if err := ctr.Start(t.Context()); err == nil {
			t.Error("an exited container was started again")
		}
		if err := ctr.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := ctr.Remove(t.Context()); err != nil {
			t.Errorf("removed twice: %v", err)
		}
	})
}

func TestExitCodes(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		for _, tc := range []struct {
			script, reason string
			code           int32
		}{
			{"exit 0", "Completed", 0},
			{"exit 3", "Error", 3},
			// PID 1 does not end itself by a signal; a child's status is passed on.
			{"sh -c 'kill -9 $$'; exit $?", "Error", 137},
			{"sh -c 'kill -TERM $$'; exit $?", "Error", 143},
		} {
			s := p.Container(t, busybox, []string{"sh", "-c", tc.script}).Exited(t)
			if s.ExitCode != tc.code || s.Reason != tc.reason {
				t.Errorf("%s: %d %s", tc.script, s.ExitCode, s.Reason)
			}
		}
	})
}

func TestStopSignals(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		script := []string{"sh", "-c", "trap 'exit 10' USR1; trap 'exit 15' TERM; trap 'exit 12' USR2; echo ready; while :; do sleep 0.05; done"}
		ofImage := image(t, c, testkit.ImageOptions{StopSignal: "SIGUSR1"})
		bogus := image(t, c, testkit.ImageOptions{StopSignal: "SIGBOGUS"})
		for _, tc := range []struct {
			name, image string
			signal      cri.Signal
			want        int32
		}{
			{"default", busybox, cri.Signal_SIGNAL_RUNTIME_DEFAULT, 15},
			{"of the image", ofImage, cri.Signal_SIGNAL_RUNTIME_DEFAULT, 10},
			{"none of the image", bogus, cri.Signal_SIGNAL_RUNTIME_DEFAULT, 15},
			{"of the container", ofImage, cri.Signal_SIGNAL_SIGUSR2, 12},
		} {
			ctr := p.Container(t, tc.image, script, func(c *cri.ContainerConfig) { c.StopSignal = tc.signal })
			ctr.Logged(t, "ready")
			if err := ctr.Stop(t.Context(), 20*time.Second); err != nil {
				t.Fatal(err)
			}
			if s := ctr.Status(t); s.ExitCode != tc.want {
				t.Errorf("%s: exit code %d, want %d", tc.name, s.ExitCode, tc.want)
			}
		}
	})
}

func TestStopKillsAfterTheGracePeriod(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		for _, grace := range []time.Duration{0, time.Second} {
			ctr := p.Container(t, busybox, []string{"sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"})
			ctr.Logged(t, "ready")
			begin := time.Now()
			if err := ctr.Stop(t.Context(), grace); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begin)
			if s := ctr.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
				t.Errorf("grace %s: %v", grace, s)
			}
			if took < grace || took > grace+8*time.Second {
				t.Errorf("grace %s: took %s", grace, took)
			}
			if err := ctr.Stop(t.Context(), 0); err != nil {
				t.Errorf("stopped twice: %v", err)
			}
		}
	})
}

// A second StopContainer with a shorter grace period does not wait for the
// first one's.
func TestShorterStopCutsALongerOne(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr := p.Container(t, busybox, []string{"sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"})
		ctr.Logged(t, "ready")
		begin := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := ctr.Stop(t.Context(), 40*time.Second); err != nil {
				t.Error(err)
			}
		})
		if err := ctr.Stop(t.Context(), time.Second); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestStopOfACreatedContainer(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}))
		if err != nil {
			t.Fatal(err)
		}
		if err := ctr.Stop(t.Context(), 0); err != nil {
			t.Error(err)
		}
		if err := ctr.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestRemoveOfARunningContainer(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t))
		if err := ctr.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID})
		testkit.WantCode(t, err, codes.NotFound)
	})
}

func TestListContainers(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		label := func(value string) func(*cri.ContainerConfig) {
			return func(c *cri.ContainerConfig) { c.Labels = map[string]string{"n": value} }
		}
		runs := sleeper(t, p, label("1"))
		ended := p.Container(t, busybox, []string{"true"}, label("2"))
		ended.Exited(t)
		created, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}, label("2")))
		if err != nil {
			t.Fatal(err)
		}
		state := func(s cri.ContainerState) *cri.ContainerStateValue { return &cri.ContainerStateValue{State: s} }
		for _, tc := range []struct {
			name   string
			filter *cri.ContainerFilter
			want   []string
		}{
			{"pod", &cri.ContainerFilter{PodSandboxId: p.ID}, []string{runs.ID, ended.ID, created.ID}},
			{"pod's prefix", &cri.ContainerFilter{PodSandboxId: p.ID[:20]}, []string{runs.ID, ended.ID, created.ID}},
			{"label", &cri.ContainerFilter{PodSandboxId: p.ID, LabelSelector: map[string]string{"n": "2"}}, []string{ended.ID, created.ID}},
			{"running", &cri.ContainerFilter{PodSandboxId: p.ID, State: state(cri.ContainerState_CONTAINER_RUNNING)}, []string{runs.ID}},
			{"exited", &cri.ContainerFilter{PodSandboxId: p.ID, State: state(cri.ContainerState_CONTAINER_EXITED)}, []string{ended.ID}},
			{"created", &cri.ContainerFilter{PodSandboxId: p.ID, State: state(cri.ContainerState_CONTAINER_CREATED)}, []string{created.ID}},
			{"id", &cri.ContainerFilter{Id: runs.ID}, []string{runs.ID}},
			{"unknown", &cri.ContainerFilter{Id: strings.Repeat("0", 64)}, nil},
		} {
			got, err := c.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			ids, want := map[string]bool{}, map[string]bool{}
			for _, item := range got.Containers {
				ids[item.Id] = true
				if item.PodSandboxId != p.ID || item.ImageRef == "" || item.ImageId != busyboxID || item.Metadata == nil || item.CreatedAt == 0 {
					t.Errorf("%s: %v", tc.name, item)
				}
			}
			for _, id := range tc.want {
				want[id] = true
			}
			if diff := cmp.Diff(want, ids); diff != "" {
				t.Errorf("%s: %s", tc.name, diff)
			}
		}
	})
}

func TestCommandAndArgs(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		both := image(t, c, testkit.ImageOptions{Entrypoint: []string{"echo", "entry"}, Cmd: []string{"cmd"}})
		onlyCmd := image(t, c, testkit.ImageOptions{Cmd: []string{"echo", "only cmd"}})
		for _, tc := range []struct {
			name, image   string
			command, args []string
			want          string
		}{
			{"image's", both, nil, nil, "entry cmd\n"},
			{"args over cmd", both, nil, []string{"arg"}, "entry arg\n"},
			{"command over both", both, []string{"echo", "command"}, nil, "command\n"},
			{"command and args", both, []string{"echo", "command"}, []string{"arg"}, "command arg\n"},
			{"image without entrypoint", onlyCmd, nil, nil, "only cmd\n"},
			{"args alone", onlyCmd, nil, []string{"echo", "args"}, "args\n"},
		} {
			got := p.Output(t, tc.image, tc.command, func(c *cri.ContainerConfig) { c.Args = tc.args })
			if got != tc.want {
				t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
			}
		}
	})
}

func TestNoCommandAtAll(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		none := image(t, c, testkit.ImageOptions{Cmd: []string{}})
		_, err := p.Create(t.Context(), testkit.ContainerConfig(none, nil))
		testkit.WantCode(t, err, codes.InvalidArgument, "command")
	})
}

func TestEnvironment(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t, func(p *cri.PodSandboxConfig) { p.Hostname = "envhost" })
		ref := image(t, c, testkit.ImageOptions{Env: []string{"FROM_IMAGE=1", "OVERRIDDEN=image", "EQUALS=a=b=c"}})
		got := p.Output(t, ref, []string{"sh", "-c", "env | sort | grep -v -e SHLVL -e PWD -e HOME -e PATH"}, func(c *cri.ContainerConfig) {
			c.Envs = []*cri.KeyValue{{Key: "OVERRIDDEN", Value: []byte("container")}, {Key: "OWN", Value: []byte("x=y z")}, {Key: "EMPTY"}}
		})
		want := "EMPTY=\nEQUALS=a=b=c\nFROM_IMAGE=1\nHOSTNAME=envhost\nOVERRIDDEN=container\nOWN=x=y z\n"
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWorkingDirectory(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ref := image(t, c, testkit.ImageOptions{WorkingDir: "/made/when/missing"})
		if got := p.Output(t, ref, []string{"pwd"}); got != "/made/when/missing\n" {
			t.Errorf("image's: %q", got)
		}
		if got := p.Output(t, ref, []string{"pwd"}, func(c *cri.ContainerConfig) { c.WorkingDir = "/also/missing" }); got != "/also/missing\n" {
			t.Errorf("container's: %q", got)
		}
		if got := p.Output(t, busybox, []string{"pwd"}); got != "/\n" {
			t.Errorf("none: %q", got)
		}
	})
}

func TestTTY(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		tty := func(c *cri.ContainerConfig) { c.Tty = true }
		got := p.Output(t, busybox, []string{"sh", "-c", "tty; test -t 0 && test -t 1 && echo terminal; echo $TERM; echo to stderr >&2"}, tty)
		got = strings.ReplaceAll(got, "\r\n", "\n")
		name := "/dev/pts/0\n"
		if c.Handler == gVisor {
			name = "not a tty\n" // it is one, of the machine outside, and has no name inside
		}
		if got != name+"terminal\nxterm\nto stderr\n" {
			t.Errorf("got %q", got)
		}
		if got := p.Output(t, busybox, []string{"sh", "-c", "tty; echo -$TERM-"}, func(c *cri.ContainerConfig) { c.Envs = nil }); !strings.Contains(got, "not a tty") || !strings.Contains(got, "--") {
			t.Errorf("without: %q", got)
		}
	})
}

func TestCreateAgainFindsTheContainer(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		config := testkit.ContainerConfig(busybox, []string{"sleep", "1000"})
		id := testkit.SameID(t, func() (string, error) {
			ctr, err := p.Create(t.Context(), config)
			if err != nil {
				return "", err
			}
			return ctr.ID, nil
		})
		ctr := &testkit.Container{ID: id, Config: config, Pod: p}
		for range 2 {
			if err := ctr.Start(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestStartRefused(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"/no/such/program"}))
		if err != nil {
			t.Fatal(err)
		}
		if err := ctr.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "/no/such/program: no such file or directory: the image has no such program: check") {
			t.Errorf("err = %v", err)
		}
		s := ctr.Status(t)
		if s.State != cri.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || s.ExitCode != 128 || !strings.Contains(s.Message, "/no/such/program") || s.FinishedAt == 0 {
			t.Errorf("status: %v", s)
		}
	})
}

func TestCreateInAStoppedSandbox(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		before, err := p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = p.Create(t.Context(), testkit.ContainerConfig(busybox, []string{"true"}))
		testkit.WantCode(t, err, codes.FailedPrecondition, p.ID)
		if err := before.Start(t.Context()); err == nil {
			t.Error("a container of a stopped sandbox was started")
		}
	})
}

func TestOOMKilled(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		limit := func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}
		}
		s := p.Container(t, busybox, []string{"sh", "-c", "x=a; while :; do x=$x$x; done"}, limit).Exited(t)
		if s.Reason != "OOMKilled" || s.ExitCode != 137 {
			t.Errorf("got %v", s)
		}
	})
}

func TestVerboseContainerStatus(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		ctr := sleeper(t, c.Pod(t))
		got, err := c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"pid":`, ctr.Pod.ID, "runtimeSpec"} {
			if !strings.Contains(got.Info["info"], want) {
				t.Errorf("info has no %s: %v", want, got.Info)
			}
		}
		// A unique prefix names the container, too.
		short, err := c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ID[:13]})
		if err != nil || short.Status.Id != ctr.ID {
			t.Errorf("by prefix: %v, %v", short, err)
		}
	})
}

func TestStatusReportsMountsAndUser(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		dir := t.TempDir()
		ctr := sleeper(t, c.Pod(t), func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/data", Readonly: true}}
			c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{
				RunAsUser: &cri.Int64Value{Value: 1000}, RunAsGroup: &cri.Int64Value{Value: 5}, SupplementalGroups: []int64{77},
			}
			c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}
		})
		s := ctr.Status(t)
		if len(s.Mounts) != 1 || s.Mounts[0].HostPath != dir || s.Mounts[0].ContainerPath != "/data" || !s.Mounts[0].Readonly {
			t.Errorf("mounts: %v", s.Mounts)
		}
		u := s.User.GetLinux()
		if u.GetUid() != 1000 || u.GetGid() != 5 || fmt.Sprint(u.GetSupplementalGroups()) != "[5 10 44 77]" {
			t.Errorf("user: %v", u)
		}
		if r := s.Resources.GetLinux(); r.GetCpuShares() != 512 || r.GetMemoryLimitInBytes() != 64<<20 {
			t.Errorf("resources: %v", r)
		}
	})
}
