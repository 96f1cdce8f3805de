#!/bin/sh
# nccl.sh PROGRAM: the cases of test_nccl, each on two ranks; a fault is exit status 86 and its words.
set -eu
program=$1
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}"
run=$(cd "$(dirname "$0")/.." && pwd)/mpi_run.sh
log=$(mktemp "${TMPDIR:-/tmp}/spt-nccl.XXXXXX")
trap 'rm -f "$log"' EXIT
failed=0

# one RANKS CASE STATUS WORDS
one() {
    status=0
    sh "$run" "$1" "$program" "$2" >"$log" 2>&1 || status=$?
    if [ "$status" = "$3" ] && { [ -z "$4" ] || grep -q -- "$4" "$log"; }; then
        echo "ok: $2 on $1"
    else
        echo "FAIL: $2 on $1: exit $status, wanted $3 and: $4"
        cat "$log"
        failed=1
    fi
}

one 2 right 0 ''
one 3 right 0 ''
one 2 counts 86 'NCCL call 0 differs: rank [01] wants all-reduce of 9[56] fp32, sum, rank [01] wants all-reduce of 9[56] fp32'
one 2 order 86 'NCCL call 0 differs: rank [01] wants .* rank [01] wants .*'
SIMGPU_NCCL_SECONDS=2 one 2 absence 86 'rank 0 waits, but rank 1 did not come to it'
one 2 host 86 'ncclAllReduce: .* is no device memory'
one 2 group 86 'NCCL call 0 differs: rank [01] has a group of [12] operations'
one 2 before 86 'wrong result: all-reduce'
one 2 after 86 'wrong result: all-reduce'
SIMGPU_NCCL_FAIL_AT=0 one 2 broken 0 ''
exit $failed
