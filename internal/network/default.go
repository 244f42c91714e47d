package network

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
)

// maxLinkName is the kernel's limit of an interface's name.
const maxLinkName = 15

// builtInKey marks the built-in network's list, so that a DEL years later
// knows it again.
const builtInKey = "berth.dev/built-in"

// defaultConf describes the built-in network.
type defaultConf struct {
	bridge  string
	subnets []string
	dataDir string // of host-local
	// firewall is nftables, iptables, or empty where neither program is
	// installed: then there is neither masquerading nor a host port.
	firewall string
}

// builtInLocked is the built-in network, once this daemon alone has its names.
func (n *Network) builtInLocked() *state {
	d := n.defaultConfLocked()
	if err := n.claims.take(append([]string{d.bridge}, d.subnets...)); err != nil {
		return &state{retry: true, err: fmt.Errorf("the built-in network: %w", err)}
	}
	if d.firewall == "" {
		n.opts.Log.Warn("neither nft nor iptables is installed: pods of the built-in network reach no address outside this machine and have no host ports; install nftables")
	}
	for _, route := range overlaps(d) {
		n.opts.Log.Warn("the built-in network's subnet is also reached elsewhere: pods cannot reach it there; set network.default_subnet to another", "route", route)
	}
	list, err := d.list()
	if err != nil {
		return &state{err: fmt.Errorf("the built-in network: %w", err)}
	}
	return &state{conf: &conf{list: list, builtIn: true}}
}

func (n *Network) defaultConfLocked() defaultConf {
	d := defaultConf{
		bridge:   n.opts.DefaultBridge,
		subnets:  n.opts.subnets(),
		dataDir:  n.dataDir(),
		firewall: firewall(),
	}
	if n.exec.inProcess.NFTables() {
		d.firewall = "nftables" // which takes no program
	}
	// The bridge plugin refuses a second IPv4 gateway on one bridge, and pods of
	// the subnet before still need theirs. So another subnet has a bridge of its own.
	if len(n.podCIDR) > 0 && !slices.Equal(n.podCIDR, d.subnets) {
		sum := sha256.Sum256([]byte(d.bridge + " " + strings.Join(n.podCIDR, ",")))
		d.bridge = d.bridge[:min(len(d.bridge), maxLinkName-5)] + "-" + hex.EncodeToString(sum[:2])
		d.subnets = n.podCIDR
	}
	return d
}

// overlaps lists the machine's routes into the subnets, but for those of the
// bridge. It is for a warning: where routes cannot be read, there are none.
func overlaps(d defaultConf) []string {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	var found []string
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		dst, err := netip.ParsePrefix(r.Dst.String())
		if err != nil || dst.Bits() == 0 {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil || link.Attrs().Name == d.bridge {
			continue
		}
		for _, s := range d.subnets {
			if netip.MustParsePrefix(s).Overlaps(dst) {
				found = append(found, fmt.Sprintf("%s dev %s", dst, link.Attrs().Name))
			}
		}
	}
	return found
}

// dataDir is host-local's store of the built-in network.
func (n *Network) dataDir() string { return filepath.Join(n.opts.CacheDir, "networks") }

// firewall prefers nftables: its rules name the pod, so that they are found
// without the pod's address.
func firewall() string {
	for _, f := range []struct{ program, backend string }{{"nft", "nftables"}, {"iptables", "iptables"}} {
		if _, err := exec.LookPath(f.program); err == nil {
			return f.backend
		}
		for dir := range strings.SplitSeq(sbinPath, ":") {
			if _, err := exec.LookPath(filepath.Join(dir, f.program)); err == nil {
				return f.backend
			}
		}
	}
	return ""
}

// list renders the configuration.
func (d defaultConf) list() (*libcni.NetworkConfigList, error) {
	type object = map[string]any
	var routes []object
	for _, s := range d.subnets {
		if dst := "0.0.0.0/0"; !strings.Contains(s, ":") {
			routes = append(routes, object{"dst": dst})
		} else {
			routes = append(routes, object{"dst": "::/0"})
		}
	}
	bridge := object{
		"type":        "bridge",
		"bridge":      d.bridge,
		"isGateway":   true,
		"hairpinMode": true,
		"ipMasq":      d.firewall != "",
		"ipam": object{
			"type":    "host-local",
			"dataDir": d.dataDir,
			"ranges":  ipRanges(d.subnets),
			"routes":  routes,
		},
	}
	plugins := []object{bridge}
	if d.firewall != "" {
		bridge["ipMasqBackend"] = d.firewall
		plugins = append(plugins, object{
			"type":         "portmap",
			"backend":      d.firewall,
			"snat":         true,
			"capabilities": object{"portMappings": true},
		})
	}
	text, err := json.Marshal(object{
		"cniVersion": "1.0.0",
		"name":       d.bridge,
		"plugins":    plugins,
		builtInKey:   true,
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(text)
}

// isBuiltIn tells whether a list is one that list rendered.
func isBuiltIn(list []byte) bool {
	var mark map[string]json.RawMessage
	return json.Unmarshal(list, &mark) == nil && string(mark[builtInKey]) == "true"
}

// SetPodCIDR gives the built-in network its subnets, for the pods from now on,
// and networks that ask for "ipRanges" theirs: one or two subnets, separated
// by a comma. It is kept: a kubelet tells it once. With other networks it has
// no effect. An empty text changes nothing.
func (n *Network) SetPodCIDR(cidrs string) error {
	if cidrs == "" {
		return nil
	}
	subnets, err := parseSubnets(strings.Split(cidrs, ","))
	if err != nil {
		return fmt.Errorf("pod CIDR %q: %w", cidrs, err)
	}
	n.mu.Lock()
	same := slices.Equal(subnets, n.podCIDR)
	if !same {
		if err = writeFile(n.podCIDRFile(), []byte(strings.Join(subnets, ",")+"\n")); err == nil {
			n.podCIDR = subnets
		}
	}
	n.mu.Unlock()
	if err != nil {
		return fmt.Errorf("pod CIDR %q: %w", cidrs, err)
	}
	if !same {
		n.load()
	}
	return nil
}

func (n *Network) podCIDRFile() string { return filepath.Join(n.opts.CacheDir, "pod-cidr") }

func (n *Network) readPodCIDR() ([]string, error) {
	text, err := os.ReadFile(n.podCIDRFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	subnets, err := parseSubnets(strings.Split(strings.TrimSpace(string(text)), ","))
	if err != nil {
		n.opts.Log.Warn("ignoring a damaged file; the kubelet's next UpdateRuntimeConfig replaces it", "file", n.podCIDRFile(), "err", err)
		return nil, nil
	}
	return subnets, nil
}

// parseSubnets checks subnets: at most one of each family, with room for a
// gateway and a pod.
func parseSubnets(in []string) ([]string, error) {
	var out []string
	var v4, v6 int
	for _, s := range in {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%q is no subnet such as 10.77.0.0/16: %w", s, errdefs.ErrInvalidArgument)
		}
		if p.Addr().Is4() {
			v4++
		} else {
			v6++
		}
		if p.Addr().BitLen()-p.Bits() < 2 {
			return nil, fmt.Errorf("%q has no room for pods: %w", s, errdefs.ErrInvalidArgument)
		}
		out = append(out, p.Masked().String())
	}
	if v4 > 1 || v6 > 1 {
		return nil, fmt.Errorf("%q: at most one subnet of each family: %w", strings.Join(in, ","), errdefs.ErrInvalidArgument)
	}
	return out, nil
}
