#!/bin/sh
# The quickstart, from the text to the result, with the programs of this build and a fixed number of steps: its model beats an add-one bigram model on
# the validation text. Slow on purpose: about 600,000 tokens. Works on a copy, so that nothing lands in the source folder.
. "$(dirname "$0")/lib.sh"
mkdir tree
cp -r "$source/jobs" "$source/configs" "$source/tests" tree/
cp -r "$source/src" "$source/kernels" "$source"/meson* "$source/README.md" tree/
run() { SPT_BUILD="$build" SPT_QUICKSTART_STEPS="$1" sh tree/jobs/quickstart.sh >quickstart.log 2>&1 || { cat quickstart.log; fail quickstart; }; }
number() { sed -n "s|^$1 *\([0-9.]*\).*|\1|p" quickstart.log | tail -1; }
run 300
for line in 'training loss:' 'validation loss:' 'perplexity:' 'bits per byte:' 'tokens/s:' 'picture: .*loss.png' 'checkpoint: ' 'metrics: ' 'resume: .*--resume' \
    'add-one bigram model: loss' 'xz -9 on the validation text'; do
    grep -q "$line" quickstart.log || { cat quickstart.log; fail "the result lacks '$line'"; }
done
[ -s tree/runs/quickstart/loss.png ] || fail "no loss picture"
model=$(number 'validation loss:') bigram=$(number 'for comparison, add-one bigram model: loss')
note "model $model, bigram $bigram nats per token; $(number 'bits per byte:') bits per byte, xz $(number 'for comparison, xz -9 on the validation text:')"
awk -v a="$model" -v b="$bigram" 'BEGIN { exit !(a > 0 && a < b) }' || { cat quickstart.log; fail "the model does not beat the bigram model"; }
note "again: nothing is done twice"
run 300
grep -q 'nothing to do: step 300 of 300' quickstart.log || { cat quickstart.log; fail "a second quickstart trains again"; }
note "the command that resumes, as printed"
sh -eu -c "$(sed -n 's/^resume: //p' quickstart.log)" >resume.log 2>&1 || { cat resume.log; fail "the printed resume command"; }
grep -q 'nothing to do' resume.log || { cat resume.log; fail "the resume command starts anew"; }
