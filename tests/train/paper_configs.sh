#!/bin/sh
# configs/paper: what make.sh writes is what is there; every job loads, with the paper's parameter counts, steps and token budgets.
. "$(dirname "$0")/lib.sh"
configs=$source/configs/paper
mkdir -p again/configs/paper
cp "$configs/make.sh" again/configs/paper
sh again/configs/paper/make.sh
for part in isoflop sweeps; do diff -r "$configs/$part" "again/configs/paper/$part" || fail "$part: not what make.sh writes"; done
for file in again/configs/paper/*.toml "$configs"/*.toml; do cmp "$configs/${file##*/}" "again/configs/paper/${file##*/}" || fail "${file##*/}: not what make.sh writes"; done

# dry FILE [SETTING...]: into log; prints parameters, steps and the run's 6ND
dry() {
    file=$1
    shift
    "$trainer" --dry-run --ranks 64 --threads 1 "$@" "$file" >log 2>&1 || { cat log >&2; fail "$file"; }
    awk '/^parameters / { n = $2 } /^FLOPs of the run/ { match($0, /\([0-9]+ steps/); s = substr($0, RSTART + 1, RLENGTH - 7); c = $NF; sub(/\)/, "", c) }
         END { print n, s, c }' log
}
count=0
for file in "$configs"/*.toml "$configs"/isoflop/*.toml; do
    head -n 1 "$file" | grep -qE '^# (Table [123]|Figures? [0-9]+)' || fail "$file: its first line names no table or figure"
    dry "$file" >values
    read -r parameters steps flops <values
    echo "$(basename "$file" .toml) $parameters $steps $flops" >>all
    count=$((count + 1))
done
# name (a pattern), parameters (dense and low-rank: Table 5's, exact), steps
while read -r pattern parameters steps; do
    awk -v pattern="^$pattern\$" -v n="$parameters" -v s="$steps" '$1 ~ pattern { found = 1; if ($2 != n || $3 != s) { print; bad = 1 } } END { exit bad || !found }' all ||
        fail "$pattern: not $parameters parameters and $steps steps"
done <<END
dense-s 134105856 1786
dense-m 488295680 5664
dense-l 777856512 8657
table1-s-.* 93604608 2556
table1-m-.* 296930560 9537
table1-l-.* 453846528 14878
table2-s-.* 93604608 1800
table3-s-ratio-0.125 71387904 1800
table3-s-ratio-0.25 93604608 1800
table3-s-ratio-0.4 118506240 1800
figure12-.* 93604608 2556
figure2-s-dense-adamw 134105856 8000
figure(2-s-low-rank-adamw|3-.*) 93604608 8000
END
# factors in the feed-forward layers only: between the low-rank and the dense model
awk '$1 ~ /^figure13/ { n++; if ($2 <= 93604608 || $2 >= 134105856) exit 1 } END { exit n != 3 }' all || fail "figure13"
# the three counts of matched steps, and the overheads beside the paper's
dry "$configs/table1-l-self-guided.toml" >/dev/null
grep -qE '^steps +14878 .*by nominal 6ND \(this job.s match_count\): 14878, 6ND: 14837, all FLOPs: [0-9]+$' log || { cat log; fail "matched steps are not printed"; }
grep -qE '^  guidance .*% on top of the run.s; the paper: about 25 %' log || { cat log; fail "guidance's overhead is not printed"; }
dry "$configs/table1-l-spectron.toml" >/dev/null
grep -qE '^  overhead +0\.[0-9]+ % .*the paper: under 1 %' log || { cat log; fail "Spectron's overhead is not printed"; }
# the grid: the base's count, and 6ND is the budget to a step
sed -n 's/^\([0-9.]*[MB]\) \([0-9]*\)$/\1 \2/p' "$configs/make.sh" >sizes
awk 'NR == FNR { n[$1] = $2; next }
     $1 ~ /e1[89]-/ { split($1, part, "-"); grid++; off = $4 / part[1] - 1; if ($2 != n[part[2]] || off < -1e-4 || off > 1.001 / $3 + 1e-4) { print; bad = 1 } }
     END { exit bad || grid != 48 }' sizes all || fail "the IsoFLOP grid"
# the smallest budget's largest model sees 250M tokens, and within the paper's range no run more than 90B
awk '$1 == "2.20e18-2.7B" { exit !($3 * 1048576 > 2.4e8 && $3 * 1048576 < 2.6e8) }' all || fail "2.20e18-2.7B"
grep -L 'outside the paper' "$configs"/isoflop/*.toml | while read -r file; do awk -v file="$(basename "$file" .toml)" '$1 == file && $3 * 1048576 > 9.1e10 { exit 1 }' all || fail "$file: beyond 90B tokens"; done

for file in "$configs"/sweeps/*.variants; do
    [ "$(wc -l <"$file")" = 27 ] && [ "$(sed 's/ .*//' "$file" | sort -u | wc -l)" = 27 ] && [ "$(cut -d' ' -f2- "$file" | sort -u | wc -l)" = 27 ] || fail "$file: not 27 runs of their own"
    name=$(basename "$file" .variants)
    for line in "$(sed -n 1p "$file")" "$(sed -n 14p "$file")" "$(sed -n 27p "$file")"; do
        sets=
        for setting in $line; do sets="$sets --set $setting"; done
        # shellcheck disable=SC2086
        dry "$configs/$name.toml" $sets >/dev/null
    done
done
[ ! -e "$source/runs/paper" ] || note "runs/paper is there (not from here)"
note "$count job files"
