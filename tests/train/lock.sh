#!/bin/sh
# The lock of a run's folder, with whole runs: a second run is refused and harms nothing, a dead run's lock is taken over, another host's and another
# Slurm job's is not, of several starts in the same instant one wins, a lock that is removed does not let two runs mix. Then all of a run
# on a file system that has neither locks nor reservations, as some network file systems. SPT_LOCK_RACES: how many races (4).
. "$(dirname "$0")/lib.sh"
trap 'pkill -KILL -P $$ || :; rm -rf "$work"' EXIT # its own runs only
make_data
make_job job.toml run
unset SLURM_JOB_ID
host=$(hostname)
quick="--set schedule.kind=constant --set schedule.warmup=0 --set validation.every=0 --set checkpoint.every=0"
# start RUN ARGUMENT...: one rank without a launcher, in the background; $process
start() {
    run=$1
    shift
    # shellcheck disable=SC2086
    "$trainer" --threads 1 --set run.output="$run" --set schedule.steps=1000000 $quick "$@" job.toml >log 2>&1 &
    process=$!
    wait_records "$run" 3
}

note "two runs at once: the second is refused, the first goes on unharmed"
mpi 2 --set run.output=run-alone --set schedule.steps=12 $quick job.toml >log 2>&1 || { cat log; fail alone; }
start run
expect 2 "run/lock: another run uses this folder: host $host, process $process, Slurm job -; wait for it" mpi 2 $quick job.toml
expect 2 "process $process" "$trainer" --threads 1 --resume $quick job.toml
records=$(wc -l <run/metrics.jsonl)
wait_records run $((records + 10))
same_start() { head -n 10 run-alone/metrics.jsonl >a && sed -n 1,10p "$1/metrics.jsonl" >b; mkdir -p head-a head-b; mv a head-a/metrics.jsonl; mv b head-b/metrics.jsonl; same_losses head-a head-b 2e-5; }
same_start run

note "a killed run's lock is taken over"
kill -KILL $process
wait $process 2>/dev/null || :
grep -q "process $process " run/lock || fail "a killed run leaves its lock"
mpi 2 --resume --set schedule.steps=12 $quick job.toml >log 2>&1 || { cat log; fail "taking over"; }
[ ! -e run/lock ] || fail "the lock is left"
"$compare" run-alone/checkpoints/step-00000012.h5 run/checkpoints/step-00000012.h5 0

note "another host's lock, and another Slurm job's there"
for job in - 4711; do
    echo "host elsewhere process 123 slurm_job $job since 2020-01-01T00:00:00Z" >run/lock
    SLURM_JOB_ID=4712 expect 2 "run/lock: another run uses this folder: host elsewhere, process 123, Slurm job $job; if that run is dead, remove this file" \
        "$trainer" --threads 1 --resume --set schedule.steps=13 $quick job.toml
done
SLURM_JOB_ID=4711 "$trainer" --threads 1 --resume --set schedule.steps=13 $quick job.toml >log 2>&1 || { cat log; fail "a requeued job is refused its own folder"; }

note "starts in the same instant"
races=${SPT_LOCK_RACES:-4} race=0
while [ $race -lt "$races" ]; do
    race=$((race + 1))
    rm -rf run-race && mkdir run-race
    [ $((race % 2)) = 0 ] || echo "host $host process $process slurm_job - since 2020-01-01T00:00:00Z" >run-race/lock
    runners=
    for i in 1 2 3; do
        # shellcheck disable=SC2086
        "$trainer" --threads 1 --resume --set run.output=run-race --set schedule.steps=1000000 $quick job.toml >race-$i.log 2>&1 &
        runners="$runners $!"
    done
    n=0
    until [ "$(grep -l '^spectron-dist: .*another run uses this folder' race-?.log | wc -l)" = 2 ]; do
        n=$((n + 1)); [ $n -lt 600 ] || { cat race-?.log; fail "not two of three starts are refused"; }
        sleep 0.1
    done
    wait_records run-race 3
    i=0 won=0 refused=0
    for runner in $runners; do
        i=$((i + 1))
        grep -q 'another run uses' race-$i.log || kill -USR1 "$runner"
        status=0; wait "$runner" || status=$?
        case $status in 75) won=$((won + 1)) ;; 2) refused=$((refused + 1)) ;; *) cat race-$i.log; fail "exit $status" ;; esac
    done
    [ $won = 1 ] && [ $refused = 2 ] || fail "$won of three starts won, $refused were refused"
    [ ! -e run-race/lock ] || fail "the lock is left"
done
note "$races races, one winner each"

note "the lock is removed, and another run starts: the first stops at its next save and leaves the other's files"
start run-first --set checkpoint.every=100
first=$process
mv log first.log
kill -STOP $first # or its next save would make the lock again before the second run has started
rm run-first/lock
# shellcheck disable=SC2086
"$trainer" --threads 1 --resume --set run.output=run-first --set schedule.steps=1000000 $quick job.toml >log 2>&1 &
second=$!
n=0
until grep -qs "process $second " run-first/lock; do n=$((n + 1)); [ $n -lt 600 ] || { cat log; fail "no second run"; }; sleep 0.1; done
kill -CONT $first
status=0; wait $first || status=$?
[ $status = 2 ] || { cat first.log; fail "exit $status instead of 2"; }
grep -q "^spectron-dist: .*run-first/lock: was removed or replaced .* process $second," first.log || { cat first.log; fail "the other run is not named"; }
grep -q "process $second " run-first/lock || fail "the first run removed the other's lock"
kill -USR1 $second
status=0; wait $second || status=$?
[ $status = 75 ] || { cat log; fail "the second run: exit $status"; }

note "a file system without locks and reservations"
shim="$build/tests/libspt_network_disk.so${LD_PRELOAD:+:$LD_PRELOAD}"
bare() { sh "$mpi_run" 2 env LD_PRELOAD="$shim" "$trainer" --threads 1 "$@"; }
bare --set run.output=run-bare --set checkpoint.every=5 --set schedule.steps=10 job.toml >log 2>&1 || { cat log; fail "a run there"; }
bare --resume --set run.output=run-bare --set checkpoint.every=5 --set schedule.steps=20 job.toml >log 2>&1 || { cat log; fail "a resume there"; }
mpi 2 --set run.output=run-plain --set checkpoint.every=5 --set schedule.steps=10 job.toml >log 2>&1 || { cat log; fail plain; }
mpi 2 --resume --set run.output=run-plain --set checkpoint.every=5 --set schedule.steps=20 job.toml >log 2>&1 || { cat log; fail plain; }
"$compare" run-plain/checkpoints/step-00000020.h5 run-bare/checkpoints/step-00000020.h5 0
env LD_PRELOAD="$shim" "$spectron" tokenize --tokenizer byte --documents blank-line --validation-share 0.1 \
    --output data-bare text/prose.txt >log 2>&1 || { cat log; fail "shards there"; }
cmp data/train-00000.h5 data-bare/train-00000.h5 || fail "other shards there"
LD_PRELOAD="$shim" "$trainer" --threads 1 --set run.output=run-held --set schedule.steps=1000000 $quick job.toml >log 2>&1 &
process=$!
wait_records run-held 3
expect 2 "process $process" env LD_PRELOAD="$shim" "$trainer" --threads 1 --resume --set run.output=run-held job.toml
stop_after run-held 3 USR1 $process
