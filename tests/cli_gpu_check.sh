#!/bin/sh
# jobs/gpu-check.sh with a fake of everything that needs a GPU: nvidia-smi, the trainer, the tests' runner. Tested is what the script decides of what they say;
# what a device does is the suite gpu's business (meson test --suite gpu), and needs one.
set -eu
source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/spt-gpu-check-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p bin build/src none
fail() { echo "FAIL: $*" >&2; [ ! -f report.md ] || cat report.md >&2; exit 1; }
fake() { printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod +x "$1"; }

fake none/nvidia-smi 'exit 9'
fake bin/nvidia-smi 'for i in $(seq ${FAKE_GPUS:-1}); do echo "${FAKE_GPU:-NVIDIA H100 80GB HBM3}, 570.1, 81559 MiB"; done'
fake bin/mpirun '[ "$1" = -np ] && [ "$2" = 2 ] || exit 0; shift 4; FAKE_ERROR=${FAKE_TWO_ERROR:-0} exec "$@"'
fake bin/meson 'case "$*" in *--list*) [ -n "${FAKE_NO_TESTS:-}" ] || echo "spectron-dist:gpu / test_ops" ;; *gpu-nccl*) echo "Ok:                 ${FAKE_NCCL:-1}" ;; *) echo "Skipped:            ${FAKE_SKIPPED:-0}"; exit ${FAKE_CONFORMANCE:-0} ;; esac'
fake bin/compute-sanitizer '[ "$GOMP_SPINCOUNT" = 2000 ] || exit 8
case "$*" in *test_ops*) echo "[  PASSED  ] 3 test(s)." ;; *) [ -n "${FAKE_NO_STEP:-}" ] || echo "2 steps in 0.1 s" ;; esac
[ -z "${FAKE_UNSEEN:-}" ] || exit 0
case "$*" in *racecheck*) echo "========= RACECHECK SUMMARY: ${FAKE_SANITIZER:-0} hazards displayed (0 errors, 0 warnings)" ;; *) echo "========= ERROR SUMMARY: ${FAKE_SANITIZER:-0} errors" ;; esac
exit ${FAKE_SANITIZER:-0}'
fake build/src/spectron 'mkdir -p data; : >data/train-00000.h5'
# losses fall by 0.1 a step; on cuda they are off by the share FAKE_ERROR
cat >build/src/spectron-dist <<'END'
#!/bin/sh
out=run backend=cpu resume=no
while [ $# -gt 0 ]; do
    case $1 in
    --version) echo 'spectron-dist, a fake'; exit ;;
    --dry-run) echo 'memory per GPU         6077.6 MiB  (a fake)'; exit ;;
    --set) shift; case $1 in run.output=*) out=${1#*=} ;; esac ;;
    --backend) shift; backend=$1 ;;
    --resume) resume=yes ;;
    esac
    shift
done
case "$out $resume" in *-to-*yes) [ -f "$out/checkpoints/step-00000005.h5" ] && [ ! -f "$out/checkpoints/step-00000010.h5" ] || exit 3 ;; esac
mkdir -p "$out/checkpoints"
: >"$out/checkpoints/step-00000005.h5"
: >"$out/checkpoints/step-00000010.h5"
seq 1 10 | awk -v backend="$backend" -v error="${FAKE_ERROR:-0}" '{
    loss = (5 - 0.1 * $1) * (backend == "cuda" ? 1 + error : 1)
    printf "{\"step\": %d, \"loss\": %.9g, \"tokens_per_second\": %d, \"model_flops_per_second\": %.6g}\n", $1, loss, 1000 * $1, 494.5e12 }' >"$out/metrics.jsonl"
END
chmod +x build/src/spectron-dist

# check CODE [VARIABLE=VALUE]...: a run with the fakes
check() {
    want=$1
    shift
    code=0
    env PATH="$work/bin:$PATH" BUILD="$work/build" TOOLKIT="$work/no-toolkit" "$@" sh "$source/jobs/gpu-check.sh" report.md >out.log 2>err.log || code=$?
    [ "$code" = "$want" ] || { cat err.log >&2; fail "exit $code instead of $want: $*"; }
}
has() { grep -q -- "$1" report.md || fail "the report has no '$1'"; }

code=0
PATH="$work/none:$PATH" sh "$source/jobs/gpu-check.sh" absent.md >out.log 2>err.log || code=$?
[ "$code" = 77 ] || fail "exit $code instead of 77 without a GPU"
[ "$(cat out.log err.log | wc -l)" = 1 ] && grep -q 'no GPU here' err.log || fail "not one clear line without a GPU"
[ ! -e absent.md ] || fail "a report of nothing"
code=0
sh "$source/jobs/gpu-check.sh" --what >out.log 2>&1 || code=$?
[ "$code" = 2 ] || fail "exit $code instead of 2 for an unknown option"

check 0
has '| S | 8000 | 494.5 | 50.0 % | 6077.6 |' # the median of steps 6 to 10
has '| L | '
has 'saved by cuda at step 5, finished on cpu: 10 losses'
has 'compute-sanitizer memcheck'
has 'nsys'
has 'not run: training on two GPUs'
has '0 failed'
check 0 FAKE_GPUS=2
has 'passed: two GPUs, fp32, ten steps: 10 losses'
has 'passed: two GPUs, bf16, with audits: 10 losses'
has 'passed: suite gpu-nccl'
check 1 FAKE_GPUS=2 FAKE_NCCL=0
has 'FAILED.*suite gpu-nccl'
check 1 FAKE_GPUS=2 FAKE_TWO_ERROR=0.005
has 'passed: fp32, ten steps'
has 'FAILED.*two GPUs, reduce-scatter'
check 1 FAKE_ERROR=0.005
has 'FAILED.*fp32, ten steps: 10 losses, largest relative difference 5.0e-03, allowed 1e-3'
has 'passed: bf16 against fp32'
check 1 FAKE_ERROR=nan
has 'FAILED.*bf16 against fp32'
check 1 FAKE_CONFORMANCE=1
has 'FAILED.*suite gpu'
check 1 FAKE_SKIPPED=4 # nvidia-smi lists a GPU, and CUDA finds none
has 'FAILED.*find no device'
check 1 FAKE_NO_TESTS=1
has 'FAILED.*no tests of suite gpu'
check 1 FAKE_SANITIZER=9
has 'FAILED.*compute-sanitizer racecheck, two steps'
has 'FAILED.*compute-sanitizer memcheck, the ops of head'
check 1 FAKE_NO_STEP=1
has 'FAILED.*compute-sanitizer synccheck, two steps'
has 'passed: compute-sanitizer memcheck, the ops of group'
check 1 FAKE_UNSEEN=1
has 'FAILED.*compute-sanitizer memcheck, two steps'
check 0 FAKE_GPU='NVIDIA Unheard-of'
has 'as measured by the trainer'
chmod -x build/src/spectron-dist
check 1
has 'FAILED.*training cpu-fp32'
echo "gpu-check: decides as it should"
