#!/usr/bin/env bash
# exec.sh BINARY ARGUMENT... runs a test binary in the virtual machine, as go test's
# -exec does: its output is this program's, its exit code too. The machine is
# booted for it and ends with it, or with the process that started this one.
# BERTH_VM is the directory that image.sh filled; other variables that begin
# with BERTH_ are passed on.
set -euo pipefail

if [[ ${BERTH_VM_TIED:-} != 1 ]]; then
	BERTH_VM_TIED=1 exec setpriv --pdeathsig TERM "$0" "$@"
fi

# The machine writes to a pipe, whatever this program's output is.
if [[ ! -p /dev/stdout ]]; then
	BERTH_VM_TIED='' "$0" "$@" | cat
	exit
fi

package=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
vm=${BERTH_VM:-$root/bin/vm}
[[ -f $vm/root.img ]] || { echo "no virtual machine in $vm: run 'make test-vm'" >&2; exit 1; }
work=$(mktemp -d "$vm/run.XXXXXX")
machine=
end() {
	if [[ -n $machine ]]; then
		kill -KILL "$machine" 2>/dev/null || true
		wait "$machine" 2>/dev/null || true
	fi
	rm -rf "$work"
}
trap end EXIT
trap 'exit 143' TERM INT HUP

# command prints the script that the machine runs.
command() { # BINARY-IN-THE-MACHINE ARGUMENT...
	local name argument
	for name in $(compgen -e BERTH_ || true); do
		case $name in BERTH_VM | BERTH_VM_*) ;; *) printf 'export %s=%q\n' "$name" "${!name}" ;; esac
	done
	echo "export BERTH_IN_VM=1 BERTH_BIN=/berth/bin/berth"
	printf 'cd %q\nexec %q' "/berth/${package#"$root"/}" "$1"
	shift
	for argument; do
		[[ $argument == -test.testlogfile=* ]] || printf ' %q' "$argument"
	done
	echo
}

# payload fills a directory with what the machine finds in /berth: the parts of
# the working tree that tests look for, where they look for them.
payload() { # DIR BINARY ARGUMENT...
	local dir=$1 binary=$2 here=$1/${package#"$root"/}
	shift 2
	mkdir -p "$here" "$dir/bin" "$dir/internal/config"
	cp "$root/go.mod" "$dir/"
	cp -r "$root"/bin/{berth,containerd-shim-berth-v1,libexec} "$dir/bin/"
	cp -r "$root"/{scripts,packaging} "$dir/"
	cp "$root/internal/config/default.toml" "$dir/internal/config/"
	[[ ! -d testdata ]] || cp -r testdata "$here/"
	cp "$binary" "$dir/test.bin"
	command /berth/test.bin "$@" >"$dir/command"
}

boot() {
	local append="console=ttyS0 loglevel=4 rdinit=/init norandmaps mitigations=off psi=1 apparmor=1 security=apparmor hugepages=8 \
systemd.show_status=0 systemd.log_level=notice rd.systemd.show_status=0 audit=0 tsc=unstable"
	TMPDIR=$work setpriv --pdeathsig KILL qemu-system-x86_64 \
		-machine q35,usb=off -cpu qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt -accel tcg,thread=multi,tb-size=512 -smp 2 -m 1536 \
		-nodefaults -no-reboot -display none -nic none \
		-kernel "$vm/vmlinuz" -initrd "$vm/initrd" -append "$append" \
		-drive "if=none,id=root,file=$vm/root.img,format=raw,snapshot=on,cache=unsafe" -device virtio-blk-pci,drive=root,serial=root \
		-drive "if=none,id=payload,file=$work/payload.img,format=raw,cache=unsafe" -device virtio-blk-pci,drive=payload,serial=payload \
		-chardev "file,id=serial,path=$work/serial.log" -serial chardev:serial \
		-device virtio-serial-pci \
		-chardev file,id=out,path=/dev/stdout,append=on -device virtserialport,chardev=out,name=out \
		-chardev "file,id=exit,path=$work/exit" -device virtserialport,chardev=exit,name=exit \
		-object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
		</dev/null &
	machine=$!
	wait "$machine" || true
	machine=
}

payload "$work/payload" "$@"
truncate -s 2G "$work/payload.img"
mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=1,lazy_journal_init=1 -d "$work/payload" "$work/payload.img"
rm -rf "$work/payload"
boot
code=$(tr -dc 0-9 <"$work/exit" 2>/dev/null || true)
[[ -z ${BERTH_VM_SERIAL:-} ]] || cp "$work/serial.log" "$BERTH_VM_SERIAL"
if [[ -z $code ]]; then
	echo "the virtual machine ended without a result; the end of its console:" >&2
	tail -40 "$work/serial.log" >&2
	exit 1
fi
exit "$code"
