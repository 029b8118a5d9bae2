#!/usr/bin/env bash
# Measures rows of the table in benches/README.md: benches/table.sh ROW..., or `all`; without a row it lists them.
#
# Every row compares within the rounds of one run (11, or ROUNDS; at most 7 of peers-*), takes less than two minutes of a machine on which
# nothing else runs, prints its tables, and writes ROW.json into the folder of the results (RESULTS, target/bench).
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-11}
RESULTS=${RESULTS:-target/bench}
LOADGEN=${LOADGEN:-target/release/loadgen}

SPOOL=${TMPDIR:-/tmp}/tapster-bench-spool.$$

EPOLL=(--variant epoll:backend=epoll)
# One CPU for everything, ahead of other processes: what wakes another CPU takes 40 microseconds of a virtual machine.
ONE_CPU=(--pin 0:0 --class fifo)
SMALL=(--connections 32 --write-size 1B)

# Sets the arguments of `loadgen bench` for a row, and how long the generator sends in every round.
row_arguments() {
    duration=1s rounds=$ROUNDS
    case $1 in
        unix-[124])    arguments=(--outputs "${1#*-}" "${EPOLL[@]}" --against floor) ;;
        tcp-[124])     arguments=(--transport tcp --outputs "${1#*-}" "${EPOLL[@]}" --against floor) ;;
        writers-4)     arguments=(--connections 4 --outputs 2 "${EPOLL[@]}" --against floor) ;;
        writers-32)    arguments=(--connections 32 --outputs 2 "${EPOLL[@]}" --against floor) ;;
        small-[12])    arguments=("${SMALL[@]}" --outputs "${1#*-}" --against floor) ;;
        small-200k-[12])
            arguments=("${SMALL[@]}" --rate 200k --outputs "${1##*-}" --against floor,direct) ;;
        peers-[124])
            # The dnstap command keeps its last frames for five seconds: fewer rounds stay within two minutes.
            rounds=$((ROUNDS < 7 ? ROUNDS : 7))
            arguments=(--pin none --outputs "${1#*-}" --against floor,dnstap,haproxy,socat) ;;
        workers)
            arguments=(--pin none --connections 4 --outputs 2 --against floor
                --variant per_worker:workers=2,connections=per_worker --variant one:workers=2,connections=1) ;;
        latency)
            arguments=(--rate 1000 "${ONE_CPU[@]}" "${EPOLL[@]}" --against floor,direct) ;;
        lone)
            duration=3s rounds=$((ROUNDS < 5 ? ROUNDS : 5))
            arguments=(--rate 20 "${ONE_CPU[@]}" "${EPOLL[@]}" --against direct) ;;
        spool)
            # A folder of the disk, where that of temporary files is in memory: TMPDIR=/var/tmp.
            local disk="when_full=,buffer=disk,spool.dir=$SPOOL,spool.on_full=block,spool.min_free=0B"
            duration=2s
            arguments=(--variant "disk:$disk" --variant "unsynced:$disk,spool.sync=none" --against floor) ;;
        memory)        arguments=(--outputs 4 --against floor) ;;
        *)             return 1 ;;
    esac
}

ROWS=(unix-1 unix-2 unix-4 tcp-1 tcp-2 tcp-4 writers-4 writers-32 small-1 small-2 small-200k-1 small-200k-2
    peers-1 peers-2 peers-4 workers latency lone idle memory spool)

measure() {
    local row=$1
    printf '\n== %s\n' "$row"
    if [ "$row" = idle ]; then
        "$LOADGEN" idle --connections 10000 --hold 10s --json | tee "$RESULTS/idle.json"
    elif row_arguments "$row"; then
        "$LOADGEN" bench --rounds "$rounds" --duration "$duration" --json "$RESULTS/$row.json" "${arguments[@]}"
    else
        echo "no row is called $row; there are: ${ROWS[*]}" >&2
        exit 2
    fi
}

if [ $# -eq 0 ]; then
    echo "rows: ${ROWS[*]}; all"
    exit
fi
if [ "$1" = all ]; then set -- "${ROWS[@]}"; fi
mkdir -p "$RESULTS"
for row; do
    measure "$row"
done
