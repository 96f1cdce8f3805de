#!/bin/sh
# quickstart.sh [--short]: from a bare machine to a trained low-rank model in one command.
# Installs what is missing, builds, makes token shards from real English text (Debian packages), trains with two ranks for about five minutes
# on two cores, and shows the result. --short trains for seconds only. What is done already is not done again; an interrupted run resumes.
set -eu
cd "$(dirname "$0")/.."
top=$PWD
short=no
case "${1:-}" in
    "") ;;
    --short) short=yes ;;
    *) echo "usage: sh jobs/quickstart.sh [--short]" >&2; exit 2 ;;
esac
build=${SPT_BUILD:-$top/build-release}
data=$top/data/quickstart
name=quickstart
seconds=${SPT_QUICKSTART_SECONDS:-300}
[ $short = no ] || { name=quickstart-short; seconds=15; }
run=$top/runs/$name
began=$(date +%s)
mark() { now=$(date +%s); echo "== $1 (at $((now - began)) s)"; }

mark "1/5 packages"
sh jobs/install-deps.sh

mark "2/5 build"
[ -f "$build/build.ninja" ] || meson setup "$build" --buildtype=release -Dwerror=false -Dtests=false -Dsentencepiece=enabled >"$top/meson-setup.log" 2>&1 ||
    { cat "$top/meson-setup.log"; exit 5; }
rm -f "$top/meson-setup.log"
ninja -C "$build" >/dev/null || { ninja -C "$build"; exit 5; }
spectron=$build/src/spectron
trainer=$build/src/spectron-dist

mark "3/5 text and token shards"
mkdir -p "$data"
[ -f "$data/corpus.txt" ] || sh jobs/corpus.sh small "$data/corpus.txt"
# --force: an interrupted attempt may have left a part of it
{ [ -f "$data/tokens/train-00000.h5" ] && [ -f "$data/tokens/validation-00000.h5" ]; } ||
    "$spectron" tokenize --force --train-vocab 4096 --documents blank-line --validation-share 0.01 --output "$data/tokens" "$data/corpus.txt"

# Two ranks of one thread on two cores; Open MPI wants to be told that root and more ranks than cores are meant.
cores=$(nproc)
threads=$((cores / 2))
[ "$threads" -ge 1 ] || threads=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
launch() { mpirun -np 2 --oversubscribe --bind-to none "$trainer" --threads "$threads" "$@"; }

mark "4/5 training"
# A few steps tell the machine's speed, and so how many steps make the wanted time; written down, so that a resume has the same schedule.
steps_file=$data/steps-$name
[ -z "${SPT_QUICKSTART_STEPS:-}" ] || echo "$SPT_QUICKSTART_STEPS" >"$steps_file"
if [ ! -f "$steps_file" ]; then
    trial=$(mktemp -d)
    trap 'rm -rf "$trial"' EXIT
    launch --set run.output="\"$trial/run\"" --set schedule.steps=16 --set validation.tokens=512 configs/quickstart.toml >"$trial/log" 2>&1 ||
        { cat "$trial/log"; exit 5; }
    "$spectron" report --no-picture "$trial/run" | awk -v seconds="$seconds" \
        '$1 == "tokens/s:" { n = int(seconds * $2 / 2048); if (n < 20) n = 20; if (n > 4000) n = 4000; print n }' >"$steps_file.part"
    [ -s "$steps_file.part" ] || { echo "quickstart.sh: the trial run reported no step time" >&2; exit 5; }
    mv "$steps_file.part" "$steps_file"
fi
steps=$(cat "$steps_file")
launch --resume --set run.output="\"$run\"" --set run.name="\"$name\"" --set schedule.steps="$steps" configs/quickstart.toml

mark "5/5 result"
"$spectron" report "$run"
# yardsticks on the same validation text: an add-one bigram model of the training shards, and a compressor
"$spectron" baseline --train "$data/tokens/train-*.h5" --validation "$data/tokens/validation-*.h5" >"$data/baseline"
awk '{ value[$1] = $2 } END { printf "for comparison, add-one bigram model: loss %.4f, perplexity %.2f, %.4f bits per byte\n",
    value["loss"], value["perplexity"], value["bits_per_byte"] }' "$data/baseline"
"$spectron" inspect --text "$data/tokens/validation-00000.h5" >"$data/validation.txt"
bytes=$(wc -c <"$data/validation.txt")
packed=$(xz -9 -c "$data/validation.txt" | wc -c)
awk -v p="$packed" -v b="$bytes" 'BEGIN { printf "for comparison, xz -9 on the validation text: %.4f bits per byte\n", 8 * p / b }'
[ $short = no ] || echo "(a --short run is too short to beat them)"
mark "done"
