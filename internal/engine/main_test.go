package engine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// serveEnv, when set, makes the test binary a daemon with an engine in the
// directory it names; it ends with its standard input, or by a kill.
const serveEnv = "BERTH_TEST_ENGINE"

// churnEnv, when set, makes that daemon mutate snapshots until it is killed.
const churnEnv = "BERTH_TEST_CHURN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m,
		// containerd has no way to end its event exchange.
		goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

func serve(dir string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	e, err := StartEmbedded(context.Background(), optionsIn(dir, log))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if os.Getenv(churnEnv) != "" {
		return churn(e)
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	if cerr := e.Close(); err == nil {
		err = cerr
	}
	return err
}

// optionsIn are those of an engine in dir.
func optionsIn(dir string, log *slog.Logger) Options {
	return Options{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "run"), Socket: filepath.Join(dir, "c.sock"),
		ShimDirs: []string{libexec()}, Log: log,
	}
}

// libexec is where `make build` puts runc and its shim.
func libexec() string {
	wd, err := os.Getwd() // the package's directory
	if err != nil {
		panic(err)
	}
	return filepath.Join(wd, "../../bin/libexec")
}

// tempDir is a short directory: sockets are in it.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "be")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// testLog is a logger whose lines are shown when the test fails.
func testLog(t *testing.T) (*slog.Logger, *lines) {
	l := &lines{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.String())
		}
	})
	return slog.New(slog.NewTextHandler(l, nil)), l
}

// lines is a buffer that may be written to and read at one time.
type lines struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// start starts an embedded engine that the test closes at its end.
func start(t *testing.T, dir string) *Engine {
	t.Helper()
	log, _ := testLog(t)
	e, err := StartEmbedded(t.Context(), optionsIn(dir, log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeEngine(t, e) })
	return e
}

func closeEngine(t *testing.T, e *Engine) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// connect connects to the engine at address; the test closes it at its end.
func connect(t *testing.T, address string) *Engine {
	t.Helper()
	log, _ := testLog(t)
	useTempMounts(t)
	e, err := Connect(t.Context(), address, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeEngine(t, e) })
	return e
}

// A daemon is another process with an engine.
type daemon struct {
	cmd *exec.Cmd
	in  io.Closer
	log *lines
	end sync.Once
}

// softFiles is a daemon's soft limit of open files, as systemd gives services
// a lower one than the hard one.
const softFiles = "1000"

// startDaemon starts a process with an embedded engine in dir, killed at the
// test's end.
func startDaemon(t *testing.T, dir string, env ...string) *daemon {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cmd: exec.Command("/bin/busybox", "sh", "-c", "ulimit -Sn "+softFiles+`; exec "$0"`, exe), log: &lines{}}
	d.cmd.Env = append(append(os.Environ(), serveEnv+"="+dir), env...)
	d.cmd.Stderr = d.log
	// Its shims inherit stderr's pipe: do not wait for it.
	d.cmd.WaitDelay = 1
	in, err := d.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.in = in
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Log(d.log.String())
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "ready" {
		t.Fatalf("the daemon did not start: %v\n%s", err, d.log)
	}
	return d
}

// kill ends the daemon with SIGKILL.
func (d *daemon) kill() { d.stop(func() { d.cmd.Process.Signal(syscall.SIGKILL) }) }

// quit lets the daemon close its engine.
func (d *daemon) quit() { d.stop(func() { d.in.Close() }) }

func (d *daemon) stop(how func()) {
	d.end.Do(func() {
		how()
		d.cmd.Wait()
		d.in.Close()
	})
}
