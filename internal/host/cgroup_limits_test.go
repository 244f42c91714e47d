package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLimit(t *testing.T) {
	c, err := NewCgroups(CgroupfsDriver)
	must(t, err)
	if c.Version() != 1 {
		t.Skip("the files of v1; TestLimitFilesV2 has those of v2")
	}
	path := tempCgroup(t, c)
	must(t, c.Ensure(path))
	for _, test := range []struct {
		limits Limits
		want   string
	}{
		{Limits{CPUShares: 333, CPUQuota: 40_000, CPUPeriod: 50_000, Memory: 64 << 20}, "333 40000/50000 67108864"},
		{Limits{CPUShares: 2}, "2 40000/50000 67108864"}, // the rest stays
		{Limits{CPUQuota: 70_000}, "2 70000/100000 67108864"},
		{Limits{CPUQuota: -1}, "2 -1/100000 67108864"},
		{Limits{}, "2 -1/100000 67108864"},
	} {
		for range 2 {
			must(t, c.Limit(path, test.limits))
		}
		file := func(controller, name string) string {
			return strings.TrimSpace(read(t, filepath.Join(c.Dir(controller, path), name)))
		}
		got := fmt.Sprintf("%s %s/%s %s", file("cpu", "cpu.shares"), file("cpu", "cpu.cfs_quota_us"), file("cpu", "cpu.cfs_period_us"), file("memory", "memory.limit_in_bytes"))
		if got != test.want {
			t.Errorf("%+v: %s, want %s", test.limits, got, test.want)
		}
	}
	if err := c.Limit(path+"/none", Limits{CPUShares: 2}); err == nil || !strings.Contains(err.Error(), "cpu.shares") {
		t.Errorf("a cgroup that is not there: %v", err)
	}
	must(t, c.Limit("/", Limits{CPUShares: 2}))
}

// The tree is not a v2 hierarchy's: its files are made by hand.
func TestLimitFilesV2(t *testing.T) {
	root := machine(t, "30 22 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", false)
	c, err := NewCgroupsAt(root, CgroupfsDriver)
	must(t, err)
	dir := c.Dir("cpu", "/pod")
	must(t, os.MkdirAll(dir, 0o755))
	for _, f := range []string{"cpu.weight", "cpu.max", "memory.max"} {
		write(t, filepath.Join(dir, f), "")
	}
	must(t, c.Limit("/pod", Limits{CPUShares: 1024, CPUQuota: 150_000, Memory: 64 << 20}))
	got := map[string]string{}
	for _, f := range []string{"cpu.weight", "cpu.max", "memory.max"} {
		got[f] = read(t, filepath.Join(dir, f))
	}
	want := map[string]string{"cpu.weight": "100", "cpu.max": "150000 100000", "memory.max": "67108864"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, f := range (Limits{CPUQuota: -1, CPUPeriod: 1000}).filesV2() {
		if f.value != "max 1000" {
			t.Errorf("no limit: %v", f)
		}
	}
}

func TestLimitProperties(t *testing.T) {
	l := Limits{CPUShares: 2048, CPUQuota: 33_333, CPUPeriod: 100_000, Memory: 1 << 20}
	for v2, want := range map[bool]string{
		false: "CPUShares=2048 CPUQuotaPerSecUSec=340000 MemoryLimit=1048576",
		true:  "CPUWeight=174 CPUQuotaPerSecUSec=340000 CPUQuotaPeriodUSec=100000 MemoryMax=1048576",
	} {
		var got []string
		for _, p := range l.properties(v2) {
			got = append(got, fmt.Sprintf("%s=%v", p.Name, p.Value.Value()))
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("v2 %v: %s, want %s", v2, text, want)
		}
	}
	if got := (Limits{CPUQuota: -1, CPUPeriod: 1}).quotaPerSecond(); got != unlimitedCPU {
		t.Errorf("no limit is %d", got)
	}
	f := newFakeSystemd(t)
	c, err := NewCgroupsAt(machine(t, hybrid, true), "auto")
	must(t, err)
	c.units = &systemdUnits{dial: f.dial}
	defer c.Close()
	must(t, c.Limit("a-b.slice", l))
	if diff := cmp.Diff([]string{"SetUnitProperties a-b.slice"}, f.asked()); diff != "" {
		t.Error(diff)
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 0, 1: 1, 2: 1, 1024: 100, 262_144: 10_000, 1 << 40: 10_000} {
		if got := weight(shares); got != want {
			t.Errorf("%d: %d, want %d", shares, got, want)
		}
	}
}
