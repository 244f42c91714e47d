#!/usr/bin/env bash
# Runs examples/web.yaml on a daemon of its own and shows what a user would do
# with it: look, fetch, read logs, execute, stop, remove. Everything has the
# name of this run (directories, socket, bridge, subnet, cgroup), so that it
# stands beside a daemon that is there already, and nothing stays behind; the
# last step checks that. BERTH is the program to use, if not the one built here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly image=berth.example/busybox:demo
readonly berth=${BERTH:-$PWD/bin/berth}
readonly name=berth-demo-$$
readonly base=${TMPDIR:-/tmp}/$name state=/run/$name
readonly socket=$state/berth.sock bridge=bd$$
daemon=
export BERTH_ADDRESS=$socket BERTH_RUN_ROOT=$base/pods BERTH_LOG_ROOT=$base/logs

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# show runs a command as a user would type it, and says what it is.
show() {
	printf '\n$ berth %s\n' "$*"
	"$berth" "$@"
}

# until_ok SECONDS COMMAND...: tries until it succeeds.
until_ok() {
	local deadline=$((SECONDS + $1)) && shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < deadline)) || return 1
		sleep 0.1
	done
}

# ours prints whatever this run still has on the host: the lines of each kind,
# with the kind before them.
ours() {
	local dir file
	awk -v at=" $state" -v or=" $base" 'index($0, at) || index($0, or) {print "mount: " $5}' /proc/self/mountinfo
	ip -o link show | awk -F': ' -v bridge="$bridge" 'index($0, bridge) {print "link: " $2}'
	# The names come from a file, so that grep's own command line lacks them.
	grep -lsaF -f <(printf '%s\n' "$state" "$base") /proc/[0-9]*/cmdline | while read -r file; do
		echo "process: $(basename "${file%/cmdline}") $({ tr '\0' ' ' <"$file"; } 2>/dev/null)"
	done || true
	find /sys/fs/cgroup -depth -type d -name "$name*" -printf 'cgroup: %p\n' 2>/dev/null || true
	{ nft list ruleset; iptables-save; } 2>/dev/null | grep -F -e "$bridge" -e "${subnet%0/24}" | sed 's/^[[:space:]]*/firewall: /' || true
	for dir in "$base" "$state"; do
		[[ ! -e $dir ]] || echo "directory: $dir"
	done
}

# processes_of prints the processes in this run's cgroups, and its programs.
processes_of() {
	find /sys/fs/cgroup -path "*/$name*" -name cgroup.procs -exec cat {} + 2>/dev/null || true
	ours | awk '$1 == "process:" {print $2}'
}

# tidy removes what a daemon keeps for its next pod, once it and its pods are
# gone: the bridge, the parent cgroup, the table of masquerading, forwarding.
tidy() {
	local dir
	ip link del "$bridge" 2>/dev/null || true
	ours | sed -n 's/^cgroup: //p' | while read -r dir; do rmdir "$dir" 2>/dev/null || true; done
	rm -rf --one-file-system "$base" "$state"
	if ((!had_table)) && nft list table $table 2>/dev/null | grep -q masq_checks && ! nft list table $table | grep -q ' masquerade comment'; then
		nft delete table $table
	fi
	[[ $forward == 1 ]] || echo "$forward" >/proc/sys/net/ipv4/ip_forward
}

no_process() { [[ -z $(processes_of) ]]; }

# clean ends what this run started and nothing else, wherever it stopped.
clean() {
	local status=$? pid dir
	trap - EXIT
	trap '' INT TERM # once begun, it ends
	if ((status != 0)); then
		echo "demo: failed" >&2
		[[ ! -e $base/daemon.log ]] || { echo "the daemon's last lines:" && tail -n 30 "$base/daemon.log"; } >&2
	fi
	if [[ -n $daemon ]] && kill -0 "$daemon" 2>/dev/null; then
		"$berth" rm --force web >/dev/null 2>&1 || true
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" || true
	fi
	for pid in $(processes_of | sort -u); do
		kill -KILL "$pid" 2>/dev/null || true
	done
	until_ok 10 no_process || true
	awk -v at="$state" -v or="$base" 'index($5, at) == 1 || index($5, or) == 1 {print $5}' /proc/self/mountinfo | sort -r |
		while read -r dir; do umount -l "$dir" || true; done
	tidy
	exit "$status"
}

((EUID == 0)) || { echo "demo: containers need root: run it as root" >&2; exit 1; }
[[ -x $berth ]] || { echo "demo: $berth is missing: run 'make build'" >&2; exit 1; }

# A subnet of which no address is routed anywhere but to the default.
subnet=
for n in $(seq 77 99); do
	if ! ip -4 route show to root "10.$n.0.0/24" | grep -q . && ! ip -4 route show to match "10.$n.0.0/24" | grep -qv '^default'; then
		subnet=10.$n.0.0/24
		break
	fi
done
[[ -n $subnet ]] || { echo "demo: every subnet from 10.77.0.0/24 to 10.99.0.0/24 is in use" >&2; exit 1; }

table="inet cni_plugins_masquerade" had_table=0
if nft list table $table >/dev/null 2>&1; then had_table=1; fi
forward=$(cat /proc/sys/net/ipv4/ip_forward)
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$base/net.d"
cat >"$base/config.toml" <<TOML
root = "$base/root"
state = "$state"
address = "$socket"
network.conf_dir = "$base/net.d"
network.default_bridge = "$bridge"
network.default_subnet = "$subnet"
cgroup.driver = "cgroupfs"
cgroup.parent = "/$name"
TOML

say "A daemon of its own, with the configuration"
cat "$base/config.toml"
"$berth" config check "$base/config.toml" >/dev/null
# A session of its own: Ctrl-C is for this script, which ends the daemon in order.
setsid "$berth" serve --config "$base/config.toml" >"$base/daemon.log" 2>&1 &
daemon=$!
ready() { kill -0 "$daemon" && "$berth" version; }
until_ok 30 ready || { echo "demo: the daemon is not ready after 30 s" >&2; exit 1; }
show version

say "An image, made here of this machine's busybox"
"${GO:-go}" run ./scripts/demoimage "$base/image.tar" "$image"
show load "$base/image.tar"
show images

say "A pod: a web server, and a sidecar that writes a page of it"
show run examples/web.yaml
show pods
show ps
printf '\n$ berth inspect web -o yaml | sed -n "/^status:/,\$p"\n'
"$berth" inspect web -o yaml | sed -n '/^status:/,$p'

say "Its page, over the pod's address"
address=$("$berth" inspect web -o json | sed -n 's/.*"ip": *"\([0-9.]*\)".*/\1/p' | head -n 1)
[[ -n $address ]] || { echo "demo: the pod has no address" >&2; exit 1; }
fetch() { env -u http_proxy -u HTTP_PROXY busybox wget -q -O - "http://$address:8080/$1"; }
until_ok 15 fetch time.txt || { echo "demo: no answer from http://$address:8080/time.txt" >&2; exit 1; }
for page in "" time.txt; do
	printf '\n$ wget -q -O - http://%s:8080/%s\n' "$address" "$page"
	fetch "$page"
done
fetch "" | grep -q "served by web" || { echo "demo: this is another page" >&2; exit 1; }

say "Logs, a command, statistics"
show logs web/server
show logs --tail 2 web/clock
show exec web/server -- ps
show stats

say "The end of it"
show stop web
show pods
show rm web
show pods
[[ -z $("$berth" pods -q) && -z $("$berth" ps -a -q) ]] ||
	{ echo "demo: the pod is still there" >&2; exit 1; }

# What a pod left would be seen now: the daemon still stands, so all that may
# be there is its own.
all=$(ours)
leftovers=$(grep -E "^(mount: $state/sandboxes|mount: .*/rootfs|process: .*containerd-shim-runc|firewall: .*$address)|^cgroup: .*/$name/." <<<"$all" || true)
[[ -z $leftovers ]] || { printf 'demo: the pod left behind:\n%s\n' "$leftovers" >&2; exit 1; }

kill "$daemon"
wait "$daemon" || { echo "demo: the daemon did not end well" >&2; exit 1; }
daemon=
until_ok 10 no_process || { printf 'demo: still there 10 s after the daemon:\n%s\n' "$(ours)" >&2; exit 1; }

tidy
leftovers=$(ours)
[[ -z $leftovers ]] || { printf 'demo: left behind:\n%s\n' "$leftovers" >&2; exit 1; }

say "Nothing is left: no process, mount, link, firewall rule, cgroup or directory."
echo "To have a daemon of your own:  make install && systemctl enable --now berth && berth doctor"
