#!/usr/bin/env bash
# dist.sh DIR: makes the tarball, the Debian package and their checksums in DIR
# out of what is built in bin/. The same programs and SOURCE_DATE_EPOCH (the
# commit's time, where it is not set) give the same files, byte for byte.
set -euo pipefail
umask 022
[[ $# == 1 ]] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1)}
export LC_ALL=C TZ=UTC
version=$(bin/berth version --client -o json | sed -n 's/.*"client": "v\(.*\)".*/\1/p')
arch=$("${GO:-go}" env GOARCH)
name=berth-$version-linux-$arch

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# debian_version: what comes before a release sorts before it, what git counts
# after one sorts after it.
debian_version() {
	sed -E 's/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; s/-dirty$/+dirty/; s/-/~/g' <<<"$1"
}

# same_times gives each file the same time, so that it does not tell when it was
# made.
same_times() { find "$1" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; }

tarball() {
	scripts/stage.sh "$work/$name"
	same_times "$work/$name"
	tar --create --directory="$work" --sort=name --owner=0 --group=0 --numeric-owner --format=gnu "$name" | gzip -n9 >"$out/$name.tar.gz"
}

# documents puts what Debian wants beside what the tarball installs.
documents() { # TREE VERSION
	local doc=$1/usr/share/doc/berth
	rm "$doc/LICENSE"
	install -m 0644 packaging/deb/copyright "$doc/copyright"
	install -D -m 0644 packaging/deb/lintian-overrides "$1/usr/share/lintian/overrides/berth"
	mv "$doc/CHANGELOG.md" "$doc/changelog"
	printf 'berth (%s) unstable; urgency=medium\n\n  * See changelog.gz for what is new.\n\n -- %s  %s\n' "$2" \
		"$(sed -n 's/^Maintainer: //p' packaging/deb/control)" "$(date -R -d "@$SOURCE_DATE_EPOCH")" >"$doc/changelog.Debian"
	gzip -n9 "$doc"/{changelog,changelog.Debian,THIRD-PARTY-NOTICES}
	mkdir "$1/usr/share/zsh/vendor-completions"
	mv "$1/usr/share/zsh/site-functions/_berth" "$1/usr/share/zsh/vendor-completions/_berth"
	rmdir "$1/usr/share/zsh/site-functions"
}

deb() {
	local tree=$work/deb debian
	debian=$(debian_version "$version")-1
	DESTDIR=$tree PREFIX=/usr SYSCONFDIR=/etc UNITDIR=/lib/systemd/system "$work/$name/install.sh" install >/dev/null
	documents "$tree" "$debian"
	mkdir "$tree/DEBIAN"
	install -m 0755 -t "$tree/DEBIAN" packaging/deb/{postinst,prerm,postrm}
	(cd "$tree" && find etc -type f -printf '/%p\n' | sort) >"$tree/DEBIAN/conffiles"
	(cd "$tree" && find . -path ./DEBIAN -prune -o -path ./etc -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
	sed "s|@VERSION@|$debian|; s|@ARCH@|$(debian_arch)|; s|@SIZE@|$(size "$tree")|" packaging/deb/control >"$tree/DEBIAN/control"
	chmod 0644 "$tree"/DEBIAN/{conffiles,md5sums,control}
	same_times "$tree"
	dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$tree" "$out/berth_${debian}_$(debian_arch).deb" >/dev/null
}

debian_arch() {
	case $arch in
	arm) echo armhf ;;
	386) echo i386 ;;
	ppc64le) echo ppc64el ;;
	*) echo "$arch" ;;
	esac
}

# size is that of the files in KiB, each rounded up, as dpkg counts it.
size() { find "$1" -path "$1/DEBIAN" -prune -o -type f -printf '%s\n' | awk '{n += int(($1 + 1023) / 1024)} END {print n}'; }

rm -f "$out"/berth-*.tar.gz "$out"/berth_*.deb "$out/SHA256SUMS"
tarball
if command -v dpkg-deb >/dev/null; then
	deb
else
	echo "dist: no dpkg-deb here, so no Debian package" >&2
fi
(cd "$out" && sha256sum berth[-_]*) >"$work/sums"
mv "$work/sums" "$out/SHA256SUMS"
chmod 0644 "$out"/*
(cd "$out" && ls -l && cat SHA256SUMS)
