package podrun

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/manifest"
)

// seccompRoot is where a kubelet has Localhost seccomp profiles.
const seccompRoot = "/var/lib/kubelet/seccomp"

// throttles tell of processors' heat, and so of what others compute.
const throttles = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle"

// Machine gives the facts about this machine that a plan needs.
func Machine() (manifest.Options, error) {
	o := manifest.Options{SeccompRoot: seccompRoot}
	var err error
	if o.Hostname, err = os.Hostname(); err != nil {
		return o, fmt.Errorf("the machine's name: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return o, fmt.Errorf("the machine's memory: %w", err)
	}
	o.Memory = int64(info.Totalram) * int64(info.Unit)
	if o.HostIPs, err = hostIPs(); err != nil {
		return o, fmt.Errorf("the machine's addresses: %w", err)
	}
	if o.MaskedPaths, err = filepath.Glob(throttles); err != nil {
		return o, fmt.Errorf("the machine's processors: %w", err)
	}
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return o, fmt.Errorf("the machine's resolver configuration: %w", err)
	}
	o.HostDNS = parseResolvConf(text)
	return o, nil
}

// hostIPs are the machine's addresses that others may reach, IPv4 first.
func hostIPs() ([]string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var v4, v6 []string
	for _, a := range addresses {
		ip, ok := a.(*net.IPNet)
		switch {
		case !ok || !ip.IP.IsGlobalUnicast():
		case ip.IP.To4() != nil:
			v4 = append(v4, ip.IP.String())
		default:
			v6 = append(v6, ip.IP.String())
		}
	}
	var ips []string
	for _, family := range [][]string{v4, v6} {
		if len(family) > 0 {
			ips = append(ips, family[0])
		}
	}
	return ips, nil
}

// parseResolvConf reads what resolv.conf(5) describes; the last search line
// counts.
func parseResolvConf(text []byte) *runtime.DNSConfig {
	config := &runtime.DNSConfig{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			config.Servers = append(config.Servers, fields[1])
		case "search":
			config.Searches = fields[1:]
		case "options":
			config.Options = append(config.Options, fields[1:]...)
		}
	}
	return config
}
