#!/bin/sh
# The telemetry of the matrices: every value that a checkpoint can tell against an SVD, for methods, parameterizations and ranks; training is not
# changed by a bit; a resume goes on with it.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
# a checkpoint a step, telemetry every third; no decay, so that checkpoints differ by the updates alone
sed -i 's/^weight_decay = .*/weight_decay = 0.0/; s/^every = 10/every = 1/; s/^steps = 20/steps = 6/' job.toml
printf '[metrics]\nspectral_every = 3\n' >>job.toml
check=$build/tests/check_spectral
file() { printf 'run-%s/checkpoints/step-%08d.h5' "$1" "$2"; }

# run NAME RANKS METHOD ARGUMENT...: trains, and compares steps 3 and 6 with an SVD
run() {
    name=$1 ranks=$2 method=$3
    shift 3
    mpi "$ranks" --set run.output="run-$name" --set optimizer.method="$method" "$@" job.toml >log 2>&1 || { cat log; fail "$name"; }
    [ "$(grep -c '"spectral":' "run-$name/metrics.jsonl")" = 2 ] || fail "$name: telemetry in other records than two"
    for step in 3 6; do
        "$check" svd "$(file "$name" $((step - 1)))" "$(file "$name" $step)" "run-$name/metrics.jsonl" "$method" >out 2>&1 ||
            { cat out; fail "$name, step $step"; }
        note "$name, $(cat out)"
    done
}
run spectron 1 spectron
run spectron-3 3 spectron --set optimizer.adamw.eps=1e-6
run spectron-1 1 spectron --set optimizer.adamw.eps=1e-6
run spectron-dense 2 spectron --set model.parameterization=dense --set device.precision=bf16
run muon-ffn 2 muon --set model.parameterization=low-rank-ffn --set dist.reduction=reduce-scatter
run bf16 1 spectron --set device.precision=bf16 --set model.recompute=true
run renorm 2 renorm --set dist.reduction=tree --set batch.micro=4
run adamw 3 adamw --set optimizer.lr=0.003
run adamw-dense 1 adamw --set optimizer.lr=0.003 --set model.parameterization=dense

note "1 rank against 3"
"$check" same run-spectron-1/metrics.jsonl run-spectron-3/metrics.jsonl 1e-3

note "training is the same without, and every step"
mpi 1 --set metrics.spectral_every=0 --set run.output=run-without job.toml >log 2>&1 || { cat log; fail without; }
if grep -q spectral run-without/metrics.jsonl; then fail "telemetry although it is off"; fi
"$compare" "$(file without 6)" "$(file spectron 6)" 0
mpi 1 --set metrics.spectral_every=1 --set metrics.every=4 --set run.output=run-each job.toml >log 2>&1 || { cat log; fail each; }
"$compare" "$(file without 6)" "$(file each 6)" 0
[ "$(grep -c '"spectral":' run-each/metrics.jsonl)" = 6 ] || fail "telemetry of a step has no record"
mpi 3 --set metrics.spectral_every=0 --set run.output=run-adamw-without --set optimizer.method=adamw --set optimizer.lr=0.003 job.toml >log 2>&1 || { cat log; fail adamw; }
"$compare" "$(file adamw-without 6)" "$(file adamw 6)" 0

note "a resume goes on with it"
mkdir -p run-resumed && cp -r run-spectron/. run-resumed/
rm -f "$(file resumed 5)" "$(file resumed 6)" run-resumed/checkpoints/best.h5
mpi 1 --resume --set run.output=run-resumed --set optimizer.method=spectron job.toml >log 2>&1 || { cat log; fail resume; }
"$compare" "$(file spectron 6)" "$(file resumed 6)" 0
"$check" same run-spectron/metrics.jsonl run-resumed/metrics.jsonl 0

note "weight decay stands apart"
mpi 1 --set optimizer.weight_decay=0.1 --set run.output=run-decay job.toml >log 2>&1 || { cat log; fail decay; }
# |W| loses 1 − (1 − eta·0.1)² of itself
sed -n 's/.*"lr":\([-0-9.e]*\),.*"dw":[^}]*"w":\([-0-9.e]*\),"decay":\([-0-9.e]*\),.*/\1 \2 \3/p' run-decay/metrics.jsonl |
    awk '{ wanted = (1 - (1 - 0.1 * $1) ^ 2) * $2; d = $3 / wanted - 1; if (d > 1e-3 || d < -1e-3) exit 1; n++ } END { exit n != 2 }' ||
    fail "weight decay's part"

note "the profile and the report show it"
mpi 2 --profile --set run.output=run-profile job.toml >log 2>&1 || { cat log; fail profile; }
grep -q '^  beside: telemetry  *[0-9]' log || { cat log; fail "the profile has no telemetry"; }
"$spectron" report --no-picture run-profile | grep -q '^telemetry: 2 records; largest .* of model\.layers\.[01]\..* at step [36]; Eq. 10 holds in all$' ||
    { "$spectron" report --no-picture run-profile; fail "the report has no telemetry"; }
