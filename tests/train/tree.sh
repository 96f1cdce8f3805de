#!/bin/sh
# reduction = "tree": the same bits on any number of ranks that divides the micro-batches, also when a resume changes it.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
# three pieces of the embedding and of the head that ranks can own apart; 192 micro-batches; validation and clipping take part
sed -i 's/^sequences = 24/sequences = 192\nmicro = 1/; s/^steps = 20/steps = 3/; s/^every = 10/every = 1/; s/^lr = 0.02/lr = 0.02\ngrad_clip = 0.5/
    s/^bucket_mib = 1/bucket_mib = 1\nreduction = "tree"/; s/^rank_ratio = 0.27/rank_ratio = 0.27\ntie_embeddings = false/' job.toml
last=checkpoints/step-00000003.h5
run() { # NAME RANKS OPTION...
    name=$1 p=$2
    shift 2
    mpi "$p" --set run.output="run-$name" "$@" job.toml >log 2>&1 || { cat log; fail "$name"; }
}
same() { # NAME NAME: parameters, optimizer state, losses, norms and validations
    "$compare" "run-$1/$last" "run-$2/$last" 0 || fail "$1 and $2 differ"
    for name in "$1" "$2"; do
        sed -E 's/.*"step": *([0-9]+).*"loss": *([^,]+).*"grad_norm": *([^,]+).*"validation_loss": *([^,}]+).*/\1 \2 \3 \4/' \
            "run-$name/metrics.jsonl" >"$name.values"
    done
    cmp "$1.values" "$2.values" || fail "losses, norms or validations of $1 and $2 differ"
}
for p in 1 2 3 4 6 8 12 16 64; do
    run "p$p" $p
    [ $p = 1 ] || same p1 "p$p"
    note "$p ranks: $(tail -n 1 "run-p$p/metrics.jsonl" | grep -o '"grad_norm": *[^,]*')"
done
[ "$(wc -l <p64.values)" = 3 ] && awk 'NF != 4 || $3 <= 0.5 { exit 1 }' p64.values || fail "the comparison has nothing to compare, or nothing was clipped: $(cat p64.values)"

note "another number of ranks at every resume"
run changing 3 --set schedule.steps=1 --set schedule.kind=constant --set schedule.warmup=0
run changing 8 --resume --set schedule.steps=2 --set schedule.kind=constant --set schedule.warmup=0
run changing 2 --resume --set schedule.kind=constant --set schedule.warmup=0
run constant 4 --set schedule.kind=constant --set schedule.warmup=0
same constant changing

note "dense matrices by Muon, and beside factors: any number of ranks, another one at a resume"
for model in "dense --set optimizer.method=muon" low-rank-ffn; do
    kind=${model%% *}
    # shellcheck disable=SC2086
    all="--set schedule.kind=constant --set schedule.warmup=0 --set model.parameterization=$model"
    # shellcheck disable=SC2086
    {
        run "$kind-1" 1 $all
        run "$kind-6" 6 $all --set schedule.steps=2
        run "$kind-6" 4 $all --resume
    }
    same "$kind-1" "$kind-6"
done

note "without overlap; bf16 and two threads; AdamW; no power of two"
run blocking 4 --set dist.overlap=false
same p1 blocking
for p in 1 4; do
    run "bf16-$p" $p --set device.precision=bf16 --threads 2
    run "adamw-$p" $p --set optimizer.method=adamw --set optimizer.lr=0.003
done
same bf16-1 bf16-4
same adamw-1 adamw-4
for p in 1 5 15; do run "odd-$p" $p --set batch.sequences=45 --set batch.micro=3; done
same odd-1 odd-5
same odd-1 odd-15
note "near all-reduce, which sums in another order"
run reduce 2 --set dist.reduction=all-reduce
same_losses run-p2 run-reduce 2e-5

note "ranks that do not divide the micro-batches"
expect 2 'reduction = "tree": 4 ranks do not divide the 3 micro-batches of 64 sequences.*start 3 ranks' mpi 4 --set run.output=run-bad --set batch.micro=0 job.toml
expect 2 'micro = 7: must divide' mpi 3 --set run.output=run-bad --set batch.micro=7 job.toml

note "a damaged shard ends it as in any reduction, also where a rank has several sums"
cp -r data damaged
size=$(wc -c <damaged/train-00000.h5)
head -c 4096 /dev/urandom | dd of=damaged/train-00000.h5 bs=1 seek=$((size / 2)) conv=notrunc 2>/dev/null
for p in 2 4; do
    expect 3 'train-00000.h5' mpi $p --set run.output="run-damaged-$p" --set batch.sequences=1200 --set batch.micro=100 --set 'data.train="damaged/train-*.h5"' job.toml
done
