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
	// reasonOOMKilled is what the kubelet knows a lack of memory by.
	reasonOOMKilled = "OOMKilled"
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
		close(l.ended)
		if !s.drain(l) || !s.recordEnd(s.base, l.id, end) {
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
		code, at, err := s.exitOf(l)
		if err == nil {
			return s.endOf(l, code, at), true
		}
		if s.base.Err() != nil {
			return end{}, false
		}
		if l.supervisor != "" {
			if gone := s.rejoin(l, err); gone != nil {
				return *gone, true
			}
			if !sleep(s.base, pause) {
				return end{}, false
			}
			continue
		}
		task, loadErr := s.loadTask(s.base, l.id)
		if notFound(loadErr) {
			return end{unknownExitCode, time.Now(), "Unknown", "the process that watched the container is gone, so how it ended is not known"}, true
		}
		if loadErr == nil {
			l.setTask(task)
		}
		s.Log.Warn("waiting for the container again", "container", l.id, "err", err)
		if !sleep(s.base, pause) {
			return end{}, false
		}
	}
}

func (s *Service) exitOf(l *live) (code uint32, at time.Time, err error) {
	task, err := l.task()
	if err != nil {
		return 0, at, err
	}
	exit, err := task.Wait(s.base)
	if err != nil {
		return 0, at, err
	}
	status := <-exit // comes at the latest when s.base ends
	return status.Result()
}

// sleep says false where the daemon, or ctx, ends meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
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
	kills, err := s.oomKills(id)
	if err != nil && !notFound(err) {
		s.Log.Warn("not known whether the container ran out of memory", "container", id, "err", err)
	}
	if kills > 0 {
		e.reason = reasonOOMKilled
	}
	return e
}

// drain waits until the container's output is in its log; false where the daemon
// ends first, whose next start goes on with it.
func (s *Service) drain(l *live) bool {
	if l.io == nil {
		return true
	}
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-l.io.Drained():
	case <-timer.C:
		s.Log.Warn("output of a container goes on after its end; what comes now is not in its log", "container", l.id)
	case <-s.base.Done():
		return false
	}
	return true
}

// recordEnd records the end, as often as it takes, for a disk may be full;
// false where ctx ends first. A container without a record is being removed.
func (s *Service) recordEnd(ctx context.Context, id string, e end) bool {
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
		if !sleep(ctx, pause) {
			return false
		}
	}
}

// giveBack removes the task and the stdio. What fails is done again when the
// container is removed or the daemon starts.
func (s *Service) giveBack(l *live) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.base), clearTimeout)
	defer cancel()
	task, err := l.task()
	if err == nil {
		_, err = task.Delete(ctx, containerd.WithProcessKill)
	}
	if err != nil && !notFound(err) {
		s.Log.Warn("task not deleted; it is tried again when the container is removed", "container", l.id, "err", err)
		s.closeStdio(l) // its directory stays: Remove sees by it that there is something to do
		return
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
	// Calls may be served meanwhile: they wait, or came first.
	release, err := s.slots.Acquire(ctx, c.ID)
	if err != nil {
		return err
	}
	defer release()
	if c, err = s.Store.Containers.Get(c.ID); err != nil {
		return ignoreGone(err)
	}
	if s.liveOf(c.ID) != nil {
		return nil
	}
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
	l := newLive(c.ID)
	if err != nil {
		s.Log.Error("the shim of a container does not answer; it is asked again", "container", c.ID, "err", err)
	} else {
		l.setTask(task)
		if err := s.endExecs(ctx, c.ID, task); err != nil {
			s.Log.Warn("commands of the last run are not all ended", "container", c.ID, "err", err)
		}
	}
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
	lost := end{unknownExitCode, time.Now(), "Unknown", "the container's task was gone when berth started, as after a reboot, so how it ended is not known"}
	if !s.recordEnd(ctx, c.ID, lost) {
		return ctx.Err()
	}
	return errors.Join(s.finishLog(c), s.tidy(ctx, c))
}
