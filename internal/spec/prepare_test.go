package spec

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPrepareMountsPaths(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "real/sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	must(t, os.Symlink("real", filepath.Join(dir, "link")))
	must(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	for name, tc := range map[string]struct{ host, want, fails string }{
		"as it is":                {host: "real/sub", want: "real/sub"},
		"file":                    {host: "file", want: "file"},
		"link":                    {host: "link/sub", want: "real/sub"},
		"unclean":                 {host: "real/../link", want: "real"},
		"missing":                 {host: "new/a/b", want: "new/a/b"},
		"missing below a link":    {host: "link/new", want: "real/new"},
		"dangling":                {host: "dangling", fails: "symbolic link to nowhere"},
		"missing below a file":    {host: "file/x", fails: "file/x"},
		"missing below dangling":  {host: "dangling/x", fails: "cannot be made"},
		"again, and made already": {host: "new/a/b", want: "new/a/b"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := PrepareMounts([]*runtime.Mount{{ContainerPath: "/x", HostPath: dir + "/" + tc.host}})
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) || !strings.HasPrefix(err.Error(), "mounts[0].host_path: ") {
					t.Fatalf("got %v, %v, want an error with %q", got, err, tc.fails)
				}
				return
			}
			must(t, err)
			if want := []HostPath{{Path: filepath.Join(dir, tc.want)}}; !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if _, err := os.Stat(got[0].Path); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := PrepareMounts([]*runtime.Mount{{HostPath: "relative"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a relative path: got %v", err)
	}
	if got, err := PrepareMounts([]*runtime.Mount{{Image: &runtime.ImageSpec{}}}); err != nil || len(got) != 1 {
		t.Errorf("an image mount: got %v, %v", got, err)
	}
}

// TestPrepareMountsPropagation looks at real mounts of each kind.
func TestPrepareMountsPropagation(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	mount := func(source, target, kind string, flags uintptr) {
		t.Helper()
		must(t, os.MkdirAll(target, 0o755))
		must(t, unix.Mount(source, target, kind, flags, ""))
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	mount("none", at("private"), "tmpfs", 0)
	must(t, unix.Mount("", at("private"), "", unix.MS_PRIVATE, ""))
	mount("none", at("shared"), "tmpfs", 0)
	must(t, unix.Mount("", at("shared"), "", unix.MS_SHARED, ""))
	mount(at("shared"), at("slave"), "", unix.MS_BIND)
	must(t, unix.Mount("", at("slave"), "", unix.MS_SLAVE, ""))
	mount("none", at("shared/over"), "tmpfs", 0)
	must(t, unix.Mount("", at("shared/over"), "", unix.MS_PRIVATE, ""))

	for path, want := range map[string]HostPath{
		"private":     {MountPoint: at("private"), Propagation: Private},
		"shared":      {MountPoint: at("shared"), Propagation: Shared},
		"shared/deep": {MountPoint: at("shared"), Propagation: Shared},
		"shared/over": {MountPoint: at("shared/over"), Propagation: Private},
		"slave":       {MountPoint: at("slave"), Propagation: Slave},
	} {
		want.Path = at(path)
		got, err := PrepareMounts([]*runtime.Mount{{HostPath: at(path), Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}})
		must(t, err)
		if diff := cmp.Diff([]HostPath{want}, got); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

func TestPrepareDevices(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("tree/sub"), 0o755))
	must(t, os.Mkdir(at("empty"), 0o755))
	null := int(unix.Mkdev(1, 3))
	must(t, unix.Mknod(at("tree/null"), unix.S_IFCHR|0o640, null))
	must(t, unix.Mknod(at("tree/sub/loop"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
	must(t, unix.Mkfifo(at("tree/fifo"), 0o600))
	must(t, os.WriteFile(at("tree/file"), nil, 0o644))
	must(t, os.Symlink("tree/null", at("link")))
	must(t, os.Symlink("tree", at("treelink")))

	device := func(path, kind string, major, minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: path, Type: kind, Major: major, Minor: minor}
	}
	tree := func(root string) []specs.LinuxDevice {
		return []specs.LinuxDevice{device(root+"/null", "c", 1, 3), device(root+"/sub/loop", "b", 7, 0)}
	}
	for name, tc := range map[string]struct {
		host, container string
		want            []specs.LinuxDevice
		fails           string
	}{
		"device":             {host: "tree/null", container: "/dev/x/", want: []specs.LinuxDevice{device("/dev/x", "c", 1, 3)}},
		"through a link":     {host: "link", container: "/dev/x", want: []specs.LinuxDevice{device("/dev/x", "c", 1, 3)}},
		"the host's path":    {host: "link", want: []specs.LinuxDevice{device(at("link"), "c", 1, 3)}},
		"directory":          {host: "tree", container: "/dev/y", want: tree("/dev/y")},
		"directory's link":   {host: "treelink", container: "/dev/y", want: tree("/dev/y")},
		"missing":            {host: "none", fails: "no such device"},
		"a file":             {host: "tree/file", fails: "not a device"},
		"an empty directory": {host: "empty", fails: "no device in the directory"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &runtime.ContainerConfig{Devices: []*runtime.Device{{HostPath: at(tc.host), ContainerPath: tc.container, Permissions: "r"}}}
			got, err := Prepare(c, false)
			if tc.fails != "" {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.fails) || !strings.HasPrefix(err.Error(), "devices[0].host_path: ") {
					t.Fatalf("got %v, want an error with %q", err, tc.fails)
				}
				return
			}
			must(t, err)
			for i := range got.Devices[0] {
				d := &got.Devices[0][i]
				if d.FileMode == nil || d.UID == nil || d.GID == nil {
					t.Errorf("%s has no owner or mode: %+v", d.Path, d)
				}
				d.FileMode, d.UID, d.GID = nil, nil, nil
			}
			if diff := cmp.Diff([][]specs.LinuxDevice{tc.want}, got.Devices); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPreparePrivileged(t *testing.T) {
	c := &runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{Privileged: true}}}
	h, err := Prepare(c, false)
	must(t, err)
	found := false
	for _, d := range h.AllDevices {
		found = found || d.Path == "/dev/null" && d.Major == 1 && d.Minor == 3
	}
	if !found {
		t.Errorf("/dev/null is not among the host's %d devices", len(h.AllDevices))
	}
	h, err = Prepare(c, true)
	must(t, err)
	if len(h.AllDevices) != 0 {
		t.Errorf("%d devices, none wanted", len(h.AllDevices))
	}
}

func TestPrepareSeccomp(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(at("p.json"), []byte(`{"defaultAction":"SCMP_ACT_LOG"}`), 0o644))
	must(t, os.WriteFile(at("large"), make([]byte, maxSeccompProfile+1), 0o644))
	must(t, unix.Mkfifo(at("fifo"), 0o600))
	for name, tc := range map[string]struct{ ref, fails string }{
		"profile": {ref: at("p.json")}, "prefixed": {ref: "localhost/" + at("p.json")},
		"missing": {ref: at("none"), fails: "no such profile"}, "relative": {ref: "p.json", fails: "absolute"},
		"directory": {ref: dir, fails: "not a file"}, "FIFO": {ref: at("fifo"), fails: "not a file"}, "too large": {ref: at("large"), fails: "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			secure(&in, runtime.SecurityProfile_Localhost, tc.ref)
			h, err := Prepare(in.Container, false)
			if tc.fails != "" {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("got %v, want an error with %q", err, tc.fails)
				}
				return
			}
			must(t, err)
			in.Host = h
			s, _, err := Container(in)
			must(t, err)
			if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActLog {
				t.Errorf("got %+v", s.Linux.Seccomp)
			}
		})
	}
}
