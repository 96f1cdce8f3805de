#!/bin/sh
# [guidance]: the same training on any number of ranks; a resume before, at and after its end; the guides gone then; validations with and without them.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
# guidance ends at step 4 of 9; saves at 2, 4, 6, 8, 9
sed -i 's/^tokens = 2048/tokens = 1024/; s/^every = 10/every = 2/; s/^steps = 20/steps = 9/; s/^lr = 0.02/lr = 0.02\ngrad_clip = 0.5/
    s/^\[schedule\]/[guidance]\nmethod = "self-guided"\nfraction = 0.4\n[schedule]/' job.toml
last=checkpoints/step-00000009.h5
run() { # NAME RANKS OPTION...
    name=$1 p=$2
    shift 2
    mpi "$p" --set run.output="run-$name" "$@" job.toml >log 2>&1 || { cat log; fail "$name"; }
}
same() { "$compare" "run-$1/$last" "run-$2/$last" 0 || fail "$1 and $2 differ"; }
goes_on() { # NAME RANKS STEP NEW OPTION...: run NAME's checkpoint of a step, as the newest of a new run
    from=$1 p=$2 new=$4
    mkdir -p "run-$new/checkpoints"
    cp "run-$from/checkpoints/step-0000000$3.h5" "run-$new/checkpoints/"
    shift 4
    run "$new" "$p" --resume "$@"
}
# guides FILE NUMBER: the checkpoint is sound and holds so many elements of guides
guides() {
    "$spectron" inspect "$1" >inspect.log || { cat inspect.log; fail "inspect $1"; }
    found=$(sed -n 's/^guides: \([0-9]*\) values/\1/p' inspect.log)
    [ "${found:-0}" = "$2" ] || { cat inspect.log; fail "$1 holds ${found:-no} elements of guides instead of $2"; }
}
value() { sed -n "s/^{\"step\":$2,.*\"$3\":\([^,}]*\).*/\1/p" "run-$1/metrics.jsonl"; }

# each: name, ranks beside 2, steps to resume at, options
while read -r kind ranks steps options; do
    note "$kind: $ranks and 2 ranks"
    for p in 2 $(echo "$ranks" | tr , ' '); do
        # shellcheck disable=SC2086
        run "$kind-$p" "$p" $options </dev/null
        [ "$p" = 2 ] || same_losses "run-$kind-2" "run-$kind-$p" 5e-5
    done
    for step in $(echo "$steps" | tr , ' '); do
        note "$kind: a resume at step $step; guidance ends at 4"
        # shellcheck disable=SC2086
        goes_on "$kind-2" 2 "$step" "$kind-from-$step" $options </dev/null
        same "$kind-2" "$kind-from-$step"
    done
done <<END
spectron 1,3 2,4,6
adamw 3 2 --set optimizer.method=adamw --set optimizer.lr=0.003
stochastic 1 2 --set guidance.stochastic=true --set optimizer.method=muon --set dist.reduction=reduce-scatter
END

note "the guides: 7 matrices of 2 layers until step 4, none from then on; the parameters are counted without them"
guides run-spectron-2/checkpoints/step-00000002.h5 41472
grep -q '^model: 45648 parameters' inspect.log || { cat inspect.log; fail "parameters beside guides"; }
for step in 4 6 9; do guides run-spectron-2/checkpoints/step-0000000$step.h5 0; done
mpi 1 --set run.output=run-dry --dry-run job.toml >log
grep -q '^guides *41472 .*first 4 of 9 steps' log && grep -q '^parameters *45648$' log && grep -q '^  guidance .*on top' log || { cat log; fail "dry run"; }
[ "$(value spectron-2 1 guidance_alpha)" = 1.0 ] && [ -n "$(value spectron-2 4 guidance_alpha)" ] && [ -z "$(value spectron-2 5 guidance_alpha)" ] ||
    fail "guidance_alpha of steps 1, 4, 5: $(value spectron-2 1 guidance_alpha), $(value spectron-2 4 guidance_alpha), $(value spectron-2 5 guidance_alpha)"
[ "$(value spectron-2 4 validation_loss)" != "$(value spectron-2 4 validation_loss_low_rank)" ] || fail "the last guided step is not validated as trained"
[ -z "$(value spectron-2 6 validation_loss_low_rank)" ] || fail "a second loss at step 6"

note "the end of guidance keeps all else, bit for bit, on its rank"
for p in 1 3; do
    for method in spectron adamw sgd; do
        sh "$mpi_run" $p "$build/tests/guidance_end" job.toml "run.output=run-end-$p-$method" "optimizer.method=$method" device.threads=1 >log 2>&1 ||
            { cat log; fail "the end of guidance: $method, $p ranks"; }
    done
done
note "without guides it validates as a low-rank model of these factors; best.h5 goes by that"
run plain 2 --init-from run-spectron-2/checkpoints/step-00000002.h5 --set guidance.method=none --set optimizer.lr=1e-30 --set schedule.steps=1
kept=$(value spectron-2 2 validation_loss_low_rank)
[ "$(value plain 1 validation_loss)" = "$kept" ] || fail "validation losses $(value plain 1 validation_loss) and $kept"
[ "$(value spectron-2 2 validation_loss)" != "$kept" ] || fail "the guides change nothing"
guides run-spectron-2/checkpoints/step-00000002.h5 41472
grep -q "^best validation loss: $(printf '%.6f' "$kept")" inspect.log || { cat inspect.log; fail "best is not $kept"; }
note "another guided run from it begins with guides that leave the low-rank function as it is"
run branch 2 --init-from run-spectron-2/checkpoints/step-00000002.h5 --set schedule.steps=2
awk -v a="$(value branch 1 loss)" -v b="$(value plain 1 loss)" 'BEGIN { d = a - b; exit !(d < 1e-5 && d > -1e-5) }' ||
    fail "first losses $(value branch 1 loss) and $(value plain 1 loss)"

note "tree, stochastic: the same bits on any number of ranks, another one at each resume, across the end"
for p in 1 4; do run "tree-$p" $p --set dist.reduction=tree --set batch.micro=3 --set guidance.stochastic=true; done
same tree-1 tree-4
awk -v a="$(value tree-1 4 loss)" -v b="$(value spectron-1 4 loss)" 'BEGIN { d = a / b - 1; exit !(d > 1e-4 || d < -1e-4) }' || fail "nothing was drawn"
goes_on tree-4 2 2 tree-a --set dist.reduction=tree --set batch.micro=3 --set guidance.stochastic=true
same tree-1 tree-a

note "recomputed, audited, measured, without overlap; only the feed-forward; two threads, bf16"
run recompute 2 --set model.recompute=true --set dist.audit_every=1 --set dist.overlap=false --set metrics.spectral_every=2
same spectron-2 recompute
for step in 2 4; do grep "^{\"step\":$step," run-recompute/metrics.jsonl | grep -q 'down_proj.guide' || fail "no telemetry of guides at step $step"; done
! grep '^{"step":6,' run-recompute/metrics.jsonl | grep -q guide || fail "telemetry of guides after their end"
grep '^{"step":6,' run-recompute/metrics.jsonl | grep -q '"spectral_violations":0' || fail "telemetry of step 6"
run ffn 2 --set model.parameterization=low-rank-ffn --threads 2 --set device.precision=bf16 --set guidance.fraction=1
guides run-ffn/checkpoints/step-00000008.h5 23040
guides run-ffn/$last 0

note "what is refused: no factors; another end of guidance while it lasts"
expect 2 'guides factor pairs' mpi 1 --set model.parameterization=dense --set run.output=run-bad job.toml
mkdir -p run-longer/checkpoints
cp run-spectron-2/checkpoints/step-00000002.h5 run-longer/checkpoints/
expect 2 'guidance would end at step 8 instead of 4' mpi 2 --resume --set schedule.steps=20 --set run.output=run-longer job.toml
expect 2 'guidance.fraction' mpi 2 --resume --set guidance.fraction=0.5 --set run.output=run-longer job.toml
note "more steps once it has ended: it stays ended, also at the next resume"
goes_on spectron-2 2 4 late --set schedule.steps=20 --set checkpoint.every=3 --set validation.every=0
guides run-late/checkpoints/step-00000006.h5 0
rm run-late/checkpoints/step-0000001* run-late/checkpoints/step-00000009.h5 run-late/checkpoints/step-00000020.h5
run late 2 --resume --set schedule.steps=20 --set validation.every=0
