package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/fifo"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	crilogs "k8s.io/cri-client/pkg/logs"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("BERTH_LOGS_READER"); dir != "" {
		reader(dir)
	}
	if path := os.Getenv("BERTH_LOGS_WRITER"); path != "" {
		writer(path)
	}
	goleak.VerifyTestMain(m)
}

// options are those of a container in directories of the test's own.
func options(t testing.TB) Options {
	dir := t.TempDir()
	return Options{
		Dir:     filepath.Join(dir, "fifos"),
		ID:      "c1",
		LogPath: filepath.Join(dir, "pod", "c", "0.log"),
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func open(t testing.TB, o Options) *IO {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// A shim has the ends open that containerd's runc shim has.
type shim struct {
	t     testing.TB
	files []io.Closer
	w     map[string]io.Writer
}

func startShim(t testing.TB, c Config) *shim {
	t.Helper()
	s := &shim{t: t, w: map[string]io.Writer{}}
	for name, path := range map[string]string{stdout: c.Stdout, stderr: c.Stderr} {
		if path == "" {
			continue
		}
		w, err := fifo.OpenFifo(context.Background(), path, unix.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		r, err := fifo.OpenFifo(context.Background(), path, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		s.w[name] = w
		s.files = append(s.files, w, r)
	}
	t.Cleanup(s.end)
	return s
}

func (s *shim) write(stream, data string) {
	s.t.Helper()
	if _, err := io.WriteString(s.w[stream], data); err != nil {
		s.t.Error(err)
	}
}

// end is the shim's end of copying.
func (s *shim) end() {
	for _, f := range s.files {
		f.Close()
	}
}

func drain(t testing.TB, l *IO) {
	t.Helper()
	select {
	case <-l.Drained():
	case <-time.After(10 * time.Second):
		t.Fatal("output does not end")
	}
}

// within waits for a condition that another process or goroutine brings about.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 seconds: %s", what)
		}
	}
}

// entries are the log's, without timestamps.
func entries(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range bytes.Lines(data) {
		_, rest, _ := bytes.Cut(line, []byte(" "))
		b.Write(rest)
	}
	return b.String()
}

// kubelet reads the log as the kubelet does.
func kubelet(t testing.TB, path string) (out, err string) {
	t.Helper()
	var o, e bytes.Buffer
	if err := crilogs.ReadLogs(context.Background(), path, "", &crilogs.LogOptions{}, nil, &o, &e); err != nil {
		t.Fatal(err)
	}
	return o.String(), e.String()
}

func TestOutput(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 5000)
	for name, test := range map[string]struct{ out, err string }{
		"nothing":            {},
		"lines":              {"one\ntwo\n", "three\n"},
		"no newline at last": {"one\ntwo", "three"},
		"long lines":         {long + "\n" + long, long + "\nx\n"},
		"binary":             {"\x00\xff\n\r\n\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			l := open(t, o)
			s := startShim(t, l.Config())
			go func() {
				defer s.end() // at once after writing
				s.write(stdout, test.out)
				s.write(stderr, test.err)
			}()
			l.Running()
			drain(t, l)
			if test.out+test.err == "" {
				if got := entries(t, o.LogPath); got != "" {
					t.Errorf("log holds %q", got)
				}
				return
			}
			out, err := kubelet(t, o.LogPath)
			if diff := cmp.Diff([]string{test.out, test.err}, []string{out, err}); diff != "" {
				t.Errorf("the kubelet reads (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOpenMakes(t *testing.T) {
	o := options(t)
	o.Stdin = true
	l := open(t, o)
	for path, want := range map[string]os.FileMode{
		o.Dir:                              os.ModeDir | 0o700,
		l.Config().Stdin:                   os.ModeNamedPipe | 0o600,
		l.Config().Stdout:                  os.ModeNamedPipe | 0o600,
		l.Config().Stderr:                  os.ModeNamedPipe | 0o600,
		o.LogPath:                          0o640,
		filepath.Dir(o.LogPath):            os.ModeDir | 0o755,
		filepath.Join(o.Dir, "log.cursor"): 0o600,
	} {
		fi, err := os.Lstat(path)
		if err != nil {
			t.Error(err)
		} else if fi.Mode() != want {
			t.Errorf("%s: mode %v, want %v", path, fi.Mode(), want)
		}
	}
	if got := cio.Config(l.Config()); got.Terminal || got.Stdin != l.Config().Stdin {
		t.Errorf("containerd's configuration: %+v", got)
	}
}

func TestTerminalHasNoStderr(t *testing.T) {
	o := options(t)
	o.TTY = true
	l := open(t, o)
	if c := l.Config(); c.Stderr != "" || !c.Terminal || len(l.Outputs()) != 1 {
		t.Errorf("configuration %+v, outputs %v", c, l.Outputs())
	}
	s := startShim(t, l.Config())
	l.Running()
	s.write(stdout, "$ \r\n")
	s.end()
	drain(t, l)
	if got, want := entries(t, o.LogPath), "stdout F $ \r\n"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}

// A line that comes in pieces is one entry; one that does not come to an end
// is shown.
func TestFragments(t *testing.T) {
	t.Parallel()
	o := options(t)
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	for _, piece := range []string{"a", "b", "c\nmore? "} {
		s.write(stdout, piece)
	}
	within(t, "first line", func() bool { return entries(t, o.LogPath) == "stdout F abc\n" })
	within(t, "prompt", func() bool { return strings.HasSuffix(entries(t, o.LogPath), "stdout P more? \n") })
	s.write(stderr, "err\n")
	within(t, "other stream", func() bool { return strings.Contains(entries(t, o.LogPath), "err") })
	s.write(stdout, "yes\n")
	s.end()
	drain(t, l)
	want := "stdout F abc\nstdout P more? \nstderr F err\nstdout F yes\n"
	if diff := cmp.Diff(want, entries(t, o.LogPath)); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestWithoutWriter(t *testing.T) {
	for name, running := range map[string]bool{"never started": false, "gone": true} {
		t.Run(name, func(t *testing.T) {
			l := open(t, options(t))
			if running {
				l.Running()
				drain(t, l) // no writer, no output
			}
			if err := errors.Join(l.Close(), l.Close()); err != nil {
				t.Error(err)
			}
			drain(t, l)
		})
	}
}

// Output stays in the FIFO while no daemon reads it, fragments too.
func TestRestart(t *testing.T) {
	o := options(t)
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	s.write(stdout, "one\ntw")
	within(t, "first line", func() bool { return entries(t, o.LogPath) != "" })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.write(stdout, "o\n")
	s.write(stderr, "three\nfo")
	hold, err := os.OpenFile(l.Config().Stderr, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	hold2, err := os.OpenFile(l.Config().Stdout, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold2.Close()
	s.end()
	l = open(t, o)
	l.Running()
	drain(t, l)
	out, errs := kubelet(t, o.LogPath)
	if diff := cmp.Diff([]string{"one\ntwo\n", "three\nfo"}, []string{out, errs}); diff != "" {
		t.Errorf("the kubelet reads (-want +got):\n%s", diff)
	}
}

func TestReopen(t *testing.T) {
	o := options(t)
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	s.write(stdout, "old\n")
	within(t, "old line", func() bool { return entries(t, o.LogPath) != "" })
	rotated := o.LogPath + ".1"
	if err := os.Rename(o.LogPath, rotated); err != nil {
		t.Fatal(err)
	}
	s.write(stdout, "between\n")
	within(t, "line between", func() bool { return strings.Contains(entries(t, rotated), "between") })
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	s.write(stdout, "new\n")
	s.end()
	drain(t, l)
	if got, want := entries(t, rotated)+entries(t, o.LogPath), "stdout F old\nstdout F between\nstdout F new\n"; got != want {
		t.Errorf("logs %q, want %q", got, want)
	}
	if err := l.Reopen(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen after the end: %v", err)
	}
}

func TestBadLogPath(t *testing.T) {
	for name, test := range map[string]struct {
		place func(path string) error
		is    func(error) bool
	}{
		"symbolic link": {func(p string) error { return os.Symlink("/dev/null", p) }, func(err error) bool { return errors.Is(err, unix.ELOOP) }},
		"FIFO":          {func(p string) error { return unix.Mkfifo(p, 0o600) }, func(err error) bool { return errors.Is(err, unix.ENXIO) }},
		"directory":     {func(p string) error { return os.Mkdir(p, 0o700) }, func(err error) bool { return errors.Is(err, unix.EISDIR) }},
		"device":        {func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, 1<<8|3) }, errdefs.IsFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			if err := errors.Join(os.MkdirAll(filepath.Dir(o.LogPath), 0o700), test.place(o.LogPath)); err != nil {
				t.Fatal(err)
			}
			if l, err := Open(o); err == nil {
				l.Close()
				t.Error("opened")
			} else if !test.is(err) || !strings.Contains(err.Error(), "c1") {
				t.Errorf("error %v", err)
			}
			// A container that runs already is not made to wait.
			var told atomic.Int64
			o.Lost = func(bytes int) { told.Add(int64(bytes)) }
			l := open(t, o)
			s := startShim(t, l.Config())
			l.Running()
			go func() {
				defer s.end()
				s.write(stdout, strings.Repeat("line\n", 50000))
			}()
			drain(t, l)
			if n := l.file.lost.Load(); n < 5*50000 || n != told.Load() {
				t.Errorf("lost %d bytes", l.file.lost.Load())
			}
		})
	}
}

func TestNotAFIFO(t *testing.T) {
	o := options(t)
	if err := os.MkdirAll(filepath.Join(o.Dir, stdout), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
}

// A full disk makes nobody wait, tears no entry, and is over when there is
// room.
func TestDiskFull(t *testing.T) {
	o := options(t)
	disk := filepath.Dir(o.LogPath)
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	var attached bytes.Buffer
	done := make(chan error, 1)
	go func() { done <- l.Attach(t.Context(), AttachOptions{Stdout: &attached}) }()
	within(t, "client", func() bool { l.clients.mu.Lock(); defer l.clients.mu.Unlock(); return len(l.clients.list) == 1 })
	const lines = 20000
	for i := range lines {
		s.write(stdout, fmt.Sprintf("line %d\n", i))
	}
	within(t, "loss", func() bool { return l.file.lost.Load() > 0 && l.idle(t) })
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s.write(stdout, "room again\n")
	s.end()
	drain(t, l)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := bytes.Count(attached.Bytes(), []byte("\n")); got != lines+1 {
		t.Errorf("client got %d lines, want %d", got, lines+1)
	}
	data, err := os.ReadFile(o.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, data); !bytes.HasSuffix(got, []byte("\nroom again\n")) {
		t.Errorf("log ends with %q", got[max(0, len(got)-100):])
	}
}

// idle says that the FIFO of stdout is empty.
func (l *IO) idle(t *testing.T) bool {
	n := 1
	if err := l.pumps[0].raw.Control(func(fd uintptr) { n, _ = available(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	return n == 0
}

func TestLogDirectoryRemoved(t *testing.T) {
	o := options(t)
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	if err := os.RemoveAll(filepath.Dir(filepath.Dir(o.LogPath))); err != nil {
		t.Fatal(err)
	}
	s.write(stdout, "into the removed file\n")
	within(t, "output taken", func() bool { return l.idle(t) })
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	s.write(stdout, "into the new one\n")
	s.end()
	drain(t, l)
	if got, want := entries(t, o.LogPath), "stdout F into the new one\n"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}

func TestWithoutLog(t *testing.T) {
	o := options(t)
	o.LogPath = ""
	l := open(t, o)
	s := startShim(t, l.Config())
	l.Running()
	s.write(stdout, strings.Repeat("no newline", 10000))
	s.end()
	drain(t, l)
	if err := l.Reopen(); err != nil {
		t.Error(err)
	}
}
