package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"berth/internal/host"
)

// What a kill leaves of shims, and who puts it right:
//
//   - A shim that lives and whose bundle is whole: containerd adopts it.
//   - A bundle without a living shim, or cut before it named its shim's
//     socket: containerd runs "shim delete" in it, and removes it.
//   - A shim that no bundle names any more, or not yet: containerd never learns
//     of it. Found here by its command line and the socket it listens on, and
//     killed together with what runs under it, which nobody could manage.
//   - A "shim start" that still runs: killed before it makes such a shim.
//   - Bundles half removed (".ID") and working directories without a bundle:
//     containerd passes over them. Removed here.
//
// Several containers may share one shim, and the one it was started for may be
// gone; so what counts is the socket, not the ID on the command line.

// bundleParents are the plugins below whose directories there are bundles, as
// PLUGIN/NAMESPACE/ID.
var bundleParents = []string{"io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"}

// shimEnd is how long a killed process may take to be gone, and how long a
// "shim delete" may still take.
var shimEnd = 5 * time.Second

// sweepShims removes what containerd's own recovery of shims passes over.
func (o *Options) sweepShims(ctx context.Context) error {
	shims, err := o.findShims(ctx)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, parent := range bundleParents {
		if err := o.sweepBundles(parent, live); err != nil {
			return err
		}
	}
	if err := o.killOrphans(ctx, shims, live); err != nil {
		return err
	}
	return o.sweepSockets(live)
}

// isOurs tells whether a command line is that of a shim of this engine.
func (o *Options) isOurs(cmdline []string) bool {
	i := slices.Index(cmdline, "-address")
	return i > 0 && i+1 < len(cmdline) && cmdline[i+1] == o.Socket &&
		slices.Contains(cmdline, "-id") && slices.Contains(cmdline, "-namespace")
}

// shimProcesses lists the processes that are shims of this engine, or short
// calls of shim binaries for it. A container can have any command line; so
// only processes count that run on the host itself, as root, as a shim does.
func (o *Options) shimProcesses(match func(cmdline []string) bool) ([]host.Process, error) {
	ours, err := host.InOurNamespaces()
	if err != nil {
		return nil, err
	}
	names := map[string]bool{shimPrefix[:maxComm]: true}
	for _, path := range o.Shims {
		name := filepath.Base(path)
		names[name[:min(len(name), maxComm)]] = true
	}
	return host.FindProcesses(match, func(pid int) bool { return ours(pid) && isOwn(pid) && names[commOf(pid)] })
}

const (
	// foreignSocketDir is where shims that were built with an older containerd
	// have their sockets, whatever they are told.
	foreignSocketDir = "/run/containerd/s"

	shimPrefix = "containerd-shim-"
	// maxComm is how much of a program's name the kernel keeps.
	maxComm = 15
)

// isOwn tells whether a process has this one's user.
func isOwn(pid int) bool {
	info, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Uid == uint32(os.Geteuid())
}

// commOf is the name by which a process's program was executed, cut short: of
// a link its own, and unlike /proc/PID/exe it outlives the file.
func commOf(pid int) string {
	comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return "" // ended meanwhile
	}
	return strings.TrimSuffix(string(comm), "\n")
}

// findShims lists the shims of this engine, once the short calls of shim
// binaries that a killed daemon left running have ended: "start" is killed,
// "delete" may end. Looking through all processes takes milliseconds, so it is
// done again only where there were such calls.
func (o *Options) findShims(ctx context.Context) ([]host.Process, error) {
	for pass := 0; ; pass++ {
		var actions []string
		shims, err := o.shimProcesses(func(cmdline []string) bool {
			ours := o.isOurs(cmdline)
			if ours {
				actions = append(actions, cmdline[len(cmdline)-1])
			}
			return ours
		})
		if err != nil {
			return nil, err
		}
		if pass == 2 || !slices.Contains(actions, "start") && !slices.Contains(actions, "delete") {
			return shims, nil
		}
		if err := o.endHelpers(ctx); err != nil {
			return nil, err
		}
	}
}

// endHelpers ends the calls that findShims speaks of. All have the same time.
func (o *Options) endHelpers(ctx context.Context) error {
	for _, action := range []string{"start", "delete"} {
		found, err := o.shimProcesses(func(cmdline []string) bool {
			return o.isOurs(cmdline) && cmdline[len(cmdline)-1] == action
		})
		if err != nil {
			return err
		}
		if action == "delete" {
			wait, cancel := context.WithTimeout(ctx, shimEnd)
			for _, p := range found {
				_ = p.Wait(wait) // killed below if it has not ended
			}
			cancel()
		}
		o.kill(ctx, found, "a shim's helper that a killed daemon left does not end", "action", action)
	}
	return nil
}

// kill kills processes and waits until all are gone, for one time. It tells of
// those that are not.
func (o *Options) kill(ctx context.Context, list []host.Process, complaint string, attrs ...any) {
	ctx, cancel := context.WithTimeout(ctx, shimEnd)
	defer cancel()
	errs := make([]error, len(list))
	for i, p := range list {
		if errs[i] = p.Signal(syscall.SIGKILL); errdefs.IsNotFound(errs[i]) {
			errs[i] = nil
		}
	}
	for i, p := range list {
		if errs[i] == nil {
			errs[i] = p.Wait(ctx)
		}
		if errs[i] != nil {
			o.Log.Warn(complaint, append(slices.Clone(attrs), "pid", p.PID, "err", errs[i])...)
		}
	}
}

// sweepBundles notes the sockets that a plugin's bundles name, and removes
// what is no bundle any more.
func (o *Options) sweepBundles(parent string, live map[string]bool) error {
	state, root := filepath.Join(o.State, parent), filepath.Join(o.Root, parent)
	ids, err := grandchildren(state)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if strings.HasPrefix(filepath.Base(id), ".") {
			o.remove(state, id, "a bundle half removed")
		} else if socket := bundleSocket(filepath.Join(state, id)); socket != "" {
			live[socket] = true
		}
	}
	work, err := grandchildren(root)
	if err != nil {
		return err
	}
	for _, id := range work {
		if !slices.Contains(ids, id) || strings.HasPrefix(filepath.Base(id), ".") {
			o.remove(root, id, "a working directory without a bundle")
		}
	}
	return nil
}

// remove removes a leftover. One that cannot be removed is in nobody's way.
func (o *Options) remove(dir, name, what string) {
	err := host.UnmountBelow(filepath.Join(dir, name))
	if err == nil {
		err = host.RemoveTree(dir, name)
	}
	if err != nil {
		o.Log.Warn("what a killed daemon left stays", "what", what, "err", err)
		return
	}
	o.Log.Info("removed what a killed daemon left", "what", what, "path", filepath.Join(dir, name))
}

// grandchildren lists NAMESPACE/ID below dir.
func grandchildren(dir string) ([]string, error) {
	var list []string
	parents, err := readDir(dir)
	for _, p := range parents {
		children, cerr := readDir(filepath.Join(dir, p))
		err = errors.Join(err, cerr)
		for _, c := range children {
			list = append(list, filepath.Join(p, c))
		}
	}
	return list, err
}

// readDir lists the directories in dir, none when it is not there.
func readDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// bundleSocket is the path of the socket of a bundle's shim, "" when the
// bundle does not name one.
func bundleSocket(bundle string) string {
	var boot struct {
		Address string `json:"address"`
	}
	if data, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json")); err == nil {
		if json.Unmarshal(data, &boot) != nil {
			return ""
		}
	} else if data, err := os.ReadFile(filepath.Join(bundle, "address")); err == nil {
		boot.Address = strings.TrimSpace(string(data)) // before containerd 2
	}
	return strings.TrimPrefix(boot.Address, "unix://")
}

// killOrphans kills the shims of this engine that listen only on sockets that
// no bundle names, and the processes below them.
func (o *Options) killOrphans(ctx context.Context, shims []host.Process, live map[string]bool) error {
	for _, shim := range shims {
		sockets, err := SocketsOf(shim.PID)
		if err != nil {
			return fmt.Errorf("sockets of the shim that is process %d: %w", shim.PID, err)
		}
		sockets = slices.DeleteFunc(sockets, func(path string) bool {
			return filepath.Dir(path) != o.socketDir() && filepath.Dir(path) != foreignSocketDir
		})
		if len(sockets) == 0 || slices.ContainsFunc(sockets, func(path string) bool { return live[path] }) {
			continue
		}
		below, err := descendants(shim.PID)
		if err != nil {
			return err
		}
		o.kill(ctx, append([]host.Process{shim}, below...), "a process of a shim that no bundle names does not end", "shim", shim.PID)
		o.Log.Info("killed a shim that no bundle names", "pid", shim.PID, "below", len(below))
	}
	return nil
}

// sweepSockets removes the sockets of shims that are gone.
func (o *Options) sweepSockets(live map[string]bool) error {
	entries, err := os.ReadDir(o.socketDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(o.socketDir(), e.Name())
		if live[path] || e.Type() != fs.ModeSocket {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// SocketsOf lists the paths of the unix sockets that a process has open and
// that have a name, so listens on or has accepted from. A shim that is killed
// leaves its one behind.
func SocketsOf(pid int) ([]string, error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // ended meanwhile
	} else if err != nil {
		return nil, err
	}
	open := map[string]bool{}
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil {
			if inode, ok := strings.CutPrefix(target, "socket:["); ok {
				open[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	table, err := os.ReadFile(filepath.Join(proc, "net/unix"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EINVAL) {
		return nil, err
	}
	return socketPaths(string(table), open), nil
}

// socketPaths reads /proc/net/unix: the paths of the sockets with these
// inodes.
func socketPaths(table string, inodes map[string]bool) []string {
	var paths []string
	for line := range strings.Lines(table) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) == 8 && inodes[f[6]] && !slices.Contains(paths, f[7]) {
			paths = append(paths, f[7])
		}
	}
	return paths
}

// descendants lists the processes below pid, parents first.
func descendants(pid int) ([]host.Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // ended meanwhile
		}
		// PID (NAME) STATE PPID; the name may hold anything.
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if parent, err := strconv.Atoi(f[1]); err == nil {
			children[parent] = append(children[parent], child)
		}
	}
	var list []host.Process
	for queue := children[pid]; len(queue) > 0; queue = queue[1:] {
		if p, err := host.ProcessOf(queue[0]); err == nil {
			list = append(list, p)
		}
		queue = append(queue, children[queue[0]]...)
	}
	return list, nil
}
