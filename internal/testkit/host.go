package testkit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/api/services/tasks/v1"
)

// Host renders everything outside the daemon's memory that a pod may leave
// something in, one thing a line, sorted within its section. The network is
// this process's whole namespace.
func (d *Daemon) Host(ctx context.Context) (string, error) {
	var text strings.Builder
	for _, section := range []struct {
		name string
		read func(context.Context) ([]string, error)
	}{
		{"mounts", func(context.Context) ([]string, error) { return d.mounts(), nil }},
		{"links", links}, {"addresses", addresses}, {"routes", routes},
		{"nftables", nftables}, {"iptables", iptables},
		{"processes", func(context.Context) ([]string, error) { return d.processes(), nil }},
		{"cgroups", func(context.Context) ([]string, error) { return cgroups(d.CgroupParent), nil }},
		{"containerd", d.stores},
		{"files", func(context.Context) ([]string, error) { return d.files() }},
	} {
		lines, err := section.read(ctx)
		if err != nil {
			return "", fmt.Errorf("state of the host: %s: %w", section.name, err)
		}
		fmt.Fprintf(&text, "== %s\n", section.name)
		for _, line := range lines {
			fmt.Fprintln(&text, line)
		}
	}
	return text.String(), nil
}

// CheckHost waits until the host is as it was and fails with the difference.
func (d *Daemon) CheckHost(ctx context.Context, before string) error {
	return Poll(ctx, 15*time.Second, func(ctx context.Context) string {
		now, err := d.Host(ctx)
		if err != nil {
			return err.Error()
		}
		if now == before {
			return ""
		}
		return "the host is not as it was (-before +now):\n" + gocmp.Diff(strings.Split(before, "\n"), strings.Split(now, "\n"))
	})
}

// Watch notes the state of the host now and, at the test's end, after every
// cleanup registered later, wants it back.
func (d *Daemon) Watch(t testing.TB) {
	t.Helper()
	before, err := d.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			return // what failed may have left anything
		}
		if err := d.CheckHost(context.Background(), before); err != nil {
			t.Error(err)
		}
	})
}

// owns reports whether a path is the daemon's.
func (d *Daemon) owns(path string) bool {
	return under(path, d.Base) || under(path, d.State)
}

func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// mounts are those below the daemon's directories, and what it pinned.
func (d *Daemon) mounts() []string {
	var lines []string
	for _, f := range mountFields() {
		if d.owns(f.point) {
			lines = append(lines, f.point+" "+f.kind)
		}
	}
	slices.Sort(lines)
	return lines
}

type mountField struct{ point, kind string }

func mountFields() []mountField {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		panic(err) // proc is mounted or nothing works
	}
	var all []mountField
	for line := range strings.Lines(string(text)) {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		all = append(all, mountField{l[4], r[0]})
	}
	return all
}

func (d *Daemon) unmountAll() error {
	var errs []error
	all := mountFields()
	slices.SortFunc(all, func(a, b mountField) int { return -cmp.Compare(len(a.point), len(b.point)) })
	for _, f := range all {
		if d.owns(f.point) {
			if err := unix.Unmount(f.point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				errs = append(errs, fmt.Errorf("unmount %s: %w", f.point, err))
			}
		}
	}
	return errors.Join(errs...)
}

func links(context.Context) ([]string, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var lines []string
	for _, l := range all {
		lines = append(lines, fmt.Sprintf("%s %s master=%q %s", l.Attrs().Name, l.Type(), names[l.Attrs().MasterIndex], l.Attrs().Flags&^net.FlagRunning)) // follows a bridge's ports
	}
	slices.Sort(lines)
	return lines, nil
}

func addresses(context.Context) ([]string, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, a := range all {
		if !a.IP.IsLinkLocalUnicast() { // a bridge's follows its ports
			lines = append(lines, a.IPNet.String()+" "+a.Label)
		}
	}
	slices.Sort(lines)
	return lines, nil
}

func routes(context.Context) ([]string, error) {
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, r := range all {
		if r.Table == unix.RT_TABLE_LOCAL || r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
			continue // follow the addresses, and a bridge's carrier
		}
		lines = append(lines, fmt.Sprintf("%v via %v table %d type %d", r.Dst, r.Gw, r.Table, r.Type))
	}
	slices.Sort(lines)
	return lines, nil
}

var counters = regexp.MustCompile(`counter packets \d+ bytes \d+|\[\d+:\d+\]|(?m)^#.*\n`)

// emptyMasquerade is the table that the bridge plugin makes with the first pod
// of any daemon and keeps for all later ones, as it is without a rule of a pod.
const emptyMasquerade = `table inet cni_plugins_masquerade {
	comment "Masquerading for plugins from github.com/containernetworking/plugins"
	chain masq_checks {
		comment "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr 224.0.0.0/4 return
		ip6 daddr ff00::/8 return
		goto masq_checks
	}
}`

func nftables(ctx context.Context) ([]string, error) {
	lines, err := rules(ctx, "nft", "list", "ruleset")
	return withoutEmptyMasquerade(lines), err
}

// withoutEmptyMasquerade leaves the table out where it holds no rule of a pod;
// tests of several daemons share the machine, and any of them may make it.
func withoutEmptyMasquerade(lines []string) []string {
	table := strings.Split(emptyMasquerade, "\n")
	i := slices.Index(lines, table[0])
	if i < 0 || len(lines) < i+len(table) || !slices.Equal(lines[i:i+len(table)], table) {
		return lines
	}
	return slices.Delete(slices.Clone(lines), i, i+len(table))
}

func iptables(ctx context.Context) ([]string, error) {
	v4, err := rules(ctx, "iptables-save")
	if err != nil {
		return nil, err
	}
	v6, err := rules(ctx, "ip6tables-save")
	return append(v4, v6...), err
}

// rules keep their order, which means something.
func rules(ctx context.Context, name string, args ...string) ([]string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, stderr.String())
	}
	text := strings.TrimSpace(counters.ReplaceAllString(string(out), ""))
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, "\n"), nil
}

func (d *Daemon) removeBridge() error {
	l, err := netlink.LinkByName(d.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// stores is what containerd keeps, after a collection of its garbage: what
// nothing refers to is no leak.
func (d *Daemon) stores(ctx context.Context) (_ []string, err error) {
	client, err := d.Containerd()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return nil, err
	}
	if err := client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		return nil, err
	}
	var lines []string
	add := func(kind, id string) { lines = append(lines, kind+" "+id) }
	held, err := client.LeasesService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range held {
		add("lease", l.ID)
	}
	images, err := client.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range images {
		add("image", i.Name)
	}
	containers, err := client.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		add("container", c.ID)
	}
	running, err := client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	for _, t := range running.Tasks {
		add("task", t.ID)
	}
	err = client.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		add("snapshot", i.Kind.String()+" "+i.Name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = client.ContentStore().Walk(ctx, func(i content.Info) error {
		add("content", i.Digest.String())
		return nil
	})
	if err != nil {
		return nil, err
	}
	ingests, err := client.ContentStore().ListStatuses(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range ingests {
		add("ingest", i.Ref)
	}
	slices.Sort(lines)
	return lines, nil
}

// volatile are files that come and go by themselves: databases' side files,
// sockets' peers, host-local's cursor.
var volatile = regexp.MustCompile(`(\.db-(wal|shm|journal)|/last_reserved_ip\.\d+|/lock|/lockfile)$`)

// files are the names below the daemon's directories. A snapshot's own files
// are containerd's, and the test's own are not the daemon's.
func (d *Daemon) files() ([]string, error) {
	var lines []string
	for _, dir := range []string{d.Root, d.State, d.IPAM, d.Base + "/containerd", "/run/containerd", "/run/netns"} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // not there, or gone meanwhile
			}
			if err != nil {
				return err
			}
			if e.IsDir() && filepath.Base(filepath.Dir(path)) == "snapshots" {
				lines = append(lines, path+" snapshot")
				return fs.SkipDir
			}
			if volatile.MatchString(path) {
				return nil
			}
			// A shim that an external containerd lost leaves its socket there:
			// containerd's own, which berth does not touch.
			if e.Type()&fs.ModeSocket != 0 && filepath.Base(filepath.Dir(path)) == "s" && strings.Contains(path, "/external/") {
				return nil
			}
			lines = append(lines, path+" "+e.Type().String())
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(lines)
	return lines, nil
}
