package stats

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// devices knows the names of block devices, as "/dev/vda" for "254:0".
type devices struct {
	mu    sync.Mutex // guards known
	known map[string]string
}

// maxDevices bounds what is remembered, for devices that come and go.
const maxDevices = 1000

// find returns the name of the device of that number, which look finds where it
// is not known: "" is none, and the number stands for it. No lock is held
// meanwhile.
func (d *devices) find(number string, look func() string) string {
	d.mu.Lock()
	name, ok := d.known[number]
	d.mu.Unlock()
	if ok {
		return name
	}
	if name = look(); name == "" {
		name = number
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil || len(d.known) >= maxDevices {
		d.known = map[string]string{}
	}
	d.known[number] = name
	return name
}

// name is the device's name, or its number where it has none.
func (d *devices) name(number string) string {
	return d.find(number, func() string {
		data, err := os.ReadFile("/sys/dev/block/" + number + "/uevent")
		if err != nil {
			return "" // a device that has gone, or has no entry
		}
		for line := range strings.Lines(string(data)) {
			if dev, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
				return "/dev/" + dev
			}
		}
		return ""
	})
}

// A FileSystem is the one that containers' writable layers are on.
type FileSystem struct {
	Device                    string // as mounted: "/dev/vda1"
	Bytes, Inodes, FreeInodes uint64
}

// FileSystemOf returns the file system at path as it is now.
func (r *Reader) FileSystemOf(path string) (FileSystem, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	err := errors.Join(unix.Stat(path, &st), unix.Statfs(path, &fs))
	if err != nil {
		return FileSystem{}, fmt.Errorf("file system of %s: %w", path, err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	return FileSystem{
		Device: r.devices.mounted(number),
		Bytes:  fs.Blocks * uint64(fs.Bsize), Inodes: fs.Files, FreeInodes: fs.Ffree,
	}, nil
}

// mounted is the name that the device of that number was mounted by, which
// file systems without a block device have too ("tmpfs").
func (d *devices) mounted(number string) string {
	if !strings.HasPrefix(number, "0:") {
		return d.name(number)
	}
	return d.find(number, func() string {
		mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
			return fmt.Sprintf("%d:%d", m.Major, m.Minor) != number, false
		})
		if err != nil || len(mounts) == 0 {
			return ""
		}
		return mounts[0].Source
	})
}

// pageSizes are the sizes of huge pages as cgroup files name them ("2MB"), from
// the kernel's list at dir.
func pageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // a kernel without
	}
	var sizes []string
	for _, e := range entries {
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		switch {
		case err != nil:
		case kib >= 1<<20:
			sizes = append(sizes, fmt.Sprintf("%dGB", kib>>20))
		case kib >= 1<<10:
			sizes = append(sizes, fmt.Sprintf("%dMB", kib>>10))
		default:
			sizes = append(sizes, fmt.Sprintf("%dKB", kib))
		}
	}
	return sizes
}

// A transfer is what went between a cgroup and one device.
type transfer struct {
	device                                 string // its number
	readBytes, writtenBytes, reads, writes uint64
	cost                                   [4]uint64 // v2 with an I/O cost model: usage, wait, indebt, indelay, in microseconds
	hasCost                                bool
}

// parseIO reads io.stat of v2: "254:0 rbytes=1 wbytes=2 rios=3 wios=4 …".
func parseIO(data []byte) (all []transfer, err error) {
	for line := range bytes.Lines(data) {
		words := bytes.Fields(line)
		if len(words) < 2 {
			continue // a device without figures
		}
		t := transfer{device: string(words[0])}
		for _, word := range words[1:] {
			name, text, _ := bytes.Cut(word, []byte{'='})
			var to *uint64
			switch string(name) {
			case "rbytes":
				to = &t.readBytes
			case "wbytes":
				to = &t.writtenBytes
			case "rios":
				to = &t.reads
			case "wios":
				to = &t.writes
			case "cost.usage", "cost.wait", "cost.indebt", "cost.indelay":
				to, t.hasCost = &t.cost[costIndex(string(name))], true
			default:
				continue
			}
			if *to, err = parseUint(text); err != nil {
				return nil, fmt.Errorf("line %q: %w", bytes.TrimSpace(line), err)
			}
		}
		all = append(all, t)
	}
	return all, nil
}

func costIndex(name string) int {
	for i, n := range [...]string{"cost.usage", "cost.wait", "cost.indebt"} {
		if n == name {
			return i
		}
	}
	return 3
}

// An amount is a line of a blkio file of v1.
type amount struct {
	device, operation string
	value             uint64
}

// parseBlkio reads lines "254:0 Read 1"; the total over all devices is left
// out.
func parseBlkio(data []byte) (all []amount, err error) {
	for line := range bytes.Lines(data) {
		words := bytes.Fields(line)
		if len(words) != 3 {
			continue
		}
		n, err := parseUint(words[2])
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", bytes.TrimSpace(line), err)
		}
		all = append(all, amount{string(words[0]), string(words[1]), n})
	}
	return all, nil
}
