package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit/fakecri"
)

// A result is what one run of the program did.
type result struct {
	out, err string
	code     int
}

// berth runs the program on a server.
func berth(t *testing.T, s *fakecri.Server, in string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	code := run(append([]string{"--address", s.Address()}, args...), strings.NewReader(in), &out, &errOut)
	return result{out.String(), errOut.String(), code}
}

// succeeds runs the program and returns its output.
func succeeds(t *testing.T, s *fakecri.Server, args ...string) string {
	t.Helper()
	r := berth(t, s, "", args...)
	if r.code != 0 || r.err != "" {
		t.Fatalf("berth %s: exit code %d, %s", strings.Join(args, " "), r.code, r.err)
	}
	return r.out
}

// fails runs the program and looks for an error, which comes once and alone.
func fails(t *testing.T, s *fakecri.Server, want string, args ...string) {
	t.Helper()
	r := berth(t, s, "", args...)
	if r.code != 1 || !strings.HasPrefix(r.err, "berth: ") || !strings.Contains(r.err, want) {
		t.Errorf("berth %s: exit code %d, stderr %q, want %q", strings.Join(args, " "), r.code, r.err, want)
	}
	if r.out != "" || strings.Count(r.err, "berth: ") != 1 || strings.Contains(r.err, "Usage:") {
		t.Errorf("berth %s: more than the error: %q, %q", strings.Join(args, " "), r.out, r.err)
	}
}

func sameText(t *testing.T, want, got string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

const (
	podID = "aaaa000000000000000000000000000000000000000000000000000000000000"
	ctrID = "cccc000000000000000000000000000000000000000000000000000000000000"
)

// aPod is a server with a pod default/web of one running and one ended
// container, a pod shop/db that has been stopped, and two images.
func aPod(t *testing.T) *fakecri.Server {
	t.Helper()
	s := fakecri.Start(t, &fakecri.Server{})
	s.AddPod(podID, "default", "web", true, 90e9)
	s.AddPod("bbbb"+podID[4:], "shop", "db", false, 3*3600e9)
	s.AddContainer(ctrID, podID, "server", runtime.ContainerState_CONTAINER_RUNNING, "")
	s.AddContainer("dddd"+ctrID[4:], podID, "setup", runtime.ContainerState_CONTAINER_EXITED, "")
	s.AddImage(&runtime.Image{
		Id: "sha256:1234567890abcdef", RepoTags: []string{"localhost:5000/app:1", "app.example/app:2"},
		RepoDigests: []string{"localhost:5000/app@sha256:feed"}, Size: 12_345_678,
	})
	s.AddImage(&runtime.Image{Id: "sha256:ffff", Size: 999, Pinned: true})
	return s
}

// At its limit a container has nothing left; it has a limit all the same.
func TestStatsAtLimit(t *testing.T) {
	s := aPod(t)
	s.AtLimit = true
	if out := succeeds(t, s, "stats", "web/server"); !strings.Contains(out, "3.0MiB   3.0MiB") {
		t.Error(out)
	}
}

func TestTables(t *testing.T) {
	s := aPod(t)
	sameText(t, `
POD ID          NAME          STATE      CONTAINERS   ATTEMPT   RUNTIME     AGE
aaaa000000000   default/web   Ready      1/2          0         (default)   90s
bbbb000000000   shop/db       NotReady   0/0          0         (default)   3h
`, succeeds(t, s, "pods"))
	sameText(t, `
CONTAINER ID    NAME                 IMAGE   STATE     ATTEMPT   AGE
cccc000000000   default/web/server   app:1   Running   0         60s
`, succeeds(t, s, "ps"))
	sameText(t, `
CONTAINER ID    NAME                 IMAGE   STATE     ATTEMPT   AGE
dddd000000000   default/web/setup    app:1   Exited    0         60s
cccc000000000   default/web/server   app:1   Running   0         60s
`, succeeds(t, s, "ps", "-a", "web"))
	sameText(t, `
NAME                 TAG      IMAGE ID        SIZE
<none>               <none>   ffff            999B (pinned)
app.example/app      2        1234567890abc   12.3MB
localhost:5000/app   1        1234567890abc   12.3MB
`, succeeds(t, s, "images"))
	sameText(t, `
NAME                 TAG      IMAGE ID                  SIZE            DIGEST
<none>               <none>   sha256:ffff               999B (pinned)   -
app.example/app      2        sha256:1234567890abcdef   12.3MB          -
localhost:5000/app   1        sha256:1234567890abcdef   12.3MB          sha256:feed
`, succeeds(t, s, "images", "--digests", "--no-trunc"))
	sameText(t, `
CONTAINER ID    NAME                 CPU     MEMORY   LIMIT    DISK
cccc000000000   default/web/server   25.0%   3.0MiB   8.0MiB   1.5KB
`, succeeds(t, s, "stats", "web/server"))
	sameText(t, podID+"\n", succeeds(t, s, "pods", "-q", "--ready"))
	sameText(t, "sha256:1234567890abcdef\nsha256:ffff\n", succeeds(t, s, "images", "-q"))
}

func TestDocuments(t *testing.T) {
	s := aPod(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"pods", "-o", "json"}, "\n      \"metadata\": {\n        \"name\": \"web\","},
		{[]string{"ps", "-o", "yaml"}, "\n    name: server\n"},
		{[]string{"images", "-o", "yaml"}, "\n  - localhost:5000/app:1\n"},
		{[]string{"stats", "-o", "json"}, "\"usageNanoCores\": {\n          \"value\": \"250000000\""},
		{[]string{"version", "-o", "json"}, "\"runtimeName\": \"fake\""},
		// Large numbers stay what they are, and what is not JSON stays text.
		{[]string{"inspect", "web"}, "\"large\": 9007199254740993"},
		{[]string{"inspect", "web"}, "\"note\": \"not JSON\""},
		{[]string{"inspect", "-o", "yaml", "web/server"}, "state: CONTAINER_RUNNING\n"},
		{[]string{"inspect", "app.example/app:2"}, "\"id\": \"sha256:1234567890abcdef\""},
		{[]string{"inspect", "--type", "image", "1234"}, "\"id\": \"sha256:1234567890abcdef\""},
	} {
		if got := succeeds(t, s, test.args...); !strings.Contains(got, test.want) {
			t.Errorf("berth %s: %q is not in %s", strings.Join(test.args, " "), test.want, got)
		}
	}
}

func TestErrors(t *testing.T) {
	s := aPod(t)
	fails(t, s, `--output "xml": want one of table, json, yaml`, "pods", "-o", "xml")
	fails(t, s, "unknown command \"pod\"", "pod")
	fails(t, s, "unknown flag: --al (`berth ps --help` shows the flags)", "ps", "--al")
	fails(t, s, `no pod is named "none"`, "ps", "none")
	fails(t, s, `no container or pod is named "none"`, "logs", "none")
	fails(t, s, `pod default/web has no container "x"; it has server, setup`, "logs", "web", "-c", "x")
	fails(t, s, `nothing is known by "none"`, "inspect", "none")
	fails(t, s, `--type "pods": want pod, container or image`, "inspect", "--type", "pods", "web")
	fails(t, s, "has not been stopped", "rm", "web")
	fails(t, s, "container default/web/server runs", "rm", "web/server")
	fails(t, s, "name what to remove", "rm")
	fails(t, s, `--since "soon": want a duration`, "logs", "--since", "soon", "web")
	fails(t, s, `--tail -2`, "logs", "--tail", "-2", "web")
	fails(t, s, `port "web": want REMOTE or LOCAL:REMOTE`, "port-forward", "web", "web")
	fails(t, s, `port "80:0"`, "port-forward", "web", "80:0")
	fails(t, s, "--time -1", "stop", "-t", "-1", "web")
	fails(t, s, "container default/web/server uses it", "rmi", "1234")
	fails(t, s, "manifest: open /none: no such file", "run", "/none")
	fails(t, s, "no command", "exec", "web/server", "--")
	fails(t, s, "nosuch.tar: no such file or directory", "load", "nosuch.tar")
	fails(t, s, "--creds: want user:password", "pull", "--creds", ":x", "image")
}

func TestStopAndRemove(t *testing.T) {
	s := aPod(t)
	sameText(t, "web\n", succeeds(t, s, "stop", "web"))
	sameText(t, "default/web\ndb\n", succeeds(t, s, "rm", "default/web", "db"))
	sameText(t, "sha256:1234567890abcdef\n", succeeds(t, s, "rmi", "app.example/app:2"))
	want := []string{
		"StopContainer server 30s", "StopPodSandbox web",
		"RemoveContainer server", "RemoveContainer setup", "RemovePodSandbox web", "RemovePodSandbox db",
		"RemoveImage sha256:1234567890abcdef",
	}
	if diff := cmp.Diff(want, s.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestForceRemoveKills(t *testing.T) {
	s := aPod(t)
	sameText(t, "web\n", succeeds(t, s, "rm", "-f", "web"))
	if got := s.Calls()[0]; got != "StopContainer server 0s" {
		t.Errorf("first call %s", got)
	}
}

// One of several that fails leaves the others done, and the exit code tells.
func TestSeveralGoOn(t *testing.T) {
	s := aPod(t)
	r := berth(t, s, "", "stop", "none", "web")
	if r.code != 1 || r.out != "web\n" || !strings.Contains(r.err, `"none"`) {
		t.Errorf("%+v", r)
	}
}

func TestPullAndLoad(t *testing.T) {
	s := aPod(t)
	sameText(t, "sha256:pulled\n", succeeds(t, s, "pull", "new:1"))
	r := berth(t, s, strings.Repeat("x", 3<<20+7), "load")
	if r.code != 0 || r.out != "docker.io/library/loaded:1\n" || s.Loaded() != 3<<20+7 {
		t.Errorf("%+v, %d bytes", r, s.Loaded())
	}
}

func TestCredentials(t *testing.T) {
	for _, test := range []struct{ creds, in, username, password, fails string }{
		{"", "", "", "", ""},
		{"u:p", "", "u", "p", ""},
		{"u:p:q", "", "u", "p:q", ""},
		{"-", "u:p q\nmore\n", "u", "p q", ""},
		{"-", "", "", "", "no line user:password"},
		{"u", "", "", "", "want user:password"},
		{":p", "", "", "", "want user:password"},
	} {
		username, password, err := credentials(strings.NewReader(test.in), test.creds)
		if test.fails == "" && (err != nil || username != test.username || password != test.password) ||
			test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)) {
			t.Errorf("--creds %q: %q, %q, %v", test.creds, username, password, err)
		}
	}
}

func TestCompletion(t *testing.T) {
	s := aPod(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"logs", ""}, "default/web\ndefault/web/server\ndefault/web/setup\nshop/db\nweb\nweb/server\nweb/setup\n:4\n"},
		{[]string{"logs", "web/s"}, "web/server\nweb/setup\n:4\n"},
		{[]string{"logs", "web", ""}, ":4\n"},
		{[]string{"ps", "sh"}, "shop/db\n:4\n"},
		{[]string{"rm", "web", "we"}, "web/server\nweb/setup\n:4\n"},
		{[]string{"rmi", "a"}, "app.example/app:2\n:4\n"},
		{[]string{"pods", "-o", ""}, "table\njson\nyaml\n:4\n"},
	} {
		args := append([]string{"__complete"}, test.args...)
		if got := berth(t, s, "", args...).out; got != test.want {
			t.Errorf("completion of %q:\n%s", test.args, cmp.Diff(test.want, got))
		}
	}
}

func TestEvents(t *testing.T) {
	pod := &runtime.PodSandboxStatus{Id: podID, Metadata: &runtime.PodSandboxMetadata{Name: "web", Namespace: "default"}}
	t.Setenv("TZ", "UTC")
	stopped := &runtime.ContainerEventResponse{
		ContainerId: ctrID, ContainerEventType: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, CreatedAt: fakecri.Epoch.UnixNano(), PodSandboxStatus: pod,
		ContainersStatuses: []*runtime.ContainerStatus{{Id: ctrID, Metadata: &runtime.ContainerMetadata{Name: "server"}, ExitCode: 137, Reason: "OOMKilled"}},
	}
	when := fakecri.Epoch.Local().Format("2006-01-02T15:04:05.000Z07:00")
	if got, want := eventLine(stopped), when+"  stopped  container  cccc000000000  default/web/server  exit code 137 (OOMKilled)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	ready := &runtime.ContainerEventResponse{ContainerId: podID, ContainerEventType: runtime.ContainerEventType_CONTAINER_STARTED_EVENT, CreatedAt: fakecri.Epoch.UnixNano(), PodSandboxStatus: pod}
	if got, want := eventLine(ready), when+"  started  pod        aaaa000000000  default/web"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	var out bytes.Buffer
	if err := printEvent(&out, ready, &output{format: "json"}); err != nil || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("an event is %q, %v", out.String(), err)
	}
}

// Ctrl-P Ctrl-Q detaches wherever it comes; a Ctrl-P alone reaches the
// container.
func TestDetachKeys(t *testing.T) {
	for _, test := range []struct {
		typed    []string // as they come from the terminal
		want     string
		detached bool
	}{
		{[]string{"abc"}, "abc", false},
		{[]string{"ab\x10\x11cd"}, "ab", true},
		{[]string{"\x10", "\x11"}, "", true},
		{[]string{"a\x10", "b\x10", "\x10", "\x11"}, "a\x10b\x10", true},
		{[]string{"\x10x\x11"}, "\x10x\x11", false},
		{[]string{"a\x10"}, "a\x10", false},
		{[]string{"\x11\x10", "c"}, "\x11\x10c", false},
	} {
		var readers []io.Reader
		for _, s := range test.typed {
			readers = append(readers, strings.NewReader(s))
		}
		told := 0
		got, err := io.ReadAll(&detachReader{r: io.MultiReader(readers...), detach: func() { told++ }})
		if string(got) != test.want || (err == errDetached) != test.detached || (told == 1) != test.detached {
			t.Errorf("%q: %q, %v, told %d times", test.typed, got, err, told)
		}
	}
}
