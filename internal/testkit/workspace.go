package testkit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// A Workspace is what a program that Enter runs has to itself on disk and in
// the cgroup trees. One that is not closed is removed by the next run of
// anything that calls Enter or Main.
type Workspace struct {
	// Base is a directory.
	Base string
	// Cgroup is below the root of every hierarchy; nobody makes it but its
	// user.
	Cgroup string

	mark *os.File // held, see claim
}

// NewWorkspace makes the directory.
func NewWorkspace() (*Workspace, error) {
	base, err := os.MkdirTemp(filepath.Dir(basePrefix), filepath.Base(basePrefix))
	if err != nil {
		return nil, err
	}
	mark, err := claim(base)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(base))
	}
	return &Workspace{Base: base, Cgroup: cgroupPrefix + strings.TrimPrefix(base, basePrefix), mark: mark}, nil
}

// Left are the processes of the PID namespace that this process and its
// children are not.
func (w *Workspace) Left() []string {
	var lines []string
	for _, p := range (&Daemon{}).ownProcesses() {
		lines = append(lines, p.text)
	}
	return lines
}

// Close ends every process of the PID namespace but this one and its children,
// and removes mounts, cgroups and files below the workspace. Mounts elsewhere,
// links and rules go with the namespaces.
func (w *Workspace) Close() error {
	d := &Daemon{}
	d.Base, d.State = w.Base, w.Base
	errs := []error{d.killAll(), d.unmountAll(), removeCgroups(w.Cgroup), os.RemoveAll(w.Base), w.mark.Close()}
	return errors.Join(errs...)
}
