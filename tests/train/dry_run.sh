#!/bin/sh
# A dry run of every preset, low-rank and dense, prints parameters, FLOPs and memory by kind without training or data; the live line; --help.
. "$(dirname "$0")/lib.sh"
cat >job.toml <<END
[model]
preset = "S"
[schedule]
steps = 10
[batch]
sequences = 64
micro = 1
END
# preset, parameters dense and low-rank (the design's table)
while read -r preset dense low; do
    for mode in dense low-rank; do
        method=adamw want=$dense
        [ $mode = dense ] || method=spectron want=$low
        "$trainer" --dry-run --ranks 64 --threads 1 --set model.preset="\"$preset\"" --set model.parameterization=$mode --set optimizer.method=$method job.toml >log
        grep -q "^parameters  *$want\$" log || { cat log; fail "$preset $mode: not $want parameters"; }
        for line in 'FLOPs per step' 'memory per rank' 'optimizer state' 'activations' '^  telemetry  *[1-9]' 'all-reduce' 'all-gather'; do
            grep -q "$line" log || { cat log; fail "$preset $mode: no '$line'"; }
        done
    done
done <<END
60M 60039680 47456768
92M 91763840 67843200
134M 134105856 93604608
S 134105856 93604608
150M 148264704 101013248
220M 218854272 143225728
325M 322479104 200909824
500M 488295680 296930560
M 488295680 296930560
780M 777856512 453846528
L 777856512 453846528
835M 834485760 483474944
1.4B 1364297728 780765184
1.7B 1672603648 943187968
2.7B 2701560320 1495173632
END
"$trainer" --dry-run --set model.rank_ratio=0.4 job.toml | grep -q 'down_proj.A.*costs more than its dense matrix' || fail "a pair dearer than its dense matrix is not named"
"$trainer" --dry-run --set 'data.validation="none-*.h5"' --set validation.tokens=3000 --set validation.every=10 --set batch.sequences=1 job.toml |
    grep -q '^validation  *4.883 %.* at most 307 tokens, or every 98 steps' || fail "the cost of validation is not named"
[ ! -e runs ] || fail "a dry run made a folder"
for file in "$source"/configs/*.toml; do
    "$trainer" --dry-run "$file" >log || { cat log; fail "$file"; }
done
"$trainer" --help | grep -q 'Exit codes' || fail "--help"
"$trainer" --version | grep -q '^spectron-dist [0-9]' || fail "--version"

note "the CUDA backend's memory needs no GPU"
if "$trainer" --dry-run --backend cuda --ranks 8 job.toml >log 2>err; then
    for line in 'memory per GPU' 'libraries, scratch' 'memory of the host'; do grep -q "^ *$line" log || { cat log; fail "cuda: no '$line'"; }; done
    for precision in bf16 fp32 tf32; do # tf32 is how fp32 is multiplied
        "$trainer" --dry-run --backend cuda --ranks 8 --set device.precision=$precision job.toml | grep '^ *memory\|activations' >memory-$precision || fail "cuda, $precision"
    done
    cmp memory-fp32 memory-tf32 && ! cmp -s memory-fp32 memory-bf16 || fail "the memory of tf32 is not that of fp32"
    "$trainer" --dry-run --presets --backend cuda --ranks 8 job.toml >log || fail "--presets"
    # kept, a micro-batch fits and is smaller than with recomputation; larger models take smaller ones
    awk -F'|' '/^\| [0-9]/ { n++; if ($7 < 1 || $10 <= $7 || (n > 1 && $7 > last)) bad = 1; last = $7 } END { exit bad || n != 12 }' log || { cat log; fail "the presets' table"; }
    built=yes
else
    built=no
    [ "$(wc -l <err)" = 1 ] && grep -q 'no CUDA backend' err || { cat err; fail "cuda in a build without it"; }
fi
expect 2 'belongs to --dry-run' "$trainer" --presets job.toml

note "a terminal gets one live line, a log plain lines"
make_data
make_job job.toml run
[ $built = no ] || [ -e /dev/nvidiactl ] || expect 5 'no CUDA device' "$trainer" --backend cuda job.toml
"$trainer" --threads 1 job.toml >plain.log 2>&1 || { cat plain.log; fail plain; }
if grep -q "$(printf '\r')" plain.log; then fail "carriage returns in a log"; fi
grep -q 'step 20/20  loss .* lr .* tokens/s .* of peak .* left' plain.log || { cat plain.log; fail "the last step's line"; }
script -qec "'$trainer' --threads 1 --set run.output=run-live job.toml" live.log >/dev/null || { cat live.log; fail live; }
grep -q "$(printf '\r')" live.log || { cat live.log; fail "no live line on a terminal"; }
