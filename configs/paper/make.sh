#!/bin/sh
# make.sh: writes the job files of this folder, one a training run of the paper (arXiv:2602.12429), and the sweeps of its App. E.3.
# What a file says was read off here; the paper's numbers that it must come to are checked by tests/train/paper_configs.sh.
set -eu
cd "$(dirname "$0")"
rm -f dense-?.toml table[123]-*.toml figure2-*.toml figure3-*.toml figure12-*.toml figure13-*.toml isoflop/*-*.toml sweeps/*.variants
mkdir -p isoflop sweeps

# job FILE WHAT: begins a job file; its tables follow on standard input. Paths are those of a file in `folder`, as many levels below the top.
job() {
    case $1 in */*) up=../../.. ;; *) up=../.. ;; esac
    name=$(basename "$1")
    {
        echo "# $2"
        echo '[run]'
        echo "output = \"$up/runs/paper/$name\""
        echo
        cat
        echo
        echo '[data]'
        echo "train = \"$up/data/fineweb/train-*.h5\""
        echo "validation = \"$up/data/fineweb/validation-*.h5\""
        echo
        echo '[validation]'
        echo 'tokens = 100_000_000'
    } >"$1.toml"
}
# model PRESET [PARAMETERIZATION [RANK_RATIO]]
model() {
    echo '[model]'
    echo "preset = \"$1\""
    [ "${2:-low-rank}" = low-rank ] || echo "parameterization = \"$2\""
    [ -z "${3:-}" ] || echo "rank_ratio = $3"
    echo
}
# method NAME LR [printed]: the paper prints the learning rates of Figure 12 only
method() {
    echo '[optimizer]'
    echo "method = \"$1\""
    [ "${3:-}" = printed ] && echo "lr = $2" || echo "lr = $2 # ours: the paper took the best of a sweep"
    echo
}
guided() {
    echo '[guidance]'
    echo 'method = "self-guided"'
    echo 'stochastic = true # ours: the 25 % more FLOPs that the paper counts are this variant'"'"'s'
    echo
}
# steps N [ours]
steps() {
    echo '[schedule]'
    echo "steps = $1${2:+ # ours: not printed}"
}
# matched JOB: as many steps as spend its FLOPs, as the paper counts them
matched() {
    echo '[schedule]'
    echo "match_flops = \"$1.toml\"${2:+ # ours: the steps are not printed}"
}
# The update's norms and activations of every matrix (Figures 2 and 3)
telemetry() {
    echo
    echo '[metrics]'
    echo "spectral_every = $1"
}

# ---- the models of Table 1 and Figures 1, 4, 5, 6, 7 and 14: dense by Muon, and low-rank at the same FLOPs by three methods ----
for size in s:S:1786 m:M:5664 l:L:8657; do
    IFS=: read -r low preset dense <<END
$size
END
    { model "$preset" dense; method muon 0.01; steps "$dense"; } | job "dense-$low" "Figures 5, 6, 7, 14b (L: Figure 1): dense Transformer-$preset, Muon"
    { model "$preset"; method adamw 0.001; matched "dense-$low"; } | job "table1-$low-adamw" "Table 1, Figure 14a (M: Figure 4): Transformer-$preset, naive AdamW"
    { model "$preset"; method adamw 0.001; guided; matched "dense-$low"; } |
        job "table1-$low-self-guided" "Table 1, Figure 14a (M: Figure 4): Transformer-$preset, self-guided, AdamW"
    { model "$preset"; method spectron 0.01; matched "dense-$low"; } |
        job "table1-$low-spectron" "Table 1, Figures 5, 6, 7, 14 (L: Figure 1; M: Figure 4): Transformer-$preset, Spectron"
done

# ---- App. B.1: what each component does; B.2: the rank ratio; both of S over 1,800 steps ----
for row in sgd:no:no renorm:no:yes muon:yes:no spectron:yes:yes; do
    IFS=: read -r name orthogonalization renormalization <<END
$row
END
    { model S; method "$name" 0.01; steps 1800; } |
        job "table2-s-$name" "Table 2, Figure 10: orthogonalization $orthogonalization, spectral renormalization $renormalization"
done
for ratio in 0.125 0.25 0.4; do
    { model S low-rank $ratio; method spectron 0.01; steps 1800; } | job "table3-s-ratio-$ratio" "Table 3, Figure 11: rank ratio $ratio"
done

# ---- B.3: learning rates; B.4: factors in the feed-forward layers only. How many steps the paper trained is not printed: those of Table 1 ----
for lr in 0.001 0.01; do
    { model S; method adamw $lr printed; matched dense-s ours; } | job "figure12-s-adamw-lr-$lr" "Figure 12: naive AdamW, learning rate $lr"
    { model S; method adamw $lr printed; guided; matched dense-s ours; } | job "figure12-s-self-guided-adamw-lr-$lr" "Figure 12: self-guided, AdamW, learning rate $lr"
    { model S; method muon $lr printed; guided; matched dense-s ours; } | job "figure12-s-self-guided-muon-lr-$lr" "Figure 12: self-guided, Muon, learning rate $lr"
    { model S; method spectron $lr printed; matched dense-s ours; } | job "figure12-s-spectron-lr-$lr" "Figure 12: Spectron, learning rate $lr"
done
{ model S low-rank-ffn; method adamw 0.001; matched dense-s ours; } | job figure13-s-ffn-adamw "Figure 13: factors in the feed-forward layers only, naive AdamW"
{ model S low-rank-ffn; method adamw 0.001; guided; matched dense-s ours; } |
    job figure13-s-ffn-self-guided "Figure 13: factors in the feed-forward layers only, self-guided, AdamW"
{ model S low-rank-ffn; method spectron 0.01; matched dense-s ours; } | job figure13-s-ffn-spectron "Figure 13: factors in the feed-forward layers only, Spectron"

# ---- Figures 2 and 3: look at model.layers.4.self_attn.o_proj in the records' `spectral`. Figure 2's steps are not printed: Figure 3's ----
{ model S dense; method adamw 0.001; steps 8000 ours; telemetry 20; } | job figure2-s-dense-adamw "Figure 2: layer 4 o_proj, dense AdamW"
{ model S; method adamw 0.001; steps 8000; telemetry 20; } | job figure2-s-low-rank-adamw "Figures 2 and 3: layer 4 o_proj, low-rank AdamW"
for name in muon spectron; do
    { model S; method $name 0.01; steps 8000; telemetry 20; } | job "figure3-s-$name" "Figure 3: layer 4 o_proj, $name"
done

# ---- Figure 9 (and 8; D): IsoFLOP grid, tokens = budget / 6N with the low-rank counts. The paper prints the two outer budgets, 39 runs, and a range
# of 250M to 90B tokens; which 39 of these 48 it ran it does not say. The two inner budgets (geometric) and what is outside of that range are ours.
for budget in 2.20e18 5.57e18 1.41e19 3.57e19; do
    case $budget in 5.57e18 | 1.41e19) whose=', budget ours' ;; *) whose= ;; esac
    while read -r base count; do
        tokens=$(awk -v c=$budget -v n="$count" 'BEGIN { printf "%.0f", int(c / (6 * n)) }')
        ours=$whose
        awk -v t="$tokens" 'BEGIN { exit !(t > 9.05e10) }' && ours="$ours, outside the paper's range of tokens: ours"
        { model "$base"; method spectron 0.01; echo '[schedule]'; echo "tokens = $tokens"; } |
            job "isoflop/$budget-$base" "Figures 9 and 14c, IsoFLOP: $budget FLOPs$ours, low-rank $base ($count parameters)"
    done <<END
60M 47456768
92M 67843200
134M 93604608
150M 101013248
220M 143225728
325M 200909824
500M 296930560
780M 453846528
835M 483474944
1.4B 780765184
1.7B 943187968
2.7B 1495173632
END
done

# ---- App. E.3: the sweep, for jobs/sweep.sbatch: a line a run; the best of these is what the paper reports ----
for file in dense-?.toml table1-*.toml; do
    name=${file%.toml}
    for multiplier in 1 5 7; do
        for scale in 3 2 1; do
            for decay in 0.1 0.01 0.001; do
                lr=$(awk -v m=$multiplier -v s=$scale 'BEGIN { printf "%g", m / 10 ^ s }')
                echo "run.output=../../runs/paper/sweep/$name-lr-$lr-decay-$decay optimizer.lr=$lr optimizer.weight_decay=$decay"
            done
        done
    done >"sweeps/$name.variants"
done
