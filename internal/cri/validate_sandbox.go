package cri

import (
	"net/netip"
	"path"
	"strings"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/spec"
)

const (
	maxHostname = 64 // __NEW_UTS_LEN

	maxDNSServers  = 32
	maxDNSSearches = 32   // Kubernetes' MaxDNSSearchPaths
	maxDNSChars    = 2048 // Kubernetes' MaxDNSSearchListChars
	maxDNSOptions  = 64
)

// validateSandboxConfig finds the mistakes in a RunPodSandbox request, before
// anything is recorded or made.
func validateSandboxConfig(c *runtime.PodSandboxConfig) error {
	if c == nil {
		return invalid("config", "it is required")
	}
	if c.GetMetadata() == nil {
		return invalid("metadata", "it is required: it names the pod")
	}
	for _, f := range []struct{ field, value string }{
		{"metadata.name", c.GetMetadata().GetName()},
		{"metadata.namespace", c.GetMetadata().GetNamespace()},
		{"metadata.uid", c.GetMetadata().GetUid()},
	} {
		if err := validateName(f.field, f.value); err != nil {
			return err
		}
	}
	if err := validateHostname("hostname", c.GetHostname()); err != nil {
		return err
	}
	if dir := c.GetLogDirectory(); dir != "" {
		if err := validateAbsolute("log_directory", dir); err != nil {
			return err
		}
	}
	if err := validateDNS("dns_config", c.GetDnsConfig()); err != nil {
		return err
	}
	if err := validatePorts("port_mappings", c.GetPortMappings()); err != nil {
		return err
	}
	if err := validateMetadata("labels", c.GetLabels()); err != nil {
		return err
	}
	if err := validateMetadata("annotations", c.GetAnnotations()); err != nil {
		return err
	}
	if proto.Size(c.GetWindows()) > 0 {
		return invalid("windows", "this is a Linux node: leave it unset")
	}
	return validateSandboxLinux("linux", c.GetLinux())
}

// validateHostname: empty is the node's name or the pod's, as its network is.
func validateHostname(field, name string) error {
	if len(name) > maxHostname {
		return invalid(field, "%s: the kernel takes %d bytes at most", shown(name), maxHostname)
	}
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != "" || strings.HasPrefix(name, "-") || strings.HasPrefix(name, ".") {
		return invalid(field, "%s: use letters, digits, '-', '.' and '_', and begin with a letter or a digit", shown(name))
	}
	return nil
}

// validateDNS wants what can stand in a line of resolv.conf.
func validateDNS(field string, c *runtime.DNSConfig) error {
	for i, server := range c.GetServers() {
		if _, err := netip.ParseAddr(server); err != nil {
			return invalid(indexed(field+".servers", i), "%s: give an IP address", shown(server))
		}
	}
	if n := len(c.GetServers()); n > maxDNSServers {
		return invalid(field+".servers", "%d servers: give %d at most (the resolver asks the first 3)", n, maxDNSServers)
	}
	chars := 0
	for i, search := range c.GetSearches() {
		if !isWord(search) {
			return invalid(indexed(field+".searches", i), "%s: give a domain, without spaces", shown(search))
		}
		chars += len(search) + 1
	}
	if n := len(c.GetSearches()); n > maxDNSSearches || chars > maxDNSChars+1 {
		return invalid(field+".searches", "%d domains of %d characters: give %d of %d at most", n, chars, maxDNSSearches, maxDNSChars)
	}
	for i, option := range c.GetOptions() {
		if !isWord(option) || len(option) > maxName {
			return invalid(indexed(field+".options", i), "%s: give an option of resolv.conf(5), like ndots:5", shown(option))
		}
	}
	if n := len(c.GetOptions()); n > maxDNSOptions {
		return invalid(field+".options", "%d options: give %d at most", n, maxDNSOptions)
	}
	return nil
}

// isWord tells printable ASCII without spaces.
func isWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func validatePorts(field string, ports []*runtime.PortMapping) error {
	const most = 65535
	type key struct {
		protocol runtime.Protocol
		ip       string
		port     int32
	}
	taken := map[key]int{}
	for i, p := range ports {
		at := indexed(field, i)
		if _, ok := runtime.Protocol_name[int32(p.GetProtocol())]; !ok {
			return invalid(at+".protocol", "%d is no protocol; use TCP, UDP or SCTP", p.GetProtocol())
		}
		if v := p.GetHostPort(); v < 0 || v > most {
			return invalid(at+".host_port", "%d: a port is from 1 to %d; 0 is none", v, most)
		}
		if v := p.GetContainerPort(); v < 0 || v > most || v == 0 && p.GetHostPort() != 0 {
			return invalid(at+".container_port", "%d: a port is from 1 to %d", v, most)
		}
		if ip := p.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return invalid(at+".host_ip", "%s: give an IP address, or leave it empty for all", shown(ip))
			}
		}
		if p.GetHostPort() == 0 {
			continue
		}
		k := key{p.GetProtocol(), p.GetHostIp(), p.GetHostPort()}
		if j, ok := taken[k]; ok {
			return invalid(at+".host_port", "%d: %s has it already", p.GetHostPort(), indexed(field, j))
		}
		taken[k] = i
	}
	return nil
}

func validateSandboxLinux(field string, c *runtime.LinuxPodSandboxConfig) error {
	if err := validateCgroupParent(field+".cgroup_parent", c.GetCgroupParent()); err != nil {
		return err
	}
	sc := c.GetSecurityContext()
	at := field + ".security_context"
	if err := validateSandboxNamespaces(at+".namespace_options", sc.GetNamespaceOptions()); err != nil {
		return err
	}
	if err := validateSysctls(field+".sysctls", c.GetSysctls(), sc.GetNamespaceOptions()); err != nil {
		return err
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid(at+".run_as_group", "%d: it needs run_as_user", sc.GetRunAsGroup().GetValue())
	}
	if v := sc.GetRunAsUser().GetValue(); v < 0 {
		return invalid(at+".run_as_user", "%d: an ID is not negative", v)
	}
	if v := sc.GetRunAsGroup().GetValue(); v < 0 {
		return invalid(at+".run_as_group", "%d: an ID is not negative", v)
	}
	if err := validateResources(field+".overhead", c.GetOverhead()); err != nil {
		return err
	}
	return validateResources(field+".resources", c.GetResources())
}

// validateCgroupParent: an absolute cgroup path, or a systemd slice.
func validateCgroupParent(field, parent string) error {
	if parent == "" {
		return nil
	}
	if strings.ContainsFunc(parent, func(r rune) bool { return r <= ' ' || r == 0x7f || r == ':' }) || len(parent) > maxPath {
		return invalid(field, "%s: it has no spaces and no ':'", shown(parent))
	}
	for part := range strings.SplitSeq(parent, "/") {
		if part == ".." || part == "." {
			return invalid(field, "%s: it has no %s: give the whole path", shown(parent), part)
		}
	}
	if !path.IsAbs(parent) && (strings.Contains(parent, "/") || !strings.HasSuffix(parent, ".slice")) {
		return invalid(field, "%s: give an absolute path below the cgroup root, or the name of a systemd slice", shown(parent))
	}
	return nil
}

func validateSandboxNamespaces(field string, o *runtime.NamespaceOption) error {
	for _, ns := range []struct {
		name    string
		mode    runtime.NamespaceMode
		allowed []runtime.NamespaceMode
	}{
		{"network", o.GetNetwork(), []runtime.NamespaceMode{runtime.NamespaceMode_POD, runtime.NamespaceMode_NODE}},
		{"ipc", o.GetIpc(), []runtime.NamespaceMode{runtime.NamespaceMode_POD, runtime.NamespaceMode_NODE}},
		{"pid", o.GetPid(), []runtime.NamespaceMode{runtime.NamespaceMode_POD, runtime.NamespaceMode_CONTAINER, runtime.NamespaceMode_NODE}},
	} {
		if err := validateMode(field+"."+ns.name, ns.mode, ns.allowed); err != nil {
			return err
		}
	}
	if id := o.GetTargetId(); id != "" {
		return invalid(field+".target_id", "%s: it is for containers, not for a sandbox", shown(id))
	}
	return spec.CheckUserNamespace(field, o)
}

func validateMode(field string, mode runtime.NamespaceMode, allowed []runtime.NamespaceMode) error {
	var names []string
	for _, m := range allowed {
		if m == mode {
			return nil
		}
		names = append(names, m.String())
	}
	return invalid(field, "%s is not possible here; use %s", mode, strings.Join(names, " or "))
}

// validateSysctls allows what belongs to a namespace that the pod has for
// itself. Anything else would change the node.
func validateSysctls(field string, sysctls map[string]string, o *runtime.NamespaceOption) error {
	for key, value := range sysctls {
		name := sysctlName(key)
		if name == "" {
			return invalid(field, "%s is no sysctl name; give one like net.core.somaxconn", shown(key))
		}
		if strings.ContainsAny(value, "\x00\n") || len(value) > maxPath || value == "" {
			return invalid(field, "%s: value %s: give one line", name, shown(value))
		}
		switch namespaceOf(name) {
		case "ipc":
			if o.GetIpc() == runtime.NamespaceMode_NODE {
				return invalid(field, "%s belongs to the IPC namespace, and the pod uses the node's: set it on the node, or do without hostIPC", name)
			}
		case "net":
			if o.GetNetwork() == runtime.NamespaceMode_NODE {
				return invalid(field, "%s belongs to the network namespace, and the pod uses the node's: set it on the node, or do without hostNetwork", name)
			}
		case "uts":
			if o.GetNetwork() == runtime.NamespaceMode_NODE {
				return invalid(field, "%s belongs to the UTS namespace, and the pod uses the node's with its network", name)
			}
		default:
			return invalid(field, "%s is the node's, not a pod's: set it on the node", name)
		}
	}
	return nil
}

// sysctlName gives a name with dots between its parts, "" for what is none.
// Where the first separator is a slash, slashes separate (sysctl.d(5)).
func sysctlName(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		key = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	parts := strings.Split(key, ".")
	for _, part := range parts {
		// A slash within a part is a dot in an interface's name.
		if part == "" || strings.HasPrefix(part, "/") || strings.HasSuffix(part, "/") || strings.Contains(part, "//") ||
			strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/@:") != "" {
			return ""
		}
	}
	if len(parts) < 2 || len(key) > maxName {
		return ""
	}
	return key
}

func namespaceOf(sysctl string) string {
	switch sysctl {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
		"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
		return "ipc"
	case "kernel.domainname":
		return "uts"
	}
	switch {
	case strings.HasPrefix(sysctl, "fs.mqueue."):
		return "ipc"
	case strings.HasPrefix(sysctl, "net."):
		return "net"
	}
	return ""
}
