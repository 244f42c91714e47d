package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	maxStdout = 1 << 20 // a result is a few KiB
	maxStderr = 8 << 10 // the end of it is kept
	// pipeDelay is how long the output of a killed plugin is awaited: a process
	// that left its group may hold it open.
	pipeDelay = time.Second
	// busyDelay and busyTries are for a plugin file that is being written.
	busyDelay = 50 * time.Millisecond
	busyTries = 20
	sbinPath  = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
)

// programs executes plugins as programs. It is the only place that does.
// (*pluginExec).ExecPlugin stands before it.
type programs struct {
	version.PluginDecoder
	log *slog.Logger
}

var _ invoke.Exec = (*programs)(nil)

// FindInPath returns the plugin's file.
func (p *programs) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("CNI plugin %q is in none of %s: install it there or change network.bin_dirs: %w",
			plugin, strings.Join(dirs, ", "), errdefs.ErrFailedPrecondition)
	}
	return path, nil
}

// ExecPlugin runs the plugin to its end or to the end of ctx.
func (p *programs) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	call := callOf(path, environ)
	start := time.Now()
	stdout, stderr, err := p.run(ctx, path, stdin, environ)
	p.log.Debug("CNI plugin ended", "plugin", call.plugin, "command", call.command, "pod", call.pod,
		"took", time.Since(start), "err", err, "stderr", stderr.String())
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, cutError(ctx, call, path, time.Since(start), stderr)
	case err != nil:
		return nil, pluginError(call, err, stdout, stderr)
	case stdout.lost > 0:
		return nil, fmt.Errorf("%s wrote more than %d bytes of result: is %s a CNI plugin? %w", call, maxStdout, path, errdefs.ErrFailedPrecondition)
	}
	return stdout.Bytes(), nil
}

// run starts the plugin in a process group of its own, so that what it started
// is killed with it.
func (p *programs) run(ctx context.Context, path string, stdin []byte, environ []string) (stdout, stderr *bounded, err error) {
	environ = withPath(environ)
	for try := 0; ; try++ {
		stdout, stderr = &bounded{max: maxStdout}, &bounded{max: maxStderr, tail: true}
		cmd := exec.CommandContext(ctx, path)
		cmd.Env = environ
		cmd.Stdin = bytes.NewReader(stdin)
		cmd.Stdout, cmd.Stderr = stdout, stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = pipeDelay
		err = cmd.Run()
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil // it ended well; a process that it left holds its output
		}
		if !errors.Is(err, syscall.ETXTBSY) || try == busyTries {
			return stdout, stderr, err
		}
		select {
		case <-time.After(busyDelay):
		case <-ctx.Done():
			return stdout, stderr, err
		}
	}
}

// withPath sees to it that plugins find nft, iptables and the like, which a
// daemon may have been started without.
func withPath(environ []string) []string {
	for i, kv := range environ {
		if dirs, ok := strings.CutPrefix(kv, "PATH="); ok {
			environ[i] = "PATH=" + strings.Trim(dirs+":"+sbinPath, ":")
			return environ
		}
	}
	return append(environ, "PATH="+sbinPath)
}

// call names a plugin's execution in errors and logs.
type call struct{ plugin, command, pod string }

func (c call) String() string {
	s := fmt.Sprintf("CNI plugin %q, %s", c.plugin, c.command)
	if c.pod != "" {
		s += " of pod " + c.pod
	}
	return s
}

// callOf reads it from the environment that the plugin gets.
func callOf(path string, environ []string) call {
	c := call{plugin: filepath.Base(path)}
	var p Pod
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		switch key {
		case "CNI_COMMAND":
			c.command = value
		case "CNI_CONTAINERID":
			p.ID = value
		case "CNI_ARGS":
			for arg := range strings.SplitSeq(value, ";") {
				k, v, _ := strings.Cut(arg, "=")
				switch k {
				case "K8S_POD_NAME":
					p.Name = v
				case "K8S_POD_NAMESPACE":
					p.Namespace = v
				}
			}
		}
	}
	c.pod = p.String()
	return c
}

// cutError tells of a plugin that was killed.
func cutError(ctx context.Context, c call, path string, after time.Duration, stderr *bounded) error {
	what := "was killed since its caller gave up"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		what = fmt.Sprintf("did not end in time and was killed with its process group: see whether what %s waits for answers "+
			"(its daemon or API server, its IPAM, a lock that another process holds); network.timeout bounds it together with the plugins before it", path)
	}
	return fmt.Errorf("%s: after %s it %s%s: %w", c, after.Round(time.Millisecond), what, stderr.quoted(), ctx.Err())
}

// pluginError tells of a plugin that failed. What it says of itself (a CNI
// error on stdout) stays reachable with errors.As.
func pluginError(c call, err error, stdout, stderr *bounded) error {
	said := &types.Error{}
	if json.Unmarshal(stdout.Bytes(), said) != nil || said.Msg == "" && said.Code == 0 {
		out := ""
		if stdout.Len() > 0 {
			out = fmt.Sprintf("; stdout: %.200q", stdout.String())
		}
		return fmt.Errorf("%s: %w%s%s: %w", c, err, out, stderr.quoted(), errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w%s: %w", c, said, stderr.quoted(), kindOf(said))
}

// kindOf is the kind of a CNI error: of those that the configuration is to
// blame for, another call will fail too.
func kindOf(said *types.Error) error {
	switch said.Code {
	case types.ErrInvalidEnvironmentVariables, types.ErrInvalidNetworkConfig, types.ErrIncompatibleCNIVersion, types.ErrUnsupportedField:
		return errdefs.ErrFailedPrecondition
	}
	return errdefs.ErrUnavailable
}

// bounded keeps the first max bytes written to it, or the last.
type bounded struct {
	bytes.Buffer
	max  int
	tail bool
	lost int
}

func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	room := b.max - b.Len()
	switch {
	case n <= room:
		b.Buffer.Write(p)
	case !b.tail:
		b.Buffer.Write(p[:room])
		b.lost += n - room
	default:
		b.lost += n - room
		if n >= b.max {
			b.Reset()
			p = p[n-b.max:]
		} else {
			b.Next(n - room)
		}
		b.Buffer.Write(p)
	}
	return n, nil
}

// ReadFrom hides the buffer's own, which knows no bound.
func (b *bounded) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{b}, r)
}

// quoted is the text as the end of an error; empty when there is none.
func (b *bounded) quoted() string {
	text := strings.TrimSpace(b.String())
	if text == "" {
		return ""
	}
	if b.lost > 0 {
		text = "…" + text
	}
	return fmt.Sprintf("; stderr: %q", text)
}
