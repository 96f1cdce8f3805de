#!/bin/sh
# report.sh POINTS SCALE WALL: configs/paper/RESULTS.md and the pictures beside it, from the points of jobs/reproduce.sh. Every number of ours is read
# from the points; the paper's (arXiv:2602.12429) stand here. A trial (scale 0) writes next to its points.
set -eu
points=$1 scale=$2 wall=$3
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
# the sweep's best: its learning rate; whether that is the sweep's end; its run
best_lr() { sweep "$1" | while read -r name lr; do loss=$(final "$name"); case $loss in '' | diverged) ;; *) echo "$loss $lr" ;; esac; done | sort -g | awk 'NR == 1 { print $2 }'; }
mean_of_best() { final "$1-lr-$(best_lr "$1")"; }
at_end() { lr=$(best_lr "$1"); set -- $(rates "$1"); first=$1; for last; do :; done; [ "$lr" = "$first" ] || [ "$lr" = "$last" ]; }
# all NAME...: the losses there are, each once
all() { for name; do final "$name"; done | grep -v '^$'; }
# seeds GROUP: the losses of a method's best learning rate, all seeds
seeds() { all "$1-lr-$(best_lr "$1")" "$1-seed-2" "$1-seed-3"; }
# summary: of losses on standard input: mean, half the range, count; "diverged" when one did
summary() { awk '{ if ($1 == "diverged") bad = 1; n++; s += $1; if (n == 1 || $1 < low) low = $1; if (n == 1 || $1 > high) high = $1 } END { if (n == 0) print "none 0 0"; else if (bad) print "diverged 0 " n; else print s / n, (high - low) / 2, n }'; }
mean() { summary | cut -d' ' -f1; }
# cell: a summary as a table's text: loss ± half the range (seeds), perplexity
cell() { summary | awk '$1 == "none" { print "not run"; next } $1 == "diverged" { print "diverged"; next } { seeds = " (1 seed)"; if ($3 > 1) seeds = sprintf(" ± %.3f (%d seeds)", $2, $3); printf "%.3f%s, perplexity %.2f\n", $1, seeds, exp($1) }'; }
# holds A B: A < B by more than their spreads (summaries as arguments): yes, "within the spread", no
holds() { awk -v a="$1" -v b="$2" 'BEGIN { split(a, x, " "); split(b, y, " "); one = x[3] == 1 && y[3] == 1 ? " (one seed each)" : ""; if (x[1] == "none" || y[1] == "none") print "not run"; else if (x[1] == "diverged") print "no"; else if (y[1] == "diverged") print "yes"; else if (y[1] - x[1] > x[2] + y[2]) print "yes" one; else if (x[1] < y[1]) print "yes, within the seeds'"'"' spread"; else if (x[1] - y[1] <= x[2] + y[2]) print "no difference beyond the seeds'"'"' spread"; else print "no" one }'; }
# median FILE COLUMN [FROM]: of a telemetry's column from step FROM on
median() { awk -F, -v c="$2" -v from="${3:-1}" '$1 >= from && $c != "" { print $c }' "$points/$1.spectral" 2>/dev/null | sort -g | awk '{ x[NR] = $1 } END { if (NR) print x[int((NR + 1) / 2)]; else print "nan" }'; }
largest() { [ -f "$points/$1.spectral" ] || { echo nan; return 0; }; awk -F, -v c="$2" -v from="${3:-1}" '$1 >= from && $c > m { m = $c } END { print m + 0 }' "$points/$1.spectral" 2>/dev/null || echo nan; }
three() { case $1 in '' | nan) printf 'not run' ;; *) awk -v x="$1" 'BEGIN { printf "%.3g", x }' ;; esac; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.1f", a / b; else print "?" }'; }
spikes() { awk -F, 'NR > 5 { if ($3 > last + 0.3) n++ } { last = $3 } END { print n + 0 }' "$points/$1.csv" 2>/dev/null; }
wall_minutes() { awk '{ s += $1 - $2 } END { printf "%.0f", s / 60 }' "$wall" 2>/dev/null || echo "?"; }

# ---- pictures ----

# picture NAME TITLE KIND COLUMN YLABEL SETTING, then lines "LABEL|RUN" on standard input: a column of each run's points (KIND csv or spectral) by step
picture() {
    name=$1 title=$2 kind=$3 column=$4 ylabel=$5 setting=$6 plot=
    while IFS='|' read -r label run; do
        [ -f "$points/$run.$kind" ] || continue
        plot="$plot${plot:+, }'$points/$run.$kind' using 1:$column with lines lw 2 title '$label'"
    done
    [ -n "$plot" ] || return 0
    gnuplot <<END
set terminal svg size 640,400 font 'sans,12'
set output '$pictures/$name.svg'
set datafile separator ','
set title '$title'
set xlabel 'step'
set ylabel '$ylabel'
set key top right
$setting
plot $plot
END
}
# few steps are validated: lines go from one to the next
curves() { picture "$1" "$2" csv '(valid(4) ? column(4) : NaN)' 'validation loss' "set datafile missing NaN; set yrange [:*<8]"; }
telemetry_picture() { picture "$1" "$2" spectral "$3" "$4" 'set logscale y'; }
for_best() { echo "$2|$1-lr-$(best_lr "$1")"; }
{ for_best adamw AdamW; for_best self-guided self-guided; for_best spectron Spectron; } | curves figure4 'Table 1, Figures 4 and 14a: low-rank methods'
{ for_best spectron 'both (Spectron)'; for_best muon 'orthogonalization (Muon)'; for_best renorm 'renormalization'; for_best sgd 'neither (SGD)'; } | curves figure10 'Table 2, Figure 10: components'
{ echo '0.125|ratio-0.125-seed-1'; for_best spectron 0.25; echo '0.4|ratio-0.4-seed-1'; } | curves figure11 'Table 3, Figure 11: rank ratio'
{ for lr in 0.001 0.01 0.03; do for m in spectron:Spectron adamw:AdamW self-guided:self-guided self-guided-muon:'self-guided, Muon'; do echo "${m#*:}, $lr|${m%%:*}-lr-$lr"; done; done; } | curves figure12 'Figure 12: learning rates'
{ echo 'Spectron|ffn-spectron-seed-1'; echo 'self-guided|ffn-self-guided-seed-1'; echo 'AdamW|ffn-adamw-seed-1'; } | curves figure13 'Figure 13: factors in the feed-forward layers only'
wide=${sizes##* }
{ echo "dense, Muon|equal-dense-$wide-seed-1"; echo "low-rank, Spectron|equal-low-rank-$wide-seed-1"; } | curves figure5 "Figures 1, 5, 14b: equal FLOPs, hidden $wide"
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
done | awk '$3 != "none" && $3 != "diverged" { printf "%s,%d,%.4f\n", $1, $2, exp($3) }' >"$pictures/figure6.csv"
# parameters of the matrices and the embeddings: 6 layers, vocabulary 1024
awk -F, -v OFS=, 'function r(n, m) { x = int(n / 4); return x < m ? x : m }
    { h = $2; f = int((h * 8 + 24) / 48) * 16; common = 2 * 1024 * h + 13 * h
      n = $1 == "dense" ? 6 * (4 * h * h + 3 * h * f) : 6 * (4 * r(h, h) * 2 * h + 2 * r(h, h) * (h + f) + r(f, h) * (h + f))
      print $1, $2, $3, n + common }' "$pictures/figure6.csv" >"$pictures/figure6.part" && mv "$pictures/figure6.part" "$pictures/figure6.csv"
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

# ---- the table ----

s_spectron=$(seeds spectron | summary) s_muon=$(seeds muon | summary) s_renorm=$(seeds renorm | summary)
s_sgd=$(all "sgd-lr-$(best_lr sgd)" sgd-seed-2 | summary) s_adamw=$(seeds adamw | summary) s_guided=$(seeds self-guided | summary)
row() { echo "| $1 | $2 | $3 | $4 |"; }
rate() { printf 'lr %s%s' "$(best_lr "$1")" "$(at_end "$1" && printf ', an end of its sweep')"; }
{
    echo "# The paper's tables and figures, at two-core scale"
    echo
    if [ "$scale" = 0 ]; then echo "**A trial: these numbers mean nothing.**"; else echo "Written by \`sh jobs/reproduce.sh$([ "$scale" = 1 ] || echo " --scale $scale")\`: $(runs | wc -l) runs, $(ls "$points"/*.csv | wc -l) of them made, $(wall_minutes) minutes of wall time on this machine, which other work shared."; fi
    cat <<END

A LLaMA of 6 layers, hidden size $middle, vocabulary 1,024, sequences of 128, $steps steps of 4,096 tokens of English prose ([jobs/corpus.sh](../../jobs/corpus.sh)): the paper's methods on
about three thousandths of its S. Each method has the best learning rate of its own sweep with one seed (below), which is embedding's, head's and gains' too (under renormalization and SGD,
whose rates are of another size, these have 0.03), and the same weight decay, 0.1. "±" is half the range over seeds. The paper's numbers are of S (94M) on FineWeb unless said; only orders and ratios can be compared. The same runs at the paper's size: [README.md](README.md).

| the paper | its figure | ours | shown here |
| --- | --- | --- | --- |
END
    row "Table 1, Figures 4, 14a: AdamW" "26.43 (S), 15.54 (M), 14.57 (L)" "$(seeds adamw | cell), $(rate adamw)" ""
    row "Table 1: self-guided (AdamW)" "24.17, 15.53, 13.70" "$(seeds self-guided | cell), $(rate self-guided)" "self-guided below AdamW: $(holds "$s_guided" "$s_adamw")"
    row "Table 1: Spectron" "21.86, 14.62, 12.11" "$(seeds spectron | cell), $(rate spectron)" "Spectron below self-guided: $(holds "$s_spectron" "$s_guided"); below AdamW: $(holds "$s_spectron" "$s_adamw")"
    row "Table 1, Figure 7: HellaSwag, PIQA, ARC easy" "27.5, 58.6, 31.9 % (S, Spectron)" "not measured" "models of this size answer at chance; there is no evaluation of tasks yet"
    row "Table 2, Figure 10: neither (SGD)" "6.95" "$(all "sgd-lr-$(best_lr sgd)" sgd-seed-2 | cell), $(rate sgd)" "far above renormalization: $(holds "$s_renorm" "$s_sgd")"
    row "Table 2: renormalization alone" "3.18" "$(seeds renorm | cell), $(rate renorm)" ""
    row "Table 2: orthogonalization alone (Muon)" "3.04" "$(seeds muon | cell), $(rate muon)" "Muon below renormalization: $(holds "$s_muon" "$s_renorm")"
    row "Table 2: both (Spectron)" "3.00" "$(seeds spectron | cell), $(rate spectron)" "Spectron below Muon: $(holds "$s_spectron" "$s_muon")"
    two_spectron=$(all "spectron-lr-$(best_lr spectron)" spectron-seed-2 | summary)
    r125=$(all ratio-0.125-seed-1 ratio-0.125-seed-2 | summary) r400=$(all ratio-0.4-seed-1 ratio-0.4-seed-2 | summary)
    row "Table 3, Figure 11: ratio 0.125" "3.75" "$(all ratio-0.125-seed-1 ratio-0.125-seed-2 | cell)" "0.25 below 0.125: $(holds "$two_spectron" "$r125")"
    row "Table 3: ratio 0.25" "3.00" "$(all "spectron-lr-$(best_lr spectron)" spectron-seed-2 | cell)" ""
    row "Table 3: ratio 0.4" "2.99" "$(all ratio-0.4-seed-1 ratio-0.4-seed-2 | cell)" "0.4 below 0.25: $(holds "$r400" "$two_spectron")"
    row "Tables 4 and 5: configurations" "parameter counts" "the presets' counts, exact" "tests/train/dry_run.sh, paper_configs.sh"
    row "Figures 1, 5, 14b: dense (Muon) against low-rank (Spectron), equal FLOPs" "the same final loss (L: 780M, 454M)" "hidden $wide: dense $(all "equal-dense-$wide-seed-1" | cell); low-rank $(all "equal-low-rank-$wide-seed-1" | cell)" "low-rank at most the dense one's loss: $(holds "$(all "equal-low-rank-$wide-seed-1" | summary)" "$(all "equal-dense-$wide-seed-1" | summary)")"
    dense_dw=$(median telemetry-dense-adamw 3) low_dw=$(median telemetry-adamw 3)
    row "Figure 2: ‖ΔW‖₂ under AdamW, low-rank over dense" "10 to 30 ×" "medians $(three "$low_dw") and $(three "$dense_dw"): $(ratio "$low_dw" "$dense_dw") ×, at lr $(best_lr adamw)" "an order of magnitude: $(awk -v a="$low_dw" -v b="$dense_dw" 'BEGIN { if (a == "nan" || b == "nan") print "not run"; else print (a + 0 >= 5 * b) ? "yes" : "no" }')"
    row "Figure 3: AdamW explosive, Muon moderate, Spectron bounded" "curves" "largest ‖ΔW‖₂: $(three "$(largest telemetry-adamw 3)"), $(three "$(largest telemetry-muon 3)"), $(three "$(largest telemetry-spectron 3)"); largest Δy rms: $(three "$(largest telemetry-adamw 4)"), $(three "$(largest telemetry-muon 4)"), $(three "$(largest telemetry-spectron 4)"); last ‖W‖₂: $(for m in adamw muon spectron; do tail -n 1 "$points/telemetry-$m.spectral" 2>/dev/null | cut -d, -f6 | awk '{ printf "%s%.3g", sep, $1 }'; printf ' '; done)" "see the pictures"
    row "Eq. 11: ‖ΔW‖₂ ≤ η (Spectron)" "the bound" "largest ‖ΔW‖₂/η of any matrix: $(three "$(largest telemetry-spectron 7)"), from step 20 on $(three "$(largest telemetry-spectron 7 20)")" "stated: five Newton–Schulz steps exceed it at most 1.2-fold, a power iteration 1.15-fold once it is warm (20 steps) and 3-fold before; $(awk -v a="$(largest telemetry-spectron 7 20)" -v b="$(largest telemetry-spectron 7)" 'BEGIN { if (b == "nan") print "not run"; else print (a + 0 <= 1.2 * 1.15 && b + 0 <= 1.2 * 3) ? "within" : "NOT within" }')"
    for hidden in $sizes; do
        row "Figure 6: perplexity by size, hidden $hidden" "low-rank lower" "dense $(all "equal-dense-$hidden-seed-1" "equal-dense-$hidden-seed-2" | cell); low-rank $(all "equal-low-rank-$hidden-seed-1" "equal-low-rank-$hidden-seed-2" | cell)" "low-rank lower: $(holds "$(all "equal-low-rank-$hidden-seed-1" "equal-low-rank-$hidden-seed-2" | summary)" "$(all "equal-dense-$hidden-seed-1" "equal-dense-$hidden-seed-2" | summary)")"
    done
    row "Figures 8, 9, 14c, App. D: scaling laws" "N ∝ C^0.479" "not run" "48 runs of 47M to 1.5B parameters: configs/paper/isoflop"
    # unstable RATE: AdamW ends far above its best there, where Spectron ends near its own
    unstable() { awk -v a="$(final adamw-lr-"$1")" -v best="$(mean_of_best adamw)" -v s="$(final spectron-lr-"$1")" -v own="$(mean_of_best spectron)" 'BEGIN { if (a == "" || s == "") print "not run"; else print (a == "diverged" || a > best + 0.5) && s != "diverged" && s < own + 0.2 ? "yes" : "no" }'; }
    row "Figure 12: AdamW at η = 0.01" "diverges" "$(all adamw-lr-0.01 | cell), $(spikes adamw-lr-0.01) jumps of the training loss above 0.3; at 0.001 $(all adamw-lr-0.001 | cell)" "AdamW fails where Spectron does not, at 0.01: $(unstable 0.01)"
    row "the same at η = 0.03" "" "AdamW $(all adamw-lr-0.03 | cell), $(spikes adamw-lr-0.03) jumps; Spectron $(all spectron-lr-0.03 | cell), $(spikes spectron-lr-0.03) jumps" "at 0.03: $(unstable 0.03)"
    row "Figure 12: Spectron at η = 0.01" "smooth" "$(all spectron-lr-0.01 | cell), $(spikes spectron-lr-0.01) jumps; at 0.001 $(all spectron-lr-0.001 | cell)" ""
    row "Figure 12: self-guided, AdamW" "better at 0.001" "at 0.01 $(all self-guided-lr-0.01 | cell); at 0.001 $(all self-guided-lr-0.001 | cell)" ""
    row "Figure 12: self-guided, Muon" "no improvement" "at 0.01 $(all self-guided-muon-lr-0.01 | cell); at 0.001 $(all self-guided-muon-lr-0.001 | cell)" ""
    f_s=$(all ffn-spectron-seed-1 ffn-spectron-seed-2 | summary) f_a=$(all ffn-adamw-seed-1 ffn-adamw-seed-2 | summary) f_g=$(all ffn-self-guided-seed-1 ffn-self-guided-seed-2 | summary)
    row "Figure 13: FFN only, Spectron" "lowest" "$(all ffn-spectron-seed-1 ffn-spectron-seed-2 | cell)" "below self-guided: $(holds "$f_s" "$f_g"); below AdamW: $(holds "$f_s" "$f_a")"
    row "Figure 13: FFN only, self-guided and AdamW" "above" "$(all ffn-self-guided-seed-1 ffn-self-guided-seed-2 | cell); $(all ffn-adamw-seed-1 ffn-adamw-seed-2 | cell)" ""
    echo
    echo "Where the last column says no, this scale does not show what the paper shows."
    echo
    echo "## Sweeps"
    echo
    echo "Validation loss by learning rate, one seed."
    echo
    echo "| method | |"
    echo "| --- | --- |"
    for group in spectron muon renorm sgd adamw self-guided dense-muon; do
        echo "| $group | $(sweep $group | while read -r name lr; do loss=$(final "$name"); [ -z "$loss" ] || printf '%s: %s  ' "$lr" "$(echo "$loss" | awk '{ print $1 == "diverged" ? $1 : sprintf("%.3f", $1) }')"; done)|"
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
