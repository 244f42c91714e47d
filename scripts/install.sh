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

# running prints the processes of libexec, "PID WHAT PROGRAM" each; WHAT is
# "hold" for the process that a daemon leaves behind, which needs no containers.
running() {
	local real dir program args
	real=$(readlink -m "$libexec")
	for dir in /proc/[0-9]*; do
		program=$(readlink "$dir/exe") || continue
		[[ $program == "$real"/* ]] || continue
		mapfile -d '' -t args <"$dir/cmdline" || continue
		[[ ${args[1]:-} == hold ]] && echo "${dir##*/} hold $program" || echo "${dir##*/} uses $program"
	done 2>/dev/null
}

# refuse_running names the processes whose programs would go: running containers
# are told of and stopped through what is in libexec.
refuse_running() {
	local uses
	uses=$(running | sed -n 's/ uses / /p')
	if [[ -n $uses ]]; then
		echo "in use:" >&2
		sed 's/^/  pid /' <<<"$uses" >&2
		echo "remove the pods first: berth rm -f --all" >&2
		exit 1
	fi
}

# end_holds ends what keeps containers' output while no daemon runs.
end_holds() {
	local pid what program
	while read -r pid what program; do
		[[ $what != hold ]] || kill "$pid" 2>/dev/null || true
	done < <(running)
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
		end_holds
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
