#!/usr/bin/env bash
# Shows what arrives through checkpoints, at collectors that are killed, and at the members of a group:
# benches/delivery.sh ROW..., or `all`; without a row it lists them.
#
# Collectors, the relay and the generator are processes of their own. `loadgen sink` verifies every frame and tells how
# evenly they came; the last lines of a row are what the relay counted. A row takes half a minute, and fails if a frame is
# missing or altered, or comes twice although nothing was killed. Needs jq and socat, and fstrm_capture and dnstap for
# the rows named after them.
set -euo pipefail
cd "$(dirname "$0")/.."

RATE=${RATE:-200k}             # frames/s of checkpoint-* and killed-*
GROUP_RATE=${GROUP_RATE:-1M}   # and of group-*
SECONDS_SENT=${SECONDS_SENT:-15}
BIN=$PWD/${BIN:-target/release}
TYPE=protobuf:dnstap.Dnstap

ROWS=(checkpoint-{sink,capture,dnstap}-{unix,tcp} killed-{sink,capture,dnstap}-{unix,tcp}
    group-{round_robin,least_backlog,sticky} group-{killed,stopped,faults})

# Processes by name; what is left of them ends with the script.
declare -A PIDS
start() {
    "${@:2}" >"$1.out" 2>"$1.err" &
    PIDS[$1]=$!
}
finish() {
    local status=0
    wait "${PIDS[$1]}" || status=$?
    unset "PIDS[$1]"
    return $status
}
stop() { kill -TERM "${PIDS[$1]}" && finish "$1"; }
murder() { kill -KILL "${PIDS[$1]}" && ! finish "$1" 2>/dev/null; }

until_there() {
    local tries
    for tries in {1..500}; do
        case $1 in
            unix:*) [ ! -S "${1#unix:}" ] || return 0 ;;
            tcp:*)  [ -z "$(ss -Hltn "sport = :${1##*:}")" ] || return 0 ;;
        esac
        sleep 0.01
    done
    echo "nothing listens on $1" >&2
    return 1
}

# An address to listen on, of its own for each name.
address() {
    case $TRANSPORT in
        unix) echo "unix:$1.sock" ;;
        tcp)  echo "tcp://127.0.0.1:$((16000 + $(printf %s "$1" | cksum | cut -d' ' -f1) % 10000))" ;;
    esac
}

# Options of other programs for an address.
fstrm_options() { case $1 in unix:*) echo -u "${1#unix:}" ;; tcp:*) echo -a 127.0.0.1 -p "${1##*:}" ;; esac; }
dnstap_options() { case $1 in unix:*) echo -u "${1#unix:}" ;; tcp:*) echo -l "${1#tcp://}" ;; esac; }

start_capture() {   # NAME ADDRESS FILE
    [ "${2#unix:}" = "$2" ] || rm -f "${2#unix:}"
    # shellcheck disable=SC2046
    start "$1" fstrm_capture -t $TYPE -w "$3" $(fstrm_options "$2")
    until_there "$2"
}
start_dnstap() {    # NAME ADDRESS: what it reads goes to `sink`
    # shellcheck disable=SC2046
    start "$1" dnstap $(dnstap_options "$2") -U sink.sock
    until_there "$2"
}
start_sink() {      # ADDRESS OPTION...
    start sink "$BIN/loadgen" sink --listen "$@" --time-limit 120s
    until_there "$1"
}
start_relay() {     # ADDRESS KEYS
    start relay "$BIN/tapster" run --listen unix:in.sock --to "$1?when_full=block&$2" --summary summary.json
    until_there unix:in.sock
}
start_load() {      # RATE OPTION...
    start load "$BIN/loadgen" send --to unix:in.sock --rate "$1" --duration "${SECONDS_SENT}s" "${@:2}"
}

# The dnstap command keeps its last 4 KiB for five seconds: sends one more frame that is longer, without a mark.
push() {
    { printf '\0\0\0\0\0\0\0\x22\0\0\0\x2\0\0\0\x1\0\0\0\x16%s' $TYPE
      printf '\0\0\x20\0'; head -c 8192 /dev/zero
      printf '\0\0\0\0\0\0\0\x4\0\0\0\x3'; } >push.fstrm
    "$BIN/tapster" replay push.fstrm --to unix:in.sock
    sleep 1
}

# Prints what the sink has and what the relay counted, and fails if anything else is wrong than may be.
collect() {         # PATTERN
    local wrong=0
    finish sink || wrong=$?
    grep -v 'of these' sink.out
    jq -c '.outputs[0] | {frames_sent, frames_acknowledged, frames_unacknowledged, frames_resent, frames_dropped,
        connections, sessions_finished}, (.members[]? | {to, frames_sent, frames_resent, frames_given_back})' summary.json
    # Frames may come in another order around a checkpoint and among the members of a group.
    ! grep '^wrong' sink.out | grep -vE 'reordered$|within a frame$' | grep -vE "$1"
}
NONE='^$' TWICE='duplicate$'

checkpoint() {      # COLLECTOR
    local collector=$1 to sink=unix:sink.sock
    to=$(address "$collector")
    case $collector in
        sink) sink=$to; start_sink "$sink" --streams 1 ;;
        capture)
            # Its file is a pipe: what it writes is seen as it comes, and kept.
            start_sink "$sink" --streams 1
            mkfifo capture.fifo
            start pipe bash -c 'tee capture.fstrm <capture.fifo | socat -u - UNIX-CONNECT:sink.sock'
            start_capture capture "$to" capture.fifo ;;
        dnstap) start_sink "$sink" --streams 1; start_dnstap dnstap "$to" ;;
    esac
    start_relay "$to" 'checkpoint=1s&queue=256MiB'
    start_load "$RATE"
    finish load; cat load.out
    [ "$collector" != dnstap ] || push
    stop relay
    case $collector in
        capture) stop capture; finish pipe; "$BIN/tapster" inspect --limit 0 capture.fstrm ;;
        dnstap)  stop dnstap || true ;;
    esac
    collect "$NONE"
}

killed() {          # COLLECTOR
    local collector=$1 to sink=unix:sink.sock acknowledged
    to=$(address "$collector")
    case $collector in
        sink)    sink=$to; start first "$BIN/loadgen" sink --listen "$to"; until_there "$to" ;;
        capture) start_capture capture "$to" first.fstrm ;;
        dnstap)  start_sink "$sink" --streams 1; start_dnstap dnstap "$to" ;;
    esac
    start_relay "$to" 'checkpoint=1s&queue=512MiB'
    start_load "$RATE"
    sleep "$((SECONDS_SENT / 2)).4"
    case $collector in
        sink)    murder first; start_sink "$sink" --streams 1 ;;
        capture) murder capture; start_capture capture "$to" second.fstrm ;;
        dnstap)  murder dnstap; rm -f dnstap.sock; start_dnstap dnstap "$to" ;;
    esac
    finish load; cat load.out
    [ "$collector" != dnstap ] || push
    stop relay
    grep frames_unacknowledged relay.err
    case $collector in
        capture)
            stop capture
            start_sink "$sink" --streams 1
            "$BIN/tapster" replay first.fstrm second.fstrm --to "$sink" || true ;;   # The first is cut.
        dnstap)  stop dnstap || true ;;
    esac
    # What the first sink had is gone with it.
    if [ "$collector" = sink ]; then collect "missing$"; else collect "$TWICE"; fi
}

group() {           # BALANCE
    start_sink unix:a.sock --listen unix:b.sock --listen unix:c.sock --listen unix:d.sock --group --streams 8
    until_there unix:d.sock
    start_relay unix:a.sock "to=unix:b.sock&to=unix:c.sock&to=unix:d.sock&balance=$1&ack=received&queue=512MiB"
    start_load "$GROUP_RATE" --connections 8
    finish load; cat load.out
    stop relay
    collect "$NONE"
}

# Of four members `a` is killed and returns, `b` is stopped for three seconds: both are fstrm_capture, and what they have is
# sent to `late` in the end. The longest latency at `c` and `d` is that of the frames that `a` and `b` left to them; with a
# checkpoint that includes frames which those had, and FINISH did not cover.
group_faults() {    # KILLED STOPPED KEYS
    local third=$((SECONDS_SENT / 3))
    start_sink unix:c.sock --listen unix:d.sock --listen unix:late.sock --group
    until_there unix:late.sock
    start_capture a unix:a.sock a1.fstrm
    start_capture b unix:b.sock b.fstrm
    start_relay unix:a.sock "to=unix:b.sock&to=unix:c.sock&to=unix:d.sock&queue=512MiB&$3"
    start_load "$GROUP_RATE" --connections 8
    sleep "$third"
    if "$1"; then murder a; sleep 2; start_capture a unix:a.sock a2.fstrm; sleep 2; fi
    if "$2"; then kill -STOP "${PIDS[b]}"; sleep 3; kill -CONT "${PIDS[b]}"; fi
    finish load; cat load.out
    stop relay
    stop a; stop b
    "$BIN/tapster" replay ./*.fstrm --to unix:late.sock || true
    kill -INT "${PIDS[sink]}"
    collect "$TWICE"
}

row() (
    FOLDER=$(mktemp -d)
    trap 'kill -KILL ${PIDS[@]} 2>/dev/null || true; rm -rf "$FOLDER"' EXIT
    cd "$FOLDER"
    printf '\n== %s\n' "$1"
    TRANSPORT=${1##*-}
    case $1 in
        checkpoint-*-*) checkpoint "$(cut -d- -f2 <<<"$1")" ;;
        killed-*-*)     killed "$(cut -d- -f2 <<<"$1")" ;;
        group-killed)   group_faults true false checkpoint=16MiB ;;
        group-stopped)  group_faults false true ack=received ;;
        group-faults)   group_faults true true checkpoint=16MiB ;;
        group-*)        group "${1#group-}" ;;
    esac
)

if [ $# -eq 0 ]; then
    echo "rows: ${ROWS[*]}; all"
    exit
fi
if [ "$1" = all ]; then set -- "${ROWS[@]}"; fi
failed=()
for name; do
    [[ " ${ROWS[*]} " = *" $name "* ]] || { echo "no row is called $name; there are: ${ROWS[*]}" >&2; exit 2; }
    # Not in a condition: `set -e` holds within.
    set +e; (set -e; row "$name"); status=$?; set -e
    if [ $status -ne 0 ]; then failed+=("$name"); echo "failed: $name"; fi
done
[ ${#failed[@]} -eq 0 ]
