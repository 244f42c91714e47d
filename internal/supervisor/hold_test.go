package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth/internal/host"
	"berth/internal/supervisor/hold"
)

func openHold(t testing.TB, state string) *Hold {
	t.Helper()
	h, err := OpenHold(testContext(t), HoldOptions{Binary: binary, State: state, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endHold(t, h) })
	return h
}

// endHold closes the client and ends the process, which would end by itself
// seconds later.
func endHold(t testing.TB, h *Hold) {
	t.Helper()
	pid, err := h.PID(context.Background())
	if cerr := h.Close(); cerr != nil {
		t.Error(cerr)
	}
	if err != nil {
		return
	}
	if p, err := host.ProcessOf(pid); err == nil {
		p.Signal(unix.SIGTERM)
		p.Wait(testContext(t))
	}
}

func pidOf(t testing.TB, h *Hold) host.Process {
	t.Helper()
	pid, err := h.PID(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	p, err := host.ProcessOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func makeFIFO(t testing.TB, state, name string) string {
	t.Helper()
	path := filepath.Join(state, "containers", name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// leave writes to the FIFO as a shim does that ends while nobody reads.
func leave(t testing.TB, path, data string) {
	t.Helper()
	w, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// left reads what is in the FIFO.
func left(t testing.TB, path string) string {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	b := make([]byte, 1024)
	n, err := unix.Read(fd, b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestHoldKeepsOutput(t *testing.T) {
	state, ctx := t.TempDir(), testContext(t)
	h := openHold(t, state)
	out, errs := makeFIFO(t, state, "c1/stdout"), makeFIFO(t, state, "c1/stderr")
	for range 2 { // again: no moment without a holder
		if err := h.Keep(ctx, "c1", out, errs); err != nil {
			t.Fatal(err)
		}
	}
	leave(t, out, "last words")
	leave(t, errs, "and errors")
	if err := h.Keep(ctx, "c1", out, errs); err != nil {
		t.Fatal(err)
	}
	if got := left(t, out) + left(t, errs); got != "last wordsand errors" {
		t.Errorf("left: %q", got)
	}
	leave(t, out, "again")
	if err := h.Release(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if got := left(t, out); got != "" {
		t.Errorf("left after release: %q", got)
	}
	if err := h.Release(ctx, "never"); err != nil {
		t.Errorf("release of an unknown key: %v", err)
	}
	if keys, err := h.Keys(ctx); err != nil || len(keys) != 0 {
		t.Errorf("keys %v, %v", keys, err)
	}
}

func TestHoldRefuses(t *testing.T) {
	state, ctx := t.TempDir(), testContext(t)
	h := openHold(t, state)
	good := makeFIFO(t, state, "c1/stdout")
	outside := makeFIFO(t, t.TempDir(), "stdout")
	link := filepath.Join(state, "link")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		key   string
		paths []string
		is    func(error) bool
	}{
		"missing":        {"k", []string{good, filepath.Join(state, "none")}, errdefs.IsNotFound},
		"outside":        {"k", []string{outside}, errdefs.IsInvalidArgument},
		"link outside":   {"k", []string{link}, errdefs.IsInvalidArgument},
		"no FIFO":        {"k", []string{filepath.Join(state, "containers")}, errdefs.IsInvalidArgument},
		"no key":         {"", []string{good}, errdefs.IsInvalidArgument},
		"long key":       {strings.Repeat("k", 300), []string{good}, errdefs.IsInvalidArgument},
		"no paths":       {"k", nil, errdefs.IsInvalidArgument},
		"too many paths": {"k", make([]string, 65), errdefs.IsInvalidArgument},
		"too long paths": {"k", []string{good, filepath.Join(state, strings.Repeat("x/", 40000))}, errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range test.paths {
				if test.paths[i] == "" {
					test.paths[i] = good
				}
			}
			if err := h.Keep(ctx, test.key, test.paths...); !test.is(err) {
				t.Errorf("error %v", err)
			}
		})
	}
	if keys, err := h.Keys(ctx); err != nil || len(keys) != 0 {
		t.Errorf("keys %v, %v", keys, err)
	}
}

// Many that start at one time share one process, in a state directory with a
// path longer than a socket's may be.
func TestHoldStartsOnce(t *testing.T) {
	state := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	holds := make([]*Hold, 6)
	var wg sync.WaitGroup
	for i := range holds {
		wg.Go(func() { holds[i] = openHold(t, state) })
	}
	wg.Wait()
	pids := map[host.Process]bool{}
	for _, h := range holds {
		pids[pidOf(t, h)] = true
	}
	if len(pids) != 1 {
		t.Errorf("processes %v", pids)
	}
	for path, want := range map[string]os.FileMode{
		filepath.Join(state, hold.Dir):              os.ModeDir | 0o700,
		filepath.Join(state, hold.Dir, hold.Socket): os.ModeSocket | 0o600,
	} {
		if fi, err := os.Lstat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, fi.Mode(), err, want)
		}
	}
}

func TestHoldsDoNotMix(t *testing.T) {
	ctx := testContext(t)
	one, two := t.TempDir(), t.TempDir()
	h1, h2 := openHold(t, one), openHold(t, two)
	if err := h1.Keep(ctx, "c", makeFIFO(t, one, "stdout")); err != nil {
		t.Fatal(err)
	}
	if keys, err := h2.Keys(ctx); err != nil || len(keys) != 0 {
		t.Errorf("the other's keys: %v, %v", keys, err)
	}
	if pidOf(t, h1) == pidOf(t, h2) {
		t.Error("one process serves two state directories")
	}
}

// A killed process is started again, without a request, and keeps all that it
// kept.
func TestHoldKilled(t *testing.T) {
	state, ctx := t.TempDir(), testContext(t)
	h := openHold(t, state)
	var want []string
	for i := range 3 {
		key := fmt.Sprint("c", i)
		if err := h.Keep(ctx, key, makeFIFO(t, state, key)); err != nil {
			t.Fatal(err)
		}
		want = append(want, key)
	}
	gone := makeFIFO(t, state, "gone")
	if err := errors.Join(h.Keep(ctx, "gone", gone), os.Remove(gone)); err != nil {
		t.Fatal(err)
	}
	p := pidOf(t, h)
	if err := errors.Join(p.Signal(unix.SIGKILL), p.Wait(ctx)); err != nil {
		t.Fatal(err)
	}
	within(t, "another process", func() bool {
		found, err := host.FindProcesses(func(c []string) bool { return slices.Contains(c, "hold") && slices.Contains(c, state) })
		return err == nil && len(found) == 1
	})
	if got := pidOf(t, h); got == p {
		t.Error("the process was not killed")
	}
	keys, err := h.Keys(ctx)
	if diff := cmp.Diff(want, keys); diff != "" || err != nil {
		t.Errorf("%v; keys (-want +got):\n%s", err, diff)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); err == nil {
		t.Error("the killed process is a zombie")
	}
}

// A request right after the death is made of the next process.
func TestHoldRequestAfterDeath(t *testing.T) {
	state, ctx := t.TempDir(), testContext(t)
	h := openHold(t, state)
	path := makeFIFO(t, state, "c")
	for range 5 {
		p := pidOf(t, h)
		if err := p.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := h.Keep(ctx, "c", path); err != nil {
			t.Fatal(err)
		}
	}
}

// Without its program the daemon works, and what is to be kept is kept once it
// is there.
func TestHoldWithoutProgram(t *testing.T) {
	state, ctx := t.TempDir(), testContext(t)
	program := filepath.Join(t.TempDir(), "program")
	h, err := OpenHold(ctx, HoldOptions{Binary: program, State: state, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endHold(t, h) })
	if err := h.Keep(ctx, "c", makeFIFO(t, state, "c")); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), program) {
		t.Errorf("keep: %v", err)
	}
	if err := h.Release(ctx, "other"); err != nil {
		t.Errorf("release: %v", err)
	}
	if err := os.Symlink(binary, program); err != nil {
		t.Fatal(err)
	}
	within(t, "kept", func() bool { keys, err := h.Keys(ctx); return err == nil && len(keys) == 1 })
}

// A process that does not answer delays nobody for long: what is wanted is
// written down, and done when it answers.
func TestHoldThatHangs(t *testing.T) {
	state, ctx := t.TempDir(), testContext(t)
	h := openHold(t, state)
	if err := h.Keep(ctx, "before", makeFIFO(t, state, "before")); err != nil {
		t.Fatal(err)
	}
	p := pidOf(t, h)
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	within(t, "stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
		return err == nil && bytes.Contains(stat, []byte(") T "))
	})
	var wg sync.WaitGroup
	for i := range 8 {
		key := fmt.Sprint("c", i)
		path := makeFIFO(t, state, key)
		wg.Go(func() {
			if err := h.Keep(ctx, key, path); !errdefs.IsUnavailable(err) {
				t.Errorf("keep: %v", err)
			}
		})
	}
	wg.Go(func() {
		if err := h.Release(ctx, "before"); err != nil {
			t.Errorf("release: %v", err)
		}
	})
	wg.Go(func() {
		now, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := h.Keys(now); !errdefs.IsUnavailable(err) {
			t.Errorf("keys, for one who has no time: %v", err)
		}
	})
	wg.Wait()
	h.mu.Lock()
	if len(h.queue) == 0 {
		t.Error("they waited for the request that was under way")
	}
	h.mu.Unlock()
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	want := []string{"c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"}
	within(t, "all is kept", func() bool { keys, err := h.Keys(ctx); return err == nil && slices.Equal(keys, want) })
}

// daemon is a daemon in a process of its own.
func daemon(state string) {
	h, err := OpenHold(context.Background(), HoldOptions{Binary: os.Getenv("BERTH_HOLD_BINARY"), State: state, Log: testLog(&testing.T{})})
	if err == nil {
		err = h.Keep(context.Background(), "c", filepath.Join(state, "containers", "c"))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("kept")
	select {}
}

// The process outlives a daemon that is killed, and the next one finds it. It
// keeps none of the daemon's files open.
func TestHoldOutlivesDaemon(t *testing.T) {
	state, ctx := t.TempDir(), testContext(t)
	path := makeFIFO(t, state, "c")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BERTH_HOLD_DAEMON="+state, "BERTH_HOLD_BINARY="+binary)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 5)
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "kept\n" {
		t.Fatalf("daemon said %q, %v", said, err)
	}
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err == nil {
		t.Fatal("the daemon leads a process group")
	}
	cmd.Process.Kill()
	if rest, err := io.ReadAll(out); len(rest) > 0 || err != nil {
		t.Errorf("the daemon's output: %q, %v", rest, err)
	}
	cmd.Wait()
	leave(t, path, "last words")
	h := openHold(t, state)
	if keys, err := h.Keys(ctx); err != nil || len(keys) != 1 {
		t.Errorf("keys %v, %v", keys, err)
	}
	if got := left(t, path); got != "last words" {
		t.Errorf("left: %q", got)
	}
	// A key of the daemon before is kept across the process's death too.
	p := pidOf(t, h)
	if sid, err := unix.Getsid(p.PID); err != nil || sid != p.PID {
		t.Errorf("session %d of process %d, %v", sid, p.PID, err)
	}
	if err := errors.Join(p.Signal(unix.SIGKILL), p.Wait(ctx)); err != nil {
		t.Fatal(err)
	}
	within(t, "kept again", func() bool { keys, err := h.Keys(ctx); return err == nil && len(keys) == 1 })
}

func TestHoldOptions(t *testing.T) {
	for _, o := range []HoldOptions{{}, {Binary: "x", State: "relative", Log: testLog(t)}, {Binary: "x", State: "/x"}} {
		if _, err := OpenHold(t.Context(), o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if out, err := exec.Command(binary, "hold").CombinedOutput(); err == nil || !bytes.Contains(out, []byte("--state DIR")) {
		t.Errorf("without state directory: %v, %s", err, out)
	}
}
