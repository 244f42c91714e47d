#!/usr/bin/env bash
# package.sh DEB NEWER IMAGE: installs, upgrades, removes and purges the package
# with a pod running, on a copy of this machine's file system that nobody else
# sees (an overlay, of which the upper layer goes with the mount namespace).
# What systemd would be asked to do is written down, and done by hand here.
set -euo pipefail

if [[ ${STAGE:-} != inside ]]; then
	STAGE=inside exec unshare --mount --pid --net --uts --fork --kill-child "$0" "$@"
fi

deb=$1 newer=$2 image=$3 cgroup=/berth-dist-$$-$RANDOM
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/{upper,work,root,give}
cp "$deb" /mnt/give/1.deb
cp "$newer" /mnt/give/2.deb
cp "$image" /mnt/give/image.tar
cp "$(dirname "$0")/pod.yaml" /mnt/give/
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs tmpfs run
mkdir -p run/systemd/system run/give
mount --bind /mnt/give run/give
pivot_root . mnt
cd /
umount -l /mnt
ip link set lo up

# A systemctl that writes down what it is asked for: there is no systemd here.
asked=/run/systemctl.log
rm -f /usr/sbin/policy-rc.d
cat >/usr/local/sbin/systemctl <<-'SYSTEMCTL'
	#!/bin/sh
	echo "$*" >>/run/systemctl.log
	case " $* " in
	*" --root=/ "*) exec /usr/bin/systemctl "$@" ;; # without systemd it changes links
	*" is-enabled "*) echo enabled ;;
	*" is-active "*) pgrep -x berth >/dev/null ;;
	esac
SYSTEMCTL
chmod +x /usr/local/sbin/systemctl
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C

fail() { echo "FAILED: $*" >&2 && exit 1; }
say() { echo "== $*"; }
has() { grep -qF -e "$2" "$1" || { cat "$1" && fail "$1 lacks: $2"; }; }
lacks() { ! grep -qF -e "$2" "$1" || { cat "$1" && fail "$1 has: $2"; }; }
absent() { [[ ! -e $1 && ! -L $1 ]] || fail "$1 is still there"; }
present() { [[ -e $1 ]] || fail "$1 is missing"; }

serve() {
	setsid berth serve >>/run/berth.log 2>&1 &
	daemon=$!
	local deadline=$((SECONDS + 30))
	until berth version >/dev/null 2>&1; do
		((SECONDS < deadline)) && kill -0 $daemon || { cat /run/berth.log && fail "no daemon"; }
		sleep 0.1
	done
}
stop() { kill "$daemon" && wait "$daemon" || fail "the daemon did not end well"; }
container() { berth ps -q --no-trunc; }
workload() { pgrep -f '^sleep 31415' || true; }

trap 'find /sys/fs/cgroup -depth -type d -path "*$cgroup*" -exec rmdir {} + 2>/dev/null || true' EXIT

say "install"
dpkg -i /run/give/1.deb >/run/dpkg.log 2>&1 || { cat /run/dpkg.log && fail "dpkg -i"; }
has $asked "start berth.service"
present /etc/systemd/system/multi-user.target.wants/berth.service
berth version --client
berth config check
berth doctor >/run/doctor.log || true
has /run/doctor.log "ok    supervisor         /usr/libexec/berth/containerd-shim-berth-v1"
man -w berth berth-run berth-config.toml >/dev/null
[[ -z $(dpkg -V berth) ]] || fail "dpkg -V: $(dpkg -V berth)"

say "a pod"
cat >>/etc/berth/config.toml <<TOML
[debug]
TOML
! berth config check 2>/dev/null || fail "an unknown table is taken"
sed -i '/^\[debug\]$/d; s|^snapshotter = .*|snapshotter = "native"|; s|^driver = .*|driver = "cgroupfs"|; s|^parent = .*|parent = "'"$cgroup"'"|' /etc/berth/config.toml
cp /etc/berth/config.toml /run/config.mine
serve
berth load /run/give/image.tar
berth run /run/give/pod.yaml
id=$(container) pid=$(workload)
[[ -n $id && -n $pid ]] || fail "no container"

say "upgrade: the daemon is restarted once the new version is there, not stopped before"
: >$asked
dpkg -i /run/give/2.deb >/run/dpkg.log 2>&1 || { cat /run/dpkg.log && fail "dpkg -i of the newer"; }
has $asked "restart berth.service"
lacks $asked "stop"
cmp /etc/berth/config.toml /run/config.mine
stop
serve
[[ $(container) == "$id" && $(workload) == "$pid" ]] || fail "the container was touched"
berth exec sleeper -- true

say "downgrade"
dpkg -i /run/give/1.deb >/run/dpkg.log 2>&1 || { cat /run/dpkg.log && fail "dpkg -i of the older"; }
stop
serve
[[ $(container) == "$id" && $(workload) == "$pid" ]] || fail "the container was touched"

say "removal with a pod there: it runs on, and data and configuration stay"
stop
: >$asked
dpkg -r berth >/run/dpkg.log 2>&1 || { cat /run/dpkg.log && fail "dpkg -r"; }
has $asked "stop berth.service"
has /run/dpkg.log "their containers run on"
has /run/dpkg.log "stay in /var/lib/berth"
[[ $(workload) == "$pid" ]] || fail "the container was touched"
for path in /usr/bin/berth /usr/libexec/berth /lib/systemd/system/berth.service /usr/share/man/man1/berth.1.gz; do absent $path; done
present /var/lib/berth/records.db
cmp /etc/berth/config.toml /run/config.mine

say "installed again, it knows its pod"
dpkg -i /run/give/1.deb >/run/dpkg.log 2>&1
cmp /etc/berth/config.toml /run/config.mine
serve
[[ $(container) == "$id" && $(workload) == "$pid" ]] || fail "the container was touched"
stop

say "purge with a pod there removes nothing of it"
dpkg -P berth >/run/dpkg.log 2>&1 || { cat /run/dpkg.log && fail "dpkg -P"; }
has /run/dpkg.log "Nothing there is removed"
present /var/lib/berth/records.db
absent /etc/berth/config.toml
[[ $(workload) == "$pid" ]] || fail "the container was touched"

say "purge without pods leaves nothing"
dpkg -i /run/give/1.deb >/run/dpkg.log 2>&1
cp /run/config.mine /etc/berth/config.toml
serve
berth rm -f --all
[[ -z $(workload) ]] || fail "the container runs"
stop
dpkg -P berth >/run/dpkg.log 2>&1 || { cat /run/dpkg.log && fail "dpkg -P"; }
lacks /run/dpkg.log "Nothing there is removed"
for path in /var/lib/berth /run/berth /var/lib/berth-run /etc/berth /usr/share/doc/berth /etc/systemd/system/multi-user.target.wants/berth.service /etc/systemd/system/berth.service; do absent $path; done
left=$(pgrep -af 'libexec/berth' || true)
[[ -z $left ]] || fail "still running: $left"

say "all well"
