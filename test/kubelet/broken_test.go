package kubelet

import (
	"regexp"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

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
	return func(p *v1.Pod) {
		m.Name = "extra"
		p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: m.Name, VolumeSource: source})
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, m)
	}
}

func hostPath(path string) v1.VolumeSource {
	return v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path}}
}

var (
	emptyDir = v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}
	readOnly = main(func(c *v1.Container) { c.SecurityContext = &v1.SecurityContext{ReadOnlyRootFilesystem: new(true)} })
)

// brokenImage has files and a user that do not work.
func brokenImage(o *testkit.ImageOptions) {
	o.Files = map[string]string{"bin/lost-interpreter": "#!/no/such/interpreter\n", "bin/garbage": "\x01\x02\x03garbage"}
	o.User = "nobody-such"
}

// What the user of a pod with a fault is told of its container main: the reason
// that it waits for or ended with, and the message.
func TestBrokenContainers(t *testing.T) {
	for name, test := range map[string]struct {
		change  []func(*v1.Pod)
		reason  string
		message string // a regular expression
	}{
		"no such program":        {change: []func(*v1.Pod){command("/no/such")}},
		"not in the path":        {change: []func(*v1.Pod){command("no-such")}},
		"not executable":         {change: []func(*v1.Pod){command("/etc/passwd")}},
		"a directory":            {change: []func(*v1.Pod){command("/etc")}},
		"lost interpreter":       {change: []func(*v1.Pod){command("lost-interpreter")}},
		"not a program":          {change: []func(*v1.Pod){command("/bin/garbage")}},
		"directory below a file": {change: []func(*v1.Pod){main(func(c *v1.Container) { c.WorkingDir = "/etc/passwd/below" })}},
		"directory on read-only": {change: []func(*v1.Pod){readOnly, main(func(c *v1.Container) { c.WorkingDir = "/no/such" })}},
		"relative directory":     {change: []func(*v1.Pod){main(func(c *v1.Container) { c.WorkingDir = "tmp" })}},
		"unknown user":           {change: []func(*v1.Pod){main(func(c *v1.Container) { c.SecurityContext = nil })}},
		"a long variable":        {change: []func(*v1.Pod){main(func(c *v1.Container) { c.Env = []v1.EnvVar{{Name: "LONG", Value: strings.Repeat("x", 200<<10)}} })}},
		"unknown capability": {change: []func(*v1.Pod){main(func(c *v1.Container) {
			c.SecurityContext = &v1.SecurityContext{Capabilities: &v1.Capabilities{Add: []v1.Capability{"NO_SUCH"}}}
		})}},
		"no seccomp profile": {change: []func(*v1.Pod){main(func(c *v1.Container) {
			c.SecurityContext = &v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: new("no/such.json")}}
		})}},
		"no apparmor": {change: []func(*v1.Pod){main(func(c *v1.Container) {
			c.SecurityContext = &v1.SecurityContext{AppArmorProfile: &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: new("no-such")}}
		})}},
		"little memory":            {change: []func(*v1.Pod){limits("1Mi", "")}},
		"directory over a file":    {change: []func(*v1.Pod){mount(emptyDir, v1.VolumeMount{MountPath: "/etc/passwd"})}},
		"file over a directory":    {change: []func(*v1.Pod){mount(hostPath("/etc/hostname"), v1.VolumeMount{MountPath: "/tmp"})}},
		"mount point read-only":    {change: []func(*v1.Pod){readOnly, mount(emptyDir, v1.VolumeMount{MountPath: "/no/such"})}},
		"volume on /proc":          {change: []func(*v1.Pod){mount(emptyDir, v1.VolumeMount{MountPath: "/proc/below"})}},
		"volume on /":              {change: []func(*v1.Pod){mount(emptyDir, v1.VolumeMount{MountPath: "/"})}},
		"message to a directory":   {change: []func(*v1.Pod){main(func(c *v1.Container) { c.TerminationMessagePath = "/tmp" })}},
		"message to /":             {change: []func(*v1.Pod){main(func(c *v1.Container) { c.TerminationMessagePath = "/" })}},
		"path below a file":        {change: []func(*v1.Pod){mount(hostPath("/etc"), v1.VolumeMount{MountPath: "/x", SubPath: "hostname/below"})}},
		"path out of the volume":   {change: []func(*v1.Pod){mount(hostPath("/etc"), v1.VolumeMount{MountPath: "/x", SubPath: "../x"})}},
		"no such path of a volume": {change: []func(*v1.Pod){mount(emptyDir, v1.VolumeMount{MountPath: "/x", SubPath: "no/such"})}},
		"privileged no": {change: []func(*v1.Pod){main(func(c *v1.Container) {
			c.Resources.Limits = v1.ResourceList{"example.test/thing": resource.MustParse("1")}
		})}},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, n *node) {
				change := test.change
				switch name {
				case "lost interpreter", "not a program":
					ref, _ := ownImage(t, brokenImage, func(o *testkit.ImageOptions) { o.User = "" })
					change = append(change, main(func(c *v1.Container) { c.Image = ref }))
				case "unknown user":
					ref, _ := ownImage(t, brokenImage)
					change = append(change, main(func(c *v1.Container) { c.Image = ref }))
				}
				p := newPod(t, n, "scratch", append([]func(*v1.Pod){command("sleep", "3600")}, change...)...)
				reason, message := p.trouble(t)
				t.Logf("TROUBLE %s: %q: %s", name, reason, message)
				if reason != test.reason || !regexp.MustCompile(test.message).MatchString(message) {
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
		case c.State.Running != nil && c.Ready:
			reason, message = "Running", ""
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
