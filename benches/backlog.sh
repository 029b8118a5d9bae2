#!/usr/bin/env bash
# What a backlog on disk costs: benches/backlog.sh [MILLION FRAMES]
#
# Without a collector 38 million frames of 130 bytes, 5 GiB, go into the spool as fast as they can; then a collector comes,
# while 500 000 frames/s go on arriving. It verifies every frame. Needs 6 GiB below TMPDIR (/tmp), on a disk.
set -euo pipefail
cd "$(dirname "$0")/.."

BIN=${BIN:-target/release}
MILLIONS=${1:-38}
folder=$(mktemp -d)
input=unix:$folder/in.sock output=unix:$folder/out.sock
keys="queue=64MiB&buffer=disk&spool.dir=$folder/spool&spool.max=40GiB&spool.min_free=0B&spool.on_full=block"

"$BIN/tapster" run --workers 1 --listen "$input" --to "$output?$keys&reconnect.max=100ms" 2> "$folder/log" &
relay=$!
trap 'kill "$relay" 2> /dev/null || true; wait "$relay" || true; rm -rf "$folder"' EXIT
until [ -S "$folder/in.sock" ]; do sleep 0.05; done

cpu() { awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) / hz }' "/proc/$relay/stat"; }
now() { date +%s.%N; }
memory() { grep VmHWM "/proc/$relay/status"; }
per_frame() { awk -v n="$1" -v from="$2" -v to="$3" 'BEGIN { printf "%.1f ns of CPU per frame\n", (to - from) / n * 1e9 }'; }

echo "== into the spool"
before=$(cpu)
"$BIN/loadgen" send --to "$input" --frames "${MILLIONS}000000" --sizes 130
per_frame "${MILLIONS}000000" "$before" "$(cpu)"
memory

echo "== out of it, while 500 000 frames/s arrive"
"$BIN/loadgen" send --to "$input" --rate 500k --duration 20s --sizes 130 > "$folder/send" &
arriving=$!
before=$(cpu) began=$(now)
"$BIN/loadgen" sink --listen "$output" --streams 2 --time-limit 120s > "$folder/sink" &
sink=$!
# Empty but for what is on its way: a segment.
until [ "$(du -sm "$folder/spool" | cut -f1)" -le 128 ]; do sleep 0.1; done
awk -v n="$MILLIONS" -v from="$began" -v to="$(now)" \
    'BEGIN { t = to - from; printf "a backlog of %d million frames in %.1f s: %.2f million frames/s\n", n, t, n / t + 0.5 }'
wait "$arriving" "$sink"
per_frame "$((MILLIONS + 10))000000" "$before" "$(cpu)"
memory
cat "$folder/sink"
