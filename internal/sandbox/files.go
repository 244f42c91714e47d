package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
	"berth/internal/spec"
)

func (s *Service) makeDirectories(id string) error {
	for _, dir := range []string{s.Paths.Sandbox(id), s.Paths.Namespaces(id), s.Paths.Shm(id)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// writeFiles writes what is mounted at the containers' /etc/hostname, hosts
// and resolv.conf. They are of the containers' root.
func (s *Service) writeFiles(box *record.Sandbox) error {
	box = s.recordOr(box.ID)
	hostname, err := hostnameOf(box)
	if err != nil {
		return err
	}
	hosts, err := hostsOf(box, hostname)
	if err != nil {
		return err
	}
	resolv, err := resolvConfOf(box.Config.GetDnsConfig())
	if err != nil {
		return err
	}
	uid, gid := spec.HostRoot(box.Config)
	for path, text := range map[string]string{
		s.Paths.Hostname(box.ID): hostname + "\n", s.Paths.Hosts(box.ID): hosts, s.Paths.ResolvConf(box.ID): resolv,
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.Chown(path, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return nil
}

// hostnameOf is the pod's, or the node's where the pod names none.
func hostnameOf(box *record.Sandbox) (string, error) {
	if name := box.Config.GetHostname(); name != "" {
		return name, nil
	}
	return os.Hostname()
}

// hostsOf is the node's file on the node's network. Elsewhere it has the pod's
// own addresses; a kubelet mounts its own over it.
func hostsOf(box *record.Sandbox, hostname string) (string, error) {
	if hostNetwork(box) {
		return readHostFile("/etc/hosts")
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range box.IPs {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return b.String(), nil
}

// resolvConfOf is the node's file where the pod asks for nothing (resolv.conf(5)).
func resolvConfOf(dns *runtime.DNSConfig) (string, error) {
	if len(dns.GetServers())+len(dns.GetSearches())+len(dns.GetOptions()) == 0 {
		return readHostFile("/etc/resolv.conf")
	}
	var b strings.Builder
	if searches := dns.GetSearches(); len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if opts := dns.GetOptions(); len(opts) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(opts, " "))
	}
	return b.String(), nil
}

// readHostFile reads a file that a node may well lack.
func readHostFile(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}
