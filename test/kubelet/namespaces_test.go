package kubelet

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

func TestPodNetwork(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		a, b := newPod(t, n, "probed"), newPod(t, n, "script")
		to := a.ready(t).PodIP
		own := b.ready(t).PodIP
		if got := b.run(t, "main", "wget", "-qO-", fmt.Sprintf("http://%s:%d/ready", to, httpPort)); got != "well\n" {
			t.Errorf("one pod gets %q from another", got)
		}
		if got := b.run(t, "main", "cat", "/etc/hosts"); !strings.Contains(got, own+"\t"+b.name) {
			t.Errorf("/etc/hosts does not name the pod %s: %s", own, got)
		}
		if got := b.run(t, "main", "hostname"); got != b.name+"\n" {
			t.Errorf("the pod's name is %q", got)
		}
		if got := b.run(t, "main", "cat", "/etc/resolv.conf"); !strings.Contains(got, "192.0.2.53") || !strings.Contains(got, "cluster.test") {
			t.Errorf("/etc/resolv.conf: %s", got)
		}
	})
}

func TestDNSPolicyAndHostAliases(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", func(p *v1.Pod) {
			p.Spec.DNSPolicy = v1.DNSNone
			p.Spec.DNSConfig = &v1.PodDNSConfig{Nameservers: []string{"192.0.2.77"}, Searches: []string{"own.test"},
				Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: new("3")}}}
			p.Spec.HostAliases = []v1.HostAlias{{IP: "192.0.2.99", Hostnames: []string{"alias.test"}}}
			p.Spec.Hostname, p.Spec.Subdomain = "chosen", "sub"
		})
		p.ready(t)
		got := p.run(t, "main", "cat", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname")
		for _, want := range []string{"nameserver 192.0.2.77", "search own.test", "ndots:3", "192.0.2.99\talias.test", "chosen.sub.default", "\nchosen\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in resolv.conf, hosts and hostname:\n%s", want, got)
			}
		}
	})
}

func TestHostNamespaces(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		p := newPod(t, n, "script", func(p *v1.Pod) { p.Spec.HostNetwork, p.Spec.HostPID, p.Spec.HostIPC = true, true, true })
		p.ready(t) // without an address: a standalone kubelet has none of its node
		for _, kind := range []string{"net", "pid", "ipc"} {
			want, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(p.run(t, "main", "readlink", "/proc/self/ns/"+kind)); got != want {
				t.Errorf("the pod's %s namespace is %s, want the host's %s", kind, got, want)
			}
		}
		own, err := os.ReadFile("/proc/self/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		if got := p.run(t, "main", "cat", "/proc/"+strconv.Itoa(os.Getpid())+"/cmdline"); got != string(own) {
			t.Errorf("the pod does not see this process but %q", got)
		}
	})
}

func TestHostPort(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		p := newPod(t, n, "probed", func(p *v1.Pod) {
			p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: httpPort, HostPort: int32(port)}}
		})
		p.ready(t)
		address := fmt.Sprintf("%s:%d", nodeAddress, port)
		n.until(t, soon, func(context.Context) string {
			if got, err := ask(address); err != nil || !strings.HasSuffix(got, "well\n") {
				return fmt.Sprintf("at the host's port: %q %v", got, err)
			}
			return ""
		})
		if err := p.delete(); err != nil {
			t.Fatal(err)
		}
		n.until(t, soon, func(context.Context) string {
			if got, err := ask(address); err == nil {
				return "the host's port still answers " + got
			}
			return ""
		})
	})
}

// ask makes one HTTP request by hand.
func ask(address string) (string, error) {
	c, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }() // it was only read
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "GET /ready HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(c)
	return string(text), err
}

func TestShareProcessNamespace(t *testing.T) {
	for name, share := range map[string]bool{"shared": true, "own": false} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "pair", func(p *v1.Pod) { p.Spec.ShareProcessNamespace = &share })
				p.ready(t)
				if got := p.run(t, "second", "ps"); strings.Contains(got, "sleep 4321") != share {
					t.Errorf("shared is %v and one container sees of the other: %s", share, got)
				}
				const spaces = "for n in net ipc uts; do readlink /proc/self/ns/$n; done"
				first := p.run(t, "first", "sh", "-c", spaces)
				if second := p.run(t, "second", "sh", "-c", spaces); first != second {
					t.Errorf("the containers do not share their namespaces: %s%s", first, second)
				}
			})
		})
	}
}
