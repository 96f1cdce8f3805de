#!/bin/sh
# run.sh [SECONDS]: the long form of the fuzzers, SECONDS (600) in all, shared equally. With clang: libFuzzer, AddressSanitizer and
# UndefinedBehaviorSanitizer (packages clang, libomp-dev), which learns from coverage; without: driver.c with the C compiler's sanitizers.
# Prints a line a fuzzer: executions, inputs accepted and refused, crashes and hangs of our code, and how often the HDF5 library crashed or hung in
# a reader process (contained: the file was refused and the program went on; not our defect).
# SPT_FUZZ_KIND: libfuzzer or driver, if not by what there is. SPT_FUZZ_BUILD: the build folder (build-fuzz). What it finds stays in BUILD/found. Exit: 0 nothing found, 1 a defect, 5 it cannot be built.
set -eu
cd "$(dirname "$0")/../.."
source=$PWD
seconds=${1:-600}
build=${SPT_FUZZ_BUILD:-$source/build-fuzz}
export SPT_SOURCE_ROOT="$source" SPT_TEST_READER_REPORTS=1
fail() { echo "run.sh: $*" >&2; exit 5; }
case $seconds in *[!0-9]* | '') echo "usage: sh tests/fuzz/run.sh [SECONDS]" >&2; exit 2 ;; esac

kind=${SPT_FUZZ_KIND:-}
if [ -z "$kind" ]; then
    if command -v clang++ >/dev/null 2>&1; then kind=libfuzzer; else kind=driver; fi
fi
if [ ! -f "$build/build.ninja" ]; then
    set -- "$build" --buildtype=debugoptimized -Dred_zones=true -Dwerror=false -Db_sanitize=address,undefined -Db_lundef=false
    if [ $kind = libfuzzer ]; then
        CC=clang CXX=clang++ meson setup "$@" -Dc_args=-fsanitize=fuzzer-no-link -Dcpp_args=-fsanitize=fuzzer-no-link >/dev/null || fail "meson failed"
    else
        meson setup "$@" >/dev/null || fail "meson failed"
    fi
fi
names='job token_file checkpoint'
! grep -q 'fuzz_tokenizer' "$build/build.ninja" || names="$names tokenizer"
targets=''
for name in $names; do
    targets="$targets tests/fuzz/fuzz_$name"
    [ $kind = driver ] || targets="$targets tests/fuzz/libfuzzer_$name"
done
# shellcheck disable=SC2086 # a list of words
ninja -C "$build" $targets >"$build/fuzz-build.log" 2>&1 || { tail -20 "$build/fuzz-build.log" >&2; fail "the build failed"; }

# our_reports FOLDER: sanitizers' reports whose first frame of either is ours and not the HDF5 library's; readers report too. One of undefined behaviour is always ours.
our_reports() {
    for report in "$1"/report.*; do
        [ -f "$report" ] || continue
        if grep -q 'runtime error' "$report"; then echo "$report"; continue; fi
        grep -q 'ERROR: ' "$report" || continue # a warning: HDF5 asked for more memory than there is, and was told so
        first=$(grep -m 1 -E '^ *#[0-9]+ .*(/src/(io|core|dist)/[a-z0-9_]+\.[ch]|/tests/fuzz/[a-z0-9_]+\.[ch]:|libhdf5)' "$report" || true)
        case $first in *libhdf5*) ;; *) echo "$report" ;; esac
    done
}

count=$(echo "$names" | wc -w)
share=$((seconds / count))
[ $share -gt 0 ] || share=1
status=0
for name in $names; do
    found=$build/found/$name
    mkdir -p "$found" "$build/corpus/$name" "$build/seeds/$name"
    rm -f "$found"/*
    "$build/tests/fuzz/fuzz_$name" --write-seeds "$build/seeds/$name" || fail "no seeds for $name"
    defect=0
    cd "$found"
    export ASAN_OPTIONS="log_path=$found/report:detect_leaks=1:allocator_may_return_null=1" UBSAN_OPTIONS="print_stacktrace=1:log_path=$found/report"
    if [ $kind = libfuzzer ]; then
        "$build/tests/fuzz/libfuzzer_$name" -max_total_time=$share -max_len=65536 -timeout=60 -malloc_limit_mb=256 -rss_limit_mb=4096 "$build/corpus/$name" "$build/seeds/$name" \
            >log 2>&1 || defect=1
        executions=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' log)
        crashes=$(find . -name 'crash-*' -o -name 'leak-*' -o -name 'oom-*' | wc -l)
        hangs=$(find . -name 'timeout-*' | wc -l)
    else
        "$build/tests/fuzz/fuzz_$name" --seconds $share >log 2>&1 || defect=1
        executions=$(sed -n 's/^executions: \([0-9]*\) .*/\1/p' log)
        hangs=$(grep -c '^hang:' log || true)
        crashes=$((defect - hangs))
    fi
    unset ASAN_OPTIONS UBSAN_OPTIONS
    cd "$source"
    reports=$(our_reports "$found")
    [ -z "$reports" ] || defect=1
    # a reader that crashes inside of libFuzzer leaves its input too, which is none of ours
    [ $defect = 1 ] || crashes=0
    echo "fuzz_$name ($kind): ${executions:-an unknown number of} executions in $share s, crashes $crashes, hangs $hangs; $(grep "^accepted:" "$found/log" || echo 'no counts')"
    if [ $defect = 1 ]; then
        status=1
        tail -15 "$found/log"
        echo "found: $found"
        for report in $reports; do head -20 "$report"; break; done
    fi
done
exit $status
