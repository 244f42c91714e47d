package network

import (
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"k8s.io/apimachinery/pkg/api/resource"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is what plugins are told of a pod. ID and, for Add, NetNS are required.
type Pod struct {
	ID, NetNS            string
	Name, Namespace, UID string
	PortMappings         []*runtime.PortMapping
	Annotations          map[string]string
	CgroupParent         string
	DNS                  *runtime.DNSConfig
}

func (p Pod) String() string {
	if p.Name == "" {
		return p.ID
	}
	return p.Namespace + "/" + p.Name + " (" + p.ID + ")"
}

// Annotations of a pod that limit its bandwidth, in bits a second.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// capAnnotations is the capability under which a plugin asks for all
// annotations; other runtimes know it by this name.
const capAnnotations = "io.kubernetes.cri.pod-annotations"

// The capabilities' values, as CNI's conventions write them.
type (
	portMapping struct {
		HostPort      int32  `json:"hostPort"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP,omitempty"`
	}
	bandwidth struct {
		IngressRate  uint64 `json:"ingressRate,omitempty"`
		IngressBurst uint64 `json:"ingressBurst,omitempty"`
		EgressRate   uint64 `json:"egressRate,omitempty"`
		EgressBurst  uint64 `json:"egressBurst,omitempty"`
	}
	dnsConfig struct {
		Servers  []string `json:"servers,omitempty"`
		Searches []string `json:"searches,omitempty"`
		Options  []string `json:"options,omitempty"`
	}
	ipRange struct {
		Subnet string `json:"subnet"`
	}
)

// runtimeConf is what libcni passes on for the pod. libcni filters the
// capabilities by what each plugin declares.
func runtimeConf(p Pod, podCIDR []string) (*libcni.RuntimeConf, error) {
	for _, value := range []string{p.Name, p.Namespace, p.UID} {
		if strings.ContainsAny(value, ";=") {
			return nil, fmt.Errorf("network of pod %s: %q holds one of ; and =, which CNI_ARGS has no way to pass: %w", p, value, errdefs.ErrInvalidArgument)
		}
	}
	caps, err := capabilities(p, podCIDR)
	if err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", p, err)
	}
	return &libcni.RuntimeConf{
		ContainerID: p.ID,
		NetNS:       p.NetNS,
		IfName:      ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
			{"K8S_POD_UID", p.UID},
		},
		CapabilityArgs: caps,
	}, nil
}

func capabilities(p Pod, podCIDR []string) (map[string]any, error) {
	caps := map[string]any{}
	if len(p.Annotations) > 0 {
		caps[capAnnotations] = p.Annotations
	}
	ports, err := portMappings(p.PortMappings)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	limit, err := bandwidthOf(p.Annotations)
	if err != nil {
		return nil, err
	}
	if limit != (bandwidth{}) {
		caps["bandwidth"] = limit
	}
	if d := p.DNS; d != nil {
		caps["dns"] = dnsConfig{d.GetServers(), d.GetSearches(), d.GetOptions()}
	}
	if p.CgroupParent != "" {
		caps["cgroupPath"] = p.CgroupParent
	}
	if len(podCIDR) > 0 {
		caps["ipRanges"] = ipRanges(podCIDR)
	}
	return caps, nil
}

// ipRanges gives each subnet a range set of its own: a pod has an address of
// each.
func ipRanges(subnets []string) [][]ipRange {
	var sets [][]ipRange
	for _, s := range subnets {
		sets = append(sets, []ipRange{{Subnet: s}})
	}
	return sets
}

// portMappings leaves out the entries without a host port: the kubelet lists
// every port of a pod.
func portMappings(in []*runtime.PortMapping) ([]portMapping, error) {
	var out []portMapping
	for i, m := range in {
		if m.GetHostPort() <= 0 {
			continue
		}
		if m.HostPort > math.MaxUint16 || m.ContainerPort <= 0 || m.ContainerPort > math.MaxUint16 {
			return nil, fmt.Errorf("port_mappings[%d]: host port %d to container port %d: ports are 1 to 65535: %w",
				i, m.HostPort, m.ContainerPort, errdefs.ErrInvalidArgument)
		}
		if m.HostIp != "" {
			if _, err := netip.ParseAddr(m.HostIp); err != nil {
				return nil, fmt.Errorf("port_mappings[%d]: host_ip %q is no address: %w", i, m.HostIp, errdefs.ErrInvalidArgument)
			}
		}
		out = append(out, portMapping{m.HostPort, m.ContainerPort, strings.ToLower(m.Protocol.String()), m.HostIp})
	}
	return out, nil
}

func bandwidthOf(annotations map[string]string) (bandwidth, error) {
	var b bandwidth
	var err error
	if b.IngressRate, b.IngressBurst, err = rate(annotations, ingressAnnotation); err != nil {
		return b, err
	}
	b.EgressRate, b.EgressBurst, err = rate(annotations, egressAnnotation)
	return b, err
}

// The kubelet's bounds of a rate.
var (
	minRate = resource.MustParse("1k")
	maxRate = resource.MustParse("1P")
)

// rate reads one limit. The burst is as large as the kernel takes, as it is
// with every runtime: the annotations have no word for it.
func rate(annotations map[string]string, key string) (bits, burst uint64, err error) {
	text, ok := annotations[key]
	if !ok {
		return 0, 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, 0, fmt.Errorf("annotation %s=%q: %w: %w", key, text, err, errdefs.ErrInvalidArgument)
	}
	if q.Cmp(minRate) < 0 || q.Cmp(maxRate) > 0 {
		return 0, 0, fmt.Errorf("annotation %s=%q is outside of %s to %s bits a second: %w",
			key, text, minRate.String(), maxRate.String(), errdefs.ErrInvalidArgument)
	}
	return uint64(q.Value()), math.MaxUint32, nil
}
