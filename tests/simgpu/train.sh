#!/bin/sh
# train.sh BUILD_DIR: the trainer with the CUDA backend and NCCL, on simulated GPUs, against the CPU backend: the same losses on 1, 2 and 4 ranks,
# low-rank and dense, with and without recomputation, all-reduce and reduce-scatter; checkpoints go over from one to the other; telemetry; no step waits for
# the device; what goes wrong ends with one line and its exit code. SIMGPU_TRAIN_COUNTS=FILE keeps the counts of a step.
. "$(dirname "$0")/../train/lib.sh"
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}"
simulated=$build/tests/simgpu/spectron-dist-cuda-sim
make_data
cat >job.toml <<END
[run]
name = "tiny"
seed = 7
[model]
hidden = 16
layers = 2
heads = 2
ffn = 24
vocab = 257
seq_len = 16
rank_ratio = 0.27
[optimizer]
lr = 0.02
weight_decay = 0.1
grad_clip = 1.0
[optimizer.adamw]
eps = 1e-4
[schedule]
steps = 10
[batch]
sequences = 4
[data]
train = "data/train-*.h5"
validation = "data/validation-*.h5"
[validation]
every = 100
tokens = 64
[checkpoint]
every = 5
keep = 9
[dist]
bucket_mib = 1
[device]
precision = "fp32"
END
last=checkpoints/step-00000010.h5
guided="--set guidance.method=self-guided --set guidance.stochastic=true --set guidance.fraction=0.6 --set validation.every=2"
# A gradient near 0 is rounding, and AdamW steps by its sign unless eps is larger than that: 1e-4 in fp32 (the text trained on is this project's
# own and changes with it), 1e-3 in bf16.
bf16="--set device.precision=bf16 --set optimizer.adamw.eps=1e-3"
dense="--set model.parameterization=dense --set optimizer.method=adamw --set optimizer.lr=0.003"

# on_cpu OUTPUT ARGUMENT..., on_gpu RANKS OUTPUT ARGUMENT...
on_cpu() { out=$1; shift; mpi 1 --backend cpu --set run.output="$out" "$@" job.toml >log 2>&1 || { cat log; fail "CPU run $out"; }; }
gpu() { ranks=$1; shift; sh "$mpi_run" "$ranks" "$simulated" --threads 1 "$@"; }
on_gpu() {
    ranks=$1 out=$2
    shift 2
    gpu "$ranks" --backend cuda --set run.output="$out" "$@" job.toml >log 2>&1 || { cat log; fail "simulated run $out"; }
    grep -q 'simulated GPU' log || { cat log; fail "$out did not run on the simulator"; }
}

# like CPU-RUN LOSS-TOLERANCE RANKS OUTPUT ARGUMENT...: losses, relative, and every tensor of the last checkpoint
like() {
    with=$1 tolerance=$2
    shift 2
    on_gpu "$@"
    same_losses "$with" "$2" "$tolerance" >found
    worst=$("$compare" "$with/$last" "$2/$last" "$(awk -v t="$tolerance" 'BEGIN { print 100 * t }')") || fail "$2: checkpoints differ: $worst"
    norms "$with" >norms-cpu
    norms "$2" >norms-gpu
    paste -d: norms-cpu norms-gpu | awk -F: -v t="$tolerance" '
        $1 != $3 || $2 == "" || ($2 - $4) ^ 2 > (100 * t * ($2 + 1e-3)) ^ 2 { print "gradient norms: " $0; bad = 1 } END { exit bad || NR < 10 }' || fail "$2: gradient norms by group differ"
    note "$2: $(cat found); checkpoints: $worst"
}
# norms RUN: "group:norm", of each step's gradient in turn
norms() { sed -n 's/.*"grad_norms": *{\([^}]*\)}.*/\1/p' "$1/metrics.jsonl" | tr -d '" ' | tr ',' '\n'; }

note "the CPU's runs"
# shellcheck disable=SC2086
{
    on_cpu cpu
    on_cpu cpu-dense $dense
    on_cpu cpu-dense-muon --set model.parameterization=dense --set optimizer.method=muon
    on_cpu cpu-adamw --set optimizer.method=adamw --set optimizer.lr=0.003
    on_cpu cpu-bf16 $bf16
    on_cpu cpu-guided $guided
    on_cpu cpu-bf16-adamw $bf16 --set optimizer.method=adamw --set optimizer.lr=0.003
}
note "low-rank"
like cpu 1e-5 1 low-1
like cpu 1e-5 2 low-2-recompute --set model.recompute=true --set batch.micro=1
like cpu 1e-5 2 low-2-scatter --set dist.reduction=reduce-scatter
like cpu 1e-5 4 low-4
like cpu 1e-5 4 low-4-scatter-recompute --set dist.reduction=reduce-scatter --set model.recompute=true
like cpu 1e-5 2 low-2-late --set dist.overlap=false
like cpu-adamw 1e-5 2 adamw-2 --set optimizer.method=adamw --set optimizer.lr=0.003
note "bf16: from two ranks on masters are their owners' alone, and the model reads gathered copies; audits compare these"
like cpu-bf16 5e-3 1 bf16-1 $bf16
like cpu-bf16 5e-3 2 bf16-2 $bf16
like cpu-bf16 5e-3 4 bf16-4-scatter-recompute $bf16 --set dist.reduction=reduce-scatter --set model.recompute=true --set dist.audit_every=1 --set metrics.spectral_every=2
! grep WARNING log || fail "a bound of the telemetry does not hold"
like cpu-bf16-adamw 5e-3 2 bf16-adamw-2 $bf16 --set optimizer.method=adamw --set optimizer.lr=0.003 --set dist.audit_every=3 --set metrics.spectral_every=5
! grep WARNING log || fail "a bound of the telemetry does not hold"
note "guided until step 6"
# shellcheck disable=SC2086
like cpu-guided 1e-5 2 guided-2 $guided
note "dense"
# shellcheck disable=SC2086
{
    like cpu-dense 1e-5 1 dense-1-recompute $dense --set model.recompute=true
    like cpu-dense 1e-5 2 dense-2-scatter-recompute $dense --set dist.reduction=reduce-scatter --set model.recompute=true
    like cpu-dense 1e-5 4 dense-4 $dense
    like cpu-dense-muon 1e-5 2 dense-2-muon --set model.parameterization=dense --set optimizer.method=muon
}

note "checkpoints of one backend go on on the other"
on_gpu 2 from-cpu --resume=cpu/checkpoints/step-00000005.h5
tail -n 5 cpu/metrics.jsonl >five && mkdir -p five-cpu && mv five five-cpu/metrics.jsonl
same_losses five-cpu from-cpu 1e-5
on_cpu from-gpu --resume=low-4/checkpoints/step-00000005.h5
same_losses five-cpu from-gpu 1e-5
tail -n 5 cpu-bf16/metrics.jsonl >five && mkdir -p five-bf16 && mv five five-bf16/metrics.jsonl
on_gpu 2 from-cpu-bf16 --resume=cpu-bf16/checkpoints/step-00000005.h5 $bf16
same_losses five-bf16 from-cpu-bf16 5e-3
on_cpu from-gpu-bf16 --resume=bf16-2/checkpoints/step-00000005.h5 $bf16
same_losses five-bf16 from-gpu-bf16 5e-3
on_gpu 2 again-bf16 --resume=bf16-2/checkpoints/step-00000005.h5 $bf16
"$compare" bf16-2/$last again-bf16/$last 0 || fail "a resume in bf16 is not the undisturbed run"
on_cpu branch-cpu --init-from=cpu-bf16/$last $bf16 --set schedule.steps=3
on_gpu 2 branch-gpu --init-from=cpu-bf16/$last $bf16 --set schedule.steps=3
same_losses branch-cpu branch-gpu 5e-3

note "telemetry on two simulated GPUs: against an SVD, and as on the CPU"
for mode in "spectron" "adamw --set optimizer.lr=0.003"; do
    method=${mode%% *}
    shared="--set optimizer.weight_decay=0.0 --set checkpoint.every=1 --set metrics.spectral_every=5 --set optimizer.method=$mode"
    # shellcheck disable=SC2086
    on_cpu "cpu-telemetry-$method" $shared
    # shellcheck disable=SC2086
    on_gpu 2 "gpu-telemetry-$method" $shared
    for step in 05 10; do
        before=$(printf '%02d' $((${step#0} - 1)))
        "$build/tests/check_spectral" svd "gpu-telemetry-$method/checkpoints/step-000000$before.h5" "gpu-telemetry-$method/checkpoints/step-000000$step.h5" \
            "gpu-telemetry-$method/metrics.jsonl" "$method" >found 2>&1 || { cat found; fail "telemetry of $method, step $step"; }
        note "$method, $(cat found)"
    done
    "$build/tests/check_spectral" same "cpu-telemetry-$method/metrics.jsonl" "gpu-telemetry-$method/metrics.jsonl" 1e-2 || fail "telemetry of $method on the CPU"
done

SIMGPU_SEED=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ') # how often the start waits is drawn: alike in both
export SIMGPU_SEED
note "a step's counts, of rank 0 of 2, as the difference between 4 and 16 steps (SIMGPU_SEED=$SIMGPU_SEED)"
# count PRECISION SUMS: SUMS operations of a step, beside the runs of each bucket, are sums of all ranks at once: the decision's two, and the gains of
# sharded masters. NCCL moves what metrics.jsonl tells, and the decision's 39 doubles; in bf16 half as many bytes are gathered
count() {
    for steps in 4 16; do
        export SIMGPU_REPORT="$work/counts-$1-$steps"
        on_gpu 2 "counted-$1-$steps" --set device.precision="$1" --set dist.reduction=reduce-scatter --set checkpoint.every=100 --set "schedule.steps=$steps"
    done
    unset SIMGPU_REPORT
    counts=${SIMGPU_TRAIN_COUNTS:-counts}-$1
    paste "counts-$1-4.0" "counts-$1-16.0" | awk '{ print $1, ($4 - $2) / 12 }' | tee "$counts"
    [ "$(counted synchronizations)" = 0 ] || fail "a step waits for the device"
    for name in launches products; do [ "$(counted $name)" -gt 0 ] || fail "no $name in a step"; done
    told=counted-$1-16/metrics.jsonl
    [ "$(counted collective_bytes)" = $(($(told reduce_bytes) + $(told gather_bytes) + 8 * 39)) ] || fail "$1: NCCL moves other bytes than the plan tells"
    runs=$((2 * ($(told reduce_messages) + $(told gather_messages) + 2 - $2)))
    [ "$(counted collectives)" = $((runs + $2)) ] || fail "$1: NCCL is called other than $runs + $2 times a step"
}
counted() { awk -v n="$1" '$1 == n { print $2 }' "$counts"; }
told() { tail -n 1 "$told" | sed -E "s/.*\"$1\": *([0-9]+).*/\1/"; }
count fp32 2
gathered=$(told gather_bytes)
count bf16 3
gains=$((4 * 5 * 16)) # four norms of layers and the last, 16 elements each
[ "$(told gather_bytes)" = $((gathered / 2 + gains)) ] || fail "bf16: $(told gather_bytes) bytes are gathered, of $gathered in fp32"
unset SIMGPU_SEED
note "errors"
export SIMGPU_DEVICES=1
expect 2 'have the same GPU' gpu 2 --backend cuda --set run.output=shared job.toml
# as Slurm shows them: one device each, number 0 everywhere
printf '#!/bin/sh\nSIMGPU_FIRST_DEVICE=$OMPI_COMM_WORLD_LOCAL_RANK exec "$@"\n' >apart && chmod +x apart
sh "$mpi_run" 2 ./apart "$simulated" --threads 1 --set run.output=apart-run --set schedule.steps=2 job.toml >log 2>&1 || { cat log; fail "one device a task"; }
unset SIMGPU_DEVICES
expect 2 'tree.* is for the CPU' gpu 2 --backend cuda --set run.output=tree --set dist.reduction=tree --set batch.micro=1 job.toml
expect 2 'no CPU backend' gpu 1 --backend cpu --set run.output=none job.toml
export SIMGPU_NCCL_FAIL_AT=9
status=0
gpu 2 --backend cuda --set run.output=broken job.toml >log 2>&1 || status=$?
unset SIMGPU_NCCL_FAIL_AT
[ $status = 5 ] || { cat log; fail "a broken network gave exit $status instead of 5"; }
grep -q '^spectron-dist: rank [01] .*NCCL' log || { cat log; fail "no word of NCCL"; }
expect 4 'diverged' gpu 2 --backend cuda --set run.output=diverged --set optimizer.method=sgd --set optimizer.lr=1000 --set optimizer.adamw.lr=1000 \
    --set optimizer.grad_clip=0 --set schedule.warmup=0 --set schedule.steps=20 job.toml
note "a skipped step leaves a post-mortem; a replay computes the same bits and names the matrix that went wrong"
on_gpu 2 wrong --set schedule.kind=constant
on_gpu 2 again --set schedule.kind=constant --replay 8 --resume=wrong/checkpoints/step-00000005.h5
losses wrong | sed -n 6,8p >a.loss
losses again | cmp a.loss - >&2 || fail "a replay has other losses"
grep -q '^replay: every value of every op is finite' log || { cat log; fail "the replay says nothing"; }
rm -f wrong/checkpoints/best.h5
"$build/tests/poison_checkpoint" wrong/$last /model/model.layers.1.mlp.up_proj.B 3 3.4e38 || fail "poisoning"
expect 4 'diverged' gpu 2 --backend cuda --set schedule.kind=constant --set schedule.steps=12 --set run.output=wrong --resume job.toml
grep -q '"reason":"skipped","step":11,' wrong/post-mortem/step-00000011.json || fail "no post-mortem"
on_gpu 2 once-more --set schedule.kind=constant --set schedule.steps=12 --replay 11 --resume=wrong/post-mortem/step-00000010.h5
grep -q '^replay: the first to go wrong: model.layers.1.mlp.up_proj, forward' log || { cat log; fail "the matrix is not named"; }
note "a rank's broken data ends all, a step late"
mkdir -p bad && cp data/* bad/
size=$(stat -c %s bad/train-*.h5 | head -1)
for file in bad/train-*.h5; do
    at=1000
    while [ $at -lt $((size - 5000)) ]; do
        at=$((at + 4096))
        [ $at -gt 8000 ] && printf 'broken' | dd of="$file" bs=1 seek=$at conv=notrunc 2>/dev/null
    done
done
expect 3 'bad/train' gpu 2 --backend cuda --set run.output=damaged --set 'data.train="bad/train-*.h5"' job.toml
note "a signal saves and stops; the run goes on from there, as if nothing had been"
sh "$mpi_run" 2 "$simulated" --threads 1 --set run.output=stopped --set checkpoint.every=100 --set batch.micro=1 --set model.recompute=true job.toml >log 2>&1 &
stop_after stopped 1 USR1 $!
gpu 2 --resume --set run.output=stopped --set checkpoint.every=100 --set batch.micro=1 --set model.recompute=true job.toml >log 2>&1 || { cat log; fail "resume"; }
same_losses cpu stopped 1e-5
echo "all passed"
