#!/bin/sh
# A run that diverges ends with exit 4 and keeps what was good: no state that cannot be trained on takes its place.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
note "good steps first, saved at every step, one kept"
mpi 2 --set checkpoint.every=1 --set checkpoint.keep=1 --set schedule.steps=6 --set schedule.kind=constant --set run.output=run-good job.toml >log 2>&1 || { cat log; fail "good steps"; }

# diverges OUTPUT STEPS ARGUMENT...: from the good run's parameters, with steps far too large
diverges() {
    output=$1 steps=$2
    shift 2
    expect 4 'diverged' mpi 2 --init-from run-good/checkpoints/best.h5 --set optimizer.method=sgd --set optimizer.lr=1000 --set optimizer.adamw.lr=1000 \
        --set schedule.steps="$steps" --set schedule.warmup="$warmup" --set checkpoint.every=1 --set validation.every=1 --set run.output="$output" "$@" job.toml
    for file in "$output"/checkpoints/*.h5; do
        [ -e "$file" ] || continue
        "$spectron" inspect "$file" >log || { cat log; fail "$file is damaged"; }
        best=$(sed -n 's/^best validation loss: //p' log)
        case $best in *nan* | *inf* | "") fail "$file: best validation loss '$best'" ;; esac
    done
    # every loss that a checkpoint stands for is finite; the last record is the skipped step's
    if grep -E '"(loss|validation_loss)": *(nan|inf|NaN|Infinity)' "$output/metrics.jsonl"; then fail "non-finite numbers must be null"; fi
}
for warmup in 0 0.9; do
    note "to the end, and by the limit on skipped steps (warm-up $warmup)"
    diverges run-few-$warmup 7 --set checkpoint.keep=1
    diverges run-many-$warmup 300 --set checkpoint.keep=2
done
note "what the good run saved goes on"
mpi 2 --resume --set checkpoint.every=1 --set schedule.kind=constant --set schedule.steps=7 --set run.output=run-good job.toml >log 2>&1 || { cat log; fail "resume"; }
note "a stop while updates are skipped: nothing new was saved, and no 75 that would have the job started again and again"
"$build/tests/poison_checkpoint" run-good/checkpoints/step-00000007.h5 /model/model.layers.1.self_attn.v_proj.B 17 3.4e38 || fail "poisoning"
before=$(ls run-good/checkpoints)
expect 4 'stopped at step 8 while updates are skipped: nothing was saved since the start' env --block-signal=USR1 bash -c 'kill -USR1 $$; exec "$@"' - \
    "$trainer" --threads 1 --resume --set checkpoint.every=1 --set schedule.kind=constant --set schedule.steps=70 --set run.output=run-good job.toml
[ "$(ls run-good/checkpoints)" = "$before" ] || fail "something was saved"
