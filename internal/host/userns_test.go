package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const testFirst, testLength = 852_516_352, 65536

func testMap() *IDMap {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: testFirst, Size: testLength}}
	return &IDMap{UIDs: m, GIDs: m}
}

// owner tells which namespace, of those pinned in dir, owns the one at path.
func owner(t *testing.T, dir, kind string) string {
	t.Helper()
	fd, err := openNamespace(filepath.Join(dir, kind))
	must(t, err)
	defer unix.Close(fd)
	const getUserNS = 0xb701 // NS_GET_USERNS
	owner, err := unix.IoctlRetInt(fd, getUserNS)
	must(t, err)
	defer unix.Close(owner)
	var st unix.Stat_t
	must(t, unix.Fstat(owner, &st))
	switch st.Ino {
	case inode(t, "/proc/self/ns/user"):
		return "the host's"
	case inode(t, filepath.Join(dir, userKind)):
		return "the pod's"
	}
	return "another"
}

func TestPinUserNamespaces(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { must(t, UnpinNamespaces(dir)) })
	o := NamespaceOptions{Net: true, IPC: true, UTS: true, User: testMap(), Hostname: "pod", Sysctls: map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "9000", "fs.mqueue.msg_max": "17", "kernel.domainname": "example", "net.core.somaxconn": "77",
	}}
	must(t, PinNamespaces(dir, o))
	var got strings.Builder
	for _, kind := range []string{netKind, ipcKind, utsKind} {
		fmt.Fprintf(&got, "%s is of %s\n", kind, owner(t, dir, kind))
	}
	fmt.Fprintf(&got, "user is of %s\n", owner(t, dir, userKind))
	before := inode(t, filepath.Join(dir, userKind))
	must(t, PinNamespaces(dir, o))
	fmt.Fprintf(&got, "kept: %v\n", before == inode(t, filepath.Join(dir, userKind)))
	// What a crash left half made is made anew: the others are to be of it.
	must(t, unpin(filepath.Join(dir, ipcKind)))
	must(t, PinNamespaces(dir, o))
	fmt.Fprintf(&got, "kept: %v, ipc is of %s\n", before == inode(t, filepath.Join(dir, userKind)), owner(t, dir, ipcKind))
	must(t, unpin(filepath.Join(dir, userKind))) // a thread cannot enter it
	got.WriteString(inside(t, dir, "net/ipv4/ip_unprivileged_port_start", "net/core/somaxconn", "kernel/msgmax", "fs/mqueue/msg_max", "kernel/domainname", "kernel/hostname"))
	want := `net is of the pod's
ipc is of the pod's
uts is of the pod's
user is of the host's
kept: true
kept: false, ipc is of the pod's
ipc pinned=true host's=false
net pinned=true host's=false
uts pinned=true host's=false
net/ipv4/ip_unprivileged_port_start=80
net/core/somaxconn=77
kernel/msgmax=9000
fs/mqueue/msg_max=17
kernel/domainname=example
kernel/hostname=pod
link lo up|loopback|running
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestPinUserNamespacesErrors(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*NamespaceOptions)
		want   func(error) bool
	}{
		"sysctl of the machine": {func(o *NamespaceOptions) { o.Sysctls = map[string]string{"vm.swappiness": "1"} }, errdefs.IsInvalidArgument},
		"value":                 {func(o *NamespaceOptions) { o.Sysctls = map[string]string{"kernel.msgmax": "-9"} }, errdefs.IsInvalidArgument},
		"twice the same":        {func(o *NamespaceOptions) { o.User.UIDs = append(o.User.UIDs, o.User.UIDs[0]) }, func(err error) bool { return err != nil }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ns")
			o := NamespaceOptions{Net: true, IPC: true, User: testMap()}
			test.change(&o)
			err := PinNamespaces(dir, o)
			if !test.want(err) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("something is left behind")
				must(t, UnpinNamespaces(dir))
			}
		})
	}
}
