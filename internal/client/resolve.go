package client

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodName is how a pod is shown and typed: namespace/name.
func PodName(m *runtime.PodSandboxMetadata) string { return m.GetNamespace() + "/" + m.GetName() }

// A refError says why a reference means nothing, or too much.
type refError struct {
	text string
	kind error
}

// Error implements error.
func (e *refError) Error() string { return e.text }

// Unwrap gives the kind to errdefs.
func (e *refError) Unwrap() error { return e.kind }

func refErrorf(kind error, format string, args ...any) error {
	return &refError{fmt.Sprintf(format, args...), kind}
}

// FindPod is the pod that ref means: an ID, namespace/name, a name, or a unique
// prefix of an ID. Of several attempts at one pod it is the newest, one that is
// ready before others; two pods of one name that are both ready are two. It is ErrNotFound or, with the candidates named,
// ErrFailedPrecondition where several fit.
func FindPod(pods []*runtime.PodSandbox, ref string) (*runtime.PodSandbox, error) {
	pod, err := exactPod(pods, ref)
	if pod != nil || err != nil {
		return pod, err
	}
	found := matching(pods, func(p *runtime.PodSandbox) bool { return ref != "" && strings.HasPrefix(p.Id, ref) })
	if len(found) == 0 {
		return nil, refErrorf(errdefs.ErrNotFound, "no pod is named %q and no pod ID begins with it (`berth pods` lists them)", ref)
	}
	return onePod(ref, found)
}

// exactPod is FindPod without prefixes; nil where nothing fits.
func exactPod(pods []*runtime.PodSandbox, ref string) (*runtime.PodSandbox, error) {
	for _, test := range []func(*runtime.PodSandbox) bool{
		func(p *runtime.PodSandbox) bool { return p.Id == ref },
		func(p *runtime.PodSandbox) bool { return PodName(p.Metadata) == ref },
		func(p *runtime.PodSandbox) bool { return p.GetMetadata().GetName() == ref },
	} {
		if found := newestPods(matching(pods, test)); ref != "" && len(found) > 0 {
			return onePod(ref, found)
		}
	}
	return nil, nil
}

func onePod(ref string, found []*runtime.PodSandbox) (*runtime.PodSandbox, error) {
	if len(found) == 1 {
		return found[0], nil
	}
	return nil, ambiguous("pod", ref, found, func(p *runtime.PodSandbox) string {
		return short(p.Id) + " (" + PodName(p.Metadata) + ")"
	})
}

// newestPods keeps one sandbox a pod. Several pods of one name, told apart by
// their UIDs, are several where more than one is ready.
func newestPods(pods []*runtime.PodSandbox) []*runtime.PodSandbox {
	slices.SortStableFunc(pods, func(a, b *runtime.PodSandbox) int {
		return cmp.Or(cmp.Compare(a.State, b.State), cmp.Compare(b.CreatedAt, a.CreatedAt))
	})
	seen := map[string]bool{}
	return matching(pods, func(p *runtime.PodSandbox) bool {
		name := PodName(p.Metadata)
		if p.GetMetadata().GetName() == "" {
			name = p.Id
		}
		key := name
		if p.State == runtime.PodSandboxState_SANDBOX_READY {
			key += "\x00" + p.GetMetadata().GetUid()
		}
		first := !seen[key]
		seen[key], seen[name] = true, true
		return first
	})
}

// A Set is the pods and containers of a server at one time.
type Set struct {
	Pods       []*runtime.PodSandbox
	Containers []*runtime.Container
}

// Pod is the pod of a container, nil where it is not in the set.
func (s *Set) Pod(c *runtime.Container) *runtime.PodSandbox {
	i := slices.IndexFunc(s.Pods, func(p *runtime.PodSandbox) bool { return p.Id == c.PodSandboxId })
	if i < 0 {
		return nil
	}
	return s.Pods[i]
}

// ContainerName is how a container is shown and typed: namespace/pod/container.
func (s *Set) ContainerName(c *runtime.Container) string {
	pod := s.Pod(c)
	if pod == nil {
		return c.GetMetadata().GetName()
	}
	return PodName(pod.Metadata) + "/" + c.GetMetadata().GetName()
}

// FindContainer is the container that ref means: an ID,
// namespace/pod/container, pod/container, a pod (its container of the same
// name, or its only one), a container's name, or a unique prefix of an ID. Of
// several attempts at one container it is the newest, a running one before
// others. With running, only running containers of a pod are its choices. The
// errors are those of FindPod.
func (s *Set) FindContainer(ref string, running bool) (*runtime.Container, error) {
	byName := func(c *runtime.Container) bool { return c.GetMetadata().GetName() == ref }
	pod, err := exactPod(s.Pods, ref)
	for _, test := range []func(*runtime.Container) bool{
		func(c *runtime.Container) bool { return c.Id == ref },
		func(c *runtime.Container) bool { return s.ContainerName(c) == ref },
		func(c *runtime.Container) bool {
			_, inPod, _ := strings.Cut(s.ContainerName(c), "/")
			return inPod == ref
		},
		func(c *runtime.Container) bool { return pod != nil && c.PodSandboxId == pod.Id && byName(c) },
	} {
		if found := s.newest(matching(s.Containers, test)); ref != "" && len(found) > 0 {
			return s.one(ref, found)
		}
	}
	if err != nil {
		return nil, err
	}
	if pod != nil {
		return s.onlyOf(pod, running)
	}
	if found := s.newest(matching(s.Containers, byName)); len(found) > 0 {
		return s.one(ref, found)
	}
	return s.containerByPrefix(ref, running)
}

// containerByPrefix is the container, or the only container of the pod, whose
// ID begins with ref.
func (s *Set) containerByPrefix(ref string, running bool) (*runtime.Container, error) {
	found := matching(s.Containers, func(c *runtime.Container) bool { return ref != "" && strings.HasPrefix(c.Id, ref) })
	pod, err := FindPod(s.Pods, ref)
	switch {
	case len(found) > 0 && !errdefs.IsNotFound(err):
		return nil, refErrorf(errdefs.ErrFailedPrecondition, "%q begins the ID of a pod and of container %s (%s): give more of it", ref, found[0].Id, s.ContainerName(found[0]))
	case len(found) > 0:
		return s.one(ref, found)
	case errdefs.IsNotFound(err):
		return nil, refErrorf(errdefs.ErrNotFound, "no container or pod is named %q and no ID begins with it (`berth ps -a` lists all)", ref)
	case err != nil:
		return nil, err
	}
	return s.onlyOf(pod, running)
}

// In is the container called name of the pod that ref means.
func (s *Set) In(ref, name string) (*runtime.Container, error) {
	pod, err := FindPod(s.Pods, ref)
	if err != nil {
		return nil, err
	}
	found := s.newest(matching(s.Containers, func(c *runtime.Container) bool {
		return c.PodSandboxId == pod.Id && c.GetMetadata().GetName() == name
	}))
	if len(found) == 0 {
		return nil, refErrorf(errdefs.ErrNotFound, "pod %s has no container %q; it has %s", PodName(pod.Metadata), name, s.names(s.Of(pod)))
	}
	return found[0], nil
}

// Of is the containers of a pod, the newest attempt of each, oldest first.
func (s *Set) Of(pod *runtime.PodSandbox) []*runtime.Container {
	found := s.newest(matching(s.Containers, func(c *runtime.Container) bool { return c.PodSandboxId == pod.Id }))
	slices.SortStableFunc(found, func(a, b *runtime.Container) int { return cmp.Compare(a.CreatedAt, b.CreatedAt) })
	return found
}

func (s *Set) onlyOf(pod *runtime.PodSandbox, running bool) (*runtime.Container, error) {
	all := s.Of(pod)
	found := all
	if running {
		found = matching(all, isRunning)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if len(all) > 0 {
			return nil, refErrorf(errdefs.ErrFailedPrecondition, "no container of pod %s runs (it has %s)", PodName(pod.Metadata), s.names(all))
		}
		return nil, refErrorf(errdefs.ErrNotFound, "pod %s has no container", PodName(pod.Metadata))
	}
	return nil, refErrorf(errdefs.ErrFailedPrecondition, "pod %s has the containers %s: say which, as in %s/%s",
		PodName(pod.Metadata), s.names(found), PodName(pod.Metadata), found[0].GetMetadata().GetName())
}

func (s *Set) names(containers []*runtime.Container) string {
	if len(containers) == 0 {
		return "none"
	}
	var names []string
	for _, c := range containers {
		names = append(names, c.GetMetadata().GetName())
	}
	return strings.Join(names, ", ")
}

// newest keeps one attempt a container. Those that run in several pods of one
// name are several.
func (s *Set) newest(containers []*runtime.Container) []*runtime.Container {
	slices.SortStableFunc(containers, func(a, b *runtime.Container) int {
		if isRunning(a) != isRunning(b) {
			if isRunning(a) {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(b.GetMetadata().GetAttempt(), a.GetMetadata().GetAttempt()))
	})
	seen := map[string]bool{}
	return matching(containers, func(c *runtime.Container) bool {
		name := s.ContainerName(c)
		if s.Pod(c) == nil {
			name = c.Id
		}
		key := name
		if isRunning(c) {
			key += "\x00" + c.PodSandboxId
		}
		first := !seen[key]
		seen[key], seen[name] = true, true
		return first
	})
}

func (s *Set) one(ref string, found []*runtime.Container) (*runtime.Container, error) {
	if len(found) > 1 {
		return nil, ambiguous("container", ref, found, func(c *runtime.Container) string {
			return short(c.Id) + " (" + s.ContainerName(c) + ")"
		})
	}
	return found[0], nil
}

// FindImage is the image that ref means: an ID with or without its "sha256:",
// a unique prefix of one, or one of its names. What it does not know is
// ErrNotFound; the server may know it still.
func FindImage(images []*runtime.Image, ref string) (*runtime.Image, error) {
	bare := strings.TrimPrefix(ref, "sha256:")
	tests := []func(*runtime.Image) bool{
		func(i *runtime.Image) bool {
			return i.Id == ref || slices.Contains(i.RepoTags, ref) || slices.Contains(i.RepoDigests, ref)
		},
		func(i *runtime.Image) bool { return strings.HasPrefix(strings.TrimPrefix(i.Id, "sha256:"), bare) },
	}
	for _, test := range tests {
		found := matching(images, test)
		switch {
		case bare == "" || len(found) == 0:
			continue
		case len(found) > 1:
			return nil, ambiguous("image", ref, found, func(i *runtime.Image) string { return i.Id })
		}
		return found[0], nil
	}
	return nil, refErrorf(errdefs.ErrNotFound, "no image is named %q and no image ID begins with it (`berth images` lists all)", ref)
}

func isRunning(c *runtime.Container) bool {
	return c.State == runtime.ContainerState_CONTAINER_RUNNING
}

func matching[T any](all []T, test func(T) bool) []T {
	var found []T
	for _, v := range all {
		if test(v) {
			found = append(found, v)
		}
	}
	return found
}

func ambiguous[T any](kind, ref string, found []T, show func(T) string) error {
	var names []string
	for _, f := range found {
		names = append(names, show(f))
	}
	slices.Sort(names)
	return refErrorf(errdefs.ErrFailedPrecondition, "%q fits %d %ss: %s; say which", ref, len(found), kind, strings.Join(names, ", "))
}

// short is as much of an ID as a table shows.
func short(id string) string { return id[:min(len(id), 13)] }
