package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func TestVersion(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		v, err := c.Version(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if v.RuntimeName != "berth" || v.RuntimeApiVersion != "v1" || v.RuntimeVersion == "" || v.Version == "" {
			t.Errorf("got %v", v)
		}
	})
}

func TestStatus(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		brief, err := c.Status(t.Context(), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		conditions := map[string]bool{}
		for _, condition := range brief.Status.Conditions {
			conditions[condition.Type] = condition.Status
		}
		if !conditions[cri.RuntimeReady] || !conditions[cri.NetworkReady] {
			t.Errorf("conditions: %v", brief.Status)
		}
		handlers := map[string]bool{}
		for _, h := range brief.RuntimeHandlers {
			handlers[h.Name] = true
		}
		for _, want := range []string{"", "berth", "runc"} {
			if !handlers[want] {
				t.Errorf("no handler %q in %v", want, brief.RuntimeHandlers)
			}
		}
		if brief.Features == nil || !brief.Features.SupplementalGroupsPolicy {
			t.Errorf("features: %v", brief.Features)
		}
		if len(brief.Info) != 0 {
			t.Errorf("info without verbose: %v", brief.Info)
		}
		verbose, err := c.Status(t.Context(), &cri.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		for key, text := range verbose.Info {
			if !json.Valid([]byte(text)) {
				t.Errorf("info %s is no JSON: %s", key, text)
			}
		}
		all := strings.Join([]string{verbose.Info["config"], verbose.Info["cniconfig"]}, " ")
		if !strings.Contains(all, c.Daemon().Root) || !strings.Contains(all, c.Daemon().Bridge) {
			t.Errorf("info has no configuration or no network: %v", verbose.Info)
		}
	})
}

func TestRuntimeConfig(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		got, err := c.RuntimeConfig(t.Context(), &cri.RuntimeConfigRequest{})
		if err != nil {
			t.Fatal(err)
		}
		want := cri.CgroupDriver_CGROUPFS
		if testkit.Systemd() {
			want = cri.CgroupDriver_SYSTEMD
		}
		if got.Linux.GetCgroupDriver() != want {
			t.Errorf("got %v", got)
		}
	})
}

func podCIDR(ctx context.Context, c *testkit.Client, cidr string) error {
	_, err := c.UpdateRuntimeConfig(ctx, &cri.UpdateRuntimeConfigRequest{
		RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}}})
	return err
}

func TestUpdateRuntimeConfig(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		for _, cidr := range []string{"", "10.99.0.0/24", "10.99.0.0/24,fd99::/64"} {
			if err := podCIDR(t.Context(), c, cidr); err != nil {
				t.Errorf("%q: %v", cidr, err)
			}
		}
		testkit.WantCode(t, podCIDR(t.Context(), c, "10.99.0.0"), codes.InvalidArgument, "10.99.0.0")
		if p := c.Pod(t).Status(t); p.Network.GetIp() == "" || strings.HasPrefix(p.Network.Ip, "10.99.") {
			t.Errorf("a configuration of one's own is not replaced: %v", p.Network)
		}
	})
}

func TestUnimplementedNamesItself(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		_, err := c.CheckpointContainer(t.Context(), &cri.CheckpointContainerRequest{ContainerId: "x"})
		testkit.WantCode(t, err, codes.Unimplemented, "CheckpointContainer", "CRIU")
		_, err = c.CheckpointPod(t.Context(), &cri.CheckpointPodRequest{PodSandboxId: "x"})
		testkit.WantCode(t, err, codes.Unimplemented, "CheckpointPod")
	})
}
