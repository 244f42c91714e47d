package manifest

import (
	"cmp"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/record"
)

// The labels and annotations by which a kubelet's tools know pods and
// containers, and berth run's own.
const (
	reservedLabels     = "io.kubernetes.pod."
	labelPodName       = reservedLabels + "name"
	labelPodNamespace  = reservedLabels + "namespace"
	labelPodUID        = reservedLabels + "uid"
	labelContainerName = "io.kubernetes.container.name"

	// AnnotationGrace is on containers: seconds between SIGTERM and SIGKILL.
	AnnotationGrace = "io.kubernetes.pod.terminationGracePeriod"
	// AnnotationRunDir is on pods of berth run: the directory of their volumes.
	AnnotationRunDir = "berth.dev/run-dir"
	// AnnotationSidecar is on containers of berth run that end after the others.
	AnnotationSidecar = "berth.dev/sidecar"
)

// Options are the facts about a machine and a run that a plan needs.
type Options struct {
	// UID is the new pod's; required.
	UID string
	// RunRoot and LogRoot are where pods' volumes and logs are; required.
	RunRoot, LogRoot string
	// SeccompRoot is the directory of Localhost seccomp profiles.
	SeccompRoot string
	// Hostname is the machine's; the node's name in the pod's eyes.
	Hostname string
	// HostIPs are the machine's addresses, the main one first.
	HostIPs []string
	// HostDNS is the machine's resolver configuration.
	HostDNS *runtime.DNSConfig
	// MaskedPaths are what containers must not see of this very machine, beside
	// what they see of none.
	MaskedPaths []string
	// Memory is the machine's, in bytes; OOM scores are shares of it.
	Memory int64
}

// A Plan is what is to be made of a Pod.
type Plan struct {
	Pod     *corev1.Pod
	Sandbox *runtime.PodSandboxConfig
	// RuntimeHandler is spec.runtimeClassName.
	RuntimeHandler string
	// RunDir holds the volumes, LogDir the logs.
	RunDir, LogDir   string
	Volumes          []Volume
	Init, Containers []Container
	RestartPolicy    corev1.RestartPolicy
	Grace            time.Duration
	// HostsFile is mounted over /etc/hosts with the content of Hosts; "" where
	// the runtime's will do.
	HostsFile string

	opts Options
}

// A Volume is a directory to be made, or a path to be checked, before the
// containers that mount it.
type Volume struct {
	Name, Path string
	// HostPathType is set for hostPath volumes.
	HostPathType *corev1.HostPathType
	// Memory is an emptyDir on a tmpfs, of at most Size bytes where not 0.
	Memory bool
	Size   int64
	// Group, where not nil, owns an emptyDir.
	Group *int64
}

// A Container is one container of the plan.
type Container struct {
	Name       string
	Image      string
	PullPolicy corev1.PullPolicy
	// Sidecar is an init container that runs on beside the others.
	Sidecar bool

	spec *corev1.Container
}

// NewPlan plans a pod that Decode returned.
func NewPlan(pod *corev1.Pod, opts Options) *Plan {
	spec := &pod.Spec
	p := &Plan{
		Pod:           pod,
		RunDir:        filepath.Join(opts.RunRoot, opts.UID),
		LogDir:        filepath.Join(opts.LogRoot, LogDirName(pod.Namespace, pod.Name, opts.UID)),
		RestartPolicy: spec.RestartPolicy,
		Grace:         time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second,
		opts:          opts,
	}
	if spec.RuntimeClassName != nil {
		p.RuntimeHandler = *spec.RuntimeClassName
	}
	if len(spec.HostAliases) > 0 {
		p.HostsFile = filepath.Join(p.RunDir, "etc-hosts")
	}
	p.Volumes = p.volumes()
	for i := range spec.InitContainers {
		c := newContainer(&spec.InitContainers[i])
		c.Sidecar = spec.InitContainers[i].RestartPolicy != nil
		p.Init = append(p.Init, c)
	}
	for i := range spec.Containers {
		p.Containers = append(p.Containers, newContainer(&spec.Containers[i]))
	}
	p.Sandbox = p.sandbox()
	return p
}

// LogDirName is the name of the directory of a pod's logs, as log shippers know
// it from kubelets.
func LogDirName(namespace, name, uid string) string { return namespace + "_" + name + "_" + uid }

func newContainer(spec *corev1.Container) Container {
	return Container{Name: spec.Name, Image: spec.Image, PullPolicy: spec.ImagePullPolicy, spec: spec}
}

func (p *Plan) volumes() []Volume {
	var all []Volume
	for _, v := range p.Pod.Spec.Volumes {
		if v.HostPath != nil {
			kind := corev1.HostPathUnset
			if v.HostPath.Type != nil {
				kind = *v.HostPath.Type
			}
			all = append(all, Volume{Name: v.Name, Path: path.Clean(v.HostPath.Path), HostPathType: &kind})
			continue
		}
		volume := Volume{
			Name: v.Name, Path: filepath.Join(p.RunDir, "volumes", v.Name),
			Memory: v.EmptyDir.Medium == corev1.StorageMediumMemory, Group: p.Pod.Spec.SecurityContext.FSGroup,
		}
		if v.EmptyDir.SizeLimit != nil {
			volume.Size = v.EmptyDir.SizeLimit.Value()
		}
		all = append(all, volume)
	}
	return all
}

// sandbox is the configuration of the pod's sandbox.
func (p *Plan) sandbox() *runtime.PodSandboxConfig {
	pod, spec := p.Pod, &p.Pod.Spec
	labels := map[string]string{labelPodName: pod.Name, labelPodNamespace: pod.Namespace, labelPodUID: p.opts.UID}
	annotations := map[string]string{AnnotationRunDir: p.RunDir, record.AnnotationUniqueName: "true"}
	maps.Copy(labels, pod.Labels)
	maps.Copy(annotations, pod.Annotations)
	config := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: p.opts.UID},
		LogDirectory: p.LogDir,
		DnsConfig:    p.dns(),
		PortMappings: portMappings(spec),
		Labels:       labels,
		Annotations:  annotations,
		Linux: &runtime.LinuxPodSandboxConfig{
			SecurityContext: p.sandboxSecurity(),
			Sysctls:         map[string]string{},
			Resources:       podResources(spec),
		},
	}
	if !spec.HostNetwork {
		config.Hostname = hostname(pod)
	}
	for _, s := range spec.SecurityContext.Sysctls {
		config.Linux.Sysctls[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
	}
	return config
}

// hostname is the pod's own, cut to what a hostname may be.
func hostname(pod *corev1.Pod) string {
	name := cmp.Or(pod.Spec.Hostname, pod.Name)
	return strings.TrimRight(name[:min(len(name), validation.DNS1123LabelMaxLength)], "-.")
}

func portMappings(spec *corev1.PodSpec) []*runtime.PortMapping {
	var mappings []*runtime.PortMapping
	for _, c := range allContainers(spec) {
		for _, port := range c.Ports {
			if port.HostPort == 0 || spec.HostNetwork {
				continue
			}
			mappings = append(mappings, &runtime.PortMapping{
				Protocol: protocols[port.Protocol], ContainerPort: port.ContainerPort, HostPort: port.HostPort, HostIp: port.HostIP,
			})
		}
	}
	return mappings
}

// dns is the pod's resolver configuration, nil for the machine's file. With no
// cluster there is no cluster's DNS, so ClusterFirst is Default, as it is for a
// kubelet that knows none.
func (p *Plan) dns() *runtime.DNSConfig {
	own := p.Pod.Spec.DNSConfig
	none := p.Pod.Spec.DNSPolicy == corev1.DNSNone
	if own == nil && !none {
		return nil
	}
	config := &runtime.DNSConfig{}
	if !none && p.opts.HostDNS != nil {
		config.Servers = slices.Clone(p.opts.HostDNS.Servers)
		config.Searches = slices.Clone(p.opts.HostDNS.Searches)
		config.Options = slices.Clone(p.opts.HostDNS.Options)
	}
	config.Servers = union(config.Servers, own.Nameservers)
	config.Searches = union(config.Searches, own.Searches)
	for _, o := range own.Options {
		config.Options = slices.DeleteFunc(config.Options, func(has string) bool {
			name, _, _ := strings.Cut(has, ":")
			return name == o.Name
		})
		option := o.Name
		if o.Value != nil && *o.Value != "" {
			option += ":" + *o.Value
		}
		config.Options = append(config.Options, option)
	}
	return config
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// Hosts is the content of HostsFile for a pod with these addresses.
func (p *Plan) Hosts(ips []string) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	b.WriteString("fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	name := hostname(p.Pod)
	if p.Pod.Spec.HostNetwork {
		name = p.opts.Hostname
	}
	for _, ip := range ips {
		b.WriteString(ip + "\t" + name + "\n")
	}
	for _, alias := range p.Pod.Spec.HostAliases {
		b.WriteString(alias.IP + "\t" + strings.Join(alias.Hostnames, "\t") + "\n")
	}
	return []byte(b.String())
}

// containerAnnotations are those a kubelet's tools look for.
func (p *Plan) containerAnnotations(c *Container, attempt uint32) map[string]string {
	annotations := map[string]string{
		"io.kubernetes.container.restartCount": strconv.Itoa(int(attempt)),
		AnnotationGrace:                        strconv.FormatInt(int64(p.Grace/time.Second), 10),
	}
	if c.Sidecar {
		annotations[AnnotationSidecar] = "true"
	}
	return annotations
}

func (p *Plan) containerLabels(c *Container) map[string]string {
	labels := maps.Clone(p.Sandbox.Labels)
	maps.DeleteFunc(labels, func(key, _ string) bool { return !strings.HasPrefix(key, reservedLabels) })
	labels[labelContainerName] = c.Name
	return labels
}
