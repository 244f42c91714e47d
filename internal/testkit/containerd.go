package testkit

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"berth/internal/engine"
)

// roleEnv makes a test binary something else than tests.
const roleEnv = "BERTH_TESTKIT_ROLE"

const roleContainerd = "containerd"

// ExternalSocket is the socket of the external containerd.
func (d *Daemon) ExternalSocket() string { return d.State + "/external.sock" }

// ContainerdAddress is the socket of whichever containerd the daemon uses.
func (d *Daemon) ContainerdAddress() string {
	if d.opts.External {
		return d.ExternalSocket()
	}
	return d.ContainerdSocket()
}

// startContainerd runs this very binary as a containerd, in a process of its
// own.
func (d *Daemon) startContainerd(ctx context.Context) error {
	if !d.opts.External || d.containerd != nil {
		return nil
	}
	cmd := exec.Command("/proc/self/exe", d.Base+"/containerd", d.State+"/external", d.ExternalSocket(), d.Libexec())
	cmd.Args[0] = "testkit-containerd"
	cmd.Env = append(os.Environ(), roleEnv+"="+roleContainerd)
	var err error
	if d.containerd, err = startProcess(cmd, d.Base+"/containerd.log"); err != nil {
		return fmt.Errorf("external containerd: %w", err)
	}
	return Poll(ctx, startTimeout, func(ctx context.Context) string {
		client, err := d.Containerd()
		if err != nil {
			return err.Error()
		}
		defer func() { _ = client.Close() }() // nothing was written
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := client.Version(ctx); err != nil {
			return "external containerd: " + err.Error()
		}
		return ""
	})
}

// Containerd connects to the daemon's containerd, as ctr would.
func (d *Daemon) Containerd() (*containerd.Client, error) {
	return containerd.New(d.ContainerdAddress(), containerd.WithDefaultNamespace("k8s.io"), containerd.WithTimeout(5*time.Second))
}

func playRole(role string) int {
	if role != roleContainerd || len(os.Args) != 5 {
		fmt.Fprintf(os.Stderr, "testkit: no role %q with %q\n", role, os.Args)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	e, err := engine.StartEmbedded(ctx, engine.Options{
		Root: os.Args[1], State: os.Args[2], Socket: os.Args[3], ShimDirs: []string{os.Args[4]}, Log: log,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	<-ctx.Done()
	if err := e.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
