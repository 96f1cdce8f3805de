#!/bin/sh
# jobs/reproduce.sh at its trial scale, some of its runs: each leaves its points, a second start makes none again, a changed one is made anew, a run
# that diverges is a result, and the report has a row for every table and figure of the paper.
. "$(dirname "$0")/lib.sh"
make_data
mkdir -p tree/data/reproduce
cp -r "$source/jobs" "$source/configs" "$source/tests" "$source/src" "$source/kernels" "$source"/meson* "$source/README.md" tree/
cat text/*.txt >tree/data/reproduce/small.txt
points=tree/runs/reproduce/scale-0/points
start() { SPT_BUILD="$build" sh tree/jobs/reproduce.sh --scale 0 --jobs 2 --only '^(spectron|sgd|dense-muon|self-guided)-lr|^ratio-0.4|^equal-.*-16|^telemetry-spectron' >start.log 2>&1 || { cat start.log; fail "reproduce.sh"; }; }
made() { grep -c 'validation loss\|diverged' start.log || :; }
start
wanted=$(sh tree/jobs/reproduce.sh --scale 0 --list | awk '$2 ~ /^(spectron|sgd|dense-muon|self-guided)-lr|^ratio-0.4|^equal-.*-16|^telemetry-spectron/' | wc -l)
[ "$(made)" = "$wanted" ] && [ "$(ls $points/*.csv | wc -l)" = "$wanted" ] || { cat start.log; fail "not $wanted runs"; }
[ -s $points/telemetry-spectron.spectral ] || fail "no telemetry"
[ -z "$(find tree/runs -name 'step-*.h5')" ] || fail "checkpoints are left"
results=tree/runs/reproduce/scale-0/RESULTS.md
for thing in 'Table 1' 'Table 2' 'Table 3' 'Tables 4 and 5' 'Figures 1, 5' 'Figure 2' 'Figure 3' 'Figures 4' 'Figure 6' 'Figure 7' 'Figures 8, 9' 'Figure 10' 'Figure 11' 'Figure 12' 'Figure 13' '14a' '14b' '14c'; do
    grep -q "^| .*$thing" $results || { cat $results; fail "no row of $thing"; }
done
grep -q '^| Table 2: both (Spectron) | 3.00 | [0-9.]*.*perplexity' $results || { cat $results; fail "no number of Spectron"; }
if grep -q 'awk:' start.log; then cat start.log; fail "awk"; fi
grep -q 'not run' $results || fail "what was not run is not said"
[ -s tree/runs/reproduce/scale-0/results/figure10.svg ] || fail "no picture"
note "$wanted runs; again: none; one changed: that one, which diverges"
start
[ "$(made)" = 0 ] || { cat start.log; fail "a second start trains again"; }
sed -i 's/^    sgd) echo 0.1 1 /    sgd) echo 0.1 1000 /' tree/jobs/reproduce/runs.sh
grep -q 'sgd) echo 0.1 1000 ' tree/jobs/reproduce/runs.sh || fail "the sweep of SGD reads otherwise"
start
[ "$(made)" = 1 ] && grep -q '^sgd-lr-1000: diverged' start.log && grep -q '1000 \*\*diverged' $results || { cat start.log; fail "a run that diverges"; }
