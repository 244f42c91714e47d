#!/usr/bin/env bash
# Runs each fuzz target of the module for a time (default 10s).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
time=${1:-10s}
go=${GO:-go}

found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	package=./$(dirname "$file")
	echo "fuzz: $package $target for $time"
	output=$(mktemp)
	if ! "$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" >"$output" 2>&1; then
		# Go reports a target that is busy when the time is over as failed; it
		# has found something only when it says what.
		if grep -qE 'Failing input written|panic:|build failed|^--- FAIL: .*\([0-9.]+s\)$' "$output" &&
			! grep -qE '^ +context deadline exceeded$' "$output"; then
			cat "$output" >&2
			exit 1
		fi
	fi
	tail -n 3 "$output"
	rm "$output"
done < <(git ls-files '*_test.go' | xargs grep -oHE '^func Fuzz[A-Za-z0-9_]+' | sed 's/func //')
echo "fuzz: $found targets, nothing found"
