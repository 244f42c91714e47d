package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"berth/internal/testkit"
)

// maxAnswer is more than any answer of the kubelet's API here.
const maxAnswer = 64 << 20

func (n *node) url(path string) string { return fmt.Sprintf("https://127.0.0.1:%d%s", n.port, path) }

// get asks the kubelet's API; an answer other than 200 is an error.
func (n *node) get(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url(path), nil)
	if err != nil {
		return "", err
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %.500s", path, resp.Status, text)
	}
	return string(text), nil
}

// pods are the kubelet's, by namespace/name.
func (n *node) pods(ctx context.Context) (map[string]*v1.Pod, error) {
	text, err := n.get(ctx, "/pods")
	if err != nil {
		return nil, err
	}
	var list v1.PodList
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("/pods: %w", err)
	}
	byName := map[string]*v1.Pod{}
	for i, p := range list.Items {
		byName[p.Name] = &list.Items[i]
	}
	return byName, nil
}

// restConfig is for client-go's streams.
func restConfig() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// exec runs args in a container through the kubelet; the streams that are set
// in o are those asked for.
func (p *pod) exec(ctx context.Context, container string, args []string, o remotecommand.StreamOptions) error {
	query := streamQuery(o)
	query["command"] = args
	return p.stream(ctx, "/exec/"+p.path(container)+"?"+query.Encode(), o)
}

// attach attaches to a container through the kubelet.
func (p *pod) attach(ctx context.Context, container string, o remotecommand.StreamOptions) error {
	return p.stream(ctx, "/attach/"+p.path(container)+"?"+streamQuery(o).Encode(), o)
}

func (p *pod) stream(ctx context.Context, path string, o remotecommand.StreamOptions) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	u, err := url.Parse(p.n.url(path))
	if err != nil {
		return err
	}
	var e remotecommand.Executor
	if p.webSocket {
		e, err = remotecommand.NewWebSocketExecutor(restConfig(), http.MethodGet, u.String())
	} else {
		e, err = remotecommand.NewSPDYExecutor(restConfig(), http.MethodPost, u)
	}
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, o)
}

func streamQuery(o remotecommand.StreamOptions) url.Values {
	query := url.Values{}
	for name, set := range map[string]bool{
		"input": o.Stdin != nil, "output": o.Stdout != nil, "error": o.Stderr != nil && !o.Tty, "tty": o.Tty,
	} {
		if set {
			query.Set(name, "1")
		}
	}
	return query
}

// run is exec for a test: it wants success and returns the output.
func (p *pod) run(t *testing.T, container string, args ...string) string {
	t.Helper()
	var stdout, stderr testkit.Buffer
	err := p.exec(t.Context(), container, args, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		t.Fatalf("exec %q: %v: %s%s", args, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// logs are a container's through the kubelet's API.
func (p *pod) logs(ctx context.Context, container string, query url.Values) (string, error) {
	return p.n.get(ctx, "/containerLogs/"+p.path(container)+"?"+query.Encode())
}

// logged waits until a container's log holds text and returns the log.
func (p *pod) logged(t *testing.T, container, text string) (log string) {
	t.Helper()
	p.n.until(t, soon, func(ctx context.Context) (saw string) {
		var err error
		if log, err = p.logs(ctx, container, nil); err != nil {
			return err.Error()
		}
		if !strings.Contains(log, text) {
			return fmt.Sprintf("no %q in the log: %.500q", text, log)
		}
		return ""
	})
	return log
}

// forward forwards a port of the pod to this process until the test ends and
// returns the local port.
func (p *pod) forward(t *testing.T, port int) uint16 {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(restConfig())
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(p.n.url("/portForward/" + p.path("")))
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(dialer, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	t.Cleanup(func() { close(stop); <-ended })
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatalf("port forward: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("port forward is not ready within 30s")
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return ports[0].Local
}
