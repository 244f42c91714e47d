package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settleDelay gathers the events of one change: a file that is being written
// gives several.
const settleDelay = 20 * time.Millisecond

// watch loads the configuration and starts watching ConfDir together with the
// directories above it, so that it may come, go and come back.
func (n *Network) watch() error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", n.opts.ConfDir, err)
	}
	n.watcher = w
	if err := n.rewatch(); err != nil {
		return errors.Join(err, w.Close())
	}
	n.load()
	n.watching.Go(n.follow)
	return nil
}

// rewatch watches each directory on the way to ConfDir, the topmost first: one
// that is made meanwhile is either found or announced. Watching a directory
// again is harmless.
func (n *Network) rewatch() error {
	for _, dir := range pathTo(n.opts.ConfDir) {
		err := n.watcher.Add(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watching %s for CNI configuration: %w (fs.inotify limits of the kernel?)", dir, err)
		}
	}
	return nil
}

func pathTo(dir string) []string {
	var dirs []string
	for ; ; dir = filepath.Dir(dir) {
		dirs = append([]string{dir}, dirs...)
		if dir == filepath.Dir(dir) {
			return dirs
		}
	}
}

// follow loads the configuration again after each change, until the watcher
// is closed.
func (n *Network) follow() {
	var due <-chan time.Time
	for {
		select {
		case ev, ok := <-n.watcher.Events:
			if !ok {
				return
			}
			if ev.Op != fsnotify.Chmod && n.concerns(ev) && due == nil {
				due = time.After(settleDelay)
			}
		case err, ok := <-n.watcher.Errors:
			if !ok {
				return
			}
			n.opts.Log.Warn("watching CNI configuration", "dir", n.opts.ConfDir, "err", err)
			due = time.After(settleDelay) // events may be lost
		case <-due:
			due = nil
			if err := n.rewatch(); err != nil {
				n.opts.Log.Error("CNI configuration is not watched any more; restart the daemon after a change of it", "err", err)
			}
			n.load()
		}
	}
}

// concerns tells whether the event is about ConfDir, what it holds, or a
// directory above it. Where that went or came, the old watch is dropped.
func (n *Network) concerns(ev fsnotify.Event) bool {
	above := ev.Name == n.opts.ConfDir || strings.HasPrefix(n.opts.ConfDir, strings.TrimSuffix(ev.Name, "/")+"/")
	if above && ev.Op.Has(fsnotify.Remove|fsnotify.Rename|fsnotify.Create) {
		for _, dir := range n.watcher.WatchList() {
			if dir == ev.Name || strings.HasPrefix(dir, ev.Name+"/") {
				_ = n.watcher.Remove(dir) // gone already where the directory is
			}
		}
	}
	return above || strings.HasPrefix(ev.Name, n.opts.ConfDir+"/")
}
