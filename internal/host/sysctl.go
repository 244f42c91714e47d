package host

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ipcSysctls and utsSysctls are the only settings under "kernel" that are not
// the machine's own: writing any other would change the host.
var (
	ipcSysctls = []string{"auto_msgmni", "msgmax", "msgmnb", "msgmni", "msg_next_id", "sem", "sem_next_id", "shmall", "shmmax", "shmmni", "shm_next_id", "shm_rmid_forced"}
	utsSysctls = []string{"domainname"}
)

// A sysctl is one setting of one of a pod's namespaces.
type sysctl struct {
	name, value string
	path        []string // below /proc/sys
	kind        string   // of the namespace that it belongs to
}

// parseSysctls returns the wanted settings in the order in which to write
// them, and ErrInvalidArgument for one that is not the pod's to set.
func parseSysctls(o NamespaceOptions) ([]sysctl, error) {
	kinds := o.kinds()
	settings := make([]sysctl, 0, len(o.Sysctls))
	for name, value := range o.Sysctls {
		s, err := parseSysctl(name, value)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(kinds, s.kind) {
			return nil, fmt.Errorf("sysctl %q: it belongs to the %s namespace, which this pod shares with the host: %w", name, s.kind, errdefs.ErrInvalidArgument)
		}
		settings = append(settings, s)
	}
	slices.SortFunc(settings, func(a, b sysctl) int {
		return cmp.Or(a.rank()-b.rank(), strings.Compare(a.name, b.name))
	})
	return settings, nil
}

// parseSysctl takes both spellings, as sysctl(8) does: the first separator is
// the separator, and the other character stands for itself in a name.
func parseSysctl(name, value string) (sysctl, error) {
	spelled := name
	if first := strings.IndexAny(name, "./"); first >= 0 && name[first] == '.' {
		spelled = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	s := sysctl{name: name, value: value, path: strings.Split(spelled, "/")}
	for _, part := range s.path {
		if part == "" || part == "." || part == ".." || strings.ContainsRune(part, 0) {
			return s, fmt.Errorf("sysctl %q: not a name: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	switch {
	case s.path[0] == "net" && len(s.path) > 1:
		s.kind = netKind
	case s.path[0] == "fs" && len(s.path) == 3 && s.path[1] == "mqueue":
		s.kind = ipcKind
	case s.path[0] == "kernel" && len(s.path) == 2 && slices.Contains(ipcSysctls, s.path[1]):
		s.kind = ipcKind
	case s.path[0] == "kernel" && len(s.path) == 2 && slices.Contains(utsSysctls, s.path[1]):
		s.kind = utsKind
	case spelled == "kernel/hostname":
		return s, fmt.Errorf("sysctl %q: set the pod's hostname instead: %w", name, errdefs.ErrInvalidArgument)
	default:
		return s, fmt.Errorf("sysctl %q: it is the whole machine's, not a pod's: %w", name, errdefs.ErrInvalidArgument)
	}
	return s, nil
}

// rank orders settings that act upon others: turning forwarding on resets the
// settings of all interfaces, and those of "all" act upon the single ones.
func (s sysctl) rank() int {
	switch strings.Join(s.path, "/") {
	case "net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding":
		return 0
	}
	if slices.Contains(s.path, "all") {
		return 1
	}
	return 2
}

// ofLink tells whether the setting is that of a network interface which is not
// there from the start.
func (s sysctl) ofLink() bool {
	if s.kind != netKind || len(s.path) < 5 || (s.path[2] != "conf" && s.path[2] != "neigh") {
		return false
	}
	return !slices.Contains([]string{"all", "default", "lo"}, s.path[3])
}

// write sets it in the namespaces of this thread.
func (s sysctl) write() error {
	f, err := os.OpenFile("/proc/sys/"+strings.Join(s.path, "/"), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(s.value)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("sysctl %q: this kernel has none of that name in a pod's %s namespace: %w", s.name, s.kind, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.E2BIG), errors.Is(err, unix.EISDIR):
		return fmt.Errorf("sysctl %q: the kernel refuses the value %q: %w", s.name, s.value, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("sysctl %q: a pod may not set it: %w", s.name, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("sysctl %q: /proc/sys is read-only where berth runs; mount it writable: %w", s.name, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("sysctl %q: set to %q: %w", s.name, s.value, err)
}

// SetLinkSysctls sets, in the network namespace at netns, those of the sysctls
// that belong to a network interface other than loopback. It is to be called
// once the pod's network is up. Others are passed over: PinNamespaces has set
// them.
func SetLinkSysctls(netns string, sysctls map[string]string) error {
	settings, err := parseSysctls(NamespaceOptions{Net: true, IPC: true, UTS: true, Sysctls: sysctls})
	if err != nil {
		return err
	}
	settings = slices.DeleteFunc(settings, func(s sysctl) bool { return !s.ofLink() })
	if len(settings) == 0 {
		return nil
	}
	return InNetNS(netns, func() error {
		for _, s := range settings {
			if err := s.write(); err != nil {
				return err
			}
		}
		return nil
	})
}
