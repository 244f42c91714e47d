package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

	"berth/internal/config"
	"berth/internal/container"
	"berth/internal/logs"
	"berth/internal/supervisor"
	"berth/internal/version"
)

// fleet is the supervisors as internal/container wants them.
type fleet struct{ *supervisor.Fleet }

func (f fleet) Stdio(name string, o logs.Options) container.Stdio { return f.Fleet.Stdio(name, o) }

// openFleet starts the supervisor that pods share, and those that have
// containers of the last run.
func (p *parts) openFleet(ctx context.Context) (err error) {
	p.fleet, err = supervisor.NewFleet(supervisor.FleetOptions{
		Binary: p.supervisorBinary(), State: p.paths.State, Version: version.Version(), Events: p.eventsSocket(),
		Isolate: p.isolate, Log: p.Log,
	})
	if err != nil {
		return err
	}
	p.later(p.cgroups.ClearApart)
	p.later(p.fleet.Close)
	if err := p.cgroups.ClearApart(); err != nil {
		return err
	}
	names, err := p.fleet.Left()
	if err != nil {
		return err
	}
	for _, h := range p.Config.Runtime.Handlers {
		if h.SupervisorOf() == config.SupervisorNode {
			names = append(names, p.fleet.NodeName())
			break
		}
	}
	slices.Sort(names)
	var group errgroup.Group
	for _, name := range slices.Compact(names) {
		group.Go(func() error {
			// It is tried again for each container that needs it.
			if err := p.fleet.Ensure(ctx, name, ""); err != nil {
				p.Log.Error("a supervisor does not run", "supervisor", name, "err", err)
			}
			return ctx.Err()
		})
	}
	p.left = slices.DeleteFunc(names, func(name string) bool { return name == p.fleet.NodeName() })
	return group.Wait()
}

// releaseLeft leaves the supervisors of the last run to their containers, which
// hold them until they have ended.
func (p *parts) releaseLeft() error {
	var errs []error
	for _, name := range p.left {
		errs = append(errs, p.fleet.Release(name, ""))
	}
	return errors.Join(errs...)
}

// eventsSocket is where containerd takes events.
func (p *parts) eventsSocket() string {
	if address := p.Config.Containerd.Address; address != "" {
		return address + ".ttrpc"
	}
	return p.paths.ContainerdSocket() + ".ttrpc"
}

// isolate moves a supervisor out of the daemon's cgroup. The name tells the
// supervisors of several daemons apart.
func (p *parts) isolate(ctx context.Context, name string, pid int) error {
	sum := sha256.Sum256([]byte(p.paths.State))
	return p.cgroups.SetApart(ctx, "berth-"+hex.EncodeToString(sum[:4])+"-"+name, pid)
}
