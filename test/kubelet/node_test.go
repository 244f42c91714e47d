package kubelet

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

// What a pod may have on the nodes.
const (
	maxLogFiles  = 4
	maxProcesses = 1500
)

// nodeOptions say how a node differs from the plain one.
type nodeOptions struct {
	gates  map[string]bool
	config map[string]any // keys of the kubelet's configuration
	// cadvisor puts the daemon's containerd where the kubelet's cAdvisor looks
	// for one, which no setting moves.
	cadvisor bool
	// cluster is the address of the kubelet's API server. Without one it is
	// standalone.
	cluster string
}

// kubeconfig names a cluster by its address.
const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
users: [{name: u, user: {}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`

// A node is a daemon and the kubelet on it. Its methods are safe for concurrent
// use but for those that start and stop something.
type node struct {
	daemon *testkit.Daemon
	client *testkit.Client
	http   *http.Client
	opts   nodeOptions

	dir       string // the kubelet's
	manifests string
	logFile   string
	port      int
	cmd       *exec.Cmd
	done      chan struct{} // closed when the kubelet has ended
	before    string        // the host before the kubelet
	allow     []string      // errors in its log, beside those explained

	mu       sync.Mutex
	troubled map[string]bool // the pods that are meant to go wrong, guarded by mu
}

// meant marks a pod as one that is meant to go wrong: what the kubelet logs of
// it is explained.
func (n *node) meant(p *v1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.troubled[p.Name+"-"+nodeName] = true
}

// newNode starts a daemon, warmed up, that a kubelet can be started on.
func newNode(opts nodeOptions) (n *node, err error) {
	ctx := context.Background()
	d, err := testkit.NewDaemon(testkit.DaemonOptions{})
	if err != nil {
		return nil, err
	}
	n = &node{daemon: d, opts: opts, dir: d.Base + "/kubelet", logFile: d.Base + "/kubelet.log", troubled: map[string]bool{}}
	n.manifests = n.dir + "/manifests"
	n.http = &http.Client{Transport: &http.Transport{TLSClientConfig: insecure()}}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
			n = nil
		}
	}()
	if err := d.Start(ctx); err != nil {
		return n, err
	}
	if n.client, err = d.Client(); err != nil {
		return n, err
	}
	for _, image := range []string{busybox, probed} {
		if _, err := n.client.Pull(ctx, image); err != nil {
			return n, err
		}
	}
	if err := n.client.WarmUp(ctx, busybox); err != nil {
		return n, err
	}
	if opts.cadvisor {
		const socket = "/run/containerd/containerd.sock" // in the test's own /run
		err := errors.Join(os.MkdirAll(filepath.Dir(socket), 0o755), os.Symlink(d.State+"/containerd.sock", socket))
		if err != nil {
			return n, err
		}
	}
	return n, n.makeCgroups()
}

// begin notes the state of the host, which check wants back, and starts the
// kubelet.
func (n *node) begin() (err error) {
	ctx := context.Background()
	if n.before, err = n.daemon.Host(ctx); err != nil {
		return err
	}
	return n.startKubelet(ctx)
}

// ownNode is a node for one test, which may not run beside others: the state of
// the host is compared.
func ownNode(t *testing.T, opts nodeOptions) *node {
	t.Helper()
	needKubelet(t)
	n, err := newNode(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the kubelet:\n%s\nlog of the daemon:\n%s", n.log(100), n.daemon.Log(100))
		}
		if err := errors.Join(n.check(), n.close()); err != nil {
			t.Error(err)
		}
	})
	if err := n.begin(); err != nil {
		t.Fatal(err)
	}
	return n
}

// insecure takes the kubelet's own certificate, which it signs itself.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// config is the kubelet's configuration.
func (n *node) config() map[string]any {
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"staticPodPath": n.manifests, "podLogsDir": n.dir + "/logs", "volumePluginDir": n.dir + "/plugins",
		"address": "127.0.0.1", "port": n.port, "readOnlyPort": 0, "healthzPort": 0,
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":  map[string]any{"mode": "AlwaysAllow"},
		// This machine has cgroup v1 and no right to lower oom_score_adj. Pods have
		// cgroups of the kubelet's making, below the daemon's own.
		"failCgroupV1": false, "failSwapOn": false, "cgroupsPerQOS": true, "cgroupRoot": "/" + n.daemon.CgroupParent,
		"enforceNodeAllocatable": []string{}, "oomScoreAdj": 0,
		"makeIPTablesUtilChains": false, "resolvConf": "", "clusterDNS": []string{"192.0.2.53"}, "clusterDomain": "cluster.test",
		"containerRuntimeEndpoint": "unix://" + n.daemon.Address,
		"syncFrequency":            "1s", "fileCheckFrequency": "1s", "volumeStatsAggPeriod": "1s",
		"registryPullQPS": 0, "serializeImagePulls": false, "maxPods": 250,
		"crashLoopBackOff": map[string]any{"maxContainerRestartPeriod": "2s"},
		"evictionHard":     map[string]any{"memory.available": "1Mi"},
		// Image garbage is collected in a test of its own.
		"imageGCHighThresholdPercent": 100,
		"allowedUnsafeSysctls":        []string{"net.core.*"},
		"containerLogMaxSize":         "4Mi",
		"containerLogMaxFiles":        maxLogFiles,
		"containerLogMonitorInterval": "3s",
		"podPidsLimit":                maxProcesses,
		"logging":                     map[string]any{"format": "text", "verbosity": 2},
	}
	gates := map[string]bool{"KubeletCrashLoopBackOffMax": true, "ContainerStopSignals": true}
	maps.Copy(gates, n.opts.gates)
	config["featureGates"] = gates
	maps.Copy(config, n.opts.config)
	return config
}

func (n *node) writeConfig() (string, error) {
	for _, dir := range []string{n.manifests, n.dir + "/logs"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	text, err := json.MarshalIndent(n.config(), "", "  ")
	if err != nil {
		return "", err
	}
	file := n.dir + "/config.json"
	return file, os.WriteFile(file, text, 0o600)
}

// startKubelet starts the kubelet and waits until it serves and has looked at
// its pods.
func (n *node) startKubelet(ctx context.Context) error {
	if n.port == 0 {
		port, err := freePort()
		if err != nil {
			return err
		}
		n.port = port
	}
	config, err := n.writeConfig()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	args := []string{"--config", config, "--root-dir", n.dir + "/root", "--cert-dir", n.dir + "/pki",
		"--hostname-override", nodeName, "--node-ip", nodeAddress}
	if n.opts.cluster != "" {
		file := n.dir + "/kubeconfig"
		if err := os.WriteFile(file, fmt.Appendf(nil, kubeconfig, n.opts.cluster), 0o600); err != nil {
			return err
		}
		args = append(args, "--kubeconfig", file)
	}
	cmd := exec.Command(program(), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	if err := errors.Join(err, log.Close()); err != nil {
		return err
	}
	done := make(chan struct{})
	n.cmd, n.done = cmd, done
	go func() {
		defer close(done)
		_ = cmd.Wait() // how it ended is in ProcessState
	}()
	if err := testkit.Poll(ctx, 60*time.Second, n.unready); err != nil {
		return fmt.Errorf("the kubelet does not come up: %w\n%s", err, n.log(60))
	}
	return nil
}

// ended is how the kubelet ended, nil while it runs.
func (n *node) ended() error {
	select {
	case <-n.done:
		return fmt.Errorf("the kubelet ended: %s", n.cmd.ProcessState)
	default:
		return nil
	}
}

// until is testkit.Until, and fails at once when the kubelet ends.
func (n *node) until(t *testing.T, within time.Duration, done func(context.Context) string) {
	t.Helper()
	testkit.Until(t, within, func(ctx context.Context) string {
		if n.ended() != nil {
			return ""
		}
		return done(ctx)
	})
	if err := n.ended(); err != nil {
		t.Fatal(err)
	}
}

func (n *node) unready(ctx context.Context) string {
	if err := n.ended(); err != nil {
		return err.Error()
	}
	if _, err := n.get(ctx, "/healthz/syncloop"); err != nil {
		return err.Error()
	}
	return ""
}

// stopKubelet ends the kubelet with a signal and waits for it.
func (n *node) stopKubelet(s syscall.Signal) error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.done:
		return nil
	case <-time.After(30 * time.Second):
	}
	err := n.cmd.Process.Kill()
	<-n.done
	return errors.Join(fmt.Errorf("the kubelet does not end within 30s of %s", s), err)
}

// check wants the node's pods gone, the host as it was, and nothing in the
// kubelet's log that is not explained.
func (n *node) check() error {
	ctx := context.Background()
	if n.cmd == nil {
		return nil
	}
	errs := []error{n.empty(ctx), n.stopKubelet(syscall.SIGTERM), n.unmount(), n.removeCgroups(), n.complaints()}
	if n.before != "" {
		errs = append(errs, n.client.Clear(ctx, imageIDs...), n.daemon.CheckHost(ctx, n.before))
	}
	return errors.Join(errs...)
}

// empty waits until the kubelet has no pod any more.
func (n *node) empty(ctx context.Context) error {
	files, err := filepath.Glob(n.manifests + "/*")
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	if err := n.ended(); err != nil {
		return err
	}
	return testkit.Poll(ctx, soon, func(ctx context.Context) string {
		pods, err := n.pods(ctx)
		if err != nil {
			return err.Error()
		}
		left := slices.Sorted(maps.Keys(pods))
		if len(left) > 0 {
			return "pods are stuck: " + strings.Join(left, ", ")
		}
		return cmp.Or(n.running(ctx, ""), n.directories())
	})
}

// running tells what runs of the pod with a UID, or of any where it is "", as
// the runtime says: the kubelet forgets a pod before it has ended it.
func (n *node) running(ctx context.Context, uid types.UID) string {
	labels := map[string]string{}
	if uid != "" {
		labels["io.kubernetes.pod.uid"] = string(uid)
	}
	containers, err := n.client.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		LabelSelector: labels, State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return err.Error()
	}
	for _, c := range containers.Containers {
		return fmt.Sprintf("container %s of pod %s still runs", c.Metadata.Name, c.Labels["io.kubernetes.pod.name"])
	}
	sandboxes, err := n.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		LabelSelector: labels, State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		return err.Error()
	}
	for _, s := range sandboxes.Items {
		return fmt.Sprintf("the sandbox of pod %s is still ready", s.Metadata.Name)
	}
	return ""
}

// directories tells of directories that the kubelet keeps for pods: it removes
// them when nothing of a pod runs and its volumes are unmounted.
func (n *node) directories() string {
	left, err := os.ReadDir(n.dir + "/root/pods")
	if err != nil {
		return err.Error()
	}
	if len(left) > 0 {
		return "the kubelet keeps the directory of pod " + left[0].Name()
	}
	return ""
}

// unmount takes away the mounts of volumes that the kubelet left when it ended.
func (n *node) unmount() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, n.dir+"/") {
			errs = append(errs, unix.Unmount(point, unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// close ends the kubelet and the daemon and removes everything.
func (n *node) close() error {
	var errs []error
	errs = append(errs, n.stopKubelet(syscall.SIGTERM), n.unmount())
	if n.client != nil && n.daemon.Running() {
		errs = append(errs, n.client.Clear(context.Background()))
	}
	n.http.CloseIdleConnections()
	return errors.Join(append(errs, n.daemon.Close())...)
}

// log is the end of the kubelet's log.
func (n *node) log(lines int) string {
	text, err := os.ReadFile(n.logFile)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
