#!/usr/bin/env bash
# stage.sh DIR: puts what is installed into a new directory DIR, as the tarball
# holds it and as its install.sh wants it. The programs in bin/ are built
# already; they write the manual pages and completions themselves.
set -euo pipefail
umask 022
[[ $# == 1 ]] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
to=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -z $(ls -A "$to") ]] || { echo "stage: $to is not empty" >&2; exit 1; }

programs=(bin/libexec/runc bin/libexec/containerd-shim-runc-v2 bin/containerd-shim-berth-v1)
for program in bin/berth "${programs[@]}"; do
	[[ -x $program ]] || { echo "stage: $program is missing: run 'make build'" >&2; exit 1; }
done

share=$to/share
mkdir -p "$share"/{man/man1,man/man5,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d,doc/berth/examples}
install -D -m 0755 -t "$to/bin" bin/berth
install -D -m 0755 -t "$to/libexec/berth" "${programs[@]}"
install -D -m 0755 -t "$to/libexec/berth/cni" bin/libexec/cni/*
install -D -m 0644 packaging/systemd/berth.service "$to/systemd/berth.service"

mkdir "$to/etc" "$to/manual"
"$to/bin/berth" config default >"$to/etc/config.toml"
"$to/bin/berth" manual "$to/manual"
mv "$to"/manual/*.1 "$share/man/man1"
mv "$to"/manual/*.5 "$share/man/man5"
rmdir "$to/manual"
gzip -n9 "$share"/man/man?/*
"$to/bin/berth" completion bash >"$share/bash-completion/completions/berth"
"$to/bin/berth" completion zsh >"$share/zsh/site-functions/_berth"
"$to/bin/berth" completion fish >"$share/fish/vendor_completions.d/berth.fish"

"${GO:-go}" run ./scripts/notices bin/berth "${programs[@]}" bin/libexec/cni/* >"$share/doc/berth/THIRD-PARTY-NOTICES"
install -m 0644 -t "$share/doc/berth" LICENSE README.md CHANGELOG.md docs/*.md
install -m 0644 -t "$share/doc/berth/examples" examples/*.yaml
install -m 0755 -t "$to" scripts/install.sh
cp "$share"/doc/berth/{LICENSE,README.md,THIRD-PARTY-NOTICES} "$to"
chmod -R u=rwX,go=rX "$to"
(cd "$to" && find . -type f ! -name SHA256SUMS ! -name .sums -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum) >"$to/.sums"
mv "$to/.sums" "$to/SHA256SUMS"
