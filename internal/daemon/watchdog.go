package daemon

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// watchdog tells the service manager that the daemon is alive, twice in each
// interval, as long as its own socket answers. A daemon that does not is ended
// by the service manager and started again; containers run on.
func (p *parts) watchdog(ctx context.Context) error {
	if p.AliveEvery <= 0 {
		return nil
	}
	conn, err := grpc.NewClient("unix://"+p.Config.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	client := runtime.NewRuntimeServiceClient(conn)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pulse(ctx, p.AliveEvery/2, func(ctx context.Context) error {
			if _, err := client.Version(ctx, &runtime.VersionRequest{}); err != nil {
				return err
			}
			return p.Alive()
		}, func(err error) {
			p.Log.Warn("the service manager is not told that the daemon is alive", "err", err)
		})
	}()
	p.later(func() error {
		cancel()
		<-done
		return conn.Close()
	})
	return nil
}

// pulse calls beat now and at each interval, which bounds it, until ctx ends.
func pulse(ctx context.Context, every time.Duration, beat func(context.Context) error, failed func(error)) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		within, cancel := context.WithTimeout(ctx, every)
		err := beat(within)
		cancel()
		if err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
