#!/usr/bin/env bash
# install.sh install|uninstall: from the directory that it is in, which is an
# unpacked tarball of berth (in a source tree: make install). PREFIX, SYSCONFDIR
# and UNITDIR say where things go; DESTDIR is put before each, for packages. A
# configuration that is there is never written over or removed, nor is data.
set -euo pipefail
from=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

prefix=${PREFIX:-/usr/local}
sysconf=${SYSCONFDIR:-/etc}
bin=${DESTDIR:-}$prefix/bin
libexec=${DESTDIR:-}$prefix/libexec/berth
share=${DESTDIR:-}$prefix/share
etc=${DESTDIR:-}$sysconf/berth
units=${DESTDIR:-}${UNITDIR:-/etc/systemd/system}

# The files that are put into directories which others use, too.
shared=(bash-completion/completions/berth zsh/site-functions/_berth fish/vendor_completions.d/berth.fish)

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

# whole checks that nothing of the tarball is damaged or missing.
whole() {
	[[ -e $from/SHA256SUMS ]] || { echo "$from is no unpacked tarball of berth; in a source tree use 'make install'" >&2; exit 1; }
	(cd "$from" && sha256sum --quiet --check SHA256SUMS) || { echo "$from is damaged: unpack the tarball again" >&2; exit 1; }
}

# put FILE PATH [MODE]: a program that runs is replaced, not written over.
put() {
	mkdir -p "$(dirname "$2")"
	install -m "${3:-0644}" "$from/$1" "$2.new"
	mv -f "$2.new" "$2"
}

# put_all DIR PATH [MODE]: each file of DIR.
put_all() {
	local file
	while read -r file; do
		put "$1/$file" "$2/$file" "${3:-0644}"
	done < <(cd "$from/$1" && find . -type f -printf '%P\n')
}

case ${1:-} in
install)
	whole
	umask 022
	put bin/berth "$bin/berth" 0755
	put_all libexec/berth "$libexec" 0755
	put_all share/man "$share/man"
	put_all share/doc/berth "$share/doc/berth"
	for file in "${shared[@]}"; do put "share/$file" "$share/$file"; done
	mkdir -p "$etc/certs.d" "$units"
	sed "s|@BIN@|$prefix/bin|" "$from/systemd/berth.service" >"$units/berth.service.new"
	chmod 0644 "$units/berth.service.new"
	mv -f "$units/berth.service.new" "$units/berth.service"
	if [[ ! -e $etc/config.toml ]]; then
		put etc/config.toml "$etc/config.toml"
	fi
	reload
	echo "installed $bin/berth, $libexec, $units/berth.service, $etc/config.toml, completions, manual pages and documents in $share"
	echo "next: systemctl enable --now berth && berth doctor; after an upgrade: systemctl restart berth"
	;;
uninstall)
	if [[ -z ${DESTDIR:-} ]]; then
		refuse_running
		stop_unit
		end_holds
	fi
	rm -f "$bin/berth" "$units/berth.service" "${shared[@]/#/$share/}" "$share"/man/man1/berth{,-*}.1.gz "$share"/man/man5/berth-config.toml.5.gz
	rm -rf "$libexec" "$share/doc/berth"
	reload
	echo "removed the programs, the unit, completions and manual pages; $etc and /var/lib/berth stay"
	;;
*)
	echo "usage: $0 install|uninstall" >&2
	exit 2
	;;
esac
