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
// for want of memory.
func (s *Service) oomKills(id string) (uint64, error) {
	cgroup := s.cgroupOf(id)
	kills, err := s.Cgroups.OOMKills(cgroup)
	if s.Cgroups.Version() != 2 || cgroup == "" {
		return kills, err
	}
	pod := path.Dir(cgroup)
	known := s.endedKills(id, pod)
	if notFound(err) {
		var all uint64
		if all, err = s.Cgroups.OOMKills(pod); err != nil {
			return 0, err
		}
		known += s.runningKills(id, pod)
		kills = all - min(known, all)
	}
	if err == nil {
		s.ooms.mu.Lock()
		s.ooms.known[pod] += kills
		s.ooms.mu.Unlock()
	}
	return kills, err
}

// endedKills are the kills of the pod's other containers that have ended. Of
// those that ended before the daemon started, one each is known.
func (s *Service) endedKills(id, pod string) uint64 {
	s.ooms.mu.Lock()
	n, ok := s.ooms.known[pod]
	s.ooms.mu.Unlock()
	if ok {
		return n
	}
	n = 0
	for _, c := range s.Store.Containers.List() {
		if c.ID != id && path.Dir(c.Cgroup) == pod && c.State == record.ContainerExited && c.Reason == reasonOOMKilled {
			n++
		}
	}
	s.ooms.mu.Lock()
	defer s.ooms.mu.Unlock()
	maps.DeleteFunc(s.ooms.known, func(pod string, _ uint64) bool { return !s.Cgroups.Exists(pod) })
	if was, ok := s.ooms.known[pod]; ok {
		return was
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
