#!/bin/sh
# run.sh [tiny|s|all]: speed and memory of spectron-dist beside PyTorch's, on two cores of this machine.
#
# Builds (release), makes token shards from real text, then runs the trainer (1 rank x 2 threads, as a user would) and the same model in
# PyTorch (peer_pytorch.py, the better of eager and torch.compile) by turns; also the rate that the step's matrix products alone would
# allow here (bench_ceiling), 2 ranks x 1 thread, and what the optimizer, waiting for data, logging and validation take. Prints a table and
# writes it as JSON. tiny takes about 10 minutes, s an hour. Nothing else should run meanwhile.
#
#   SPT_BENCH_PYTHON  a Python with torch (default python3); without torch, ours alone is measured
#   SPT_BENCH_ROUNDS  turns (default 5)
#   SPT_BENCH_CASES   of s, only these: s-bf16 s-fp32 dense12-bf16 dense12-fp32
#   SPT_BENCH_OUT     the JSON file (default build-release/bench.json)
#   SPT_BUILD         the build folder (default build-release)
#
# PyTorch takes the whole batch in one pass, which is faster for it, the trainer passes of 2048 tokens, which are as fast for it; its peak
# memory in such passes: peer_pytorch.py --micro. The ceiling takes each product's right operand plain or, if it is a weight, packed.
# data/bench keeps text and shards for the next time. Exit: 0 measured (goals met or not), 2 bad usage, 5 something failed.
set -eu
cd "$(dirname "$0")/../.."
top=$PWD
[ $# -le 1 ] || { echo "usage: sh tests/bench/run.sh [tiny|s|all]" >&2; exit 2; }
what=${1:-all}
case $what in
tiny) cases="tiny-bf16 tiny-fp32" ;;
s) cases=${SPT_BENCH_CASES:-s-bf16 s-fp32 dense12-bf16 dense12-fp32} ;;
all) cases="tiny-bf16 tiny-fp32 s-bf16 s-fp32 dense12-bf16 dense12-fp32" ;;
*) echo "usage: sh tests/bench/run.sh [tiny|s|all]" >&2; exit 2 ;;
esac
rounds=${SPT_BENCH_ROUNDS:-5}
for case in $cases; do
    case $case in
    tiny-bf16 | tiny-fp32 | s-bf16 | s-fp32 | dense12-bf16 | dense12-fp32) ;;
    *) echo "run.sh: SPT_BENCH_CASES: $case: wants some of s-bf16 s-fp32 dense12-bf16 dense12-fp32" >&2; exit 2 ;;
    esac
done
case $rounds in '' | *[!0-9]* | 0*) echo "run.sh: SPT_BENCH_ROUNDS=$rounds: wants a number from 1" >&2; exit 2 ;; esac
python=${SPT_BENCH_PYTHON:-python3}
build=${SPT_BUILD:-$top/build-release}
out=${SPT_BENCH_OUT:-$build/bench.json}
data=$top/data/bench
runs=$top/runs/bench
trainer=$build/src/spectron-dist
threads=2
export LC_ALL=C OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
began=$(date +%s)
note() { echo "[$(($(date +%s) - began)) s] $*"; }
fail() { echo "run.sh: $*" >&2; exit 5; }

# ---- build, text, shards ----

note "packages, build"
sh jobs/install-deps.sh
{
    [ -f "$build/build.ninja" ] || meson setup "$build" --buildtype=release -Dwerror=false -Dtests=true -Dsentencepiece=enabled
    meson configure "$build" -Dtests=true # the quickstart builds without
    ninja -C "$build" src/spectron src/spectron-dist tests/bench_ceiling
} >"$top/bench-build.log" 2>&1 || { cat "$top/bench-build.log"; rm -f "$top/bench-build.log"; fail "the build failed"; }
rm -f "$top/bench-build.log"

mkdir -p "$data" "$runs"
work=$(mktemp -d)
child=
cleanup() {
    [ -z "$child" ] || kill "$child" 2>/dev/null || :
    rm -rf "$work" "$runs"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

if [ ! -f "$data/corpus.txt" ]; then
    if [ -f data/quickstart/corpus.txt ]; then
        ln data/quickstart/corpus.txt "$data/corpus.txt" 2>/dev/null || cp data/quickstart/corpus.txt "$data/corpus.txt"
    else
        sh jobs/corpus.sh small "$data/corpus.txt"
    fi
fi
# shards VOCAB: --force, because an interrupted attempt may have left a part of them
shards() {
    [ -f "$data/v$1/complete" ] && return
    note "token shards, vocabulary $1"
    "$build/src/spectron" tokenize --force --train-vocab "$1" --documents blank-line --validation-share 0.01 --output "$data/v$1" \
        "$data/corpus.txt" >"$work/log" 2>&1 || { cat "$work/log"; fail "no shards of vocabulary $1"; }
    : >"$data/v$1/complete"
}
case $cases in *tiny*) shards 4096 ;; esac
case $cases in *s-* | *dense12*) shards 32000 ;; esac

# job NAME: a job file of one of the measured models; 8192 tokens a step
job() {
    case $1 in
    tiny) model='hidden = 256|layers = 8|heads = 8|vocab = 4096|seq_len = 512' sequences=16 vocab=4096 ;;
    s) model='preset = "S"' sequences=4 vocab=32000 ;;
    dense12) model='preset = "S"|parameterization = "dense"' sequences=4 vocab=32000 ;;
    esac
    echo "[model]|$model|[batch]|sequences = $sequences|[data]|train = \"$data/v$vocab/train-*.h5\"|[checkpoint]|every = 0" | tr '|' '\n'
}
for name in tiny s dense12; do job $name >"$work/$name.toml"; done
tokens=8192

# ---- one run ----

# A GNU time tells a program's largest resident set; without one it is read while the program runs.
gnu_time=no
/usr/bin/time -f %M -o "$work/time" true 2>/dev/null && grep -qx '[0-9]*' "$work/time" && gnu_time=yes
# peak COMMAND...: runs it; $peak_kib is its largest resident set
peak() {
    status=0
    if [ $gnu_time = yes ]; then
        /usr/bin/time -q -f %M -o "$work/time" "$@" || status=$?
    else
        "$@" &
        child=$!
        while grep VmHWM "/proc/$child/status" >"$work/time.new" 2>/dev/null; do
            tr -dc '0-9\n' <"$work/time.new" >"$work/time"
            sleep 0.5
        done
        wait "$child" || status=$?
        child=
    fi
    peak_kib=$(tail -n 1 "$work/time")
    return $status
}

# column KEY FILE: the values of a key of metrics.jsonl, or of the peer's JSON
column() { sed -n "s/.*\"$1\": *\"\{0,1\}\([-+.0-9a-zA-Z]*\).*/\1/p" "$2"; }

# ours WHO CASE RANKS THREADS STEPS: one run of the trainer; the first step is dropped. Adds a line to results:
# CASE WHO tokens/s KiB optimizer's-share-at-the-paper's-step data-wait-share tokens/s-of-the-best-step
ours() {
    who=$1 case=$2 ranks=$3 each=$4 steps=$5
    run=$runs/ours
    rm -rf "$run"
    set -- "$trainer" --threads "$each" --set device.precision="${case##*-}" --set schedule.steps=$((steps + 1)) \
        --set run.output="\"$run\"" "$work/${case%-*}.toml"
    if [ "$ranks" -gt 1 ]; then set -- mpirun -np "$ranks" --bind-to none --oversubscribe "$@"; fi
    peak "$@" >"$work/log" 2>&1 || { cat "$work/log"; fail "the trainer failed: $*"; }
    for key in step_seconds optimizer_seconds data_wait_seconds; do column $key "$run/metrics.jsonl" >"$work/$key"; done
    [ "$(wc -l <"$work/step_seconds")" = $((steps + 1)) ] || fail "$run/metrics.jsonl: not $((steps + 1)) records"
    paste "$work/step_seconds" "$work/optimizer_seconds" "$work/data_wait_seconds" | awk -v who="$who" -v name="$case" -v tokens=$tokens \
        -v kib="$peak_kib" 'NR > 1 { n++; step += $1; optimizer += $2; wait += $3; if (n == 1 || $1 < best) best = $1 }
        END { whole = 1048576 / (n * tokens) * (step - optimizer)
              printf "%s %s %.2f %s %.8f %.8f %.2f\n", name, who, n * tokens / step, kib, (optimizer / n) / (optimizer / n + whole), \
                  wait / step, tokens / best }' \
        >>"$work/results"
    [ "$ranks" -gt 1 ] || sed -n 's/^1 rank × (\(cpu.*\)), micro.*/\1/p' "$work/log" >"$work/description-$case"
    rm -rf "$run"
}

# peer CASE MODE STEPS: one run of PyTorch. Adds: CASE peer:MODE tokens/s KiB KiB-after-import
peer() {
    shape=${1%-*} dense=
    [ "$shape" != dense12 ] || shape=s dense=--dense
    # shellcheck disable=SC2086
    "$python" tests/bench/peer_pytorch.py --shape "$shape" --precision "${1##*-}" --mode "$2" $dense --steps "$3" --warmup 1 \
        --threads $threads >"$work/peer.json" 2>"$work/peer.log" || { cat "$work/peer.log"; fail "the PyTorch peer failed ($1, $2)"; }
    sed -n 's/.*"seconds": \[\([^]]*\)\].*/\1/p' "$work/peer.json" | tr ',' '\n' | awk -v name="$1" -v mode="$2" -v tokens=$tokens \
        -v peak="$(column peak_mib "$work/peer.json")" -v import="$(column imported_mib "$work/peer.json")" \
        '{ n++; s += $1 } END { printf "%s peer:%s %.2f %.0f %.0f\n", name, mode, n * tokens / s, 1024 * peak, 1024 * import }' \
        >>"$work/results"
}
ceiling() { # CASE
    "$build/tests/bench_ceiling" "${1%-*}" "${1##*-}" $threads >"$work/ceiling.log" || fail "bench_ceiling failed for $1"
    cp "$work/ceiling.log" "$build/bench_ceiling-$1.txt"
    echo "$1 ceiling $(column tokens_per_second_ceiling "$work/ceiling.log") 0" >>"$work/results"
}

# ---- numbers ----

# stat_of CASE WHO [COLUMN]: median, smallest, largest of a column of the results (3: tokens/s)
stat_of() {
    awk -v name="$1" -v who="$2" -v at="${3:-3}" '$1 == name && $2 == who { print $at }' "$work/results" | sort -g |
        awk '{ v[NR] = $1 } END { if (NR) print (v[int((NR + 1) / 2)] + v[int((NR + 2) / 2)]) / 2, v[1], v[NR] }'
}
calc() { awk "BEGIN { printf \"$1\", $2 }"; }
last_rate() { tail -n 1 "$work/results" | cut -d ' ' -f 3; }
goal_of() {
    case $1 in tiny-bf16) echo 3 ;; tiny-fp32 | dense12-*) echo 1.5 ;; s-bf16) echo 2 ;; s-fp32) echo 1.3 ;; esac
}

# ---- measuring ----

torch=no
if "$python" -c 'import torch' >/dev/null 2>&1; then
    torch=yes
    "$python" tests/bench/peer_pytorch.py --version-only >"$work/versions.json" 2>/dev/null || fail "peer_pytorch.py does not run"
else
    echo "PyTorch is not installed for $python, so ours is measured alone. To compare:"
    echo "    python3 -m venv \$HOME/torch && \$HOME/torch/bin/pip install torch numpy"
    echo "    SPT_BENCH_PYTHON=\$HOME/torch/bin/python sh tests/bench/run.sh $what"
fi
"$trainer" --dry-run --threads $threads --set schedule.steps=1 "$work/tiny.toml" >"$work/dry" 2>&1 || { cat "$work/dry"; fail "the dry run failed"; }
case $(head -n 1 "$work/dry") in *bf16*) automatic=bf16 ;; *) automatic=fp32 ;; esac
: >"$work/results"

for case in $cases; do
    case $case in tiny-*) our_steps=4 peer_steps=3 ;; *) our_steps=1 peer_steps=1 ;; esac
    ceiling "$case"
    note "$case: the matrix products alone would allow $(last_rate) tokens/s"
    mode=both
    round=1
    while [ "$round" -le "$rounds" ]; do
        ours ours "$case" 1 $threads $our_steps
        line="ours $(last_rate)"
        if [ "$case" = tiny-$automatic ]; then
            ours two-ranks "$case" 2 1 $our_steps
            line="$line, 2 ranks x 1 thread $(last_rate)"
        fi
        if [ $torch = yes ]; then
            # in the first round both modes run; the faster one goes on
            if [ "$mode" = both ]; then
                peer "$case" eager $peer_steps
                eager=$(last_rate)
                peer "$case" compile $peer_steps
                compiled=$(last_rate)
                mode=$(awk "BEGIN { print (($compiled > $eager) ? \"compile\" : \"eager\") }")
                line="$line, PyTorch eager $eager, torch.compile $compiled"
            else
                peer "$case" "$mode" $peer_steps
                line="$line, PyTorch $mode $(last_rate)"
            fi
        fi
        note "$case round $round/$rounds: $line tokens/s"
        round=$((round + 1))
    done
    echo "$case mode $mode" >>"$work/modes"
    ceiling "$case" # again, so that a moment's disturbance does not lower it
done

# What goes on between the steps, in a steady run.
between_steps=40
run=$runs/steady
case $cases in *tiny*)
    note "a steady run of $between_steps steps"
    rm -rf "$run"
    "$trainer" --threads $threads --profile --set schedule.steps=$between_steps --set data.validation="\"$data/v4096/validation-*.h5\"" \
        --set validation.every=0 --set run.output="\"$run\"" "$work/tiny.toml" >"$work/steady.log" 2>&1 || { cat "$work/steady.log"; fail "the steady run failed"; }
    for key in step_seconds data_wait_seconds; do column $key "$run/metrics.jsonl" >"$work/$key"; done
    validation=$(sed -n 's/^ *beside: validation *\([0-9.]*\) .*/\1/p' "$work/steady.log")
    logging=$(sed -n 's/^ *logging *[0-9.]* *\([0-9.]*\) .*/\1/p' "$work/steady.log")
    validated=$("$build/src/spectron" inspect "$data/v4096/validation-00000.h5" | sed -n 's/^tokens: \([0-9]*\).*/\1/p')
    [ -n "$validation" ] && [ -n "$logging" ] || { cat "$work/steady.log"; fail "the profile names no validation or no logging"; }
    paste "$work/step_seconds" "$work/data_wait_seconds" | awk -v logging="$logging" -v validation="$validation" '
        { step += $1; wait += $2 }
        END { printf "%.6f %.6f %.6f %.3f\n", wait / step, logging / 100, validation / (validation + 500 * step / NR), validation }' >"$work/steady"
    rm -rf "$run"
    ;;
esac

# ---- the table ----

# met VALUE GOAL: at least; with a leading <, at most
met() { awk -v value="$1" -v goal="$2" 'BEGIN { below = sub(/^</, "", goal); print (below ? value + 0 <= goal + 0 : value + 0 >= goal + 0) ? "yes" : "no" }'; }

print_table() {
    printf '%-13s %-24s %-32s %6s %5s %4s  %-24s %6s %4s  %-14s %6s %6s %4s\n' case "ours, tokens/s" "PyTorch, tokens/s" ratio goal met \
        "peak MiB ours / PyTorch" ratio met "ceiling, tok/s" median best met
    for case in $cases; do
        # shellcheck disable=SC2046
        set -- $(stat_of "$case" ours) $(stat_of "$case" ours 4)
        our=$1 our_kib=$6
        line=$(calc '%.0f (%.0f..%.0f)' "$1, $2, $3")
        limit=$(stat_of "$case" ceiling | cut -d ' ' -f 3)
        mode=$(sed -n "s/^$case mode //p" "$work/modes")
        peer_text=- ratio=- ratio_met=- memory="$(calc '%.0f / -' "$our_kib / 1024")" memory_ratio=- memory_met=-
        if [ $torch = yes ]; then
            # shellcheck disable=SC2046
            set -- $(stat_of "$case" "peer:$mode") $(stat_of "$case" "peer:$mode" 4) $(stat_of "$case" "peer:$mode" 5)
            peer_text="$(calc '%.0f (%.0f..%.0f)' "$1, $2, $3") $mode"
            ratio=$(calc %.2f "$our / $1") ratio_met=$(met "$(calc %.4f "$our / $1")" "$(goal_of "$case")")
            memory=$(calc '%.0f / %.0f (%.0f)' "$our_kib / 1024, $6 / 1024, $7 / 1024")
            memory_ratio=$(calc %.3f "$our_kib / $6") memory_met=$(met "$memory_ratio" '<0.5')
        fi
        share=$(calc %.1f "100 * $our / $limit")
        best_share=$(calc %.1f "100 * $(stat_of "$case" ours 7 | cut -d ' ' -f 3) / $limit")
        ceiling_met=-
        case $case in dense12*) ;; *-bf16) ceiling_met=$(met "$best_share" 85) ;; esac
        printf '%-13s %-24s %-32s %6s %5s %4s  %-24s %6s %4s  %-14s %5s%% %5s%% %4s\n' "$case" "$line" "$peer_text" "$ratio" "$(goal_of "$case")" \
            "$ratio_met" "$memory" "$memory_ratio" "$memory_met" "$(calc %.0f "$limit")" "$share" "$best_share" "$ceiling_met"
    done
    echo "Medians (smallest..largest) of $rounds turn(s); in brackets after PyTorch's memory, the part it has after importing torch. Goals: memory 0.5, ceiling 85 % in bf16."
    echo "Shares of the ceiling: of the median turn, and of the best step, on which the goal is judged: the ceiling adds up products at their best moments."
    for case in $cases; do
        share=$(stat_of "$case" ours 5 | cut -d ' ' -f 1)
        printf '%-60s %10s  goal < 1 %%     %s\n' "$case: optimizer at 1,048,576 tokens a step" "$(calc '%.3f %%' "100 * $share")" "$(met "$share" '<0.01')"
    done
    case $cases in *tiny*)
        two=$(stat_of tiny-$automatic two-ranks | cut -d ' ' -f 1) one=$(stat_of tiny-$automatic ours | cut -d ' ' -f 1)
        printf '%-60s %10s  goal >= 0.95   %s\n' "tiny-$automatic: 2 ranks x 1 thread over 1 rank x 2 threads" "$(calc %.3f "$two / $one")" \
            "$(met "$(calc %.4f "$two / $one")" 0.95)"
        read -r wait logging share seconds <"$work/steady"
        printf '%-60s %10s  goal < 0.5 %%   %s\n' "tiny-$automatic: waiting for data" "$(calc '%.3f %%' "100 * $wait")" "$(met "$wait" '<0.005')"
        printf '%-60s %10s  goal < 0.5 %%   %s\n' "tiny-$automatic: logging" "$(calc '%.3f %%' "100 * $logging")" "$(met "$logging" '<0.005')"
        printf '%-60s %10s  goal < 0.5 %%   %s\n' "tiny-$automatic: validation, $validated tokens every 500 steps" "$(calc '%.3f %%' "100 * $share")" \
            "$(met "$share" '<0.005')"
        ;;
    esac
}

# ---- JSON ----

rates() { awk -v name="$1" -v who="$2" '$1 == name && $2 == who { printf "%s%s", n++ ? ", " : "", $3 }' "$work/results"; }
number() { case $1 in '' | -) echo null ;; *) echo "$1" ;; esac; }
truth() { case $1 in yes) echo true ;; no) echo false ;; *) echo null ;; esac; }
text() { printf '"%s"' "$(printf %s "$1" | tr -d '"\\\n')"; }
spread() { # CASE WHO: an object's members
    # shellcheck disable=SC2046
    set -- "$1" "$2" $(stat_of "$1" "$2")
    printf '"median": %s, "smallest": %s, "largest": %s, "turns": [%s]' "$3" "$4" "$5" "$(rates "$1" "$2")"
}
json_case() {
    case=$1
    our=$(stat_of "$case" ours | cut -d ' ' -f 1) kib=$(stat_of "$case" ours 4 | cut -d ' ' -f 3) limit=$(stat_of "$case" ceiling | cut -d ' ' -f 3)
    mode=$(sed -n "s/^$case mode //p" "$work/modes")
    printf '    {"case": "%s", "tokens_per_step": %s, "device": %s,\n' "$case" $tokens "$(text "$(cat "$work/description-$case")")"
    printf '     "ours": {%s, "peak_mib": %s},\n' "$(spread "$case" ours)" "$(calc %.1f "$kib / 1024")"
    if [ $torch = yes ]; then
        peer_rate=$(stat_of "$case" "peer:$mode" | cut -d ' ' -f 1) peer_kib=$(stat_of "$case" "peer:$mode" 4 | cut -d ' ' -f 3)
        import_kib=$(stat_of "$case" "peer:$mode" 5 | cut -d ' ' -f 3)
        printf '     "pytorch": {"mode": "%s", %s, "peak_mib": %s, "imported_mib": %s,\n' "$mode" "$(spread "$case" "peer:$mode")" \
            "$(calc %.1f "$peer_kib / 1024")" "$(calc %.1f "$import_kib / 1024")"
        printf '                 "trial_eager": %s, "trial_compile": %s},\n' "$(rates "$case" peer:eager | cut -d , -f 1)" "$(rates "$case" peer:compile | cut -d , -f 1)"
        ratio=$(calc %.4f "$our / $peer_rate") memory=$(calc %.4f "$kib / $peer_kib")
        printf '     "ratio": %s, "goal": %s, "met": %s, "memory_ratio": %s, "memory_goal": 0.5, "memory_met": %s,\n' "$ratio" "$(goal_of "$case")" \
            "$(truth "$(met "$ratio" "$(goal_of "$case")")")" "$memory" "$(truth "$(met "$memory" '<0.5')")"
    else
        printf '     "pytorch": null, "ratio": null, "goal": %s, "met": null, "memory_ratio": null, "memory_goal": 0.5, "memory_met": null,\n' "$(goal_of "$case")"
    fi
    printf '     "ceiling": %s, "ceiling_share": %s, "ceiling_share_of_best_step": %s, "optimizer_share_of_1048576_tokens": %s, "data_wait_share": %s}' "$limit" \
        "$(calc %.4f "$our / $limit")" "$(calc %.4f "$(stat_of "$case" ours 7 | cut -d ' ' -f 3) / $limit")" "$(stat_of "$case" ours 5 | cut -d ' ' -f 1)" "$(stat_of "$case" ours 6 | cut -d ' ' -f 1)"
}
cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)
flags=$(sed -n 's/^flags[^:]*: *//p' /proc/cpuinfo | head -n 1 | tr ' ' '\n' | grep -E '^(avx2|avx512f|avx512_bf16|amx_bf16|amx_tile)$' | tr '\n' ' ')
compiler=$(${CC:-cc} --version | head -n 1)
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || commit=$commit+changes
write_json() {
    printf '{\n  "date": "%s", "commit": %s, "rounds": %s, "threads": %s,\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(text "$commit")" "$rounds" $threads
    printf '  "cpu": %s, "cores": %s, "flags": %s, "compiler": %s,\n' "$(text "$cpu")" "$(nproc)" "$(text "$flags")" "$(text "$compiler")"
    printf '  "pytorch": %s,\n  "cases": [\n' "$(if [ $torch = yes ]; then cat "$work/versions.json"; else echo null; fi)"
    separator=
    for case in $cases; do
        printf %s "$separator"
        json_case "$case"
        separator=',
'
    done
    printf '\n  ]'
    case $cases in *tiny*)
        read -r wait logging share seconds <"$work/steady"
        printf ',\n  "two_ranks": {"case": "tiny-%s", %s},\n' "$automatic" "$(spread tiny-$automatic two-ranks)"
        printf '  "steady": {"steps": %s, "data_wait_share": %s, "logging_share": %s, "validation_share_every_500": %s, "validation_seconds": %s}' \
            "$between_steps" "$wait" "$logging" "$share" "$seconds"
        ;;
    esac
    printf '\n}\n'
}

echo
echo "$cpu ($(nproc) cores, ${flags% }); $compiler; commit $commit"
for case in $cases; do echo "$case: $(cat "$work/description-$case")"; done | sort -u -t : -k 2 | sed 's/^/ours, /'
[ $torch = no ] || echo "PyTorch: $(tr -d '{}"' <"$work/versions.json")"
echo
print_table
mkdir -p "$(dirname "$out")"
write_json >"$out.part" && mv "$out.part" "$out"
note "written: $out; the products of each ceiling: $build/bench_ceiling-*.txt"
