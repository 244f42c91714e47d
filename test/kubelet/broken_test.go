package kubelet

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"berth/internal/testkit"
)

// main changes the pod's first container.
func main(f func(*v1.Container)) func(*v1.Pod) {
	return func(p *v1.Pod) { f(&p.Spec.Containers[0]) }
}

func command(args ...string) func(*v1.Pod) {
	return main(func(c *v1.Container) { c.Command = args })
}

// mount puts a volume into main.
func mount(source v1.VolumeSource, m v1.VolumeMount) func(*v1.Pod) {
	m.Name = "extra"
	return func(p *v1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: m.Name, VolumeSource: source})
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, m)
	}
}

func hostPath(path string) v1.VolumeSource {
	return v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path}}
}

var (
	emptyDir = v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}
	readOnly = security(v1.SecurityContext{ReadOnlyRootFilesystem: new(true)})
)

func security(s v1.SecurityContext) func(*v1.Pod) {
	return main(func(c *v1.Container) { c.SecurityContext = &s })
}

func env(name, value string) func(*v1.Pod) {
	return main(func(c *v1.Container) { c.Env = append(c.Env, v1.EnvVar{Name: name, Value: value}) })
}

func manyVariables(number, size int) func(*v1.Pod) {
	return main(func(c *v1.Container) {
		for i := range number {
			c.Env = append(c.Env, v1.EnvVar{Name: fmt.Sprintf("VARIABLE_%d", i), Value: strings.Repeat("x", size)})
		}
	})
}

// What the user of a pod with a fault is told of its container main: the reason
// that it waits for or ended with, and the message.
func TestBrokenContainers(t *testing.T) {
	const mounted = `: a directory can be mounted over a directory only, and a file over a file$`
	for name, test := range map[string]struct {
		change  []func(*v1.Pod)
		reason  string
		message string // a regular expression
		user    string // the image's
	}{
		"no such program":        {[]func(*v1.Pod){command("/no/such")}, "StartError", `^exec: "/no/such": .*no such file.*: check the container's command`, ""},
		"not in the path":        {[]func(*v1.Pod){command("no-such")}, "StartError", `^exec: "no-such": .*not found in \$PATH: .* check the container's command`, ""},
		"not executable":         {[]func(*v1.Pod){command("/etc/passwd")}, "StartError", `^exec: "/etc/passwd": permission denied: .*check its mode`, ""},
		"a directory":            {[]func(*v1.Pod){command("/etc")}, "StartError", `^exec: "/etc": is a directory: check`, ""},
		"directory below a file": {[]func(*v1.Pod){main(func(c *v1.Container) { c.WorkingDir = "/etc/passwd/below" })}, "StartError", `check the container's working directory$`, ""},
		"relative directory":     {[]func(*v1.Pod){main(func(c *v1.Container) { c.WorkingDir = "tmp" })}, "CreateContainerError", `^working_dir: "tmp": it must be an absolute path`, ""},
		"a long variable":        {[]func(*v1.Pod){env("LONG", strings.Repeat("x", 200<<10))}, "CreateContainerError", `^envs\[0\]: "LONG" has 204805 bytes.*pass it in a file`, ""},
		"unknown capability":     {[]func(*v1.Pod){security(v1.SecurityContext{Capabilities: &v1.Capabilities{Add: []v1.Capability{"NO_SUCH"}}})}, "CreateContainerError", `"NO_SUCH" is no capability`, ""},
		"no seccomp profile": {[]func(*v1.Pod){security(v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: new("no/such.json")}})},
			"CreateContainerError", `/no/such.json: there is no such profile on the node`, ""},
		"little memory":          {[]func(*v1.Pod){limits("1Mi", "")}, "StartError", `OOM-killed \(memory limit too low`, ""},
		"directory over a file":  {[]func(*v1.Pod){mount(emptyDir, v1.VolumeMount{MountPath: "/etc/passwd"})}, "StartError", `^error mounting "[^"]*" to rootfs at "/etc/passwd": not a directory` + mounted, ""},
		"file over a directory":  {[]func(*v1.Pod){mount(hostPath("/etc/hostname"), v1.VolumeMount{MountPath: "/tmp"})}, "StartError", `^error mounting "/etc/hostname" to rootfs at "/tmp": not a directory` + mounted, ""},
		"volume below /proc":     {[]func(*v1.Pod){mount(emptyDir, v1.VolumeMount{MountPath: "/proc/below"})}, "StartError", `^error mounting .*: nothing can be mounted below /proc$`, ""},
		"volume on /":            {[]func(*v1.Pod){mount(emptyDir, v1.VolumeMount{MountPath: "/"})}, "CreateContainerError", `"/": it must be an absolute path below /`, ""},
		"message to a directory": {[]func(*v1.Pod){main(func(c *v1.Container) { c.TerminationMessagePath = "/tmp" })}, "StartError", `to rootfs at "/tmp": not a directory` + mounted, ""},
		"path below a file":      {[]func(*v1.Pod){mount(hostPath("/etc"), v1.VolumeMount{MountPath: "/x", SubPath: "hostname/below"})}, "CreateContainerConfigError", `subPath`, ""},
		"unknown user":           {nil, "CreateContainerError", `user "no-such" is not in the image's /etc/passwd: give a numeric user`, "no-such"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				change := append([]func(*v1.Pod){command("sleep", "3600"), n.meant}, test.change...)
				if test.user != "" {
					ref, _ := ownImage(t, func(o *testkit.ImageOptions) { o.User = test.user })
					change = append(change, main(func(c *v1.Container) { c.Image = ref }))
				}
				p := newPod(t, n, "scratch", change...)
				reason, message := p.trouble(t)
				if reason != test.reason || !regexp.MustCompile(test.message).MatchString(message) {
					t.Errorf("%s: %s\nwant %s: %s", reason, message, test.reason, test.message)
				}
			})
		})
	}
}

// What the kernel refuses after the container has begun is in its log.
func TestBrokenPrograms(t *testing.T) {
	for name, test := range map[string]struct {
		program string // in the image
		change  func(*v1.Pod)
		says    string
	}{
		"lost-interpreter": {"#!/no/such/interpreter\n", manyVariables(0, 0), "exec /bin/lost-interpreter: no such file or directory\n"},
		"garbage":          {"\x01\x02\x03garbage", manyVariables(0, 0), "exec /bin/garbage: exec format error\n"},
		"long":             {"#!/bin/sh\n", manyVariables(40, 100<<10), "exec /bin/long: argument list too long\n"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				ref, _ := ownImage(t, func(o *testkit.ImageOptions) { o.Files = map[string]string{"bin/" + name: test.program} })
				p := newPod(t, n, "scratch", command(name), test.change, n.meant, func(p *v1.Pod) {
					p.Spec.RestartPolicy, p.Spec.Containers[0].Image = v1.RestartPolicyNever, ref
					p.Spec.Containers[0].TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
				})
				if end := p.terminated(t); end.ExitCode != 255 || end.Reason != "Error" || end.Message != test.says {
					t.Errorf("ended with code %d as %s: %q, want %q", end.ExitCode, end.Reason, end.Message, test.says)
				}
			})
		})
	}
}

// Specifications that look wrong and are not.
func TestOddPods(t *testing.T) {
	arguments := make([]string, 1000)
	for i := range arguments {
		arguments[i] = fmt.Sprintf("argument %d of «many» 好\n", i)
	}
	for name, test := range map[string]struct {
		change []func(*v1.Pod)
		want   string // what main writes
	}{
		"a thousand lines of arguments":        {[]func(*v1.Pod){command(append([]string{"printf", "%s"}, arguments...)...)}, strings.Join(arguments, "")},
		"a variable as long as may be":         {[]func(*v1.Pod){env("LONG", strings.Repeat("x", 131071-len("LONG="))), script("echo ${#LONG}")}, "131066\n"},
		"a thousand variables":                 {[]func(*v1.Pod){manyVariables(1000, 1000), script("env | grep -c ^VARIABLE")}, "1000\n"},
		"names in other scripts":               {[]func(*v1.Pod){env("a b-c.d", "名前 «x»\ty"), script("mkdir /tmp/目录; cd /tmp/目录; pwd; tr '\\0' '\\n' </proc/1/environ | grep '^a b-c.d='")}, "/tmp/目录\na b-c.d=名前 «x»\ty\n"},
		"a path of a volume that is not there": {[]func(*v1.Pod){mount(emptyDir, v1.VolumeMount{MountPath: "/x y/ß", SubPath: "no/such"}), script("touch '/x y/ß/file' && ls '/x y/ß'")}, "file\n"},
		"a mount point on a read-only root":    {[]func(*v1.Pod){readOnly, mount(emptyDir, v1.VolumeMount{MountPath: "/no/such"}), script("touch /no/such/file && ls /no/such; touch /x || echo refused")}, "file\nrefused\n"},
		"a directory on a read-only root":      {[]func(*v1.Pod){readOnly, script("pwd"), main(func(c *v1.Container) { c.WorkingDir = "/no/such" })}, "/no/such\n"},
		"a line without an end":                {[]func(*v1.Pod){script("printf 'no end'")}, "no end"},
		"a long line":                          {[]func(*v1.Pod){script("head -c 100000 /dev/zero | tr '\\0' x")}, strings.Repeat("x", 100000)},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				p := newPod(t, n, "scratch", append(test.change, func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever })...)
				end := p.terminated(t)
				got, err := p.logs(t.Context(), "main", nil)
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(test.want, "file\nrefused") { // what touch says is its own
					got = regexp.MustCompile(`touch: .*\n`).ReplaceAllString(got, "")
				}
				if end.ExitCode != 0 || got != test.want {
					t.Errorf("exit code %d, and it writes %.300q, want %.300q", end.ExitCode, got, test.want)
				}
			})
		})
	}
}

// trouble waits until main does not run and returns what the status says of it.
func (p *pod) trouble(t *testing.T) (reason, message string) {
	t.Helper()
	p.until(t, func(s *v1.PodStatus) string {
		if s.Phase == v1.PodFailed {
			reason, message = s.Reason, s.Message
			return ""
		}
		c := containers(s)["main"]
		switch {
		case c == nil:
			return "no container main: " + states(s)
		case c.LastTerminationState.Terminated != nil:
			reason, message = c.LastTerminationState.Terminated.Reason, c.LastTerminationState.Terminated.Message
		case c.State.Terminated != nil:
			reason, message = c.State.Terminated.Reason, c.State.Terminated.Message
		case c.State.Waiting != nil && c.State.Waiting.Message != "":
			reason, message = c.State.Waiting.Reason, c.State.Waiting.Message
		default:
			return "no trouble: " + states(s)
		}
		return ""
	})
	return reason, message
}
