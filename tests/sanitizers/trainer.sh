#!/bin/sh
# usage: trainer.sh BUILD_DIR [asan|tsan|valgrind]
# Two ranks of the trainer under a tool, by which BUILD_DIR was built, or under valgrind: data, saves in the background,
# validation, audits, the watchdog; stop and resume, a resume from an older file, an error. The tool must report nothing. SPT_STEPS: how many steps (12); SPT_SHORT=1: no
# more than the run and its resume.
. "$(dirname "$0")/../train/lib.sh"
. "$source/tests/sanitizers/environment.sh"
tool=${2:-asan} steps=${SPT_STEPS:-12} checker=
export TSAN_OPTIONS=report_bugs=0 # the tokenizer, all OpenMP, is not what is looked at here
make_data
make_job job.toml run
mkdir report
case $tool in
asan) asan_environment "$work/report/asan" ;;
tsan) tsan_environment "$work/report/tsan" ;;
valgrind) checker "$work/report/valgrind" ;;
*) fail "usage: trainer.sh BUILD_DIR [asan|tsan|valgrind]" ;;
esac
[ "$tool" = valgrind ] || mpi_environment "$work/keep_loaded.so"

# under CODE ARGUMENT...: the trainer on two ranks, with the exit code
under() {
    code=$1
    shift
    status=0
    # shellcheck disable=SC2086
    sh "$mpi_run" 2 $checker "$trainer" --threads 1 --set dist.audit_every=2 --set checkpoint.every=3 --set validation.every=4 --set validation.tokens=512 \
        --set model.hidden=24 --set model.heads=2 --set model.ffn=40 --set batch.sequences=4 --set batch.micro=1 "$@" job.toml >log 2>&1 || status=$?
    [ "$status" = "$code" ] || { cat log; no_reports "$work/report/$tool" || :; fail "exit $status instead of $code: $*"; }
    no_reports "$work/report/$tool" || fail "$tool reports: $*"
}
note "$steps steps under $tool, and a resume"
under 0 --set schedule.steps="$steps"
under 0 --resume --set schedule.steps=$((steps + 3)) --set dist.reduction=reduce-scatter
[ "$(wc -l <run/metrics.jsonl)" = $((steps + 3)) ] || fail "not each step once in metrics.jsonl"
[ -z "${SPT_SHORT:-}" ] || exit 0
note "a damaged newest checkpoint, an older one serves"
newest=$(ls run/checkpoints/step-*.h5 | tail -n 1)
dd if=/dev/zero of="$newest" bs=1 seek=20000 count=64 conv=notrunc 2>/dev/null
under 0 --resume --set schedule.steps=$((steps + 4)) --set dist.reduction=tree
note "an error on both ranks"
under 3 --set 'data.train="data/nothing-here-*.h5"' --set run.output=run-none
under 2 --set run.output=run # holds checkpoints
