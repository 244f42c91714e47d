package serve

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Update puts resources into force; those that are not named stay.
func (v service) Update(ctx context.Context, r *taskAPI.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := v.s.find(ctx, r.ID)
	if err != nil {
		return nil, grpc(err)
	}
	var want specs.LinuxResources
	if r.Resources == nil {
		return nil, grpc(fmt.Errorf("update without resources: %w", errdefs.ErrInvalidArgument))
	}
	if err := json.Unmarshal(r.Resources.Value, &want); err != nil {
		return nil, grpc(fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument))
	}
	c.life.Lock()
	defer c.life.Unlock()
	config := c.lib.Config()
	group, resources := *config.Cgroups, *config.Cgroups.Resources
	group.Resources = &resources
	config.Cgroups = &group
	unsayNoSwap(&resources)
	apply(&config, &want)
	if cgroups.IsCgroup2UnifiedMode() {
		sayNoSwap(&resources)
	}
	return done(c.lib.Set(config))
}

// apply changes what want names, as runc's update does.
func apply(config *configs.Config, want *specs.LinuxResources) {
	r := config.Cgroups.Resources
	applyCPU(r, want.CPU)
	if m := want.Memory; m != nil {
		set(&r.Memory, m.Limit)
		set(&r.MemoryReservation, m.Reservation)
		set(&r.MemorySwap, m.Swap)
		set(&r.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
		if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
			r.MemorySwap = 0 // a limit of swap needs one of memory
		}
	}
	if want.Pids != nil {
		r.PidsLimit = want.Pids.Limit
	}
	if want.BlockIO != nil {
		set(&r.BlkioWeight, want.BlockIO.Weight)
		set(&r.BlkioLeafWeight, want.BlockIO.LeafWeight)
	}
	if want.Unified != nil {
		r.Unified = want.Unified
	}
	if len(want.HugepageLimits) > 0 {
		r.HugetlbLimit = nil
		for _, l := range want.HugepageLimits {
			r.HugetlbLimit = append(r.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: l.Pagesize, Limit: l.Limit})
		}
	}
	// What may be allowed beside the spec by others stays.
	r.SkipDevices = true
}

func applyCPU(r *cgroups.Resources, cpu *specs.LinuxCPU) {
	if cpu == nil {
		return
	}
	set(&r.CpuPeriod, cpu.Period)
	set(&r.CpuQuota, cpu.Quota)
	if cpu.Shares != nil {
		r.CpuShares, r.CpuWeight = *cpu.Shares, cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
	}
	set(&r.CpuRtPeriod, cpu.RealtimePeriod)
	set(&r.CpuRtRuntime, cpu.RealtimeRuntime)
	if cpu.Burst != nil {
		r.CpuBurst = cpu.Burst
	}
	if cpu.Idle != nil {
		r.CPUIdle = cpu.Idle
	}
	if cpu.Cpus != "" {
		r.CpusetCpus = cpu.Cpus
	}
	if cpu.Mems != "" {
		r.CpusetMems = cpu.Mems
	}
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// Stats are a cgroup's, in the form of runc's shim.
func (v service) Stats(ctx context.Context, r *taskAPI.StatsRequest) (*taskAPI.StatsResponse, error) {
	c, err := v.s.find(ctx, r.ID)
	if err != nil {
		return nil, grpc(err)
	}
	pid, running, _ := c.init.status()
	if !running {
		return nil, grpc(fmt.Errorf("container %s has ended: %w", c.id, errdefs.ErrNotFound))
	}
	stats, err := readStats(pid)
	if err != nil {
		return nil, grpc(fmt.Errorf("statistics of container %s: %w", c.id, err))
	}
	body, err := proto.Marshal(stats)
	if err != nil {
		return nil, grpc(err)
	}
	return &taskAPI.StatsResponse{Stats: &anypb.Any{TypeUrl: string(stats.ProtoReflect().Descriptor().FullName()), Value: body}}, nil
}

func readStats(pid int) (proto.Message, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		path, err := cgroup2.PidGroupPath(pid)
		if err != nil {
			return nil, err
		}
		group, err := cgroup2.Load(path)
		if err != nil {
			return nil, err
		}
		return group.Stat()
	}
	group, err := cgroup1.Load(cgroup1.PidPath(pid))
	if err != nil {
		return nil, err
	}
	return group.Stat(cgroup1.IgnoreNotExist)
}
