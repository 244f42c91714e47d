package podrun

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/manifest"
)

const testUID = "11111111-2222-3333-4444-555555555555"

func testPlan(t *testing.T, dir, volumes string) *manifest.Plan {
	t.Helper()
	pod, err := manifest.Decode([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  securityContext: {fsGroup: 2000}\n" +
		"  volumes: " + volumes + "\n  containers: [{name: c, image: i}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	return manifest.NewPlan(pod, manifest.Options{UID: testUID, RunRoot: filepath.Join(dir, "a/pods"), LogRoot: filepath.Join(dir, "logs")})
}

func sandboxOf(p *manifest.Plan) *runtime.PodSandbox {
	return &runtime.PodSandbox{Metadata: p.Sandbox.Metadata, Annotations: p.Sandbox.Annotations}
}

func isMounted(t *testing.T, path string) bool {
	t.Helper()
	mounted, err := mountinfo.Mounted(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return mounted
}

func TestDirs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	defer syscall.Umask(syscall.Umask(0o077))
	plan := testPlan(t, dir, "[{name: disk, emptyDir: {}}, {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]")
	if err := makeDirs(plan); err != nil {
		t.Fatal(err)
	}
	disk, mem := plan.Volumes[0].Path, plan.Volumes[1].Path
	for _, path := range []string{disk, mem} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o777 || st.Mode()&fs.ModeSetgid == 0 || st.Sys().(*syscall.Stat_t).Gid != 2000 {
			t.Errorf("%s: mode %s, group %d", path, st.Mode(), st.Sys().(*syscall.Stat_t).Gid)
		}
	}
	// Volumes are open to every user; the way to them is not.
	for _, path := range []string{filepath.Dir(plan.RunDir), plan.RunDir, filepath.Dir(disk)} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v, want nobody else to enter it", path, st.Mode(), err)
		}
	}
	if !isMounted(t, mem) || isMounted(t, disk) {
		t.Error("want a tmpfs for the volume in memory alone")
	}
	if err := os.WriteFile(filepath.Join(mem, "big"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing more than the size limit: %v", err)
	}

	// What a container may leave: links out, files that may not be entered,
	// a mount.
	outside := filepath.Join(dir, "outside")
	for _, err := range []error{
		os.WriteFile(outside, []byte("keep"), 0o600),
		os.Symlink(outside, filepath.Join(disk, "link")),
		os.Symlink(dir, filepath.Join(disk, "dirlink")),
		os.MkdirAll(filepath.Join(disk, "locked/in"), 0o000),
		os.Mkdir(filepath.Join(disk, "mnt"), 0o700),
		unix.Mount("tmpfs", filepath.Join(disk, "mnt"), "tmpfs", 0, ""),
		os.WriteFile(filepath.Join(plan.LogDir, "c", "0.log"), []byte("log"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // again is no error
		if err := removeDirs(rootsOf(plan), sandboxOf(plan)); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "outside" {
		t.Errorf("left behind: %v", entries)
	}
}

// Anyone who can make a pod can write its annotation, and a container can write
// a mark into its volumes.
func TestRemoveDirsLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	roots := Roots{Run: filepath.Join(dir, "run"), Log: filepath.Join(dir, "logs")}
	precious := filepath.Join(dir, "precious")
	ours := filepath.Join(roots.Run, testUID)
	volume := filepath.Join(dir, "kubelet/volumes", testUID)
	logs := manifest.LogDirName("ns", "p", testUID)
	good := mark{Version: 1, UID: testUID, LogDir: filepath.Join(roots.Log, logs)}
	with := func(change func(*mark)) mark { m := good; change(&m); return m }
	for _, test := range []struct {
		name, at, said, uid string
		mark                any
		before              func() error
	}{
		{name: "a volume of a pod", at: volume, said: volume, mark: with(func(m *mark) { m.LogDir = precious })},
		{name: "a volume of a pod, by way of the root", at: volume, said: roots.Run + "/../kubelet/volumes/" + testUID, mark: good},
		{name: "no UID", at: ours, said: ours, uid: ".", mark: good},
		{name: "a UID that leads out", at: volume, said: volume, uid: "../kubelet/volumes/" + testUID, mark: good},
		{name: "relative", at: ours, said: "run/" + testUID, mark: good},
		{name: "no mark", at: ours, said: ours},
		{name: "another's mark", at: ours, said: ours, mark: with(func(m *mark) { m.UID = "other" })},
		{name: "another pod's logs", at: ours, said: ours, mark: with(func(m *mark) { m.LogDir = filepath.Join(roots.Log, "ns_other_"+testUID) })},
		{name: "a precious directory for logs", at: ours, said: ours, mark: with(func(m *mark) { m.LogDir = precious })},
		{name: "parents elsewhere", at: ours, said: ours, mark: with(func(m *mark) { m.Made = []string{precious} })},
		{name: "a link for the directory", at: volume, said: ours, mark: good, before: func() error { return os.Symlink(volume, ours) }},
		{name: "a directory of another user", at: ours, said: ours, mark: good, before: func() error { return os.Chown(ours, 65534, -1) }},
		{name: "a root that others can change", at: ours, said: ours, mark: good, before: func() error { return os.Chmod(roots.Run, 0o777) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("another's directory needs root")
			}
			defer func() {
				if err := os.RemoveAll(roots.Run); err != nil {
					t.Error(err)
				}
			}()
			kept := []string{filepath.Join(test.at, "data"), filepath.Join(precious, "data"), filepath.Join(good.LogDir, "c")}
			for _, d := range append(kept, roots.Run) {
				if err := os.MkdirAll(d, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if test.mark != nil {
				text, err := json.Marshal(test.mark)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(test.at, markFile), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if test.before != nil {
				if err := test.before(); err != nil {
					t.Fatal(err)
				}
			}
			err := removeDirs(roots, &runtime.PodSandbox{
				Metadata:    &runtime.PodSandboxMetadata{Namespace: "ns", Name: "p", Uid: cmp.Or(test.uid, testUID)},
				Annotations: map[string]string{manifest.AnnotationRunDir: test.said},
			})
			if !errors.Is(err, errLeftAlone) {
				t.Errorf("%v, want %v", err, errLeftAlone)
			}
			for _, d := range kept {
				if _, err := os.Stat(d); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A root that an earlier berth made, open to others, is closed; a directory
// that is not for pods alone is not touched.
func TestRunRootIsClosed(t *testing.T) {
	for _, test := range []struct {
		entry      string
		mode, want fs.FileMode
		fails      string
	}{
		{"11111111-2222-3333-4444-666666666666", 0o755, 0o700, ""},
		{"something", 0o755, 0o755, ""},
		{"something", 0o777, 0o777, "can be changed by others"},
		{"something", 0o777 | fs.ModeSticky, 0o777 | fs.ModeSticky, ""},
	} {
		dir := t.TempDir()
		plan := testPlan(t, dir, "[]")
		root := filepath.Dir(plan.RunDir)
		for _, err := range []error{os.MkdirAll(filepath.Join(root, test.entry), 0o755), os.Chmod(root, test.mode)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		err := makeDirs(plan)
		if test.fails == "" && err != nil || test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)) {
			t.Errorf("%s, %s: %v, want %q", test.entry, test.mode, err, test.fails)
		}
		if st, err := os.Stat(root); err != nil || st.Mode()&^fs.ModeDir != test.want {
			t.Errorf("%s, %s: mode %v, %v", test.entry, test.mode, st.Mode(), err)
		}
	}
}

// Logs elsewhere are not forgotten: the user is told how to have them removed.
func TestRemoveDirsOtherLogRoot(t *testing.T) {
	plan := testPlan(t, t.TempDir(), "[]")
	if err := makeDirs(plan); err != nil {
		t.Fatal(err)
	}
	roots := rootsOf(plan)
	roots.Log += "2"
	if err := removeDirs(roots, sandboxOf(plan)); err == nil || errors.Is(err, errLeftAlone) || !strings.Contains(err.Error(), "--log-root "+filepath.Dir(plan.LogDir)) {
		t.Errorf("%v", err)
	}
	if err := removeDirs(rootsOf(plan), sandboxOf(plan)); err != nil {
		t.Error(err)
	}
}

// Parents that were there before stay.
func TestRemoveDirsKeepsParents(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	plan := testPlan(t, dir, "[]")
	if err := makeDirs(plan); err != nil {
		t.Fatal(err)
	}
	if err := removeDirs(rootsOf(plan), sandboxOf(plan)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a/pods")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "logs")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("logs, made for this pod, are left: %v", err)
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	file, socket, none := filepath.Join(dir, "file"), filepath.Join(dir, "socket"), filepath.Join(dir, "none")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(socket, unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path  string
		kind  corev1.HostPathType
		fails string
	}{
		{none, corev1.HostPathUnset, ""},
		{dir, corev1.HostPathDirectory, ""},
		{file, corev1.HostPathFile, ""},
		{file, corev1.HostPathFileOrCreate, ""},
		{socket, corev1.HostPathSocket, ""},
		{"/dev/null", corev1.HostPathCharDev, ""},
		{filepath.Join(dir, "new/dir"), corev1.HostPathDirectoryOrCreate, ""},
		{filepath.Join(dir, "newfile"), corev1.HostPathFileOrCreate, ""},
		{none, corev1.HostPathDirectory, "no such file"},
		{filepath.Join(dir, "no/parent"), corev1.HostPathFileOrCreate, "no such file"},
		{file, corev1.HostPathDirectory, "want a Directory, found mode -rw"},
		{file, corev1.HostPathDirectoryOrCreate, "not a directory"},
		{dir, corev1.HostPathFile, "want a File"},
		{dir, corev1.HostPathFileOrCreate, "want a FileOrCreate"},
		{file, corev1.HostPathSocket, "want a Socket"},
		{"/dev/null", corev1.HostPathBlockDev, "want a BlockDevice"},
	} {
		err := prepareHostPath(test.path, test.kind)
		if test.fails == "" && err != nil || test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)) {
			t.Errorf("%s as %q: %v, want %q", test.path, test.kind, err, test.fails)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "content" {
		t.Errorf("the file has changed: %q, %v", text, err)
	}
}

func TestParseResolvConf(t *testing.T) {
	got := parseResolvConf([]byte("# a comment\nnameserver 192.0.2.1\nsearch old.example\nnameserver 2001:db8::1 \nsearch a.example b.example\noptions ndots:2\noptions edns0\nnameserver\n"))
	want := &runtime.DNSConfig{Servers: []string{"192.0.2.1", "2001:db8::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:2", "edns0"}}
	if got.String() != want.String() {
		t.Error(gocmp.Diff(want.String(), got.String()))
	}
}
