#!/usr/bin/env bash
# lintian.sh DEB: has lintian look at the package. Where it is not installed it
# is installed into a copy of this machine's file system that nobody else sees.
set -euo pipefail

look() { lintian --allow-root --fail-on error,warning "$1"; }

if command -v lintian >/dev/null; then
	look "$1"
	exit
fi
if [[ ${STAGE:-} != inside ]]; then
	STAGE=inside exec unshare --mount --pid --fork --kill-child "$0" "$@"
fi
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/{upper,work,root}
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
mount --rbind /dev /mnt/root/dev
mount -t proc proc /mnt/root/proc
cp "$1" /mnt/root/package.deb
export -f look
chroot /mnt/root env DEBIAN_FRONTEND=noninteractive bash -euo pipefail -c '
	apt-get -qq update >/dev/null
	apt-get -qq install -y --no-install-recommends lintian >/dev/null
	look /package.deb'
