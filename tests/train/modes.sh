#!/bin/sh
# Parameterizations, methods, recomputation, accumulation, clipping, schedules, precisions: each trains, and those that must agree do.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
run() { name=$1; shift; mpi 1 --set run.output="run-$name" --set schedule.steps=6 "$@" job.toml >log 2>&1 || { cat log; fail "$name"; }; }
last=checkpoints/step-00000006.h5
run base
note "recomputation is bit-identical"
run recompute --set model.recompute=true
"$compare" run-base/$last run-recompute/$last 0
note "a rerun is bit-identical"
run again
"$compare" run-base/$last run-again/$last 0
note "micro-batches accumulate to the same step"
run micro --set batch.micro=4
same_losses run-base run-micro 2e-5
"$compare" run-base/$last run-micro/$last 1e-3
note "clipping at a norm never reached changes nothing; at a small one it does"
run loose --set optimizer.grad_clip=1e9
"$compare" run-base/$last run-loose/$last 0
run tight --set optimizer.grad_clip=1e-3
if "$compare" run-base/$last run-tight/$last 0 >/dev/null 2>&1; then fail "grad_clip has no effect"; fi
for mode in "dense --set model.parameterization=dense --set optimizer.method=adamw --set optimizer.lr=0.003" \
    "dense-muon --set model.parameterization=dense --set optimizer.method=muon" \
    "dense-sgd --set model.parameterization=dense --set optimizer.method=sgd" \
    "dense-spectron --set model.parameterization=dense --set optimizer.method=spectron" \
    "dense-renorm --set model.parameterization=dense --set optimizer.method=renorm" \
    "ffn --set model.parameterization=low-rank-ffn" "tied --set model.tie_embeddings=true" "gqa --set model.kv_heads=1" \
    "muon --set optimizer.method=muon" "renorm --set optimizer.method=renorm" "sgd --set optimizer.method=sgd" \
    "adamw --set optimizer.method=adamw --set optimizer.lr=0.003" "linear --set schedule.kind=linear" \
    "constant --set schedule.kind=constant" "bf16 --set device.precision=bf16"; do
    # shellcheck disable=SC2086
    run $mode
    first=$(losses "run-${mode%% *}" | awk 'NR == 1 { print $2 }')
    final=$(losses "run-${mode%% *}" | awk 'END { print $2 }')
    awk -v a="$first" -v b="$final" 'BEGIN { exit !(b < a && a < 7) }' || fail "${mode%% *}: loss $first → $final"
    note "${mode%% *}: loss $first → $final"
done
