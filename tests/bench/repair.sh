#!/bin/bash
# What repair and drain take, and what they leave to others:
#
#   repair.sh MOUNTPOINT    four ChunkServers (cluster.sh) with 10,000 files of 16 KiB and 2 GiB of large ones; one is killed,
#                           then another one drained. Prints how long each took, and the foreground's speed meanwhile.
#
# The foreground writes and fsyncs 64 MiB, reads 128 MiB past all caches but the servers', and writes and fsyncs 200 files of
# 16 KiB, again and again; medians are shown. Environment: that of cluster.sh.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
at=${1:?MOUNTPOINT}
export GOFS_BIN=${GOFS_BIN:-$(cd "$here/../.." && pwd)/target/release}
state=${GOFS_BENCH_STATE:-/tmp/gofs-bench}
port=${GOFS_BENCH_PORT:-7560}
ctl=("$GOFS_BIN/gofsctl" --meta "127.0.0.1:$port")
export RUST_LOG=${GOFS_BENCH_LOG:-warn}
LARGE=8

# seconds COMMAND...: how long it takes.
seconds() {
    local begun
    begun=$(date +%s.%N)
    "$@" >/dev/null 2>&1
    awk -v begun="$begun" -v ended="$(date +%s.%N)" 'BEGIN { print ended - begun }'
}

small_files() {
    mkdir "$at/small.new"
    split -b 16K -a 4 "$state/source" "$at/small.new/"
    sync "$at"/small.new/*
}

# foreground PHASE ROUNDS COMMAND...: until the command succeeds, and at least that often.
foreground() {
    local phase=$1 rounds=$2 round=0
    shift 2
    while [ "$round" -lt "$rounds" ] || ! "$@"; do
        local write read small
        write=$(seconds dd if="$state/64M" of="$at/new" bs=1M conv=fsync)
        read=$(seconds dd if="$at/large$((round % LARGE))" of=/dev/null bs=1M count=128 iflag=direct)
        small=$(seconds small_files)
        rm -r "$at/small.new" "$at/new"
        echo "$write $read $small" >>"$state/$phase.samples"
        round=$((round + 1))
    done
}

# median PHASE COLUMN UNITS: units a second.
median() {
    awk -v column="$2" -v units="$3" '{ print units / $column }' "$state/$1.samples" | sort -n |
        awk '{ all[NR] = $1 } END { printf "%.0f", all[int((NR + 1) / 2)] }'
}

row() {
    echo "| $1 | $3 | $(median "$2" 1 64) | $(median "$2" 2 128) | $(median "$2" 3 200) |"
}

since() { awk -v begun="$1" -v ended="$(date +%s.%N)" 'BEGIN { printf "%.0f", ended - begun }'; }
field() { "${ctl[@]}" status --json | grep -o "\"$1\": *[0-9]*" | grep -o '[0-9]*$'; }
is_whole() { [ "$(field chunks_under_replicated)" = 0 ]; }
is_copying() { [ "$(field repairs_running)" != 0 ]; }
is_drained() { "${ctl[@]}" chunk list | grep -q ' drained'; }

trap '"$here/cluster.sh" down' EXIT
"$here/cluster.sh" up "$at" 4
head -c 3276800 /dev/urandom >"$state/source"
head -c 67108864 /dev/urandom >"$state/64M"
for dir in $(seq 100); do
    mkdir "$at/d$dir"
    head -c 1638400 "$state/source" | split -b 16K -a 4 - "$at/d$dir/"
done
for large in $(seq 0 $((LARGE - 1))); do
    head -c 268435456 /dev/urandom | dd of="$at/large$large" bs=1M iflag=fullblock conv=fsync status=none
done
sync
foreground quiet 10 is_whole

kill -9 "$(cat "$state/chunk4.pid")"
begun=$(date +%s.%N)
foreground dying 1 is_copying
dead=$(since "$begun")
foreground repair 1 is_whole
whole=$(since "$begun")

# An empty one in its place, to be drained to.
rm -rf "$state/chunk4" "$state/chunk4.pid"
setsid "$GOFS_BIN/gofs-chunk" --listen "127.0.0.1:$((port + 13))" --data "$state/chunk4" --meta "127.0.0.1:$port" \
    >>"$state/chunk4.log" 2>&1 </dev/null &
echo $! >"$state/chunk4.pid"
begun=$(date +%s.%N)
"${ctl[@]}" chunk drain "127.0.0.1:$((port + 10))" >/dev/null
foreground drain 1 is_drained
drained=$(since "$begun")
foreground quiet 10 is_whole

echo "| phase | seconds | 64 MiB written and fsynced, MiB/s | 128 MiB read, MiB/s | 16 KiB files written and fsynced, files/s |"
echo "| --- | ---: | ---: | ---: | ---: |"
row "quiet, before and after" quiet ""
row "a ChunkServer was killed, and is waited for" dying "$dead"
row "its chunks are copied" repair "$((whole - dead))"
row "a ChunkServer is drained" drain "$drained"
