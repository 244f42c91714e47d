package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// workProgram is the program of every workload, by its path in the container.
const workProgram = "/bin/work"

// gracePeriod is a kubelet's default, in seconds. Workloads need none of it.
const gracePeriod = 30

// A pod is one with one container.
type pod struct {
	s             *server
	id, container string
	sandbox       *cri.PodSandboxConfig
	config        *cri.ContainerConfig
}

// took is how long the calls of one step took, by the figure's key.
type took map[string]time.Duration

// A stepError is a failed call and the figure that it belongs to.
type stepError struct {
	key string
	err error
}

func (e *stepError) Error() string { return e.key + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// call makes one call of a figure, bounded and timed.
func (t took) call(ctx context.Context, key string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	began := time.Now()
	err := f(ctx)
	if err != nil {
		return &stepError{key, err}
	}
	t[key] += time.Since(began)
	return nil
}

var podNumber atomic.Int64

// newPod is a pod of kind best effort, as a kubelet would ask for it.
func (s *server) newPod(image string, args []string, change ...func(*cri.ContainerConfig)) (*pod, error) {
	n := podNumber.Add(1)
	name := fmt.Sprintf("bench-%d", n)
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", n)
	labels := map[string]string{
		"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid,
	}
	p := &pod{s: s, sandbox: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
		Hostname:     name,
		LogDirectory: filepath.Join(s.logDir(), "default_"+name+"_"+uid),
		Labels:       labels,
		Annotations:  map[string]string{"kubernetes.io/config.seen": "2026-11-24T00:00:00Z", "kubernetes.io/config.source": "api"},
		DnsConfig: &cri.DNSConfig{
			Servers:  []string{"10.96.0.10"},
			Searches: []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"},
			Options:  []string{"ndots:5"},
		},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/" + filepath.Join(s.cgroup, podsCgroup, "pod"+uid),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
		},
	}}
	p.config = s.container(image, args, labels)
	for _, f := range change {
		f(p.config)
	}
	return p, os.MkdirAll(filepath.Join(p.sandbox.LogDirectory, "work"), 0o755)
}

func (s *server) container(image string, args []string, podLabels map[string]string) *cri.ContainerConfig {
	labels := map[string]string{"io.kubernetes.container.name": "work"}
	for k, v := range podLabels {
		labels[k] = v
	}
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "work"},
		Image:    &cri.ImageSpec{Image: image},
		Command:  append([]string{workProgram}, args...),
		LogPath:  "work/0.log",
		Labels:   labels,
		Annotations: map[string]string{
			"io.kubernetes.container.hash": "b1ad3b8a", "io.kubernetes.container.restartCount": "0",
			"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
			"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
		},
		Envs: []*cri.KeyValue{
			{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}, {Key: "KUBERNETES_SERVICE_PORT", Value: []byte("443")},
			{Key: "KUBERNETES_PORT", Value: []byte("tcp://10.96.0.1:443")},
		},
		Mounts: []*cri.Mount{
			{ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", HostPath: s.mountDir() + "/serviceaccount", Readonly: true},
			{ContainerPath: "/etc/hosts", HostPath: s.mountDir() + "/hosts"},
			{ContainerPath: "/dev/termination-log", HostPath: s.mountDir() + "/termination-log"},
		},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{CpuPeriod: 100000, CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
					"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
}

// up makes the calls that a kubelet makes until the container runs. Only the
// three that do something are timed.
func (p *pod) up(ctx context.Context) (took, error) {
	t := took{}
	err := t.call(ctx, keyRun, func(ctx context.Context) error {
		resp, err := p.s.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.sandbox})
		p.id = resp.GetPodSandboxId()
		return err
	})
	if err != nil {
		return t, err
	}
	_, err = p.s.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		return t, &stepError{keyRun, err}
	}
	_, err = p.s.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: p.config.Image})
	if err != nil {
		return t, &stepError{keyCreate, err}
	}
	err = t.call(ctx, keyCreate, func(ctx context.Context) error {
		resp, err := p.s.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: p.config, SandboxConfig: p.sandbox})
		p.container = resp.GetContainerId()
		return err
	})
	if err != nil {
		return t, err
	}
	err = t.call(ctx, keyStart, func(ctx context.Context) error {
		_, err := p.s.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container})
		return err
	})
	t[keyReady] = t[keyRun] + t[keyCreate] + t[keyStart]
	if err == nil && p.config.Command[1] == idleArgs[0] {
		err = p.listens(ctx)
	}
	return t, err
}

// listens waits, outside of any time, until the workload would notice a
// SIGTERM: the kernel drops one that meets a PID 1 which is just beginning.
func (p *pod) listens(ctx context.Context) error {
	tree, _, err := cpuTree()
	if err != nil {
		return err
	}
	err = testkit.Poll(ctx, startTimeout, func(context.Context) string {
		procs, _ := filepath.Glob(filepath.Join(tree, p.sandbox.Linux.CgroupParent, "*", "cgroup.procs")) // the pattern is a good one
		for _, file := range procs {
			text, err := os.ReadFile(file)
			if err != nil {
				return err.Error()
			}
			for _, pid := range strings.Fields(string(text)) {
				if exe, err := os.Readlink("/proc/" + pid + "/exe"); err == nil && exe == workProgram && catchesTERM(pid) {
					return ""
				}
			}
		}
		return "the workload of pod " + p.id + " does not wait for signals"
	})
	if err != nil {
		return &stepError{keyStart, err}
	}
	return nil
}

func catchesTERM(pid string) bool {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return false
	}
	_, mask, _ := strings.Cut(string(text), "\nSigCgt:\t")
	mask, _, _ = strings.Cut(mask, "\n")
	bits, err := strconv.ParseUint(mask, 16, 64)
	return err == nil && bits&(1<<(unix.SIGTERM-1)) != 0
}

// down stops the pod and removes it.
func (p *pod) down(ctx context.Context) (took, error) {
	t := took{}
	err := t.call(ctx, keyStop, func(ctx context.Context) error {
		_, err := p.s.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container, Timeout: gracePeriod})
		return err
	})
	if err == nil {
		err = t.call(ctx, keyStop, func(ctx context.Context) error {
			_, err := p.s.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		})
	}
	if err == nil {
		err = t.call(ctx, keyRemove, func(ctx context.Context) error {
			_, err := p.s.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container})
			return err
		})
	}
	if err == nil {
		err = t.call(ctx, keyRemove, func(ctx context.Context) error {
			_, err := p.s.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		})
	}
	if err != nil {
		return t, err
	}
	return t, p.forget()
}

// forget removes what a kubelet would remove of a pod that is gone.
func (p *pod) forget() error {
	removePodCgroup(p.sandbox.Linux.CgroupParent)
	return os.RemoveAll(p.sandbox.LogDirectory)
}

// discard removes a pod of which a call failed, as far as it can be.
func (p *pod) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if p.id == "" {
		return p.forget()
	}
	_, stop := p.s.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	_, remove := p.s.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	return errors.Join(stop, remove, p.forget())
}

// with runs a pod, gives it to use, and takes it away. A call that fails is
// filed under its figure; use's error is returned.
func (b *bench) with(ctx context.Context, s *server, args []string, use func(*pod) error, change ...func(*cri.ContainerConfig)) error {
	p, err := s.newPod(b.image, args, change...)
	if err != nil {
		return err
	}
	if _, err := p.up(ctx); err != nil {
		return errors.Join(err, p.discard(context.WithoutCancel(ctx)))
	}
	used := use(p)
	if _, err := p.down(context.WithoutCancel(ctx)); err != nil {
		return errors.Join(used, err, p.discard(context.WithoutCancel(ctx)))
	}
	return used
}
