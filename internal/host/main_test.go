package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("internal/host: its tests change namespaces, mounts and cgroups; run them as root")
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// tempDir is a directory whose mounts are taken away before it is.
func tempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := UnmountBelow(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// start runs a command until the test ends.
func start(t testing.TB, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func sleeper(t testing.TB, attr *syscall.SysProcAttr) *exec.Cmd {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = attr
	return start(t, cmd)
}

// must fails the test at once.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSpace(string(data))
}

// mountsBelow renders the mounts below a directory.
func mountsBelow(t testing.TB, dir string) string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	must(t, err)
	var text strings.Builder
	for _, m := range mounts {
		path, _ := filepath.Rel(dir, m.Mountpoint)
		options := strings.Split(m.Options, ",")
		fmt.Fprintf(&text, "%s %s %s\n", path, m.FSType, strings.Join(options, " "))
	}
	return text.String()
}

// reportCPU adds processor time to a benchmark: on a busy machine, wall time
// says little. It is to be deferred.
func reportCPU(b *testing.B) func() {
	used := func() int64 {
		var r unix.Rusage
		must(b, unix.Getrusage(unix.RUSAGE_SELF, &r))
		return r.Utime.Nano() + r.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}
