package sandbox

import (
	"context"
	"path"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/record"
)

// Making and removing a pod's cgroup hold two slots, in this order: that of the
// cgroup, which pods may share, and that of the parent of all pods that name
// none. So none is removed that a pod is about to use.

// cgroupParent is the one that the client names, or one of our own.
func (s *Service) cgroupParent(cfg *runtime.PodSandboxConfig, id string) string {
	if parent := cfg.GetLinux().GetCgroupParent(); parent != "" {
		return parent
	}
	if s.Cgroups.Driver() == host.SystemdDriver {
		return strings.TrimSuffix(path.Base(s.CgroupParent), ".slice") + "-" + id + ".slice"
	}
	return path.Join("/", s.CgroupParent, id)
}

// cgroup is the path of the pod's cgroup, however the client wrote it.
func (s *Service) cgroup(box *record.Sandbox) string {
	return path.Dir(s.Cgroups.Path(box.CgroupParent, box.ID))
}

// ours tells whether a cgroup is below the parent of pods that name none, which
// goes with the last of them. With the systemd driver it is systemd's.
func (s *Service) ours(cgroup string) bool {
	return s.CgroupParent != "" && s.Cgroups.Driver() != host.SystemdDriver && strings.HasPrefix(cgroup, path.Join("/", s.CgroupParent)+"/")
}

// makeCgroup makes the pod's cgroup. One that went after the record was written
// becomes the pod's own. Who made it limits it: a kubelet its own, berth one that
// was not there.
func (s *Service) makeCgroup(ctx context.Context, id string) error {
	box, err := s.Store.Sandboxes.Get(id)
	if err != nil {
		return err
	}
	release, err := s.slots.Acquire(ctx, s.cgroup(box))
	if err != nil {
		return err
	}
	defer release()
	own := box.OwnCgroup
	if !own && !s.Cgroups.Exists(box.CgroupParent) {
		if err := s.setOwnCgroup(id); err != nil {
			return err
		}
		own = true
	}
	if s.ours(s.cgroup(box)) {
		release, err := s.slots.Acquire(ctx, s.CgroupParent)
		if err != nil {
			return err
		}
		defer release()
	}
	if err := s.Cgroups.Ensure(box.CgroupParent); err != nil || !own {
		return err
	}
	return s.Cgroups.Limit(box.CgroupParent, limits(box.Config))
}

// limits are those of a pod's cgroup.
func limits(config *runtime.PodSandboxConfig) host.Limits {
	r := config.GetLinux().GetResources()
	return host.Limits{
		CPUShares: uint64(r.GetCpuShares()), CPUQuota: r.GetCpuQuota(), CPUPeriod: uint64(r.GetCpuPeriod()), Memory: r.GetMemoryLimitInBytes(),
	}
}

func (s *Service) setOwnCgroup(id string) error {
	_, err := s.Store.Sandboxes.Update(id, func(b *record.Sandbox) { b.OwnCgroup = true })
	return err
}

// removeCgroup removes the pod's cgroup where it was not there before it, with
// the last pod that names it. Of a pod without a record it removes the one that
// such a pod has by itself.
func (s *Service) removeCgroup(ctx context.Context, id string) error {
	box, err := s.Store.Sandboxes.Get(id)
	if notFound(err) {
		box, err = &record.Sandbox{ID: id, CgroupParent: s.cgroupParent(nil, id), OwnCgroup: true}, nil
	}
	if err != nil || box.CgroupParent == "" {
		return err
	}
	release, err := s.slots.Acquire(ctx, s.cgroup(box))
	if err != nil {
		return err
	}
	defer release()
	if others := s.sharing(box); len(others) > 0 {
		return s.leaveCgroup(id, others)
	}
	if now, err := s.Store.Sandboxes.Get(id); err == nil { // others may have left it to this one
		box = now
	}
	if !box.OwnCgroup {
		return nil
	}
	if err := s.Cgroups.Remove(box.CgroupParent); err != nil {
		return err
	}
	return s.removeEmptyParent(ctx, s.cgroup(box))
}

// sharing are the other pods that name the pod's cgroup and have not left it.
func (s *Service) sharing(box *record.Sandbox) []*record.Sandbox {
	var others []*record.Sandbox
	for _, other := range s.Store.Sandboxes.List() {
		if other.ID != box.ID && other.CgroupParent != "" && s.cgroup(other) == s.cgroup(box) {
			others = append(others, other)
		}
	}
	return others
}

// leaveCgroup leaves the removal to the others, of whom the last will do it. A
// record that names no cgroup is that of a pod that has left its one.
func (s *Service) leaveCgroup(id string, others []*record.Sandbox) error {
	box, err := s.Store.Sandboxes.Get(id)
	if err != nil {
		return ignoreGone(err)
	}
	for _, other := range others {
		if !box.OwnCgroup || other.OwnCgroup {
			continue
		}
		if err := ignoreGone(s.setOwnCgroup(other.ID)); err != nil {
			return err
		}
	}
	_, err = s.Store.Sandboxes.Update(id, func(b *record.Sandbox) { b.CgroupParent, b.OwnCgroup = "", false })
	return ignoreGone(err)
}

// removeEmptyParent removes the parent of all pods' cgroups with the last one
// in it.
func (s *Service) removeEmptyParent(ctx context.Context, cgroup string) error {
	if !s.ours(cgroup) {
		return nil
	}
	release, err := s.slots.Acquire(ctx, s.CgroupParent)
	if err != nil {
		return err
	}
	defer release()
	for _, box := range s.Store.Sandboxes.List() {
		if in := s.cgroup(box); (s.ours(in) || in == path.Join("/", s.CgroupParent)) && s.Cgroups.Exists(in) {
			return nil
		}
	}
	err = s.Cgroups.Remove(s.CgroupParent)
	if err != nil && s.Cgroups.Exists(s.CgroupParent) {
		s.Log.Debug("cgroup of all pods kept", "cgroup", s.CgroupParent, "err", err)
	}
	return nil
}
