#!/bin/sh
# A resumed run equals the uninterrupted one bit for bit on the same ranks, to rounding on another number; what may and may not change.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run-whole
mpi 2 job.toml >log 2>&1 || { cat log; fail whole; }
last=checkpoints/step-00000020.h5

note "an MPI without MPI_THREAD_MULTIPLE: said, saves are made in between, the same result"
sh "$mpi_run" 2 env LD_PRELOAD="$build/tests/libspt_pmpi.so${LD_PRELOAD:+:$LD_PRELOAD}" SPT_PMPI_SERIALIZED=1 "$trainer" --threads 1 --set run.output=run-serial job.toml >log 2>&1 ||
    { cat log; fail "one thread at a time"; }
grep -q 'note: this MPI does not support MPI_THREAD_MULTIPLE' log || { cat log; fail "the note is missing"; }
"$compare" run-whole/$last run-serial/$last 0

note "from step 10, same ranks"
mkdir -p run-half/checkpoints
cp run-whole/checkpoints/step-00000010.h5 run-half/checkpoints/
cp run-whole/metrics.jsonl run-half/
mpi 2 --resume --set run.output=run-half job.toml >log 2>&1 || { cat log; fail resume; }
"$compare" run-whole/$last run-half/$last 0
same_losses run-whole run-half 0
[ "$(wc -l <run-half/metrics.jsonl)" = 20 ] || fail "each step must stand once in metrics.jsonl"

note "stopped by USR1, resumed"
# not by the function: the signal must reach the launcher itself
sh "$mpi_run" 2 "$trainer" --threads 1 --set run.output=run-stopped --set checkpoint.every=0 --set schedule.steps=400 job.toml >log 2>&1 &
stop_after run-stopped 3 USR1 $!
saved=$(ls run-stopped/checkpoints | sed -n 's/^step-0*\([0-9]*\)\.h5$/\1/p' | tail -1)
[ "$saved" = "$(wc -l <run-stopped/metrics.jsonl)" ] || fail "saved step $saved is not the last recorded step"
[ "$saved" -lt 400 ] || fail "the run was not stopped early"
until=$((saved + 3))
# the schedule may end earlier than first said; both halves of the comparison then share it
cp -r run-stopped run-again
mpi 2 --resume --set run.output=run-stopped --set checkpoint.every=0 --set schedule.steps=$until job.toml >log 2>&1 || { cat log; fail "resume after USR1"; }
mpi 2 --resume --set run.output=run-again --set checkpoint.every=0 --set schedule.steps=$until job.toml >log 2>&1 || { cat log; fail "resume again"; }
file=$(printf 'checkpoints/step-%08d.h5' $until)
"$compare" "run-stopped/$file" "run-again/$file" 0

note "on other numbers of ranks"
for p in 1 3; do
    mkdir -p "run-on-$p/checkpoints"
    cp run-whole/checkpoints/step-00000010.h5 "run-on-$p/checkpoints/"
    mpi $p --resume --set run.output="run-on-$p" job.toml >log 2>&1 || { cat log; fail "resume on $p"; }
    "$compare" run-whole/$last "run-on-$p/$last" 1e-3
done

note "what a resume may change"
expect 2 'optimizer.lr' mpi 2 --resume --set run.output=run-half --set optimizer.lr=0.5 job.toml
expect 2 'model.layers' mpi 2 --resume --set run.output=run-half --set model.layers=3 job.toml
expect 2 'checkpoint' mpi 2 --set run.output=run-half job.toml
expect 2 'newer' mpi 2 --resume=run-whole/checkpoints/step-00000010.h5 --set run.output=run-half job.toml
mpi 1 --resume=run-whole/checkpoints/step-00000010.h5 --set run.output=run-named job.toml >log 2>&1 || { cat log; fail "resume by name"; }
"$compare" run-whole/$last run-named/$last 1e-3
mpi 2 --resume --set run.output=run-half --set schedule.steps=22 job.toml >log 2>&1 || { cat log; fail "more steps"; }
grep -q 'schedule.steps was 20, now 22' log || { cat log; fail "the change is not printed"; }
mpi 2 --resume --set run.output=run-fresh --set schedule.steps=2 job.toml >log 2>&1 || { cat log; fail "resume starts fresh"; }
[ -f run-fresh/checkpoints/step-00000002.h5 ] || fail "no checkpoint of the fresh run"

note "a branch: another method from a checkpoint's parameters"
mpi 2 --init-from run-whole/checkpoints/best.h5 --set run.output=run-branch --set optimizer.method=muon --set schedule.steps=2 job.toml >log 2>&1 || { cat log; fail branch; }
first=$(losses run-branch | awk 'NR == 1 { print $2 }')
fresh=$(losses run-whole | awk 'NR == 1 { print $2 }')
awk -v a="$first" -v b="$fresh" 'BEGIN { exit !(a < b - 0.1) }' || fail "the branch starts at $first, no better than a fresh model's $fresh"
mpi 1 --resume --init-from run-whole/checkpoints/best.h5 --set run.output=run-branch-2 --set checkpoint.resume=true --set schedule.steps=2 job.toml >log 2>&1 || { cat log; fail "a requeued branch"; }
again=$(losses run-branch-2 | awk 'NR == 1 { print $2 }')
awk -v a="$again" -v b="$fresh" 'BEGIN { exit !(a < b - 0.1) }' || fail "a branch with nothing to resume starts at $again"
expect 2 'its model.parameterization is "low-rank", this job.s "dense"' mpi 1 --init-from run-whole/checkpoints/best.h5 --set run.output=run-other --set model.parameterization=dense job.toml
expect 2 'model.hidden = ' mpi 1 --init-from run-whole/checkpoints/best.h5 --set run.output=run-other --set model.hidden=24 --set model.ffn=48 job.toml
expect 2 'heads' mpi 1 --init-from run-whole/checkpoints/best.h5 --set run.output=run-other --set model.heads=6 job.toml

note "best.h5, lost between a save and its link, comes back"
cp -r run-whole run-unlinked
rm run-unlinked/checkpoints/best.h5
mpi 2 --resume --set run.output=run-unlinked --set schedule.steps=21 --set validation.every=0 --set data.validation=[] job.toml >log 2>&1 || { cat log; fail "resume without best.h5"; }
"$compare" run-whole/checkpoints/best.h5 run-unlinked/checkpoints/best.h5 0

note "USR1 before the program runs waits until it can be heard"
status=0
env --block-signal=USR1 bash -c 'kill -USR1 $$; exec "$@"' - "$trainer" --threads 1 --set run.output=run-early --set schedule.steps=1000000 --set checkpoint.every=0 \
    job.toml >log 2>&1 || status=$?
[ $status = 75 ] && [ -e run-early/checkpoints/step-00000001.h5 ] || { cat log; fail "an early USR1: exit $status"; }

note "USR1 during a validation abandons it and saves"
sh "$mpi_run" 2 "$trainer" --threads 1 --set run.output=run-long --set checkpoint.every=0 --set validation.every=2 --set validation.tokens=0 --set batch.micro=1 --set data.validation='"data/*.h5"' \
    --set schedule.steps=400 job.toml >log 2>&1 &
stop_after run-long 1 USR1 $!
ls run-long/checkpoints/step-*.h5 >/dev/null || fail "nothing was saved"

note "TERM without a launcher saves too"
"$trainer" --threads 1 --set run.output=run-alone --set checkpoint.every=0 --set schedule.steps=4000 job.toml >log 2>&1 &
stop_after run-alone 1 TERM $!

note "and so do many, to its very end"
"$trainer" --threads 1 --resume --set run.output=run-alone --set checkpoint.every=0 --set schedule.steps=400000 job.toml >log 2>&1 &
wait_records run-alone $(($(wc -l <run-alone/metrics.jsonl) + 3))
while kill -TERM $! 2>/dev/null; do sleep 0.005; done
status=0; wait $! || status=$?
[ $status = 75 ] && [ ! -e run-alone/lock ] || { cat log; fail "many TERM gave exit $status, or a lock is left"; }
