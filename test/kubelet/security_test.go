package kubelet

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestSecurityContext(t *testing.T) {
	for name, test := range map[string]struct {
		pod       v1.PodSecurityContext
		container v1.SecurityContext
		script    string
		want      string
	}{
		"user and groups": {
			v1.PodSecurityContext{RunAsUser: new(int64(1000)), RunAsGroup: new(int64(2000)), FSGroup: new(int64(3000)), SupplementalGroups: []int64{4000}},
			v1.SecurityContext{},
			"id -u; id -g; id -G; stat -c %g /scratch; touch /scratch/file && stat -c %g /scratch/file",
			"1000\n2000\n2000 10 44 3000 4000\n3000\n3000\n",
		},
		"strict groups": {
			v1.PodSecurityContext{RunAsUser: new(int64(1000)), RunAsGroup: new(int64(2000)), SupplementalGroups: []int64{4000}, SupplementalGroupsPolicy: new(v1.SupplementalGroupsPolicyStrict)},
			v1.SecurityContext{}, "id -G", "2000 4000\n",
		},
		"the container's user wins": {
			v1.PodSecurityContext{RunAsUser: new(int64(1000))}, v1.SecurityContext{RunAsUser: new(int64(1234)), RunAsGroup: new(int64(5)), RunAsNonRoot: new(true)},
			"id -u; id -g", "1234\n5\n",
		},
		"read-only root": {
			v1.PodSecurityContext{}, v1.SecurityContext{ReadOnlyRootFilesystem: new(true)},
			"touch /file 2>/dev/null && echo written; touch /scratch/file && echo scratch", "scratch\n",
		},
		"capabilities": {
			v1.PodSecurityContext{}, v1.SecurityContext{Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}, Add: []v1.Capability{"NET_ADMIN"}}},
			"grep CapEff /proc/self/status", "CapEff:\t0000000000001000\n",
		},
		"privileged": {
			v1.PodSecurityContext{}, v1.SecurityContext{Privileged: new(true)},
			"test -e /dev/kmsg && echo devices; grep Seccomp: /proc/self/status; grep -c ' /sys .*ro,' /proc/self/mounts", "devices\nSeccomp:\t0\n0\n",
		},
		"no new privileges": {
			v1.PodSecurityContext{}, v1.SecurityContext{AllowPrivilegeEscalation: new(false)},
			"grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n",
		},
		"seccomp": {
			v1.PodSecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault}}, v1.SecurityContext{},
			"grep Seccomp: /proc/self/status", "Seccomp:\t2\n",
		},
		"no seccomp": {
			v1.PodSecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeUnconfined}}, v1.SecurityContext{},
			"grep Seccomp: /proc/self/status", "Seccomp:\t0\n",
		},
		"masked paths": {
			v1.PodSecurityContext{}, v1.SecurityContext{},
			"wc -c </proc/keys; echo 1 2>/dev/null >/proc/sys/kernel/domainname || echo read-only", "0\nread-only\n",
		},
		"sysctls": {
			v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "99"}, {Name: "net.core.somaxconn", Value: "321"}}},
			v1.SecurityContext{}, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/core/somaxconn", "99\n321\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "scratch", script(test.script), func(p *v1.Pod) {
					p.Spec.RestartPolicy = v1.RestartPolicyNever
					p.Spec.SecurityContext, p.Spec.Containers[0].SecurityContext = &test.pod, &test.container
				})
				p.terminated(t)
				got, err := p.logs(t.Context(), "main", nil)
				if err != nil {
					t.Fatal(err)
				}
				if sortGroups(got) != sortGroups(test.want) {
					t.Errorf("it says %q, want %q", got, test.want)
				}
			})
		})
	}
}

// sortGroups makes text independent of the order of the words on its lines.
func sortGroups(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		slices.Sort(words)
		b.WriteString(strings.Join(words, " ") + "\n")
	}
	return b.String()
}

func TestRootIsRefused(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", func(p *v1.Pod) { p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsNonRoot: new(true)} })
		p.until(t, func(s *v1.PodStatus) string {
			if c := containers(s)["main"]; c == nil || c.State.Waiting == nil || c.State.Waiting.Reason != "CreateContainerConfigError" {
				return "not refused: " + states(s)
			}
			return ""
		})
	})
}

// A profile of the node's own denies mkdir with an error that nothing else
// gives.
func TestLocalhostSeccomp(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		const profile = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}`
		dir := n.dir + "/root/seccomp"
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/no-mkdir.json", []byte(profile), 0o600); err != nil {
			t.Fatal(err)
		}
		p := newPod(t, n, "script", func(p *v1.Pod) {
			p.Spec.SecurityContext = &v1.PodSecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: new("no-mkdir.json")}}
		})
		p.ready(t)
		if got := p.run(t, "main", "sh", "-c", "mkdir /tmp/x 2>&1 || true"); !strings.Contains(got, "not supported") {
			t.Errorf("mkdir says %q", got)
		}
	})
}
