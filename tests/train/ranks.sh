#!/bin/sh
# P = 1, 2, 3, 4, 8 ranks train the same model to fp32 rounding, in both reductions; 64 oversubscribed ranks agree too.
. "$(dirname "$0")/lib.sh"
make_data
# AdamW's first step is nearly the sign of the gradient: with the usual eps (1e-8) one element whose gradient is all but zero, and so all rounding,
# can differ by a whole step. A larger eps keeps the comparison about the ranks.
smooth() { mpi "$@" --set optimizer.adamw.eps=1e-6; }
for p in 1 2 3 4 8; do
    make_job "p$p.toml" "run-p$p"
    smooth $p "p$p.toml" >"p$p.log" 2>&1 || { cat "p$p.log"; fail "$p ranks"; }
    [ $p = 1 ] && continue
    note "1 against $p ranks"
    same_losses run-p1 "run-p$p" 2e-5
    "$compare" run-p1/checkpoints/step-00000020.h5 "run-p$p/checkpoints/step-00000020.h5" 1e-3
done
note "reduce-scatter, and without overlap"
smooth 3 --set dist.reduction=reduce-scatter --set run.output=run-scatter p3.toml >log 2>&1 || { cat log; fail reduce-scatter; }
same_losses run-p3 run-scatter 2e-5
"$compare" run-p3/checkpoints/step-00000020.h5 run-scatter/checkpoints/step-00000020.h5 1e-3
smooth 4 --set dist.overlap=false --set run.output=run-blocking p4.toml >log 2>&1 || { cat log; fail "no overlap"; }
"$compare" run-p4/checkpoints/step-00000020.h5 run-blocking/checkpoints/step-00000020.h5 0

note "dense matrices by Muon, each with one owner"
for p in 1 2 3; do
    smooth $p --set model.parameterization=dense --set optimizer.method=muon --set schedule.steps=6 --set run.output="run-muon-$p" p1.toml >log 2>&1 || { cat log; fail "dense, $p ranks"; }
done
for p in 2 3; do
    same_losses run-muon-1 "run-muon-$p" 2e-5
    "$compare" run-muon-1/checkpoints/step-00000006.h5 "run-muon-$p/checkpoints/step-00000006.h5" 1e-3
done

note "64 ranks"
for p in 1 64; do
    smooth $p --set batch.sequences=64 --set batch.micro=1 --set schedule.steps=4 --set run.output="run-wide-$p" p1.toml >log 2>&1 || { cat log; fail "$p ranks"; }
done
same_losses run-wide-1 run-wide-64 2e-5
"$compare" run-wide-1/checkpoints/step-00000004.h5 run-wide-64/checkpoints/step-00000004.h5 1e-3
