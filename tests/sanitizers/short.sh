#!/bin/sh
# usage: short.sh BUILD_DIR asan|tsan|valgrind
# The short form of tests/nightly.sh: AddressSanitizer and UndefinedBehaviorSanitizer over the unit tests of files, threads and settings; or
# ThreadSanitizer over those of threads; and each, or valgrind, over a run of two ranks with saves, validation, audits and a resume. What a sanitizer
# needs is built in BUILD_DIR/asan or /tsan, which stays for the next time.
set -eu
source=$(cd "$(dirname "$0")/../.." && pwd)
. "$source/tests/sanitizers/environment.sh"
tool=${2:-}
build=$1/$tool
case $tool in
asan)
    tests="test_checkpoint test_config test_job_toml test_metrics test_params test_post_mortem test_prefetch test_run_folder test_sampler
 test_shard_plan test_status test_token_file test_tokenizer test_watchdog"
    option=address,undefined ;;
tsan) tests="test_checkpoint test_prefetch test_run_folder test_watchdog" option=thread ;;
valgrind) SPT_STEPS=3 SPT_SHORT=1 exec sh "$source/tests/sanitizers/trainer.sh" "$1" valgrind ;;
*) sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2 ;;
esac
# without optimisation: a third of the time to build, and the more is checked
[ -f "$build/build.ninja" ] || meson setup "$build" "$source" -Doptimization=0 -Dwerror=false -Dcuda=disabled -Db_sanitize=$option -Db_lundef=false -Dred_zones=true
# shellcheck disable=SC2086
ninja -C "$build" src/spectron-dist src/spectron tests/compare_checkpoints $(printf 'tests/%s ' $tests)
reports=$(mktemp -d "${TMPDIR:-/tmp}/spt-reports.XXXXXX")
trap 'rm -rf "$reports"' EXIT
for test in $tests; do
    (
        "${tool}_environment" "$reports/$test"
        "$build/tests/$test" >"$reports/log" 2>&1 && no_reports "$reports/$test"
    ) || { tail -n 40 "$reports/log"; no_reports "$reports/$test" || :; echo "FAIL: $test" >&2; exit 1; }
done
SPT_STEPS=6 sh "$source/tests/sanitizers/trainer.sh" "$build" "$tool"
