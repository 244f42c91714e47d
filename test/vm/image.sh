#!/usr/bin/env bash
# image.sh DIR makes, in DIR, what the virtual machine boots: vmlinuz, initrd
# and root.img. The machine is a stock Debian with a stock cloud kernel; nothing
# of this machine is changed. The root file system is kept in DIR/root.tar, so
# that a change of this script or of guest/ does not fetch it again.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"

suite=bookworm
mirror=${BERTH_VM_MIRROR:-http://deb.debian.org/debian}
packages=(
	systemd systemd-sysv dbus udev kmod         # the machine's own
	apparmor libseccomp2                        # what containers are confined with
	iproute2 iptables nftables procps strace    # what tests look with
	busybox-static                              # the tests' image
	criu
)
# Modules that the root disk is found and mounted with, and what berth's unit
# or an administrator would load.
initrd_modules=(virtio_pci virtio_blk virtio_console ext4)

work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

fetch_root() {
	local list
	list=$(IFS=,; echo "${packages[*]}")
	echo "root file system: $suite with ${packages[*]}"
	debootstrap --variant=minbase --include="$list" "$suite" "$work/tree" "$mirror" >"$out/debootstrap.log" 2>&1 ||
		{ tail -20 "$out/debootstrap.log" >&2; exit 1; }
	rm -rf "$work"/tree/var/cache/apt/* "$work"/tree/var/lib/apt/lists/* "$work"/tree/usr/share/{doc,man,locale,info}
	tar -C "$work/tree" -cf "$work/root.tar" .
	rm -rf "$work/tree"
	echo "${packages[*]}" >"$out/root.packages"
	mv "$work/root.tar" "$out/root.tar"
}

fetch_kernel() {
	local package
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
	[[ -n $package ]] || { echo "linux-image-cloud-amd64 is unknown: run apt-get update" >&2; exit 1; }
	echo "kernel: $package"
	(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package")
	mkdir "$work/kernel"
	dpkg -x "$work"/linux-image-*.deb "$work/kernel"
	tar -C "$work/kernel" -cf "$work/kernel.tar" .
	mv "$work/kernel.tar" "$out/kernel.tar"
}

# needs prints a module's files, those that it depends on first.
needs() { # MODULES-DIR NAME
	local line file
	line=$(grep -E "/${2//_/[_-]}\.ko:" "$1/modules.dep") || return 0 # built in
	for file in $(tr ' ' '\n' <<<"${line#*:}" | tac) "${line%%:*}"; do
		echo "$file"
	done
}

furnish() { # TREE
	local tree=$1 unit
	tar -C "$tree" -xf "$out/root.tar"
	tar -C "$tree" --keep-directory-symlink -xf "$out/kernel.tar" ./lib ./boot
	chroot "$tree" /sbin/depmod "$(ls "$tree/lib/modules")"
	mv "$tree"/boot/vmlinuz-* "$out/vmlinuz"
	rm -rf "$tree/boot"
	install -m 0755 guest/vmtest "$tree/usr/local/sbin/vmtest"
	install -m 0644 guest/vmtest.service "$tree/etc/systemd/system/vmtest.service"
	echo berth-vm >"$tree/etc/hostname"
	echo '127.0.0.1 localhost berth-vm' >"$tree/etc/hosts"
	: >"$tree/etc/fstab"
	mkdir -p "$tree/berth" "$tree/etc/cni/net.d"
	mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
	ln -s /etc/systemd/system/vmtest.service "$tree/etc/systemd/system/multi-user.target.wants/vmtest.service"
	ln -sf /lib/systemd/system/multi-user.target "$tree/etc/systemd/system/default.target"
	for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
		fstrim.timer motd-news.timer getty.target getty@tty1.service serial-getty@ttyS0.service systemd-tmpfiles-clean.timer \
		systemd-update-utmp.service systemd-random-seed.service systemd-journal-flush.service \
		systemd-udev-trigger.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-logind.service; do
		ln -sf /dev/null "$tree/etc/systemd/system/$unit"
	done
}

make_disk() { # TREE
	truncate -s 3G "$work/root.img"
	mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=1,lazy_journal_init=1 -d "$1" "$work/root.img"
	mv "$work/root.img" "$out/root.img"
}

make_initrd() { # MODULES-DIR
	local dir=$work/initrd name file
	mkdir -p "$dir"/{bin,dev,proc,sys,root,modules}
	cp /bin/busybox "$dir/bin/busybox"
	ln -s busybox "$dir/bin/sh"
	for name in "${initrd_modules[@]}"; do
		for file in $(needs "$1" "$name"); do
			grep -qx "${file##*/}" "$dir/modules/order" 2>/dev/null && continue
			cp "$1/$file" "$dir/modules/"
			echo "${file##*/}" >>"$dir/modules/order"
		done
	done
	install -m 0755 guest/init "$dir/init"
	(cd "$dir" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$out/initrd"
}

[[ -f $out/root.tar && $(cat "$out/root.packages" 2>/dev/null) == "${packages[*]}" ]] || fetch_root
[[ -f $out/kernel.tar ]] || fetch_kernel
mkdir "$work/tree"
furnish "$work/tree"
make_initrd "$work"/tree/lib/modules/*
make_disk "$work/tree"
echo "virtual machine: $(du -sh "$out" | cut -f1) in $out"
