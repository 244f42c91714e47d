package spec

import (
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const rwm = "rwm"

// devices denies all but what the runtime always gives (null, zero, tty and
// the like) and what is asked for. Privileged containers may use every device
// and have a node for each of the host's.
func (b *builder) devices() error {
	asked := b.in.Container.GetDevices()
	if got := len(b.in.Host.Devices); got != len(asked) {
		return fmt.Errorf("spec of container %s: %d devices, but %d prepared: %w", b.in.ID, len(asked), got, errdefs.ErrInternal)
	}
	everything := b.privileged() && !b.in.PrivilegedWithoutHostDevices
	rules := []specs.LinuxDeviceCgroup{{Allow: everything, Access: rwm}}
	var nodes nodeList
	if everything {
		for _, node := range b.in.Host.AllDevices {
			nodes.set(node)
		}
	}
	for i, d := range asked {
		if err := CheckDevice(d); err != nil {
			return fmt.Errorf("devices[%d].%w", i, err)
		}
		for _, node := range b.in.Host.Devices[i] {
			nodes.set(node)
			if !everything {
				rules = append(rules, specs.LinuxDeviceCgroup{
					Allow: true, Type: node.Type, Major: &node.Major, Minor: &node.Minor, Access: d.GetPermissions(),
				})
			}
		}
	}
	b.spec.Linux.Devices = nodes.list
	b.spec.Linux.Resources.Devices = rules
	return nil
}

// nodeList keeps one device to a path, the last one.
type nodeList struct {
	list  []specs.LinuxDevice
	index map[string]int
}

func (n *nodeList) set(node specs.LinuxDevice) {
	node.Path = path.Clean(node.Path)
	if i, ok := n.index[node.Path]; ok {
		n.list[i] = node
		return
	}
	if n.index == nil {
		n.index = map[string]int{}
	}
	n.index[node.Path] = len(n.list)
	n.list = append(n.list, node)
}
