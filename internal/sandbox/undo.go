package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"berth/internal/host"
	"berth/internal/network"
	"berth/internal/record"
	"berth/internal/steps"
	"berth/internal/supervisor"
)

// undoOrder is the order in which a sandbox is taken down, the reverse of Run's.
var undoOrder = []string{"pause", "network", "init", "cgroup", "shm", "namespaces", "directories", "record"}

// undoOf gives what takes back each step of Run, by its name. Each is
// idempotent and needs no more than the ID; what the record says is read when
// it runs, for a step may have added to it.
func (s *Service) undoOf(id string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"record": func(context.Context) error { return s.Store.Sandboxes.Delete(id) },
		"directories": func(context.Context) error {
			return errors.Join(host.RemoveTree(s.Paths.Root, "sandboxes/"+id), host.RemoveTree(s.Paths.State, "sandboxes/"+id))
		},
		"namespaces": func(context.Context) error { return host.UnpinNamespaces(s.Paths.Namespaces(id)) },
		"shm":        func(context.Context) error { return host.Unmount(s.Paths.Shm(id)) },
		"cgroup":     func(ctx context.Context) error { return s.removeCgroup(ctx, id) },
		"init": func(ctx context.Context) error {
			return supervisor.StopPodInit(ctx, s.Paths.Namespace(id, "pid"))
		},
		"pause":   func(ctx context.Context) error { return s.dropPause(ctx, id) },
		"network": func(ctx context.Context) error { return s.detach(ctx, s.recordOr(id)) },
	}
}

// detach gives back the pod's address; a pod on the node's network has none.
func (s *Service) detach(ctx context.Context, box *record.Sandbox) error {
	if box.Config != nil && hostNetwork(box) {
		return nil
	}
	return s.Network.Del(ctx, s.pod(box))
}

// recordOr returns the record, or for a sandbox without one its bare ID.
func (s *Service) recordOr(id string) *record.Sandbox {
	box, err := s.Store.Sandboxes.Get(id)
	if err != nil {
		return &record.Sandbox{ID: id}
	}
	return box
}

// undoSteps are the undo of Run as steps, to be done in undoOrder.
func (s *Service) undoSteps(id string) []steps.Step {
	undo := s.undoOf(id)
	var list []steps.Step
	for _, name := range slices.Backward(undoOrder) {
		list = append(list, steps.Step{Name: name, Undo: undo[name]})
	}
	return list
}

// Undo takes back what op left half made of a sandbox, or what a sandbox that
// no record names left on the machine. Nothing is undone where op was through
// but for the journal, nor for Stop and Remove, which their retry finishes.
func (s *Service) Undo(ctx context.Context, op, id string) error {
	box, err := s.Store.Sandboxes.Get(id)
	if op != steps.RunPodSandbox || err == nil && box.State != record.SandboxCreating {
		return s.Steps.Undo(ctx, op, id)
	}
	release, err := s.slots.Acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if err := s.Network.Settle(ctx, id); err != nil {
		return err
	}
	return s.Steps.Undo(ctx, op, id, s.undoSteps(id)...)
}

// Attached lists the pods that may have an address, for the collection of
// those that no pod has.
func (s *Service) Attached() []network.Pod {
	var pods []network.Pod
	for _, box := range s.Store.Sandboxes.List() {
		if !hostNetwork(box) && box.State != record.SandboxStopped {
			pods = append(pods, s.pod(box))
		}
	}
	return pods
}

// Strays lists the sandboxes whose directories are on the machine and that no
// record names.
func (s *Service) Strays() ([]string, error) {
	var strays []string
	for _, dir := range []string{s.Paths.Sandboxes(), s.Paths.SandboxStates()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list sandboxes: %w", err)
		}
		for _, e := range entries {
			if _, err := s.Store.Sandboxes.Get(e.Name()); notFound(err) && !slices.Contains(strays, e.Name()) {
				strays = append(strays, e.Name())
			}
		}
	}
	return strays, nil
}
