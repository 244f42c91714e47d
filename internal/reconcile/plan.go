// Package reconcile brings the records and what the machine holds together
// when the daemon starts.
//
// What is to be done is decided by Plan, a pure function of what was found;
// Run looks, plans and applies. An operation that was cut is undone, a resource
// that no record names is swept, and what runs is taken up again. An action
// that fails is reported and leaves its journal entry, so that the next start,
// or the object's removal, tries again; it never stops the daemon.
//
// Concurrency: Run is called once, before calls are served. What is slow in it
// goes on beside the calls, each action under its object's own slot.
package reconcile

import (
	"berth/internal/record"
	"berth/internal/steps"
)

// Facts are what was found.
type Facts struct {
	Sandboxes  []*record.Sandbox
	Containers []*record.Container
	Unfinished []record.Unfinished
	// StraySandboxes and StrayContainers are on the machine and in no record.
	StraySandboxes, StrayContainers []string
}

// A Kind says what an action is done to.
type Kind string

// The kinds of objects.
const (
	Sandbox   Kind = "sandbox"
	Container Kind = "container"
	Image     Kind = "image"
)

// An Action is one thing to do.
type Action struct {
	Kind Kind
	ID   string // of an image: its reference
	// Undo is the operation to undo, for a stray that which would have made it;
	// "" is to take the object up again.
	Undo string
	// Remove: the container's sandbox is gone, so it is removed.
	Remove bool
	Why    string // for the log
}

// A Plan is what to do: take up at once, then what may be slow, containers
// before their sandboxes.
type Plan struct {
	// Resume are ready sandboxes and running containers, Tidy the containers
	// that do not run and may have kept what is to be given back.
	Resume, Tidy []Action
	Containers   []Action
	Sandboxes    []Action
	Images       []Action
}

// opsOf maps an operation to what its object is.
var opsOf = map[string]Kind{
	steps.RunPodSandbox: Sandbox, steps.StopPodSandbox: Sandbox, steps.RemovePodSandbox: Sandbox,
	steps.CreateContainer: Container, steps.StartContainer: Container, steps.StopContainer: Container, steps.RemoveContainer: Container,
}

// Make decides. The order within a list does not matter.
func Make(f Facts) Plan {
	var p Plan
	cut := p.undoUnfinished(f.Unfinished)
	boxes := map[string]bool{}
	for _, box := range f.Sandboxes {
		boxes[box.ID] = true
		switch {
		case box.State == record.SandboxReady:
			p.Resume = append(p.Resume, Action{Kind: Sandbox, ID: box.ID})
		case box.State == record.SandboxCreating && !cut[steps.RunPodSandbox][box.ID]:
			p.Sandboxes = append(p.Sandboxes, Action{Kind: Sandbox, ID: box.ID, Undo: steps.RunPodSandbox, Why: "never became ready"})
		}
	}
	for _, c := range f.Containers {
		switch {
		case !boxes[c.SandboxID]:
			p.Containers = append(p.Containers, Action{Kind: Container, ID: c.ID, Remove: true, Why: "its sandbox is gone"})
		case c.State == record.ContainerCreating:
			if !cut[steps.CreateContainer][c.ID] {
				p.Containers = append(p.Containers, Action{Kind: Container, ID: c.ID, Undo: steps.CreateContainer, Why: "was never created"})
			}
		case c.State == record.ContainerRunning:
			p.Resume = append(p.Resume, Action{Kind: Container, ID: c.ID})
		case !cut[steps.StartContainer][c.ID]:
			p.Tidy = append(p.Tidy, Action{Kind: Container, ID: c.ID})
		}
	}
	for _, id := range f.StraySandboxes {
		if !cut[steps.RunPodSandbox][id] {
			p.Sandboxes = append(p.Sandboxes, Action{Kind: Sandbox, ID: id, Undo: steps.RunPodSandbox, Why: "no record names it"})
		}
	}
	for _, id := range f.StrayContainers {
		if !cut[steps.CreateContainer][id] {
			p.Containers = append(p.Containers, Action{Kind: Container, ID: id, Undo: steps.CreateContainer, Why: "no record names it"})
		}
	}
	return p
}

// undoUnfinished adds an action for each journal entry and returns them by
// operation and object.
func (p *Plan) undoUnfinished(unfinished []record.Unfinished) map[string]map[string]bool {
	cut := map[string]map[string]bool{}
	for _, u := range unfinished {
		if cut[u.Op] == nil {
			cut[u.Op] = map[string]bool{}
		}
		cut[u.Op][u.Object] = true
		a := Action{Kind: opsOf[u.Op], ID: u.Object, Undo: u.Op, Why: "cut at step " + u.Step}
		switch a.Kind {
		case Sandbox:
			p.Sandboxes = append(p.Sandboxes, a)
		case Container:
			p.Containers = append(p.Containers, a)
		default:
			a.Kind = Image
			p.Images = append(p.Images, a)
		}
	}
	return cut
}
