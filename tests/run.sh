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
# what was not built, for want of something, has no test to be skipped
[ -x "$build/tests/simgpu/spectron-dist-cuda-sim" ] || echo "could not run: suite simgpu: no CUDA toolkit, nccl.h or Boost.Context (what meson setup said tells which)"
[ -x /usr/sbin/slurmctld ] || [ -x /sbin/slurmctld ] || command -v slurmctld >/dev/null || echo "could not run: suite slurm: no slurmctld"
sed -n 's/.*"name": "\([^"]*\)".*"result": "SKIP".*/could not run: \1/p' "$log"
exit $status
