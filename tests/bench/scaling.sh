#!/bin/sh
# scaling.sh: how cost grows. Runs the trainer for some steps each (about 8 minutes on two cores, nothing else running) over hidden size,
# sequence length, vocabulary, micro-batch and ranks 1 and 2; counts, without time, what the optimizer and the communication of the paper's S
# cost on 1 to 64 ranks (bench_counts), and checks the counts of messages and bytes against real runs on as many oversubscribed ranks.
# Writes scaling.csv (measured), counts.csv (counted) and a picture (SVG) of each curve.
#
#   SPT_SCALING_SCALE=short  two points a curve, 1 step each: only to see that all works; writes to build-release/plots
#   SPT_SCALING_OUT          folder of the results (default tests/bench/plots)
#   SPT_BUILD                the build folder (default build-release)
#
# Exit: 0 done, 2 bad usage, 5 something failed.
set -eu
cd "$(dirname "$0")/../.."
top=$PWD
[ $# -eq 0 ] || { echo "usage: sh tests/bench/scaling.sh (settings: see its first lines)" >&2; exit 2; }
build=${SPT_BUILD:-$top/build-release}
case ${SPT_SCALING_SCALE:-full} in
full) short=no steps=3 out=${SPT_SCALING_OUT:-$top/tests/bench/plots} ;;
short) short=yes steps=1 out=${SPT_SCALING_OUT:-$build/plots} ;;
*) echo "scaling.sh: SPT_SCALING_SCALE=$SPT_SCALING_SCALE: wants full or short" >&2; exit 2 ;;
esac
trainer=$build/src/spectron-dist
export LC_ALL=C OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
began=$(date +%s)
note() { echo "[$(($(date +%s) - began)) s] $*"; }
fail() { echo "scaling.sh: $*" >&2; exit 5; }

note "packages, build"
sh jobs/install-deps.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
{
    [ -f "$build/build.ninja" ] || meson setup "$build" --buildtype=release -Dwerror=false -Dtests=true -Dsentencepiece=enabled
    meson configure "$build" -Dtests=true # the quickstart builds without
    ninja -C "$build" src/spectron-dist tests/make_tokens tests/bench_counts
} >"$work/log" 2>&1 || { cat "$work/log"; fail "the build failed"; }
mkdir -p "$out"

# ---- measured ----

# "a b c" in full, "a c" (ends) in short
points() { if [ $short = yes ]; then echo "$1 $(echo "$*" | sed 's/.* //')"; else echo "$*"; fi; }
column() { sed -n "s/.*\"$1\": *\([-+.0-9e]*\).*/\1/p" "$run/metrics.jsonl"; }

# point CURVE X PRECISION RANKS THREADS HIDDEN LAYERS HEADS VOCAB SEQ_LEN SEQUENCES MICRO: a run, a line of scaling.csv. The first step is
# dropped, the others' median taken.
point() {
    curve=$1 x=$2 precision=$3 ranks=$4 threads=$5 tokens=$((${10} * ${11})) run=$work/run
    [ -f "$work/v$9.h5" ] || "$build/tests/make_tokens" "$work/v$9.h5" "$9" 1000000 || fail "no shard of vocabulary $9"
    cat >"$work/job.toml" <<END
[run]
output = "run"
[model]
hidden = $6
layers = $7
heads = $8
vocab = $9
seq_len = ${10}
[schedule]
steps = $((steps + 1))
[batch]
sequences = ${11}
micro = ${12}
[data]
train = "v$9.h5"
[device]
precision = "$precision"
threads = $threads
END
    rm -rf "$run"
    set -- "$trainer" "$work/job.toml"
    [ "$ranks" = 1 ] || set -- mpirun -np "$ranks" --bind-to none --oversubscribe "$@"
    "$@" >"$work/log" 2>&1 || { cat "$work/log"; fail "$curve $x: the trainer failed"; }
    for key in step_seconds optimizer_seconds reduce_wait_seconds gather_seconds model_flops_per_second tokens_per_second; do
        column $key >"$work/$key"
    done
    (cd "$work" && paste step_seconds optimizer_seconds reduce_wait_seconds gather_seconds model_flops_per_second tokens_per_second) |
        tail -n +2 | sort -g | awk -v head="$curve,$x,$precision,$ranks,$threads,$tokens" -v tokens="$tokens" '
        { step[NR] = $1; whole += $1; optimizer += $2; wait += $3; gather += $4; flops = $5 / $6 }
        END { median = (step[int((NR + 1) / 2)] + step[int((NR + 2) / 2)]) / 2
              printf "%s,%.6f,%.1f,%.6e,%.6f,%.6f,%.6f\n", head, median, tokens / median, flops, optimizer / whole, wait / whole, gather / whole }' \
        >>"$work/scaling.csv"
    rm -rf "$run"
    note "$curve $x, $precision, $ranks rank(s) x $threads: $(tail -n 1 "$work/scaling.csv" | cut -d , -f 8) tokens/s"
}

printf '[model]\nhidden = 64\nlayers = 1\nheads = 1\nvocab = 256\nseq_len = 64\n[schedule]\nsteps = 1\n[batch]\nsequences = 1\n' >"$work/job.toml"
"$trainer" --dry-run "$work/job.toml" >"$work/log" 2>&1 || { cat "$work/log"; fail "the dry run failed"; }
precisions=fp32
case $(head -n 1 "$work/log") in *bf16*) precisions="bf16 fp32" ;; esac # elsewhere bf16 is only rounding

echo "curve,x,precision,ranks,threads,tokens_per_step,step_seconds,tokens_per_second,flops_per_token,optimizer_share,reduce_wait_share,gather_share" \
    >"$work/scaling.csv"
for precision in $precisions; do
    for h in $(points 128 256 512 1024); do point hidden "$h" "$precision" 1 2 "$h" 4 $((h / 64)) 4096 512 8 8; done
    for t in $(points 512 1024 2048 4096); do point sequence "$t" "$precision" 1 2 256 8 8 4096 "$t" $((8192 / t)) $((8192 / t)); done
    for v in $(points 1024 4096 16384 65536); do point vocabulary "$v" "$precision" 1 2 256 8 8 "$v" 512 16 16; done
    for m in $(points 1 2 4 8 16); do point micro "$m" "$precision" 1 2 256 8 8 4096 512 16 "$m"; done
    for r in 1 2; do point ranks "$r" "$precision" "$r" 1 256 8 8 4096 512 16 8; done
    point ranks 1 "$precision" 1 2 256 8 8 4096 512 16 8
done
cp "$work/scaling.csv" "$out/scaling.csv"

# ---- counted ----

all_ranks="1 2 4 8 16 32 64"
[ $short = no ] || all_ranks="1 2 4"
: >"$work/counts.csv"
for mode in all-reduce reduce-scatter; do
    printf '[model]\npreset = "S"\n[schedule]\nsteps = 1\n[dist]\nreduction = "%s"\n' $mode >"$work/s.toml" # the paper's batch is the default
    # shellcheck disable=SC2086
    "$build/tests/bench_counts" "$work/s.toml" $all_ranks >"$work/counts" || fail "bench_counts failed"
    [ -s "$work/counts.csv" ] || sed -n '1s/^/reduction,/p' "$work/counts" >"$work/counts.csv"
    sed "1d; s/^/$mode,/" "$work/counts" >>"$work/counts.csv"
done
cp "$work/counts.csv" "$out/counts.csv"

# The same program's counts for a small model against what the communicator counted in runs of 2 steps, oversubscribed. One gather more than
# steps: the initial parameters.
for mode in all-reduce reduce-scatter; do
    printf '[run]\noutput = "run"\n[model]\nhidden = 128\nlayers = 4\nheads = 4\nvocab = 4096\nseq_len = 32\n[schedule]\nsteps = 2\n[batch]\nsequences = 64\n[data]\ntrain = "v4096.h5"\n[dist]\nbucket_mib = 1\nreduction = "%s"\n[device]\nthreads = 1\n' \
        $mode >"$work/small.toml"
    for p in $all_ranks; do
        [ "$p" -gt 1 ] || continue
        rm -rf "$work/run"
        OMP_WAIT_POLICY=passive mpirun -np "$p" --bind-to none --oversubscribe "$trainer" --profile "$work/small.toml" >"$work/log" 2>&1 ||
            { cat "$work/log"; fail "$mode on $p ranks: the trainer failed"; }
        "$build/tests/bench_counts" "$work/small.toml" "$p" | awk -F , 'NR == 2 { print 2 * $6, 2 * $7, 3 * $8, 3 * $9 }' >"$work/counted"
        sed -n "s/^ *\($mode\|all-gather\): \([0-9]*\) messages, \([0-9]*\) bytes in the run.*/\2 \3/p" "$work/log" | tr '\n' ' ' | sed 's/ $//' >"$work/seen"
        [ "$(cat "$work/counted")" = "$(cat "$work/seen")" ] || fail "$mode on $p ranks: counted $(cat "$work/counted"), seen $(cat "$work/seen")"
        note "$mode on $p ranks: messages and bytes of reduction and gather as counted: $(cat "$work/seen")"
    done
done

# ---- pictures ----

# Grey text and saturated lines are readable on white and on black; the background is left open.
style="set encoding utf8; set terminal svg size 640,400 dynamic enhanced font 'sans,13'
set border 3 lc rgb '#808890'; set tics nomirror textcolor rgb '#808890'; set grid lc rgb '#808890' dt 3 lw 0.5
set xlabel textcolor rgb '#808890'; set ylabel textcolor rgb '#808890'; set title textcolor rgb '#808890'; set key textcolor rgb '#808890'
set style line 1 lc rgb '#2f81f7' lw 2 pt 7 ps 0.7; set style line 2 lc rgb '#e8710a' lw 2 pt 5 ps 0.7
set style line 3 lc rgb '#2f81f7' lw 1 dt 2; set style line 4 lc rgb '#e8710a' lw 1 dt 2; set datafile separator ','"
draw() { # FILE SCRIPT
    printf '%s\nset output "%s"\n%s\n' "$style" "$out/$1.svg" "$2" >"$work/plot"
    gnuplot "$work/plot" 2>"$work/log" || { cat "$work/log"; fail "gnuplot failed for $1.svg"; }
}

# curve NAME TITLE XLABEL: tokens/s, and dashed what the first point's FLOP/s would give
curve() {
    plot='' line=1
    for precision in $precisions; do
        awk -F , -v name="$1" -v precision="$precision" '$1 == name && $3 == precision { if (!n++) flops = $8 * $9; print $2 "," $8 "," flops / $9 }' \
            "$work/scaling.csv" >"$work/$1-$precision.csv"
        plot="$plot${plot:+, }'$work/$1-$precision.csv' using 1:2 with linespoints ls $line title '$precision', \
            '' using 1:3 with lines ls $((line + 2)) title '$precision, at the first point’s FLOP/s'"
        line=$((line + 1))
    done
    draw "$1" "set title '$2'; set xlabel '$3'; set ylabel 'tokens per second'; set logscale x 2; set logscale y; set yrange [*:*] extend
set key bottom left; plot $plot"
}
curve hidden '4 layers, vocabulary 4096, 512 tokens a sequence' 'hidden size'
curve sequence 'hidden 256, 8 layers, vocabulary 4096, 8192 tokens a step' 'sequence length (tokens)'
curve vocabulary 'hidden 256, 8 layers, 512 tokens a sequence' 'vocabulary (tokens)'
curve micro 'hidden 256, 8 layers, 16 sequences of 512 tokens a step' 'micro-batch (sequences)'

plot=''
line=1
for precision in $precisions; do
    awk -F , -v precision="$precision" '$1 == "ranks" && $3 == precision { print $4 " rank" ($4 > 1 ? "s" : "") " × " $5 " thread" ($5 > 1 ? "s" : "") "," $8 }' \
        "$work/scaling.csv" >"$work/ranks-$precision.csv"
    plot="$plot${plot:+, }'$work/ranks-$precision.csv' using 2:xtic(1) ls $line title '$precision'"
    line=$((line + 1))
done
draw ranks "set title 'hidden 256, 8 layers, 16 sequences of 512 tokens a step'; set ylabel 'tokens per second'; set yrange [0:*]
set style data histogram; set style histogram clustered gap 1; set style fill solid 0.8; set key top left; plot $plot"

counted='S, 512 sequences of 2048 tokens a step, counted'
for mode in all-reduce reduce-scatter; do grep "^$mode," "$work/counts.csv" >"$work/$mode.csv"; done
draw optimizer-share "set title '$counted'; set xlabel 'ranks'; set ylabel 'optimizer, % of a rank’s FLOPs'; set logscale x 2; set yrange [0:*]
set key top left; plot '$work/all-reduce.csv' using 2:(100 * \$6) with linespoints ls 1 title 'the busiest rank', \
'' using 2:(100 * \$5 / (\$5 + \$3)) with linespoints ls 2 title 'mean of the ranks'"
draw communication-share "set title '$counted'; set xlabel 'ranks'; set ylabel 'network, % of the bytes a rank moves'; set logscale x 2; set yrange [0:*]
set key top left; plot '$work/all-reduce.csv' using 2:(100 * \$13) with linespoints ls 1 title 'all-reduce', \
'$work/reduce-scatter.csv' using 2:(100 * \$13) with linespoints ls 2 title 'reduce-scatter'"
draw communication-bytes "set title '$counted'; set xlabel 'ranks'; set ylabel 'GB a rank and step'; set logscale x 2; set logscale y; set format y '%g'
set key top right; plot '$work/all-reduce.csv' using 2:(\$11 > 0 ? \$11 / 1e9 : NaN) with linespoints ls 1 title 'sent, all-reduce (ring)', \
'$work/reduce-scatter.csv' using 2:(\$11 > 0 ? \$11 / 1e9 : NaN) with linespoints ls 2 title 'sent, reduce-scatter (ring)', \
'$work/all-reduce.csv' using 2:(\$12 / 1e9) with linespoints ls 3 title 'memory traffic of forward and backward'"
note "written: $out/scaling.csv, counts.csv and $(find "$out" -name '*.svg' | wc -l) pictures"
