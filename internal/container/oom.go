package container

import (
	"maps"
	"path"
	"sync"

	"berth/internal/record"
)

// oomTally attributes the kernel's OOM kills to containers whose cgroup is gone
// before it is read. With the systemd driver that is usual: systemd removes a
// scope as soon as its last process has ended. On cgroup v2 the pod's cgroup
// has counted what was killed in the scope too, so what no other container
// accounts for was killed there.
type oomTally struct {
	mu sync.Mutex // guards what follows
	// known are, for a pod's cgroup, the kills of containers that have ended.
	known map[string]uint64
}

// oomKills returns how many processes of a container that has ended were killed
// for want of memory. One end is looked at after another: two at the same time
// would both be given what only the pod's cgroup tells of. Nothing but files of
// cgroups is read meanwhile.
func (s *Service) oomKills(id string) (uint64, error) {
	cgroup := s.cgroupOf(id)
	if s.Cgroups.Version() != 2 || cgroup == "" {
		return s.Cgroups.OOMKills(cgroup)
	}
	s.ooms.mu.Lock()
	defer s.ooms.mu.Unlock()
	pod := path.Dir(cgroup)
	known := s.endedKillsLocked(id, pod)
	kills, err := s.Cgroups.OOMKills(cgroup)
	if notFound(err) {
		var all uint64
		if all, err = s.Cgroups.OOMKills(pod); err != nil {
			return 0, err
		}
		known += s.runningKills(id, pod)
		kills = all - min(known, all)
	}
	if err == nil {
		s.ooms.known[pod] += kills
	}
	return kills, err
}

// endedKillsLocked are the kills of the pod's other containers that have ended.
// Of those that ended before the daemon started, one each is known.
func (s *Service) endedKillsLocked(id, pod string) uint64 {
	if n, ok := s.ooms.known[pod]; ok {
		return n
	}
	maps.DeleteFunc(s.ooms.known, func(pod string, _ uint64) bool { return !s.Cgroups.Exists(pod) })
	var n uint64
	for _, c := range s.Store.Containers.List() {
		if c.ID != id && path.Dir(c.Cgroup) == pod && c.State == record.ContainerExited && c.Reason == reasonOOMKilled {
			n++
		}
	}
	s.ooms.known[pod] = n
	return n
}

// runningKills are the kills in the pod's other containers that run.
func (s *Service) runningKills(id, pod string) uint64 {
	s.mu.Lock()
	var others []*live
	for _, l := range s.live {
		if l.id != id {
			others = append(others, l)
		}
	}
	s.mu.Unlock()
	var n uint64
	for _, l := range others {
		select {
		case <-l.ended:
			continue
		default:
		}
		cgroup := s.cgroupOf(l.id)
		if path.Dir(cgroup) != pod {
			continue
		}
		if kills, err := s.Cgroups.OOMKills(cgroup); err == nil { // gone: it is about to be counted as ended
			n += kills
		}
	}
	return n
}
