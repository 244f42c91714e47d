package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/contrib/apparmor"
	"google.golang.org/grpc"

	"berth/internal/cri"
	"berth/internal/reconcile"
	"berth/internal/telemetry"
)

const (
	// stopGrace is how long calls under way may take when the daemon stops.
	stopGrace = 5 * time.Second
	// collectTimeout bounds the collection of addresses at the start.
	collectTimeout = 10 * time.Second
	// appArmorDefault is the profile of containers that ask for the default.
	appArmorDefault = "berth-default"
)

// reconcile puts right what the last run left.
func (p *parts) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	r, err := reconcile.Run(ctx, reconcile.Options{
		Store: p.store, Sandboxes: p.sandboxes, Containers: p.containers, Images: p.images, Steps: p.steps, Log: p.Log,
	})
	if err != nil {
		cancel()
		return err
	}
	p.later(func() error {
		cancel()
		r.Wait()
		return nil
	})
	p.collectNetwork(ctx)
	return p.releaseLeft()
}

// collectNetwork gives back addresses that no pod has. It must not run beside
// the start of a pod, so it comes before calls are served, and is cut short.
func (p *parts) collectNetwork(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	if err := p.network.GC(ctx, p.sandboxes.Attached()); err != nil {
		p.Log.Warn("addresses that no pod has are not all given back; it is tried again at the next start", "err", err)
	}
}

// loadAppArmor loads the default profile where the kernel has AppArmor.
func (p *parts) loadAppArmor() string {
	if !p.kernel.AppArmor {
		return ""
	}
	if err := apparmor.LoadDefaultProfile(appArmorDefault); err != nil {
		p.Log.Warn("the default AppArmor profile is not loaded; install apparmor_parser", "err", err)
		return ""
	}
	return appArmorDefault
}

func (p *parts) countObjects() []telemetry.Count {
	counts := map[telemetry.Count]int{}
	for _, box := range p.store.Sandboxes.List() {
		counts[telemetry.Count{Kind: "sandbox", State: string(box.State)}]++
	}
	for _, c := range p.store.Containers.List() {
		counts[telemetry.Count{Kind: "container", State: string(c.State)}]++
	}
	var list []telemetry.Count
	for c, n := range counts {
		c.N = n
		list = append(list, c)
	}
	return list
}

// serve answers calls until ctx ends.
func (p *parts) serve(ctx context.Context) error {
	listener, remove, err := listen(p.Config.Address)
	if err != nil {
		return err
	}
	p.later(remove)
	server := cri.Register(p.criOptions())
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	p.later(func() error { return p.stopServing(server) })
	if err := p.serveMetrics(failed); err != nil {
		return err
	}
	p.Log.Info("berth is ready", "address", p.Config.Address, "containerd", p.engine.Address(), "root", p.Config.Root)
	if err := p.Ready(); err != nil {
		p.Log.Warn("the service manager is not told", "err", err)
	}
	if err := p.watchdog(ctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		p.Log.Info("berth stops; containers run on")
		return nil
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", p.Config.Address, err)
	}
}

// stopServing lets calls under way end, for a while. Those who watch events
// end with the bus.
func (p *parts) stopServing(server *grpc.Server) error {
	p.events.Close()
	done := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(done)
	}()
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		server.Stop()
		<-done
	}
	return nil
}

func (p *parts) serveMetrics(failed chan<- error) error {
	address := p.Config.Metrics.Address
	if address == "" {
		return nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("metrics.address: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", p.metrics.Handler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	p.later(func() error {
		err := server.Close()
		<-stopped
		return err
	})
	return nil
}
