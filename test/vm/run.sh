#!/usr/bin/env bash
# run.sh runs, in the virtual machine, what must hold on cgroup v2: the tests of
# this directory on berth installed as a systemd unit, and the core of the
# end-to-end suite with each of the two cgroup drivers. One boot for each line of
# output. ONLY picks by name: vm, host, systemd, cgroupfs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export BERTH_TEST_SLOW=20 BERTH_TEST_TARGETS=embedded/berth
exec=$PWD/test/vm/exec.sh
go=${GO:-go}

# What of test/e2e depends on cgroups, systemd, the kernel or security modules,
# or is the core of what a kubelet does. The rest is the same on every machine.
core='^(TestVersion|TestStatus|TestRuntimeConfig|TestSandboxStatus|TestSandboxHasNoProcess|TestStopAndRemoveAreIdempotent'
core+='|TestRemoveTakesARunningPod|TestNamespaces|TestShm|TestSysctls|TestPortMappings|TestCgroupParent|TestCgroupParentOfTheKubelet'
core+='|TestUpdatePodSandboxResources|TestContainerLifecycle|TestExitCodes|TestOOMKilled|TestRemoveOfARunningContainer'
core+='|TestResources|TestPodResources|TestOOMScoreBelowOurOwn|TestUpdateContainerResources|TestHugepages'
core+='|TestLogFormat|TestNothingIsLostAtExit|TestReopenContainerLog|TestExec|TestExecSync|TestAttach|TestPortForward|TestStats'
core+='|TestContainerEvents|TestPullStatusRemove|TestUsers|TestCapabilities|TestPrivileged|TestNoNewPrivs|TestSeccomp|TestDevices'
core+='|TestMaskedAndReadOnlyPaths|TestMounts|TestKilledAndStoppedDaemons|TestSupervisorOfAPod)$'

failed=0
run() { # NAME PACKAGE FLAG...
	local name=$1 package=$2
	shift 2
	if [[ -z ${ONLY:-} || $name =~ ${ONLY} ]]; then
		"$go" test -count=1 -timeout 30m -exec "$exec" "$@" "$package" || failed=1
	fi
}

export BERTH_TEST_OWN_MACHINE=1 BERTH_TEST_CGROUP_DRIVER=systemd
run vm ./test/vm
run systemd ./test/e2e -run "$core"
export BERTH_TEST_OWN_MACHINE='' BERTH_TEST_CGROUP_DRIVER=cgroupfs
run host ./internal/host -run 'Cgroup|Ensure|Kill|Remove|Limit|OOM|Procs|Delegate|Apart|Swap'
run host ./internal/stats
run cgroupfs ./test/e2e -run "$core"
exit "$failed"
