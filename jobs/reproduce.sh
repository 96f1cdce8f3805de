#!/bin/sh
# reproduce.sh [--scale N] [--jobs N] [--only PATTERN] [--report] [--list]: the paper's comparisons at the scale of two cores, on real text, unattended.
#
# Trains every run of jobs/reproduce/runs.sh (82, most of 290,000 parameters; two at a time, each on a core of its own), first the sweeps, then what
# takes their best learning rates, and writes configs/paper/RESULTS.md with pictures beside it: the paper's figure next to ours for every table and
# figure. An interrupted start goes on where it was; a finished run is kept as its points and not made again unless its settings change (a new build of
# the program keeps them; the report names the builds).
#
#   --scale N   widths N-fold, steps N²-fold (the cost grows as N⁴): 1 (the default) takes about 90 minutes on two cores; 0 is a trial of a minute
#               whose results mean nothing and go to runs/reproduce/scale-0
#   --jobs N    runs at a time (default: the allowed CPUs)     --report  only writes the report again     --list  prints the runs
#   --only P    makes the runs alone whose names match this extended regular expression
# Exit: 0 done, 2 bad usage, 5 something failed.
set -eu
export LC_ALL=C # numbers have a point
cd "$(dirname "$0")/.."
top=$PWD
scale=1 jobs=$(nproc) report=no list=no one= only=.
while [ $# -gt 0 ]; do
    case $1 in
    --scale | --jobs)
        case ${2:-} in [0-9] | [1-9][0-9]) ;; *) echo "reproduce.sh: $1 ${2:-}: wants a number below 100" >&2; exit 2 ;; esac
        [ "$1" = --scale ] && scale=$2 || jobs=$2
        shift ;;
    --only)
        [ -n "${2:-}" ] || { echo "reproduce.sh: --only: wants a regular expression" >&2; exit 2; }
        only=$2
        shift ;;
    --report) report=yes ;;
    --list) list=yes ;;
    --one) one=$2; shift ;; # a run by its name, for xargs below
    *) sed -n 's/^# \(reproduce.sh \[.*\]\):.*/usage: sh jobs\/\1/p' "$0" >&2; exit 2 ;;
    esac
    shift
done
[ "$jobs" -ge 1 ] || { echo "reproduce.sh: --jobs 0: wants at least 1" >&2; exit 2; }
build=${SPT_BUILD:-$top/build-release}
trainer=$build/src/spectron-dist spectron=$build/src/spectron
data=$top/data/reproduce
out=$top/runs/reproduce/scale-$scale points=$top/runs/reproduce/scale-$scale/points
base=$top/configs/paper/small/small.toml
probe=model.layers.4.self_attn.o_proj # the matrix of Figures 2 and 3
. jobs/reproduce/runs.sh
wanted() { runs | awk -v only="$only" '$2 ~ only'; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# ---- one run ----

# final NAME: its last validation loss; nothing where it diverged or has not ended
final() { awk -F, 'END { if (NR > 0 && $4 != "") print $4 }' "$points/$1.csv" 2>/dev/null; }
# best GROUP: the learning rate and weight decay with the lowest loss among a sweep's runs
best() {
    sweep "$1" | while read -r name lr decay; do loss=$(final "$name"); [ -z "$loss" ] || echo "$loss $lr $decay"; done | sort -g | awk 'NR == 1 { print $2, $3 }'
}
# resolve SETTING...: optimizer.lr=best:GROUP becomes the sweep's best learning rate and weight decay
resolve() {
    for setting; do
        case $setting in
        *=best:*)
            rate=$(best "${setting#*=best:}")
            [ -n "$rate" ] || { echo "reproduce.sh: no run of the sweep ${setting#*=best:} has ended well" >&2; return 5; }
            printf '%s=%s\noptimizer.weight_decay=%s\n' "${setting%%=best:*}" "${rate% *}" "${rate#* }" ;;
        *) printf '%s\n' "$setting" ;;
        esac
    done
}
# thin FOLDER: step, tokens, loss, validation loss of every 10th and every validated record; the last line is the last record
thin() {
    awk 'function field(key, text) { if (!match($0, "\"" key "\": *[-0-9.e+]+")) return ""; text = substr($0, RSTART, RLENGTH); sub(/.*: */, "", text); return text }
         { step = field("step"); loss = field("validation_loss_low_rank"); if (loss == "") loss = field("validation_loss") }
         step == 1 || step % 10 == 0 || loss != "" { print step "," field("tokens") "," field("loss") "," loss }' "$1/metrics.jsonl"
}
# spectral FOLDER: step, lr, dw, dy, dy_bound, w of the probed matrix, and the largest slack of all matrices
spectral() {
    awk -v probe="\"$probe\": *{" '
        function field(text, key) { if (!match(text, "\"" key "\": *[-0-9.e+]+")) return ""; text = substr(text, RSTART, RLENGTH); sub(/.*: */, "", text); return text }
        match($0, probe) {
            one = substr($0, RSTART + RLENGTH); sub(/}.*/, "", one)
            slack = 0; rest = $0
            while (match(rest, /"slack": *[-0-9.e+]+/)) { value = substr(rest, RSTART, RLENGTH); sub(/.*: */, "", value); if (value + 0 > slack) slack = value + 0; rest = substr(rest, RSTART + RLENGTH) }
            print field($0, "step") "," field($0, "lr") "," field(one, "dw") "," field(one, "dy") "," field(one, "dy_bound") "," field(one, "w") "," slack
        }' "$1/metrics.jsonl"
}
# train NAME SETTING...: unless it is there; leaves its points and no checkpoint
train() {
    name=$1
    shift
    settings=$(resolve "$@") || exit 5
    definition="$("$trainer" --version) $(cksum <"$base" | cut -d' ' -f1) $(echo "$settings" | tr '\n' ' ')"
    for matched in $(printf '%s\n' "$settings" | sed -n 's|^schedule.match_flops=\(\.\./\)*||p'); do definition="$definition $(cksum <"$matched" | cut -d' ' -f1)"; done
    if [ -f "$points/$name.csv" ] && [ "$(cat "$points/$name.definition")" = "$definition" ]; then return 0; fi
    [ "$(cat "$out/$name/definition" 2>/dev/null)" = "$definition" ] || rm -rf "${out:?}/$name"
    mkdir -p "$out/$name"
    echo "$definition" >"$out/$name/definition"
    sets=
    for setting in $settings; do sets="$sets --set $setting"; done
    began=$(date +%s) status=0
    # shellcheck disable=SC2086
    taskset -c "$(core)" "$trainer" --threads 1 --resume --set run.output="\"$out/$name/run\"" --set run.name="\"$name\"" $sets "$base" >>"$out/$name/log" 2>&1 || status=$?
    case $status in
    0 | 4) ;; # 4: diverged, which is a result
    *) echo "reproduce.sh: $name ended with exit code $status:" >&2; tail -n 3 "$out/$name/log" >&2; exit 5 ;;
    esac
    thin "$out/$name/run" >"$points/$name.part"
    [ $status = 0 ] || awk -F, -v OFS=, '{ $4 = ""; print }' "$points/$name.part" >"$points/$name.part2"
    [ $status = 0 ] || mv "$points/$name.part2" "$points/$name.part"
    case " $settings" in *spectral_every*) spectral "$out/$name/run" >"$points/$name.spectral" ;; esac
    echo "$definition" >"$points/$name.definition"
    cp "$out/build" "$points/$name.build"
    mv "$points/$name.part" "$points/$name.csv"
    echo "$began $(date +%s)" >>"$out/times"
    rm -rf "${out:?}/$name/run/checkpoints"
    if [ $status = 0 ]; then word="validation loss $(final "$name")"; else word=diverged; fi
    echo "$name: $word ($(($(date +%s) - began)) s)"
}
# core: the CPU of this slot of xargs, of those allowed
core() { taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | awk -F- -v slot="${SPT_SLOT:-0}" '{ for (c = $1; c <= (NF > 1 ? $2 : $1); c++) cpu[n++] = c } END { print cpu[slot % n] }'; }

if [ $list = yes ]; then
    wanted
    exit 0
fi
[ -n "$(wanted)" ] || { echo "reproduce.sh: --only $only: no run's name matches; --list prints them" >&2; exit 2; }
if [ $report = yes ] && [ -z "$(ls "$points" 2>/dev/null)" ]; then
    echo "reproduce.sh: --report: no run has ended in $points; start without --report" >&2
    exit 2
fi
mkdir -p "$points"
if [ -n "$one" ]; then
    # shellcheck disable=SC2046
    train $(runs | awk -v name="$one" '$2 == name { $1 = ""; print }')
    exit 0
fi

# ---- all of it ----

if [ $report = no ]; then
    sh jobs/install-deps.sh
    [ -f "$build/build.ninja" ] || meson setup "$build" --buildtype=release -Dwerror=false -Dtests=false -Dsentencepiece=enabled >"$top/meson-setup.log" 2>&1 || { cat "$top/meson-setup.log"; exit 5; }
    rm -f "$top/meson-setup.log"
    ninja -C "$build" >/dev/null || { ninja -C "$build"; exit 5; }
    git describe --always --dirty >"$out/build" 2>/dev/null || "$trainer" --version >"$out/build"
    mkdir -p "$data"
    size=small
    [ "$scale" -lt 2 ] || size=large
    [ -f "$data/$size.txt" ] || sh jobs/corpus.sh $size "$data/$size.txt"
    { [ -f "$data/tokens/train-00000.h5" ] && [ "$(cat "$data/size" 2>/dev/null)" = $size ]; } ||
        "$spectron" tokenize --force --train-vocab 1024 --documents blank-line --validation-share 0.02 --output "$data/tokens" "$data/$size.txt"
    echo $size >"$data/size"
    dense_jobs
    for stage in 1 2; do
        names=$(wanted | awk -v stage=$stage '$1 == stage { print $2 }')
        echo "== stage $stage: $(echo "$names" | grep -c .) runs, $jobs at a time"
        echo "$names" |
            xargs -r -n 1 -P "$jobs" --process-slot-var=SPT_SLOT sh jobs/reproduce.sh --scale "$scale" --one || exit 5
    done
fi
sh jobs/reproduce/report.sh "$points" "$scale" "$out/times"
