package container

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/host"
	"berth/internal/logs"
	"berth/internal/record"
)

const (
	// drainTimeout bounds the wait for the end of a container's output after
	// its process has ended: a process that it left in another PID namespace
	// may hold the output open.
	drainTimeout = 5 * time.Second
	// retryFirst and retryMost are the waits between attempts at what must
	// succeed in the end.
	retryFirst, retryMost = 50 * time.Millisecond, 5 * time.Second
	// unknownExitCode is the exit code of a container whose own is not known.
	unknownExitCode = 255
)

// follow takes charge of a container that runs, until it has ended and what it
// held is given back. The daemon's end ends the following, not the container.
func (s *Service) follow(l *live) {
	s.mu.Lock()
	s.live[l.id] = l
	s.mu.Unlock()
	s.wg.Go(func() {
		end, ok := s.waitForEnd(l)
		if !ok {
			s.closeStdio(l)
			return
		}
		s.drain(l)
		if !s.recordEnd(l.id, end) {
			s.closeStdio(l)
			return
		}
		close(l.exited)
		s.giveBack(l)
		s.mu.Lock()
		delete(s.live, l.id)
		s.mu.Unlock()
		close(l.gone)
	})
}

func (s *Service) closeStdio(l *live) {
	if l.io == nil {
		return
	}
	if err := l.io.Close(); err != nil {
		s.Log.Error("stdio not closed", "container", l.id, "err", err)
	}
}

// An end is how a container's process ended.
type end struct {
	code            int32
	at              time.Time
	reason, message string
}

// waitForEnd waits for the task; false where the daemon ends first. A
// connection to the task that breaks is made again while there is a task.
func (s *Service) waitForEnd(l *live) (end, bool) {
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		exit, err := l.task.Wait(s.base)
		if err == nil {
			status := <-exit
			code, at, waitErr := status.Result()
			if waitErr == nil {
				return s.endOf(l, code, at), true
			}
			err = waitErr
		}
		if s.base.Err() != nil {
			return end{}, false
		}
		if l.supervisor != "" {
			if gone := s.rejoin(l, err); gone != nil {
				return *gone, true
			}
			if !s.sleep(pause) {
				return end{}, false
			}
			continue
		}
		task, loadErr := s.loadTask(s.base, l.id)
		if notFound(loadErr) {
			return end{unknownExitCode, time.Now(), "Unknown", "the process that watched the container is gone, so how it ended is not known"}, true
		}
		if loadErr == nil {
			l.task = task
		}
		s.Log.Warn("waiting for the container again", "container", l.id, "err", err)
		if !s.sleep(pause) {
			return end{}, false
		}
	}
}

// sleep says false where the daemon ends meanwhile.
func (s *Service) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.base.Done():
		return false
	}
}

// endOf reads what the kernel says of the end before the cgroup is removed.
func (s *Service) endOf(l *live, code uint32, at time.Time) end {
	id := l.id
	e := end{code: int32(code), at: at, reason: "Error"}
	if code == 0 {
		e.reason = "Completed"
		return e
	}
	if code == unknownExitCode && l.supervisor != "" {
		if why := s.unknownEnd(l); why != "" {
			return end{unknownExitCode, at, "Unknown", why}
		}
	}
	kills, err := s.Cgroups.OOMKills(s.cgroupOf(id))
	if err != nil && !notFound(err) {
		s.Log.Warn("not known whether the container ran out of memory", "container", id, "err", err)
	}
	if kills > 0 {
		e.reason = "OOMKilled"
	}
	return e
}

// drain waits until the container's output is in its log.
func (s *Service) drain(l *live) {
	if l.io == nil {
		return
	}
	select {
	case <-l.io.Drained():
	case <-time.After(drainTimeout):
		s.Log.Warn("output of a container goes on after its end; what comes now is not in its log", "container", l.id)
	case <-s.base.Done():
	}
}

// recordEnd records the end, as often as it takes, for a disk may be full;
// false where the daemon ends first. A container without a record is being
// removed.
func (s *Service) recordEnd(id string, e end) bool {
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		c, err := s.Store.Containers.Update(id, func(r *record.Container) {
			r.State, r.FinishedAt, r.PID = record.ContainerExited, e.at, 0
			r.ExitCode, r.Reason, r.Message = e.code, e.reason, e.message
		})
		if err == nil {
			s.publish(runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, c)
			s.Log.Info("container ended", "container", id, "code", e.code, "reason", e.reason)
			return true
		}
		if notFound(err) {
			return true
		}
		s.Log.Error("end of a container not recorded; trying again", "container", id, "err", err)
		if !s.sleep(pause) {
			return false
		}
	}
}

// giveBack removes the task and the stdio. What fails is done again when the
// container is removed or the daemon starts.
func (s *Service) giveBack(l *live) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.base), clearTimeout)
	defer cancel()
	if _, err := l.task.Delete(ctx, containerd.WithProcessKill); err != nil && !notFound(err) {
		s.Log.Warn("task not deleted; it is tried again when the container is removed", "container", l.id, "err", err)
	}
	if err := s.dropStdio(ctx, l.id, l.io); err != nil {
		s.Log.Warn("stdio not removed; it is tried again when the container is removed", "container", l.id, "err", err)
	}
}

func (s *Service) stdioDir(id string) string {
	return filepath.Join(s.Paths.ContainerState(id), "stdio")
}

// dropStdio closes a container's stdio, where this daemon has it open, and
// removes it.
func (s *Service) dropStdio(ctx context.Context, id string, io Stdio) error {
	var errs []error
	if io != nil {
		errs = append(errs, io.Close())
	}
	if name := s.supervisorOf(id); name != "" {
		errs = append(errs, s.Supervisors.Release(name, id))
	} else {
		errs = append(errs, s.Hold.Release(ctx, id))
	}
	errs = append(errs,
		host.RemoveTree(s.Paths.State, filepath.Join("containers", id, "stdio")))
	return errors.Join(errs...)
}

// Resume takes up a container after a restart of the daemon: one that runs, or
// ended meanwhile, is followed; one whose task is gone has ended in a way that
// is not known.
func (s *Service) Resume(ctx context.Context, c *record.Container) error {
	if c.State != record.ContainerRunning {
		return s.tidy(ctx, c)
	}
	if c.Supervisor != "" {
		return s.resumeSupervised(ctx, c)
	}
	task, err := s.loadTask(s.Engine.Context(ctx), c.ID)
	if notFound(err) {
		return s.vanished(ctx, c)
	}
	if err != nil {
		return err
	}
	l := &live{id: c.ID, task: task, exited: make(chan struct{}), gone: make(chan struct{})}
	if io, err := logs.Open(s.stdioOptions(c)); err != nil {
		s.Log.Error("the output of a container cannot be taken up again", "container", c.ID, "err", err)
	} else {
		l.io = io
		io.Running()
		if err := s.Hold.Keep(ctx, c.ID, io.Outputs()...); err != nil {
			s.Log.Error("the output of a container would be lost if berth ended now", "container", c.ID, "err", err)
		}
	}
	s.follow(l)
	return nil
}

// vanished records the end of a container whose task is gone.
func (s *Service) vanished(ctx context.Context, c *record.Container) error {
	s.Log.Warn("a container's task is gone", "container", c.ID)
	at := c.StartedAt
	s.recordEnd(c.ID, end{unknownExitCode, at, "Unknown", "the container's task was gone when berth started, as after a reboot, so how it ended is not known"})
	return errors.Join(s.finishLog(c), s.tidy(ctx, c))
}
