#!/bin/sh
# A disk that fails ends no run: each save that fails is told in one line, the next one tries again, the last one twice, and the exit code
# is 5 unless the last step is on disk. The faults come from tests/fail_disk.c, on rank 0.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run-whole
shim=$build/tests/libspt_fail_disk.so${LD_PRELOAD:+:$LD_PRELOAD}
mpi 2 --set schedule.steps=40 job.toml >log 2>&1 || { cat log; fail whole; }

# with FAULTS RUN ARGUMENT...: the same run with faults; its status in $status, its lines in err.log
with() {
    faults=$1 output=$2
    shift 2
    status=0
    SPT_FAULTS=$faults sh "$mpi_run" 2 env LD_PRELOAD="$shim" "$trainer" --threads 1 --set run.output="$output" --set schedule.steps=40 "$@" job.toml \
        >log 2>err.log || status=$?
}
# ended CODE UNSAVED LINES: exit code, lines about saves that failed, and lines of ours in all
ended() {
    unsaved=$(grep -c '^spectron-dist: step [0-9]* is not saved: .*run.*: .*; ' err.log || true)
    lines=$(grep -c '^spectron' err.log || true)
    [ "$status $unsaved $lines" = "$1 $2 $3" ] || { cat log err.log; fail "'$faults': exit $status, $unsaved failed saves, $lines lines instead of $1, $2, $3"; }
    [ -z "$(find "$output" -name '*.part')" ] || fail "'$faults' left $(find "$output" -name '*.part')"
}
# complete RUN: nothing of it differs from the undisturbed run
complete() {
    "$compare" run-whole/checkpoints/step-00000040.h5 "$1/checkpoints/step-00000040.h5" 0 || fail "$1 ends in another state"
    same_losses run-whole "$1" 0
}
steps_of() { (cd "$1/checkpoints" && echo step-*.h5) | sed 's/step-0*\([0-9]*\)\.h5/\1/g'; }

note "a failed save, then good ones"
with 'pwrite:EIO:step-00000010.h5.part' run-once
ended 0 1 1
grep -q 'step 10 is not saved: .*step-00000010.h5.part: writing failed: Input/output error; there is no checkpoint yet; training goes on' err.log || { cat err.log; fail "the line"; }
[ "$(steps_of run-once)" = "20 30 40" ] || fail "run-once holds $(steps_of run-once)"
complete run-once

note "every kind of failure, to the end: the older checkpoint stays"
faults='open:EROFS:step-00000020.h5 fallocate:ENOSPC:step-00000030.h5 pwrite:EDQUOT:step-00000040.h5 fsync:EIO:step-00000050.h5'
with "$faults close:EIO:step-00000060.h5 rename:ESTALE:step-00000070.h5 fsync:EIO:step-00000080.h5" run-kinds --set checkpoint.keep=1 --set schedule.steps=80
ended 5 8 9
for line in '20 is .*: creating failed: Read-only' '30 is .*: no space left' '40 is .*: no space left' '50 is .*: fsync failed: Input' '60 is .*: close failed: Input' \
    '70 is .*: renaming the finished file failed: Stale'; do
    grep -q "^spectron-dist: step $line" err.log || { cat err.log; fail "no '$line'"; }
done
grep -q 'the run ends at step 80 and is not saved (.*fsync.*); the newest checkpoint is of step 10: ' err.log || { cat err.log; fail "the last line"; }
[ "$(steps_of run-kinds)" = 10 ] || fail "run-kinds holds $(steps_of run-kinds)"
[ "$(wc -l <run-kinds/metrics.jsonl)" = 80 ] || fail "metrics.jsonl has $(wc -l <run-kinds/metrics.jsonl) lines"
mpi 2 --resume --set run.output=run-kinds --set schedule.steps=80 job.toml >log 2>&1 || { cat log; fail "resume after failed saves"; }
grep -q '^resumed at step 10 ' log || { cat log; fail "not resumed at step 10"; }
mpi 2 --set run.output=run-80 --set schedule.steps=80 job.toml >log 2>&1 || { cat log; fail "80 steps"; }
"$compare" run-80/checkpoints/step-00000080.h5 run-kinds/checkpoints/step-00000080.h5 0

note "the last step, saved at the second try"
with 'fsync:EIO:step-00000040.h5.part:1' run-second
ended 0 1 1
complete run-second

note "best.h5 that cannot be made is made later, and nothing is removed before"
still='--set optimizer.lr=1e-30 --set checkpoint.keep=1 --set validation.every=20' # the first validation stays the best
# shellcheck disable=SC2086
with 'link:EIO:step-00000020.h5 open:EIO:best.h5.part:1' run-best $still
ended 0 0 1
grep -q '^spectron-dist: step 20 is saved, but .*best.h5.part: creating failed: Input/output error' err.log || { cat err.log; fail "the line on best.h5"; }
"$spectron" inspect run-best/checkpoints/best.h5 | grep -q '^step: 20$' || fail "best.h5 is not of step 20"
[ "$(steps_of run-best)" = 40 ] || fail "run-best holds $(steps_of run-best)"
# shellcheck disable=SC2086
with 'link:EIO:step-00000020.h5 open:EIO:best.h5.part' run-no-best $still
ended 5 0 4
[ "$(steps_of run-no-best)" = "10 20 30 40" ] || fail "run-no-best holds $(steps_of run-no-best)"
note "a best state that could not be saved is not the one to beat"
# shellcheck disable=SC2086
with 'rename:EIO:step-00000020.h5' run-lost-best $still
ended 0 1 1
"$spectron" inspect run-lost-best/checkpoints/best.h5 | grep -q '^step: 40$' || fail "best.h5 is not of step 40"

note "records that cannot be written wait in memory"
with 'pwrite:ENOSPC:metrics.jsonl:23' run-records
ended 0 0 1
complete run-records
grep -q '^step [0-9]*: all records are written$' log || { cat log; fail "the records' return is not told"; }
with 'fsync:EIO:metrics.jsonl:1 rename:EIO:metrics.h5.part:1' run-records-2
ended 0 0 1
complete run-records-2
with 'pwrite:ENOSPC:metrics.jsonl' run-no-records
ended 5 0 2
grep -q 'step 40 is saved, but the records are not complete: .*metrics.jsonl' err.log || { cat err.log; fail "the line on records"; }

note "a file system without fallocate and without locks"
for error in EOPNOTSUPP EINVAL; do
    with "fallocate:$error:.part flock:ENOLCK:/" run-$error
    ended 0 0 0
    complete run-$error
done
with "fallocate:EOPNOTSUPP:.part pwrite:ENOSPC:step-00000020.h5.part" run-full
ended 0 1 1
complete run-full
SPT_FAULTS="flock:ENOLCK:/" LD_PRELOAD=$shim "$spectron" tokenize --tokenizer byte --output data-unlocked text/prose.txt >log 2>&1 || { cat log; fail "tokenize"; }

# in_the_background FAULTS ARGUMENT...
launcher=
trap '[ -z "$launcher" ] || kill "$launcher" 2>/dev/null || :; rm -rf "$work"' EXIT
in_the_background() {
    SPT_FAULTS=$1
    export SPT_FAULTS
    shift
    : >log
    sh "$mpi_run" 2 env LD_PRELOAD="$shim" "$trainer" --threads 1 --set schedule.steps=1000000 --set validation.every=0 "$@" job.toml >log 2>&1 &
    launcher=$!
    unset SPT_FAULTS
}
note "a stop: never 75 when the step is not saved"
in_the_background 'rename:EACCES:checkpoints/step-' --set run.output=run-stopped
wait_line 'is not saved' 2
leaves 5
grep -q '^spectron-dist: the run ends at step [0-9]* and is not saved' log || { tail log; fail "the line of the stop"; }

note "a folder that vanishes, and comes back"
in_the_background '' --set run.output=run-vanished --set checkpoint.keep=2
wait_line '^saved ' 1
mv run-vanished run-elsewhere
wait_line 'is not saved: .*No such file or directory' 2
saves=$(grep -c '^saved ' log)
mv run-elsewhere run-vanished
wait_line '^saved ' $((saves + 2))
leaves 75
last=$(wc -l <run-vanished/metrics.jsonl)
[ "$(losses run-vanished | awk '$1 != NR { print NR; exit }')" = "" ] || fail "run-vanished/metrics.jsonl does not hold each step once"
"$spectron" inspect "$(printf 'run-vanished/checkpoints/step-%08d.h5' "$last")" >/dev/null || fail "the last step is not saved"

note "what a killed save left is removed at the start"
echo half >run-vanished/checkpoints/step-00000007.h5.part
mpi 2 --resume --set run.output=run-vanished --set schedule.steps=$((last + 1)) --set validation.every=0 job.toml >log 2>&1 || { cat log; fail "resume beside a .part"; }
[ -z "$(find run-vanished -name '*.part')" ] || fail "the .part is still there"
