package spec

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// status of /proc/self/status with every capability but CAP_SYS_RESOURCE (24),
// and CAP_SYS_BOOT (22) outside the bounding set.
const status = "Name:\tberth\nCapEff:\t000001fffeffffff\nCapBnd:\t000001ffffbfffff\nNoNewPrivs:\t0\nSeccomp:\t0\n"

const mountsV2 = "24 1 0:21 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n" +
	"25 1 0:22 / /other rw - tmpfs x rw,nsdelegate\n"

func TestReadKernel(t *testing.T) {
	names := slices.DeleteFunc(slices.Clone(known), func(n string) bool { return n == "CAP_SYS_RESOURCE" || n == "CAP_SYS_BOOT" })
	for name, tc := range map[string]struct {
		files map[string]string
		want  Kernel
	}{
		"v2": {
			map[string]string{
				"proc/self/status": status, "proc/self/oom_score_adj": "-999\n", "proc/self/mountinfo": mountsV2,
				"proc/sys/user/max_user_namespaces": "192587\n", "sys/module/apparmor/parameters/enabled": "Y\n", "sys/fs/selinux/enforce": "1",
				"sys/fs/cgroup/cgroup.controllers":             "cpuset cpu io memory hugetlb pids\n",
				"sys/kernel/mm/hugepages/hugepages-2048kB/x":   "",
				"sys/kernel/mm/hugepages/hugepages-1048576kB/": "", "sys/kernel/mm/hugepages/hugepages-64kB/x": "",
			},
			Kernel{CgroupVersion: 2, CgroupOptions: []string{"nsdelegate", "memory_recursiveprot"},
				HugePages: []string{"1GB", "2MB", "64KB"}, Seccomp: true, AppArmor: true, SELinux: true, UserNamespaces: true, Capabilities: names, OOMScoreAdj: -999},
		},
		"hybrid": {
			map[string]string{
				"proc/self/status": "CapEff:\t0\nCapBnd:\t0\n", "proc/self/oom_score_adj": "0\n",
				"proc/sys/user/max_user_namespaces":                  "0\n",
				"sys/module/apparmor/parameters/enabled":             "N\n",
				"sys/fs/cgroup/unified/cgroup.controllers":           "hugetlb\n",
				"sys/kernel/mm/hugepages/hugepages-2048kB/resv_huge": "",
			},
			Kernel{CgroupVersion: 1, Capabilities: []string{}},
		},
		"v1 with hugetlb": {
			map[string]string{
				"proc/self/status": status, "proc/self/oom_score_adj": "0\n",
				"sys/fs/cgroup/hugetlb/tasks": "", "sys/kernel/mm/hugepages/hugepages-2048kB/x": "",
			},
			Kernel{CgroupVersion: 1, HugePages: []string{"2MB"}, Seccomp: true, Capabilities: names},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, content := range tc.files {
				file = filepath.Join(root, file)
				if filepath.Base(file) == "hugepages-1048576kB" {
					must(t, os.MkdirAll(file, 0o755))
					continue
				}
				must(t, os.MkdirAll(filepath.Dir(file), 0o755))
				must(t, os.WriteFile(file, []byte(content), 0o644))
			}
			got, err := readKernel(root)
			must(t, err)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := readKernel(t.TempDir()); err == nil {
		t.Error("no error where there is no /proc")
	}
}

// TestReadThisKernel: what is said of this machine can be used on it.
func TestReadThisKernel(t *testing.T) {
	k, err := ReadKernel()
	must(t, err)
	if !slices.Contains(k.Capabilities, "CAP_SYS_ADMIN") || k.Hostname == "" {
		t.Errorf("got %+v", k)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); (err == nil) != (k.CgroupVersion == 2) {
		t.Errorf("cgroup version %d", k.CgroupVersion)
	}
}
