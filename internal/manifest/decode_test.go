package manifest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is a manifest with parts put in: after metadata, after spec, after the
// one container.
func podWith(spec, container string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n" + indent(spec, "  ") +
		"  containers:\n  - name: c\n    image: i:1\n" + indent(container, "    ")
}

func indent(text, by string) string {
	if text == "" {
		return ""
	}
	return by + strings.ReplaceAll(text, "\n", "\n"+by) + "\n"
}

// Each manifest has one mistake; the error names the field, and for most what
// to do.
func TestDecodeRefuses(t *testing.T) {
	const c = "spec.containers[0]."
	for _, test := range []struct{ name, manifest, want string }{
		{"empty", "", "the manifest is empty: want a Pod"},
		{"comments", "# nothing\n---\n# here\n", "the manifest is empty: want a Pod"},
		{"no YAML", "a: [", "the manifest is no YAML"},
		{"no object", "just text", "the manifest is no Kubernetes object"},
		{"a deployment", "apiVersion: apps/v1\nkind: Deployment\n", `apiVersion "apps/v1", kind "Deployment": berth run takes apiVersion v1, kind Pod`},
		{"two pods", podWith("", "") + "---\n" + podWith("", ""), "holds several documents"},
		{"duplicate key", "apiVersion: v1\nkind: Pod\nkind: Pod\n", `key "kind" already set`},
		{"unknown field", podWith("", "imagePulPolicy: Never"), `unknown field "spec.containers[0].imagePulPolicy"`},
		{"wrong case", podWith("hostnetwork: true", ""), `unknown field "spec.hostnetwork"`},
		{"wrong type", podWith("", "ports: 80"), "spec.containers.ports: want a list, found a number"},
		{"a word that YAML makes a boolean", podWith("", "env: [{name: A, value: yes}]"), "spec.containers.env.value: want a string, found a bool; in YAML, quote it"},
		{"bad quantity", podWith("", "resources: {limits: {cpu: many}}"), "quantities must match the regular expression"},
		{"no name", "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: c, image: i}]}", "metadata.name: Required value: name the pod"},
		{"bad name", "apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}\nspec: {containers: [{name: c, image: i}]}", `metadata.name: Invalid value: "A_b"`},
		{"bad namespace", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a.b}\nspec: {containers: [{name: c, image: i}]}", "metadata.namespace: Invalid value"},
		{"path in name", "apiVersion: v1\nkind: Pod\nmetadata: {name: ../../etc}\nspec: {containers: [{name: c, image: i}]}", "metadata.name: Invalid value"},
		{"reserved label", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {io.kubernetes.pod.uid: x}}\nspec: {containers: [{name: c, image: i}]}", "metadata.labels[io.kubernetes.pod.uid]: Forbidden"},
		{"reserved annotation", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {berth.dev/run-dir: /etc}}\nspec: {containers: [{name: c, image: i}]}", "metadata.annotations[berth.dev/run-dir]: Forbidden"},
		{"owner", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, uid: x}\nspec: {containers: [{name: c, image: i}]}", "metadata.uid: not supported by berth run: of metadata"},
		{"no containers", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}", "spec.containers: Required value"},
		{"same container twice", podWith("initContainers: [{name: c, image: i}]", ""), "spec.containers[0].name: Duplicate value: \"c\""},
		{"no image", strings.Replace(podWith("", ""), "image: i:1", "image: ''", 1), c + "image: Required value"},

		{"probe", podWith("", "livenessProbe: {tcpSocket: {port: 80}}"), c + "livenessProbe: not supported by berth run: probes need a kubelet; remove it"},
		{"empty probe", podWith("", "livenessProbe: {}"), c + "livenessProbe: not supported"},
		{"envFrom", podWith("", "envFrom: [{configMapRef: {name: x}}]"), c + "envFrom: not supported by berth run: there is no API server"},
		{"secret", podWith("", "env: [{name: A, valueFrom: {secretKeyRef: {name: a, key: b}}}]"), c + "env[0].valueFrom.secretKeyRef: not supported"},
		{"post start", podWith("", "lifecycle: {postStart: {exec: {command: [x]}}}"), c + "lifecycle.postStart: not supported"},
		{"subPath", podWith("volumes: [{name: v, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: /a, subPath: b}]"), c + "volumeMounts[0].subPath: not supported by berth run: mount the whole volume"},
		{"config map", podWith("volumes: [{name: v, configMap: {name: x}}]", ""), "spec.volumes[0].configMap: not supported by berth run: of volumes, emptyDir and hostPath"},
		{"empty secret", podWith("volumes: [{name: v, secret: {}}]", ""), "spec.volumes[0].secret: not supported"},
		{"ephemeral storage", podWith("", "resources: {limits: {ephemeral-storage: 1Gi}}"), c + "resources.limits.ephemeral-storage: not supported"},
		{"tolerations", podWith("tolerations: [{key: a}]", ""), "spec.tolerations: not supported by berth run: there is no scheduler; remove it"},
		{"user namespace", podWith("hostUsers: false", ""), "spec.hostUsers: not supported by berth run: it takes a kubelet"},
		{"zero is set", podWith("priority: 0", ""), "spec.priority: not supported"},
		{"token", podWith("automountServiceAccountToken: true", ""), "spec.automountServiceAccountToken: not supported"},
		{"status", "status: {phase: Running}\n" + podWith("", ""), "status: not supported"},
		{"restart rules", podWith("", "restartPolicy: Always"), c + "restartPolicy: not supported"},
		{"windows", podWith("securityContext: {windowsOptions: {hostProcess: true}}", ""), "spec.securityContext.windowsOptions: not supported"},

		{"restartPolicy", podWith("restartPolicy: Sometimes", ""), `spec.restartPolicy: Unsupported value: "Sometimes"`},
		{"sidecar policy", podWith("initContainers: [{name: s, image: i, restartPolicy: Never}]", ""), "spec.initContainers[0].restartPolicy: Unsupported value"},
		{"grace", podWith("terminationGracePeriodSeconds: -1", ""), "spec.terminationGracePeriodSeconds: Invalid value: -1"},
		{"hostname", podWith("hostname: a.b", ""), "spec.hostname: Invalid value"},
		{"os", podWith("os: {name: windows}", ""), "spec.os.name: Unsupported value"},
		{"host and shared PID", podWith("hostPID: true\nshareProcessNamespace: true", ""), "spec.shareProcessNamespace: Invalid value: true: cannot be together with hostPID"},
		{"dnsPolicy", podWith("dnsPolicy: Mine", ""), "spec.dnsPolicy: Unsupported value"},
		{"no DNS server", podWith("dnsPolicy: None", ""), "spec.dnsConfig.nameservers: Required value: dnsPolicy None needs one"},
		{"DNS server", podWith("dnsConfig: {nameservers: [dns.example]}", ""), "spec.dnsConfig.nameservers[0]: Invalid value"},
		{"DNS option", podWith("dnsConfig: {options: [{name: \"a\\nb\"}]}", ""), "spec.dnsConfig.options[0]: Invalid value"},
		{"alias", podWith("hostAliases: [{ip: here, hostnames: [a]}]", ""), "spec.hostAliases[0].ip: Invalid value"},
		{"alias name", podWith("hostAliases: [{ip: 1.2.3.4, hostnames: [\"a b\"]}]", ""), "spec.hostAliases[0].hostnames[0]: Invalid value"},
		{"sysctl", podWith("securityContext: {sysctls: [{name: ../x, value: a}]}", ""), "spec.securityContext.sysctls[0].name: Invalid value"},
		{"host sysctl", podWith("hostNetwork: true\nsecurityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}", ""), "spec.securityContext.sysctls[0].name: Forbidden"},
		{"negative user", podWith("securityContext: {runAsUser: -1}", ""), "spec.securityContext.runAsUser: Invalid value: -1"},
		{"large group", podWith("securityContext: {supplementalGroups: [4294967296]}", ""), "spec.securityContext.supplementalGroups[0]: Invalid value"},
		{"seccomp type", podWith("", "securityContext: {seccompProfile: {type: Strict}}"), c + "securityContext.seccompProfile.type: Unsupported value"},
		{"seccomp path", podWith("", "securityContext: {seccompProfile: {type: Localhost, localhostProfile: ../x}}"), c + "securityContext.seccompProfile.localhostProfile: Invalid value"},
		{"seccomp without path", podWith("", "securityContext: {seccompProfile: {type: Localhost}}"), c + "securityContext.seccompProfile.localhostProfile: Required value"},
		{"privileged without escalation", podWith("", "securityContext: {privileged: true, allowPrivilegeEscalation: false}"), c + "securityContext.allowPrivilegeEscalation: Invalid value"},

		{"pull policy", podWith("", "imagePullPolicy: Later"), c + "imagePullPolicy: Unsupported value"},
		{"env name", podWith("", "env: [{name: 'A=B', value: x}]"), c + "env[0].name: Invalid value"},
		{"env twice", podWith("", "env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"), c + "env[0].valueFrom: Forbidden"},
		{"env field", podWith("", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}]"), c + "env[0].valueFrom.fieldRef.fieldPath: Unsupported value"},
		{"env key", podWith("", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['']\"}}}]"), c + "env[0].valueFrom.fieldRef.fieldPath: Unsupported value"},
		{"port", podWith("", "ports: [{containerPort: 70000}]"), c + "ports[0].containerPort: Invalid value: 70000"},
		{"host port", podWith("", "ports: [{containerPort: 80, hostPort: -1}]"), c + "ports[0].hostPort: Invalid value: -1"},
		{"host port twice", podWith("", "ports: [{containerPort: 80, hostPort: 81}, {containerPort: 82, hostPort: 81}]"), c + "ports[1].hostPort: Duplicate value: 81"},
		{"host network port", podWith("hostNetwork: true", "ports: [{containerPort: 80, hostPort: 81}]"), c + "ports[0].hostPort: Invalid value: 81: must equal containerPort"},
		{"protocol", podWith("", "ports: [{containerPort: 80, protocol: ICMP}]"), c + "ports[0].protocol: Unsupported value"},
		{"host IP", podWith("", "ports: [{containerPort: 80, hostPort: 80, hostIP: eth0}]"), c + "ports[0].hostIP: Invalid value"},
		{"signal", podWith("", "lifecycle: {stopSignal: SIGNAL}"), c + "lifecycle.stopSignal: Invalid value"},
		{"request above limit", podWith("", "resources: {requests: {cpu: 2}, limits: {cpu: 1}}"), c + "resources.requests[cpu]: Invalid value: \"2\": must not be above the limit of 1"},
		{"negative limit", podWith("", "resources: {limits: {memory: '-1'}}"), c + "resources.limits[memory]: Invalid value"},

		{"no volume", podWith("", "volumeMounts: [{name: v, mountPath: /a}]"), c + "volumeMounts[0].name: Not found: \"v\""},
		{"relative mount", podWith("volumes: [{name: v, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: a}]"), c + "volumeMounts[0].mountPath: Invalid value"},
		{"same place", podWith("volumes: [{name: v, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: /a}, {name: v, mountPath: /a/}]"), c + "volumeMounts[1].mountPath: Duplicate value"},
		{"propagation", podWith("volumes: [{name: v, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: /a, mountPropagation: Bidirectional}]"), c + "volumeMounts[0].mountPropagation: Forbidden"},
		{"volume twice", podWith("volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]", ""), "spec.volumes[1].name: Duplicate value"},
		{"volume name", podWith("volumes: [{name: ../v, emptyDir: {}}]", ""), "spec.volumes[0].name: Invalid value"},
		{"volume of no kind", podWith("volumes: [{name: v}]", ""), "spec.volumes[0]: Required value: give the volume an emptyDir or a hostPath"},
		{"volume of two kinds", podWith("volumes: [{name: v, emptyDir: {}, hostPath: {path: /a}}]", ""), "spec.volumes[0].hostPath: Forbidden"},
		{"size on disk", podWith("volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]", ""), "spec.volumes[0].emptyDir.sizeLimit: Forbidden"},
		{"medium", podWith("volumes: [{name: v, emptyDir: {medium: HugePages}}]", ""), "spec.volumes[0].emptyDir.medium: Unsupported value"},
		{"relative host path", podWith("volumes: [{name: v, hostPath: {path: a}}]", ""), "spec.volumes[0].hostPath.path: Invalid value"},
		{"host path up", podWith("volumes: [{name: v, hostPath: {path: /a/../b}}]", ""), "spec.volumes[0].hostPath.path: Invalid value"},
		{"host path type", podWith("volumes: [{name: v, hostPath: {path: /a, type: Folder}}]", ""), "spec.volumes[0].hostPath.type: Unsupported value"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Decode([]byte(test.manifest))
			if err == nil {
				t.Fatalf("accepted; want %q", test.want)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q, want %q in it", err, test.want)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error is no ErrInvalidArgument: %v", err)
			}
		})
	}
}

func TestDecodeReportsAll(t *testing.T) {
	_, err := Decode([]byte(podWith("nodeName: node1\npriority: 1", "livenessProbe: {}\nenvFrom: [{}]")))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"spec.nodeName", "spec.priority", "livenessProbe", "envFrom"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in %q", want, err)
		}
	}
}

// A path in a table that no Pod has would never be looked up.
func TestTablesNameRealFields(t *testing.T) {
	var all []string
	for path := range supportedFields {
		all = append(all, path)
	}
	for path := range harmless {
		all = append(all, path)
	}
	for _, h := range hints {
		all = append(all, expandPath(h.path)...)
	}
	for _, path := range all {
		if err := fieldExists(reflect.TypeFor[corev1.Pod](), path); err != "" {
			t.Errorf("%s: %s", path, err)
		}
	}
}

func fieldExists(typ reflect.Type, path string) string {
	for part := range strings.SplitSeq(path, ".") {
		name, isList := strings.CutSuffix(part, "[]")
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() == reflect.Map { // resources by their names
			return ""
		}
		next := jsonField(typ, name)
		if next == nil {
			return "no field " + name + " in " + typ.String()
		}
		typ = next
		if isList {
			if typ.Kind() != reflect.Slice {
				return name + " is no list"
			}
			typ = typ.Elem()
		}
	}
	return ""
}

func jsonField(typ reflect.Type, name string) reflect.Type {
	for i := range typ.NumField() {
		f := typ.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name {
			return f.Type
		}
		if f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct {
			if found := jsonField(f.Type, name); found != nil {
				return found
			}
		}
	}
	return nil
}

func TestDefaultPullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"busybox": corev1.PullAlways, "busybox:latest": corev1.PullAlways, "localhost:5000/busybox": corev1.PullAlways,
		"busybox:1.36": corev1.PullIfNotPresent, "localhost:5000/busybox:1": corev1.PullIfNotPresent,
		"busybox@sha256:" + strings.Repeat("a", 64): corev1.PullIfNotPresent,
	} {
		if got := defaultPullPolicy(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "a", "B": "$(A)", "E": ""}
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "a", "x$(A)y$(A)z": "xayaz", "$(B)": "$(A)", "[$(E)]": "[]",
		"$(MISSING)": "$(MISSING)", "$$(A)": "$(A)", "$$$(A)": "$a", "$": "$", "$$": "$", "$(": "$(", "$(A": "$(A", "$A": "$A", "a$ b": "a$ b", "$()": "$()",
	} {
		if got := expand(in, vars); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestEnvLastWins(t *testing.T) {
	pod, err := Decode([]byte(podWith("", "env: [{name: A, value: '1'}, {name: B, value: $(A)}, {name: A, value: $(B)2}]")))
	if err != nil {
		t.Fatal(err)
	}
	plan := NewPlan(pod, testOptions())
	config, err := plan.Config(&plan.Containers[0], 0, &runtime.Image{Id: "i"}, Started{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, kv := range config.Envs {
		got = append(got, kv.Key+"="+string(kv.Value))
	}
	if diff := cmp.Diff([]string{"B=1", "A=12"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNonRoot(t *testing.T) {
	root, other := &runtime.Image{Uid: &runtime.Int64Value{}}, &runtime.Image{Uid: &runtime.Int64Value{Value: 5}}
	for _, test := range []struct {
		name, spec, container string
		image                 *runtime.Image
		want                  string
	}{
		{"not asked for", "", "", root, ""},
		{"image with user", "", "securityContext: {runAsNonRoot: true}", other, ""},
		{"root image", "", "securityContext: {runAsNonRoot: true}", root, "image i:1 runs as root"},
		{"image without user", "securityContext: {runAsNonRoot: true}", "", &runtime.Image{}, "image i:1 runs as root"},
		{"name of a user", "securityContext: {runAsNonRoot: true}", "", &runtime.Image{Username: "web"}, `whether user "web" of image i:1 is root is not known`},
		{"user given", "securityContext: {runAsNonRoot: true}", "securityContext: {runAsUser: 3}", root, ""},
		{"root given", "securityContext: {runAsNonRoot: true}", "securityContext: {runAsUser: 0}", other, "runAsUser is 0"},
		{"container's own", "securityContext: {runAsNonRoot: true}", "securityContext: {runAsNonRoot: false}", root, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod, err := Decode([]byte(podWith(test.spec, test.container)))
			if err != nil {
				t.Fatal(err)
			}
			plan := NewPlan(pod, testOptions())
			_, err = plan.Config(&plan.Containers[0], 0, test.image, Started{})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for _, test := range []struct {
		name, resources            string
		shares, quota, memory, oom int64
		qos                        corev1.PodQOSClass
	}{
		{"none", "{}", 2, 0, 0, 1000, corev1.PodQOSBestEffort},
		{"tiny", "{limits: {cpu: 1m}}", 2, 1000, 0, 999, corev1.PodQOSBurstable},
		{"huge", "{requests: {cpu: 1000}}", 262144, 0, 0, 999, corev1.PodQOSBurstable},
		{"guaranteed", "{limits: {cpu: 500m, memory: 1Gi}}", 512, 50000, 1 << 30, -997, corev1.PodQOSGuaranteed},
		{"half of the memory", "{requests: {memory: 2Gi}}", 2, 0, 0, 500, corev1.PodQOSBurstable},
		{"more than the memory", "{requests: {memory: 8Gi}}", 2, 0, 0, 3, corev1.PodQOSBurstable},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod, err := Decode([]byte(podWith("", "resources: "+test.resources)))
			if err != nil {
				t.Fatal(err)
			}
			plan := NewPlan(pod, testOptions())
			r := plan.resources(&plan.Containers[0])
			got := []int64{r.CpuShares, r.CpuQuota, r.MemoryLimitInBytes, r.OomScoreAdj}
			if diff := cmp.Diff([]int64{test.shares, test.quota, test.memory, test.oom}, got); diff != "" {
				t.Errorf("shares, quota, memory, OOM score (-want +got):\n%s", diff)
			}
			if got := qos(&pod.Spec); got != test.qos {
				t.Errorf("QoS %s, want %s", got, test.qos)
			}
		})
	}
}

// Whatever bytes come, decoding ends, and what it accepts can be planned.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(podWith("securityContext: {runAsNonRoot: true}", "env: [{name: A, value: $(A)$$}]")))
	f.Fuzz(func(t *testing.T, data []byte) {
		pod, err := Decode(data)
		if err != nil {
			return
		}
		plan := NewPlan(pod, testOptions())
		for _, c := range append(plan.Init, plan.Containers...) {
			config, err := plan.Config(&c, 0, &runtime.Image{Id: "i"}, Started{})
			if err != nil {
				continue
			}
			for _, m := range config.Mounts {
				if m.HostPath == "" {
					t.Fatalf("mount of nothing at %s", m.ContainerPath)
				}
			}
			if strings.Contains(config.LogPath, "..") {
				t.Fatalf("log path %q leaves its directory", config.LogPath)
			}
		}
		for _, dir := range []string{plan.RunDir, plan.LogDir} {
			if filepath.Clean(dir) != dir || filepath.Dir(dir) != "/run/root" && filepath.Dir(dir) != "/log/root" {
				t.Fatalf("directory %q leaves its root", dir)
			}
		}
		if _, err := json.Marshal(plan.Pod); err != nil {
			t.Fatal(err)
		}
	})
}
