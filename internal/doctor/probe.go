package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/internal/host"
)

// onThread runs fn on a thread that ends with it, and with all that fn did to
// it.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		// The main thread would stay. While it is held here, another runs fn.
		done <- onThread(fn)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// overlay mounts one where images and containers will be.
func (e *exam) overlay() {
	if e.Config.Containerd.Snapshotter != "overlayfs" || unix.Geteuid() != 0 {
		return
	}
	parent := nearest(e.Config.Root)
	err := onThread(func() error { return inScratch(parent, tryOverlay) })
	if err != nil {
		e.fail("overlay", `modprobe overlay; where the directory is itself on an overlay (a container), put "root" on another file system`,
			"an overlay in %s: %v", parent, err)
		return
	}
	e.ok("overlay", "can be mounted in %s", parent)
}

// inScratch runs fn in a mount namespace of the thread, with a new directory
// that is gone afterwards.
func inScratch(parent string, fn func(dir string) error) (err error) {
	dir, err := os.MkdirTemp(parent, ".berth-doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, sub := range []string{"lower", "mapped", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	return fn(dir)
}

func tryOverlay(dir string) error { return mountOverlay(dir, "lower") }

func mountOverlay(dir, lower string) error {
	options := fmt.Sprintf("lowerdir=%[1]s/%[2]s,upperdir=%[1]s/upper,workdir=%[1]s/work", dir, lower)
	merged := filepath.Join(dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	writeErr := os.WriteFile(filepath.Join(merged, "file"), nil, 0o600)
	return errors.Join(writeErr, unix.Unmount(merged, unix.MNT_DETACH))
}

// tryMappedOverlay has the lower directory owned by a user namespace's root.
func tryMappedOverlay(dir string) (err error) {
	const ids = "0:65536:65536"
	userns, err := mount.GetUsernsFD(ids, ids)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, userns.Close()) }()
	mapped := filepath.Join(dir, "mapped")
	if err := mount.IDMapMount(filepath.Join(dir, "lower"), mapped, int(userns.Fd())); err != nil {
		return err
	}
	return errors.Join(mountOverlay(dir, "mapped"), unix.Unmount(mapped, unix.MNT_DETACH))
}

// links makes a bridge and a pair of virtual Ethernet devices in a network
// namespace of its own.
func (e *exam) links() {
	if unix.Geteuid() != 0 {
		return
	}
	err := inThrowawayNetwork(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe-br"}}); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe-a"}, PeerName: "probe-b"}); err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		return nil
	})
	if err != nil {
		e.fail("network devices", "modprobe bridge veth, or use a kernel that has them", "%v", err)
		return
	}
	e.ok("network devices", "bridge and veth can be made")
}

// firewall is what masquerading and host ports are made with: by berth itself,
// which needs no program for nftables, or by plugins that execute one.
func (e *exam) firewall() {
	var program string
	for _, name := range []string{"nft", "iptables"} {
		if e.program(name) != "" {
			program = name
			break
		}
	}
	var kernelErr error
	if unix.Geteuid() == 0 {
		kernelErr = inThrowawayNetwork(tryNftables)
	}
	switch {
	case kernelErr != nil && program == "iptables":
		e.warn("firewall", "modprobe nf_tables, unless the iptables here is iptables-legacy", "iptables is installed; nftables: %v", kernelErr)
	case kernelErr != nil:
		e.warn("firewall", "modprobe nf_tables, or install iptables-legacy", "nftables: %v", kernelErr)
	case program == "" && !e.Config.Network.Builtin:
		e.warn("firewall", "apt-get install nftables (or iptables): CNI's bridge and portmap plugins execute it for masquerading and host ports",
			"neither nft nor iptables is installed")
	case program == "":
		e.ok("firewall", "nftables in the kernel; neither nft nor iptables is installed, nor needed by the built-in plugins")
	default:
		e.ok("firewall", "nftables in the kernel, %s installed", program)
	}
}

// tryNftables makes a table with a NAT chain.
func tryNftables() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "probe", Family: nftables.TableFamilyIPv4})
	conn.AddChain(&nftables.Chain{
		Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	return conn.Flush()
}

// inThrowawayNetwork runs fn in a network namespace that is gone afterwards.
func inThrowawayNetwork(fn func() error) (err error) {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		return fn()
	})
}

// cgroups are what limits containers.
func (e *exam) cgroups() {
	c, err := host.NewCgroupsAt(e.Root, e.Config.Cgroup.Driver)
	if err != nil {
		e.fail("cgroups", "mount a cgroup file system (systemd does), and see that cgroup.driver fits the machine", "%v", err)
		return
	}
	defer c.Close() // it has not been connected to anything
	has := map[string]bool{}
	for _, name := range c.Controllers() {
		has[name] = true
	}
	var needed, wanted []string
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !has[name] {
			needed = append(needed, name)
		}
	}
	for _, name := range []string{"cpuset", "hugetlb"} {
		if !has[name] {
			wanted = append(wanted, name)
		}
	}
	if !has["io"] && !has["blkio"] {
		wanted = append(wanted, "io")
	}
	version := fmt.Sprint(c.Version())
	if c.Version() == 1 && e.exists("sys/fs/cgroup/unified/cgroup.controllers") {
		version = "1 (hybrid)"
	}
	e.version, e.driver = c.Version(), c.Driver()
	what := fmt.Sprintf("version %s, driver %s, controllers %v", version, c.Driver(), c.Controllers())
	switch {
	case len(needed) > 0:
		e.fail("cgroups", "enable them (kernel command line: cgroup_enable=memory; v2: cgroup.subtree_control of the root)", "%s: without %v", what, needed)
	case c.Driver() == host.SystemdDriver && !e.exists("run/dbus/system_bus_socket") && !e.exists("run/systemd/private"):
		e.fail("cgroups", `apt-get install dbus, or set cgroup.driver = "cgroupfs"`, "%s: there is no socket to ask systemd for cgroups", what)
	case len(wanted) > 0:
		e.warn("cgroups", "pods that limit these will not be limited", "%s: without %v", what, wanted)
	default:
		e.ok("cgroups", "%s", what)
	}
}
