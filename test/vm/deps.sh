#!/usr/bin/env bash
# Installs the Debian packages that the virtual machine is made and run with.
# Asks apt only when one is missing.
set -euo pipefail

packages=(
	qemu-system-x86 # the machine
	debootstrap     # its root file system
	busybox-static  # its first programs
	e2fsprogs       # its disks
)

have=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
missing=()
for package in "${packages[@]}"; do
	grep -qx "installed $package" <<<"$have" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
	exit 0
fi
if ((EUID != 0)); then
	echo "missing: ${missing[*]}. Run 'make test-vm' as root." >&2
	exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends "${missing[@]}"
