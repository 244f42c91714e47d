package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
)

// table is a TOML table.
type table = map[string]any

// newServer makes the directories that both kinds of server have, the network
// configuration and the registry's.
func (b *bench) newServer(name, bridge, subnet string) (*server, error) {
	s := &server{
		name:   name,
		dir:    filepath.Join(b.workspace.Base, name),
		state:  filepath.Join("/run/bench", name),
		cgroup: filepath.Join(b.workspace.Cgroup, name),
	}
	for _, dir := range []string{s.dir, s.state, s.netDir(), filepath.Join(s.certsDir(), b.registry.Host), s.logDir(), s.mountDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", b.registry.Host)
	return s, errors.Join(
		os.WriteFile(filepath.Join(s.certsDir(), b.registry.Host, "hosts.toml"), []byte(hosts), 0o644),
		os.WriteFile(filepath.Join(s.netDir(), "10-bench.conflist"), []byte(s.conflist(bridge, subnet)), 0o600),
		// What a kubelet mounts into every container.
		os.WriteFile(filepath.Join(s.mountDir(), "hosts"), []byte("127.0.0.1 localhost\n"), 0o644),
		os.WriteFile(filepath.Join(s.mountDir(), "termination-log"), nil, 0o666),
		os.MkdirAll(filepath.Join(s.mountDir(), "serviceaccount"), 0o755),
	)
}

func (s *server) netDir() string   { return filepath.Join(s.dir, "net.d") }
func (s *server) certsDir() string { return filepath.Join(s.dir, "certs.d") }
func (s *server) logDir() string   { return filepath.Join(s.dir, "logs") }
func (s *server) mountDir() string { return filepath.Join(s.dir, "mounts") }

// conflist is the same for both but for names and addresses. It has room for
// every pod that is held.
func (s *server) conflist(bridge, subnet string) string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "%[1]s",
  "plugins": [
    {
      "type": "bridge", "bridge": "%[1]s", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "%[2]s", "ranges": [[{"subnet": "%[3]s"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, bridge, filepath.Join(s.dir, "ipam"), subnet)
}

// newBerth is the release build, configured by its defaults but for places.
func (b *bench) newBerth() (*server, error) {
	s, err := b.newServer(nameBerth, "bench0", "10.201.0.0/16")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "config.toml")
	s.address, s.containerd = s.state+"/berth.sock", s.state+"/containerd.sock"
	s.command = []string{filepath.Join(b.bin, "berth"), "serve", "--config", file}
	return s, writeTOML(file, table{
		"root": s.dir + "/root", "state": s.state, "address": s.address,
		"registry": table{"config_path": s.certsDir()},
		"network":  table{"conf_dir": s.netDir(), "default": false},
		"cgroup":   table{"driver": "cgroupfs", "parent": "/" + filepath.Join(s.cgroup, podsCgroup)},
	})
}

// newPeer is containerd 2.4.2 with its own CRI plugin. What differs from its
// defaults: places, the registry's directory and the pause image, as docs/cri
// of its manual advises; the cgroup driver is the default, as there is no
// systemd here; and an oom_score_adj that this machine forbids to lower is left.
//
// It has copies of its own of the programs that berth may run too, so that no
// page of a program counts for both.
func (b *bench) newPeer(pause string) (*server, error) {
	s, err := b.newServer(namePeer, "bench1", "10.202.0.0/16")
	if err != nil {
		return nil, err
	}
	programs := filepath.Join(s.dir, "bin")
	for _, name := range []string{"bench/containerd", "libexec/containerd-shim-runc-v2", "libexec/runc",
		"libexec/cni/bridge", "libexec/cni/host-local", "libexec/cni/loopback", "libexec/cni/portmap"} {
		if err := copyProgram(filepath.Join(b.bin, name), filepath.Join(programs, filepath.Base(name))); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(s.dir, "config.toml")
	s.address = s.state + "/containerd.sock"
	s.containerd = s.address
	s.command = []string{programs + "/containerd", "--config", file}
	s.env = []string{"PATH=" + programs + ":" + os.Getenv("PATH")}
	return s, writeTOML(file, table{
		"version": 3, "root": s.dir + "/root", "state": s.state,
		"grpc": table{"address": s.address},
		"plugins": table{
			"io.containerd.internal.v1.opt": table{"path": s.dir + "/opt"},
			"io.containerd.cri.v1.images": table{
				"snapshotter":   "overlayfs",
				"pinned_images": table{"sandbox": pause},
				"registry":      table{"config_path": s.certsDir()},
			},
			"io.containerd.cri.v1.runtime": table{
				"restrict_oom_score_adj": true,
				"cni":                    table{"bin_dirs": []string{programs}, "conf_dir": s.netDir()},
				"containerd": table{
					"default_runtime_name": "runc",
					"runtimes": table{"runc": table{
						"runtime_type": "io.containerd.runc.v2",
						"options":      table{"BinaryName": programs + "/runc", "SystemdCgroup": false},
					}},
				},
			},
		},
	})
}

func writeTOML(file string, t table) error {
	text, err := toml.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

func copyProgram(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("a program is missing, run \"make bench\", which builds it: %w", err)
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
