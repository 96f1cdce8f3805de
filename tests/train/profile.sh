#!/bin/sh
# What --profile prints: every op in its pass, shares that make up the step time, and the FLOPs that core/flops counts, on one rank and on two;
# without the first step, validation and saves. It asks nothing of times and rates.
. "$(dirname "$0")/lib.sh"
make_data
make_job job.toml run
# 240 wide, so that the ops and not what is between them take the time
sed -i 's/^hidden = 48/hidden = 240/; s/^ffn = 80/ffn = 640/; s/^steps = 20/steps = 9/; s/^every = 10/every = 3/' job.toml
"$trainer" --help | grep -A 3 -e --profile | grep -q 'share of step time' || fail "--help does not explain --profile"

# rows FILE: pass;op;share;calls;milliseconds;GFLOP/s, the sums left out
rows() {
    awk '/^  (forward|loss|backward|optimizer|copy) / && !/together/ && NF >= 10 {
        op = $2; for (i = 3; i <= NF - 8; i++) op = op " " $i
        print $1 ";" op ";" $(NF - 7) ";" $(NF - 6) ";" $(NF - 5) ";" $(NF - 3) }' "$1"
}
# flops CONDITION: milliseconds × GFLOP/s of the rows that meet it, in FLOPs a step
flops() { awk -F';' "($1) && \$6 != \"-\" { sum += \$5 * \$6 * 1e6 } END { printf \"%.6e\\n\", sum }" rows.log; }
# near WHAT GOT WANTED TOLERANCE: relative; the columns are printed to a few digits
near() {
    awk -v got="$2" -v want="$3" -v tolerance="$4" 'BEGIN { d = got / want - 1; exit !(d <= tolerance && d >= -tolerance) }' ||
        { cat log; fail "$1: $2 FLOPs, counted $3"; }
}
# counted NAME...: the dry run's counts, forward and backward, together; the table begins at "FLOPs per step"
counted() {
    sed -n '/^FLOPs per step/,$p' dry.log | awk -v names=" $* " 'index(names, " " $1 " ") && NF == 3 { sum += $2 + $3 } END { printf "%.6e\n", sum }'
}
# part A B: a product; B may be a fraction
part() { awk "BEGIN { printf \"%.6e\", $1 * $2 }"; }

"$trainer" --dry-run --threads 1 job.toml >dry.log
matrices=$(counted 'q|k|v' o 'gate|up' down) head=$(counted head)
# backward has the scores to do again: 5 products a head, where core/flops counts 2 for each of forward's 2
attention=$(awk -v counted="$(counted attention)" 'BEGIN { printf "%.6e", counted * 7 / 6 }')
# 5 Newton-Schulz iterations of every pair, 20·r²·(m + n + r) FLOPs: ranks ⌊0.27·240⌋ = 64, and ⌊0.27·640⌋ = 172 of down
orthogonal=$(awk 'BEGIN { r = 64; s = 172; printf "%.6e", 2 * 20 * (4 * r * r * (480 + r) + 2 * r * r * (880 + r) + s * s * (880 + s)) }')
model=$(awk -v a="$matrices" -v b="$head" -v c="$attention" 'BEGIN { printf "%.6e", a + b + c }')
step=$(awk -v a="$model" -v b="$orthogonal" 'BEGIN { printf "%.6e", a + b }')

# check_rows: each op in its pass, once, with its calls a step: two layers, one micro-batch, no validation
check_rows() {
    rows log >rows.log
    while IFS=';' read -r pass op calls; do
        [ "$(grep -cF "$pass;$op;" rows.log)" = 1 ] || { cat log; fail "not one row of $pass, $op"; }
        [ -z "$calls" ] || grep -F "$pass;$op;" rows.log | cut -d';' -f4 | grep -qx "$calls" || { cat log; fail "$pass, $op: not $calls calls a step"; }
    done <<END
forward;embedding;1.0
forward;q|k|v;2.0
forward;attention;2.0
forward;o;2.0
forward;gate|up;2.0
forward;down;2.0
loss;head and loss;1.0
backward;embedding;1.0
backward;q|k|v;2.0
backward;attention;2.0
backward;o;2.0
backward;gate|up;2.0
backward;down;2.0
optimizer;zero gradients;1.0
optimizer;gradient norm;
optimizer;momentum;
optimizer;Newton-Schulz;
optimizer;power iteration;
optimizer;factor update;
optimizer;AdamW;
copy;compute copy;9.0
END
    [ "$(wc -l <rows.log)" = 21 ] || { cat log; fail "$(wc -l <rows.log) rows instead of 21"; }
}
# check_flops SHARE: this part of the model's FLOPs
check_flops() {
    near "layer matrices" "$(flops '$2 ~ /^(q.k.v|o|gate.up|down)$/')" "$(part "$matrices" "$1")" 0.01
    near "their forward pass" "$(flops '$1 == "forward" && $2 != "attention"')" "$(part "$matrices" "$1 / 3")" 0.01
    near head "$(flops '$1 == "loss"')" "$(part "$head" "$1")" 0.01
    near attention "$(flops '$2 == "attention"')" "$(part "$attention" "$1")" 0.01
}
# share NAME: of a phase, in %
share() { sed -n "s/^  $1  *[0-9.]*  *\([-0-9.]*\).*/\1/p" log; }
# check_phases: they make up the step time, and the ops lie inside them
check_phases() {
    for phase in 'data wait' 'forward and backward' 'reduction wait' optimizer 'agreement of the ranks' 'parameter gather' 'compute copy' logging rest; do
        [ -n "$(share "$phase" | head -1)" ] || { cat log; fail "no phase '$phase'"; }
        share "$phase" | head -1
    done >phases
    awk '{ sum += $1 } END { exit !(sum > 99.9 && sum < 100.1) }' phases || { cat log; fail "the phases make up $(paste -sd+ phases) %"; }
    [ -n "$(share 'beside: validation')" ] && [ -n "$(share 'beside: saves')" ] || { cat log; fail "no validation or saves"; }
    # two roundings a row
    awk -F';' -v model="$(sed -n 2p phases)" -v update="$(sed -n 4p phases)" -v copy="$(sed -n 7p phases)" '
        $1 == "optimizer" { a += $3; next } $1 == "copy" { b += $3; next } { c += $3 }
        END { exit !(c <= model + 0.2 && a <= update + 0.2 && b <= copy + 0.2) }' rows.log || { cat log; fail "an op takes longer than its phase"; }
}

note "one rank"
"$trainer" --threads 1 --profile job.toml >log 2>&1 || { cat log; fail "one rank"; }
grep -q '^profile of 8 steps; the run.s first step' log || { cat log; fail "the first of 9 steps is not left out"; }
grep -q 'logging .*(8 records)' log || { cat log; fail "not 8 records logged"; }
grep -q "peak: [0-9.]* GFLOP/s (one thread's in a large fp32 product, times the processors), [0-9.]* GB/s" log || { cat log; fail "no measured peaks"; }
check_rows
check_phases
check_flops 1
near Newton-Schulz "$(flops '$2 == "Newton-Schulz"')" "$orthogonal" 0.01
near "whole step" "$(sed -n 's/^whole step: \([0-9.e+]*\) FLOPs.*/\1/p' log)" "$step" 1e-3
sum=$(awk -F';' '{ sum += $3 } END { print sum }' rows.log)
awk -v sum="$sum" 'BEGIN { exit !(sum >= 80 && sum <= 101) }' || { cat log; fail "the ops make up $sum % of the step time"; }

note "two ranks"
mpi 2 --profile --set run.output=run-2 job.toml >log 2>&1 || { cat log; fail "two ranks"; }
[ "$(grep -c '^profile of 8 steps.*rank 0, and the shares of all ranks' log)" = 1 ] || { cat log; fail "the profile is not printed once"; }
check_rows
check_phases
check_flops 0.5
near "whole step of both" "$(sed -n 's/^  2 ranks together: \([0-9.e+]*\) FLOPs.*/\1/p' log)" "$step" 1e-3

note "a single step is shown, the first as it is"
"$trainer" --threads 1 --profile --set schedule.steps=1 --set run.output=run-1 job.toml >log 2>&1 || { cat log; fail "one step"; }
grep -q '^profile of 1 step, the first' log || { cat log; fail "one step"; }
check_rows
check_flops 1
