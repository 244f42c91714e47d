package podrun

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	if err := makeDirs(plan, testUID); err != nil {
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
		if err := removeDirs(plan.RunDir, testUID); err != nil {
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

// Anyone who can make a pod can write its annotation.
func TestRemoveDirsLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "precious")
	if err := os.MkdirAll(filepath.Join(other, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	named := filepath.Join(dir, testUID) // has the name, and no mark
	if err := os.MkdirAll(filepath.Join(named, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	marked := filepath.Join(dir, "x", testUID) // has another pod's mark
	if err := os.MkdirAll(marked, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(marked, markFile), []byte(`{"version":1,"uid":"other","logDir":"`+other+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{other, named, marked, "relative/" + testUID, "/"} {
		if err := removeDirs(path, testUID); err == nil || !strings.Contains(err.Error(), "left alone") {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{other, named} {
		if _, err := os.Stat(filepath.Join(path, "data")); err != nil {
			t.Error(err)
		}
	}
	if err := removeDirs(filepath.Join(dir, "gone", testUID), testUID); err != nil {
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
	if err := makeDirs(plan, testUID); err != nil {
		t.Fatal(err)
	}
	if err := removeDirs(plan.RunDir, testUID); err != nil {
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
		t.Error(cmp.Diff(want.String(), got.String()))
	}
}
