#!/bin/sh
# run.sh: installs what is missing, builds, and runs every test. Ends with the number of tests passed and failed, and a failing status when one failed.
set -eu
cd "$(dirname "$0")/.."
build=${SPT_TEST_BUILD:-$PWD/build-test}
sh jobs/install-deps.sh tests
if [ ! -f "$build/build.ninja" ]; then
    meson setup "$build" -Dred_zones=true -Dsentencepiece=enabled
fi
ninja -C "$build"
status=0
meson test -C "$build" --print-errorlogs --num-processes "$(nproc)" || status=$?
log=$build/meson-logs/testlog.json
passed=$(grep -c '"result": "OK"' "$log" || true)
skipped=$(grep -c '"result": "SKIP"' "$log" || true)
total=$(wc -l <"$log")
echo "$passed passed, $((total - passed - skipped)) failed, $skipped could not run here"
sed -n 's/.*"name": "\([^"]*\)".*"result": "SKIP".*/could not run: \1/p' "$log"
exit $status
