#!/bin/bash
# A gofs cluster of separate processes on loopback, for measurements:
#
#   cluster.sh up MOUNTPOINT [CHUNKSERVERS]   one MetaServer, ChunkServers (3), namespace bench (2 replicas), mounted
#   cluster.sh remount                        a new client process, with empty caches
#   cluster.sh down                           ends what it started and removes its state
#
# Environment: GOFS_BIN (target/release), GOFS_BENCH_STATE (/tmp/gofs-bench; on the disk to be measured), GOFS_BENCH_PORT
# (7560), GOFS_BENCH_OPTIONS (mount options), GOFS_BENCH_LOG (warn). Logs stay in the state directory until `down`.
set -euo pipefail

bin=${GOFS_BIN:-$(cd "$(dirname "$0")/../.." && pwd)/target/release}
state=${GOFS_BENCH_STATE:-/tmp/gofs-bench}
port=${GOFS_BENCH_PORT:-7560}
meta=127.0.0.1:$port
export RUST_LOG=${GOFS_BENCH_LOG:-warn}

# start NAME COMMAND...: in the background, its pid and log in the state directory.
start() {
    local name=$1
    shift
    setsid "$@" >>"$state/$name.log" 2>&1 </dev/null &
    echo $! >"$state/$name.pid"
}

# stop NAME: ends the process of that name, if it is still ours.
stop() {
    local pid
    pid=$(cat "$state/$1.pid" 2>/dev/null) || return 0
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == gofs-* ]]; then
        kill "$pid"
        tail --pid="$pid" -f /dev/null
    fi
    rm -f "$state/$1.pid"
}

# until_true COMMAND...: repeats it for at most 20 s.
until_true() {
    for _ in $(seq 200); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "cluster.sh: gave up: $*; see $state/*.log" >&2
    exit 1
}

mount_it() {
    local at
    at=$(cat "$state/mount")
    start fuse "$bin/gofs-fuse" --foreground ${GOFS_BENCH_OPTIONS:+-o "$GOFS_BENCH_OPTIONS"} "$meta:/bench" "$at"
    until_true mountpoint -q "$at"
}

case ${1:-} in
up)
    at=${2:?MOUNTPOINT}
    servers=${3:-3}
    if [ -e "$state" ]; then
        echo "cluster.sh: $state exists: run '$0 down' first" >&2
        exit 1
    fi
    mkdir -p "$state" "$at"
    realpath "$at" >"$state/mount"
    start meta "$bin/gofs-meta" --id 1 --listen "$meta" --data "$state/meta"
    for i in $(seq "$servers"); do
        start "chunk$i" "$bin/gofs-chunk" --listen "127.0.0.1:$((port + 9 + i))" --data "$state/chunk$i" --meta "$meta"
    done
    all_here() { "$bin/gofsctl" --meta "$meta" status | grep -q "$servers alive"; }
    until_true all_here
    "$bin/gofsctl" --meta "$meta" ns create bench --replicas 2 >/dev/null
    mount_it
    ;;
remount)
    stop fuse
    mount_it
    ;;
down)
    stop fuse
    for pid in "$state"/chunk*.pid; do
        stop "$(basename "$pid" .pid)"
    done
    stop meta
    rm -rf "$state"
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
