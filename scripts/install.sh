#!/usr/bin/env bash
# install.sh install|uninstall, from a built tree. DESTDIR is put before every
# path, for packages; PREFIX, SYSCONFDIR and UNITDIR say where things go. A
# configuration that is there is never written over or removed, nor is data.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

prefix=${PREFIX:-/usr/local}
bin=${DESTDIR:-}$prefix/bin
libexec=${DESTDIR:-}$prefix/libexec/berth
etc=${DESTDIR:-}${SYSCONFDIR:-/etc}/berth
units=${DESTDIR:-}${UNITDIR:-/etc/systemd/system}

reload() { # systemd, unless a package is being built
	if [[ -z ${DESTDIR:-} && -d /run/systemd/system ]]; then
		systemctl daemon-reload
	fi
}

# refuse_running names the processes whose programs would go: running containers
# are told of and stopped through what is in libexec.
refuse_running() {
	local exe real running=()
	real=$(readlink -m "$libexec")
	for exe in /proc/[0-9]*/exe; do
		case $(readlink "$exe" || true) in
		"$real"/*) running+=("$(basename "$(dirname "$exe")") $(readlink "$exe" || true)") ;;
		esac
	done 2>/dev/null
	if ((${#running[@]} > 0)); then
		printf 'in use:\n' >&2
		printf '  pid %s\n' "${running[@]}" >&2
		echo "remove the pods (berth rm -f --all) and stop the daemon first" >&2
		exit 1
	fi
}

# stop_unit stops the daemon, where systemd runs it.
stop_unit() {
	if [[ -e $units/berth.service && -d /run/systemd/system ]]; then
		systemctl disable --now berth
	fi
}

case ${1:-} in
install)
	install -D -m 0755 bin/berth "$bin/berth"
	install -D -m 0755 -t "$libexec" bin/libexec/runc bin/libexec/containerd-shim-runc-v2 bin/containerd-shim-berth-v1
	install -D -m 0755 -t "$libexec/cni" bin/libexec/cni/*
	install -d -m 0755 "$etc" "$etc/certs.d" "$units"
	sed "s|@BIN@|$prefix/bin|" packaging/systemd/berth.service >"$units/berth.service"
	chmod 0644 "$units/berth.service"
	if [[ ! -e $etc/config.toml ]]; then
		install -m 0644 internal/config/default.toml "$etc/config.toml"
	fi
	reload
	echo "installed $bin/berth, $libexec, $units/berth.service, $etc/config.toml"
	echo "next: systemctl enable --now berth && berth doctor"
	;;
uninstall)
	if [[ -z ${DESTDIR:-} ]]; then
		refuse_running
		stop_unit
	fi
	rm -f "$bin/berth" "$units/berth.service"
	rm -rf "$libexec"
	reload
	echo "removed the programs and the unit; $etc and /var/lib/berth stay"
	;;
*)
	echo "usage: $0 install|uninstall" >&2
	exit 2
	;;
esac
