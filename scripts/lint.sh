#!/usr/bin/env bash
# Everything that is checked without running berth. Prints what is wrong; all
# checks run even when one fails.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0

check() { # NAME COMMAND...: fails when the command does
	local name=$1
	shift
	if "$@"; then
		echo "lint: $name: ok"
	else
		echo "lint: $name: FAILED" >&2
		failed=1
	fi
}

formatted() {
	local files
	files=$(git ls-files '*.go' | xargs -r gofmt -l -s)
	[[ -z $files ]] || { echo "run gofmt -s -w on:"$'\n'"$files" && false; } >&2
}

shell() {
	local file status=0
	for file in scripts/*.sh test/vm/*.sh test/vm/guest/vmtest .ci/run; do
		bash -n "$file" || status=1
		[[ -x $file ]] || { echo "$file cannot be executed: chmod +x" >&2; status=1; }
	done
	return $status
}

# What runs containers, what berth is built against and what it is measured
# beside is one containerd.
pins() {
	local module=github.com/containerd/containerd/v2 ours tools dir
	ours=$(go list -m -f '{{.Version}}' $module)
	for dir in tools tools/bench; do
		tools=$(cd $dir && go list -m -f '{{.Version}}' $module)
		[[ $ours == "$tools" ]] || { echo "go.mod has $module $ours, $dir/go.mod $tools" >&2; return 1; }
	done
}

check gofmt formatted
# The module that stands for libseccomp-golang is ours, too.
ours=github.com/seccomp/libseccomp-golang
check vet go vet ./... $ours
check staticcheck bin/tools/staticcheck ./... $ours
check shell shell
check pins pins
exit $failed
