#!/bin/sh
# mutate.sh [-s SETUP] -b BUILD -t TEST FILE...: does the test notice each missing barrier and each missing wait?
# mutate.sh all: that for the whole CUDA backend and the NCCL communicator, with the tests that are there for them.
#
# In a copy of the source tree each __syncthreads(), __syncwarp(), spt_cp_async_wait<…>(), cudaStreamWaitEvent(…), cudaEventSynchronize(…) and cudaEventQuery(…) of the FILEs (.cu, .cuh, .c, .cpp;
# paths from the source root) gets a number, and is left out when the environment's SPT_MUTANT is that number. So one build serves all mutants:
# SETUP makes the build folder, BUILD builds, TEST judges, shell commands in the copy's root. A mutant is killed when TEST fails or takes more than
# MUTATE_SECONDS (600). One line a mutant, then a summary. Exit 0 when at least 95 % are killed, 1 when fewer, 2 when the tree as it is does not pass.
#   tests/simgpu/mutate.sh -b 'ninja -C build tests/simgpu/test_attention_cuda_sim' -t build/tests/simgpu/test_attention_cuda_sim kernels/attention.cu
set -eu

if [ "${1:-}" = all ]; then
    here=build/tests/simgpu run='sh tests/mpi_run.sh' failed=0
    # each BUILT-TESTS TEST FILE...
    each() {
        built=$1 judge=$2
        shift 2
        sh "$0" -b "ninja -C build $built" -t "$judge" "$@" || failed=1
    }
    export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}"
    each tests/simgpu/test_attention_cuda_sim $here/test_attention_cuda_sim kernels/attention.cu kernels/attention_tile.cuh
    each 'tests/simgpu/test_ops_head_cuda_sim tests/simgpu/test_ops_optimizer_cuda_sim tests/simgpu/test_ops_group_cuda_sim' \
        "$here/test_ops_head_cuda_sim && $here/test_ops_optimizer_cuda_sim && $here/test_ops_group_cuda_sim" \
        kernels/cross_entropy.cu kernels/embedding.cu kernels/factor.cu kernels/rmsnorm.cu kernels/rope.cu kernels/swiglu.cu kernels/vector.cu \
        kernels/vector_access.cuh
    each 'tests/simgpu/test_backend_cuda tests/simgpu/test_comm_nccl' \
        "$here/test_backend_cuda && $run 2 $here/test_comm_nccl && $run 3 $here/test_comm_nccl" kernels/backend_cuda.c src/dist/comm_nccl.c
    exit $failed
fi

setup='meson setup build' build='' test=''
while getopts s:b:t: option; do
    case $option in
    s) setup=$OPTARG ;;
    b) build=$OPTARG ;;
    t) test=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
if [ -z "$build" ] || [ -z "$test" ] || [ $# -eq 0 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d "${TMPDIR:-/tmp}/spt-mutate-XXXXXX")
trap 'rm -rf "$copy"' EXIT
(cd "$root" && git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf -) | tar -C "$copy" -xf -
cd "$copy"

# Rewrites the FILEs; a line FILE:LINE: NAME for each call, in the order of their numbers. Comments and strings are left alone, lines keep their numbers.
perl -0777 -e '
    my $number = 0;
    for my $file (@ARGV) {
        open(my $in, "<", $file) or die "$file: $!\n";
        my $text = <$in>;
        close $in;
        my ($out, $done) = ("", 0);
        my $call = qr{/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\b(__syncthreads|__syncwarp|spt_cp_async_wait\s*<[^>]*>|cudaStreamWaitEvent|cudaEventSynchronize|cudaEventQuery)\s*(\((?:[^()]++|(?2))*\))}s;
        while ($text =~ /$call/g) {
            next unless defined $1;
            my ($start, $end, $name) = ($-[0], $+[0], $1);
            my $event = $name =~ /^cuda/;
            $number++;
            print "$file:", 1 + (substr($text, 0, $start) =~ tr/\n//), ": $name\n";
            $out .= substr($text, $done, $start - $done) . "(spt_mutant($number) ? " . ($event ? "cudaSuccess" : "(void)0") . " : " .
                substr($text, $start, $end - $start) . ")";
            $done = $end;
        }
        open(my $to, ">", $file) or die "$file: $!\n";
        print $to "#ifndef SPT_MUTANT_FUNCTION\n#define SPT_MUTANT_FUNCTION\n#include <stdlib.h>\n",
            "static inline int spt_mutant(int number) {\n  static int chosen = -1;\n",
            "  if (chosen < 0) chosen = getenv(\"SPT_MUTANT\") ? atoi(getenv(\"SPT_MUTANT\")) : 0;\n  return chosen == number;\n}\n#endif\n",
            "#line 1 \"$file\"\n", $out, substr($text, $done);
    }' "$@" >calls

limit=${MUTATE_SECONDS:-600}
sh -c "$setup" >setup.log 2>&1 || { tail -20 setup.log; exit 2; }
sh -c "$build" >build.log 2>&1 || { tail -20 build.log; echo "mutate.sh: the tree does not build"; exit 2; }
timeout -k 10 "$limit" sh -c "$test" >test.log 2>&1 || { tail -20 test.log; echo "mutate.sh: the tree as it is fails"; exit 2; }

all=0 killed=0
while read -r where; do
    all=$((all + 1)) status=0
    SPT_MUTANT=$all timeout -k 10 "$limit" sh -c "$test" </dev/null >test.log 2>&1 || status=$?
    if [ $status -eq 0 ]; then
        echo "SURVIVED  $where"
        continue
    fi
    killed=$((killed + 1))
    echo "killed    $where   ($(grep -m 1 -hE 'simgpu:|FAIL|ERROR|not so' test.log || echo "exit $status"))"
done <calls
echo "$killed of $all mutants killed"
[ $all -gt 0 ] && [ $((100 * killed)) -ge $((95 * all)) ]
