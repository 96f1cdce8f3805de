#!/bin/sh
# save_stall.sh [STEPS [TOKENS]]: how long saves hold up the training of model S, a save every STEPS (100) steps of TOKENS (512) tokens.
#
# Two saves in the middle of a run are measured from its metrics.jsonl: save_seconds (the snapshot's copy, waiting for a save that is not finished,
# tidying) and by how much the steps beside the writing thread are slower than the median of those long after a save. Their sum is a share of the
# wall time between two saves. What a save costs does not depend on the tokens of a step, so larger steps make the share smaller in proportion.
# Random ids serve as data. Nothing else should run meanwhile.
#
#   SPT_BUILD         the build folder (default build-release)
#   SPT_BENCH_FOLDER  where the run writes, about 4 GB (default runs/bench)
#   SPT_BENCH_RANKS   ranks (default 2)  SPT_BENCH_THREADS  threads of each (default 1)
# Exit: 0 measured, 2 bad usage, 5 something failed.
set -eu
cd "$(dirname "$0")/../.."
top=$PWD
every=${1:-100} tokens=${2:-512} ranks=${SPT_BENCH_RANKS:-2}
for number in "$every" "$tokens" "$ranks"; do
    case $number in '' | *[!0-9]* | 0*) echo "save_stall.sh: $number: wants a number from 1" >&2; exit 2 ;; esac
done
build=${SPT_BUILD:-$top/build-release}
runs=${SPT_BENCH_FOLDER:-$top/runs/bench}
[ -f "$build/build.ninja" ] || meson setup "$build" --buildtype=release -Dwerror=false -Dsentencepiece=disabled
ninja -C "$build" src/spectron-dist tests/make_tokens >/dev/null
mkdir -p "$runs"
work=$(mktemp -d "$runs/save-stall.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
"$build/tests/make_tokens" "$work/tokens.h5" 32000 2000000
cat >"$work/job.toml" <<END
[run]
output = "run"
[model]
preset = "S"
seq_len = 128
[schedule]
steps = $((every * 3))
[batch]
sequences = $((tokens / 128))
[data]
train = "tokens.h5"
[checkpoint]
every = $every
keep = 2
END
OMP_NUM_THREADS=1 sh tests/mpi_run.sh "$ranks" "$build/src/spectron-dist" --threads "${SPT_BENCH_THREADS:-1}" "$work/job.toml" >"$work/log" 2>&1 || { cat "$work/log"; exit 5; }
sed -n '2p' "$work/log"
file=$(stat -c %s "$work/run/checkpoints/$(printf 'step-%08d.h5' $((every * 3)))")
sed -E 's/.*"step":([0-9]+),.*"step_seconds":([-0-9.e+]+),.*"save_seconds":([-0-9.e+]+),.*/\1 \2 \3/' "$work/run/metrics.jsonl" |
    awk -v every="$every" -v tokens="$tokens" -v bytes="$file" '
    { step[$1] = $2; save[$1] = $3 }
    # the median of the second half of an interval, when the file has long been written
    function median(from, to,   n, i, j, x, a) {
        n = 0
        for (i = from; i <= to; i++) a[++n] = step[i]
        for (i = 2; i <= n; i++) { x = a[i]; for (j = i; j > 1 && a[j - 1] > x; j--) a[j] = a[j - 1]; a[j] = x }
        return a[int((n + 1) / 2)]
    }
    END {
        for (s = every; s <= 2 * every; s += every) {
            quiet = median(s + int(every / 2), s + every - 1)
            held = slower = wall = 0
            for (i = s + 1; i < s + every; i++) { held += save[i]; wall += step[i] + save[i]; if (i <= s + every / 2) slower += step[i] - quiet }
            printf "save of step %d: the steps waited %.3f s and were %.3f s slower in all; %d steps of %d tokens (%.3f s each) took %.1f s: stall %.2f %%, waiting alone %.2f %%\n",
                s, held, slower, every - 1, tokens, quiet, wall, 100 * (held + slower) / wall, 100 * held / wall
            waited += held / 2
            all += (held + slower) / 2
        }
        printf "file %.2f GB; a save costs %.2f s, of which %.2f s are waiting: under 2 %% of 100 steps where a step takes more than %.2f s\n",
            bytes / 1e9, all, waited, all / 2
    }'
