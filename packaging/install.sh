#!/bin/sh
# Installs the built programs, the mount helper, the units and sample configurations.
#   cargo build --release && sudo packaging/install.sh [DESTDIR]
set -eu
here=$(dirname "$(readlink -f "$0")")
built=${CARGO_TARGET_DIR:-$here/../target}/release
dest=${1:-}
for program in gofs-meta gofs-chunk gofs-fuse gofsctl; do
    [ -x "$built/$program" ] || { echo "$built/$program is missing: run cargo build --release first" >&2; exit 1; }
    install -D -m 755 "$built/$program" "$dest/usr/bin/$program"
done
mkdir -p "$dest/sbin"
ln -sf /usr/bin/gofs-fuse "$dest/sbin/mount.fuse.gofs"
install -D -m 644 -t "$dest/lib/systemd/system" "$here"/systemd/*.service
for sample in meta.toml chunk.toml; do
    [ -e "$dest/etc/gofs/$sample" ] || install -D -m 644 "$here/$sample" "$dest/etc/gofs/$sample"
done
