# The runs of jobs/reproduce.sh, to be sourced with $scale and $out set. Each line of runs(): STAGE NAME SETTING...; stage 2 takes the best learning
# rates of stage 1's sweeps (best:GROUP). A sweep's runs are GROUP-lr-RATE[-wd-DECAY]; further seeds end in -seed-N.

# A trial: hidden 16, 12 steps. Else hidden sizes and steps by scale.
if [ "$scale" = 0 ]; then
    sizes="16 32 48" middle=32 steps=12 every=4
else
    sizes="$((48 * scale)) $((64 * scale)) $((96 * scale))" middle=$((64 * scale)) steps=$((800 * scale * scale)) every=10
fi
# 8/3 of hidden, to the nearest multiple of 16
ffn() { echo $((($1 * 8 + 24) / 48 * 16)); }
# Steps of a dense model: 10 tokens (of 4096 a step) for each parameter of the 6 layers' matrices, and at least 600; the middle size as its sweep
dense_steps() {
    [ "$1" != $middle ] || { echo $steps; return; }
    [ "$scale" != 0 ] || { echo 16; return; }
    awk -v h="$1" -v f="$(ffn "$1")" 'BEGIN { n = 6 * (4 * h * h + 3 * h * f); s = int(n * 10 / 4096) + 1; print s < 600 ? 600 : s }'
}
model() { echo "model.hidden=$1 model.ffn=$(ffn "$1")"; }

# of a sweep: learning rates, each with its weight decay behind a colon where that is not small.toml's 0.1 (what decay takes grows with the rate)
rates() {
    case $1 in
    spectron | muon) echo 0.003 0.01 0.03 0.1 0.03:0.01 0.1:0.01 ;;
    renorm) echo 0.03 0.1 0.3 1 0.1:0.01 0.3:0.01 1:0.01 ;;
    sgd) echo 0.1 1 0.1:0.001 1:0.001 10:0.001 ;;
    adamw | self-guided) echo 0.001 0.003 0.01 0.03 0.003:0.01 0.01:0.01 ;;
    dense-muon) echo 0.003 0.01 0.03 0.1 0.03:0.01 0.1:0.01 ;;
    esac
}
# settings of a method; its learning rate is everything's, embedding, head and gains included, but for two whose rates are of another size
method() {
    case $1 in
    self-guided) echo "optimizer.method=adamw guidance.method=self-guided guidance.stochastic=true" ;;
    self-guided-muon) echo "optimizer.method=muon guidance.method=self-guided guidance.stochastic=true" ;;
    adamw) echo "optimizer.method=adamw" ;;
    dense-muon) echo "optimizer.method=muon model.parameterization=dense" ;;
    dense-adamw) echo "optimizer.method=adamw model.parameterization=dense" ;;
    renorm | sgd) echo "optimizer.method=$1 optimizer.adamw.lr=0.03" ;;
    *) echo "optimizer.method=$1" ;;
    esac
}
# sweep GROUP: its runs' names, learning rates and weight decays
sweep() {
    for rate in $(rates "$1"); do
        case $rate in
        *:*) echo "$1-lr-${rate%:*}-wd-${rate#*:} ${rate%:*} ${rate#*:}" ;;
        *) echo "$1-lr-$rate $rate 0.1" ;;
        esac
    done
}

# The dense models' jobs, which their low-rank counterparts match in FLOPs
dense_jobs() {
    for hidden in $sizes; do
        printf '[model]\nhidden = %d\nffn = %d\nlayers = 6\nheads = 4\nvocab = 1024\nseq_len = 128\nparameterization = "dense"\n[optimizer]\nmethod = "muon"\n[schedule]\nsteps = %d\n[batch]\nsequences = 32\n' \
            "$hidden" "$(ffn "$hidden")" "$(dense_steps "$hidden")" >"$out/dense-$hidden.toml"
    done
}

runs() {
    usual="$(model $middle) schedule.steps=$steps"
    [ "$scale" != 0 ] || usual="$usual validation.tokens=4096"
    # the sweeps: Tables 1 and 2, Figures 4, 10, 12, and the dense models'
    for group in spectron adamw self-guided muon dense-muon renorm sgd; do
        sweep "$group" | while read -r name lr decay; do
            [ "$decay" != 0.1 ] || decay=
            echo "1 $name $usual $(method "$group") optimizer.lr=$lr ${decay:+optimizer.weight_decay=$decay }run.seed=1"
        done
    done
    # Figure 12's other points
    echo "1 spectron-lr-0.001 $usual $(method spectron) optimizer.lr=0.001 run.seed=1"
    for lr in 0.001 0.01; do echo "1 self-guided-muon-lr-$lr $usual $(method self-guided-muon) optimizer.lr=$lr run.seed=1"; done
    # Figures 1, 5, 6: dense and low-rank at equal FLOPs, by size
    for hidden in $sizes; do
        for seed in 1 2; do
            echo "2 equal-dense-$hidden-seed-$seed $(model "$hidden") schedule.steps=$(dense_steps "$hidden") $(method dense-muon) optimizer.lr=best:dense-muon run.seed=$seed"
            echo "2 equal-low-rank-$hidden-seed-$seed $(model "$hidden") schedule.match_flops=../../../runs/reproduce/scale-$scale/dense-$hidden.toml $(method spectron) optimizer.lr=best:spectron run.seed=$seed"
        done
    done
    # further seeds of each method's best
    for group in spectron adamw self-guided muon renorm; do
        for seed in 2 3; do echo "2 $group-seed-$seed $usual $(method $group) optimizer.lr=best:$group run.seed=$seed"; done
    done
    echo "2 sgd-seed-2 $usual $(method sgd) optimizer.lr=best:sgd run.seed=2"
    # Table 3, Figure 11
    for ratio in 0.125 0.4; do
        for seed in 1 2; do echo "2 ratio-$ratio-seed-$seed $usual $(method spectron) model.rank_ratio=$ratio optimizer.lr=best:spectron run.seed=$seed"; done
    done
    # Figure 13
    for group in spectron adamw self-guided; do
        for seed in 1 2; do echo "2 ffn-$group-seed-$seed $usual $(method $group) model.parameterization=low-rank-ffn optimizer.lr=best:$group run.seed=$seed"; done
    done
    # Figures 2 and 3: the dense model at the low-rank one's learning rate
    for group in adamw muon spectron; do echo "2 telemetry-$group $usual $(method $group) optimizer.lr=best:$group run.seed=1 metrics.spectral_every=$every"; done
    echo "2 telemetry-dense-adamw $usual $(method dense-adamw) optimizer.lr=best:adamw run.seed=1 metrics.spectral_every=$every"
}
