package spec

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// input is a container as a kubelet asks for it, on a machine that has it all.
func input() Input {
	return Input{
		ID: strings.Repeat("c", 64), SandboxID: strings.Repeat("5", 64),
		Sandbox: &runtime.PodSandboxConfig{
			Metadata: &runtime.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "b2d2"},
			Hostname: "web",
			Linux:    &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}}},
		},
		Container: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "main"},
			Image:    &runtime.ImageSpec{Image: "sha256:1234"},
			Linux: &runtime.LinuxContainerConfig{
				Resources: &runtime.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
				SecurityContext: &runtime.LinuxContainerSecurityContext{
					NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
					MaskedPaths:      []string{"/proc/asound", "/proc/kcore"},
					ReadonlyPaths:    []string{"/proc/bus", "/proc/sys"},
				},
			},
		},
		Image:       &ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"default"}, Env: []string{"PATH=/bin", "A=image", "B=x=y"}, WorkingDir: "/srv"},
		ImageName:   "registry.example/web:1",
		Namespaces:  Namespaces{Net: "/ns/net", IPC: "/ns/ipc", UTS: "/ns/uts"},
		CgroupsPath: "/kubepods/podb2d2/" + strings.Repeat("c", 64),
		Hostname:    "/sandbox/hostname", Hosts: "/sandbox/hosts", ResolvConf: "/sandbox/resolv.conf", Shm: "/sandbox/shm",
		User:   User{AdditionalGIDs: []uint32{0}},
		Kernel: Kernel{Hostname: "node", CgroupVersion: 2, CgroupOptions: []string{"nsdelegate"}, SwapAccounting: true, HugePages: []string{"2MB", "1GB"}, Seccomp: true, RecursiveReadOnly: true},
	}
}

func sc(in *Input) *runtime.LinuxContainerSecurityContext { return in.Container.Linux.SecurityContext }

func privileged(in *Input) {
	in.Sandbox.Linux.SecurityContext.Privileged = true
	sc(in).Privileged = true
}

func ptr[T any](v T) *T { return &v }

func mountOf(path string) (*runtime.Mount, HostPath) {
	return &runtime.Mount{ContainerPath: path, HostPath: "/host" + path}, HostPath{Path: "/host" + path, MountPoint: "/host", Propagation: Shared}
}

// withMounts adds mounts at paths; change is called with each.
func withMounts(in *Input, change func(*runtime.Mount), paths ...string) {
	for _, p := range paths {
		m, host := mountOf(p)
		if change != nil {
			change(m)
		}
		in.Container.Mounts = append(in.Container.Mounts, m)
		in.Host.Mounts = append(in.Host.Mounts, host)
	}
}

func withDevice(in *Input, path, permissions string, nodes ...specs.LinuxDevice) {
	in.Container.Devices = append(in.Container.Devices, &runtime.Device{HostPath: path, ContainerPath: path, Permissions: permissions})
	in.Host.Devices = append(in.Host.Devices, nodes)
}

func node(path string, major, minor int64) specs.LinuxDevice {
	return specs.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor, FileMode: ptr(os.FileMode(0o660)), UID: ptr(uint32(0)), GID: ptr(uint32(5))}
}

var golden = map[string]func(*Input){
	"plain":       func(*Input) {},
	"nothing-set": func(in *Input) { *in = minimal(*in) },
	"kubelet": func(in *Input) {
		c := in.Container
		c.Command, c.Args, c.WorkingDir, c.Tty, c.Stdin = []string{"/server"}, []string{"-v"}, "/data/", true, true
		c.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("container")}, {Key: "OPTS", Value: []byte("k=v=w")}, {Key: "EMPTY"}, {Key: "HOSTNAME", Value: []byte("mine")}}
		withMounts(in, nil, "/var/run/secrets/kubernetes.io/serviceaccount", "/data", "/etc/hosts/", "/dev/termination-log")
		c.Mounts[0].Readonly = true
		in.Volumes = []Volume{{"/cache", "/volumes/1"}}
		in.User = User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 2000}}
		c.Linux.Resources = &runtime.LinuxContainerResources{
			CpuShares: 102, CpuQuota: 10000, CpuPeriod: 100000, CpusetCpus: "0-1", CpusetMems: "0", MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900,
			HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
			Unified:        map[string]string{"memory.high": "50000000"},
		}
		sc(in).ReadonlyRootfs, sc(in).NoNewPrivs = true, true
		sc(in).Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}}
		sc(in).Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		in.Sandbox.Annotations = map[string]string{"io.example/a": "pod", "other": "no"}
		c.Annotations = map[string]string{"io.example.c": "container", "other": "no"}
		in.PodAnnotations, in.ContainerAnnotations = []string{"io.example/*"}, []string{"io.example.*"}
	},
	"privileged": func(in *Input) {
		privileged(in)
		sc(in).Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
		sc(in).Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		in.Host.AllDevices = []specs.LinuxDevice{node("/dev/fuse", 10, 229), node("/dev/kvm", 10, 232)}
		withDevice(in, "/dev/kvm", "r", node("/dev/kvm", 1, 3))
	},
	"privileged-without-host-devices": func(in *Input) {
		privileged(in)
		in.PrivilegedWithoutHostDevices = true
		withDevice(in, "/dev/kvm", "rw", node("/dev/kvm", 10, 232))
	},
	"host-namespaces": func(in *Input) {
		o := &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Ipc: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_NODE}
		in.Sandbox.Linux.SecurityContext.NamespaceOptions, sc(in).NamespaceOptions = o, o
		in.Namespaces, in.Sandbox.Hostname = Namespaces{}, ""
	},
	"pod-pid": func(in *Input) {
		o := &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
		in.Sandbox.Linux.SecurityContext.NamespaceOptions, sc(in).NamespaceOptions = o, o
		in.Namespaces.PID = "/ns/pid"
	},
	"target-pid": func(in *Input) {
		sc(in).NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: "other"}
		in.Namespaces.PID = "/proc/42/ns/pid"
	},
	"cgroup-v1": func(in *Input) {
		in.Kernel.CgroupVersion, in.Kernel.CgroupOptions, in.Kernel.SwapAccounting, in.Kernel.HugePages = 1, nil, false, nil
		in.Container.Linux.Resources = &runtime.LinuxContainerResources{
			MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20,
			HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 30}},
			Unified:        map[string]string{"pids.max": "7"},
		}
	},
	"mounts": func(in *Input) {
		in.Image.Volumes = map[string]struct{}{"/v": {}}
		in.Volumes = []Volume{{"/v", "/volumes/v"}, {"/deep/er/v", "/volumes/dv"}}
		withMounts(in, nil, "/deep/er", "/etc/resolv.conf", "/etc", "/deep", "/v", "/dev/shm", "/sys/fs/cgroup")
		in.Container.Mounts[0].Propagation = runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		in.Container.Mounts[2].Propagation = runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
		in.Container.Mounts[3].Readonly, in.Container.Mounts[3].RecursiveReadOnly = true, true
		in.Container.Mounts[3].MountOptions = []string{"noexec", "nosuid"}
	},
	"mounts-over-dev-and-sys": func(in *Input) { withMounts(in, nil, "/sys", "/dev") },
	"user-namespace": func(in *Input) {
		inUserNamespace(in)
		withMounts(in, mappedMount, "/data", "/etc/hosts")
	},
	"user-namespace-host-network": func(in *Input) {
		inUserNamespace(in)
		in.Sandbox.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
		in.Namespaces.Net, in.Namespaces.UTS = "", ""
	},
	"image-volumes": func(in *Input) {
		withMounts(in, imageMount, "/models", "/bin/tools")
		in.Container.Mounts[1].ImageSubPath, in.Container.Mounts[1].RecursiveReadOnly = "bin", true
		in.Container.Mounts[1].MountOptions = []string{"exec", "nodev"}
	},
	"devices": func(in *Input) {
		withDevice(in, "/dev/fuse", "rw", node("/dev/fuse", 10, 229))
		withDevice(in, "/dev/snd", "m", node("/dev/snd/a", 116, 1), node("/dev/snd/b", 116, 2))
	},
	"security": func(in *Input) {
		in.Kernel.AppArmor = true
		in.AppArmorDefault = "berth-default"
		sc(in).Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/profiles/p.json"}
		in.Host.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","comment":"x","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`)
		sc(in).Capabilities = &runtime.Capability{AddCapabilities: []string{"cap_sys_time"}, DropCapabilities: []string{"chown"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	},
	"poor-machine": func(in *Input) {
		in.Kernel.Capabilities = []string{"CAP_CHOWN", "CAP_KILL"}
		in.Kernel.OOMScoreAdj = 5
		in.Container.Linux.Resources.OomScoreAdj = -998
		sc(in).Capabilities = &runtime.Capability{AddCapabilities: []string{"ALL"}}
		sc(in).SelinuxOptions = &runtime.SELinuxOption{Type: "spc_t"}
		in.Image.Env = append(in.Image.Env, "NOVALUE")
	},
}

// minimal is what a bare CRI client may send.
func minimal(in Input) Input {
	return Input{
		ID: in.ID, SandboxID: in.SandboxID, Kernel: in.Kernel,
		Sandbox:    &runtime.PodSandboxConfig{Metadata: in.Sandbox.Metadata},
		Container:  &runtime.ContainerConfig{Metadata: in.Container.Metadata, Args: []string{"/bin/true"}},
		Namespaces: Namespaces{Net: "/ns/net", IPC: "/ns/ipc", UTS: "/ns/uts", PID: "/ns/pid"},
	}
}

func TestContainerGolden(t *testing.T) {
	for name, change := range golden {
		t.Run(name, func(t *testing.T) {
			in, again := input(), input()
			change(&in)
			change(&again)
			s, warnings, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(again, in, protocmp.Transform()); diff != "" {
				t.Errorf("the input was changed:\n%s", diff)
			}
			checkGolden(t, filepath.Join("testdata", name+".json"), render(t, s, warnings))
		})
	}
}

// render shows a spec and its warnings. The default seccomp profile depends on
// the kernel, so it is named, not shown.
func render(t *testing.T, s *specs.Spec, warnings []string) []byte {
	t.Helper()
	shown := struct {
		Warnings []string    `json:"warnings,omitempty"`
		Seccomp  string      `json:"seccomp,omitempty"`
		Spec     *specs.Spec `json:"spec"`
	}{Warnings: warnings, Spec: s}
	if s.Linux.Seccomp != nil && reflect.DeepEqual(s.Linux.Seccomp, seccomp.DefaultProfile(s)) {
		shown.Seccomp, s.Linux.Seccomp = "containerd's default profile for these capabilities", nil
	}
	out, err := json.MarshalIndent(shown, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

func checkGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", file, diff)
	}
}

// TestContainerRefuses: kind and the words that tell which field, and what of it.
func TestContainerRefuses(t *testing.T) {
	invalid, missing, todo := errdefs.IsInvalidArgument, errdefs.IsFailedPrecondition, errdefs.IsNotImplemented
	for name, tc := range map[string]struct {
		change func(*Input)
		kind   func(error) bool
		words  string
	}{
		"no configurations": {func(in *Input) { in.Container = nil }, invalid, "required"},
		"no command":        {func(in *Input) { in.Image = nil }, invalid, "no command"},
		"empty command":     {func(in *Input) { in.Container.Command = []string{""} }, invalid, "command"},
		"NUL in args":       {func(in *Input) { in.Container.Args = []string{"a\x00"} }, invalid, "element 1"},
		"env key": {func(in *Input) {
			in.Container.Envs = []*runtime.KeyValue{{Key: "A"}, {Key: "B=C"}}
		}, invalid, `envs[1].key: "B=C"`},
		"env value": {func(in *Input) {
			in.Container.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("\xff")}}
		}, invalid, "envs[0].value"},
		"working dir":               {func(in *Input) { in.Container.WorkingDir = "x" }, invalid, `working_dir: "x"`},
		"privileged":                {func(in *Input) { sc(in).Privileged = true }, invalid, "linux.security_context.privileged"},
		"CDI":                       {func(in *Input) { in.Container.CDIDevices = []*runtime.CDIDevice{{Name: "a/b=c"}, {Name: "gpu0"}} }, invalid, `CDI_devices[1].name: "gpu0"`},
		"CDI annotation":            {func(in *Input) { in.Container.Annotations = map[string]string{"cdi.k8s.io/x": "a/b=c,d"} }, invalid, `annotations["cdi.k8s.io/x"]: "d"`},
		"user namespace of its own": {func(in *Input) { sc(in).NamespaceOptions.UsernsOptions = usernsOptions() }, invalid, "without a user namespace"},
		"user namespace left": {func(in *Input) {
			inUserNamespace(in)
			sc(in).NamespaceOptions.UsernsOptions.Mode = runtime.NamespaceMode_NODE
		}, invalid, "userns_options.mode: NODE"},
		"other mappings":         {func(in *Input) { inUserNamespace(in); sc(in).NamespaceOptions.UsernsOptions.Gids[0].Length = 7 }, invalid, "not those"},
		"user not mapped":        {func(in *Input) { inUserNamespace(in); in.User.UID = 65536 }, invalid, "user 65536"},
		"group not mapped":       {func(in *Input) { inUserNamespace(in); in.User.AdditionalGIDs = []uint32{0, 65536} }, invalid, "group 65536"},
		"unknown capability":     {func(in *Input) { sc(in).Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL", "FLY"}} }, invalid, `drop_capabilities[1]: "FLY"`},
		"capability not ours":    {func(in *Input) { poor(in, "SYS_ADMIN") }, missing, "CAP_SYS_ADMIN"},
		"host network in pod":    {func(in *Input) { sc(in).NamespaceOptions.Network = runtime.NamespaceMode_NODE }, invalid, "namespace_options.network"},
		"host IPC in pod":        {func(in *Input) { sc(in).NamespaceOptions.Ipc = runtime.NamespaceMode_NODE }, invalid, "namespace_options.ipc"},
		"host PID in pod":        {func(in *Input) { sc(in).NamespaceOptions.Pid = runtime.NamespaceMode_NODE }, invalid, "namespace_options.pid"},
		"pod PID without":        {func(in *Input) { sc(in).NamespaceOptions.Pid = runtime.NamespaceMode_POD }, invalid, "namespace_options.pid"},
		"target without ID":      {func(in *Input) { sc(in).NamespaceOptions.Pid = runtime.NamespaceMode_TARGET }, invalid, "target_id"},
		"unknown PID mode":       {func(in *Input) { sc(in).NamespaceOptions.Pid = 9 }, invalid, "9"},
		"pod PID gone":           {func(in *Input) { golden["pod-pid"](in); in.Namespaces.PID = "" }, missing, "gone"},
		"image mount, writable":  {func(in *Input) { withMounts(in, imageMount, "/m"); in.Container.Mounts[0].Readonly = false }, invalid, "mounts[0].readonly"},
		"image mount, shared":    {func(in *Input) { withMounts(in, imageMount, "/m"); in.Container.Mounts[0].Propagation = 2 }, invalid, "mounts[0].propagation"},
		"image mount, no name":   {func(in *Input) { withMounts(in, imageMount, "/m"); in.Container.Mounts[0].Image.Image = "" }, invalid, "mounts[0].image.image"},
		"image mount, sub path":  {func(in *Input) { withMounts(in, imageMount, "/m"); in.Container.Mounts[0].ImageSubPath = "a/../../b" }, invalid, "mounts[0].image_sub_path"},
		"relative mount":         {func(in *Input) { withMounts(in, func(m *runtime.Mount) { m.ContainerPath = "m" }, "/m") }, invalid, `mounts[0].container_path: "m"`},
		"mount over root":        {func(in *Input) { withMounts(in, func(m *runtime.Mount) { m.ContainerPath = "/x/.." }, "/m") }, invalid, "mounts[0].container_path"},
		"relative host path":     {func(in *Input) { withMounts(in, func(m *runtime.Mount) { m.HostPath = "m" }, "/m") }, invalid, `mounts[0].host_path: "m"`},
		"mounted twice":          {func(in *Input) { withMounts(in, nil, "/m", "/m/") }, invalid, `mounts[1].container_path: "/m/"`},
		"mappings of users only": {func(in *Input) { withMounts(in, mappedMount, "/m"); in.Container.Mounts[0].GidMappings = nil }, invalid, "gidMappings: 0 mappings"},
		"mount option": {func(in *Input) {
			withMounts(in, func(m *runtime.Mount) { m.MountOptions = []string{"nodev", "bind"} }, "/m")
		}, invalid, `mount_options[1]: "bind"`},
		"private to slave":    {func(in *Input) { propagate(in, runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, Private) }, missing, "mounts[0].propagation"},
		"slave to shared":     {func(in *Input) { propagate(in, runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL, Slave) }, missing, "make-rshared /host"},
		"unknown propagation": {func(in *Input) { propagate(in, 7, Shared) }, invalid, "7"},
		"rro not ro":          {func(in *Input) { withMounts(in, func(m *runtime.Mount) { m.RecursiveReadOnly = true }, "/m") }, invalid, "recursive_read_only"},
		"rro shared":          {func(in *Input) { withMounts(in, rro, "/m"); in.Container.Mounts[0].Propagation = 2 }, invalid, "PROPAGATION_PRIVATE"},
		"rro without kernel":  {func(in *Input) { withMounts(in, rro, "/m"); in.Kernel.RecursiveReadOnly = false }, missing, "RROUnsupported"},
		"permissions":         {func(in *Input) { withDevice(in, "/dev/x", "rx") }, invalid, `devices[0].permissions: "rx"`},
		"no permissions":      {func(in *Input) { withDevice(in, "/dev/x", "") }, invalid, "devices[0].permissions"},
		"relative device":     {func(in *Input) { withDevice(in, "dev/x", "r") }, invalid, "devices[0].host_path"},
		"masked path":         {func(in *Input) { sc(in).MaskedPaths = []string{"/a", "b"} }, invalid, `masked_paths[1]: "b"`},
		"hugepage size": {func(in *Input) {
			in.Container.Linux.Resources.HugepageLimits = []*runtime.HugepageLimit{{PageSize: "3MB"}}
		}, invalid, "hugepage_limits[0]"},
		"unified on v1":       {func(in *Input) { in.Kernel.CgroupVersion = 1; unified(in, "memory.high", "1") }, invalid, `unified["memory.high"]`},
		"pids.max on v1":      {func(in *Input) { in.Kernel.CgroupVersion = 1; unified(in, "pids.max", "x") }, invalid, `linux.resources.unified["pids.max"]: "x"`},
		"seccomp absent":      {func(in *Input) { in.Kernel.Seccomp = false; secure(in, 0, "") }, missing, "no seccomp"},
		"seccomp ref":         {func(in *Input) { secure(in, 0, "/x") }, invalid, "localhost_ref"},
		"seccomp without ref": {func(in *Input) { secure(in, 2, "") }, invalid, "localhost_ref"},
		"seccomp type":        {func(in *Input) { secure(in, 5, "") }, invalid, "profile_type: 5"},
		"seccomp empty":       {func(in *Input) { secure(in, 2, "/p") }, invalid, "profile /p: it is empty"},
		"seccomp no action":   {func(in *Input) { secure(in, 2, "/p"); in.Host.SeccompProfile = []byte(`{"syscalls":[]}`) }, invalid, "defaultAction"},
		"seccomp bad op":      {func(in *Input) { secure(in, 2, "/p"); in.Host.SeccompProfile = []byte(badOperator) }, invalid, "syscalls[0].args[0]"},
		"seccomp rest": {func(in *Input) {
			secure(in, 2, "/p")
			in.Host.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_LOG"} {}`)
		}, invalid, "JSON"},
		"seccomp old field":        {func(in *Input) { sc(in).SeccompProfilePath = "nonsense" }, invalid, "seccomp_profile_path"},
		"apparmor absent":          {func(in *Input) { sc(in).Apparmor = &runtime.SecurityProfile{} }, missing, "no AppArmor"},
		"apparmor absent, old":     {func(in *Input) { sc(in).ApparmorProfile = "localhost/p" }, missing, "no AppArmor"},
		"apparmor without default": {func(in *Input) { in.Kernel.AppArmor = true; sc(in).Apparmor = &runtime.SecurityProfile{} }, missing, "apparmor_parser"},
		"selinux without labels":   {func(in *Input) { in.Kernel.SELinux = true; sc(in).SelinuxOptions = &runtime.SELinuxOption{Level: "s0"} }, todo, "selinux_options"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			tc.change(&in)
			_, _, err := Container(in)
			if err == nil || !tc.kind(err) || !strings.Contains(err.Error(), tc.words) {
				t.Fatalf("got %v, want the right kind and %q", err, tc.words)
			}
		})
	}
}

const badOperator = `{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":1,"op":"=="}]}]}`

func poor(in *Input, add string) {
	in.Kernel.Capabilities = []string{"CAP_KILL"}
	sc(in).Capabilities = &runtime.Capability{AddCapabilities: []string{add}}
}

func imageMount(m *runtime.Mount) {
	m.HostPath, m.Image, m.Readonly = "", &runtime.ImageSpec{Image: "x"}, true
}

func mappings() []*runtime.IDMapping { return []*runtime.IDMapping{{HostId: 655360, Length: 65536}} }

func mappedMount(m *runtime.Mount) { m.UidMappings, m.GidMappings = mappings(), mappings() }

func usernsOptions() *runtime.UserNamespace {
	return &runtime.UserNamespace{Uids: mappings(), Gids: mappings()}
}

// inUserNamespace is a container of a pod with hostUsers: false, as a kubelet
// asks for it.
func inUserNamespace(in *Input) {
	in.Sandbox.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usernsOptions()
	sc(in).NamespaceOptions.UsernsOptions = usernsOptions()
	in.Namespaces.User = "/ns/user"
}

func rro(m *runtime.Mount) { m.Readonly, m.RecursiveReadOnly = true, true }

func propagate(in *Input, p runtime.MountPropagation, host Propagation) {
	withMounts(in, func(m *runtime.Mount) { m.Propagation = p }, "/m")
	in.Host.Mounts[0].Propagation = host
}

func unified(in *Input, key, value string) {
	in.Container.Linux.Resources.Unified = map[string]string{key: value}
}

func secure(in *Input, kind runtime.SecurityProfile_ProfileType, ref string) {
	sc(in).Seccomp = &runtime.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
}

func TestArgs(t *testing.T) {
	for _, tc := range []struct{ command, args, entrypoint, cmd, want []string }{
		{nil, nil, []string{"e"}, []string{"c"}, []string{"e", "c"}},
		{nil, []string{"a"}, []string{"e"}, []string{"c"}, []string{"e", "a"}},
		{[]string{"x"}, nil, []string{"e"}, []string{"c"}, []string{"x"}},
		{[]string{"x"}, []string{"a"}, []string{"e"}, []string{"c"}, []string{"x", "a"}},
		{nil, nil, nil, []string{"c", "d"}, []string{"c", "d"}},
		{nil, nil, []string{""}, []string{"c"}, []string{"c"}},
		{nil, []string{"a"}, nil, []string{"c"}, []string{"a"}},
	} {
		got, err := args(&runtime.ContainerConfig{Command: tc.command, Args: tc.args}, &ocispec.ImageConfig{Entrypoint: tc.entrypoint, Cmd: tc.cmd})
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%+v: got %q, %v", tc, got, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	all := len(known)
	for name, tc := range map[string]struct {
		c       *runtime.Capability
		has     []string
		lacks   []string
		ambient int
		count   int
	}{
		"default":          {nil, []string{"CAP_CHOWN"}, []string{"CAP_SYS_ADMIN"}, 0, len(defaultCapabilities)},
		"add all":          {&runtime.Capability{AddCapabilities: []string{"ALL"}}, []string{"CAP_SYS_ADMIN"}, nil, 0, all},
		"add all but":      {&runtime.Capability{AddCapabilities: []string{"all"}, DropCapabilities: []string{"CAP_CHOWN"}}, nil, []string{"CAP_CHOWN"}, 0, all - 1},
		"drop all":         {&runtime.Capability{DropCapabilities: []string{"ALL"}}, nil, []string{"CAP_CHOWN"}, 0, 0},
		"drop all, add":    {&runtime.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"kill"}}, []string{"CAP_KILL"}, nil, 0, 1},
		"drop wins":        {&runtime.Capability{DropCapabilities: []string{"KILL"}, AddCapabilities: []string{"KILL"}}, nil, []string{"CAP_KILL"}, 0, len(defaultCapabilities) - 1},
		"ambient":          {&runtime.Capability{AddAmbientCapabilities: []string{"SYS_TIME"}}, []string{"CAP_SYS_TIME"}, nil, 1, len(defaultCapabilities) + 1},
		"ambient dropped":  {&runtime.Capability{AddAmbientCapabilities: []string{"KILL"}, DropCapabilities: []string{"KILL"}}, nil, []string{"CAP_KILL"}, 0, len(defaultCapabilities) - 1},
		"ambient all":      {&runtime.Capability{AddAmbientCapabilities: []string{"ALL"}}, []string{"CAP_SYS_ADMIN"}, nil, all, all},
		"all and all drop": {&runtime.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"ALL"}}, nil, []string{"CAP_CHOWN"}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			sc(&in).Capabilities = tc.c
			s, _, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			c := s.Process.Capabilities
			if len(c.Bounding) != tc.count || len(c.Ambient) != tc.ambient || len(c.Inheritable) != tc.ambient {
				t.Errorf("%d capabilities, %d ambient, %d inheritable; want %d, %d, %d", len(c.Bounding), len(c.Ambient), len(c.Inheritable), tc.count, tc.ambient, tc.ambient)
			}
			for _, name := range tc.has {
				if !strings.Contains(strings.Join(c.Effective, " ")+" ", name+" ") {
					t.Errorf("%s is missing in %v", name, c.Effective)
				}
			}
			for _, name := range tc.lacks {
				if strings.Contains(strings.Join(c.Permitted, " ")+" ", name+" ") {
					t.Errorf("%s is in %v", name, c.Permitted)
				}
			}
			if diff := cmp.Diff([][]string{c.Bounding, c.Bounding}, [][]string{c.Effective, c.Permitted}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestVolumePaths(t *testing.T) {
	image := &ocispec.ImageConfig{Volumes: map[string]struct{}{"/b/": {}, "/b": {}, "a": {}, "/taken": {}, "/": {}, "/dev/shm": {}}}
	c := &runtime.ContainerConfig{Mounts: []*runtime.Mount{{ContainerPath: "/taken/"}}}
	if got, want := VolumePaths(image, c), []string{"/a", "/b"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := VolumePaths(nil, c); got != nil {
		t.Errorf("got %q for no image", got)
	}
}

func TestExecProcess(t *testing.T) {
	s := &specs.Spec{Process: &specs.Process{Terminal: true, Args: []string{"old"}, Env: []string{"A=b"}, Cwd: "/w", User: specs.User{UID: 7}}}
	p, err := ExecProcess(s, []string{"ls", "-l"}, true)
	if err != nil {
		t.Fatal(err)
	}
	want := &specs.Process{Terminal: true, Args: []string{"ls", "-l"}, Env: []string{"A=b", "TERM=xterm"}, Cwd: "/w", User: specs.User{UID: 7}}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
	if p, err = ExecProcess(s, []string{"ls"}, false); err != nil || p.Terminal || len(p.Env) != 1 {
		t.Errorf("got %+v, %v", p, err)
	}
	if len(s.Process.Env) != 1 || s.Process.Args[0] != "old" {
		t.Errorf("the spec was changed: %+v", s.Process)
	}
	if _, err := ExecProcess(s, nil, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v for no command", err)
	}
}

// BenchmarkContainer is the whole of a kubelet's container, with the default
// seccomp profile, encoded as it goes to the runtime.
func BenchmarkContainer(b *testing.B) {
	in := input()
	golden["kubelet"](&in)
	for b.Loop() {
		s, _, err := Container(in)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := json.Marshal(s); err != nil {
			b.Fatal(err)
		}
	}
}
