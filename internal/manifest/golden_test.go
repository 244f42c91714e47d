package manifest

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

// testOptions are a machine of 4 GiB.
func testOptions() Options {
	return Options{
		UID: "11111111-2222-3333-4444-555555555555", RunRoot: "/run/root", LogRoot: "/log/root", SeccompRoot: "/seccomp",
		MaskedPaths: []string{"/sys/devices/system/cpu/cpu0/thermal_throttle"},
		Hostname:    "node", HostIPs: []string{"198.51.100.1", "2001:db8::1"}, Memory: 4 << 30,
		HostDNS: &runtime.DNSConfig{Servers: []string{"198.51.100.53", "192.0.2.53"}, Searches: []string{"host.example"}, Options: []string{"ndots:5", "rotate"}},
	}
}

// render is a plan as YAML: what the CRI server would be asked for.
func render(t *testing.T, p *Plan) string {
	t.Helper()
	var containers []any
	image := &runtime.Image{Id: "sha256:aa", Uid: &runtime.Int64Value{Value: 7}}
	for _, c := range append(p.Init, p.Containers...) {
		config, err := p.Config(&c, 2, image, Started{IPs: []string{"10.0.0.2", "fd00::2"}})
		if err != nil {
			t.Fatal(err)
		}
		containers = append(containers, map[string]any{"pull": c.PullPolicy, "sidecar": c.Sidecar, "config": message(t, config)})
	}
	text, err := yaml.Marshal(map[string]any{
		"sandbox": message(t, p.Sandbox), "handler": p.RuntimeHandler, "runDir": p.RunDir, "logDir": p.LogDir,
		"volumes": p.Volumes, "restartPolicy": p.RestartPolicy, "grace": p.Grace.String(),
		"hostsFile": p.HostsFile, "hosts": strings.Split(string(p.Hosts([]string{"10.0.0.2"})), "\n"),
		"containers": containers,
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func message(t *testing.T, m proto.Message) any {
	t.Helper()
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPlanGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pod, err := Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			got := render(t, NewPlan(pod, testOptions()))
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}
