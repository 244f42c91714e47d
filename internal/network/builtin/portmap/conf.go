package portmap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

//lint:file-ignore ST1005 The errors are in the words of the reference plugins.

// defaultMarkBit is the bit of a packet's mark that asks for masquerading.
const defaultMarkBit = 13

// Backends.
const (
	backendIPTables = "iptables"
	backendNFTables = "nftables"
)

// conf is a configuration, with the keys of the reference plugin.
type conf struct {
	types.PluginConf
	Backend       *string `json:"backend"`
	SNAT          *bool   `json:"snat"`
	MasqAll       bool    `json:"masqAll"`
	MarkMasqBit   *int    `json:"markMasqBit"`
	RuntimeConfig struct {
		PortMappings []mapping `json:"portMappings"`
	} `json:"runtimeConfig"`

	result *types100.Result
	// addrs of the container, with the lengths of their prefixes: at most one
	// of each family.
	addrs []netip.Prefix
	ports []port
}

// mapping is one host port as the runtime tells it.
type mapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// port is a mapping that makes sense.
type port struct {
	host, container uint16
	protocol        string
	// hostIP is what the runtime asked for; zero for none.
	hostIP netip.Addr
}

// of tells whether the port is one for containers' addresses of a family.
func (p port) of(v6 bool) bool { return !p.hostIP.IsValid() || p.hostIP.Is6() == v6 }

// only tells whether the port is one of a single host address.
func (p port) only() bool { return p.hostIP.IsValid() && !p.hostIP.IsUnspecified() }

// protocols that are understood, with their numbers.
var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

var keys = []string{
	"cniVersion", "name", "type", "capabilities", "ipam", "dns", "prevResult", "runtimeConfig", "cni.dev/valid-attachments", "cni.dev/attachments",
	"backend", "snat", "masqAll", "markMasqBit",
}

// Unsupported names the first key of a configuration that only the program may
// know, or is empty. Conditions and marks by others are the program's.
func (*Plugin) Unsupported(text []byte) string {
	var given map[string]json.RawMessage
	if json.Unmarshal(text, &given) != nil {
		return ""
	}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(keys, key) {
			return key
		}
	}
	var c conf
	if json.Unmarshal(text, &c) != nil {
		return ""
	}
	for _, m := range c.RuntimeConfig.PortMappings {
		if _, ok := protocols[m.Protocol]; !ok {
			return "runtimeConfig.portMappings.protocol=" + m.Protocol
		}
	}
	return ""
}

func load(args *skel.CmdArgs) (*conf, error) {
	c := &conf{}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, fmt.Errorf("failed to parse network configuration: %w", err)
	}
	if c.RawPrevResult != nil {
		if err := version.ParsePrevResult(&c.PluginConf); err != nil {
			return nil, fmt.Errorf("could not parse prevResult: %w", err)
		}
		var err error
		if c.result, err = types100.NewResultFromResult(c.PrevResult); err != nil {
			return nil, fmt.Errorf("could not convert result to current version: %w", err)
		}
	}
	on, bit := true, defaultMarkBit
	if c.SNAT == nil {
		c.SNAT = &on
	}
	if c.MarkMasqBit == nil {
		c.MarkMasqBit = &bit
	}
	if *c.MarkMasqBit < 0 || *c.MarkMasqBit > 31 {
		return nil, errors.New("MasqMarkBit must be between 0 and 31")
	}
	if b := c.Backend; b != nil && *b != backendIPTables && *b != backendNFTables {
		return nil, fmt.Errorf("unrecognized backend %q", *b)
	}
	if err := c.readPorts(); err != nil {
		return nil, err
	}
	c.findAddresses(args.IfName)
	return c, nil
}

func (c *conf) readPorts() error {
	for _, m := range c.RuntimeConfig.PortMappings {
		switch {
		case m.ContainerPort <= 0 || m.ContainerPort > 0xffff:
			return fmt.Errorf("Invalid container port number: %d", m.ContainerPort)
		case m.HostPort <= 0 || m.HostPort > 0xffff:
			return fmt.Errorf("Invalid host port number: %d", m.HostPort)
		}
		p := port{host: uint16(m.HostPort), container: uint16(m.ContainerPort), protocol: m.Protocol}
		if m.HostIP != "" {
			ip, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return fmt.Errorf("Invalid host IP: %q", m.HostIP)
			}
			p.hostIP = ip.Unmap()
		}
		c.ports = append(c.ports, p)
	}
	return nil
}

// findAddresses takes the container's first address of each family.
func (c *conf) findAddresses(ifName string) {
	if c.result == nil {
		return
	}
	seen := map[bool]bool{}
	for _, ip := range c.result.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(c.result.Interfaces) {
			if on := c.result.Interfaces[*i]; on.Name != ifName || on.Sandbox == "" {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		addr = addr.Unmap()
		if ok && !seen[addr.Is6()] {
			seen[addr.Is6()] = true
			c.addrs = append(c.addrs, netip.PrefixFrom(addr, bits))
		}
	}
	slices.SortStableFunc(c.addrs, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
}

// backend is the mapper for the configuration. Where that names none it is
// iptables, as with the reference, unless nftables alone works.
func (p *Plugin) backend(ctx context.Context, c *conf, args *skel.CmdArgs) mapper {
	kind := backendIPTables
	if c.Backend != nil {
		kind = *c.Backend
	} else if !programs(args).Supported(ctx) && p.NFT.Supported() {
		kind = backendNFTables
	}
	if kind == backendNFTables {
		return nftables{p.NFT}
	}
	return tables{programs(args), p.NFT}
}
