#!/bin/sh
# usage: short.sh BUILD_DIR
# The short form of tests/nightly.sh: AddressSanitizer and UndefinedBehaviorSanitizer over the unit tests of files, threads and settings, and a
# run of two ranks with saves, validation, audits and a resume. Builds them in BUILD_DIR/sanitized, which stays for the next time.
set -eu
source=$(cd "$(dirname "$0")/../.." && pwd)
. "$source/tests/sanitizers/environment.sh"
build=$1/sanitized
tests="test_checkpoint test_config test_job_toml test_metrics test_params test_post_mortem test_prefetch test_run_folder test_sampler
 test_shard_plan test_status test_token_file test_tokenizer test_watchdog"
# without optimisation: a third of the time to build, and the more is checked
[ -f "$build/build.ninja" ] || meson setup "$build" "$source" -Doptimization=0 -Db_sanitize=address,undefined -Db_lundef=false -Dred_zones=true
# shellcheck disable=SC2086
ninja -C "$build" src/spectron-dist src/spectron tests/compare_checkpoints $(printf 'tests/%s ' $tests)
reports=$(mktemp -d "${TMPDIR:-/tmp}/spt-reports.XXXXXX")
trap 'rm -rf "$reports"' EXIT
for test in $tests; do
    (
        asan_environment "$reports/$test"
        "$build/tests/$test" >"$reports/log" 2>&1 && no_reports "$reports/$test"
    ) || { tail -n 40 "$reports/log"; no_reports "$reports/$test" || :; echo "FAIL: $test" >&2; exit 1; }
done
SPT_STEPS=6 sh "$source/tests/sanitizers/trainer.sh" "$build" asan
