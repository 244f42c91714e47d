package kubelet

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// limits set what main may use; "" leaves one out.
func limits(memory, cpu string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		list := v1.ResourceList{}
		for name, value := range map[v1.ResourceName]string{v1.ResourceMemory: memory, v1.ResourceCPU: cpu} {
			if value != "" {
				list[name] = resource.MustParse(value)
			}
		}
		p.Spec.Containers[0].Resources = v1.ResourceRequirements{Limits: list, Requests: list.DeepCopy()}
	}
}

func TestOutOfMemory(t *testing.T) {
	for name, program := range map[string]string{
		"main process": "exec dd if=/dev/zero of=/dev/null bs=256M count=1",
		"child":        "dd if=/dev/zero of=/dev/null bs=256M count=1; exit $?",
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "script", script(program), limits("32Mi", ""), func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever })
				if end := p.terminated(t); end.Reason != "OOMKilled" || end.ExitCode != 137 {
					t.Errorf("ended as %s with code %d, want OOMKilled with 137", end.Reason, end.ExitCode)
				}
			})
		})
	}
}

// resources are what the container's cgroup says: memory limit in bytes and
// CPU quota in microseconds a period, shares.
const resources = `cd /sys/fs/cgroup
cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares 2>/dev/null ||
	{ cat memory.max; cut -d' ' -f1 cpu.max; cat cpu.weight; }`

func TestResizeInPlace(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", limits("64Mi", "100m"))
		before := containers(p.ready(t))["main"]
		if got := strings.Fields(p.run(t, "main", "sh", "-c", resources)); got[0] != "67108864" || got[1] != "10000" {
			t.Errorf("memory and CPU quota at first: %v", got)
		}
		limits("96Mi", "200m")(p.manifest)
		if err := p.write(); err != nil {
			t.Fatal(err)
		}
		s := p.until(t, func(s *v1.PodStatus) string {
			c := containers(s)["main"]
			if c == nil || c.Resources == nil || c.Resources.Limits.Cpu().String() != "200m" || c.Resources.Limits.Memory().String() != "96Mi" {
				return fmt.Sprintf("resources %v, conditions %v", c.Resources, s.Conditions)
			}
			return ""
		})
		if got := strings.Fields(p.run(t, "main", "sh", "-c", resources)); got[0] != "100663296" || got[1] != "20000" {
			t.Errorf("memory and CPU quota after the resize: %v", got)
		}
		if after := containers(s)["main"]; after.RestartCount != 0 || after.ContainerID != before.ContainerID {
			t.Errorf("the resize restarted the container: %s", states(s))
		}
	})
}

func TestResizeThatRestarts(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", limits("64Mi", "100m"), func(p *v1.Pod) {
			p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer}}
		})
		p.ready(t)
		limits("48Mi", "100m")(p.manifest)
		if err := p.write(); err != nil {
			t.Fatal(err)
		}
		p.until(t, func(s *v1.PodStatus) string {
			if c := containers(s)["main"]; c == nil || c.RestartCount != 1 || c.State.Running == nil {
				return "not restarted for its resize: " + states(s)
			}
			return ""
		})
		if got := strings.Fields(p.run(t, "main", "sh", "-c", resources)); got[0] != "50331648" {
			t.Errorf("memory limit after the resize: %v", got)
		}
	})
}
