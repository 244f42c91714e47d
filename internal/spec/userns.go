package spec

import (
	"fmt"
	"math"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMappings bounds the mappings of a user namespace or of a mount. A kubelet
// gives one; the kernel takes 340.
const maxMappings = 32

// UserNamespace is the pod's own user namespace; nil: it has the node's.
func UserNamespace(sandbox *runtime.PodSandboxConfig) *runtime.UserNamespace {
	o := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if o == nil || o.GetMode() == runtime.NamespaceMode_NODE {
		return nil
	}
	return o
}

// CheckUserNamespace says what is wrong with the userns_options in a sandbox's
// or a container's namespace_options, whose name is field.
func CheckUserNamespace(field string, o *runtime.NamespaceOption) error {
	u := o.GetUsernsOptions()
	if u == nil || u.GetMode() == runtime.NamespaceMode_NODE {
		return nil
	}
	at := field + ".userns_options"
	if u.GetMode() != runtime.NamespaceMode_POD {
		return fmt.Errorf("%s.mode: %s: it is POD or NODE: %w", at, u.GetMode(), errdefs.ErrInvalidArgument)
	}
	for _, ns := range []struct {
		name string
		mode runtime.NamespaceMode
	}{{"pid", o.GetPid()}, {"ipc", o.GetIpc()}} {
		if ns.mode == runtime.NamespaceMode_NODE {
			return fmt.Errorf("%s.%s: NODE, but the pod is to have a user namespace, whose root has no rights in the node's: leave hostUsers unset, or do without the node's: %w", field, ns.name, errdefs.ErrInvalidArgument)
		}
	}
	for _, list := range []struct {
		name string
		maps []*runtime.IDMapping
	}{{".uids", u.GetUids()}, {".gids", u.GetGids()}} {
		if err := checkMappings(at+list.name, list.maps); err != nil {
			return err
		}
		if _, ok := hostID(list.maps, 0); !ok {
			return fmt.Errorf("%s%s: ID 0 is not mapped, so that the namespace would have no root: map it: %w", at, list.name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// checkMappings wants what the kernel takes: at least one mapping, none empty,
// none past the last ID, none over another on either side.
func checkMappings(field string, maps []*runtime.IDMapping) error {
	if len(maps) == 0 || len(maps) > maxMappings {
		return fmt.Errorf("%s: %d mappings: give from 1 to %d: %w", field, len(maps), maxMappings, errdefs.ErrInvalidArgument)
	}
	const last = math.MaxUint32 - 1 // the highest number means none
	for i, m := range maps {
		if m.GetLength() == 0 {
			return fmt.Errorf("%s[%d].length: 0: it is how many IDs are mapped, at least 1: %w", field, i, errdefs.ErrInvalidArgument)
		}
		for _, first := range []struct {
			name string
			id   uint32
		}{{"container_id", m.GetContainerId()}, {"host_id", m.GetHostId()}} {
			if uint64(first.id)+uint64(m.GetLength())-1 > last {
				return fmt.Errorf("%s[%d].%s: %d and the %d IDs from there go beyond %d, the last there is: %w", field, i, first.name, first.id, m.GetLength(), last, errdefs.ErrInvalidArgument)
			}
		}
		for j, other := range maps[:i] {
			if overlap(m.GetContainerId(), m.GetLength(), other.GetContainerId(), other.GetLength()) {
				return fmt.Errorf("%s[%d].container_id: %d: its %d IDs are mapped by %s[%d] too: %w", field, i, m.GetContainerId(), m.GetLength(), field, j, errdefs.ErrInvalidArgument)
			}
			if overlap(m.GetHostId(), m.GetLength(), other.GetHostId(), other.GetLength()) {
				return fmt.Errorf("%s[%d].host_id: %d: its %d IDs are mapped by %s[%d] too: %w", field, i, m.GetHostId(), m.GetLength(), field, j, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

func overlap(a, lengthA, b, lengthB uint32) bool {
	return uint64(a) < uint64(b)+uint64(lengthB) && uint64(b) < uint64(a)+uint64(lengthA)
}

// hostID is the number that an ID in the namespace has on the host.
func hostID(maps []*runtime.IDMapping, id uint32) (uint32, bool) {
	for _, m := range maps {
		if id >= m.GetContainerId() && id-m.GetContainerId() < m.GetLength() {
			return m.GetHostId() + id - m.GetContainerId(), true
		}
	}
	return 0, false
}

// HostRoot are the numbers on the host of the root of a pod's containers.
func HostRoot(sandbox *runtime.PodSandboxConfig) (uid, gid uint32) {
	if u := UserNamespace(sandbox); u != nil {
		uid, _ = hostID(u.GetUids(), 0)
		gid, _ = hostID(u.GetGids(), 0)
	}
	return uid, gid
}

// HostUser are the numbers on the host of a container's user.
func HostUser(sandbox *runtime.PodSandboxConfig, user User) (uid, gid uint32) {
	u := UserNamespace(sandbox)
	if u == nil {
		return user.UID, user.GID
	}
	uid, _ = hostID(u.GetUids(), user.UID)
	gid, _ = hostID(u.GetGids(), user.GID)
	return uid, gid
}

// Mappings are those of the pod's user namespace, for a runtime; nil: it has
// none.
func Mappings(sandbox *runtime.PodSandboxConfig) (uids, gids []specs.LinuxIDMapping) {
	u := UserNamespace(sandbox)
	return ociMappings(u.GetUids()), ociMappings(u.GetGids())
}

func ociMappings(maps []*runtime.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range maps {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// checkSameUserNamespace refuses a container that asks for another user
// namespace than its sandbox has. One that says nothing has the sandbox's.
func checkSameUserNamespace(sandbox *runtime.PodSandboxConfig, o *runtime.NamespaceOption) error {
	const field = "linux.security_context.namespace_options"
	own := o.GetUsernsOptions()
	if own == nil {
		return nil
	}
	pod := UserNamespace(sandbox)
	if own.GetMode() == runtime.NamespaceMode_NODE {
		if pod != nil {
			return fmt.Errorf("%s.userns_options.mode: NODE, but the sandbox was made with a user namespace, which all its containers are in: %w", field, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	if err := CheckUserNamespace(field, o); err != nil {
		return err
	}
	if pod == nil {
		return fmt.Errorf("%s.userns_options.mode: %s, but the sandbox was made without a user namespace: %w", field, own.GetMode(), errdefs.ErrInvalidArgument)
	}
	same := func(x, y *runtime.IDMapping) bool { return proto.Equal(x, y) }
	if !slices.EqualFunc(own.GetUids(), pod.GetUids(), same) || !slices.EqualFunc(own.GetGids(), pod.GetGids(), same) {
		return fmt.Errorf("%s.userns_options: the mappings are not those that the sandbox was made with: %w", field, errdefs.ErrInvalidArgument)
	}
	return nil
}

// userNamespace has the container join the pod's, whose mappings are shown to
// what reads the spec, and sees to it that its users are mapped.
func (b *builder) userNamespace() error {
	u := UserNamespace(b.in.Sandbox)
	if u == nil {
		return nil
	}
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: b.in.Namespaces.User})
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = Mappings(b.in.Sandbox)
	user := b.in.User
	if _, ok := hostID(u.GetUids(), user.UID); !ok {
		return fmt.Errorf("user %d of the container is not mapped in the pod's user namespace: choose another, or leave hostUsers unset: %w", user.UID, errdefs.ErrInvalidArgument)
	}
	for _, gid := range append([]uint32{user.GID}, user.AdditionalGIDs...) {
		if _, ok := hostID(u.GetGids(), gid); !ok {
			return fmt.Errorf("group %d of the container is not mapped in the pod's user namespace: choose another, or leave hostUsers unset: %w", gid, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
