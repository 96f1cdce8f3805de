#!/bin/sh
# For whoever has a GPU: builds the CUDA backend and checks it on the device, in one command with one report.
#
#     sh jobs/gpu-check.sh [REPORT.md]        (default gpu-check.md; its work is kept in build-gpu/ and a temporary folder)
#
# Conformance of every op, training against the CPU, on two GPUs too where there are two, and NCCL on up to eight, checkpoints from one to the other, throughput of S, M and L, and compute-sanitizer and nsys where they are
# installed. Exit codes: 0 all passed · 1 a check failed, see the report · 2 cannot build or wrong usage · 77 no GPU here, nothing was checked.
#
# TOOLKIT: the CUDA toolkit (default /usr/local/cuda). STEPS: steps of a throughput run (20). BUILD: a build folder that is taken as it is, not built.
set -u
source=$(cd "$(dirname "$0")/.." && pwd)
case ${1:-} in -*) echo "usage: sh jobs/gpu-check.sh [REPORT.md]" >&2; exit 2 ;; esac
report=${1:-gpu-check.md}
toolkit=${TOOLKIT:-/usr/local/cuda} steps=${STEPS:-20}

names=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null) || names=
if [ -z "$names" ]; then
    echo "gpu-check: no GPU here (nvidia-smi lists none): nothing was checked" >&2
    exit 77
fi
name=$(printf '%s\n' "$names" | head -n 1 | cut -d, -f1)
: >"$report" || { echo "gpu-check: $report: cannot be written" >&2; exit 2; }
report=$(cd "$(dirname "$report")" && pwd)/$(basename "$report")
work=$(mktemp -d "${TMPDIR:-/tmp}/spt-gpu-check.XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
failed=0 passed=0 launch=
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

say() { printf '%s\n' "$*" | tee -a "$report"; }
verbatim() { printf '\n```\n'; cat; printf '```\n'; }
pass() { passed=$((passed + 1)); say "- passed: $*"; }
fail() { failed=$((failed + 1)); say "- **FAILED**: $*"; }
skip() { say "- not run: $*"; }
end_of() { tail -n "${2:-15}" "$1" | verbatim >>"$report"; }

# Dense bf16 peak in TFLOP/s by the device's name, as NVIDIA's data sheets print it; nothing for others: then the trainer's measured peak counts.
peak_of() {
    case $1 in
    *H100*PCIe*) echo 756 ;;
    *H100*NVL*) echo 835 ;;
    *H100* | *H200* | *H800*) echo 989 ;;
    *B200*) echo 2250 ;;
    *A100* | *A800*) echo 312 ;;
    *L40S*) echo 362 ;;
    *A40) echo 149.7 ;;
    *A30) echo 165 ;;
    *A10) echo 125 ;;
    esac
}

# losses FOLDER: step and loss, a line each
losses() { sed -nE 's/.*"step": *([0-9]+).*"loss": *([-0-9.e+]+).*/\1 \2/p' "$1/metrics.jsonl"; }
# compare WHAT FOLDER FOLDER TOLERANCE LINES: relative differences of the losses of the same steps
compare() {
    losses "$2" >"$work/a" 2>/dev/null
    losses "$3" >"$work/b" 2>/dev/null
    if verdict=$(awk -v tolerance="$4" -v want="$5" '
        NR == FNR { loss[$1] = $2; next }
        $1 in loss { d = (loss[$1] - $2) / loss[$1]; if (d < 0) d = -d; if (!(d <= worst)) worst = d; n++ }
        END { printf "%d losses, largest relative difference %.1e, allowed %s", n, worst, tolerance; exit !(n == want && worst <= tolerance) }' \
        "$work/a" "$work/b"); then pass "$1: $verdict"; else fail "$1: $verdict, $5 losses wanted"; fi
}

build() {
    build=${BUILD:-$source/build-gpu}
    [ -z "${BUILD:-}" ] || return 0
    [ -f "$build/build.ninja" ] ||
        meson setup "$build" "$source" --buildtype=release -Dcuda=enabled -Dtoolkit="$toolkit" >"$work/build.log" 2>&1 || return 1
    ninja -C "$build" >>"$work/build.log" 2>&1
}

say "# GPU check"
say ""
say "$(date -u '+%F %H:%M UTC'), $(uname -srm), commit $(git -C "$source" describe --always --dirty 2>/dev/null || echo unknown)"
if ! build; then
    fail "the build: meson setup build-gpu --buildtype=release -Dcuda=enabled -Dtoolkit=$toolkit"
    end_of "$work/build.log"
    echo "gpu-check: the build failed, see $report" >&2
    exit 2
fi
trainer=$build/src/spectron-dist spectron=$build/src/spectron
{
    nvidia-smi 2>&1 | head -n 20
    "$toolkit/bin/nvcc" --version 2>&1 | tail -n 2
    "$trainer" --version
    mpirun --version 2>&1 | head -n 1
} | verbatim >>"$report"

say ""
say "## Conformance"
say ""
if meson test -C "$build" --list --suite gpu >"$work/list" 2>&1 && grep -q . "$work/list"; then
    if ! meson test -C "$build" --suite gpu --print-errorlogs >"$work/conformance.log" 2>&1; then
        fail "suite gpu"
    elif grep -q '^Skipped: *[1-9]' "$work/conformance.log"; then
        fail "suite gpu: the tests find no device that they can use"
    else
        pass "suite gpu: every op on the device against the reference"
    fi
    end_of "$work/conformance.log" 12
else
    fail "this build has no tests of suite gpu"
fi

say ""
say "## Training against the CPU"
say ""
cd "$work" || exit 2
mkdir text
cat "$source"/README.md "$source"/src/core/*.[ch] >text/prose.txt
"$spectron" tokenize --tokenizer byte --documents blank-line --validation-share 0.1 --output data text/prose.txt >tokenize.log 2>&1 ||
    { fail "spectron tokenize"; end_of tokenize.log; }
cat >tiny.toml <<END
[run]
name = "tiny"
seed = 7
[model]
hidden = 256
layers = 4
heads = 4
vocab = 257
seq_len = 256
[optimizer]
lr = 0.01
[schedule]
steps = 10
[batch]
sequences = 8
[data]
train = "data/train-*.h5"
[checkpoint]
every = 5
[metrics]
every = 1
END
# train FOLDER BACKEND PRECISION [OPTION]...
train() {
    folder=$1 backend=$2 precision=$3
    shift 3
    # shellcheck disable=SC2086 # words
    $launch "$trainer" --set run.output="$folder" --backend "$backend" --set device.precision="$precision" "$@" tiny.toml >"$folder.log" 2>&1 ||
        { fail "training $folder: exit $?"; end_of "$folder.log"; return 1; }
}
train cpu-fp32 cpu fp32
train cuda-fp32 cuda fp32 && compare "fp32, ten steps" cpu-fp32 cuda-fp32 1e-3 10
train cuda-bf16 cuda bf16 && compare "bf16 against fp32 on the CPU, ten steps" cpu-fp32 cuda-bf16 2e-2 10
train cuda-again cuda fp32 && compare "the same run again, bit for bit" cuda-fp32 cuda-again 0 10
train cuda-recompute cuda fp32 --set model.recompute=true && compare "activations recomputed" cuda-fp32 cuda-recompute 1e-5 10
train cuda-dense cuda fp32 --set model.parameterization=dense --set optimizer.method=adamw --set optimizer.lr=0.001 &&
    train cpu-dense cpu fp32 --set model.parameterization=dense --set optimizer.method=adamw --set optimizer.lr=0.001 &&
    compare "dense, AdamW" cpu-dense cuda-dense 1e-3 10
# resumed FROM TO: the run FROM without its last checkpoint, finished on TO
resumed() {
    cp -r "$1-fp32" "$1-to-$2" && rm -f "$1-to-$2"/checkpoints/step-*10.h5 "$1-to-$2"/checkpoints/best.h5
    train "$1-to-$2" "$2" fp32 --resume && compare "saved by $1 at step 5, finished on $2" cpu-fp32 "$1-to-$2" 1e-3 10
}
if [ -d cuda-fp32/checkpoints ]; then resumed cuda cpu; else fail "no checkpoint of cuda to resume"; fi
if [ -d cpu-fp32/checkpoints ]; then resumed cpu cuda; else fail "no checkpoint of the CPU to resume"; fi
if [ "$(printf '%s\n' "$names" | wc -l)" -ge 2 ]; then
    launch="mpirun -np 2 --bind-to none"
    train two-fp32 cuda fp32 && compare "two GPUs, fp32, ten steps" cpu-fp32 two-fp32 1e-3 10
    train two-scatter cuda fp32 --set dist.reduction=reduce-scatter && compare "two GPUs, reduce-scatter" cpu-fp32 two-scatter 1e-3 10
    train two-bf16 cuda bf16 --set dist.audit_every=1 && compare "two GPUs, bf16, with audits" cpu-fp32 two-bf16 2e-2 10
    launch=
    # on 2, 4 and 8 GPUs, as many of these as there are
    if meson test -C "$build" --suite gpu-nccl --print-errorlogs >"$work/nccl.log" 2>&1 && grep -q '^Ok: *[1-9]' "$work/nccl.log"; then
        pass "suite gpu-nccl: exact sums and copies of every collective"
    else fail "suite gpu-nccl"; fi
    end_of "$work/nccl.log" 10
else skip "training on two GPUs, and so NCCL: there is one"; fi

say ""
say "## Throughput"
say ""
peak=$(peak_of "$name")
say "8 sequences of 2048 tokens a pass and step, bf16, $steps steps, medians of those after the fifth; FLOPs of the factored network. Peak of $name: ${peak:-as measured by the trainer (its log), no data sheet known}${peak:+ TFLOP/s}."
say ""
say "| model | tokens/s | TFLOP/s | share of peak | memory, MiB, by the dry run |"
say "| --- | --- | --- | --- | --- |"
# median KEY FILE
median() {
    sed -nE "s/.*\"$1\": *([-0-9.e+]+).*/\\1/p" "$2" | sed '1,5d' | sort -g | awk '{ v[NR] = $1 } END { if (!NR) exit 1; print v[int((NR + 1) / 2)] }'
}
for preset in S M L; do
    cat >"$preset.toml" <<END
[model]
preset = "$preset"
[schedule]
steps = $steps
[batch]
sequences = 8
micro = 8
[data]
train = "data/train-*.h5"
[metrics]
every = 1
END
    memory=$("$trainer" --dry-run --backend cuda "$preset.toml" 2>&1 | sed -nE 's/^memory per GPU *([0-9.]+) MiB.*/\1/p')
    if "$trainer" --set run.output="speed-$preset" --backend cuda --set device.precision=bf16 "$preset.toml" >"speed-$preset.log" 2>&1 &&
        tokens=$(median tokens_per_second "speed-$preset/metrics.jsonl") && flops=$(median model_flops_per_second "speed-$preset/metrics.jsonl"); then
        say "| $preset | $(printf '%.0f' "$tokens") | $(awk -v f="$flops" 'BEGIN { printf "%.1f", f / 1e12 }') | $(awk -v f="$flops" -v p="${peak:-0}" 'BEGIN { if (p > 0) printf "%.1f %%", f / p / 1e10; else printf "-" }') | ${memory:--} |"
        passed=$((passed + 1))
        sed -n '/of peak/p' "speed-$preset.log" | tail -n 1 >>measured-peak.log
    else
        say "| $preset | failed | - | - | ${memory:--} |"
        failed=$((failed + 1))
        end_of "speed-$preset.log" 5
    fi
    rm -rf "speed-$preset"
done
[ ! -s measured-peak.log ] || verbatim <measured-peak.log >>"$report"

say ""
say "## Tools"
say ""
# tool NAME: its path, on PATH or in the toolkit
tool() { command -v "$1" 2>/dev/null || { [ -x "$toolkit/bin/$1" ] && echo "$toolkit/bin/$1"; }; }
# sanitize TOOL NAME WORDS COMMAND...: passed where the command has done its work, which WORDS in its output show, and the tool has seen all of it
sanitize() {
    check=$1 name=$2 words=$3 clean='ERROR SUMMARY: 0 errors'
    [ "$check" != racecheck ] || clean='RACECHECK SUMMARY: 0 hazards'
    shift 3
    if GOMP_SPINCOUNT=2000 "$sanitizer" --tool "$check" --target-processes all --error-exitcode 9 "$@" >"$check-$name.log" 2>&1 &&
        grep -q "$words" "$check-$name.log" && grep -q "$clean" "$check-$name.log" && ! grep -q 'SUMMARY: [1-9]' "$check-$name.log"; then
        pass "compute-sanitizer $check, $name"
    else fail "compute-sanitizer $check, $name"; end_of "$check-$name.log"; fi
}
if sanitizer=$(tool compute-sanitizer); then
    for check in memcheck racecheck synccheck; do
        sanitize $check "two steps" '^2 steps in ' "$trainer" --set run.output="sanitize-$check" --backend cuda --set schedule.steps=2 --set model.layers=1 tiny.toml
    done
    for ops in attention group head optimizer; do
        sanitize memcheck "the ops of $ops" 'PASSED' "$build/tests/test_ops_${ops}_cuda"
    done
else skip "compute-sanitizer is not installed"; fi
if nsys=$(tool nsys); then
    if "$nsys" profile --stats=true -o step "$trainer" --set run.output=nsys --backend cuda tiny.toml >nsys.log 2>&1; then
        say "- nsys, ten steps of the tiny model, the longest kernels:"
        sed -n '/cuda_gpu_kern_sum/,/^$/p' nsys.log | cut -c1-160 | head -n 20 | verbatim >>"$report"
    else fail "nsys"; end_of nsys.log; fi
else skip "nsys is not installed"; fi

say ""
say "**$passed passed, $failed failed.**"
echo "gpu-check: $passed passed, $failed failed; report in $report" >&2
[ "$failed" = 0 ] || exit 1
