#!/bin/sh
# A rank that stops, hangs or dies: the others leave within the limit, one line says which rank, step and phase, nothing is left running.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run

# rank_pid LAUNCHER RANK: the process of a rank
rank_pid() {
    for process in $(pgrep -P "$1" -f spectron-dist); do
        if tr '\0' '\n' <"/proc/$process/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$2"; then echo "$process"; return; fi
    done
}
# start RUN: three ranks in the background; $launcher, and $pids of the ranks
start() {
    sh "$mpi_run" 3 "$trainer" --threads 1 --set run.output="$1" --set checkpoint.every=0 --set schedule.steps=1000000 --set validation.every=0 \
        --set dist.timeout_seconds=4 job.toml >log 2>&1 &
    launcher=$!
    wait_records "$1" 5
    pids=$(pgrep -P $launcher -f spectron-dist)
    [ "$(echo "$pids" | wc -l)" = 3 ] || fail "found $pids instead of three ranks"
}
# ended CODE PATTERN: within some seconds, with the code, the line, and no process left
ended() {
    began=$(date +%s)
    status=0; wait $launcher || status=$?
    took=$(($(date +%s) - began))
    [ $status = "$1" ] || { cat log; fail "exit $status instead of $1"; }
    grep -q "^spectron-dist: $2" log || { cat log; fail "no '$2' in the message"; }
    n=0
    for pid in $pids; do
        while kill -0 "$pid" 2>/dev/null; do n=$((n + 1)); [ $n -lt 50 ] || fail "process $pid is left"; sleep 0.1; done
    done
    note "left after $took s: $(grep -m 1 "^spectron-dist: $2" log)"
    [ $took -lt 20 ] || fail "it took $took s"
}

note "a stopped rank"
start run-stopped
pid=$(rank_pid $launcher 1)
kill -STOP "$pid"
ended 5 'rank 1 gives no sign of life for [0-9]* s, after step [0-9]*, in '
[ ! -e run-stopped/lock ] || fail "the lock is left: a start on another node would be refused"

note "the coordinator, stopped"
start run-coordinator
pid=$(rank_pid $launcher 0)
kill -STOP "$pid"
ended 5 'rank 0 gives no sign of life for [0-9]* s, after step [0-9]*, in '

note "a killed rank"
start run-killed
pid=$(rank_pid $launcher 2)
kill -KILL "$pid"
ended 137 'rank [01]: ended by signal 15 after step [0-9]*, in '
[ "$(grep -c '^spectron-dist: rank 2 died after step [1-9][0-9]*, in [a-z]' log)" = 1 ] || { cat log; fail "the rank that died is not named once, with step and phase"; }
[ ! -e run-killed/lock ] || fail "the lock is left: a start on another node would be refused"
! grep -q '^spectron-dist: rank [01] died' log || { cat log; fail "a rank that left is taken for a dead one"; }

# hang WHAT: three ranks, of which rank 1 hangs after some steps
hang() {
    sh "$mpi_run" 3 env "$1=1" LD_PRELOAD="$build/tests/libspt_fail_gather.so${LD_PRELOAD:+:$LD_PRELOAD}" "$trainer" --threads 1 --set run.output="run-$1" --set checkpoint.every=0 \
        --set schedule.steps=1000000 --set validation.every=0 --set dist.timeout_seconds=4 job.toml >log 2>&1 &
    launcher=$!
    wait_records "run-$1" 5
    pids=$(pgrep -P $launcher -f spectron-dist || true)
}
note "a rank whose reading hangs"
hang SPT_HANG_READ
ended 5 'rank 1 makes no progress for [0-9]* s, after step [0-9]*, in forward and backward'

note "a collective that hangs"
hang SPT_HANG_GATHER
ended 5 'no rank makes progress for [0-9]* s, after step [0-9]*, in parameter gather'

note "suspended as a whole for longer than the limit, it goes on"
start run-suspended
# shellcheck disable=SC2086
kill -STOP $pids
sleep 7
steps=$(wc -l <run-suspended/metrics.jsonl)
# shellcheck disable=SC2086
kill -CONT $pids
wait_records run-suspended $((steps + 50))
kill -USR1 $launcher
status=0; wait $launcher || status=$?
[ $status = 75 ] || { cat log; fail "exit $status instead of 75"; }
