#!/bin/sh
# report.sh POINTS SCALE TIMES: configs/paper/RESULTS.md and the pictures beside it, from the points of jobs/reproduce.sh. Every number of ours is read
# from the points; the paper's (arXiv:2602.12429) stand here. A trial (scale 0) writes next to its points.
set -eu
export LC_ALL=C # numbers have a point
points=$1 scale=$2 times=$3
cd "$(dirname "$0")/../.."
out=${points%/points}
. jobs/reproduce/runs.sh
folder=configs/paper
[ "$scale" != 0 ] || folder=$out
pictures=$folder/results
mkdir -p "$pictures"
command -v gnuplot >/dev/null || { echo "report.sh: gnuplot is missing: apt-get install gnuplot-nox" >&2; exit 2; }

# ---- numbers ----

final() { awk -F, 'END { if (NR > 0) print $4 == "" ? "diverged" : $4 }' "$points/$1.csv" 2>/dev/null; }
# best GROUP: the run of its sweep with the lowest loss, its learning rate and weight decay
best() { sweep "$1" | while read -r name lr decay; do loss=$(final "$name"); case $loss in '' | diverged) ;; *) echo "$loss $name $lr $decay" ;; esac; done | sort -g | awk 'NR == 1 { print $2, $3, $4 }'; }
best_run() { best "$1" | cut -d' ' -f1; }
best_lr() { best "$1" | cut -d' ' -f2; }
best_loss() { final "$(best_run "$1")"; }
# whether the best rate is the sweep's lowest or highest
at_end() { sweep "$1" | cut -d' ' -f2 | sort -g | awk -v best="$(best_lr "$1")" 'NR == 1 { first = $1 } END { exit best != first && best != $1 }'; }
# all NAME...: the losses there are, each once
all() { for name; do final "$name"; done | grep -v '^$'; }
# seeds GROUP: the losses of a method's best learning rate, all seeds
seeds() { all "$(best_run "$1")" "$1-seed-2" "$1-seed-3"; }
# both GROUP: the losses of two seeds
both() { all "$1-seed-1" "$1-seed-2"; }
# lower GROUP: the lower loss of Figure 12's two rates
lower() { all "$1-lr-0.001" "$1-lr-0.01" | grep -v diverged | sort -g | head -n 1; }
# within A B GAP: A is at most GAP above B
within() { awk -v a="$1" -v b="$2" -v gap="$3" 'BEGIN { split(a, x, " "); split(b, y, " "); if (x[1] == "none" || y[1] == "none") print "not run"; else if (x[1] == "diverged" || y[1] == "diverged") print "diverged"; else printf "%s, %+.3f\n", x[1] - y[1] <= gap ? "yes" : "no", x[1] - y[1] }'; }
# summary: of losses on standard input: mean, half the range, count; "diverged" when one did
summary() { awk '{ if ($1 == "diverged") bad = 1; n++; s += $1; if (n == 1 || $1 < low) low = $1; if (n == 1 || $1 > high) high = $1 } END { if (n == 0) print "none 0 0"; else if (bad) print "diverged 0 " n; else print s / n, (high - low) / 2, n }'; }
mean() { summary | cut -d' ' -f1; }
# cell: a summary as a table's text: loss ± half the range (seeds), perplexity
cell() { summary | awk '$1 == "none" { print "not run"; next } $1 == "diverged" { print "diverged"; next } { seeds = " (1 seed)"; if ($3 > 1) seeds = sprintf(" ± %.3f (%d seeds)", $2, $3); printf "%.3f%s, perplexity %.2f\n", $1, seeds, exp($1) }'; }
# holds A B [GAP]: whether A < B by more than GAP (0) and their spreads (summaries as arguments)
holds() {
    awk -v a="$1" -v b="$2" -v gap="${3:-0}" 'BEGIN {
        split(a, x, " "); split(b, y, " "); spread = x[2] + y[2]; one = x[3] == 1 && y[3] == 1 ? " (one seed each)" : ""
        if (x[1] == "none" || y[1] == "none") print "not run"
        else if (x[1] == "diverged") print "no"
        else if (y[1] == "diverged") print "yes"
        else if (y[1] - x[1] > gap + spread) print "yes" one
        else if (gap > 0) printf "no, %.3f\n", y[1] - x[1]
        else if (y[1] - x[1] >= -spread) print "not shown, the difference (" sprintf("%.3f", x[1] - y[1]) ") is within the seeds'"'"' spread"
        else print "no" one }'
}
# ascend VALUE...: whether each is above the one before it
ascend() { awk 'BEGIN { for (i = 2; i < ARGC; i++) { if (ARGV[i] == "nan" || ARGV[i - 1] == "nan") { print "not run"; exit } if (ARGV[i] + 0 <= ARGV[i - 1] + 0) bad = 1 } print bad ? "no" : "yes" }' "$@"; }
# median FILE COLUMN [FROM]: of a telemetry's column from step FROM on
median() { awk -F, -v c="$2" -v from="${3:-1}" '$1 >= from && $c != "" { print $c }' "$points/$1.spectral" 2>/dev/null | sort -g | awk '{ x[NR] = $1 } END { if (NR) print x[int((NR + 1) / 2)]; else print "nan" }'; }
largest() { [ -f "$points/$1.spectral" ] || { echo nan; return 0; }; awk -F, -v c="$2" -v from="${3:-1}" '$1 >= from && $c > m { m = $c } END { print m + 0 }' "$points/$1.spectral" 2>/dev/null || echo nan; }
three() { case $1 in '' | nan) printf 'not run' ;; *) awk -v x="$1" 'BEGIN { printf "%.3g", x }' ;; esac; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.1f", a / b; else print "?" }'; }
# jumps of the training loss above 0.3 from one point (every 10th step) to the next
spikes() { awk -F, 'NR > 5 && $3 != "" { if ($3 > last + 0.3) n++ } $3 != "" { last = $3 } END { print n + 0 }' "$points/$1.csv" 2>/dev/null; }
# the time in which any run was under way
wall_minutes() { sort -n "$times" 2>/dev/null | awk '{ if ($1 > until) { s += $2 - $1; until = $2 } else if ($2 > until) { s += $2 - until; until = $2 } } END { printf "%.0f", s / 60 }'; }
made() { runs | while read -r _ name _; do [ ! -f "$points/$name.csv" ] || echo "$name"; done; }
builds() { made | while read -r name; do cat "$points/$name.build"; done | sort -u | paste -sd, | sed 's/,/, /g'; }
machine() { sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1; }
# parameters KIND HIDDEN: of the matrices, embedding, head and gains: 6 layers, vocabulary 1024
parameters() {
    awk -v kind="$1" -v h="$2" -v f="$(ffn "$2")" 'function r(n, m) { x = int(n / 4); return x < m ? x : m }
        BEGIN { common = 2 * 1024 * h + 13 * h
            print common + (kind == "dense" ? 6 * (4 * h * h + 3 * h * f) : 6 * (4 * r(h, h) * 2 * h + 2 * r(h, h) * (h + f) + r(f, h) * (h + f))) }'
}

# ---- pictures ----

xlabel=step # or, where runs of other lengths are compared, another word: then x is the share of each
# picture NAME TITLE KIND COLUMN YLABEL SETTING, then lines "LABEL|RUN" on standard input: a column of each run's points (KIND csv or spectral) by step
picture() {
    name=$1 title=$2 kind=$3 column=$4 ylabel=$5 setting=$6 plot=
    while IFS='|' read -r label run; do
        [ -f "$points/$run.$kind" ] || continue
        x=1
        [ "$xlabel" = step ] || x="(\$1 / $(awk -F, 'END { print $1 }' "$points/$run.$kind"))"
        plot="$plot${plot:+, }'$points/$run.$kind' using $x:$column with lines lw 2 title '$label'"
    done
    [ -n "$plot" ] || return 0
    gnuplot <<END
set terminal svg size 640,400 font 'sans,12'
set output '$pictures/$name.svg'
set datafile separator ','
set title '$title'
set xlabel '$xlabel'
set ylabel '$ylabel'
set key top right
$setting
plot $plot
END
}
# few steps are validated: lines go from one to the next
curves() { picture "$1" "$2" csv '(valid(4) ? column(4) : NaN)' 'validation loss' "set datafile missing NaN; set yrange [:*<8]"; }
telemetry_picture() { picture "$1" "$2" spectral "$3" "$4" 'set logscale y'; }
for_best() { echo "$2|$(best_run "$1")"; }
{ for_best adamw AdamW; for_best self-guided self-guided; for_best spectron Spectron; } | curves figure4 'Table 1, Figures 4 and 14a: low-rank methods'
{ for_best spectron 'both (Spectron)'; for_best muon 'orthogonalization (Muon)'; for_best renorm 'renormalization'; for_best sgd 'neither (SGD)'; } | curves figure10 'Table 2, Figure 10: components'
{ echo '0.125|ratio-0.125-seed-1'; for_best spectron 0.25; echo '0.4|ratio-0.4-seed-1'; } | curves figure11 'Table 3, Figure 11: rank ratio'
{ for lr in 0.001 0.01 0.03; do for m in spectron:Spectron adamw:AdamW self-guided:self-guided self-guided-muon:'self-guided, Muon'; do echo "${m#*:}, $lr|${m%%:*}-lr-$lr"; done; done; } | curves figure12 'Figure 12: learning rates'
{ echo 'Spectron|ffn-spectron-seed-1'; echo 'self-guided|ffn-self-guided-seed-1'; echo 'AdamW|ffn-adamw-seed-1'; } | curves figure13 'Figure 13: factors in the feed-forward layers only'
wide=${sizes##* }
{ echo "dense, Muon|equal-dense-$wide-seed-1"; echo "low-rank, Spectron|equal-low-rank-$wide-seed-1"; } | xlabel='share of the FLOPs, the same of both' curves figure5 "Figures 1, 5, 14b: equal FLOPs, hidden $wide"
{ echo 'low-rank AdamW|telemetry-adamw'; echo 'dense AdamW|telemetry-dense-adamw'; } | telemetry_picture figure2 'Figure 2: layer 4 o_proj' 3 '|dW|_2'
for part in 3:a:'|dW|_2' 4:b:'|dy|_rms' 6:c:'|W|_2'; do
    column=${part%%:*} rest=${part#*:}
    { echo 'AdamW|telemetry-adamw'; echo 'Muon|telemetry-muon'; echo 'Spectron|telemetry-spectron'; } | telemetry_picture "figure3${rest%%:*}" 'Figure 3: layer 4 o_proj' "$column" "${rest#*:}"
done
for hidden in $sizes; do # parameters, perplexity: dense, low-rank
    for kind in dense low-rank; do
        loss=$(all "equal-$kind-$hidden-seed-1" "equal-$kind-$hidden-seed-2" | mean)
        echo "$kind $hidden $loss"
    done
done | while read -r kind hidden loss; do
    case $loss in none | diverged) ;; *) echo "$kind,$hidden,$(awk -v x="$loss" 'BEGIN { printf "%.4f", exp(x) }'),$(parameters "$kind" "$hidden")" ;; esac
done >"$pictures/figure6.csv"
if [ -s "$pictures/figure6.csv" ]; then
    gnuplot <<END
set terminal svg size 640,400 font 'sans,12'
set output '$pictures/figure6.svg'
set datafile separator ','
set title 'Figure 6: perplexity by size at equal FLOPs'
set xlabel 'parameters'
set ylabel 'validation perplexity'
set logscale xy
plot '< grep ^dense "$pictures/figure6.csv"' using 4:3 with linespoints pt 7 lw 2 title 'dense, Muon', '< grep ^low "$pictures/figure6.csv"' using 4:3 with linespoints pt 7 lw 2 title 'low-rank, Spectron'
END
fi

# by_parameters HIDDEN: whether the low-rank model's perplexity lies below the dense models', interpolated (logarithms) at its number of parameters
by_parameters() {
    awk -F, -v h="$1" '$1 == "dense" { n[++k] = $4; p[k] = $3 } $1 == "low-rank" && $2 == h { at = $4; own = $3 }
        END { for (i = 1; i < k; i++) if (at != "" && n[i] <= at && at <= n[i + 1]) {
                  dense = exp(log(p[i]) + (log(at) - log(n[i])) / (log(n[i + 1]) - log(n[i])) * (log(p[i + 1]) - log(p[i])))
                  printf "%s, %.1f against %.1f\n", own < dense ? "lower" : "not lower", own, dense; exit }
              print at == "" ? "not run" : "no dense model is as small" }' "$pictures/figure6.csv"
}

# ---- the table ----

s_spectron=$(seeds spectron | summary) s_muon=$(seeds muon | summary) s_renorm=$(seeds renorm | summary)
s_sgd=$(seeds sgd | summary) s_adamw=$(seeds adamw | summary) s_guided=$(seeds self-guided | summary)
row() { echo "| $1 | $2 | $3 | $4 |"; }
rate() { best "$1" | while read -r _ lr decay; do printf 'lr %s, decay %s' "$lr" "$decay"; done; at_end "$1" && printf ', an end of its sweep' || :; }
{
    echo "# The paper's tables and figures, at two-core scale"
    echo
    if [ "$scale" = 0 ]; then echo "**A trial: these numbers mean nothing.**"; else echo "Written by \`sh jobs/reproduce.sh$([ "$scale" = 1 ] || echo " --scale $scale")\`: $(made | wc -l) of its $(runs | wc -l) runs, made in $(wall_minutes) minutes of wall time on $(nproc) cores ($(machine)) that other work shared, by $(builds)."; fi
    cat <<END

A LLaMA of 6 layers, hidden size $middle, vocabulary 1,024, sequences of 128, $steps steps of 4,096 tokens of English prose ([jobs/corpus.sh](../../jobs/corpus.sh)): the paper's methods on
about three thousandths of its S. Each method has the best learning rate of its own sweep with one seed (below) and weight decay, which are embedding's, head's and gains' too (under renormalization and SGD,
whose rates are of another size, these have a rate of 0.03); rank ratios, sizes and FFN-only models take those of the method's sweep, the dense AdamW model of Figure 2
the low-rank one's. The sweep's best run counts among a method's seeds. "±" is half the range over seeds, and a difference below the sum of two such spreads is called not shown. The paper's
numbers are of S (94M) on FineWeb unless said; only orders and ratios can be compared. The same runs at the paper's size: [README.md](README.md).

| the paper | its figure | ours | shown here |
| --- | --- | --- | --- |
END
    row "Table 1, Figures 4, 14a: AdamW" "26.43 (S), 15.54 (M), 14.57 (L)" "$(seeds adamw | cell), $(rate adamw)" ""
    row "Table 1: self-guided (AdamW)" "24.17, 15.53, 13.70" "$(seeds self-guided | cell), $(rate self-guided)" "self-guided below AdamW: $(holds "$s_guided" "$s_adamw")"
    row "Table 1: Spectron" "21.86, 14.62, 12.11" "$(seeds spectron | cell), $(rate spectron)" "Spectron below self-guided: $(holds "$s_spectron" "$s_guided"); below AdamW: $(holds "$s_spectron" "$s_adamw")"
    row "Table 1, Figure 7: HellaSwag, PIQA, ARC easy" "27.5, 58.6, 31.9 % (S, Spectron)" "not measured" "models of this size answer at chance; there is no evaluation of tasks yet"
    row "Table 2, Figure 10: neither (SGD)" "6.95" "$(seeds sgd | cell), $(rate sgd)" "more than 1 above renormalization: $(holds "$s_renorm" "$s_sgd" 1)"
    row "Table 2: renormalization alone" "3.18" "$(seeds renorm | cell), $(rate renorm)" ""
    row "Table 2: orthogonalization alone (Muon)" "3.04" "$(seeds muon | cell), $(rate muon)" "Muon below renormalization: $(holds "$s_muon" "$s_renorm")"
    row "Table 2: both (Spectron)" "3.00" "$(seeds spectron | cell), $(rate spectron)" "Spectron below Muon: $(holds "$s_spectron" "$s_muon")"
    two_spectron=$(all "$(best_run spectron)" spectron-seed-2 | summary)
    r125=$(all ratio-0.125-seed-1 ratio-0.125-seed-2 | summary) r400=$(all ratio-0.4-seed-1 ratio-0.4-seed-2 | summary)
    row "Table 3, Figure 11: ratio 0.125" "3.75" "$(all ratio-0.125-seed-1 ratio-0.125-seed-2 | cell)" "0.25 below 0.125: $(holds "$two_spectron" "$r125")"
    row "Table 3: ratio 0.25" "3.00" "$(all "$(best_run spectron)" spectron-seed-2 | cell)" ""
    row "Table 3: ratio 0.4" "2.99" "$(all ratio-0.4-seed-1 ratio-0.4-seed-2 | cell)" "0.4 below 0.25: $(holds "$r400" "$two_spectron")"
    row "Tables 4 and 5: configurations" "parameter counts" "counted, not trained: S 134,105,856, M 488,295,680, L 777,856,512; low-rank 93,604,608, 296,930,560, 453,846,528" "tests/train/dry_run.sh, paper_configs.sh; the paper calls its M 500M"
    e_dense=$(both equal-dense-$wide | summary) e_low=$(both equal-low-rank-$wide | summary)
    row "Figures 1, 5, 14b: dense (Muon) against low-rank (Spectron), equal FLOPs" "the same final loss (L: 780M, 454M)" "hidden $wide: dense $(both equal-dense-$wide | cell); low-rank $(both equal-low-rank-$wide | cell)" "low-rank at most 0.02 above dense: $(within "$e_low" "$e_dense" 0.02)"
    dense_dw=$(median telemetry-dense-adamw 3) low_dw=$(median telemetry-adamw 3)
    row "Figure 2: ‖ΔW‖₂ under AdamW, low-rank over dense" "10 to 30 ×" "medians $(three "$low_dw") and $(three "$dense_dw"): $(ratio "$low_dw" "$dense_dw") ×, at lr $(best_lr adamw)" "at least 10 ×: $(awk -v a="$low_dw" -v b="$dense_dw" 'BEGIN { if (a == "nan" || b == "nan") print "not run"; else print (a + 0 >= 10 * b) ? "yes" : "no" }')"
    row "Figure 3: AdamW explosive, Muon moderate, Spectron bounded" "curves" "largest ‖ΔW‖₂: $(three "$(largest telemetry-adamw 3)"), $(three "$(largest telemetry-muon 3)"), $(three "$(largest telemetry-spectron 3)"); largest Δy rms: $(three "$(largest telemetry-adamw 4)"), $(three "$(largest telemetry-muon 4)"), $(three "$(largest telemetry-spectron 4)"); last ‖W‖₂: $(for m in adamw muon spectron; do tail -n 1 "$points/telemetry-$m.spectral" 2>/dev/null | cut -d, -f6 | awk '{ printf "%s%.3g", sep, $1 }'; printf ' '; done)" "AdamW > Muon > Spectron, by largest ‖ΔW‖₂: $(ascend "$(largest telemetry-spectron 3)" "$(largest telemetry-muon 3)" "$(largest telemetry-adamw 3)"); by largest Δy rms: $(ascend "$(largest telemetry-spectron 4)" "$(largest telemetry-muon 4)" "$(largest telemetry-adamw 4)")"
    row "Eq. 11: ‖ΔW‖₂ ≤ η (Spectron)" "the bound" "largest ‖ΔW‖₂/η of any matrix: $(three "$(largest telemetry-spectron 7)"), from step 20 on $(three "$(largest telemetry-spectron 7 20)")" "stated: five Newton–Schulz steps exceed it at most 1.2-fold, a power iteration 1.15-fold once it is warm (20 steps) and 3-fold before; $(awk -v a="$(largest telemetry-spectron 7 20)" -v b="$(largest telemetry-spectron 7)" 'BEGIN { if (b == "nan") print "not run"; else print (a + 0 <= 1.2 * 1.15 && b + 0 <= 1.2 * 3) ? "within" : "NOT within" }')"
    for hidden in $sizes; do
        row "Figure 6: perplexity by size, hidden $hidden" "low-rank lower than a dense model of as many parameters" "dense ($(parameters dense "$hidden")) $(both "equal-dense-$hidden" | cell); low-rank ($(parameters low-rank "$hidden")) $(both "equal-low-rank-$hidden" | cell)" "at equal FLOPs and hidden size low-rank lower: $(holds "$(both "equal-low-rank-$hidden" | summary)" "$(both "equal-dense-$hidden" | summary)"); against the dense curve at as many parameters: $(by_parameters "$hidden")"
    done
    row "Figures 8, 9, 14c, App. D: scaling laws" "N ∝ C^0.479" "not run" "48 runs of 47M to 1.5B parameters: configs/paper/isoflop"
    # unstable RATE: AdamW ends more than 0.5 above its best there, where Spectron ends at most 0.2 above its own
    unstable() { awk -v a="$(final adamw-lr-"$1")" -v best="$(best_loss adamw)" -v s="$(final spectron-lr-"$1")" -v own="$(best_loss spectron)" 'BEGIN { if (a == "" || s == "") print "not run"; else print (a == "diverged" || a > best + 0.5) && s != "diverged" && s < own + 0.2 ? "yes" : "no" }'; }
    row "Figure 12: AdamW at η = 0.01" "diverges" "$(all adamw-lr-0.01 | cell), $(spikes adamw-lr-0.01) jumps of the training loss above 0.3; at 0.001 $(all adamw-lr-0.001 | cell)" "AdamW ends more than 0.5 above its best, Spectron at most 0.2 above its own: $(unstable 0.01)"
    row "the same at η = 0.03" "" "AdamW $(all adamw-lr-0.03 | cell), $(spikes adamw-lr-0.03) jumps; Spectron $(all spectron-lr-0.03 | cell), $(spikes spectron-lr-0.03) jumps" "the same question: $(unstable 0.03); a loss of 5.5 is that of the words' frequencies alone: the model is stuck there, finite, without the paper's spikes"
    row "Figure 12: Spectron at η = 0.01" "smooth" "$(all spectron-lr-0.01 | cell), $(spikes spectron-lr-0.01) jumps; at 0.001 $(all spectron-lr-0.001 | cell)" ""
    row "Figure 12: self-guided, AdamW" "better at 0.001" "at 0.01 $(all self-guided-lr-0.01 | cell); at 0.001 $(all self-guided-lr-0.001 | cell)" "0.001 below 0.01: $(holds "$(all self-guided-lr-0.001 | summary)" "$(all self-guided-lr-0.01 | summary)")"
    row "Figure 12: self-guided, Muon" "no improvement" "at 0.01 $(all self-guided-muon-lr-0.01 | cell); at 0.001 $(all self-guided-muon-lr-0.001 | cell)" "its better one not below self-guided AdamW's better one: $(awk -v m="$(lower self-guided-muon)" -v a="$(lower self-guided)" 'BEGIN { if (m == "" || a == "") print "not run"; else print (m >= a) ? "yes" : "no" }') (one seed each)"
    f_s=$(all ffn-spectron-seed-1 ffn-spectron-seed-2 | summary) f_a=$(all ffn-adamw-seed-1 ffn-adamw-seed-2 | summary) f_g=$(all ffn-self-guided-seed-1 ffn-self-guided-seed-2 | summary)
    row "Figure 13: FFN only, Spectron" "lowest" "$(all ffn-spectron-seed-1 ffn-spectron-seed-2 | cell)" "below self-guided: $(holds "$f_s" "$f_g"); below AdamW: $(holds "$f_s" "$f_a")"
    row "Figure 13: FFN only, self-guided and AdamW" "above" "$(all ffn-self-guided-seed-1 ffn-self-guided-seed-2 | cell); $(all ffn-adamw-seed-1 ffn-adamw-seed-2 | cell)" ""
    echo
    echo "Where the last column says no or not shown, this scale does not show what the paper shows."
    echo
    echo "## Sweeps"
    echo
    echo "Validation loss by learning rate, one seed; weight decay 0.1, or what stands behind the colon."
    echo
    echo "| method | |"
    echo "| --- | --- |"
    for group in spectron muon renorm sgd adamw self-guided dense-muon; do
        echo "| $group | $(sweep $group | while read -r name lr decay; do loss=$(final "$name"); [ -z "$loss" ] || printf '%s%s **%s**, ' "$lr" "$([ "$decay" = 0.1 ] || echo ":$decay")" "$(echo "$loss" | awk '{ print $1 == "diverged" ? $1 : sprintf("%.3f", $1) }')"; done)|"
    done
    echo
    echo "## Pictures"
    echo
    for picture in figure4 figure10 figure11 figure12 figure13 figure5 figure6 figure2 figure3a figure3b figure3c; do
        [ ! -f "$pictures/$picture.svg" ] || echo "![$picture](results/$picture.svg)"
    done
} >"$folder/RESULTS.part"
mv "$folder/RESULTS.part" "$folder/RESULTS.md"
echo "$folder/RESULTS.md"
