#!/bin/sh
# usage: sh tests/nightly.sh [all | asan | tsan | valgrind | load | rehearse | campaign | flips | fuzz | mutants]...
# What takes too long for tests/run.sh: the whole suite under AddressSanitizer and UndefinedBehaviorSanitizer, the threads under
# ThreadSanitizer, two ranks under valgrind, 64 ranks for 200 steps, the rehearsal of S on 64 ranks, 200 kills, flipped bits, 10 minutes of fuzzing,
# the GPU sources without each barrier and wait. Ends with a line a part and a
# failing status when one failed. SPT_NIGHTLY names the folder of builds and reports (build-nightly).
set -u
source=$(cd "$(dirname "$0")/.." && pwd)
folder=${SPT_NIGHTLY:-$source/build-nightly}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
reports=$folder/reports
mkdir -p "$reports"
. "$source/tests/sanitizers/environment.sh"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
passed=0 failed=0
: >"$folder/summary"
: >"$folder/skipped"

# part NAME COMMAND...: its output into a file; counted. Its status is the command's
part() {
    name=$1 began=$(date +%s)
    shift
    rm -f "$reports/$name".*
    echo "-- $name, in $reports/$name.log"
    if "$@" >"$reports/$name.log" 2>&1; then
        passed=$((passed + 1)) word=passed
    else
        failed=$((failed + 1)) word=FAILED
        tail -n 40 "$reports/$name.log"
    fi
    echo "$word $name ($(($(date +%s) - began)) s)" | tee -a "$folder/summary"
    [ $word = passed ]
}

# build NAME OPTION...: a build folder of that name
build() {
    tree=$1
    shift
    [ -f "$folder/$tree/build.ninja" ] ||
        meson setup "$folder/$tree" "$source" -Dred_zones=true -Dsentencepiece=enabled "$@" >"$folder/$tree.log" 2>&1 || { cat "$folder/$tree.log"; return 1; }
    ninja -C "$folder/$tree" >>"$folder/$tree.log" 2>&1 || { tail -n 40 "$folder/$tree.log"; return 1; }
}

# suite BUILD REPORT SUITE [TEST...]: the tests, slower than usual; reports of the tool fail them too
suite() (
    build=$folder/$1 report=$2 suite=$3
    shift 3
    meson test -C "$build" --no-rebuild --suite "$suite" --timeout-multiplier 10 --num-processes "$(nproc)" --print-errorlogs "$@"
    status=$?
    no_reports "$report" || status=1
    sed -n 's/.*"name": "\([^"]*\)".*"result": "SKIP".*/could not run here: \1/p' "$build/meson-logs/testlog.json" >>"$folder/skipped"
    exit $status
)

asan_suite() (
    report=$reports/asan-$1.report
    asan_environment "$report"
    case $1 in mpi | train) mpi_environment "$folder/keep_loaded.so" ;; esac
    suite build-asan "$report" "$1"
)
asan() {
    # with sanitizers GCC warns of what their checks make it believe
    part asan-build build build-asan -Dwerror=false -Db_sanitize=address,undefined -Db_lundef=false || return 0
    for suite in unit kernels cli mpi train; do
        part "asan-$suite" asan_suite $suite
    done
}

tsan_tests() (
    report=$reports/tsan-$2.report
    tsan_environment "$report"
    [ "$1" = unit ] || mpi_environment "$folder/keep_loaded.so"
    shift_suite=$1
    shift
    suite build-tsan "$report" "$shift_suite" "$@"
)
tsan() {
    # without the simulator of GPUs: it is built with AddressSanitizer
    part tsan-build build build-tsan -Dwerror=false -Dcuda=disabled -Db_sanitize=thread -Db_lundef=false || return 0
    for test in test_prefetch test_checkpoint test_checkpoint_damage test_watchdog test_run_folder; do
        part "tsan-$test" tsan_tests unit $test
    done
    part tsan-test_checkpoint_mpi tsan_tests mpi test_checkpoint_mpi
    part tsan-trainer env SPT_STEPS=60 sh "$source/tests/sanitizers/trainer.sh" "$folder/build-tsan" tsan
}

valgrind_() {
    part valgrind-build build build-test || return 0
    part valgrind-trainer env SPT_STEPS=12 sh "$source/tests/sanitizers/trainer.sh" "$folder/build-test" valgrind
}

load() {
    part load-build build build-test || return 0
    part load env SPT_LOAD_RANKS=64 SPT_LOAD_STEPS=200 sh "$source/tests/train/load.sh" "$folder/build-test"
}

rehearse() {
    part rehearse-build build build-test || return 0
    part rehearse-64-ranks env SPT_REHEARSE_LONG=1 sh "$source/tests/train/rehearse.sh" "$folder/build-test"
}

campaign() {
    part campaign-build build build-test || return 0
    part campaign env SPT_CAMPAIGN_KILLS=200 sh "$source/tests/train/campaign.sh" "$folder/build-test"
}

flips() {
    part flips-build build build-test || return 0
    part flips "$folder/build-test/tests/test_checkpoint_damage" # its flips, each byte, its truncations: all in the suite too
}

fuzz() {
    part fuzz env SPT_FUZZ_BUILD="$folder/build-fuzz" sh "$source/tests/fuzz/run.sh" "${SPT_FUZZ_SECONDS:-600}"
}

mutants() {
    part mutants sh "$source/tests/simgpu/mutate.sh" all # wants the CUDA toolkit
}

[ $# -gt 0 ] || set -- all
for what in "$@"; do
    case $what in
    all) asan; tsan; valgrind_; load; rehearse; campaign; flips; fuzz; mutants ;;
    valgrind) valgrind_ ;;
    asan | tsan | load | rehearse | campaign | flips | fuzz | mutants) $what ;;
    *) sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2 ;;
    esac
done
echo "== $passed parts passed, $failed failed; $(wc -l <"$folder/skipped") tests of theirs could not run here"
cat "$folder/summary" "$folder/skipped"
[ $failed = 0 ]
