package client_test

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/client"
	"berth/internal/testkit/fakecri"
)

func TestAddress(t *testing.T) {
	t.Setenv("BERTH_ADDRESS", "")
	t.Setenv("CONTAINER_RUNTIME_ENDPOINT", "")
	want := func(flag, want string) {
		t.Helper()
		if got := client.Address(flag); got != want {
			t.Errorf("address %q, want %q", got, want)
		}
	}
	want("", client.DefaultAddress)
	t.Setenv("CONTAINER_RUNTIME_ENDPOINT", "unix:///crictl.sock")
	want("", "unix:///crictl.sock")
	t.Setenv("BERTH_ADDRESS", "/berth.sock")
	want("", "/berth.sock")
	want("/flag.sock", "/flag.sock")
	for _, bad := range []string{"tcp://127.0.0.1:1", "unix://", ""} {
		if _, err := client.New(bad); err == nil {
			t.Errorf("address %q is accepted", bad)
		}
	}
}

// A user who forgot to start the daemon reads how to; each cause has its words.
func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for path, want := range map[string]string{
		filepath.Join(dir, "none.sock"): "there is no socket at",
		dead:                            "nothing listens at",
	} {
		cl, err := client.New("unix://" + path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = cl.Runtime.Version(t.Context(), &runtime.VersionRequest{})
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "berth serve") {
			t.Errorf("%s: %v", path, err)
		}
		if strings.Contains(err.Error(), "rpc error") {
			t.Errorf("gRPC's words: %v", err)
		}
		if err := cl.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	s := &fakecri.Server{Fail: map[string]error{"PullImage x": status.Error(codes.InvalidArgument, `image "x": bad`)}}
	cl := connect(t, s)
	_, err := cl.Images.PullImage(t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "x"}})
	if status.Code(err) != codes.InvalidArgument || err.Error() != `image "x": bad` {
		t.Errorf("%v: %v", status.Code(err), err)
	}
	if _, err = cl.Runtime.RuntimeConfig(t.Context(), &runtime.RuntimeConfigRequest{}); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "does not do this") {
		t.Errorf("%v: %v", status.Code(err), err)
	}
}

func TestLogs(t *testing.T) {
	s := &fakecri.Server{}
	cl := connect(t, s)
	log := filepath.Join(t.TempDir(), "0.log")
	text := "2026-01-02T03:04:05Z stdout F one\n2026-01-02T03:04:06Z stderr F oops\n2026-01-02T03:04:07Z stdout P tw\n2026-01-02T03:04:07Z stdout F o\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.AddPod("p", "default", "web", true, 0)
	s.AddContainer("c", "p", "main", runtime.ContainerState_CONTAINER_RUNNING, log)
	s.AddContainer("mute", "p", "mute", runtime.ContainerState_CONTAINER_RUNNING, "")

	var out, errOut bytes.Buffer
	if err := cl.Logs(deadline(t), "c", client.LogOptions{}, &out, &errOut); err != nil || out.String() != "one\ntwo\n" || errOut.String() != "oops\n" {
		t.Errorf("%q, %q, %v", out.String(), errOut.String(), err)
	}
	out.Reset()
	tail := int64(1)
	if err := cl.Logs(deadline(t), "c", client.LogOptions{Tail: &tail, Since: fakecri.Epoch, Timestamps: true}, &out, &errOut); err != nil || !strings.HasPrefix(out.String(), "2026-01-02T03:04:07.000000000Z ") {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := cl.Logs(deadline(t), "mute", client.LogOptions{}, &out, &errOut); err == nil || !strings.Contains(err.Error(), "keeps no log") {
		t.Errorf("%v", err)
	}

	// Following ends with the container, after its last line.
	out.Reset()
	followed := make(chan error, 1)
	go func() { followed <- cl.Logs(deadline(t), "c", client.LogOptions{Follow: true}, &out, &errOut) }()
	f, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("2026-01-02T03:04:08Z stdout F last\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.Exit("c", 0)
	if err := <-followed; err != nil || !strings.HasSuffix(out.String(), "\nlast\n") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
