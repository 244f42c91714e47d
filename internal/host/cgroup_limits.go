package host

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strconv"

	systemd "github.com/coreos/go-systemd/v22/dbus"
)

// Limits are what a cgroup, with all below it, may use. Zero leaves a setting
// as it is.
type Limits struct {
	// CPUShares are those of v1, from 2 to 262144; 1024 are a cgroup's own.
	CPUShares uint64
	// CPUQuota is in microseconds for each CPUPeriod, which is 100000 where it
	// is zero. Below zero is no limit.
	CPUQuota  int64
	CPUPeriod uint64
	// Memory is in bytes.
	Memory int64
}

const (
	defaultPeriod = 100_000 // microseconds
	unlimitedCPU  = math.MaxUint64
	// quotaGrain is systemd's: it keeps a quota in hundredths of a processor.
	quotaGrain = 10_000 // microseconds in a second
)

// Limit sets what a cgroup that Ensure has made may use. A controller that the
// machine does not have is left out; containers' own limits say so.
func (c *Cgroups) Limit(parent string, l Limits) error {
	path, err := c.expand(parent)
	if err != nil {
		return err
	}
	if path == "/" || l == (Limits{}) {
		return nil
	}
	if l.CPUPeriod == 0 {
		l.CPUPeriod = defaultPeriod
	}
	if c.units != nil {
		ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
		defer cancel()
		err := c.units.SetProperties(ctx, filepath.Base(path), l.properties(c.layout.version == 2))
		if err != nil {
			return fmt.Errorf("limit cgroup %s: %w", path, err)
		}
		return nil
	}
	files := l.files()
	if c.layout.version == 2 {
		files = l.filesV2()
	}
	for _, f := range files {
		dir := c.Dir(f.controller, path)
		if dir == "" {
			continue
		}
		if err := writeFile(filepath.Join(dir, f.name), f.value); err != nil {
			return fmt.Errorf("limit cgroup %s: write %s to %s: %w", path, f.value, f.name, err)
		}
	}
	return nil
}

// A setting is a file of a cgroup and what is to be in it.
type setting struct{ controller, name, value string }

func (l Limits) files() []setting {
	var all []setting
	if l.CPUShares > 0 {
		all = append(all, setting{"cpu", "cpu.shares", strconv.FormatUint(l.CPUShares, 10)})
	}
	if l.CPUQuota != 0 {
		all = append(all, setting{"cpu", "cpu.cfs_period_us", strconv.FormatUint(l.CPUPeriod, 10)},
			setting{"cpu", "cpu.cfs_quota_us", strconv.FormatInt(max(l.CPUQuota, -1), 10)})
	}
	if l.Memory > 0 {
		all = append(all, setting{"memory", "memory.limit_in_bytes", strconv.FormatInt(l.Memory, 10)})
	}
	return all
}

func (l Limits) filesV2() []setting {
	var all []setting
	if l.CPUShares > 0 {
		all = append(all, setting{"cpu", "cpu.weight", strconv.FormatUint(weight(l.CPUShares), 10)})
	}
	if l.CPUQuota != 0 {
		quota := "max"
		if l.CPUQuota > 0 {
			quota = strconv.FormatInt(l.CPUQuota, 10)
		}
		all = append(all, setting{"cpu", "cpu.max", quota + " " + strconv.FormatUint(l.CPUPeriod, 10)})
	}
	if l.Memory > 0 {
		all = append(all, setting{"memory", "memory.max", strconv.FormatInt(l.Memory, 10)})
	}
	return all
}

// properties are those of a systemd unit.
func (l Limits) properties(v2 bool) []systemd.Property {
	var all []systemd.Property
	shares, cpu, memory := "CPUShares", l.CPUShares, "MemoryLimit"
	if v2 {
		shares, cpu, memory = "CPUWeight", weight(l.CPUShares), "MemoryMax"
	}
	if l.CPUShares > 0 {
		all = append(all, property(shares, cpu))
	}
	if l.CPUQuota != 0 {
		all = append(all, property("CPUQuotaPerSecUSec", l.quotaPerSecond()))
		if v2 || l.CPUPeriod != defaultPeriod { // a systemd of v1's time may not know it
			all = append(all, property("CPUQuotaPeriodUSec", l.CPUPeriod))
		}
	}
	if l.Memory > 0 {
		all = append(all, property(memory, uint64(l.Memory)))
	}
	return all
}

// quotaPerSecond is the quota in microseconds a second, rounded up to what
// systemd can keep.
func (l Limits) quotaPerSecond() uint64 {
	if l.CPUQuota < 0 {
		return unlimitedCPU
	}
	perSecond := uint64(l.CPUQuota) * 1_000_000 / l.CPUPeriod
	return (perSecond + quotaGrain - 1) / quotaGrain * quotaGrain
}

// weight is v2's for v1's shares, as runtimes have it: the least, the usual and
// the most of the one are those of the other.
func weight(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= 262_144:
		return 10_000
	}
	log := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (log*log+125*log)/612-7.0/34)))
}
