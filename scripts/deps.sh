#!/usr/bin/env bash
# deps.sh [PACKAGE...] installs Debian packages: those that are named, or those
# that berth is built, run and tested with. Asks apt only when one is missing, so
# that a second run does nothing.
set -euo pipefail

packages=(
	gcc libc6-dev libseccomp-dev pkg-config # to build: runc links libseccomp
	iptables nftables                       # to run: port mappings, masquerading
	busybox-static                          # the demo's and the tests' image
	iproute2 procps strace                  # to test
)
(($# == 0)) || packages=("$@")

if ! command -v dpkg-query apt-get >/dev/null; then
	echo "deps: this is no Debian. Install what these packages hold, then use 'make build': ${packages[*]}" >&2
	exit 1
fi

have=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
missing=()
for package in "${packages[@]}"; do
	grep -qx "installed $package" <<<"$have" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
	echo "deps: nothing is missing"
	exit 0
fi
if ((EUID != 0)); then
	echo "deps: missing: ${missing[*]}. Run 'make deps' (for the virtual machine 'make test-vm') as root." >&2
	exit 1
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends "${missing[@]}"
