#!/bin/sh
# Loss spikes and skipped steps: what they leave behind, and that `spectron replay` computes such a step again bit for bit and names what went wrong.
. "$(dirname "$0")/lib.sh"
poison=$build/tests/poison_checkpoint
TMPDIR=$work/tmp
export TMPDIR
mkdir "$TMPDIR"
make_data
make_job job.toml run

# fields RUN KEY...: the step and these fields of every record
fields() {
    file=$1/metrics.jsonl
    shift
    while IFS= read -r line; do
        for key in step "$@"; do printf '%s' "$line" | sed -E 's/.*"'"$key"'":(\{[^}]*\}|[^,}]*).*/\1 /' | tr -d '\n'; done
        echo
    done <"$file"
}

# replays CODE PATTERN ARGUMENT...: the tool's exit code, and a line of what it prints or says
replays() {
    code=$1 pattern=$2
    shift 2
    status=0
    "$spectron" replay "$@" >replay.log 2>&1 || status=$?
    [ $status = "$code" ] || { cat replay.log; fail "replay $*: exit $status instead of $code"; }
    grep -q "$pattern" replay.log || { cat replay.log; fail "replay $*: no '$pattern'"; }
    [ -z "$(ls "$TMPDIR")" ] || { ls -la "$TMPDIR"; fail "replay $*: left temporary files"; }
}

note "z, spikes and norms by group: the same on 1 and 2 ranks, and after a resume on 3 between two records"
small='--set dist.reduction=tree --set batch.micro=4 --set metrics.spike_z=0.5 --set optimizer.lr=1e-7 --set metrics.every=2 --set schedule.steps=110 --set validation.every=0'
for ranks in 1 2; do
    # shellcheck disable=SC2086 # words they are
    mpi $ranks $small --set run.output=run-$ranks job.toml >log 2>&1 || { cat log; fail "$ranks ranks"; }
    fields run-$ranks loss grad_norm loss_z spikes grad_norms >fields-$ranks
    cmp fields-1 fields-$ranks >&2 || fail "records on $ranks ranks"
done
[ "$(tail -n 1 fields-1 | cut -d ' ' -f 5)" -ge 3 ] || { cut -d ' ' -f 1-5 fields-1; fail "too few spikes for the test to tell anything"; }
# shellcheck disable=SC2086
mpi 2 $small --set checkpoint.every=81 --set checkpoint.keep=9 --set run.output=run-cut job.toml >log 2>&1 || { cat log; fail "run to be cut"; }
rm run-cut/checkpoints/step-00000110.h5
rm -f run-cut/checkpoints/best.h5
# shellcheck disable=SC2086
mpi 3 $small --resume --set run.output=run-cut job.toml >log 2>&1 || { cat log; fail "resume"; }
grep -q '^resumed at step 81' log || { cat log; fail "the resume was to begin at 81"; }
fields run-cut loss grad_norm loss_z spikes grad_norms >fields-cut
cmp fields-1 fields-cut || fail "records after a resume"

note "the norms by group make up the whole, with both ways to sum"
mpi 2 --set schedule.steps=5 --set run.output=run-sum job.toml >log 2>&1 || { cat log; fail "5 steps"; }
for run in run-1 run-sum; do
    fields $run grad_norm grad_norms | tr -d '{}' | awk '
        { sum = 0; n = split($3, part, ","); for (i = 1; i <= n; i++) { split(part[i], pair, ":"); sum += pair[2] * pair[2] }
          d = sqrt(sum) / $2 - 1; if (d < 0) d = -d; if (n < 17 || d > 1e-12) { print; exit 1 } }' || fail "$run: norms by group"
done

note "a planted spike: a post-mortem, and its checkpoint outlives keep"
long='--set schedule.steps=60 --set schedule.kind=constant --set schedule.warmup=0 --set checkpoint.every=10 --set checkpoint.keep=1 --set validation.every=0 --set run.output=run-spike'
# shellcheck disable=SC2086
mpi 2 $long --set schedule.steps=40 job.toml >log 2>&1 || { cat log; fail "40 steps"; }
[ ! -e run-spike/post-mortem ] || { cat log; fail "a spike before there was one"; }
"$poison" run-spike/checkpoints/step-00000040.h5 /model/model.norm.weight 5 1000 || fail "poisoning"
# shellcheck disable=SC2086
mpi 2 $long --resume job.toml >log 2>&1 || { cat log; fail "60 steps"; }
grep -q '^step 41: loss spike' log || { cat log; fail "no spike told of"; }
[ -e run-spike/post-mortem/step-00000041.json ] && [ -e run-spike/post-mortem/step-00000040.h5 ] || { ls run-spike/post-mortem; fail "names"; }
[ ! -e run-spike/checkpoints/step-00000040.h5 ] || fail "keep did not remove the checkpoint"
grep -q '"reason":"spike","step":41' run-spike/post-mortem/step-00000041.json || fail "post-mortem: reason"
[ "$(grep -o '"index":[0-9]*,"rank":[01],"window":[0-9]*,"epoch":0,"file":"[^"]*train[^"]*","offset":[0-9]*' run-spike/post-mortem/step-00000041.json | wc -l)" = 24 ] ||
    fail "post-mortem: not 24 samples"
[ "$(grep -o '"step":[0-9]*,"tokens"' run-spike/post-mortem/step-00000041.json | wc -l)" = 41 ] || fail "post-mortem: not 41 records"
find run-spike -type f -exec cksum {} + | sort >before
replays 0 'step 41: loss .*bit for bit' run-spike --step 41
grep -q '^every value of every op is finite' replay.log || { cat replay.log; fail "a spike is finite"; }
replays 3 'not reproduced: the first step that differs is 41' run-spike --step 41 --from 0 # the checkpoint was poisoned

note "healthy steps: from the newest checkpoint, from the start, and what cannot be"
replays 0 'step 60: loss .*bit for bit as recorded, like the 1\{0,1\}9 recorded' run-spike --step 60
grep -q 'largest growth against step 59' replay.log || { cat replay.log; fail "no growth told of"; }
grep -q '× model.layers.[01].[a-z_.]*proj' replay.log || { cat replay.log; fail "no matrix named"; }
replays 0 'step 7: loss .*bit for bit as recorded, like the 6 recorded' run-spike --step 7 --from 0
replays 2 'no checkpoint before step 9: the oldest is of step 40, so that steps from 41 on' run-spike --step 9
replays 2 'no intact checkpoint of that step' run-spike --step 60 --from 31
replays 2 'recorded steps up to 60' run-spike --step 61
replays 2 'wants a run' run-spike
replays 2 'not before' run-spike --step 5 --from 5
replays 2 'data/metrics.jsonl: No such file.*give a run.s folder' data --step 5
find run-spike -type f -exec cksum {} + | sort | cmp before - >&2 || fail "a replay wrote into the run"

note "a resume that changed the reduction; records of what no run could be; the files of another time line make way"
mixed='--set batch.micro=4 --set checkpoint.every=4 --set checkpoint.keep=9 --set validation.every=0 --set run.output=run-mixed'
# shellcheck disable=SC2086
{
    mpi 2 $mixed --set schedule.steps=12 job.toml >log 2>&1 || { cat log; fail "12 steps"; }
    mpi 2 $mixed --resume --set schedule.steps=12 --set dist.reduction=tree job.toml >log 2>&1 || { cat log; fail "no more to do"; }
    rm run-mixed/checkpoints/step-00000012.h5 run-mixed/checkpoints/best.h5 2>/dev/null
    mpi 2 $mixed --resume --set schedule.steps=12 --set dist.reduction=tree job.toml >log 2>&1 || { cat log; fail "resumed at 8"; }
}
grep -q '"reduction":"tree","precision":"[a-z0-9]*"' run-mixed/metrics.jsonl || fail "no reduction recorded"
replays 0 'step 7: loss .*bit for bit' run-mixed --step 7
replays 0 'step 11: loss .*bit for bit' run-mixed --step 11
replays 2 'step 5 was computed with another .dist. reduction' run-mixed --step 11 --from 4
cp -r run-mixed run-claims
sed -i 's/"ranks":2/"ranks":60000/' run-claims/metrics.jsonl
replays 3 '60000 ranks with a micro-batch of 4 do not divide' run-claims --step 7
sed -i 's/"ranks":60000,"micro":4/"ranks":2,"micro":9223372036854775807/' run-claims/metrics.jsonl
replays 3 'micro-batch of 9223372036854775807 do not divide' run-claims --step 7
cat run-mixed/metrics.jsonl run-mixed/metrics.jsonl >run-claims/metrics.jsonl
replays 3 'stands after step' run-claims --step 7
mkfifo run-claims/checkpoints/step-00000006.h5
cp run-mixed/metrics.jsonl run-claims/metrics.jsonl
replays 0 'step 7: loss .*bit for bit' run-claims --step 7
rm -r run-claims/checkpoints run-claims/job.toml
replays 2 'no intact checkpoint before' run-claims --step 7
mkdir run-mixed/post-mortem
cp run-spike/post-mortem/* run-mixed/post-mortem
# shellcheck disable=SC2086
mpi 2 $mixed --resume --set schedule.steps=13 --set dist.reduction=tree job.toml >log 2>&1 || { cat log; fail "resumed at 12"; }
[ -e run-mixed/post-mortem/step-00000041.json.kept-1 ] && [ -e run-mixed/post-mortem/step-00000040.h5.kept-1 ] && [ ! -e run-mixed/post-mortem/step-00000041.json ] ||
    { ls run-mixed/post-mortem; fail "files of a time line that was left"; }

note "a self-guided run: across the end of guidance, and its last guided step; the guides' norms are part of the whole"
for reduction in all-reduce tree; do
    mpi 2 --set guidance.method=self-guided --set guidance.stochastic=true --set guidance.fraction=0.5 --set optimizer.method=muon --set schedule.steps=12 \
        --set dist.reduction=$reduction --set batch.micro=4 --set optimizer.grad_clip=0.5 --set checkpoint.every=4 --set checkpoint.keep=9 --set validation.every=0 \
        --set run.output=run-guided-$reduction job.toml >log 2>&1 || { cat log; fail "a guided run, $reduction"; }
    replays 0 'bit for bit' run-guided-$reduction --step 8 --from 4
    replays 0 'bit for bit' run-guided-$reduction --step 6 --from 4
    fields run-guided-$reduction grad_norm grad_norms | tr -d '{}' | awk '
        { sum = 0; n = split($3, part, ","); for (i = 1; i <= n; i++) { split(part[i], pair, ":"); sum += pair[2] * pair[2] }
          d = sqrt(sum) / $2 - 1; if (d < 0) d = -d; if (d > 1e-12 || n != ($1 <= 6 ? 24 : 17)) { print n, d, $0; exit 1 } }' || fail "$reduction: norms by group beside guides"
done

note "one matrix goes wrong: skipped, told of, named; test_observe has every matrix"
mpi 2 --set schedule.steps=10 --set validation.every=0 --set run.output=run-wrong job.toml >log 2>&1 || { cat log; fail "10 steps"; }
rm -f run-wrong/checkpoints/best.h5
mkdir run-update
cp -r run-wrong/checkpoints run-wrong/metrics.jsonl run-update
"$poison" run-wrong/checkpoints/step-00000010.h5 /model/model.layers.1.self_attn.v_proj.B 17 3.4e38 || fail "poisoning"
expect 4 'diverged' mpi 2 --set schedule.steps=12 --set validation.every=0 --set run.output=run-wrong --resume job.toml
grep -q 'step 11: post-mortem in' out.log || { cat out.log; fail "no post-mortem"; }
[ "$(ls run-wrong/post-mortem/*.json)" = run-wrong/post-mortem/step-00000011.json ] || fail "one post-mortem for skipped steps in a row"
rm run-wrong/checkpoints/*.h5
replays 0 'step 11: loss .*bit for bit' run-wrong --step 11
grep -q '^the first to go wrong: model.layers.1.self_attn.v_proj, forward, its output' replay.log || { cat replay.log; fail "the matrix is not named"; }
grep -q 'largest element of model.layers.1.self_attn.v_proj.B was 3.4e+38' replay.log || { cat replay.log; fail "its factor is not told of"; }

note "an update that goes wrong"
"$poison" run-update/checkpoints/step-00000010.h5 /optimizer/model.norm.weight/adam_v 5 -1 || fail "poisoning"
expect 4 'parameters are not finite' mpi 2 --set schedule.steps=11 --set data.validation=[] --set run.output=run-update --resume job.toml
grep -q '"reason":"parameters","step":11,' run-update/post-mortem/step-00000011.json || fail "no post-mortem"
replays 0 'step 11: loss .*bit for bit' run-update --step 11
grep -q '^parameters after the update: model.norm.weight: 1 of 48 are not finite' replay.log || { cat replay.log; fail "the tensor is not named"; }

note "a post-mortem that cannot be written ends nothing, and follows no link; a hostile one is refused"
mkdir elsewhere run-link
ln -s ../elsewhere run-link/post-mortem
# shellcheck disable=SC2086
mpi 1 $small --set run.output=run-link job.toml >log 2>&1 || { cat log; fail "a run that cannot write post-mortems"; }
grep -q '^spectron-dist: step [0-9]*: no post-mortem: .*training goes on' log || { cat log; fail "nothing said"; }
[ -z "$(ls elsewhere)" ] || fail "written outside of run.output"
sed -i 's/"ranks":2/"ranks":1000000/g' run-update/post-mortem/step-00000011.json
replays 3 'ranks = 1000000' run-update --step 11
printf '{"format":"spectron-post-mortem","job":[]}' >run-update/post-mortem/step-00000011.json
replays 3 'no post-mortem of this program' run-update --step 11
