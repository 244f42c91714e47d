package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit/fakecri"
)

const jobManifest = `
apiVersion: v1
kind: Pod
metadata: {name: job}
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 7
  volumes: [{name: data, emptyDir: {}}]
  hostAliases: [{ip: 192.0.2.1, hostnames: [other]}]
  initContainers:
  - {name: side, image: "app:1", restartPolicy: Always}
  - {name: first, image: "app:1"}
  containers:
  - {name: work, image: "app:1", volumeMounts: [{name: data, mountPath: /data}]}
  - {name: more, image: "app:2"}
`

// rootDirs are where a run's directories go; they do not exist yet.
func rootDirs(t *testing.T) (dir string, flags []string) {
	t.Helper()
	dir = t.TempDir()
	return dir, []string{"--run-root", filepath.Join(dir, "new/pods"), "--log-root", filepath.Join(dir, "logs")}
}

// left are the files below a directory.
func left(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if path != dir {
			files = append(files, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sameCalls(t *testing.T, s *fakecri.Server, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, s.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestRunLeavesRunning(t *testing.T) {
	s := fakecri.Start(t, &fakecri.Server{Exits: map[string][]int32{"first": {1, 0}}})
	dir, flags := rootDirs(t)
	s.AddImage(&runtime.Image{Id: "sha256:one", RepoTags: []string{"app:1"}})
	r := berth(t, s, jobManifest, append([]string{"run", "-"}, flags...)...)
	id, name, _ := strings.Cut(strings.TrimSpace(r.out), " ")
	if r.code != 0 || name != "default/job" || len(id) != 64 {
		t.Fatalf("%+v", r)
	}
	if !strings.Contains(r.err, "pulling app:2\n") || !strings.Contains(r.err, "container first ended with exit code 1: restart 1\n") {
		t.Errorf("stderr %q", r.err)
	}
	sameCalls(t, s, "Pull app:2", "RunPodSandbox job",
		"CreateContainer side", "StartContainer side",
		"CreateContainer first", "StartContainer first", "CreateContainer first", "StartContainer first",
		"CreateContainer work", "StartContainer work", "CreateContainer more", "StartContainer more")

	var hosts, volume bool
	for _, f := range left(t, dir) {
		hosts = hosts || strings.HasSuffix(f, "/etc-hosts")
		volume = volume || strings.HasSuffix(f, "/volumes/data")
	}
	if !hosts || !volume {
		t.Errorf("hosts file %v, volume %v: %v", hosts, volume, left(t, dir))
	}

	fails(t, s, "pod default/job is there already (Ready,", "run", "--run-root", dir, manifestFile(t))
	// Sidecars end after the others, and nothing stays.
	before := len(s.Calls())
	succeeds(t, s, "stop", "job")
	// Directories that cannot be removed keep the pod, which tells of them.
	fails(t, s, "its logs are in "+filepath.Join(dir, "logs"), "rm", "job", "--run-root", filepath.Join(dir, "new/pods"), "--log-root", filepath.Join(dir, "other"))
	succeeds(t, s, append([]string{"rm", "job"}, flags...)...)
	calls := s.Calls()[before:]
	if calls[2] != "StopContainer side 7s" || calls[3] != "StopPodSandbox job" || calls[len(calls)-1] != "RemovePodSandbox job" {
		t.Errorf("calls %v", calls)
	}
	if files := left(t, dir); files != nil {
		t.Errorf("left behind: %v", files)
	}
}

func manifestFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(file, []byte(jobManifest), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestRunFollows(t *testing.T) {
	s := fakecri.Start(t, &fakecri.Server{
		Exits:  map[string][]int32{"first": {0}, "work": {3, 0}, "more": {0}},
		Output: map[string]string{"first": "getting ready", "work": "working\nhard", "side": "beside"},
	})
	dir, flags := rootDirs(t)
	r := berth(t, s, jobManifest, append([]string{"run", "--follow", "-"}, flags...)...)
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	for _, line := range []string{"[first] getting ready\n", "[work] working\n[work] hard\n", "[side] beside\n"} {
		if !strings.Contains(r.out, line) {
			t.Errorf("%q is not in %q", line, r.out)
		}
	}
	if !strings.Contains(r.err, "container work ended with exit code 3: restart 1\n") {
		t.Errorf("stderr %q", r.err)
	}
	calls := s.Calls()
	if calls[len(calls)-1] != "RemovePodSandbox job" {
		t.Errorf("calls %v", calls)
	}
	if files := left(t, dir); files != nil {
		t.Errorf("left behind: %v", files)
	}
}

func TestRunFollowsToFailure(t *testing.T) {
	s := fakecri.Start(t, &fakecri.Server{Exits: map[string][]int32{"first": {0}, "work": {0}, "more": {44}}})
	dir, flags := rootDirs(t)
	never := strings.Replace(jobManifest, "OnFailure", "Never", 1)
	if r := berth(t, s, never, append([]string{"run", "-f", "-"}, flags...)...); r.code != 44 {
		t.Errorf("%+v", r)
	}
	if files := left(t, dir); files != nil {
		t.Errorf("left behind: %v", files)
	}
}

// Whatever fails, all that was made is taken away again.
func TestRunUndoes(t *testing.T) {
	boom := status.Error(codes.Internal, "boom")
	for _, test := range []struct{ name, fails, want string }{
		{"pull", "Pull app:1", "container side: image app:1: boom"},
		{"sandbox", "RunPodSandbox", "pod default/job: boom"},
		{"sandbox status", "PodSandboxStatus", "pod default/job: boom"},
		{"create a sidecar", "CreateContainer side", "init container side: boom"},
		{"create", "CreateContainer work", "container work: boom"},
		{"start", "StartContainer more", "container more: boom"},
		{"init", "", "init container first: it ended with exit code 9; its log:\n  sorry"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := fakecri.Start(t, &fakecri.Server{
				Fail: map[string]error{test.fails: boom}, Exits: map[string][]int32{"first": {0}}, Output: map[string]string{"first": "sorry"},
			})
			manifest := jobManifest
			if test.fails == "" {
				s.Exits["first"] = []int32{9}
				manifest = strings.Replace(manifest, "OnFailure", "Never", 1)
			}
			dir, flags := rootDirs(t)
			r := berth(t, s, manifest, append([]string{"run", "-"}, flags...)...)
			if r.code != 1 || !strings.Contains(r.err, "berth: "+test.want) {
				t.Errorf("%+v, want %q", r, test.want)
			}
			if out := succeeds(t, s, "pods", "-q"); out != "" {
				t.Errorf("pod %s is left", out)
			}
			if files := left(t, dir); files != nil {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

func TestRunReplaces(t *testing.T) {
	s := fakecri.Start(t, &fakecri.Server{Exits: map[string][]int32{"first": {0}}})
	dir, flags := rootDirs(t)
	args := append([]string{"run", "--replace", "-"}, flags...)
	first, second := berth(t, s, jobManifest, args...), berth(t, s, jobManifest, args...)
	if first.code != 0 || second.code != 0 || first.out == second.out {
		t.Errorf("%+v, %+v", first, second)
	}
	if out := succeeds(t, s, "pods", "-q"); out+" default/job\n" != strings.Replace(second.out, " default", "\n default", 1) {
		t.Errorf("pods %q after %q", out, second.out)
	}
	succeeds(t, s, append([]string{"rm", "-f", "job"}, flags...)...)
	if files := left(t, dir); files != nil {
		t.Errorf("left behind: %v", files)
	}
}

func TestRunPullNever(t *testing.T) {
	s := fakecri.Start(t, &fakecri.Server{})
	manifest := strings.ReplaceAll(jobManifest, `image: "app:1"`, `image: "app:1", imagePullPolicy: Never`)
	r := berth(t, s, manifest, "run", "-")
	if r.code != 1 || !strings.Contains(r.err, "container side: image app:1: it is not here and imagePullPolicy is Never") {
		t.Errorf("%+v", r)
	}
	sameCalls(t, s)
}
