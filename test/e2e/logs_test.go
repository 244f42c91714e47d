package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/internal/testkit"
)

func TestLogFormat(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		begin := time.Now()
		ctr := p.Container(t, busybox, []string{"sh", "-c", "echo one; echo two >&2; echo; printf 'no end'"})
		ctr.Exited(t)
		lines, err := testkit.ReadLog(ctr.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if got := testkit.Join(lines, "stdout"); !strings.HasPrefix(got, "one\n\nno end") {
			t.Errorf("stdout: %q", got)
		}
		if got := testkit.Join(lines, "stderr"); got != "two\n" {
			t.Errorf("stderr: %q", got)
		}
		for _, l := range lines {
			if l.Time.Before(begin.Add(-time.Second)) || l.Time.After(time.Now()) {
				t.Errorf("time %s", l.Time)
			}
		}
		info, err := os.Stat(ctr.LogFile())
		if err != nil || info.Mode().Perm()&0o077 > 0o044 {
			t.Errorf("log: %v, %v", info, err)
		}
	})
}

func TestLongLinesAreSplit(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr := p.Container(t, busybox, []string{"sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short"})
		ctr.Exited(t)
		lines, err := testkit.ReadLog(ctr.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := testkit.Join(lines, "stdout"), strings.Repeat("x", 40000)+"\nshort\n"; got != want {
			t.Errorf("%d bytes, want %d", len(got), len(want))
		}
		partial := 0
		for _, l := range lines {
			if len(l.Text) > 16384 {
				t.Errorf("a line of %d bytes", len(l.Text))
			}
			if l.Partial {
				partial++
			}
		}
		if partial < 2 {
			t.Errorf("%d partial lines", partial)
		}
	})
}

// Everything is in the log as soon as the container is seen to have exited.
func TestNothingIsLostAtExit(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		for range 5 {
			ctr := p.Container(t, busybox, []string{"sh", "-c", "seq 20000; echo last >&2; exit 3"})
			if s := ctr.Exited(t); s.ExitCode != 3 {
				t.Errorf("exit code %d", s.ExitCode)
			}
			lines, err := testkit.ReadLog(ctr.LogFile())
			if err != nil {
				t.Fatal(err)
			}
			var want strings.Builder
			for i := range 20000 {
				fmt.Fprintln(&want, i+1)
			}
			if got := testkit.Join(lines, "stdout"); got != want.String() {
				t.Errorf("%d bytes of %d", len(got), want.Len())
			}
			if got := testkit.Join(lines, "stderr"); got != "last\n" {
				t.Errorf("stderr: %q", got)
			}
		}
	})
}

func TestReopenContainerLog(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr := p.Container(t, busybox, []string{"sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; sleep 1000"})
		var files []string
		for i := range 5 {
			rotated := fmt.Sprintf("%s.%d", ctr.LogFile(), i)
			if err := os.Rename(ctr.LogFile(), rotated); err != nil {
				t.Fatal(err)
			}
			if _, err := c.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: ctr.ID}); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(ctr.LogFile()); err != nil {
				t.Fatal(err)
			}
			files = append(files, rotated)
		}
		var text string
		testkit.Until(t, 20*time.Second, func(context.Context) string {
			text = ""
			for _, file := range append(files, ctr.LogFile()) {
				lines, err := testkit.ReadLog(file)
				if err != nil {
					return err.Error()
				}
				text += testkit.Join(lines, "")
			}
			if !strings.Contains(text, "line 3000\n") {
				return fmt.Sprintf("the log ends with %q", text[max(0, len(text)-30):])
			}
			return ""
		})
		var want strings.Builder
		for i := range 3000 {
			fmt.Fprintln(&want, "line", i+1)
		}
		if text != want.String() {
			t.Errorf("%d bytes, want %d", len(text), want.Len())
		}
		if err := ctr.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		_, err := c.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: ctr.ID})
		testkit.WantCode(t, err, codes.FailedPrecondition)
	})
}

func TestNoLogPath(t *testing.T) {
	each(t, func(t *testing.T, c *testkit.Client) {
		p := c.Pod(t)
		ctr := p.Container(t, busybox, []string{"sh", "-c", "seq 100000; echo done"}, func(c *cri.ContainerConfig) { c.LogPath = "" })
		if s := ctr.Exited(t); s.ExitCode != 0 || s.LogPath != "" {
			t.Errorf("got %v", s)
		}
	})
}
