#!/bin/sh
# mutate.sh [-s SETUP] -b BUILD -t TEST FILE...: does the test notice each missing barrier and each missing wait?
#
# Copies the source tree, and there deletes, one at a time, each __syncthreads(), __syncwarp(), spt_cp_async_wait<…>() and cudaStreamWaitEvent(…) of
# the FILEs (paths from the source root). Each mutant is built by BUILD and judged by TEST, shell commands run in the copy's root, whose build folder
# SETUP makes once. A mutant is killed when TEST fails or takes more than MUTATE_SECONDS (600). One line a mutant, then a summary. Exit 0 when at
# least 95 % are killed, 1 when fewer, 2 when the tree as it is does not pass, or a mutant does not build.
#   tests/simgpu/mutate.sh -b 'ninja -C build tests/simgpu/test_attention_cuda_sim' -t build/tests/simgpu/test_attention_cuda_sim kernels/attention.cu
set -eu

setup='meson setup build -Doptimization=1 -Ddebug=false' build='' test=''
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
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d "${TMPDIR:-/tmp}/spt-mutate-XXXXXX")
trap 'rm -rf "$copy"' EXIT
(cd "$root" && git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - 2>/dev/null) | tar -C "$copy" -xf -
cd "$copy"

# delete FILE NUMBER: FILE without its NUMBER-th wait, on stdout; its line and text on stderr. Nothing when there are fewer. Comments are left alone.
delete() {
    perl -0777 -e '
        my ($file, $wanted) = @ARGV;
        open(my $in, "<", $file) or die "$file: $!";
        my $text = <$in>;
        my $number = 0;
        while ($text =~ m{/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\b(?:(__syncthreads|__syncwarp|spt_cp_async_wait\s*<[^>]*>|cudaStreamWaitEvent)\s*(\((?:[^()]++|(?2))*\)))}gs) {
            next unless defined $1;
            next unless ++$number == $wanted;
            my ($start, $end, $name) = ($-[0], $+[0], $1);
            my $line = 1 + (substr($text, 0, $start) =~ tr/\n//);
            print STDERR "$file:$line: $name\n";
            print substr($text, 0, $start), $name eq "cudaStreamWaitEvent" ? "cudaSuccess" : "(void)0", substr($text, $end);
            last;
        }' "$1" "$2"
}

limit=${MUTATE_SECONDS:-600}
sh -c "$setup" >setup.log 2>&1 || { tail -20 setup.log; exit 2; }
sh -c "$build" >build.log 2>&1 || { tail -20 build.log; echo "mutate.sh: the tree as it is does not build"; exit 2; }
timeout -k 10 "$limit" sh -c "$test" >test.log 2>&1 || { tail -20 test.log; echo "mutate.sh: the tree as it is fails"; exit 2; }

killed=0 survived=0
for file; do
    cp "$file" original
    number=1
    while delete original $number >mutant 2>name && [ -s mutant ]; do
        where=$(sed "s|^original|$file|" name)
        cp mutant "$file"
        if ! sh -c "$build" >build.log 2>&1; then
            tail -20 build.log
            echo "mutate.sh: $where: the mutant does not build"
            exit 2
        fi
        status=0
        timeout -k 10 "$limit" sh -c "$test" >test.log 2>&1 || status=$?
        if [ $status -ne 0 ]; then
            killed=$((killed + 1))
            echo "killed    $where   ($(grep -m 1 -hE 'simgpu:|FAIL|ERROR|not so' test.log || echo "exit $status"))"
        else
            survived=$((survived + 1))
            echo "SURVIVED  $where"
        fi
        cp original "$file"
        number=$((number + 1))
    done
    cp original "$file"
done
all=$((killed + survived))
echo "$killed of $all mutants killed"
[ $all -gt 0 ] && [ $((100 * killed)) -ge $((95 * all)) ]
