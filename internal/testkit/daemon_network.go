package testkit

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

var (
	subnetMu sync.Mutex // guards both
	subnets  int
	ports    = 23000 // the last one given
)

// nextSubnet needs to be unique in this process only, whose network namespace
// is its own.
func nextSubnet() (v4, v6 string) {
	subnetMu.Lock()
	defer subnetMu.Unlock()
	subnets++
	return fmt.Sprintf("10.88.%d.0/24", subnets%256), fmt.Sprintf("fd88:%x::/64", subnets)
}

// WriteNetwork writes a conflist of bridge, host-local and portmap, dual
// stack.
func (d *Daemon) WriteNetwork() error {
	return os.WriteFile(d.ConfDir+"/10-test.conflist", []byte(d.Conflist()), 0o600)
}

// Conflist is what WriteNetwork writes.
func (d *Daemon) Conflist() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "%[1]s",
  "plugins": [
    {
      "type": "bridge", "bridge": "%[1]s", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "%[2]s",
        "ranges": [[{"subnet": "%[3]s"}], [{"subnet": "%[4]s"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}`, d.Bridge, d.IPAM, d.Subnet, d.Subnet6)
}

// freePort is a port that the kernel gives to no connection by itself, not even
// while a daemon that listens on it is started again: it is below
// net.ipv4.ip_local_port_range.
func freePort() (string, error) {
	subnetMu.Lock()
	defer subnetMu.Unlock()
	for ports < 32768 {
		ports++
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ports))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return "", err
		}
		return l.Addr().String(), l.Close()
	}
	return "", errors.New("all ports below 32768 are in use")
}
