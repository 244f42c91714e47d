package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

const conflist = `{
  "cniVersion": "1.0.0", "name": "vm-%[1]s",
  "plugins": [
    {"type": "bridge", "bridge": "vm%[2]d", "isGateway": true, "ipMasq": true, "ipMasqBackend": "%[1]s", "hairpinMode": true,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9%[2]d.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "backend": "%[1]s", "capabilities": {"portMappings": true}}
  ]
}`

// A host port is answered with the rules of iptables (here the one on
// nftables) and with those of nftables, and none stays.
func TestHostPorts(t *testing.T) {
	needsVM(t)
	file := "/etc/cni/net.d/10-vm.conflist"
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	})
	for i, backend := range []string{"iptables", "nftables"} {
		t.Run(backend, func(t *testing.T) {
			if err := os.WriteFile(file, fmt.Appendf(nil, conflist, backend, i), 0o600); err != nil {
				t.Fatal(err)
			}
			testkit.Until(t, 15*time.Second, func(ctx context.Context) string {
				s, err := client.Status(ctx, &cri.StatusRequest{Verbose: true})
				if err != nil {
					return err.Error()
				}
				if text := s.Info["cniconfig"]; !strings.Contains(text, "vm-"+backend) {
					return "the configuration is not taken up: " + text
				}
				return ""
			})
			port := int32(18080 + i)
			p := client.Pod(t, func(c *cri.PodSandboxConfig) {
				c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: port}}
			})
			p.Container(t, busybox, []string{"sh", "-c", "mkdir -p /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www"})
			fetch(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
			fetch(t, fmt.Sprintf("http://10.9%d.0.1:%d/", i, port))
			if err := p.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
			if err != nil || strings.Contains(string(out), fmt.Sprint(port)) {
				t.Errorf("rules are left: %v\n%s", err, out)
			}
		})
	}
}

func fetch(t *testing.T, url string) {
	t.Helper()
	c := &http.Client{Timeout: testkit.Scaled(2 * time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	testkit.Until(t, 15*time.Second, func(ctx context.Context) string {
		resp, err := c.Get(url)
		if err != nil {
			return err.Error()
		}
		body, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || string(body) != "served\n" {
			return fmt.Sprintf("%s: %q, %v", url, body, err)
		}
		return ""
	})
}
