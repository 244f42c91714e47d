package cri

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// goodSandbox is a pod as a kubelet sends it.
func goodSandbox() *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: "web-0", Namespace: "default", Uid: "5c0a-11"},
		Hostname:     "web-0.example.org",
		LogDirectory: "/var/log/pods/default_web-0_5c0a-11",
		DnsConfig:    &runtime.DNSConfig{Servers: []string{"10.0.0.10", "fe80::1%eth0"}, Searches: []string{"svc.cluster.local", "."}, Options: []string{"ndots:5"}},
		PortMappings: []*runtime.PortMapping{{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 80, HostPort: 8080, Protocol: runtime.Protocol_UDP}, {ContainerPort: 81}, {ContainerPort: 81}},
		Labels:       map[string]string{"app": "web"},
		Annotations:  map[string]string{"a": strings.Repeat("x", 256<<10)},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/besteffort/pod5c0a-11",
			Sysctls:      map[string]string{"net.ipv4.ip_local_port_range": "1024 65000", "kernel/shm_rmid_forced": "1", "net/ipv4/conf/eno2.100/rp_filter": "0"},
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER, UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}},
			},
		},
	}
}

// goodContainer is a container as a kubelet sends it.
func goodContainer() *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "main"}, Image: &runtime.ImageSpec{Image: "sha256:0123"},
		Command: []string{"/server"}, Args: []string{""}, Envs: []*runtime.KeyValue{{Key: "A", Value: []byte("b=c")}},
		Mounts:  []*runtime.Mount{{ContainerPath: "/data", HostPath: "/srv/data"}},
		Devices: []*runtime.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rwm"}},
		LogPath: "main/0.log", StopSignal: runtime.Signal_SIGNAL_SIGRTMAX,
		Linux: &runtime.LinuxContainerConfig{
			Resources: goodResources(),
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
				Capabilities:     &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}},
			},
		},
	}
}

func goodResources() *runtime.LinuxContainerResources {
	return &runtime.LinuxContainerResources{
		CpuShares: 2, CpuQuota: -1, CpuPeriod: 100000, CpusetCpus: "0-1,3", CpusetMems: "0", MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 100, OomScoreAdj: -997,
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 30}},
		Unified:        map[string]string{"memory.high": "7", "hugetlb.2MB.max": "max"},
	}
}

// refusal checks the kind of err and that it begins with the field and says
// the words.
func refusal(t *testing.T, err error, field string, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one for %s", field)
	}
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v: it is not an invalid argument", err)
	}
	if !strings.HasPrefix(err.Error(), field+": ") {
		t.Errorf("%v: it does not begin with %s", err, field)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v: it does not say %q", err, w)
		}
	}
	if len(err.Error()) > 1000 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

func TestValidateID(t *testing.T) {
	for _, id := range []string{"x", strings.Repeat("a", 64), "no such thing"} {
		if err := validateID("container_id", id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	refusal(t, validateID("container_id", ""), "container_id", "required")
	refusal(t, validateID("container_id", strings.Repeat("a", 5000)), "container_id", "5000 bytes")
}

func TestValidateSandbox(t *testing.T) {
	if err := validateSandboxConfig(goodSandbox()); err != nil {
		t.Fatal(err)
	}
	bare := &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}}
	if err := validateSandboxConfig(bare); err != nil {
		t.Errorf("a bare client's: %v", err)
	}
	refusal(t, validateSandboxConfig(nil), "config")
	type config = runtime.PodSandboxConfig
	options := func(c *config) *runtime.NamespaceOption { return c.Linux.SecurityContext.NamespaceOptions }
	sysctl := func(key, value string) func(*config) {
		return func(c *config) { c.Linux.Sysctls = map[string]string{key: value} }
	}
	onHost := func(change func(*config)) func(*config) {
		return func(c *config) {
			options(c).Network, options(c).Ipc = runtime.NamespaceMode_NODE, runtime.NamespaceMode_NODE
			change(c)
		}
	}
	port := func(p *runtime.PortMapping) func(*config) {
		return func(c *config) { c.PortMappings = []*runtime.PortMapping{{ContainerPort: 1, HostPort: 1}, p} }
	}
	parent := func(p string) func(*config) { return func(c *config) { c.Linux.CgroupParent = p } }
	for name, tc := range map[string]struct {
		change func(*config)
		field  string
		words  string
	}{
		"no metadata":          {func(c *config) { c.Metadata = nil }, "metadata", "required"},
		"no name":              {func(c *config) { c.Metadata.Name = "" }, "metadata.name", "required"},
		"no namespace":         {func(c *config) { c.Metadata.Namespace = "" }, "metadata.namespace", "required"},
		"no uid":               {func(c *config) { c.Metadata.Uid = "" }, "metadata.uid", "required"},
		"name with ;":          {func(c *config) { c.Metadata.Name = "a;K8S_POD_NAMESPACE=b" }, "metadata.name", "';'"},
		"name with a newline":  {func(c *config) { c.Metadata.Name = "a\nb" }, "metadata.name", `'\n'`},
		"name with a slash":    {func(c *config) { c.Metadata.Namespace = "a/b" }, "metadata.namespace", "'/'"},
		"long name":            {func(c *config) { c.Metadata.Name = strings.Repeat("n", 254) }, "metadata.name", "longer"},
		"long hostname":        {func(c *config) { c.Hostname = strings.Repeat("h", 65) }, "hostname", "64"},
		"hostname with space":  {func(c *config) { c.Hostname = "a b" }, "hostname", `"a b"`},
		"hostname with dash":   {func(c *config) { c.Hostname = "-a" }, "hostname", `"-a"`},
		"relative logs":        {func(c *config) { c.LogDirectory = "logs" }, "log_directory", "absolute"},
		"DNS server":           {func(c *config) { c.DnsConfig.Servers[1] = "dns.example.org" }, "dns_config.servers[1]", "IP address"},
		"DNS servers":          {func(c *config) { c.DnsConfig.Servers = many("1.1.1.1", 33) }, "dns_config.servers", "33"},
		"DNS search injection": {func(c *config) { c.DnsConfig.Searches = []string{"a\nnameserver 6.6.6.6"} }, "dns_config.searches[0]", "spaces"},
		"DNS empty search":     {func(c *config) { c.DnsConfig.Searches = []string{""} }, "dns_config.searches[0]", `""`},
		"DNS searches":         {func(c *config) { c.DnsConfig.Searches = many("a", 33) }, "dns_config.searches", "33"},
		"DNS searches' length": {func(c *config) { c.DnsConfig.Searches = many(strings.Repeat("a", 200), 11) }, "dns_config.searches", "2048"},
		"DNS option":           {func(c *config) { c.DnsConfig.Options = []string{"ndots:5 debug"} }, "dns_config.options[0]", "ndots"},
		"DNS options":          {func(c *config) { c.DnsConfig.Options = many("debug", 65) }, "dns_config.options", "65"},
		"port protocol":        {port(&runtime.PortMapping{Protocol: 7}), "port_mappings[1].protocol", "7"},
		"negative port":        {port(&runtime.PortMapping{ContainerPort: 1, HostPort: -1}), "port_mappings[1].host_port", "-1"},
		"large host port":      {port(&runtime.PortMapping{ContainerPort: 1, HostPort: 65536}), "port_mappings[1].host_port", "65536"},
		"large container port": {port(&runtime.PortMapping{ContainerPort: 65536}), "port_mappings[1].container_port", "65536"},
		"no container port":    {port(&runtime.PortMapping{HostPort: 2}), "port_mappings[1].container_port", "0"},
		"host IP":              {port(&runtime.PortMapping{ContainerPort: 1, HostIp: "localhost"}), "port_mappings[1].host_ip", "localhost"},
		"port twice":           {port(&runtime.PortMapping{ContainerPort: 2, HostPort: 1}), "port_mappings[1].host_port", "port_mappings[0]"},
		"label without key":    {func(c *config) { c.Labels = map[string]string{"": "x"} }, "labels", "empty key"},
		"large labels":         {func(c *config) { c.Labels = map[string]string{"a": strings.Repeat("x", 1<<20)} }, "labels", "bytes"},
		"large annotations":    {func(c *config) { c.Annotations["b"] = strings.Repeat("x", 1<<20) }, "annotations", "bytes"},
		"long annotation key":  {func(c *config) { c.Annotations[strings.Repeat("k", 2000)] = "" }, "annotations", "longer"},
		"windows":              {func(c *config) { c.Windows = windowsSandbox() }, "windows", "Linux"},
		"cgroup ..":            {parent("/kubepods/../system"), "linux.cgroup_parent", ".."},
		"cgroup relative":      {parent("kubepods/pod1"), "linux.cgroup_parent", "absolute"},
		"cgroup with colon":    {parent("/a:b"), "linux.cgroup_parent", "':'"},
		"no sysctl":            {sysctl("x", "1"), "linux.sysctls", "no sysctl name"},
		"sysctl path":          {sysctl("net/../kernel/core_pattern", "1"), "linux.sysctls", "no sysctl name"},
		"sysctl dots":          {sysctl("net...kernel.core_pattern", "1"), "linux.sysctls", "no sysctl name"},
		"sysctl slash dots":    {sysctl("net./x/.y", "1"), "linux.sysctls", "no sysctl name"},
		"sysctl of the node":   {sysctl("kernel.core_pattern", "|/x"), "linux.sysctls", "node's"},
		"sysctl hostname":      {sysctl("kernel.hostname", "x"), "linux.sysctls", "node's"},
		"sysctl lines":         {sysctl("net.core.somaxconn", "1\n2"), "linux.sysctls", "one line"},
		"sysctl empty":         {sysctl("net.core.somaxconn", ""), "linux.sysctls", "one line"},
		"sysctl net on host":   {onHost(sysctl("net.core.somaxconn", "1")), "linux.sysctls", "hostNetwork"},
		"sysctl ipc on host":   {onHost(sysctl("fs.mqueue.msg_max", "1")), "linux.sysctls", "hostIPC"},
		"sysctl uts on host":   {onHost(sysctl("kernel.domainname", "x")), "linux.sysctls", "UTS"},
		"network mode":         {func(c *config) { options(c).Network = runtime.NamespaceMode_CONTAINER }, "linux.security_context.namespace_options.network", "POD or NODE"},
		"ipc mode":             {func(c *config) { options(c).Ipc = runtime.NamespaceMode_TARGET }, "linux.security_context.namespace_options.ipc", "POD or NODE"},
		"pid mode":             {func(c *config) { options(c).Pid = runtime.NamespaceMode_TARGET }, "linux.security_context.namespace_options.pid", "TARGET"},
		"unknown mode":         {func(c *config) { options(c).Pid = 8 }, "linux.security_context.namespace_options.pid", "8"},
		"target":               {func(c *config) { options(c).TargetId = "x" }, "linux.security_context.namespace_options.target_id", "containers"},
		"group alone": {func(c *config) { c.Linux.SecurityContext.RunAsGroup = &runtime.Int64Value{Value: 1} },
			"linux.security_context.run_as_group", "run_as_user"},
		"negative user": {func(c *config) { c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: -1} },
			"linux.security_context.run_as_user", "-1"},
		"overhead":  {func(c *config) { c.Linux.Overhead = &runtime.LinuxContainerResources{CpuShares: -1} }, "linux.overhead.cpu_shares", "-1"},
		"resources": {func(c *config) { c.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: -1} }, "linux.resources.cpu_shares", "-1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := goodSandbox()
			tc.change(c)
			refusal(t, validateSandboxConfig(c), tc.field, tc.words)
		})
	}
	c := goodSandbox()
	ids := []*runtime.IDMapping{{HostId: 655360, Length: 65536}}
	options(c).UsernsOptions = &runtime.UserNamespace{Uids: ids, Gids: ids}
	if err := validateSandboxConfig(c); err != nil {
		t.Errorf("a user namespace: got %v", err)
	}
	options(c).UsernsOptions.Gids = nil
	if err := validateSandboxConfig(c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "userns_options.gids") {
		t.Errorf("a user namespace without groups: got %v", err)
	}
	c = goodSandbox()
	c.Linux.CgroupParent = "kubepods-besteffort.slice"
	if err := validateSandboxConfig(c); err != nil {
		t.Errorf("a slice: %v", err)
	}
}

func windowsSandbox() *runtime.WindowsPodSandboxConfig {
	return &runtime.WindowsPodSandboxConfig{SecurityContext: &runtime.WindowsSandboxSecurityContext{HostProcess: true}}
}

func many(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func TestValidateContainer(t *testing.T) {
	if err := validateContainerConfig(goodContainer(), goodSandbox()); err != nil {
		t.Fatal(err)
	}
	bare := &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "a"}, Image: &runtime.ImageSpec{Image: "b"}}
	if err := validateContainerConfig(bare, goodSandbox()); err != nil {
		t.Errorf("a bare client's: %v", err)
	}
	refusal(t, validateContainerConfig(nil, goodSandbox()), "config")
	type config = runtime.ContainerConfig
	sc := func(c *config) *runtime.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	for name, tc := range map[string]struct {
		change func(*config)
		field  string
		words  string
	}{
		"no metadata":        {func(c *config) { c.Metadata = nil }, "metadata", "required"},
		"no name":            {func(c *config) { c.Metadata.Name = "" }, "metadata.name", "required"},
		"no image":           {func(c *config) { c.Image = nil }, "image", "required"},
		"empty image":        {func(c *config) { c.Image.Image = "" }, "image.image", "required"},
		"image with space":   {func(c *config) { c.Image.Image = "a b" }, "image.image", "spaces"},
		"long image":         {func(c *config) { c.Image.Image = strings.Repeat("a", 5000) }, "image.image", "5000"},
		"long argument":      {func(c *config) { c.Args = []string{strings.Repeat("a", 128<<10)} }, "args[0]", "131072"},
		"NUL in command":     {func(c *config) { c.Command = []string{"a\x00"} }, "command[0]", "NUL"},
		"long variable":      {func(c *config) { c.Envs[0].Value = make([]byte, 128<<10) }, "envs[0]", "kernel"},
		"many arguments":     {func(c *config) { c.Args = many(strings.Repeat("a", 100<<10), 62) }, "envs", "altogether"},
		"variable's name":    {func(c *config) { c.Envs[0].Key = "A=B" }, "envs[0].key", "A=B"},
		"no name of one":     {func(c *config) { c.Envs[0].Key = "" }, "envs[0].key", "empty"},
		"variable's value":   {func(c *config) { c.Envs[0].Value = []byte{0} }, "envs[0].value", "NUL"},
		"relative dir":       {func(c *config) { c.WorkingDir = "a" }, "working_dir", "absolute"},
		"long dir":           {func(c *config) { c.WorkingDir = "/" + strings.Repeat("a", 5000) }, "working_dir", "longer"},
		"relative mount":     {func(c *config) { c.Mounts[0].ContainerPath = "data" }, "mounts[0].container_path", `"data"`},
		"mount on /":         {func(c *config) { c.Mounts[0].ContainerPath = "/" }, "mounts[0].container_path", "below /"},
		"relative host path": {func(c *config) { c.Mounts[0].HostPath = "data" }, "mounts[0].host_path", `"data"`},
		"no host path":       {func(c *config) { c.Mounts[0].HostPath = "" }, "mounts[0].host_path", `""`},
		"NUL in host path":   {func(c *config) { c.Mounts[0].HostPath = "/a\x00" }, "mounts[0].host_path", "absolute"},
		"long host path":     {func(c *config) { c.Mounts[0].HostPath = "/" + strings.Repeat("a", 5000) }, "mounts[0].host_path", "longer"},
		"mounted twice": {func(c *config) {
			c.Mounts = append(c.Mounts, &runtime.Mount{ContainerPath: "/x/../data/", HostPath: "/y"})
		}, "mounts[1].container_path", "twice"},
		"propagation":          {func(c *config) { c.Mounts[0].Propagation = 9 }, "mounts[0].propagation", "9"},
		"mount option":         {func(c *config) { c.Mounts[0].MountOptions = []string{"shared"} }, "mounts[0].mount_options[0]", "shared"},
		"image's sub path":     {func(c *config) { c.Mounts[0].ImageSubPath = strings.Repeat("x/", 4096) }, "mounts[0].image_sub_path", "4095"},
		"image and host path":  {func(c *config) { c.Mounts[0].Image = &runtime.ImageSpec{Image: "x"} }, "mounts[0].host_path", "image"},
		"device permissions":   {func(c *config) { c.Devices[0].Permissions = "rwx" }, "devices[0].permissions", "rwx"},
		"device path":          {func(c *config) { c.Devices[0].ContainerPath = "x" }, "devices[0].container_path", `"x"`},
		"label without key":    {func(c *config) { c.Labels = map[string]string{"": ""} }, "labels", "empty key"},
		"large annotations":    {func(c *config) { c.Annotations = map[string]string{"a": strings.Repeat("x", 1<<20)} }, "annotations", "bytes"},
		"absolute log":         {func(c *config) { c.LogPath = "/etc/shadow" }, "log_path", "absolute"},
		"log outside":          {func(c *config) { c.LogPath = "a/../../x.log" }, "log_path", "within"},
		"log is the directory": {func(c *config) { c.LogPath = "a/.." }, "log_path", "within"},
		"log is a directory":   {func(c *config) { c.LogPath = "a/" }, "log_path", "file"},
		"NUL in log":           {func(c *config) { c.LogPath = "a\x00" }, "log_path", "file"},
		"windows":              {func(c *config) { c.Windows = windowsContainer() }, "windows", "Linux"},
		"signal":               {func(c *config) { c.StopSignal = 99 }, "stop_signal", "99"},
		"capability":           {func(c *config) { sc(c).Capabilities.AddCapabilities[0] = "NET_FLY" }, "linux.security_context.capabilities.add_capabilities[0]", "NET_FLY"},
		"ambient capability": {func(c *config) { sc(c).Capabilities.AddAmbientCapabilities = []string{""} },
			"linux.security_context.capabilities.add_ambient_capabilities[0]", `""`},
		"privileged":          {func(c *config) { sc(c).Privileged = true }, "linux.security_context.privileged", "sandbox"},
		"user and name":       {func(c *config) { sc(c).RunAsUser, sc(c).RunAsUsername = &runtime.Int64Value{}, "a" }, "linux.security_context.run_as_username", "run_as_user"},
		"group alone":         {func(c *config) { sc(c).RunAsGroup = &runtime.Int64Value{} }, "linux.security_context.run_as_group", "run_as_user"},
		"negative group":      {func(c *config) { sc(c).SupplementalGroups = []int64{-4} }, "linux.security_context.supplemental_groups[0]", "-4"},
		"groups policy":       {func(c *config) { sc(c).SupplementalGroupsPolicy = 4 }, "linux.security_context.supplemental_groups_policy", "4"},
		"masked path":         {func(c *config) { sc(c).MaskedPaths = []string{"x"} }, "linux.security_context.masked_paths[0]", `"x"`},
		"seccomp type":        {func(c *config) { sc(c).Seccomp = &runtime.SecurityProfile{ProfileType: 6} }, "linux.security_context.seccomp.profile_type", "6"},
		"apparmor ref":        {func(c *config) { sc(c).Apparmor = &runtime.SecurityProfile{ProfileType: 2} }, "linux.security_context.apparmor.localhost_ref", "required"},
		"host network":        {func(c *config) { sc(c).NamespaceOptions.Network = runtime.NamespaceMode_NODE }, "linux.security_context.namespace_options.network", "POD"},
		"target without ID":   {func(c *config) { sc(c).NamespaceOptions.Pid = runtime.NamespaceMode_TARGET }, "linux.security_context.namespace_options.pid", "target_id"},
		"pid of no sandbox":   {func(c *config) { sc(c).NamespaceOptions.Pid = runtime.NamespaceMode_POD }, "linux.security_context.namespace_options.pid", "CONTAINER"},
		"negative memory":     {func(c *config) { c.Linux.Resources.MemoryLimitInBytes = -1 }, "linux.resources.memory_limit_in_bytes", "-1"},
		"resources' wherever": {func(c *config) { c.Linux.Resources.CpuPeriod = 1 }, "linux.resources.cpu_period", "1000000"},
	} {
		t.Run(name, func(t *testing.T) {
			c := goodContainer()
			tc.change(c)
			refusal(t, validateContainerConfig(c, goodSandbox()), tc.field, tc.words)
		})
	}
	for name, change := range map[string]func(*config){
		"CDI device": func(c *config) { c.CDIDevices = []*runtime.CDIDevice{{Name: "a/b=c"}} },
		"image volume": func(c *config) {
			c.Mounts[0] = &runtime.Mount{ContainerPath: "/m", Readonly: true, Image: &runtime.ImageSpec{Image: "x"}, ImageSubPath: "a/b"}
		},
	} {
		c := goodContainer()
		change(c)
		if err := validateContainerConfig(c, goodSandbox()); err != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func windowsContainer() *runtime.WindowsContainerConfig {
	return &runtime.WindowsContainerConfig{Resources: &runtime.WindowsContainerResources{CpuCount: 1}}
}

func TestValidateResources(t *testing.T) {
	for _, r := range []*runtime.LinuxContainerResources{nil, {}, goodResources(), {MemorySwapLimitInBytes: -1}, {OomScoreAdj: 1000}, {CpuQuota: 1000, CpuPeriod: 1000}} {
		if err := validateResources("linux", r); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	type resources = runtime.LinuxContainerResources
	for name, tc := range map[string]struct {
		r     *resources
		field string
	}{
		"shares":            {&resources{CpuShares: -1}, "cpu_shares"},
		"quota":             {&resources{CpuQuota: -2}, "cpu_quota"},
		"small quota":       {&resources{CpuQuota: 999}, "cpu_quota"},
		"period":            {&resources{CpuPeriod: -1}, "cpu_period"},
		"long period":       {&resources{CpuPeriod: 1000001}, "cpu_period"},
		"memory":            {&resources{MemoryLimitInBytes: -5}, "memory_limit_in_bytes"},
		"swap":              {&resources{MemorySwapLimitInBytes: -2}, "memory_swap_limit_in_bytes"},
		"swap below":        {&resources{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 9}, "memory_swap_limit_in_bytes"},
		"oom":               {&resources{OomScoreAdj: 1001}, "oom_score_adj"},
		"negative oom":      {&resources{OomScoreAdj: -1001}, "oom_score_adj"},
		"cpus":              {&resources{CpusetCpus: "0-"}, "cpuset_cpus"},
		"cpus backwards":    {&resources{CpusetCpus: "3-1"}, "cpuset_cpus"},
		"cpus signed":       {&resources{CpusetCpus: "+1"}, "cpuset_cpus"},
		"cpus lines":        {&resources{CpusetCpus: "1\n"}, "cpuset_cpus"},
		"cpus empty part":   {&resources{CpusetCpus: "1,,2"}, "cpuset_cpus"},
		"many cpus":         {&resources{CpusetCpus: "0-99999999999999999999"}, "cpuset_cpus"},
		"mems":              {&resources{CpusetMems: "a"}, "cpuset_mems"},
		"page size":         {&resources{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}, {PageSize: "2"}}}, "hugepage_limits[1].page_size"},
		"no page size":      {&resources{HugepageLimits: []*runtime.HugepageLimit{{}}}, "hugepage_limits[0].page_size"},
		"page size in MiB":  {&resources{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MiB"}}}, "hugepage_limits[0].page_size"},
		"unified path":      {&resources{Unified: map[string]string{"../memory.max": "1"}}, "unified"},
		"unified no file":   {&resources{Unified: map[string]string{"memory": "1"}}, "unified"},
		"unified core file": {&resources{Unified: map[string]string{"cgroup.kill": "1"}}, "unified"},
		"unified value":     {&resources{Unified: map[string]string{"memory.max": ""}}, "unified"},
	} {
		t.Run(name, func(t *testing.T) { refusal(t, validateResources("linux", tc.r), "linux."+tc.field) })
	}
}

func TestShown(t *testing.T) {
	for value, want := range map[string]string{
		"a\n":                            `"a\n"`,
		strings.Repeat("é", 100):         `"` + strings.Repeat("é", 64) + `"… (200 bytes)`,
		"x" + strings.Repeat("é", 100):   `"x` + strings.Repeat("é", 63) + `"… (201 bytes)`,
		strings.Repeat("\xff", 129)[:10]: `"` + strings.Repeat(`\xff`, 10) + `"`,
	} {
		if got := shown(value); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// FuzzValidate: whatever a client sends, there is an answer, its kind is the
// caller's fault or what is to come, and what passes has what the rest of
// berth counts on.
func FuzzValidate(f *testing.F) {
	add := func(s *runtime.PodSandboxConfig, c *runtime.ContainerConfig) {
		sandbox, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		container, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sandbox, container)
	}
	add(&runtime.PodSandboxConfig{}, &runtime.ContainerConfig{})
	small := goodSandbox() // large inputs make the fuzzer slow
	small.Annotations = nil
	add(small, goodContainer())
	f.Fuzz(func(t *testing.T, sandbox, container []byte) {
		var s runtime.PodSandboxConfig
		var c runtime.ContainerConfig
		if proto.Unmarshal(sandbox, &s) != nil || proto.Unmarshal(container, &c) != nil {
			return
		}
		for _, err := range []error{validateSandboxConfig(&s), validateContainerConfig(&c, &s)} {
			if err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
				t.Fatalf("kind of %v", err)
			}
			if err != nil && len(err.Error()) > 8192 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
		}
		if validateContainerConfig(&c, &s) == nil {
			if strings.HasPrefix(c.GetLogPath(), "/") || strings.HasPrefix(c.GetLogPath(), "..") || c.GetImage().GetImage() == "" {
				t.Fatalf("passed: %v", &c)
			}
		}
	})
}
